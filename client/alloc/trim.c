#include "client/alloc/keep.h"
#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/alloc/mcaches.h"
#include "client/alloc/thread.h"
#include "client/alloc/trim.h"
#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/hooks.h"
#include "client/link/returns.h"
#include "client/link/socket.h"

#include <time.h>

enum {
    CALL_PAUSE_MS = 10, /* calls closer together are one */
    CALL_WAIT_MS = 100, /* for threads that answer */
};

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
    uint32_t shortages = tag_shortage(&a->heap, a->tag), serial;
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

static void trim_all(struct mcache *mc)
{
    struct arena *a = mc->arena;
    threads_reap(true); /* what those that are gone have left is not called back by anybody else */
    uint32_t serial = call(a);
    hooks.trim(a);
    large_release_all(a);
    give_back(mc, serial);
    mcaches_call(a, mc, serial);
    returns_trimmed(a);
    conn_kick(a);
}

PUBLIC int arena_trim(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return a->read_only ? 0 : -errno;
    if (heap_is_stale(a))
        return -ESTALE;
    trim_all(mc);
    return 0;
}

/* ---- when an allocation was refused --------------------------------------------------------------------------------- */

/* Waits for the other threads of this process, those that answer; bounded by CALL_WAIT_MS. Those that wait here themselves
 * answer one another: threads that meet the full heap together do not wait for each other's end. */
static bool call_others(struct mcache *mc)
{
    struct arena *a = mc->arena;
    threads_reap(true);
    uint64_t from = (uint64_t)now_ms(), now = from, before = load_relaxed(&a->keep.called_ms);
    uint32_t serial = load_relaxed(&a->keep.trim_serial);
    if (from - before >= CALL_PAUSE_MS || !before) {
        store_relaxed(&a->keep.called_ms, from);
        serial = call(a);
        store_release(&mc->trim_seen, serial); /* [TR1] it has given back what it had */
    } else
        trim_if_asked(mc);
    uint32_t open = mcaches_call(a, mc, serial);
    if (!open)
        return false;
    cancel_off(); /* no call is a cancellation point */
    while (open && now - from < CALL_WAIT_MS) {
        struct timespec pause = {.tv_nsec = 500000};
        nanosleep(&pause, NULL);
        trim_if_asked(mc);
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

bool trim_scrape(struct mcache *mc, struct scrape *s, int error)
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
