/* Objects that grow, for buffers and vectors. See grow.c.
 * Memory: the heap's. sync: an object is its caller's. */
#ifndef CLIENT_GROW_H
#define CLIENT_GROW_H

#include <stddef.h>

struct arena;

void *object_grow(struct arena *a, void *p, size_t used, size_t need, unsigned flags, size_t *ret_capacity, const char *call);
void *object_fit(struct arena *a, void *p, size_t used, const char *call);

#endif
