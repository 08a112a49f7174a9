/* clang-format off */
/* The flags of a collection: what clients know of one that runs, and what it knows of them.
 *
 *     daemon                                     client
 *     collect_begin()     collecting = serial    turning_begin()     counts itself, then looks at both serials
 *     turning_is_on()?    then it waits          snapshot_is_taken()? then it turns no word
 *     takes the snapshot of the words            turns words of a commit to SHARED
 *     collect_snapped()   snapped = serial       turning_end()
 *     marks, sweeps
 *     collect_end()       collecting = 0
 *
 * [GC1] Who changes something that a collection must see does that, fences, and looks at `collecting`; who begins one stores
 * `collecting`, fences, and then reads. One of the two sees the other. [TN1] is the same between `turning` and the snapshot:
 * each word of a commit is SHARED in all of the snapshot, or in none of it. sync: header fields: daemon; turning[tag]: its
 * client's threads, and the daemon when that is dead. */
/* clang-format on */
#ifndef SHM_COLLECT_H
#define SHM_COLLECT_H

#include "shm/layout.h"

/* ---- any process ------------------------------------------------------------------------------------------------ */

/* Serial of the collection that runs; 0: none. */
static inline uint32_t collect_serial(const struct heap *h) { return load_acquire(&h->header->collecting); } /* [GC1] */

/* No word of a commit is turned then. */
static inline int snapshot_is_taken(const struct heap *h)
{
    uint32_t serial = collect_serial(h);
    return unlikely(serial != 0) && load_acquire(&h->header->snapped) != serial; /* [TN1] */
}

/* die: a count that stays, until the daemon's turning_reset(). */
static inline void turning_begin(const struct heap *h, unsigned tag)
{
    fetch_add_relaxed(&h->turning[tag], 1);
    fence_seq_cst(); /* [TN1] it is seen, or the flag is */
}
static inline void turning_end(const struct heap *h, unsigned tag)
{
    fetch_add_release(&h->turning[tag], (uint32_t)-1); /* [TN1] the words before it */
}

/* ---- daemon ----------------------------------------------------------------------------------------------------- */

static inline int turning_is_on(const struct heap *h, unsigned tag) { return load_acquire(&h->turning[tag]) != 0; } /* [TN1] */
static inline void turning_reset(const struct heap *h, unsigned tag) { store_relaxed(&h->turning[tag], 0); }

/* die: clients put off what they free, until a daemon starts and says collect_end(). */
static inline uint32_t collect_begin(struct heap *h)
{
    uint32_t serial = load_relaxed(&h->header->collections) + 1;
    serial += serial == 0;
    store_relaxed(&h->header->collections, serial);
    store_release(&h->header->collecting, serial); /* [GC1] */
    fence_seq_cst();                               /* [GC1] before any word, pin or object is read */
    return serial;
}
static inline void collect_snapped(struct heap *h, uint32_t serial)
{
    if (load_relaxed(&h->header->snapped) != serial)
        store_release(&h->header->snapped, serial); /* [TN1] */
}
static inline void collect_end(struct heap *h) { store_release(&h->header->collecting, 0); } /* [GC1] */

#endif
