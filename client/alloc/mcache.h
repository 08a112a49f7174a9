/* The thread's mcache: a magazine a span class. See mcache.c.
 * Memory: private, MCACHE_BYTES of addresses a thread, wiped in a fork's child. sync: its thread, but for `expect` and `own`, which
 * any thread may set to NO_WORD.
 * Invariant: an entry's word is CACHED by this client, or the entry is stale, and dropped when it is popped. */
#ifndef CLIENT_MCACHE_H
#define CLIENT_MCACHE_H

#include "client/heap.h"
#include "client/link/registry.h"

enum {
    MCACHE_BYTES = 32 << 20,     /* of addresses, a thread's */
    MCACHES_MAX = 8192,          /* threads at once */
    MAGAZINE_BYTES = 2 << 20,    /* of objects in one magazine */
    MAGAZINE_SLOTS = 16384,
    FREES_ONLY_SLOTS = 64,       /* of a magazine of a thread that only frees in its class, */
    FREES_ONLY_BYTES = 64 << 10, /* whichever is less */
};

#define NO_WORD 0x10000u /* no state word is equal to it */

struct transaction;

/* The first four and the magazines are in arena_inline.h too. sync: see above */
struct mcache {
    uint32_t expect;        /* what the word of an entry must be for the fast path: CACHED(tag); NO_WORD while every
                               allocation has more to do, as in a transaction with its log */
    uint32_t own;           /* OWNED(tag) */
    uint16_t cached;        /* CACHED(tag) */
    uint16_t owned;         /* what an allocation stores: OWNED(tag), or OWNED(x) in a transaction */
    uint32_t number;        /* of its place among the heap's */
    uint32_t trim_seen;     /* the last call to give back that it has answered. sync: atomic [TR1] */
    struct arena *arena;
    struct transaction *tx; /* private memory; NULL: none is open */
    uint64_t budget_used;   /* bytes: capacities x sizes of all magazines. sync: atomic, its thread stores */
    uint32_t steal_cursor;
    uint32_t steal_pause;   /* growths that are refused unasked, after one that took from others */
    uint32_t sample_in;     /* allocations until the next sample; 0: not counted yet */
    uint64_t refilled[4];   /* classes that this thread allocates in: a bit each */
    uint64_t used_serial[4];/* classes that refilled or flushed since the cursor passed them: a bit each */
    struct mcache *next_free;
    struct arena_magazine magazines[256] __attribute__((aligned(64)));
    struct arena_slot *bases[256]; /* the oldest entries; NULL: it has no slots yet */
};

SAME_PLACE(mcache, arena_inline_mcache, expect);
SAME_PLACE(mcache, arena_inline_mcache, own);
SAME_PLACE(mcache, arena_inline_mcache, cached);
SAME_PLACE(mcache, arena_inline_mcache, owned);
SAME_PLACE(mcache, arena_inline_mcache, magazines);
_Static_assert(sizeof(struct arena_magazine) == 32 && PAGE_CLASS_BITS == ARENA_INLINE_CLASS_BITS, "a page entry's class bits are a magazine's place");

/* This thread's mcaches, by heap; no_mcache where it has none yet: every fast path fails in that one. */
extern __thread struct mcache *tls_mcaches[HEAPS_MAX];
extern struct mcache no_mcache;
extern uint8_t size_classes[SIZE_CLASS_EIGHTS]; /* by eights; constant after the first arena_open() */

static inline char *thread_pointer(void)
{
#ifdef __x86_64__
    char *self; /* the first word of the thread's block is its own address; not in C: sanitizers would see a null pointer */
    __asm__("movq %%fs:0, %0" : "=r"(self));
    return self;
#else
    return __builtin_thread_pointer();
#endif
}

static inline struct mcache *mcache_of(const struct arena *a)
{
#if defined __SEG_FS && !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__ /* they would look at the address */
    return *(struct mcache *__seg_fs *)a->tls_at; /* one load: the same offset in all threads (initial-exec TLS) */
#else
    return tls_mcaches[a->index];
#endif
}

static inline struct arena_inline_mcache *hot_mcache(struct mcache *mc) { return (void *)mc; }

/* The state word of the small object that begins at p; false: something else is there, or nothing. */
static inline bool word_of_small(const struct arena *a, struct mcache *mc, const void *p, uint16_t **ret_word)
{
    struct arena_magazine *m;
    return arena_inline_word(hot_of(a), hot_mcache(mc), (uint64_t)((const uint8_t *)p - a->base), ret_word, &m);
}

void mcache_init(struct mcache *mc, struct arena *a, uint32_t number);
uint64_t mcache_bytes(void); /* of memory that an mcache needs with its slots */
void mcache_flush_all(struct mcache *mc);
void mcache_push(struct mcache *mc, unsigned span_class, void *object, uint16_t *word); /* its word is CACHED already */
int mcache_refill(struct mcache *mc, unsigned span_class); /* an empty magazine: how many objects, or a negative errno */
static inline bool mcache_is_full(const struct mcache *mc, unsigned span_class)
{
    return mc->magazines[span_class].top >= mc->magazines[span_class].limit;
}

static inline bool mcache_is_slow(const struct mcache *mc)
{
    const struct arena *a = mc->arena;
    return mc->tx || load_relaxed(&a->watched) || heap_is_stale(a) ||
           load_relaxed(&mc->trim_seen) != load_relaxed(&a->keep.trim_serial);
}

/* What `expect` of an mcache is to be: whatever has more to do with each allocation has it take the slow path. Its thread
 * and one that switches the fast paths off may be here at once. The one stores `expect` and then looks at watched, stale and
 * the calls to give back, the other stores these and then `expect`, each with a full fence between: the last store to
 * `expect` is NO_WORD. */
static inline void mcache_expect(struct mcache *mc)
{
    if (load_relaxed(&mc->expect) == (mcache_is_slow(mc) ? NO_WORD : mc->cached))
        return;
    store_relaxed(&mc->expect, mcache_is_slow(mc) ? NO_WORD : mc->cached);
    fence_seq_cst(); /* [EX1] */
    if (mcache_is_slow(mc))
        store_relaxed(&mc->expect, NO_WORD);
}

#endif
