/* arena: vectors of items of one size that grow in the heap.
 *
 * A vector is a small structure of the caller's, in private memory, over one object of the heap that is OWNED by this
 * process: if the process dies the object is freed. It belongs to one thread at a time. What it holds moves when it
 * grows, except in place: up to the end of the object's size class at no cost, and a large object into free pages
 * behind it for a round trip. It at least doubles while it is small and copied, and takes a quarter more while it
 * grows in place. detach gives the object itself, cut to what is used, which can be published like any other.
 *
 * Transactions: until detach the object is of none, whichever is open while it grows. detach gives it to the one that
 * is open on the thread, as if it were allocated by that call.
 * fork: in the child it is the parent's: only read.
 * Errors: of an allocation, as arena.h lists them.
 */
#ifndef ARENA_VEC_H
#define ARENA_VEC_H

#include "arena.h"

#ifdef __cplusplus
extern "C" {
#endif

struct arena_vec { /* items of one size. sync: its user's; read the first three, write none */
    void *items;
    size_t count, capacity;
    size_t item_size;
    arena_t *arena;
    unsigned flags;
};
typedef struct arena_vec arena_vec_t;

/* flags: ARENA_NOSCAN if items hold no references; ARENA_ZERO: added items are 0. -EINVAL: other flags, item_size 0. */
int arena_vec_init(arena_vec_t *v, arena_t *a, size_t item_size, size_t capacity, unsigned flags);
void arena_vec_fini(arena_vec_t *v);
int arena_vec_reserve(arena_vec_t *v, size_t more);  /* room for that many items behind the count */
void *arena_vec_add(arena_vec_t *v, size_t count);   /* at the end; the first of them, or NULL and errno */
int arena_vec_push(arena_vec_t *v, const void *item);
int arena_vec_pop(arena_vec_t *v, void *ret_item);   /* -ENOENT: it is empty; ret_item may be NULL */
void arena_vec_truncate(arena_vec_t *v, size_t count);
void *arena_vec_detach(arena_vec_t *v, size_t *ret_count); /* the object; NULL and ENOENT: there is none */

static inline void *arena_vec_at(const arena_vec_t *v, size_t i) /* NULL: beyond the last */
{
    return i < v->count ? (char *)v->items + i * v->item_size : NULL;
}

#ifdef __cplusplus
}
#endif
#endif
