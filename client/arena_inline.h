/* arena_inline.h: arena_alloc and arena_free in their callers, for loops in which the call itself counts.
 *
 * Include it in place of arena.h, in the files that are worth it: there arena_alloc(a, size) and arena_free(a, p) are the
 * library's own fast paths, compiled into their callers; whatever is out of the ordinary still goes to the library. All
 * that arena.h promises holds as it is there, bad frees and death included; (arena_alloc)(a, size), in parentheses, calls
 * the library.
 *
 * The price: the program knows how the library lays out a thread's caches. If a later libarena.so changes that, the
 * program does not start with it (undefined symbol: arena_inline_layout_2) and is to be compiled again. Programs that use
 * arena.h alone are never concerned. x86-64; elsewhere it is arena.h. What it saves: README, "Speed and memory".
 */
#ifndef ARENA_INLINE_H
#define ARENA_INLINE_H

#include "arena.h"

#if defined __x86_64__ || defined ARENA_INLINE_INSIDE
#ifdef __cplusplus
extern "C" {
#endif

/* A free object and its state word, which saves the next allocation the look-up. */
struct arena_slot {
    void *object;
    uint16_t *word;
};

/* A LIFO array of free objects of one span class, up to `limit`; both are NULL while it has no slots. Below its first slot
 * stands a sentinel whose word is equal to no `expect`: one comparison tells an empty magazine and a stale entry. What a free needs to know of the class stands
 * beside it, in the same cache line and as wide as it is used. sync: its thread */
struct arena_magazine {
    struct arena_slot *top, *limit;
    uint64_t magic;   /* ceil(2^32 / size) of the class: constant; 0: no small objects */
    uint64_t objects; /* of a span: constant */
};

/* How a thread's mcache begins. A fork's child finds zeros in its place, and every fast path fails in them: no magazine has
 * slots, and `magic` 0 is no class. sync: its thread */
struct arena_inline_mcache {
    uint32_t expect; /* what the word of an entry is: CACHED by this process; no word's value while every allocation has more
                        to do, as in a transaction */
    uint32_t own;    /* OWNED by this process */
    uint16_t cached; /* CACHED by it */
    uint16_t owned;  /* what the word becomes: OWNED by it, or by the transaction */
    uint32_t inner[45];
    struct arena_magazine magazines[256]; /* by span class: twice the size class, and 1 if noscan */
};

/* How an arena_t begins. Constant while it is open, but for fast_bytes */
struct arena_inline_heap {
    unsigned char *base;
    uint64_t fast_bytes;    /* a free of what is below it is fast: all of the heap, or nothing while the process pins. sync: atomic */
    const uint64_t *pages;  /* of the map region: an entry a page */
    uint16_t *words;        /* of the state region: a state word an object */
    const uint8_t *classes; /* by (size + 7) / 8: the size class */
    uint64_t tls_at;        /* from the thread pointer: where the pointer to this thread's mcache is; never NULL */
};

enum {
    ARENA_INLINE_SMALL_MAX = 32768, /* bytes: above it an object is a span of its own */
    ARENA_INLINE_PAGE = 8192,
    ARENA_INLINE_UNIT_WORDS = 8, /* of state words, in a unit of a page entry */
    ARENA_INLINE_CLASS_BITS = 0x1fe0, /* of a page entry: the span class, times the size of a magazine */
    ARENA_INLINE_WORD_SHARED = 1
};

#ifndef ARENA_INLINE_LOAD /* the library has its own names of them */
#define ARENA_INLINE_LOAD(p) __atomic_load_n((p), __ATOMIC_RELAXED)
#define ARENA_INLINE_STORE(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define ARENA_INLINE_SWAP(p, seen, v) \
    __atomic_compare_exchange_n((p), (seen), (v), 0, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)
#endif
#define ARENA_INLINE_UNLIKELY(x) __builtin_expect(!!(x), 0)

/* What another thread may set at any time, loaded at each use and not once for a whole loop. An atomic load would say the
 * same, and be an instruction of its own: compilers do not make it an operand of the comparison. */
static inline uint32_t arena_inline_now(uint32_t *at)
{
#ifdef __SANITIZE_THREAD__
    return ARENA_INLINE_LOAD(at);
#else
    __asm__ volatile("" : "+m"(*at));
    return *at;
#endif
}

/* Pops the top entry of a magazine, its word turned to `to`. 0: something is out of the ordinary. */
static inline int arena_inline_pop(struct arena_inline_mcache *mc, struct arena_magazine *m, uint16_t to, void **ret)
{
    struct arena_slot *top = m->top;
    if (ARENA_INLINE_UNLIKELY(!top))
        return 0;
    struct arena_slot s = top[-1];
    if (ARENA_INLINE_UNLIKELY(ARENA_INLINE_LOAD(s.word) != arena_inline_now(&mc->expect)))
        return 0;
    ARENA_INLINE_STORE(s.word, to); /* T3, T4 or T5 of shm/state.h, as word_alloc() */
    m->top = top - 1;
    *ret = s.object;
    return 1;
}

/* The state word of the small object that begins `at` bytes into the heap, and the magazine of its class. 0: something else
 * is there, or nothing. One multiplication tells the index, the product's high half, and whether it is exact: the low half
 * is below magic just when size divides the offset. For with e = magic * size - 2^32 < size an offset q * size + r gives
 * q * e + r * magic, and q * e <= offset < 2^17 <= magic. */
static inline int arena_inline_word(const struct arena_inline_heap *h, struct arena_inline_mcache *mc, uint64_t at,
                                    uint16_t **ret_word, struct arena_magazine **ret_m)
{
    if (ARENA_INLINE_UNLIKELY(at >= ARENA_INLINE_LOAD(&h->fast_bytes)))
        return 0;
    uint64_t entry = ARENA_INLINE_LOAD(&h->pages[at / ARENA_INLINE_PAGE]);
    struct arena_magazine *m =
        (struct arena_magazine *)(void *)((char *)mc->magazines + (entry & ARENA_INLINE_CLASS_BITS));
    uint64_t before = (uint32_t)entry & ~(uint32_t)(ARENA_INLINE_PAGE - 1); /* bytes of its span before this page */
    uint64_t product = (before + at % ARENA_INLINE_PAGE) * m->magic, index = product >> 32;
    if (ARENA_INLINE_UNLIKELY((uint32_t)product >= (uint32_t)m->magic || index >= m->objects))
        return 0;
    *ret_m = m;
    *ret_word = h->words + (entry >> 32) * ARENA_INLINE_UNIT_WORDS + index;
    return 1;
}

/* Pushes an object that was freed. 0: it is none, not ours to free, or the magazine is full. */
static inline int arena_inline_push(const struct arena_inline_heap *h, struct arena_inline_mcache *mc, void *p)
{
    struct arena_magazine *m;
    uint16_t *word;
    if (ARENA_INLINE_UNLIKELY(!arena_inline_word(h, mc, (uint64_t)((unsigned char *)p - h->base), &word, &m)))
        return 0;
    uint32_t own = ARENA_INLINE_LOAD(word);
    struct arena_slot *top = m->top;
    if (ARENA_INLINE_UNLIKELY(top >= m->limit))
        return 0;
    if (__builtin_expect(own == arena_inline_now(&mc->own), 1))
        ARENA_INLINE_STORE(word, mc->cached); /* T6, as word_free() */
    else {
        uint16_t shared = ARENA_INLINE_WORD_SHARED;
        if (own != shared || !ARENA_INLINE_SWAP(word, &shared, mc->cached)) /* T11, as word_free_swap() */
            return 0;
    }
    __builtin_prefetch(p, 1); /* it will be the next one out, and was last touched when it came in */
    top->object = p;
    top->word = word;
    m->top = top + 1;
    return 1;
}

/* The magazine that serves `size` <= ARENA_INLINE_SMALL_MAX. */
static inline struct arena_magazine *arena_inline_magazine_of(const struct arena_inline_heap *h,
                                                                     struct arena_inline_mcache *mc, size_t size)
{
    size_t size_class = h->classes[(size + 7) / 8];
    return (struct arena_magazine *)(void *)((char *)mc->magazines + size_class * (2 * sizeof(struct arena_magazine)));
}

#ifndef ARENA_INLINE_INSIDE

/* One load: the same offset in all threads (initial-exec TLS). */
static inline struct arena_inline_mcache *arena_inline_mcache_of(const struct arena_inline_heap *h)
{
    struct arena_inline_mcache *mc;
    __asm__ volatile("movq %%fs:(%1), %0" : "=r"(mc) : "r"(h->tls_at));
    return mc;
}

/* Stands where the call leaves the fast path, so that the program needs a library of this layout: the dynamic linker looks
 * the symbol up before main(). */
static inline void arena_inline_need_layout(void)
{
    const char *layout;
    __asm__ volatile("movq arena_inline_layout_2@GOTPCREL(%%rip), %0" : "=r"(layout));
    (void)layout;
}

static inline void *arena_inline_alloc(arena_t *a, size_t size)
{
    const struct arena_inline_heap *h = (const struct arena_inline_heap *)(const void *)a;
    struct arena_inline_mcache *mc = arena_inline_mcache_of(h);
    void *object;
    if (__builtin_expect(size <= ARENA_INLINE_SMALL_MAX, 1) &&
        __builtin_expect(arena_inline_pop(mc, arena_inline_magazine_of(h, mc, size), mc->owned, &object), 1))
        return object;
    arena_inline_need_layout();
    return arena_alloc(a, size);
}

static inline void arena_inline_free(arena_t *a, void *p)
{
    const struct arena_inline_heap *h = (const struct arena_inline_heap *)(const void *)a;
    if (ARENA_INLINE_UNLIKELY(!arena_inline_push(h, arena_inline_mcache_of(h), p))) {
        arena_inline_need_layout();
        arena_free(a, p);
    }
}

#define arena_alloc(a, size) arena_inline_alloc((a), (size))
#define arena_free(a, p) arena_inline_free((a), (p))
#endif

#ifdef __cplusplus
}
#endif
#endif
#endif
