/* Objects: what a pointer points at, bad frees, publish and claim, realloc, aligned allocation. The paths that are not
 * worth a fast one. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/profile.h"

/* ---- bad frees -------------------------------------------------------------------------------------------------------------------------- */

void bad_free(struct arena *a, const void *p, int error, const char *format, ...)
{
    char text[256];
    va_list args;
    int n = snprintf(text, sizeof text, "arena_free(%p): ", p);
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    report_error(a, p, error, text);
}

void report_error(struct arena *a, const void *p, int error, const char *text)
{
    if (a->on_error) {
        a->on_error(a->on_error_context, error, p, text);
        return;
    }
    cancel_off(); /* it is said before the end */
    fprintf(stderr, "%s\n", text);
    abort();
}

PUBLIC int arena_on_error(arena_t *a, arena_error_fn *fn, void *context)
{
    a->on_error = fn;
    a->on_error_context = context;
    return 0;
}

/* Finds the object that begins at p; or reports why there is none. */
static bool object_at(struct arena *a, const void *p, struct object *ret, bool report)
{
    uint64_t offset = (uint64_t)((const uint8_t *)p - a->base);
    if (!object_find(&a->heap, offset, ret)) {
        if (report)
            bad_free(a, p, EINVAL, offset < a->heap_bytes ? "not an object: no object is at this place of the heap"
                                                          : "not an object: outside the heap");
        return false;
    }
    if (ret->remainder) {
        if (report)
            bad_free(a, p, EINVAL, "interior pointer: %u bytes into an object of %llu", ret->remainder,
                     (unsigned long long)ret->size);
        return false;
    }
    return true;
}

static void report_word(struct arena *a, const void *p, uint16_t word)
{
    unsigned tag = word_tag(word);
    if (word == WORD_FREE || word_is_cached(word))
        bad_free(a, p, EALREADY, "double free: it is free already");
    else
        bad_free(a, p, EPERM, "owned by another process (client %u, pid %u) that has not published it", tag,
                 load_relaxed(&a->heap.tags[tag].pid));
}

/* OWNED by this process: by its tag or one of its open transactions'. */
static bool word_is_mine(const struct arena *a, uint16_t word)
{
    return word_is_owned(word) && (word_tag(word) == a->tag || tx_is_mine(a, word_tag(word)));
}

static bool word_is_shared(const struct arena *a, uint16_t word)
{
    return word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(&a->heap, word_tag(word)));
}

enum standing { STANDS_MINE, STANDS_SHARED, STANDS_OTHERWISE };

/* Whose a word is, and what was seen of it. Between the looks at word and tag a committed transaction may be settled, and
 * its tag run again: the word is SHARED by then. So before it is called another's, it is looked at again. */
static enum standing word_standing(const struct arena *a, const uint16_t *word, uint16_t *ret_seen)
{
    for (;;) {
        uint16_t seen = *ret_seen = load_relaxed(word);
        if (word_is_mine(a, seen))
            return STANDS_MINE;
        if (word_is_shared(a, seen))
            return STANDS_SHARED;
        if (load_relaxed(word) == seen)
            return STANDS_OTHERWISE;
    }
}

/* The word of a freed object becomes CACHED by this client; false: it was a bad free, reported. */
static bool free_word(struct arena *a, const void *p, uint16_t *word)
{
    uint16_t cached = WORD_CACHED(a->tag), seen;
    for (;;) {
        if (word_standing(a, word, &seen) == STANDS_OTHERWISE) {
            report_word(a, p, seen);
            return false;
        }
        if (seen == WORD_OWNED(a->tag)) {
            store_relaxed(word, cached); /* mine: a plain store */
            return true;
        }
        if (word_swap(word, seen, cached)) { /* a transaction's may be committed any moment: CAS; else look again */
            if (unlikely(a->profile != NULL) && word_tag(seen) == a->profile->tag)
                profile_freed(a, p);
            return true;
        }
    }
}

int free_slow(struct arena *a, void *p)
{
    struct object object;
    if (!p)
        return 0;
    struct mcache *mc = mcache_get(a);
    if (!mc && a->read_only) {
        bad_free(a, p, EACCES, "this process is a reader");
        return -EACCES;
    }
    if (!mc && (heap_is_stale(a) || a->generation != fork_generation))
        return -errno; /* of the past; or a forked child that is no client yet, and owns nothing */
    if (!object_at(a, p, &object, true) || !free_word(a, p, object.word))
        return -EINVAL;
    struct arena_slot slot = {p, object.word};
    if (CLASS_IS_LARGE(object.span_class))
        large_free(a, object.first, object.word);
    else if (mc)
        mcache_push(mc, object.span_class, p, object.word);
    else /* no room for the caches of one more thread */
        lease_flush(a, object.span_class, &slot, 1);
    return 0;
}

/* ---- publish and claim ------------------------------------------------------------------------------------------------------------------ */

