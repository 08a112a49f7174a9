/* Objects: what a pointer points at, bad frees, publish and claim, realloc, aligned allocation. The paths that are not
 * worth a fast one. */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "client/alloc/trim.h"
#include "client/debug/escape.h"
#include "client/debug/profile.h"
#include "shm/hazard.h"

static void bad_object(struct arena *a, const void *p, int error, const char *call, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

static void bad_object(struct arena *a, const void *p, int error, const char *call, const char *format, ...)
{
    char text[256];
    va_list args;
    int n = snprintf(text, sizeof text, "%s(%p): ", call, p);
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    report_error(a, p, error, text);
}

void free_of_batch(struct arena *a, void *p)
{
    const struct arena *before = report_goes_on(a);
    free_slow(a, p, "arena_free_batch");
    report_goes_on(before);
}

/* Where p points: 0 to the beginning of an object, else -EINVAL and why. */
static int object_at(const struct arena *a, const void *p, struct object *ret, char why[100])
{
    uint64_t offset = (uint64_t)((const uint8_t *)p - a->base);
    if (offset >= a->heap_bytes)
        snprintf(why, 100, "not an object: outside the heap");
    else if (!object_find(&a->heap, offset, ret))
        snprintf(why, 100, "not an object: no object is at this place of the heap");
    else if (ret->remainder)
        snprintf(why, 100, "interior pointer: %u bytes into an object of %llu", ret->remainder, (unsigned long long)ret->size);
    else {
        if (CLASS_IS_LARGE(ret->span_class))
            ret->size = large_bytes(a, ret->first, ret->size);
        return 0;
    }
    return -EINVAL;
}

/* What stands in the way of a word that is neither mine nor SHARED. */
static int word_why(const struct arena *a, uint16_t word, char why[100])
{
    unsigned tag = word_tag(word);
    if (word_is_owned(word) && tag != load_relaxed(&a->limbo)) {
        snprintf(why, 100, "owned by another process (client %u, pid %u) that has not published it", tag,
                 tag < TAG_COUNT ? load_relaxed(&a->heap.tags[tag].pid) : 0);
        return -EPERM;
    }
    snprintf(why, 100, "it is free already");
    return -EALREADY;
}

static void report_word(struct arena *a, const void *p, uint16_t word, const char *call)
{
    char why[100];
    int error = word_why(a, word, why);
    bad_object(a, p, -error, call, "%s%s", error == -EALREADY ? "double free: " : "", why);
}

void refused_root(struct arena *a, const char *name, uint64_t ref, unsigned tx)
{
    struct object object;
    char why[100];
    uint16_t word;
    if (ref == 0)
        return;
    if (object_at(a, a->base + ref, &object, why) == 0) {
        word = load_relaxed(object.word);
        if (word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(&a->heap, word_tag(word))))
            return; /* by now; the daemon's words stand */
        if (word_is_owned(word) && (word_tag(word) == a->tag || tx_is_mine(a, word_tag(word))))
            snprintf(why, sizeof why, tx ? "it is neither published nor of this transaction" : "it is not published");
        else
            word_why(a, word, why);
    }
    refused(0, "root %.63s: reference 0x%llx: %s", name, (unsigned long long)ref, why);
}

/* ---- whose a word is ---------------------------------------------------------------------------------------------------------------------- */

/* OWNED by this process: by its tag or one of its open transactions'. */
static bool word_is_mine(const struct arena *a, uint16_t word)
{
    return word_is_owned(word) && (word_tag(word) == a->tag || tx_is_mine(a, word_tag(word)));
}

enum standing { STANDS_MINE, STANDS_SHARED, STANDS_OTHERWISE };

/* What was seen of a word. */
struct look {
    uint16_t seen;
    uint32_t *hazard; /* STANDS_SHARED, OWNED by a committed transaction: whose tag rests until this is cleared */
};

static void look_end(const struct look *l)
{
    if (l->hazard)
        hazard_clear(l->hazard); /* [HZ1] after the swap */
}

/* A slot is soon free: it is held for a few accesses. */
static uint32_t *hazard_take(const struct arena *a, unsigned tag)
{
    uint32_t *slot, from = (uint32_t)((uintptr_t)mcache_of(a) >> 25) + a->tag;
    if (likely((slot = hazard_set(&a->heap, a->tag, tag, from)) != NULL))
        return slot;
    struct patience patience = conn_patience(a);
    while (conn_waits(&patience) && !(slot = hazard_set(&a->heap, a->tag, tag, from)))
        sched_yield();
    return slot;
}

