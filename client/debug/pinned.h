/* ARENA_DEBUG=pins: what the program uses and has not pinned goes to the error handler. No memory of its own. */
#ifndef CLIENT_PINNED_H
#define CLIENT_PINNED_H

#include "client/heap.h"

void pinned_look(struct arena *a, const void *p, const struct object *o, const char *call);

#endif
