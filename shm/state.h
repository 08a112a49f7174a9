/* The state words: 16 bits an object, and the hints, a byte a page. By this protocol processes share the heap without
 * locks.
 *
 * Every store into a word or a hint is one of the functions below; tests/scripts/doors.sh looks for others. The fast
 * paths of client/arena_inline.h, a public header, do T3 to T6 and T11 by themselves; tests/client/alloc/inline_test.c
 * compares.
 * In the drawing t is a client's tag, x a tag of one of its transactions, y the tag of its limbo (what it frees after a
 * collection), s the tag of what it samples.
 */
/* clang-format off */
/*  T0  no object's -> FREE         the daemon             word_clear        store   a span is cut, before its entries
 *  T1  FREE -> CACHED(t)           the lessee of the span word_cache        store   refill
 *  T2  CACHED(t) -> FREE           t                      word_flush        store   flush; then the hint
 *  T3  CACHED(t) -> OWNED(t)       t, pops it             word_alloc        store   alloc
 *  T4  CACHED(t) -> OWNED(x)       t, in transaction x    word_alloc        store   alloc
 *  T5  CACHED(t) -> SHARED         t, which does not pin  word_alloc        store   alloc, ARENA_SHARED
 *  T6  OWNED(t) -> CACHED(t)       t                      word_free         store   free
 *  T7  OWNED(x, s) -> CACHED(t)    t, any thread          word_free_swap    swap    free; abort
 *  T8  OWNED(t) -> SHARED          t                      word_publish      store   publish
 *  T9  OWNED(x, s) -> SHARED       t, any thread          word_publish_swap swap    publish; turning
 *  T10 OWNED(t) -> OWNED(x, s)     t                      word_adopt        store   detach; a sample
 *  T11 SHARED -> CACHED(t)         any client t           word_free_swap    swap    free
 *  T12 SHARED -> OWNED(t)          any client t           word_claim        swap    claim
 *  T13 OWNED(t) -> OWNED(y)        t                      word_free         store   moved while a collection runs
 *      OWNED(x, s) -> OWNED(y)    t                      word_free_swap    swap    the same
 *      SHARED -> OWNED(y)         any client t           word_free_swap    swap    the same
 *  T14 OWNED(y) -> CACHED(t)       t                      word_free_late    store   after the collection
 *  T15 CACHED(t), OWNED(t, x, y, s) -> FREE   the daemon  word_reclaim      swap    t is dead
 *  T16 OWNED(x) -> SHARED          the daemon             word_publish_dead swap    t is dead, x was committed
 *  T17 SHARED -> FREE              the collector          word_collect      swap    unreachable
 *  T18 x is committed: no word changes. OWNED(x) counts as SHARED from then on: T11, T12 and T13 swap it as well,
 *      under a hazard (shm/hazard.h), and T7, T9 and T10 are over, but for the turning
 *  T19 OWNED(t, s) -> OWNED(x, t)  t                      word_adopt_swap   swap    realloc by another thread
 */
/* clang-format on */
/* The rule:
 *   - A word with my own tag I change by a plain store.
 *   - A SHARED word I change by compare-and-swap.
 *   - A word with another's tag I never touch.
 *   - A FREE word only the lessee of its span takes.
 * So each word has one plain writer. A transaction's words may come to count as SHARED at any moment, by its own
 * thread: others of its process change them by compare-and-swap.
 *
 * Orders. [ST1] FREE is stored with release and loaded with acquire by who takes it: the object's last writes are seen
 * before its next owner's first. [PB1] A swap away from SHARED acquires what its publisher released. OWNED and CACHED
 * are relaxed: only their own client reads them. [HT1] The hint is stored with release after the FREE words; who clears it
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

/* T0: a word of units that are no span's. die: FREE words of no span; the units are still free. */
static inline void word_clear(uint16_t *word) { store_relaxed(word, WORD_FREE); }

/* T1: the lessee takes a FREE object into a magazine. 0: it was not FREE.
 * die: CACHED(t) and in no magazine; T15 frees it. */
static inline int word_cache(uint16_t *word, uint16_t cached)
{
    if (load_acquire(word) != WORD_FREE) /* [ST1] */
        return 0;
    store_relaxed(word, cached);
    return 1;
}

/* T2: an entry that has left its magazine becomes FREE for the span's lessee; then comes hint_set(). 0: it is not
 * CACHED(t).
 * die: FREE without a hint; the pass that reclaims this client counts every span again. */
