/* Threads: each gets an mcache of a heap at its first slow path there, and gives it back when it ends. Mcaches are used again,
 * so threads may come and go for ever. A forked child has none: its parent's are wiped in it (fork.c).
 *
 * When a thread ends is not told: destructors of thread-specific data run in rounds, in any order, and others' may use the heap
 * after ours has run for the last time. So:
 *  - Ours gives everything back in each round, and sets its key again for the next one, up to the last but one: in the last
 *    round ThreadSanitizer may have put away what it needs to see a lock taken.
 *  - From its first round on the thread is `ending`: it may get an mcache again at any time until it is gone.
 *  - That it is gone tells a robust mutex, which each thread holds as long as it lives: the system marks it. What such a thread
 *    has left is given back by others (threads_reap()): the next thread that comes, arena_trim, arena_close, and an allocation
 *    that finds no room.
 *  - Nobody writes into another thread's thread-local memory unless that thread surely lives: it is not ending, and could not
 *    begin to end without registry_lock. A heap's place in tls_mcaches is not given to another heap while a thread that was
 *    ending when the heap was closed may still have an entry there (`stale`). */
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/alloc/keep.h"
#include "client/alloc/mcache.h"
#include "client/alloc/mcaches.h"
#include "client/alloc/thread.h"
#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/cancel.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/registry.h"

enum { LAST_ROUND = PTHREAD_DESTRUCTOR_ITERATIONS - 1 };

/* What the library keeps of a thread; never freed, used again. sync: registry_lock */
struct thread {
    pthread_mutex_t life;      /* robust; held by its thread for life */
    struct thread *all;        /* the next of all that were ever made; constant */
    struct thread *next, **at; /* of the list that it is on, and what leads to it there */
    struct mcache **tls;       /* its tls_mcaches */
    struct mcache *mcaches[HEAPS_MAX];
    uint32_t stale;            /* a bit for each heap that was closed while it was ending */
    bool ending;
};

/* sync: registry_lock; `all` is walked without it by who begins anew after a fork */
static struct thread *all, *living, *ending, *spare;
static uint32_t living_count, since_looked; /* threads that came since all were looked at */
static uint32_t lost_places; /* heaps in whose place a thread that nobody knows may have an entry, as a bit each */
static pthread_key_t key;
static int key_error;

/* sync: its thread */
static __thread struct {
    struct thread *thread; /* NULL: not registered */
    uint32_t generation;   /* of forks, when it was registered last; 0: never */
    uint32_t rounds;       /* of destructors that ours has seen */
    bool reaps;
} me;

static void list_add(struct thread **list, struct thread *t)
{
    t->next = *list;
    t->at = list;
    if (t->next)
        t->next->at = &t->next;
    *list = t;
}

static void list_remove(struct thread *t)
{
    *t->at = t->next;
    if (t->next)
        t->next->at = t->at;
}

/* ---- a thread comes -------------------------------------------------------------------------------------------------------------- */

/* This thread is the one that forked, or one of a child's: what its thread-local memory says is the parent's. */
static void forget_parent(void)
{
    uint32_t now = fork_generation();
    if (me.generation == now)
        return;
    for (int i = 0; i < HEAPS_MAX; i++)
        tls_mcaches[i] = &no_mcache;
    if (me.generation) /* nobody else was there at the fork */
        lost_places = 0;
    me.generation = now;
    me.thread = NULL;
    me.reaps = false;
    pthread_setspecific(key, NULL);
}

static bool life_begin(struct thread *t)
{
    pthread_mutexattr_t robust;
    pthread_mutexattr_init(&robust);
    pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&t->life, &robust);
    pthread_mutexattr_destroy(&robust);
    return pthread_mutex_trylock(&t->life) == 0;
}

/* With registry_lock. */
static int thread_register(void)
{
    forget_parent();
    if (me.thread || key_error)
        return key_error;
    struct thread *t = spare;
    if (t)
        list_remove(t);
    else if ((t = calloc(1, sizeof *t)) != NULL) {
        t->all = all;
        store_release(&all, t); /* [FK3] */
    } else
        return -ENOMEM;
    memset(t->mcaches, 0, sizeof t->mcaches);
    t->stale = 0;
    t->tls = tls_mcaches;
    t->ending = me.rounds > 0;
    if (!life_begin(t)) {
        list_add(&spare, t);
        return -ENOMEM;
    }
    int rc = me.rounds < LAST_ROUND ? pthread_setspecific(key, t) : 0; /* then others give back what it takes */
    if (rc) {
        pthread_mutex_unlock(&t->life);
        list_add(&spare, t);
        return -rc;
    }
    list_add(t->ending ? &ending : &living, t);
    living_count++;
    since_looked++;
    me.thread = t;
    return 0;
}