/* Whose a word is. A committed transaction's counts as SHARED; its tag may be resolved and run again, and the same place be
 * allocated in it, between the look and the swap: a hazard keeps it from that, and is set before the look that counts. Between
 * the looks at word and tag the transaction may be settled: the word is SHARED by then. So before it is called another's, it
 * is looked at again. look_end() when it was swapped or will not be.
 * die: a hazard, which the daemon clears. */
static enum standing word_standing(const struct arena *a, const uint16_t *word, struct look *l)
{
    for (;;) {
        uint16_t seen = l->seen = load_relaxed(word);
        l->hazard = NULL;
        if (word_is_mine(a, seen))
            return STANDS_MINE;
        if (seen == WORD_SHARED)
            return STANDS_SHARED;
        if (word_is_owned(seen) && word_tag(seen) < TAG_COUNT && tag_is_committed(&a->heap, word_tag(seen))) {
            l->hazard = hazard_take(a, word_tag(seen)); /* [HZ1] */
            if (!l->hazard)
                return STANDS_OTHERWISE;
            if (tag_is_committed(&a->heap, word_tag(seen)) && load_relaxed(word) == seen)
                return STANDS_SHARED;
            look_end(l);
        } else if (load_relaxed(word) == seen)
            return STANDS_OTHERWISE;
    }
}

/* ---- pins that are missing ------------------------------------------------------------------------------------------------------------- */

/* ARENA_DEBUG=pins: a process that has declared ARENA_PINS uses what a collection may free meanwhile. */
static void debug_pinned(struct arena *a, const void *p, const struct object *o, const char *call)
{
    struct look l;
    enum standing standing = word_standing(a, o->word, &l);
    look_end(&l);
    if (standing == STANDS_OTHERWISE || !pins_are_declared(a) || pins_is_pinned(a, o->offset) ||
        (standing == STANDS_MINE && strcmp(call, "arena_publish") != 0))
        return;
    char text[600], at[300] = "an unknown place";
    struct trace trace;
    trace_take(&trace);
    if (trace.count)
        site_print_pc(trace.pc[0], at, sizeof at);
    snprintf(text, sizeof text, "pins: %s(%p) at %s: %s that this process has not pinned: unless a lock keeps it where it was found, a "
             "collection may free it", call, p, at,
             standing == STANDS_MINE ? "publishes an object" : "uses a published object");
    if (!report_handled(a, p, ENOLCK, text)) {
        cancel_off();
        fprintf(stderr, "%s\n", text);
        cancel_on();
    }
}

static inline void look_for_pin(struct arena *a, const void *p, const struct object *o, const char *call)
{
    if (unlikely(a->debug & DEBUG_PINS))
        debug_pinned(a, p, o, call);
}

/* ---- free -------------------------------------------------------------------------------------------------------------------------------- */

/* The word of a freed object becomes `to`, CACHED by this client or OWNED by its limbo; false: it was a bad free, reported.
 * die: CACHED or the limbo's: the pass frees it. */
static bool free_word(struct arena *a, const void *p, uint16_t *word, uint16_t to, const char *call)
{
    for (;;) {
        struct look l;
        enum standing standing = word_standing(a, word, &l);
        if (standing == STANDS_OTHERWISE) {
            report_word(a, p, l.seen, call);
            return false;
        }
        if (l.seen == WORD_OWNED(a->tag)) {
            word_free(word, to);
            return true;
        }
        int swapped = word_free_swap(word, l.seen, to); /* a transaction's may be committed any moment: CAS; else look again */
        look_end(&l);
        if (!swapped)
            continue;
        if (standing == STANDS_MINE)
            tx_freed(a, mcache_of(a), word_tag(l.seen));
        if (unlikely(a->profile != NULL) && word_tag(l.seen) == a->profile->tag)
            profile_freed(a, p);
        return true;
    }
}

/* An object whose word is CACHED by this client goes to where it is had again. mc NULL: no room for the caches of one more
 * thread. */
