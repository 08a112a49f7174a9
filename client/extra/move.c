/* Objects that move: realloc, and a copy that takes an object's place with all that it stands for. */
#include <stdlib.h>
#include <string.h>

#include "client/alloc/large.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/extra/move.h"
#include "client/extra/pins.h"
#include "client/heap.h"
#include "client/own/free.h"
#include "client/own/object.h"
#include "client/own/publish.h"

/* ---- a copy in its place --------------------------------------------------------------------------------------------- */

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
    else if (error == 0 && !in_tx && word_tag(l->seen) != a->tag && (!a->profile || word_tag(l->seen) != a->sampled_tag))
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
        word_report(a, p, l.seen, call);
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

/* ---- realloc --------------------------------------------------------------------------------------------------------- */

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
        object_bad(a, p, EINVAL, call, "%s", why);
        errno = EINVAL;
        return NULL;
    }
    object_used(a, p, &object, call);
    enum standing standing = word_standing(a, object.word, &l);
    look_end(&l);
    if (standing == STANDS_OTHERWISE) {
        word_report(a, p, l.seen, call);
        errno = EINVAL;
        return NULL;
    }
    if (fits(&object, size) || (standing == STANDS_MINE && resize_in_place(a, &object, size)))
        return p;
    void *copy = object_move(a, p, size < object.size ? size : object.size, size, call);
    return copy || size > object.size ? copy : p; /* smaller never fails */
}