/* An mcache for this thread; NULL and errno. */
static struct mcache *thread_join(struct arena *a)
{
    struct mcache *mc = NULL;
    registry_enter();
    int rc = thread_register();
    if (rc < 0)
        errno = -rc;
    else if ((mc = a->free_mcaches) != NULL) {
        a->free_mcaches = mc->next_free;
        store_relaxed(&mc->trim_seen, load_relaxed(&a->keep.trim_serial)); /* it has nothing to give back */
    } else
        mc = mcaches_map(a);
    if (mc) {
        me.thread->mcaches[a->index] = mc;
        tls_mcaches[a->index] = mc;
        store_relaxed(&mc->expect, NO_WORD);
        mcache_expect(mc); /* [EX1] once it is counted: who switches the fast paths off meanwhile may not have seen it */
        if (heap_is_stale(a))
            store_relaxed(&mc->own, NO_WORD);
    }
    pthread_mutex_unlock(&registry_lock);
    return mc;
}

struct mcache *mcache_get(struct arena *a)
{
    struct mcache *mc = mcache_of(a);
    if (likely(mc->arena == a)) /* no_mcache's is NULL, and that of one that a fork has wiped */
        return mc;
    int rc = forked(a) ? arena_reattach(a) : 0;
    if (rc == 0 && (a->read_only || heap_is_stale(a)))
        rc = a->read_only ? -EACCES : -ESTALE;
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    mc = thread_join(a);
    if (mc)
        threads_reap(false); /* what those that went before it have left */
    else if (errno == EAGAIN && !me.reaps) {
        threads_reap(true);
        mc = thread_join(a);
    }
    return mc;
}

struct thread *thread_self(void) { return me.thread; }

/* ---- a thread goes --------------------------------------------------------------------------------------------------------------- */

/* Gives back what a thread - this one, or one that is gone - has of a heap. arena_close() waits while somebody is at it. */
static void leave_heap(struct thread *t, uint32_t index)
{
    registry_enter();
    struct arena *a = registry_heaps[index];
    if (!a || forked(a)) {
        pthread_mutex_unlock(&registry_lock);
        return;
    }
    a->busy++;
    pthread_mutex_unlock(&registry_lock);
    struct mcache *mc = t->mcaches[index];
    hooks.thread_exit(a, t, mc);
    if (mc)
        mcache_flush_all(mc);
    registry_enter();
    if (mc) {
        if (t == me.thread)
            tls_mcaches[index] = &no_mcache;
        t->mcaches[index] = NULL;
        mc->next_free = a->free_mcaches;
        a->free_mcaches = mc;
    }
    if (--a->busy == 0)
        pthread_cond_broadcast(&registry_changed);
    pthread_mutex_unlock(&registry_lock);
}

/* This thread's entries of heaps that were closed while it was ending. With registry_lock. */
static void forget_closed(struct thread *t)
{
    for (uint32_t i = 0; i < HEAPS_MAX; i++)
        if (t->stale >> i & 1) {
            tls_mcaches[i] = &no_mcache;
            hooks.thread_forget(i);
        }
    t->stale = 0;
}

static void on_thread_exit(void *value)
{
    (void)value;
    cancel_off();
    registry_enter();
    forget_parent();
    struct thread *t = me.thread;
    if (t) {
        list_remove(t);
        list_add(&ending, t);
        t->ending = true;
        forget_closed(t);
    }
    me.rounds++;
    pthread_mutex_unlock(&registry_lock);
    for (uint32_t i = 0; t && i < HEAPS_MAX; i++)
        leave_heap(t, i);
    if (t && me.rounds < LAST_ROUND)
        pthread_setspecific(key, t);
    else if (t) {
        registry_enter();
        forget_closed(t);
        list_remove(t);
        list_add(&spare, t);
        living_count--;
        pthread_mutex_unlock(&t->life);
        pthread_mutex_unlock(&registry_lock);
        me.thread = NULL; /* if another's destructor still comes, another begins */
    }
    cancel_on();
}