static void hand_back(struct arena *a, struct mcache *mc, void *p, const struct object *object)
{
    struct arena_slot slot = {p, object->word};
    pins_freed(a, object->offset); /* before anybody can have it */
    bool has = mc && mc->arena == a;
    if (CLASS_IS_LARGE(object->span_class)) {
        large_free(a, object->first);
        if (has)
            trim_if_asked(mc);
    } else if (has) {
        if (mcache_is_full(mc, object->span_class))
            trim_if_asked(mc);
        mcache_push(mc, object->span_class, p, object->word);
    } else
        lease_flush(a, object->span_class, &slot, 1);
}

int free_slow(struct arena *a, void *p, const char *call)
{
    struct object object;
    char why[100];
    if (!p)
        return 0;
    struct mcache *mc = mcache_get(a);
    if (!mc && a->read_only) {
        bad_object(a, p, EACCES, call, "this process is a reader");
        return -EACCES;
    }
    if (!mc && (heap_is_stale(a) || forked(a)))
        return -errno; /* of the past; or a forked child that is no client yet, and owns nothing */
    late_look(a);
    if (object_at(a, p, &object, why) < 0) {
        bad_object(a, p, EINVAL, call, "%s", why);
        return -EINVAL;
    }
    if (unlikely(a->debug & DEBUG_PINS) && strncmp(call, "arena_free", 10) == 0) /* realloc has been looked at before */
        debug_pinned(a, p, &object, call);
    if (!free_word(a, p, object.word, WORD_CACHED(a->tag), call))
        return -EINVAL;
    hand_back(a, mc, p, &object);
    return 0;
}

void free_of_tx(struct arena *a, struct mcache *mc, unsigned tag, void *p, uint16_t *word)
{
    struct object object;
    if (object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) &&
        word_free_swap(word, WORD_OWNED(tag), WORD_CACHED(a->tag))) /* another thread may be just freeing it */
        hand_back(a, mc, p, &object);
}

bool limbo_word(struct arena *a, void *p, uint16_t limbo, const char *call)
{
    struct object object;
    if (!object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) ||
        !free_word(a, p, object.word, WORD_OWNED(limbo), call))
        return false;
    pins_freed(a, object.offset);
    return true;
}

void limbo_free(struct arena *a, void *p)
{
    struct object object;
    if (!object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) ||
        !word_free_late(object.word, WORD_OWNED(load_relaxed(&a->limbo)), WORD_CACHED(a->tag)))
        return;
    hand_back(a, mcache_of(a), p, &object);
}

/* ---- publish and claim ------------------------------------------------------------------------------------------------------------------ */

/* What publish and claim are refused for, but for the word. -ENOTCONN and the like: a forked child that is no client yet. */
static int may_hand_over(struct arena *a, const void *p, struct object *ret, const char *call)
{
    char why[100];
    if (heap_is_stale(a))
        return -ESTALE;
    if (a->read_only)
        return refused(-EACCES, "%s: this process is a reader", call);
    if (!p)
        return refused(-EINVAL, "%s: no object", call);
    if (!mcache_get(a) && (heap_is_stale(a) || forked(a)))
        return -errno;
    late_look(a);
    int rc = object_at(a, p, ret, why);
    if (rc == 0)
        look_for_pin(a, p, ret, call);
    return rc < 0 ? refused(rc, "%s(%p): %s", call, p, why) : 0;
}

static int refused_word(struct arena *a, const void *p, uint16_t word, const char *call)
{
    char why[100];
    if (word_is_mine(a, word))
        return refused(-EBUSY, "%s(%p): this process owns it already", call, p);
    return refused(word_why(a, word, why) == -EPERM ? -EBUSY : -EINVAL, "%s(%p): %s", call, p, why);
}

static int publish_slow(arena_t *a, void *p)
{
    struct object object;
    int rc = may_hand_over(a, p, &object, "arena_publish");
    if (rc < 0)
        return rc;
    for (;;) {
        struct look l;
        enum standing standing = word_standing(a, object.word, &l);
        look_end(&l);
        if (standing == STANDS_SHARED)
            return 0;
        if (standing == STANDS_OTHERWISE)
            return refused_word(a, p, l.seen, "arena_publish");
        /* while it is still mine: once it is SHARED it may be freed, and its place leased anew */
        if (CLASS_IS_LARGE(object.span_class) && (rc = large_let_go(a, object.first)) < 0)
            return refused(rc, "arena_publish(%p): its size is in doubt, and the daemon cannot be asked", p);
        if (l.seen == WORD_OWNED(a->tag))
            word_publish(object.word);
        else if (word_publish_swap(object.word, l.seen)) /* of a transaction that may be committed any moment */
            tx_freed(a, mcache_of(a), word_tag(l.seen));
        else
            continue;
        if (unlikely(a->profile != NULL) && word_tag(l.seen) == a->profile->tag)
            profile_published(a, p);
        return 0;
    }
}

