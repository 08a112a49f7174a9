/* Threads: each gets an mcache at its first allocation, and gives it back when it ends. They are used again, so threads may
 * come and go for ever. A forked child has none: those of its parent are wiped in it. */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/client.h"
#include "client/site.h"
#include "client/stack.h"

/* What the library keeps of a thread, for arena_close. sync: registry_lock */
struct thread {
    struct mcache **tls; /* its tls_mcaches */
    struct thread *next, *prev;
};

pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct thread *threads;
static pthread_key_t key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static void give_back(struct mcache *mc)
{
    struct arena *a = mc->arena;
    if (mc->tx)
        tx_thread_exit(mc);
    mcache_flush_all(mc);
    mc->next_free = a->free_mcaches;
    a->free_mcaches = mc;
}

static void on_thread_exit(void *value)
{
    struct thread *t = value;
    cancel_off();
    for (uint32_t i = 0; i < HEAPS_MAX; i++) {
        pthread_mutex_lock(&registry_lock);
        stack_thread_exit(i);
        struct mcache *mc = t->tls[i];
        if (mc != &no_mcache)
            give_back(mc);
        t->tls[i] = &no_mcache;
        pthread_mutex_unlock(&registry_lock);
    }
    pthread_mutex_lock(&registry_lock);
    *(t->prev ? &t->prev->next : &threads) = t->next;
    if (t->next)
        t->next->prev = t->prev;
    pthread_mutex_unlock(&registry_lock);
    free(t);
    cancel_on();
}

static void after_fork(void)
{
    fork_generation++;
    pthread_mutex_init(&registry_lock, NULL);
    for (int i = 0; i < HEAPS_MAX; i++)
        tls_mcaches[i] = &no_mcache;
    stacks_after_fork();
    sites_after_fork();
    for (struct thread *t = threads, *next; t; t = next) { /* the other threads are not here; this one begins anew */
        next = t->next;
        free(t);
    }
    threads = NULL;
    pthread_setspecific(key, NULL);
}

static void start(void)
{
    size_class_by_eights(size_classes);
    pthread_key_create(&key, on_thread_exit);
    pthread_atfork(NULL, NULL, after_fork);
}

/* Before anything else: a fork of a process that has only opened a heap must be noticed too. */
void threads_start(void) { pthread_once(&once, start); }

void threads_forget(uint32_t index)
{
    for (struct thread *t = threads; t; t = t->next)
        t->tls[index] = &no_mcache;
}

static int remember_thread(void)
{
    struct thread *t = pthread_getspecific(key);
    if (t)
        return 0;
    t = calloc(1, sizeof *t);
    if (!t)
        return -ENOMEM;
    t->tls = tls_mcaches;
    t->next = threads;
    if (threads)
        threads->prev = t;
    threads = t;
    int rc = pthread_setspecific(key, t);
    return rc ? -rc : 0;
}

/* Addresses for all slots in a row, nothing behind them yet. Where so many are not to be had - under valgrind, which has
 * 128 GiB in all, or a limit of address space - for as many threads as there is room for. */
