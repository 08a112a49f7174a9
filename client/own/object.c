/* Objects: what a pointer points at, and whose it is. */
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/environ.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/socket.h"
#include "client/own/object.h"
#include "shm/hazard.h"

void object_bad(struct arena *a, const void *p, int error, const char *call, const char *format, ...)
{
    char text[256];
    va_list args;
    int n = snprintf(text, sizeof text, "%s(%p): ", call, p);
    va_start(args, format);
    vsnprintf(text + n, sizeof text - (size_t)n, format, args);
    va_end(args);
    report_error(a, p, error, text);
}

/* Where p points: 0 to the beginning of an object, else -EINVAL and why. */
int object_at(const struct arena *a, const void *p, struct object *ret, char why[100])
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
int word_why(const struct arena *a, uint16_t word, char why[100])
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

void word_report(struct arena *a, const void *p, uint16_t word, const char *call)
{
    char why[100];
    int error = word_why(a, word, why);
    object_bad(a, p, -error, call, "%s%s", error == -EALREADY ? "double free: " : "", why);
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
bool word_is_mine(const struct arena *a, uint16_t word)
{
    return word_is_owned(word) && (word_tag(word) == a->tag || tx_is_mine(a, word_tag(word)));
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
enum standing word_standing(const struct arena *a, const uint16_t *word, struct look *l)
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

/* ---- sizes ------------------------------------------------------------------------------------------------------------------------------- */

PUBLIC size_t arena_usable_size(arena_t *a, const void *p)
{
    struct object object;
    char why[100];
    return p && object_at(a, p, &object, why) == 0 ? object.size : 0;
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
        object_used((arena_t *)(uintptr_t)a, p, &object, "arena_ref");
    return offset;
}

PUBLIC void *arena_ptr(const arena_t *a, arena_ref_t ref)
{
    AFTER_GRANT(a); /* it may have come from another process, and that have had the object of one of our threads */
    return ref && ref < a->heap_bytes ? a->base + ref : NULL;
}

PUBLIC int arena_same_address(const arena_t *a) { return a->same_address; }
