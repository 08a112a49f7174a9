/* Free: an object is given up, and goes to where it is had again.
 *
 *   1. arena_free       pushes a small object of this process's onto the thread's magazine: arena_inline_push() in arena_inline.h
 *   2. free_slow        finds out what p points at, and whose it is: object_at(), word_standing() in object.c
 *   3. free_word        makes its word CACHED; a bad free is reported
 *   4. hand_back        to the magazine, whose oldest entries go to the class's lease when it is full (alloc/mcache.c,
 *                       alloc/lease.c), or to the cache of large objects (alloc/large.c). Spans that are let go are told to
 *                       the daemon by link/returns.c
 *
 * The fast path has one branch for whatever is out of the ordinary: no small object begins here, its word is not OWNED by this
 * client, or the magazine is full. The slow path finds out which. */
#include <stdio.h>
#include <string.h>

#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/trim.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/own/free.h"
#include "client/own/object.h"

/* Pins of this process's on the object that begins at `ref` go with it. */
static inline void unpin(struct arena *a, uint64_t ref)
{
    if (unlikely(!load_relaxed(&a->fast_bytes)))
        hooks.unpin(a, ref);
}

/* The word of a freed object becomes `to`, CACHED by this client or OWNED by its limbo; false: it was a bad free, reported.
 * die: CACHED or the limbo's: the pass frees it. */
static bool free_word(struct arena *a, const void *p, uint16_t *word, uint16_t to, const char *call)
{
    for (;;) {
        struct look l;
        enum standing standing = word_standing(a, word, &l);
        if (standing == STANDS_OTHERWISE) {
            word_report(a, p, l.seen, call);
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
        if (unlikely(a->profile != NULL) && word_tag(l.seen) == a->sampled_tag)
            hooks.sample_freed(a, p);
        return true;
    }
}

/* An object whose word is CACHED by this client goes to where it is had again. mc NULL: no room for the caches of one more
 * thread. */
static void hand_back(struct arena *a, struct mcache *mc, void *p, const struct object *object)
{
    struct arena_slot slot = {p, object->word};
    unpin(a, object->offset); /* before anybody can have it */
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

/* A forked child frees before it has become a client: what it frees is published, or its parent's, and stays as it is. Without
 * a handler it is said, and the child lives on: a daemon that is away is no error of its own. */
static int no_client(struct arena *a, const void *p, int error, const char *call)
{
    char text[256];
    snprintf(text, sizeof text, "%s(%p): this forked child could not become a client of the heap (%s), so nothing is freed", call, p,
             strerror(error));
    if (!report_handled(a, p, error, text)) {
        cancel_off();
        fprintf(stderr, "%s\n", text);
        cancel_on();
    }
    return -error;
}

int free_slow(struct arena *a, void *p, const char *call)
{
    struct object object;
    char why[100];
    if (!p)
        return 0;
    struct mcache *mc = mcache_get(a);
    if (!mc && a->read_only) {
        object_bad(a, p, EACCES, call, "this process is a reader");
        return -EACCES;
    }
    if (!mc && heap_is_stale(a))
        return -errno; /* of the past */
    if (!mc && forked(a))
        return no_client(a, p, errno, call);
    late_look(a);
    if (object_at(a, p, &object, why) < 0) {
        object_bad(a, p, EINVAL, call, "%s", why);
        return -EINVAL;
    }
    if (unlikely(a->debug & DEBUG_PINS) && strncmp(call, "arena_free", 10) == 0) /* realloc has been looked at before */
        hooks.used(a, p, &object, call);
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

bool free_to_limbo(struct arena *a, void *p, uint16_t limbo, const char *call)
{
    struct object object;
    if (!object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) ||
        !free_word(a, p, object.word, WORD_OWNED(limbo), call))
        return false;
    unpin(a, object.offset);
    return true;
}

void free_of_limbo(struct arena *a, void *p)
{
    struct object object;
    if (!object_find(&a->heap, (uint64_t)((uint8_t *)p - a->base), &object) ||
        !word_free_late(object.word, WORD_OWNED(load_relaxed(&a->limbo)), WORD_CACHED(a->tag)))
        return;
    hand_back(a, mcache_of(a), p, &object);
}

/* ---- arena_free and its kin ------------------------------------------------------------------------------------------ */

/* Others are to be freed after it. */
__attribute__((noinline)) static void free_of_batch(struct arena *a, void *p)
{
    const struct arena *before = report_goes_on(a);
    free_slow(a, p, "arena_free_batch");
    report_goes_on(before);
}

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
