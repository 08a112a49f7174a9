/* Watched allocations: while arena.watched is set every allocation takes the slow path and is told here. */
#ifndef CLIENT_WATCH_H
#define CLIENT_WATCH_H

#include "client/heap.h"

void watch_alloc(struct mcache *mc, void *object, size_t size);

#endif
