/* ARENA_DEBUG: checks that cost much, and find what the compiler of another language would have
 * found.
 *
 * escape: every allocation, of the heap and of a frame, is noted with its call site; at each pop
 * the heap's objects (this process's, and all that are published), the outer frames of the stack
 * and the roots are searched for something that leads into the popped frames: a pointer, a
 * reference or a handle. What it finds goes to the handler of arena_on_error. Not searched: the
 * process's private memory. */
#ifndef CLIENT_ESCAPE_H
#define CLIENT_ESCAPE_H

#include "client/link/environ.h"
#include "client/debug/site.h"
#include "client/extra/stack.h"

/* A frame got the object [at, end) of its stack. */
void escape_note_frame(struct stack *k, size_t at, size_t end);

/* The frames from `frame` on are popped. */
void escape_check_pop(struct stack *k, size_t frame);

/* The heap gave an object; all its bytes become 0, as what an earlier one left there would be found
 * too. */
void escape_note_heap(struct arena *a, void *object);

void escape_fini(struct arena *a);

#endif
