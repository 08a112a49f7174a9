/* The account: what a process keeps of the heap without using it, and how much of it.
 *
 * What is counted, and its bound. H: bytes of the heap. k: clients attached, at least 4. t: threads of this process.
 *
 *   kept free                                      H < 1 GiB   from 1 GiB on
 *   magazines, by capacity, of all threads         H / 16k     H / 2k; a thread's: a t-th of it, at most 3 MiB
 *   stashes, FREE words of leased spans            H / 16k (a) 3 MiB, grows while it is asked for again: H / k, 256 MiB
 *   leased spans without FREE words: others may
 *     free in them, unseen                         H / 16k     32 MiB, grows to H / k, 256 MiB
 *   freed large objects                            H / 16k     32 MiB, grows to H / k, 256 MiB
 *   in a lease asked for ahead of need             H / 64k     1 MiB
 *
 *   (a) twice as much before a refill lets go of what it has just leased, and at least one span of the class in use
 *
 * So in a heap below 1 GiB no process keeps much more than a 16th of it, and all together, however many attach one after
 * another, leave the greater part: a process that sleeps cannot be asked for what it has.
 *
 * At the bound: a magazine does not grow, and one without capacity frees to its class's lease and takes single objects; a
 * stash is flushed; spans with FREE words are let go, wholly free ones first; the oldest large objects are. A process that
 * only frees large objects keeps none.
 */
#ifndef CLIENT_KEEP_H
#define CLIENT_KEEP_H

#include "client/client.h"

enum { LEASE_AHEAD_PARTS = 4 }; /* a lease ahead is at most so small a part of what may be kept FREE */

#ifdef ARENA_EXPLORE /* its world is tiny, and is to keep as a large heap does */
#define KEEP_HEAP_BYTES(a) ((void)(a), 1ULL << 30)
#else
#define KEEP_HEAP_BYTES(a) ((a)->heap_bytes)
#endif

/* A heap in which every span counts. */
static inline bool keep_is_small(const struct arena *a) { return KEEP_HEAP_BYTES(a) < 1ULL << 30; }
/* Bytes; `least` as they are at first and after a trim, `most` to which they may grow. */
uint64_t keep_thread_budget(struct arena *a);
uint64_t keep_free_least(struct arena *a);
uint64_t keep_full_least(struct arena *a);
uint64_t keep_large_least(struct arena *a);
void keep_look_at_clients(struct arena *a, uint32_t clients);
static inline uint64_t keep_most(struct arena *a)
{
    uint32_t clients = load_relaxed(&a->heap.header->clients);
    if (unlikely(clients != load_relaxed(&a->keep.clients)))
        keep_look_at_clients(a, clients);
    return load_relaxed(&a->keep.most);
}
/* What may be kept of the kind now, of an adapted limit: clients may have come since it was adapted. */
static inline uint64_t keep_now(struct arena *a, uint64_t limit)
{
    uint64_t most = keep_most(a);
    return limit < most ? limit : most;
}
void keep_init(struct arena *a);

#endif