static int claim_slow(arena_t *a, void *p)
{
    struct object object;
    int rc = may_hand_over(a, p, &object, "arena_claim");
    while (rc == 0) {
        struct look l;
        if (word_standing(a, object.word, &l) != STANDS_SHARED)
            return refused_word(a, p, l.seen, "arena_claim");
        int swapped = word_claim(object.word, l.seen, WORD_OWNED(a->tag));
        look_end(&l);
        if (swapped)
            return 0;
    }
    return rc;
}

PUBLIC int arena_publish(arena_t *a, void *p)
{
    struct mcache *mc = mcache_of(a);
    uint16_t *word;
    if (unlikely(!word_of_small(a, mc, p, &word) || load_relaxed(word) != arena_inline_now(&mc->own)))
        return publish_slow(a, p);
    word_publish(word);
    return 0;
}

PUBLIC int arena_claim(arena_t *a, void *p)
{
    struct mcache *mc = mcache_of(a);
    uint16_t *word;
    uint32_t own = load_relaxed(&mc->own);
    if (unlikely(own == NO_WORD || !word_of_small(a, mc, p, &word) ||
                 load_relaxed(word) != WORD_SHARED || !word_claim(word, WORD_SHARED, (uint16_t)own)))
        return claim_slow(a, p);
    return 0;
}

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------- */

PUBLIC size_t arena_usable_size(arena_t *a, const void *p)
{
    struct object object;
    char why[100];
    return p && object_at(a, p, &object, why) == 0 ? object.size : 0;
}

/* ---- realloc ------------------------------------------------------------------------------------------------------------------------------ */

enum { WASTE_LITTLE = 256 /* bytes */ };

/* Does the object serve `size` without wasting much? More than half of it, and more than a little. */
static bool fits(const struct object *object, size_t size)
{
    return size <= object->size && (size >= object->size / 2 || object->size - size <= WASTE_LITTLE);
}

/* An own large object gets more pages, or fewer. */
static bool resize_in_place(struct arena *a, const struct object *object, size_t size)
{
    if (!CLASS_IS_LARGE(object->span_class) || (size <= SMALL_MAX && size < object->size))
        return false;
    uint64_t pages = size > object->size ? large_pages(size) : (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
    if (!pages || pages < 2 || pages > UINT32_MAX)
        return false;
    return large_extend(a, object->first, (uint32_t)pages) == 0 ||
           (size > object->size && large_extend(a, object->first, (uint32_t)((size + PAGE_SIZE - 1) >> PAGE_SHIFT)) == 0);
}

/* A copy of p, of which `used` bytes count, that stands as p does: `seen` of its word. NULL and errno.
 * die: OWNED, and freed by the pass; or SHARED as p still is, which only a collection can tell from what is in use. */
static void *copy_of(struct arena *a, void *p, const struct object *from, const struct look *l, enum standing standing,
                     size_t used, size_t size)
{
    struct mcache *mc = mcache_of(a);
    struct object to;
    bool in_tx = mc->tx && l->seen == mc->owned, born = standing == STANDS_SHARED && pins_are_declared(a);
    struct transaction *tx = in_tx ? NULL : tx_suspend(mc);
    void *copy = arena_alloc_flags(a, size, CLASS_IS_NOSCAN(from->span_class) ? ARENA_NOSCAN : 0);
    int error = copy ? 0 : -errno;
    if (!in_tx)
        tx_resume(mc, tx);
    if (!copy)
        goto out;
    memcpy(copy, p, used);
    object_find(&a->heap, (uint64_t)((uint8_t *)copy - a->base), &to);
    error = pins_copy(a, from->offset, to.offset, to.size, born); /* p's own go when it is freed */
    if (error == 0 && standing == STANDS_SHARED)
        error = publish_slow(a, copy);
    else if (error == 0 && !in_tx && word_tag(l->seen) != a->tag && (!a->profile || word_tag(l->seen) != a->profile->tag))
        error = tx_move(a, word_tag(l->seen), copy, to.word);
    if (error < 0) {
        free_slow(a, copy, "arena_realloc");
        copy = NULL;
    }
out:
    errno = -error;
    return copy;
}

void *object_move(struct arena *a, void *p, size_t used, size_t size, const char *call)
{
    struct object object;
    struct limbo_entry *entry = NULL;
    struct look l;
    if (!mcache_get(a)) /* a buffer may have come from another thread */
        return NULL;
    int rc = object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) ? 0 : -EINVAL;
    bool noscan = rc == 0 && CLASS_IS_NOSCAN(object.span_class);
    if (rc == 0 && !noscan)
        rc = limbo_prepare(a, &entry);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    enum standing standing = word_standing(a, object.word, &l);
    look_end(&l); /* p is the caller's to free: nobody else changes it */
    void *copy = NULL;
    if (standing == STANDS_OTHERWISE) {
        report_word(a, p, l.seen, call);
        errno = EINVAL;
    } else
        copy = copy_of(a, p, &object, &l, standing, used, size);
    if (!copy) {
        int error = errno;
        free(entry);
        errno = error;
        return NULL;
    }
    if (noscan)
        free_as(a, p, call);
    else
        limbo_or_free(a, p, entry, call);
    if (unlikely(!load_relaxed(&a->fast_bytes)))
        pins_moved(a, object.offset);
    return copy;
}