static inline int word_flush(uint16_t *word, uint16_t cached)
{
    if (unlikely(load_relaxed(word) != cached))
        return 0;
    store_release(word, WORD_FREE); /* [ST1] */
    return 1;
}

/* T3 T4 T5: a pop of a magazine, `to` being OWNED(t), OWNED(x) or SHARED. 0: the entry is stale (the object was freed
 * twice, or torn away) and must be dropped.
 * die: an object that nobody was told of; OWNED is freed by T15, SHARED waits for the collector. */
static inline int word_alloc(uint16_t *word, uint16_t cached, uint16_t to)
{
    if (unlikely(load_relaxed(word) != cached))
        return 0;
    store_relaxed(word, to);
    return 1;
}

/* T6 T13: a word that was seen OWNED(t); `to` is CACHED(t) or OWNED(y).
 * die: CACHED(t) and in no magazine, or OWNED(y) and in no list; T15 frees it. */
static inline void word_free(uint16_t *word, uint16_t to) { store_relaxed(word, to); }

/* T8: a word that was seen OWNED(t). die: SHARED, as if publish had returned. */
static inline void word_publish(uint16_t *word) { store_release(word, WORD_SHARED); /* [PB1] what the object holds */ }

/* T10: a word that was seen OWNED(t); `owned` is OWNED(x) or OWNED(s).
 * die: the transaction's and not in its log, or sampled and in no list; T15 frees it, or T16 publishes it. */
static inline void word_adopt(uint16_t *word, uint16_t owned) { store_relaxed(word, owned); }

/* T14: 0: it is not the limbo's any more. die: CACHED(t) and in no magazine; T15 frees it. */
static inline int word_free_late(uint16_t *word, uint16_t limbo, uint16_t cached)
{
    if (unlikely(load_relaxed(word) != limbo))
        return 0;
    store_relaxed(word, cached);
    return 1;
}

/* Of what others may change as well; called by the functions below alone. `seen` is what was loaded. 0: look again. It
 * acquires what the publisher released, and releases to FREE or SHARED. */
static inline int word_swap(uint16_t *word, uint16_t seen, uint16_t to)
{
    return cas_acq_rel(word, &seen, to); /* [PB1] [ST1] */
}

/* T7 T11 T13: `seen` is SHARED or OWNED(x, s), `to` CACHED(t) or OWNED(y). die: as word_free(). */
static inline int word_free_swap(uint16_t *word, uint16_t seen, uint16_t to) { return word_swap(word, seen, to); }

/* T9: `seen` is OWNED(x, s). die: SHARED, as if publish or the turning had returned; of a turning the rest is T16's. */
static inline int word_publish_swap(uint16_t *word, uint16_t seen) { return word_swap(word, seen, WORD_SHARED); }

/* T12: `seen` is SHARED, or OWNED(x) of a committed x. die: the dead client's; T15 frees it. */
static inline int word_claim(uint16_t *word, uint16_t seen, uint16_t owned) { return word_swap(word, seen, owned); }

/* T15. die: FREE; the pass begins again and counts it. */
static inline int word_reclaim(uint16_t *word, uint16_t seen) { return word_swap(word, seen, WORD_FREE); }

/* T16. die: SHARED; the pass begins again and leaves it. */
static inline int word_publish_dead(uint16_t *word, uint16_t seen) { return word_swap(word, seen, WORD_SHARED); }

/* T17; then comes hint_set(). die: FREE without a hint; a daemon that starts counts every span again. */
static inline int word_collect(uint16_t *word) { return word_swap(word, WORD_SHARED, WORD_FREE); }

/* T19: `seen` is OWNED(t, s). die: as word_adopt(). */
static inline int word_adopt_swap(uint16_t *word, uint16_t seen, uint16_t owned)
{
    return word_swap(word, seen, owned);
}

/* The hints. set: after the FREE words. die: a hint of a page that has not been counted.
 * clear: before the words are read. die: no hint; who reads the words begins again, see who calls it.
 * reset: a span is cut. die: no hint, of a page that is no span's. */
static inline void hint_set(uint8_t *hint) { store_release(hint, 1); } /* [HT1] after the FREE words */
static inline int hint_seen(const uint8_t *hint) { return load_relaxed(hint) != 0; }
static inline int hint_clear(uint8_t *hint) { return exchange_acq_rel(hint, 0) != 0; } /* [HT1] before the words */
static inline void hint_reset(uint8_t *hint) { store_relaxed(hint, 0); }

#endif
