/* The mcaches of a heap: where they are, and what all of them are told. */
#include <sys/mman.h>

#include "client/alloc/mcache.h"
#include "client/alloc/mcaches.h"
#include "client/heap.h"
#include "client/link/fork.h"
#include "client/link/reason.h"

/* ---- their addresses ------------------------------------------------------------------------------------------------- */

/* Addresses for all of them in a row, nothing behind them yet. Where so many are not to be had - under valgrind, which has
 * 128 GiB in all, or a limit of address space - for as many threads as there is room for. */
static bool mcaches_reserve(struct arena *a)
{
    for (uint32_t slots = MCACHES_MAX; slots; slots /= 2) {
        void *p = mmap(NULL, (uint64_t)MCACHE_BYTES * slots, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p != MAP_FAILED) {
            a->mcache_slots = slots;
            store_release(&a->mcache_base, (uint8_t *)p); /* [FK3] a fork between the two finds neither, or both */
            return true;
        }
    }
    errno = refused(ENOMEM, "no addresses for the caches of a thread: %d MiB", MCACHE_BYTES >> 20);
    return false;
}

/* Takes back the addresses. Where mcaches are not wiped but missing in a child, something else may be where one of its parent's
 * was, and the next to the last was perhaps just being made. */
void mcaches_unmap(struct arena *a)
{
    uint64_t from = forked(a) && !fork_wipes() ? a->mcache_count + 1ULL : 0;
    if (a->mcache_base && from < a->mcache_slots)
        munmap(a->mcache_base + from * MCACHE_BYTES, (a->mcache_slots - from) * MCACHE_BYTES);
    a->mcache_count = a->mcache_slots = 0;
    a->mcache_base = NULL;
}

static struct mcache *mcache_at(const struct arena *a, uint32_t number)
{
    return (struct mcache *)(void *)(a->mcache_base + (uint64_t)number * MCACHE_BYTES);
}

/* Its memory: zeros, and zeros again in a fork's child. A kernel that cannot wipe it keeps it from the child: what the parent
 * has cached is never to be found there. */
static bool mcache_back(uint8_t *at)
{
    uint64_t bytes = (mcache_bytes() + 4095) & ~4095ULL;
    if (mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) == MAP_FAILED)
        return false;
    madvise(at, bytes, MADV_NOHUGEPAGE);
    return madvise(at, bytes, fork_wipes() ? MADV_WIPEONFORK : MADV_DONTFORK) == 0;
}

struct mcache *mcaches_map(struct arena *a)
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

/* ---- all of them ----------------------------------------------------------------------------------------------------- */

/* From any thread. An mcache, once mapped, stays mapped, so no lock is needed: a thread that gets its mcache meanwhile, or ends
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
        struct mcache *mc = mcache_at(a, i);
        uint32_t behind = serial - load_acquire(&mc->trim_seen); /* [TR1] */
        if (mc == except || behind == 0 || behind > UINT32_MAX / 2 || load_relaxed(&mc->budget_used) == 0)
            continue;
        store_relaxed(&mc->expect, NO_WORD);
        open += behind == 1;
    }
    return open;
}
