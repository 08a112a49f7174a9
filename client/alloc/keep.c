#include "client/alloc/keep.h"

#ifdef ARENA_EXPLORE /* its world is tiny, and is to keep as a large heap does */
#define KEEP_HEAP_BYTES(bytes) ((void)(bytes), 1ULL << 30)
#else
#define KEEP_HEAP_BYTES(bytes) (bytes)
#endif

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
void keep_look_at_clients(struct keep *k, uint32_t clients)
{
    uint64_t heap = k->heap_bytes, n = clients > CLIENTS_FEW ? clients : CLIENTS_FEW;
    bool small = keep_is_small(k);
    store_relaxed(&k->most, small ? heap / 16 / n : min(heap / n, MOST));
    store_relaxed(&k->magazines, small ? heap / 16 / n : heap / 2 / n);
    store_relaxed(&k->clients, clients);
}

uint64_t keep_thread_budget(struct keep *k, uint32_t threads)
{
    keep_most(k);
    return min(load_relaxed(&k->magazines) / (threads ? threads : 1), THREAD_MOST);
}

uint64_t keep_free_least(struct keep *k) { return min(keep_most(k), FREE_FIRST); }
uint64_t keep_full_least(struct keep *k) { return min(keep_most(k), FULL_FIRST); }
uint64_t keep_large_least(struct keep *k) { return min(keep_most(k), LARGE_FIRST); }

void keep_init(struct keep *k, uint64_t heap_bytes, const struct map_header *header, uint32_t shortage)
{
    *k = (struct keep){.heap_bytes = KEEP_HEAP_BYTES(heap_bytes), .attached = &header->clients, .shortage_seen = shortage};
    keep_look_at_clients(k, load_relaxed(k->attached));
    k->free_limit = keep_free_least(k);
    k->full_limit = keep_full_least(k);
}
