/* Hazards: a committed transaction's tag does not run again while somebody looks at a word that bears it.
 *
 * A word OWNED(x) of a committed x counts as SHARED: whoever frees or claims it swaps it by CAS. Between his look at x's
 * state and the swap x may be resolved and run again, and the same place be allocated in it: the swap would take an object
 * that nobody has published. So he names x in a slot of a table first, and looks after that:
 *
 *     claimer                                   who lets x run again, or gives it to another client
 *     hazard_set(x)     CAS into an empty slot  x's state: no longer committed
 *     fence             [HZ1]                   fence             [HZ1]
 *     x committed? word OWNED(x)? swap          hazard_names(x)?  then x rests on
 *     hazard_clear()
 *
 * One of the two sees the other. A slot says whose it is: when that client is dead the daemon clears it. A claimer that
 * stands still keeps one tag out of use and one slot. sync: CAS; the daemon clears slots of the dead.
 */
#ifndef SHM_HAZARD_H
#define SHM_HAZARD_H

#include "shm/layout.h"

#define HAZARD(owner, tag) ((uint32_t)(owner) << 16 | (uint32_t)(tag))

/* The slot that names `tag` now, on behalf of client `owner`; NULL: all are taken. `from` spreads the searches.
 * die: a slot that names it, until the daemon's hazard_clear_all(). */
static inline uint32_t *hazard_set(const struct heap *h, unsigned owner, unsigned tag, uint32_t from)
{
    for (uint32_t i = 0; i < HAZARD_COUNT; i++) {
        uint32_t *slot = &h->hazards[(from + i) % HAZARD_COUNT], empty = 0;
        if (load_relaxed(slot) == 0 && cas_acq_rel(slot, &empty, HAZARD(owner, tag))) { /* [HZ1] */
            fence_seq_cst(); /* [HZ1] before the tag's state and the word are looked at */
            return slot;
        }
    }
    return NULL;
}

/* die: the slot is free. */
static inline void hazard_clear(uint32_t *slot) { store_release(slot, 0); } /* [HZ1] after the swap */

/* 1: somebody may be about to swap a word that bears `tag`. Its state was changed before. O(HAZARD_COUNT). */
static inline int hazard_names(const struct heap *h, unsigned tag)
{
    fence_seq_cst(); /* [HZ1] after the tag's state was changed */
    for (uint32_t i = 0; i < HAZARD_COUNT; i++)
        if ((load_acquire(&h->hazards[i]) & 0xffff) == tag) /* [HZ1] */
            return 1;
    return 0;
}

/* Daemon: client `owner` is dead. die: some are cleared; its tag is dying still, and this is done again. */
static inline void hazard_clear_all(const struct heap *h, unsigned owner)
{
    for (uint32_t i = 0; i < HAZARD_COUNT; i++) {
        uint32_t seen = load_relaxed(&h->hazards[i]);
        if (seen >> 16 == owner && seen)
            cas_acq_rel(&h->hazards[i], &seen, 0); /* [HZ1] */
    }
}

#endif
