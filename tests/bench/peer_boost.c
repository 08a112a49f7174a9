/* The C side of peer_boost.cc. It can neither grow nor give anything back. */
#include "tests/bench/peer.h"

const bool peer_is_shared = true, peer_only_passes = false, peer_is_arena = false;

int boost_setup(size_t bytes);
void *boost_segment(void);
uint64_t boost_held(void);

int peer_setup(unsigned heaps, const char *max)
{
    (void)heaps, (void)max;
    return boost_setup((size_t)2 << 30);
}

peer_t peer_enter(unsigned heap)
{
    return (void)heap, boost_segment();
}
void peer_trim(peer_t h)
{
    (void)h;
}
uint64_t peer_shared_bytes(peer_t h)
{
    return (void)h, boost_held();
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
