/* Allocation: the path from arena_alloc() down.
 *
 *   1. arena_alloc        pops the thread's magazine of the class, without a lock: arena_inline_pop() in arena_inline.h
 *   2. alloc_slow         finds out why not; what is large goes to alloc_large()
 *   3. refill             of the magazine, mcache_refill() in mcache.c, from the process's leased spans: lease_refill() in lease.c
 *   4. lease_more         in lease.c asks the daemon for spans, by link/conn.c
 *   5. trim_scrape        in trim.c: it was refused, so what this process keeps goes back, and 3 is tried again
 *
 * The fast path has one branch for whatever is out of the ordinary: the word of the top entry is not what `expect` says - the
 * magazine is empty (the sentinel), the entry is stale, a transaction is open, or this thread has no mcache yet (no_mcache);
 * also a magazine that has no slots yet. The slow path finds out which. */
#include <string.h>

#include "client/alloc/alloc.h"
#include "client/alloc/large.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/trim.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"

/* ---- objects of the size classes ------------------------------------------------------------------------------------- */

/* An object whose word becomes `to`: popped, or after a refill. NULL and errno. */
static void *take(struct mcache *mc, unsigned span_class, uint16_t to)
{
    struct arena_magazine *m = &mc->magazines[span_class];
    struct scrape scrape = {0};
    if (heap_is_stale(mc->arena)) {
        errno = ESTALE;
        return NULL;
    }
    bool logged = mc->tx && to == mc->owned;
    int rc = unlikely(logged) ? tx_room(mc) : 0;
    if (unlikely(rc < 0)) {
        errno = -rc;
        return NULL;
    }
    trim_if_asked(mc);
    for (;;) {
        while (m->top > mc->bases[span_class]) {
            struct arena_slot s = m->top[-1];
            int ok = word_alloc(s.word, mc->cached, to);
            m->top--;
            if (unlikely(!ok))
                continue;
            if (logged)
                tx_log(mc, s.object, s.word);
            return s.object;
        }
        int got = mcache_refill(mc, span_class);
        if (got < 0 && trim_scrape(mc, &scrape, got)) /* what this process hoards may be what is missing */
            continue;
        if (got < 0) {
            errno = -got;
            return NULL;
        }
    }
}

void *alloc_class(struct mcache *mc, unsigned span_class, unsigned flags, size_t size)
{
    void *object = take(mc, span_class, flags & ARENA_SHARED ? WORD_SHARED : mc->owned);
    if (unlikely(load_relaxed(&mc->arena->watched)) && object)
        hooks.watch_alloc(mc, object, size);
    else if (unlikely(load_relaxed(&mc->expect) == NO_WORD))
        mcache_expect(mc); /* what was watched is watched no more */
    if (object && (flags & ARENA_ZERO))
        memset(object, 0, size);
    return object;
}

/* ---- large objects --------------------------------------------------------------------------------------------------- */

/* What this process hoards may be what is missing: it gives that back, and asks again. */
static int take_large(struct mcache *mc, bool noscan, uint64_t pages, uint64_t align, struct scrape *scrape, uint32_t *ret_first)
{
    int rc;
    do
        rc = large_take(mc->arena, noscan, pages, align, ret_first);
    while (rc < 0 && trim_scrape(mc, scrape, rc));
    return rc;
}

