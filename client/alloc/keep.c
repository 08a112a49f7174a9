#include "client/alloc/keep.h"

#include <time.h>

#include "client/extra/stack.h"

enum {
    MIB = 1 << 20,
    THREAD_MOST = 3 * MIB,
    FREE_FIRST = 3 * MIB,
    FULL_FIRST = 32 * MIB,
    LARGE_FIRST = 32 * MIB,
    MOST = 256 * MIB,
    CLIENTS_FEW = 4,
    CALL_PAUSE_MS = 10, /* calls closer together are one */
    CALL_WAIT_MS = 100, /* for threads that answer */
};

/* ---- the bounds --------------------------------------------------------------------------------------------------- */

static uint64_t min(uint64_t x, uint64_t y) { return x < y ? x : y; }

/* The bounds of so many clients: divided out once, and again when some have come or gone. */
void keep_look_at_clients(struct arena *a, uint32_t clients)
{
    uint64_t heap = KEEP_HEAP_BYTES(a), k = clients > CLIENTS_FEW ? clients : CLIENTS_FEW;
    bool small = keep_is_small(a);
    store_relaxed(&a->keep.most, small ? heap / 16 / k : min(heap / k, MOST));
    store_relaxed(&a->keep.magazines, small ? heap / 16 / k : heap / 2 / k);
    store_relaxed(&a->keep.clients, clients);
}

uint64_t keep_thread_budget(struct arena *a)
{
    uint32_t threads = load_relaxed(&a->mcache_count);
    keep_most(a);
    return min(load_relaxed(&a->keep.magazines) / (threads ? threads : 1), THREAD_MOST);
}

uint64_t keep_free_least(struct arena *a) { return min(keep_most(a), FREE_FIRST); }
uint64_t keep_full_least(struct arena *a) { return min(keep_most(a), FULL_FIRST); }
uint64_t keep_large_least(struct arena *a) { return min(keep_most(a), LARGE_FIRST); }

void keep_init(struct arena *a)
{
    a->keep = (struct keep){.shortage_seen = load_relaxed(&a->heap.header->shortages)};
    keep_look_at_clients(a, load_relaxed(&a->heap.header->clients));
    a->keep.free_limit = keep_free_least(a);
    a->keep.full_limit = keep_full_least(a);
}

/* ---- giving back ---------------------------------------------------------------------------------------------------- */

/* Has all threads give back: the serial. */
static uint32_t call(struct arena *a)
{
    uint32_t serial = fetch_add_relaxed(&a->keep.trim_serial, 1) + 1;
    fence_seq_cst(); /* [EX1] then each mcache's `expect`, in mcaches_call() */
    return serial;
}

/* This thread's magazines, with what they leave in stashes and leases. */
static void give_back(struct mcache *mc, uint32_t serial)
{
    struct arena *a = mc->arena;
    mcache_flush_all(mc);
    lease_release_all(a);
    store_release(&mc->trim_seen, serial); /* [TR1] what it had is there for who waits for it */
    mcache_expect(mc);
}

/* The daemon is answered by the last thread of those that can be expected to answer. */
static void answer(struct mcache *mc)
{
    struct arena *a = mc->arena;
    if (mcaches_call(a, mc, load_relaxed(&a->keep.trim_serial)) == 0)
        returns_answer(a, load_relaxed(&a->keep.shortage_seen));
    conn_kick(a);
}

void trim_now(struct mcache *mc)
{
    struct arena *a = mc->arena;
    uint32_t shortages = load_relaxed(&a->heap.header->shortages), serial;
    if (unlikely(shortages != load_relaxed(&a->keep.shortage_seen)) &&
        exchange_relaxed(&a->keep.shortage_seen, shortages) != shortages) {
        call(a);
        large_release_all(a);
    }
    if (likely(load_relaxed(&mc->trim_seen) == (serial = load_relaxed(&a->keep.trim_serial))))
        return;
    give_back(mc, serial);
    answer(mc);
}

void keep_trim(struct mcache *mc)
{
    struct arena *a = mc->arena;
    threads_reap(true); /* what those that are gone have left is not called back by anybody else */
    uint32_t serial = call(a);
    stack_collect(a);
    large_release_all(a);
    give_back(mc, serial);
    mcaches_call(a, mc, serial);
    returns_trimmed(a);
    conn_kick(a);
}

/* ---- when an allocation was refused --------------------------------------------------------------------------------- */

/* Waits for the other threads of this process, those that answer; bounded by CALL_WAIT_MS. */
static bool call_others(struct mcache *mc)
{
    struct arena *a = mc->arena;
    threads_reap(true);
    uint64_t from = (uint64_t)now_ms(), now = from, before = load_relaxed(&a->keep.called_ms);
    uint32_t serial = load_relaxed(&a->keep.trim_serial);
    if (from - before >= CALL_PAUSE_MS || !before) {
        store_relaxed(&a->keep.called_ms, from);
        serial = call(a);
        store_relaxed(&mc->trim_seen, serial); /* it has given back what it had */
    }
    uint32_t open = mcaches_call(a, mc, serial);
    if (!open)
        return false;
    cancel_off(); /* no call is a cancellation point */
    while (open && now - from < CALL_WAIT_MS) {
        struct timespec pause = {.tv_nsec = 500000};
        nanosleep(&pause, NULL);
        open = mcaches_call(a, mc, serial);
        now = (uint64_t)now_ms();
    }
    cancel_on();
    return true;
}

static void scrape_own(struct mcache *mc)
{
    mcache_flush_all(mc);
    large_release_all(mc->arena);
    lease_release_all(mc->arena);
}

bool keep_scrape(struct mcache *mc, struct scrape *s, int error)
{
    if (error != -ENOMEM && error != -EDQUOT)
        return false;
    if (s->step++ == 0) {
        scrape_own(mc);
        return true;
    }
    if (s->step > 2 || !call_others(mc))
        return false;
    scrape_own(mc);
    return true;
}