PUBLIC void *arena_realloc(arena_t *a, void *p, size_t size)
{
    static const char call[] = "arena_realloc";
    struct object object;
    struct look l;
    char why[100];
    if (!p)
        return arena_alloc(a, size);
    if (size == 0) {
        free_slow(a, p, call);
        return NULL;
    }
    if (!mcache_get(a))
        return NULL;
    if (heap_is_stale(a)) {
        errno = ESTALE;
        return NULL;
    }
    if (object_at(a, p, &object, why) < 0) {
        bad_object(a, p, EINVAL, call, "%s", why);
        errno = EINVAL;
        return NULL;
    }
    look_for_pin(a, p, &object, call);
    enum standing standing = word_standing(a, object.word, &l);
    look_end(&l);
    if (standing == STANDS_OTHERWISE) {
        report_word(a, p, l.seen, call);
        errno = EINVAL;
        return NULL;
    }
    if (fits(&object, size) || (standing == STANDS_MINE && resize_in_place(a, &object, size)))
        return p;
    void *copy = object_move(a, p, size < object.size ? size : object.size, size, call);
    return copy || size > object.size ? copy : p; /* smaller never fails */
}

/* ---- references ---------------------------------------------------------------------------------------------------------------------------- */

PUBLIC arena_ref_t arena_ref(const arena_t *a, const void *p)
{
    if (!p)
        return 0;
    uint64_t offset = (uint64_t)((const uint8_t *)p - a->base);
    if (offset >= a->heap_bytes) {
        errno = refused(EINVAL, "arena_ref(%p): outside the heap", p);
        return 0;
    }
    struct object object;
    if (unlikely(a->debug & DEBUG_PINS) && object_find(&a->heap, offset, &object))
        look_for_pin((arena_t *)(uintptr_t)a, p, &object, "arena_ref");
    return offset;
}

PUBLIC void *arena_ptr(const arena_t *a, arena_ref_t ref)
{
    AFTER_GRANT(a); /* it may have come from another process, and that have had the object of one of our threads */
    return ref && ref < a->heap_bytes ? a->base + ref : NULL;
}

PUBLIC int arena_same_address(const arena_t *a) { return a->same_address; }

/* ---- the fast paths -------------------------------------------------------------------------------------------------- */

PUBLIC void arena_free(arena_t *a, void *p)
{
    if (unlikely(!arena_inline_push(hot_of(a), hot_mcache(mcache_of(a)), p)))
        free_slow(a, p, "arena_free");
}

PUBLIC void arena_free_batch(arena_t *a, void **objects, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (unlikely(!arena_inline_push(hot_of(a), hot_mcache(mcache_of(a)), objects[i])))
            free_of_batch(a, objects[i]);
}