void *alloc_large(struct arena *a, struct mcache *mc, size_t size, size_t alignment, unsigned flags)
{
    uint32_t first;
    uint64_t pages = large_pages(size), align = alignment > PAGE_SIZE ? alignment >> PAGE_SHIFT : 1;
    if (heap_is_stale(a)) {
        errno = ESTALE;
        return NULL;
    }
    int rc = mc->tx && !(flags & ARENA_SHARED) ? tx_room(mc) : 0;
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    trim_if_asked(mc);
    if (!pages || size > a->heap_bytes) {
        errno = ENOMEM;
        return NULL;
    }
    if (pages < 2)
        pages = 2; /* the cache chains in the entries of two pages */
    struct scrape scrape = {0};
    rc = take_large(mc, flags & ARENA_NOSCAN, pages, align, &scrape, &first);
    uint64_t exact = (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
    if ((rc == -ENOMEM || rc == -EDQUOT) && exact > 1 && exact < pages) /* the rounding may be what is too much */
        rc = take_large(mc, flags & ARENA_NOSCAN, exact, align, &scrape, &first);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    uint16_t *word = large_word(a, first);
    void *object = a->base + ((uint64_t)first << PAGE_SHIFT);
    if (flags & ARENA_ZERO)
        memset(object, 0, size);
    word_alloc(word, mc->cached, flags & ARENA_SHARED ? WORD_SHARED : mc->owned);
    if (flags & ARENA_SHARED)
        large_let_go(a, first);
    else if (mc->tx)
        tx_log(mc, object, word);
    if (unlikely(load_relaxed(&a->watched)))
        hooks.watch_alloc(mc, object, size);
    return object;
}

/* ---- arena_alloc and its kin ----------------------------------------------------------------------------------------- */

static __attribute__((noinline)) void *alloc_slow(arena_t *a, size_t size, unsigned flags)
{
    if (flags & ~(unsigned)(ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED)) {
        errno = refused(EINVAL, "arena_alloc_flags: unknown flags 0x%x", flags & ~(unsigned)(ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED));
        return NULL;
    }
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    late_look(a);
    if (unlikely(flags & ARENA_SHARED) && pins_are_declared(a))
        return hooks.alloc_pinned(a, mc, size, flags);
    if (size > SMALL_MAX)
        return alloc_large(a, mc, size, 1, flags);
    unsigned noscan = flags & ARENA_NOSCAN;
    return alloc_class(mc, SPAN_CLASS(size_class_of((uint32_t)size, noscan), noscan), flags, size);
}

PUBLIC void *arena_alloc(arena_t *a, size_t size)
{
    struct arena_inline_mcache *mc = hot_mcache(mcache_of(a));
    void *object;
    if (likely(size <= SMALL_MAX && arena_inline_pop(mc, arena_inline_magazine_of(hot_of(a), mc, size), mc->owned, &object)))
        return object;
    return alloc_slow(a, size, 0);
}

PUBLIC void *arena_alloc_flags(arena_t *a, size_t size, unsigned flags)
{
    struct mcache *mc = mcache_of(a);
    void *object;
    if (unlikely(size > SMALL_MAX || flags > load_relaxed(&a->fast_flags)))
        return alloc_slow(a, size, flags);
    unsigned noscan = flags & ARENA_NOSCAN, size_class = size_class_of((uint32_t)size, noscan);
    uint16_t to = flags & ARENA_SHARED ? WORD_SHARED : mc->owned;
    if (unlikely(!arena_inline_pop(hot_mcache(mc), &mc->magazines[SPAN_CLASS(size_class, noscan)], to, &object)))
        return alloc_slow(a, size, flags);
    return flags & ARENA_ZERO ? memset(object, 0, size) : object;
}

PUBLIC size_t arena_alloc_batch(arena_t *a, size_t size, void **out, size_t count)
{
    size_t got = 0;
    unsigned span_class = size > SMALL_MAX ? 0 : SPAN_CLASS(size_class_of((uint32_t)size, 0), 0);
    while (got < count) {
        struct mcache *mc = mcache_of(a); /* the first object may have made it */
        struct arena_magazine *m = &mc->magazines[span_class];
        struct arena_slot *top = m->top;
        uint16_t cached = mc->cached, owned = mc->owned;
        bool fast = top && load_relaxed(&mc->expect) == cached;
        while (fast && got < count && word_alloc(top[-1].word, cached, owned))
            out[got++] = (--top)->object;
        if (top != m->top)
            m->top = top; /* all words, then the top, once */
        if (got < count && (out[got] = alloc_slow(a, size, 0)) == NULL)
            break;
        got += got < count;
    }
    return got;
}

PUBLIC void *arena_calloc(arena_t *a, size_t count, size_t size)
{
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) {
        errno = ENOMEM;
        return NULL;
    }
    return arena_alloc_flags(a, bytes, ARENA_ZERO);
}

PUBLIC void *arena_aligned_alloc(arena_t *a, size_t alignment, size_t size)
{
    if (alignment == 0 || (alignment & (alignment - 1)) || alignment > 2 << 20) {
        errno = refused(EINVAL, "alignment %zu is no power of two up to 2 MiB", alignment);
        return NULL;
    }
    if ((uintptr_t)a->base & (alignment - 1)) { /* neither the common address nor one of the same alignment was to be had */
        errno = refused(ENOMEM, "this process has mapped the heap at an address that is not aligned to %zu", alignment);
        return NULL;
    }
    if (alignment <= 8 || (alignment == 16 && size >= 16))
        return arena_alloc(a, size);
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    unsigned size_class = alignment <= PAGE_SIZE && size <= SMALL_MAX ? size_class_aligned((uint32_t)size, (uint32_t)alignment, 0) : 0;
    if (size_class)
        return alloc_class(mc, SPAN_CLASS(size_class, 0), 0, size);
    return alloc_large(a, mc, size ? size : 1, alignment, 0);
}