static bool mcaches_reserve(struct arena *a)
{
    for (uint32_t slots = MCACHES_MAX; slots; slots /= 2) {
        void *all = mmap(NULL, (uint64_t)MCACHE_BYTES * slots, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (all != MAP_FAILED) {
            a->mcache_base = all;
            a->mcache_slots = slots;
            return true;
        }
    }
    errno = refused(ENOMEM, "no addresses for the caches of a thread: %d MiB", MCACHE_BYTES >> 20);
    return false;
}

/* Takes back the addresses; in a forked child those of mcaches that its parent had not mapped: a thread of it may still know
 * the others, and find them empty. The next to the last was perhaps just being mapped. */
void mcaches_unmap(struct arena *a)
{
    uint64_t from = a->generation == fork_generation ? 0 : a->mcache_count + 1ULL;
    if (a->mcache_base && from < a->mcache_slots)
        munmap(a->mcache_base + from * MCACHE_BYTES, (a->mcache_slots - from) * MCACHE_BYTES);
    a->mcache_count = a->mcache_slots = 0;
    a->mcache_base = NULL;
}

static struct mcache *mcache_at(const struct arena *a, uint32_t number)
{
    return (struct mcache *)(void *)(a->mcache_base + (uint64_t)number * MCACHE_BYTES);
}

/* Its memory: zeros, and zeros again in a fork's child. A kernel that cannot wipe it keeps
 * it from the child: what the parent has cached is never to be found there. */
static bool mcache_back(uint8_t *at)
{
    uint64_t bytes = (mcache_bytes() + 4095) & ~4095ULL;
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return false;
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return madvise(at, bytes, MADV_WIPEONFORK) == 0 || madvise(at, bytes, MADV_DONTFORK) == 0;
}

static struct mcache *mcache_map(struct arena *a)
{
    if (!a->mcache_base && !mcaches_reserve(a))
        return NULL;
    if (a->mcache_count == a->mcache_slots) {
        errno = refused(EAGAIN, "there are addresses for the caches of %u threads, and no more", a->mcache_slots);
        return NULL;
    }
    struct mcache *mc = mcache_at(a, a->mcache_count);
    if (!mcache_back(a->mcache_base + (uint64_t)a->mcache_count * MCACHE_BYTES)) {
        errno = refused(errno, "no memory for the caches of a thread");
        return NULL;
    }
    mcache_init(mc, a, a->mcache_count);
    store_release(&a->mcache_count, a->mcache_count + 1); /* [MC1] */
    return mc;
}

/* From any thread. A slot, once mapped, stays mapped, so no lock is needed: a thread that gets its mcache meanwhile, or ends
 * a transaction, looks for itself [EX1]. */
void mcaches_expire(struct arena *a)
{
    uint32_t count = load_acquire(&a->mcache_count); /* [MC1] */
    for (uint32_t i = 0; i < count; i++) {
        store_relaxed(&mcache_at(a, i)->expect, NO_WORD);
        store_relaxed(&mcache_at(a, i)->own, NO_WORD);
    }
}

void mcaches_watch(struct arena *a)
{
    uint32_t count = load_acquire(&a->mcache_count); /* [MC1] */
    for (uint32_t i = 0; i < count; i++)
        store_relaxed(&mcache_at(a, i)->expect, NO_WORD);
}

uint32_t mcaches_call(struct arena *a, const struct mcache *except, uint32_t serial)
{
    uint32_t count = load_acquire(&a->mcache_count), open = 0; /* [MC1] */
    for (uint32_t i = 0; i < count; i++) {
        struct mcache *mc = (struct mcache *)(void *)(a->mcache_base + (uint64_t)i * MCACHE_BYTES);
        uint32_t behind = serial - load_acquire(&mc->trim_seen); /* [TR1] */
        if (mc == except || behind == 0 || behind > UINT32_MAX / 2 || load_relaxed(&mc->budget_used) == 0)
            continue;
        store_relaxed(&mc->expect, NO_WORD);
        open += behind == 1;
    }
    return open;
}

struct mcache *mcache_get(struct arena *a)
{
    struct mcache *mc = mcache_of(a);
    if (likely(mc->arena == a)) /* no_mcache's is NULL, and that of one that a fork has wiped */
        return mc;
    mc = NULL;
    if (a->generation != fork_generation) {
        int rc = arena_reattach(a);
        if (rc < 0) {
            errno = -rc;
            return NULL;
        }
    }
    if (a->read_only || heap_is_stale(a)) {
        errno = a->read_only ? EACCES : ESTALE;
        return NULL;
    }
    pthread_mutex_lock(&registry_lock);
    int rc = remember_thread();
    if (rc < 0)
        errno = -rc;
    else if ((mc = a->free_mcaches) != NULL) {
        a->free_mcaches = mc->next_free;
        mc->trim_seen = load_relaxed(&a->keep.trim_serial);
    } else
        mc = mcache_map(a);
    if (mc) {
        tls_mcaches[a->index] = mc;
        store_relaxed(&mc->expect, NO_WORD);
        mcache_expect(mc); /* [EX1] once it is counted: who switches the fast paths off meanwhile may not have seen it */
        if (heap_is_stale(a))
            store_relaxed(&mc->own, NO_WORD);
    }
    pthread_mutex_unlock(&registry_lock);
    return mc;
}
