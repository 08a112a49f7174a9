/* The profile's life: its windows, its thread, its end. See profile.h. */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/alloc/mcaches.h"
#include "client/debug/profile.h"
#include "client/heap.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/registry.h"
#include "client/own/tx.h"

static struct profile *profiles; /* sync: registry_lock */

/* ---- windows -------------------------------------------------------------------------------- */

static void pause_us(struct profile *p, uint64_t us)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t ns = (uint64_t)until.tv_nsec + us * 1000;
    until.tv_sec += (time_t)(ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    while (!p->stopping && pthread_cond_timedwait(&p->wake, &p->lock, &until) == 0)
        ;
}

static void set_open(struct profile *p, bool open)
{
    uint64_t now = profile_now_ns();
    if (p->open)
        p->open_ns += now - p->opened_ns;
    p->open = open;
    p->opened_ns = now;
    store_relaxed(&p->arena->watched, open || (p->arena->debug & DEBUG_ESCAPE));
    if (!open)
        return;
    fence_seq_cst(); /* [EX1] first `watched`, then every thread's `expect` */
    mcaches_watch(p->arena);
}

static void *run_windows(void *argument)
{
    struct profile *p = argument;
    pthread_mutex_lock(&p->lock);
    while (!p->stopping) {
        set_open(p, true);
        pause_us(p, PROFILE_WINDOW_US);
        set_open(p, false);
        profile_look(p);
        pause_us(p, profile_interval(&p->seed, PROFILE_WINDOW_US * (PROFILE_WINDOWS - 1)));
    }
    pthread_mutex_unlock(&p->lock);
    return NULL;
}

static void start_thread(struct profile *p)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    p->has_thread = pthread_create(&p->thread, NULL, run_windows, p) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- begin and end -------------------------------------------------------------------------- */

static void at_exit(void)
{
    registry_enter();
    for (struct profile *p = load_acquire(&profiles); p; p = p->next) /* [FK3] */
        if (!forked(p->arena))
            profile_write(p, NULL);
    pthread_mutex_unlock(&registry_lock);
}

static void exit_init(void)
{
    atexit(at_exit);
}

void profile_init(struct arena *a, const struct environment *e)
{
    if (!e->profile_rate || a->read_only)
        return;
    struct profile *p = calloc(1, sizeof *p);
    if (!p || !(p->dir = strdup(e->profile_dir))) {
        free(p);
        return;
    }
    p->arena = a;
    p->rate = e->profile_rate;
    p->windows = p->rate >= PROFILE_OPEN;
    p->every = p->windows ? p->rate / PROFILE_WINDOWS : p->rate;
    a->profile = p;
}

void profile_start(struct arena *a)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct profile *p = a->profile;
    bool again = p->started_ns != 0;
    pthread_condattr_t monotonic;
    /* a forked child: what is there is the parent's, whose other threads may have been in the middle
     * of it */
    memset(p->buckets, 0, sizeof p->buckets);
    p->sample_count = 0;
    p->tallies = NULL;
    pthread_mutex_init(&p->lock, NULL);
    pthread_mutex_init(&p->file_lock, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&p->wake, &monotonic);
    p->started_ns = p->opened_ns = profile_now_ns();
    p->open_ns = p->sampling_ns = 0;
    p->dropped = 0;
    p->stopping = p->has_thread = false;
    p->seed = (p->started_ns ^ (uint64_t)(uintptr_t)p << 20) | 1;
    if (tx_take_tag(a, &p->tag) < 0)
        p->tag = 0;
    a->sampled_tag = p->tag;
    p->open = !p->windows;
    store_relaxed(&a->watched, p->open || (a->debug & DEBUG_ESCAPE));
    if (p->windows)
        start_thread(p);
    if (again)
        return;
    pthread_once(&once, exit_init);
    registry_enter();
    p->next = profiles;
    store_release(&profiles, p); /* [FK3] */
    pthread_mutex_unlock(&registry_lock);
}

static void unlink_profile(struct profile *p)
{
    registry_enter();
    for (struct profile **at = &profiles; *at; at = &(*at)->next)
        if (*at == p) {
            store_release(at, p->next); /* [FK3] */
            break;
        }
    pthread_mutex_unlock(&registry_lock);
}

void profile_forget(struct arena *a)
{
    if (a->profile)
        unlink_profile(a->profile);
    a->profile = NULL;
}

void profile_fini(struct arena *a)
{
    struct profile *p = a->profile;
    if (!p)
        return;
    if (p->started_ns && !forked(a)) {
        pthread_mutex_lock(&p->lock);
        p->stopping = true;
        pthread_cond_signal(&p->wake);
        pthread_mutex_unlock(&p->lock);
        if (p->has_thread)
            pthread_join(p->thread, NULL);
        profile_write(p, NULL);
    }
    unlink_profile(p);
    for (unsigned i = 0; i < PROFILE_BUCKETS; i++)
        while (p->buckets[i])
            profile_drop(p, &p->buckets[i]);
    for (struct tally *t; (t = p->tallies) != NULL; free(t))
        p->tallies = t->next;
    free(p->dir);
    free(p);
    a->profile = NULL;
}

PUBLIC int arena_profile_write(arena_t *a, const char *path)
{
    return a->profile && !forked(a) ? profile_write(a->profile, path)
                                                          : -ENOENT;
}
