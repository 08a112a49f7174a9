/* ARENA_DEBUG: checks that cost much and find what the compiler of another language would have
 * found. */
#ifndef CLIENT_ESCAPE_H
#define CLIENT_ESCAPE_H

#include "client/stack.h"

enum { DEBUG_STACK = 1, DEBUG_ESCAPE = 2 };

/* A frame got the object [at, end) of its stack, at that place of the program. */
void escape_note_frame(struct stack *k, size_t at, size_t end, void *caller);

/* The frames from `frame` on are popped: reports what still points into them. */
void escape_check_pop(struct stack *k, size_t frame, void *caller);

#endif
