/* Objects that move. Memory: the heap's. sync: an object is its caller's. */
#ifndef CLIENT_MOVE_H
#define CLIENT_MOVE_H

#include "client/heap.h"

/* Moves an object to one of `size` bytes, of the same standing and kind, of which the first `used` count: NULL and errno. */
void *object_move(struct arena *a, void *p, size_t used, size_t size, const char *call);

#endif
