/* Allocation, of an object whose word becomes OWNED, by the open transaction if there is one, or SHARED. NULL and errno.
 * Memory: the objects are the heap's. sync: the thread's mcache is its own. */
#ifndef CLIENT_ALLOC_H
#define CLIENT_ALLOC_H

#include "client/heap.h"

void *alloc_class(struct mcache *mc, unsigned span_class, unsigned flags, size_t size);
void *alloc_large(struct arena *a, struct mcache *mc, size_t size, size_t alignment, unsigned flags);

#endif
