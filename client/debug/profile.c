#include "client/debug/profile.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/debug/escape.h"

static struct profile *profiles; /* sync: registry_lock */

uint64_t profile_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed * 2685821657736338717ULL;
}

/* An interval to the next event, exponential with that mean, at least 1: -log2 by the exponent and
 * a linear mantissa, whose mean is 1.5 and not 1.4427. */
static uint64_t interval(uint64_t *seed, uint64_t mean)
{
    if (mean <= 1)
        return 1;
    uint64_t r = next_random(seed) | 1;
    unsigned zeros = (unsigned)__builtin_clzll(r);
    double mantissa = (double)(r << zeros) / 9223372036854775808.0; /* [1, 2) */
    double n = (double)mean * (zeros + 2 - mantissa) / 1.5;
    return n < 1 ? 1 : (uint64_t)n;
}

/* ---- samples by address --------------------------------------------------------------------- */

static struct sample **find(struct profile *p, uintptr_t object)
{
    struct sample **at =
        &p->buckets[(object >> 3) * 0x9e3779b97f4a7c15ULL >> 40 & (PROFILE_BUCKETS - 1)];
    while (*at && (*at)->object != object)
        at = &(*at)->next;
    return at;
}

static void drop(struct profile *p, struct sample **at)
{
    struct sample *s = *at;
    *at = s->next;
    free(s);
    p->sample_count--;
}

static void move(struct sample *s, enum fate to)
{
    s->tally->fates[s->fate]--;
    s->tally->fates[to]++;
    s->fate = to;
}

static void end(struct profile *p, struct sample **at, enum fate fate)
{
    struct sample *s = *at;
    move(s, fate);
    s->tally->ended++;
    s->tally->life_ns += (double)(profile_now_ns() - s->born_ns);
    drop(p, at);
}

static struct tally *tally_of(struct profile *p, const struct trace *trace)
{
    struct site *site = site_of(trace);
    if (!site)
        return NULL;
    for (struct tally *t = p->tallies; t; t = t->next) /* one process's sites: tens */
        if (t->site == site)
            return t;
    struct tally *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->site = site;
    t->next = p->tallies;
    return p->tallies = t;
}

/* ---- what became of published ones ---------------------------------------------------------- */

static void cross(struct profile *p, struct sample **at, unsigned tag)
{
    const struct heap *h = &p->arena->heap;
    struct tally *t = (*at)->tally;
    tag = tag_client(h, tag);
    uint32_t pid = load_relaxed(&h->tags[tag].pid);
    unsigned i = 0;
    while (i < t->to_count && (t->to[i].tag != tag || t->to[i].pid != pid))
        i++;
    if (i == t->to_count && i < PROFILE_CLIENTS) {
        t->to[i] = (struct crossing){.tag = (uint16_t)tag, .pid = pid};
        memcpy(t->to[i].command, h->tags[tag].command, sizeof t->to[i].command - 1);
        t->to_count++;
    }
    t->to[i < PROFILE_CLIENTS ? i : PROFILE_CLIENTS - 1].objects++;
    end(p, at, FATE_CROSSED);
}

/* True: the sample is over, and gone. */
static bool look(struct profile *p, struct sample **at)
{
    struct arena *a = p->arena;
    uint16_t word = load_relaxed((*at)->word);
    unsigned tag = word_tag(word);
    bool mine = tag == a->tag || (tag && tx_is_mine(a, tag));
    if (word == WORD_FREE)
        end(p, at, FATE_LOST);
    else if (word_is_cached(word) && mine)
        end(p, at, FATE_PUBLISHED);
    else if (tag && !mine && !tag_is_committed(&a->heap, tag))
        cross(p, at, tag);
    else
        return false;
    return true;
}

void profile_look(struct profile *p)
{
    for (unsigned i = 0; i < PROFILE_BUCKETS; i++)
        for (struct sample **at = &p->buckets[i]; *at;)
            if ((*at)->fate != FATE_SHARED || !look(p, at))
                at = &(*at)->next;
}

/* ---- events --------------------------------------------------------------------------------- */

/* The words of a sample of this process's own are told from others by their tag. */
static void mark(struct profile *p, const struct mcache *mc, struct sample *s)
{
    if (p->tag && load_relaxed(s->word) == mc->own)
        word_adopt(s->word, WORD_OWNED(p->tag)); /* T10: OWNED by this process, before and after */
    else
        move(s, FATE_SHARED);
}

/* With the lock held. */
static void account(struct profile *p, uint64_t from_ns)
{
    if (p->open)
        p->sampling_ns += profile_now_ns() - from_ns;
}

