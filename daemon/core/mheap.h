/* The mheap: the pages that no span holds. A page is cold (nothing behind it), warm (backed, may be granted at once) or
 * on its way from one to the other. Searches are address-ordered, lowest first, so that the heap stays low and dense;
 * neighbours coalesce by construction (pagealloc).
 *
 *            grow: backed off the loop             cut
 *     cold ------------------------------> warm ----------> in a span
 *       ^                                  |  ^               |
 *       +---- returned: punched off -------+  +---------------+
 *             the loop, oldest first                uncut
 *
 * Private to the daemon, loop thread. What is warm is also in the map (PAGE_WARM), for a daemon that comes after.
 * Invariants (mheap_check(), O(pages)): free = cold + warm; warm is a subset of free; pages in a span or in flight are
 * in neither; a page's entry in the map agrees.
 */
#ifndef DAEMON_MHEAP_H
#define DAEMON_MHEAP_H

#include <stdbool.h>

#include "daemon/core/pagealloc.h"
#include "shm/layout.h"

/* What backs and returns memory. Each call is answered later by mheap_grown() or mheap_returned() with the same range. */
struct backing {
    void *context;
    int (*grow)(void *context, uint64_t first, uint64_t pages);
    uint64_t (*allowance)(void *context); /* pages that the machine and the cgroups would give now */
    int (*give_back)(void *context, uint64_t first, uint64_t pages);
    /* State words [first, first + count) units must have memory behind them when it returns 0; else -ENOMEM. */
    int (*back_units)(void *context, uint64_t first, uint64_t units);
};

enum { GROW_SMALL = 64 }; /* pages: 512 KiB. Of requests up to it growth is small, and so much is kept warm for them */

struct mheap {
    struct heap *heap;
    struct backing backing;
    struct pagealloc free, warm, units;
    struct pagealloc held;   /* units that wait: neither in a span nor in `units` */
    bool holding;            /* units that are given up come there, see mheap_hold_units() */
    uint8_t *age;            /* by 32 pages: the tick at which the newest of them was freed */
    uint8_t tick;
    uint64_t used_pages;     /* in spans, or on the way there and back: */
    uint64_t clearing_pages; /* of them, those that will be free when their entries are cleared */
    uint64_t growing_pages;  /* in flight */
    uint64_t grow_request;   /* pages of the request that is growing now: what backs it does small ones first */
    uint64_t ahead_first, ahead_pages; /* in flight for nobody yet; 0: none */
    uint64_t returning_pages;
    uint64_t top;            /* no page at or above it was ever used: bounds all walks */
    uint64_t units_used;
    uint32_t lines_units;    /* no whole lines of so many units begin below lines_from */
    uint64_t lines_from;
    uint64_t reserve_pages;  /* warm pages that are kept */
    uint64_t grew_at_ns;     /* the last growth's begin, */
    uint8_t grew_tick;       /* and its tick */
    unsigned burst;          /* growths in close succession, see grow_step() */
    uint64_t failed_at_ns;   /* the last growth that failed; 0: the last one did not */
    uint64_t failed_pages;   /* its size: smaller ones are still tried */
};

int mheap_init(struct mheap *m, struct heap *heap, const struct backing *backing);
void mheap_fini(struct mheap *m);

/* Takes `pages` warm pages at a multiple of `align`: 0; -EAGAIN: growth for it is under way; -ENOMEM: the heap's maximum
 * is reached or memory cannot be had now. */
int mheap_alloc(struct mheap *m, uint32_t pages, uint32_t align, uint64_t now_ns, uint64_t *ret_first);
void mheap_free(struct mheap *m, uint64_t first, uint64_t pages, bool warm);

/* Takes exactly [first, first + pages): 0; -EAGAIN: it is free and being backed; -ENOMEM: some of it is not free. */
int mheap_take_next(struct mheap *m, uint64_t first, uint64_t pages, uint64_t now_ns);

/* Units of state words, with memory behind them and all FREE: 0; -EAGAIN: none but some are held; -ENOMEM. `next` is the
 * taker's own, 0 at first: what it takes goes on where its last units ended, so that the words that two clients write do
 * not share a cache line. */
int mheap_alloc_units(struct mheap *m, uint32_t units, uint32_t *next, uint32_t *ret_unit);
void mheap_free_units(struct mheap *m, uint32_t unit, uint32_t units);

/* From mheap_hold_units(true) to (false) units that are given up are held: nobody gets them. They stay so, also after
 * that, until they are released: the lowest run of them, at most `limit`; how many, and *ret_first; 0: none is held.
 * die: private; a daemon that starts counts the units of the spans in the map, and all others are free. */
void mheap_hold_units(struct mheap *m, bool hold);
uint64_t mheap_release_units(struct mheap *m, uint64_t limit, uint64_t *ret_first);

/* Answers of the backing. */
void mheap_grown(struct mheap *m, uint64_t first, uint64_t pages, int error, uint64_t now_ns);
void mheap_returned(struct mheap *m, uint64_t first, uint64_t pages, int error);

/* Cold pages whose memory is to be cleared - a client made some by reading or writing them - are taken out of use, and come
 * back as cold as before. mheap_next_cold(): the next run in [at, end): how many, and *ret_first; 0: none. */
uint64_t mheap_next_cold(const struct mheap *m, uint64_t at, uint64_t end, uint64_t *ret_first);
void mheap_take_cold(struct mheap *m, uint64_t first, uint64_t pages);
void mheap_cleared(struct mheap *m, uint64_t first, uint64_t pages);

/* May `pages` more be backed, by what the machine and the cgroups leave and by how the last growth ended? */
bool mheap_may_grow(const struct mheap *m, uint64_t pages, uint64_t now_ns);
void mheap_note_failure(struct mheap *m, uint64_t pages, uint64_t now_ns);

/* Keeps the next growth ahead of demand, also while a large one is under way: small requests are not to wait for that. */
void mheap_grow_ahead(struct mheap *m, uint64_t now_ns);

/* Returns warm pages that were not used for `ticks` ticks (mheap_tick() counts them), highest first, at most `most`
 * pages a call, down to the reserve; force: at once and the reserve too, but GROW_SMALL pages in a tick in which the heap
 * grew. How many it asked to return. */
uint64_t mheap_scavenge(struct mheap *m, uint8_t ticks, uint64_t most, bool force);
void mheap_tick(struct mheap *m);

const char *mheap_check(struct mheap *m, uint64_t from, uint64_t to);

#endif
