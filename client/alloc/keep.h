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
 *
 * Memory: struct keep, a heap's. sync: relaxed atomics: an account, whose order changes nothing but bounds. */
#ifndef CLIENT_KEEP_H
#define CLIENT_KEEP_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/layout.h"

struct keep {
    uint64_t heap_bytes; /* constant */
    const uint32_t *attached; /* header->clients; constant */
    uint64_t free_bytes, free_limit; /* in current, idle and stashes; the limits adapt within the bounds above */
    uint64_t full_bytes, full_limit;
    uint64_t held_pages;   /* of all classes */
    uint64_t missed_bytes; /* flushed into spans that had been let go, since the last lease */
    uint32_t trim_serial;  /* a thread that finds it changed gives its magazines back [TR1] */
    uint32_t shortage_seen; /* of tag_shortage() */
    uint64_t called_ms;    /* when trim_serial was last counted up for want of memory */
    uint64_t most, magazines; /* bounds of so many `clients` */
    uint32_t clients;
};

enum { KEEP_FREE_LEAST = 1 << 20 /* to which what is kept is halved while a process shrinks */ };

/* A heap in which every span counts. */
static inline bool keep_is_small(const struct keep *k) { return k->heap_bytes < 1ULL << 30; }
/* Bytes; `least` as they are at first and after a trim, `most` to which they may grow. */
uint64_t keep_thread_budget(struct keep *k, uint32_t threads);
uint64_t keep_free_least(struct keep *k);
uint64_t keep_full_least(struct keep *k);
uint64_t keep_large_least(struct keep *k);
void keep_look_at_clients(struct keep *k, uint32_t clients);
static inline uint64_t keep_most(struct keep *k)
{
    uint32_t clients = load_relaxed(k->attached);
    if (unlikely(clients != load_relaxed(&k->clients)))
        keep_look_at_clients(k, clients);
    return load_relaxed(&k->most);
}
/* What may be kept of the kind now, of an adapted limit: clients may have come since it was adapted. */
static inline uint64_t keep_now(struct keep *k, uint64_t limit)
{
    uint64_t most = keep_most(k);
    return limit < most ? limit : most;
}
/* shortage: the last one that there was, see tag_shortage() */
void keep_init(struct keep *k, uint64_t heap_bytes, const struct map_header *header, uint32_t shortage);

#endif