/* Whether a thread still holds its mutex. With registry_lock. */
static bool thread_lives(struct thread *t)
{
    int rc = t == me.thread ? EBUSY : pthread_mutex_trylock(&t->life);
    if (rc == EOWNERDEAD)
        pthread_mutex_consistent(&t->life);
    if (rc == EOWNERDEAD || rc == 0) /* 0: that was found out before */
        pthread_mutex_unlock(&t->life);
    return rc != EOWNERDEAD && rc != 0;
}

/* Those of a list that are gone, moved to another one. With registry_lock. */
static void collect_gone(struct thread *list, struct thread **gone)
{
    for (struct thread *t = list, *next; t; t = next) {
        next = t->next;
        if (thread_lives(t))
            continue;
        list_remove(t);
        list_add(gone, t);
        t->stale = 0;
        living_count--;
    }
}

void threads_reap(bool everywhere)
{
    struct thread *gone = NULL;
    if (me.reaps)
        return;
    cancel_off();
    registry_enter();
    collect_gone(ending, &gone);
    if (everywhere || since_looked > living_count) { /* also those that ended without destructors */
        collect_gone(living, &gone);
        since_looked = 0;
    }
    pthread_mutex_unlock(&registry_lock);
    me.reaps = true;
    for (struct thread *t; (t = gone) != NULL;) {
        for (uint32_t i = 0; i < HEAPS_MAX; i++)
            leave_heap(t, i);
        registry_enter();
        list_remove(t);
        list_add(&spare, t);
        pthread_mutex_unlock(&registry_lock);
    }
    me.reaps = false;
    cancel_on();
}

/* In a forked child, for its own: its parent's addresses, from the first on, unless a thread may still know those that its
 * parent had used. */
void mcaches_forget(struct arena *a)
{
    registry_enter();
    a->free_mcaches = NULL;
    if (!fork_wipes())
        mcaches_unmap(a);
    else if (!(lost_places >> a->index & 1))
        a->mcache_count = 0;
    pthread_mutex_unlock(&registry_lock);
}

/* ---- heaps come and go ------------------------------------------------------------------------------------------------------------ */

void threads_forget(uint32_t index)
{
    for (struct thread *t = living, *next; t; t = next) {
        next = t->next;
        if (thread_lives(t)) { /* and goes on to, until it gets registry_lock */
            store_relaxed(&t->tls[index], &no_mcache);
            t->mcaches[index] = NULL;
            continue;
        }
        list_remove(t);
        list_add(&ending, t);
        t->ending = true;
    }
    for (struct thread *t = ending; t; t = t->next)
        if (t->mcaches[index]) {
            t->mcaches[index] = NULL;
            t->stale |= 1u << index;
        }
}

bool thread_is_ending(struct thread *t, uint32_t index)
{
    if (t->ending)
        t->stale |= 1u << index;
    return t->ending;
}

uint32_t threads_stale(void)
{
    uint32_t stale = lost_places;
    for (struct thread *t = ending; t; t = t->next)
        stale |= t->stale;
    return stale;
}

/* ---- fork ------------------------------------------------------------------------------------------------------------------------- */

bool threads_after_fork(bool forking, uint32_t places)
{
    if (me.generation) /* else it is the child's, or its parent has not used a heap in it */
        forking = true;
    if (me.thread) /* held as the parent's where the thread's id is the same, after clone(); else it is refused */
        pthread_mutex_unlock(&me.thread->life);
    living = ending = spare = NULL;
    living_count = since_looked = 0;
    for (struct thread *t = load_acquire(&all); t; t = t->all) /* [FK3] */
        list_add(&spare, t);
    lost_places = forking ? 0 : places;
    if (forking) {
        for (int i = 0; i < HEAPS_MAX; i++)
            tls_mcaches[i] = &no_mcache;
        me.thread = NULL;
        me.generation = 0;
    }
    return forking;
}

void thread_has_forked(void)
{
    registry_enter();
    lost_places = 0;
    pthread_mutex_unlock(&registry_lock);
}

void threads_start(void)
{
    size_class_by_eights(size_classes);
    key_error = -pthread_key_create(&key, on_thread_exit);
}
