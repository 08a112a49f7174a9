/* No allocator: a fixed set of blocks, twice what the ring between two workers holds, handed out in
 * turn. As the sizes come again after as many (SIZES divides the count), a block lies where it lay
 * a round before. */
#include <errno.h>
#include <sys/mman.h>

#include "tests/bench/bench.h"
#include "tests/bench/peer.h"

const bool peer_is_shared = true, peer_only_passes = true, peer_is_arena = false;
enum { BLOCK_MAX = 1024 };
static struct pool pools[2];

int peer_setup(unsigned heaps, const char *max)
{
    (void)max;
    for (unsigned i = 0; i < heaps && i < 2; i++) {
        struct pool *pool = &pools[i];
        pool->count = 2 * RING_SLOTS;
        pool->blocks = mmap(NULL, pool->count * BLOCK_MAX, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (pool->blocks == MAP_FAILED)
            return errno;
    }
    return 0;
}

peer_t peer_enter(unsigned heap)
{
    return &pools[heap];
}
void peer_trim(peer_t h)
{
    (void)h;
}
uint64_t peer_shared_bytes(peer_t h)
{
    return h->count * BLOCK_MAX;
}
uint64_t peer_round_trips(peer_t h)
{
    return (void)h, 0;
}
int peer_crowd(unsigned count)
{
    return (void)count, 0;
}
uint64_t peer_daemon_ns(void)
{
    return 0;
}
