#include "client/alloc/keep.h"

enum {
    MIB = 1 << 20,
    THREAD_MOST = 3 * MIB,
    FREE_FIRST = 3 * MIB,
    FULL_FIRST = 32 * MIB,
    LARGE_FIRST = 32 * MIB,
    MOST = 256 * MIB,
    CLIENTS_FEW = 4,
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
