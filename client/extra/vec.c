/* Vectors: items of one size, in an object that grows. */
#include <string.h>

#include "client/extra/grow.h"
#include "client/heap.h"
#include "client/link/reason.h"
#include "client/own/free.h"

PUBLIC int arena_vec_init(arena_vec_t *v, arena_t *a, size_t item_size, size_t capacity,
                          unsigned flags)
{
    *v = (arena_vec_t){.arena = a, .item_size = item_size, .flags = flags};
    if (!item_size || (flags & ~(unsigned)(ARENA_NOSCAN | ARENA_ZERO)))
        return refused(-EINVAL, "arena_vec_init: flags 0x%x, or items of no size", flags);
    return capacity ? arena_vec_reserve(v, capacity) : 0;
}

PUBLIC void arena_vec_fini(arena_vec_t *v)
{
    if (v->items)
        free_as(v->arena, v->items, "arena_vec_fini");
    v->items = NULL;
    v->count = v->capacity = 0;
}

PUBLIC int arena_vec_reserve(arena_vec_t *v, size_t more)
{
    size_t count, bytes, capacity;
    if (more <= v->capacity - v->count)
        return 0;
    if (__builtin_add_overflow(v->count, more, &count) ||
        __builtin_mul_overflow(count, v->item_size, &bytes))
        return -ENOMEM;
    void *items = object_grow(v->arena, v->items, v->count * v->item_size, bytes,
                              v->flags & ARENA_NOSCAN, &capacity, "arena_vec_reserve");
    if (!items)
        return -errno;
    v->items = items;
    v->capacity = capacity / v->item_size;
    return 0;
}

PUBLIC void *arena_vec_add(arena_vec_t *v, size_t count)
{
    int rc = arena_vec_reserve(v, count);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    void *at = (char *)v->items + v->count * v->item_size;
    v->count += count;
    if (v->flags & ARENA_ZERO && count)
        memset(at, 0, count * v->item_size);
    return at;
}

PUBLIC int arena_vec_push(arena_vec_t *v, const void *item)
{
    size_t inside = (size_t)((const char *)item - (const char *)v->items);
    bool own = v->items && inside < v->count * v->item_size; /* one of its own: it may move */
    void *to = arena_vec_add(v, 1);
    if (!to)
        return -errno;
    memcpy(to, own ? (const char *)v->items + inside : item, v->item_size);
    return 0;
}

PUBLIC int arena_vec_pop(arena_vec_t *v, void *ret_item)
{
    if (!v->count)
        return -ENOENT;
    v->count--;
    if (ret_item)
        memcpy(ret_item, (char *)v->items + v->count * v->item_size, v->item_size);
    return 0;
}

PUBLIC void arena_vec_truncate(arena_vec_t *v, size_t count)
{
    if (count < v->count)
        v->count = count;
}

PUBLIC void *arena_vec_detach(arena_vec_t *v, size_t *ret_count)
{
    if (!v->items) {
        errno = ENOENT;
        return NULL;
    }
    void *items = object_fit(v->arena, v->items, v->count * v->item_size, "arena_vec_detach");
    if (!items)
        return NULL;
    if (ret_count)
        *ret_count = v->count;
    v->items = NULL;
    v->count = v->capacity = 0;
    return items;
}