static void take_sample(struct profile *p, struct mcache *mc, void *object, size_t size)
{
    uint64_t from_ns = profile_now_ns();
    struct trace trace;
    struct object o;
    trace_take(&trace);
    if (!object_find(&p->arena->heap, (uint64_t)((uint8_t *)object - p->arena->base), &o))
        return;
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object); /* freed and given out again behind our back */
    if (*at)
        end(p, at, (*at)->fate == FATE_SHARED ? FATE_LOST : FATE_PROCESS);
    struct tally *t = p->sample_count < PROFILE_SAMPLES ? tally_of(p, &trace) : NULL;
    struct sample *s = t ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        p->dropped++;
        pthread_mutex_unlock(&p->lock);
        return;
    }
    if (t->cfa != trace.cfa[0])
        t->runs = 0;
    t->cfa = trace.cfa[0];
    *s = (struct sample){.object = (uintptr_t)object,
                         .word = o.word,
                         .size = size,
                         .tally = t,
                         .thread = mc,
                         .born_ns = from_ns,
                         .runs = ++t->runs,
                         .frames = trace.count < PROFILE_FRAMES ? trace.count : PROFILE_FRAMES};
    memcpy(s->cfa, trace.cfa, s->frames * sizeof *s->cfa);
    memcpy(s->pc, trace.pc, s->frames * sizeof *s->pc);
    at = find(p, s->object);
    s->next = *at;
    *at = s;
    p->sample_count++;
    t->objects++;
    t->bytes += (double)size;
    t->fates[FATE_OWNED]++;
    mark(p, mc, s);
    account(p, from_ns);
    pthread_mutex_unlock(&p->lock);
}

void profile_alloc(struct mcache *mc, void *object, size_t size)
{
    struct profile *p = mc->arena->profile;
    if (mc->sample_in > 1) {
        mc->sample_in--;
        return;
    }
    bool first = mc->sample_in == 0 && p->every > 1; /* this thread begins to count */
    pthread_mutex_lock(&p->lock);
    mc->sample_in = (uint32_t)interval(&p->seed, p->every);
    pthread_mutex_unlock(&p->lock);
    if (!first)
        take_sample(p, mc, object, size);
}

/* Which of the sample's callers has not returned: its number; -1: none that is known of. The same
 * activation has the same frame address and was called from the same places; so has one that took
 * its place. Where the site was met again since, nobody can tell, and nothing is claimed. A caller
 * that is still at the very call is so because what it called has not returned, or has made its
 * last call a jump. */
static int still_active(const struct sample *s, const struct trace *now)
{
    if (s->tally->cfa == s->cfa[0] && s->tally->runs != s->runs)
        return -1;
    for (unsigned i = 0; i < s->frames; i++)
        for (unsigned k = 0; k < now->count; k++)
            if (now->cfa[k] == s->cfa[i]) {
                unsigned n = 1;
                while (i + n < s->frames && k + n < now->count && now->pc[k + n] == s->pc[i + n])
                    n++;
                if (i + n >= s->frames || k + n >= now->count)
                    return i && now->pc[k] == s->pc[i] ? (int)i - 1 : (int)i;
            }
    return -1;
}

void profile_freed(struct arena *a, const void *object)
{
    struct profile *p = a->profile;
    uint64_t from_ns = profile_now_ns();
    struct trace trace;
    trace_take(&trace);
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object);
    struct sample *s = *at;
    if (s) {
        bool same_thread = s->thread == mcache_of(a);
        int frame = same_thread ? still_active(s, &trace) : -1;
        if (frame >= 0)
            s->tally->frames[frame]++;
        end(p, at, frame == 0 ? FATE_FRAME : same_thread ? FATE_THREAD : FATE_PROCESS);
    }
    account(p, from_ns);
    pthread_mutex_unlock(&p->lock);
}

void profile_published(struct arena *a, const void *object)
{
    struct profile *p = a->profile;
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object);
    if (*at && (*at)->fate == FATE_OWNED)
        move(*at, FATE_SHARED);
    pthread_mutex_unlock(&p->lock);
}

void watch_alloc(struct mcache *mc, void *object, size_t size)
{
    struct arena *a = mc->arena;
    if (a->debug & DEBUG_ESCAPE)
        escape_note_heap(a, object);
    if (a->profile)
        profile_alloc(mc, object, size);
}

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
        pause_us(p, interval(&p->seed, PROFILE_WINDOW_US * (PROFILE_WINDOWS - 1)));
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
            drop(p, &p->buckets[i]);
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