static int publish_slow(arena_t *a, void *p)
{
    struct object object;
    if (heap_is_stale(a))
        return -ESTALE;
    if (a->read_only)
        return -EACCES;
    if (!p || !object_at(a, p, &object, false) || !mcache_get(a))
        return -EINVAL;
    uint16_t seen;
    enum standing standing = word_standing(a, object.word, &seen);
    if (standing == STANDS_MINE) {
        if (CLASS_IS_LARGE(object.span_class)) /* while it is still mine: once it is SHARED it may be freed, and its place
            leased anew */
            large_let_go(a, object.first);
        if (seen == WORD_OWNED(a->tag))
            store_release(object.word, WORD_SHARED); /* [PB1] what the object holds, to whoever swaps it from SHARED */
        else
            word_swap(object.word, seen, WORD_SHARED); /* of a transaction that may be committed any moment */
        if (unlikely(a->profile != NULL) && word_tag(seen) == a->profile->tag)
            profile_published(a, p);
        return 0;
    }
    if (standing == STANDS_SHARED)
        return 0;
    return word_is_owned(seen) ? -EBUSY : -EINVAL;
}

static int claim_slow(arena_t *a, void *p)
{
    struct object object;
    if (heap_is_stale(a))
        return -ESTALE;
    if (a->read_only)
        return -EACCES;
    if (!p || !object_at(a, p, &object, false) || !mcache_get(a))
        return -EINVAL;
    for (;;) {
        uint16_t seen;
        if (word_standing(a, object.word, &seen) != STANDS_SHARED)
            return word_is_owned(seen) ? -EBUSY : -EINVAL;
        if (word_swap(object.word, seen, WORD_OWNED(a->tag))) /* [PB1] */
            return 0;
    }
}

PUBLIC int arena_publish(arena_t *a, void *p)
{
    struct mcache *mc = mcache_of(a);
    uint16_t *word;
    if (unlikely(!word_of_small(a, mc, p, &word) || load_relaxed(word) != arena_inline_now(&mc->own)))
        return publish_slow(a, p);
    store_release(word, WORD_SHARED); /* [PB1] */
    return 0;
}

PUBLIC int arena_claim(arena_t *a, void *p)
{
    struct mcache *mc = mcache_of(a);
    uint16_t *word;
    uint32_t own = load_relaxed(&mc->own);
    if (unlikely(own == NO_WORD || !word_of_small(a, mc, p, &word) ||
                 load_relaxed(word) != WORD_SHARED || !word_swap(word, WORD_SHARED, (uint16_t)own))) /* [PB1] */
        return claim_slow(a, p);
    return 0;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------- */

PUBLIC size_t arena_usable_size(arena_t *a, const void *p)
{
    struct object object;
    return p && object_at(a, p, &object, false) ? object.size : 0;
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
        errno = EINVAL;
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
    return large_alloc(a, mc, size ? size : 1, alignment, 0);
}

/* Does an object of `now` bytes serve `size` without wasting more than a fresh one might? */
static bool fits(const struct object *object, size_t size)
{
    return size <= object->size && (size >= object->size / 2 || object->size <= 64);
}

static bool grow_in_place(struct arena *a, const struct object *object, size_t size)
{
    uint32_t pages = large_pages(size);
    return CLASS_IS_LARGE(object->span_class) && size > object->size && pages &&
           large_extend(a, object->first, pages) == 0;
}

PUBLIC void *arena_realloc(arena_t *a, void *p, size_t size)
{
    struct object object;
    if (!p)
        return arena_alloc(a, size);
    if (size == 0) {
        arena_free(a, p);
        return NULL;
    }
    if (!mcache_get(a))
        return NULL;
    errno = EINVAL;
    if (!object_at(a, p, &object, true))
        return NULL;
    uint16_t seen;
    enum standing standing = word_standing(a, object.word, &seen);
    bool mine = standing == STANDS_MINE;
    if (standing == STANDS_OTHERWISE) {
        report_word(a, p, seen);
        errno = EINVAL;
        return NULL;
    }
    if (fits(&object, size) || (mine && grow_in_place(a, &object, size)))
        return p;
    unsigned flags = (CLASS_IS_NOSCAN(object.span_class) ? ARENA_NOSCAN : 0) | (mine ? 0 : ARENA_SHARED);
    void *bigger = arena_alloc_flags(a, size, flags);
    if (!bigger)
        return size <= object.size ? p : NULL; /* smaller never fails */
    memcpy(bigger, p, size < object.size ? size : object.size);
    if (CLASS_IS_NOSCAN(object.span_class) || !gc_free_later(a, p))
        arena_free(a, p);
    return bigger;
}

/* ---- references ---------------------------------------------------------------------------------------------------------------------------- */

PUBLIC arena_ref_t arena_ref(const arena_t *a, const void *p)
{
    if (!p)
        return 0;
    uint64_t offset = (uint64_t)((const uint8_t *)p - a->base);
    if (offset >= a->heap_bytes) {
        errno = EINVAL;
        return 0;
    }
    return offset;
}

PUBLIC void *arena_ptr(const arena_t *a, arena_ref_t ref)
{
    AFTER_GRANT(a); /* it may have come from another process, and that have had the object of one of our threads */
    return ref && ref < a->heap_bytes ? a->base + ref : NULL;
}

PUBLIC int arena_same_address(const arena_t *a) { return a->same_address; }
