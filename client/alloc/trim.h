/* Trim: what a process keeps of the heap is given back, when it is asked, and when an allocation finds no room.
 *
 * When memory is short the daemon counts up header->shortages; where a user meets a limit it tells that user's clients alone
 * (tag_shortage()). Each slow path and each free of a large object compares it
 * (trim_if_asked): the first thread of a process that finds it changed gives back leases and large objects and calls the
 * other threads, which give back their magazines at their next allocation; when all of those have that can be expected to,
 * the daemon is answered. An allocation that was refused calls the other threads of its own process likewise, waits for
 * those that answered the call before, and asks once more (keep_scrape). Threads that sleep keep what they have, within
 * the bound.
 *
 * Memory: none of its own. sync: atomics of struct keep and of each mcache [TR1]; no lock is held over a wait. */
#ifndef CLIENT_TRIM_H
#define CLIENT_TRIM_H

#include "client/alloc/mcache.h"

void trim_now(struct mcache *mc);
static inline void trim_if_asked(struct mcache *mc)
{
    const struct arena *a = mc->arena;
    if (unlikely(tag_shortage(&a->heap, a->tag) != load_relaxed(&a->keep.shortage_seen) ||
                 load_relaxed(&mc->trim_seen) != load_relaxed(&a->keep.trim_serial)))
        trim_now(mc);
}

/* After an allocation was refused with `error`: is there anything that may still be given back? Gives it back, or has others
 * do so, if so: then the allocation is tried again. False at the second or third time. */
struct scrape {
    unsigned step;
};
bool trim_scrape(struct mcache *mc, struct scrape *s, int error);

#endif
