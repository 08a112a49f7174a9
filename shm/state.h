/* The state words: 16 bits an object, and the hints, a byte a page. This is the protocol by which processes share the heap
 * without locks. t is a client's tag, x that of one of its transactions, y that of its limbo: what it frees after a collection.
 *
 *  T1  FREE -> CACHED(t)           the lessee of the span       word_cache, store     refill
 *  T2  CACHED(t) -> FREE           t                            word_flush, store     flush; then the hint
 *  T3  CACHED(t) -> OWNED(t)       t, pops it                   word_own, store       alloc
 *  T4  CACHED(t) -> OWNED(x)       t, in transaction x          word_own, store       alloc
 *  T5  CACHED(t) -> SHARED         t, which does not pin        word_own, store       alloc, ARENA_SHARED
 *  T6  OWNED(t) -> CACHED(t)       t                            store                 free
 *  T7  OWNED(x) -> CACHED(t)       t, any thread                word_swap             free; abort
 *  T8  OWNED(t) -> SHARED          t                            store                 publish
 *  T9  OWNED(x) -> SHARED          t, any thread                word_swap             publish; turning of what is committed
 *  T10 OWNED(t) -> OWNED(x)        t                            store                 detach; realloc by another thread
 *  T11 SHARED -> CACHED(t)         any client t                 word_swap             free
 *  T12 SHARED -> OWNED(t)          any client t                 word_swap             claim
 *  T13 OWNED(t, x), SHARED -> OWNED(y)   t; of SHARED any t     store, word_swap      moved while a collection runs
 *  T14 OWNED(y) -> CACHED(t)       t                            word_own, store       after it
 *  T15 CACHED(t), OWNED(t, x, y) -> FREE   the daemon           word_swap             t is dead
 *  T16 OWNED(x) -> SHARED          the daemon                   word_swap             t is dead, x was committed
 *  T17 SHARED -> FREE              the collector                word_swap             unreachable
 *  T18 x is committed: no word changes; OWNED(x) counts as SHARED from then on, so T11, T12 and T13 swap it as well, under a
 *      hazard (shm/hazard.h), and T6 to T10 are over
 *
 * The rule: a word with my own tag I change by a plain store; a SHARED one by compare-and-swap; a word with another's tag I
 * never touch; a FREE one only the lessee of its span takes. So each word has one plain writer. A transaction's words may come
 * to count as SHARED at any moment, by its own thread: others of its process change them by compare-and-swap.
 *
 * Orders. [ST1] FREE is stored with release and loaded with acquire by who takes it: the object's last writes are seen
 * before its next owner's first. A swap away from SHARED acquires what its publisher released. OWNED and CACHED are
 * relaxed: only their own client reads them. [HT1] The hint is stored with release after the FREE words; who clears it
 * does so by an exchange and then scans. The hint is never skipped because it is set already: that store could be lost.
 */
#ifndef SHM_STATE_H
#define SHM_STATE_H

#include "shm/layout.h"

#define WORD_FREE      0u
#define WORD_SHARED    1u
#define WORD_CACHED(t) ((uint16_t)((t) << 1))
#define WORD_OWNED(t)  ((uint16_t)((t) << 1 | 1))

static inline unsigned word_tag(uint16_t word) { return word >> 1; } /* 0: FREE or SHARED */
static inline int word_is_owned(uint16_t word) { return word > 1 && (word & 1); }
static inline int word_is_cached(uint16_t word) { return word > 1 && !(word & 1); }

/* refill: the lessee takes a FREE object into a magazine. 0: it was not FREE.
 * die: CACHED(t), which the pass frees. */
static inline int word_cache(uint16_t *word, uint16_t cached)
{
    if (load_acquire(word) != WORD_FREE) /* [ST1] */
        return 0;
    store_relaxed(word, cached);
    return 1;
}

/* alloc: a pop of a magazine. 0: the entry is stale (the object was freed twice, or torn away) and must be dropped.
 * `to` is OWNED(t), OWNED(x) or, for ARENA_SHARED, WORD_SHARED.
 * die: an object that nobody was told of; OWNED is freed by the pass, SHARED waits for the collector. */
static inline int word_own(uint16_t *word, uint16_t cached, uint16_t to)
{
    if (unlikely(load_relaxed(word) != cached))
        return 0;
    store_relaxed(word, to);
    return 1;
}

/* flush: an entry that has left its magazine becomes FREE for the span's lessee; then comes hint_set().
 * die: FREE without a hint: the pass that reclaims this client counts every span again. */
static inline int word_flush(uint16_t *word, uint16_t cached)
{
    if (unlikely(load_relaxed(word) != cached))
        return 0;
    store_release(word, WORD_FREE); /* [ST1] */
    return 1;
}

/* Any change away from SHARED, or from OWNED(x) of a committed x. `seen` is what was loaded. 0: look again. It acquires what
 * the publisher released [PB1], and to FREE or SHARED releases [ST1] [PB1]. */
static inline int word_swap(uint16_t *word, uint16_t seen, uint16_t to)
{
    return cas_acq_rel(word, &seen, to); /* [PB1] [ST1] */
}

static inline void hint_set(uint8_t *hint) { store_release(hint, 1); } /* [HT1] after the FREE words */
static inline int hint_seen(const uint8_t *hint) { return load_relaxed(hint) != 0; }
static inline int hint_clear(uint8_t *hint) { return exchange_acq_rel(hint, 0) != 0; } /* [HT1] before the words are read */

#endif
