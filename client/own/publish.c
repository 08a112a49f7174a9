/* Publish and claim: an object that this process owns becomes everybody's, and the other way. */

#include "client/alloc/large.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/own/object.h"
#include "client/own/publish.h"

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
        object_used(a, p, ret, call);
    return rc < 0 ? refused(rc, "%s(%p): %s", call, p, why) : 0;
}

static int refused_word(struct arena *a, const void *p, uint16_t word, const char *call)
{
    char why[100];
    if (word_is_mine(a, word))
        return refused(-EBUSY, "%s(%p): this process owns it already", call, p);
    return refused(word_why(a, word, why) == -EPERM ? -EBUSY : -EINVAL, "%s(%p): %s", call, p, why);
}

int publish_slow(arena_t *a, void *p)
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
        if (unlikely(a->profile != NULL) && word_tag(l.seen) == a->sampled_tag)
            hooks.sample_published(a, p);
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
