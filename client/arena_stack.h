/* arena: a stack in the heap, for short-lived objects of one thread.
 *
 *     arena_stack_t *s = arena_stack(a);                 // once a thread; it is found again with one load
 *     arena_frame_t f = arena_frame_push(s);
 *     struct point *p = arena_frame_alloc(s, sizeof *p); // aligned to 16
 *     ...
 *     arena_frame_pop(s, f);                             // and all that was allocated since, inner frames too
 *
 * Each thread may have one for each heap. It is contiguous, from 2 KiB on, in one scan object of the heap that is
 * OWNED by this process and dies with it; the collector reads it.
 *  - When it is full it is copied to one of twice the size.
 *  - At a collection it is halved if at most a quarter is used: by this thread's arena_gc, by its arena_safepoint
 *    that enters a safepoint, and by arena_trim and arena_stack_shrink, which count as one.
 *  - So it moves. A pointer into it is good until the next arena_frame_alloc or collection of this thread. A handle
 *    (arena_frame_ref) survives the move, and is what objects in the stack use to name one another.
 *
 * Cost: a frame is a few instructions, no lock, and neither a word nor a call of the allocator.
 * fork: in the child, however it was made, it is empty. Frames of before the fork are gone, popping them does
 * nothing, and the pointer to it is good.
 * ARENA_DEBUG=stack moves it at every arena_frame_alloc and fills the old place with 0xdb, so that a stale pointer is
 * found at once. ARENA_DEBUG=escape (or stack,escape) searches at every pop for what still leads into the popped
 * frames - a pointer, reference or handle in an object of the heap that is this process's or published, in an outer
 * frame, in a root - and reports it with the call sites to the handler of arena_on_error: error EFAULT. Both are
 * slow.
 */
#ifndef ARENA_STACK_H
#define ARENA_STACK_H

#include "arena.h"

#ifdef __cplusplus
extern "C" {
#endif

struct arena_stack { /* private memory. sync: its thread, through the functions below */
    char *base;      /* where its bytes are now */
    size_t top;      /* bytes in use */
    size_t limit;    /* an allocation up to here needs no look; the guard area is behind it */
    size_t pop_max;  /* a pop of a frame from there on takes a look: only in a debug mode or a forked child */
    uint64_t handles; /* of offset 0 */
};
typedef struct arena_stack arena_stack_t;
typedef size_t arena_frame_t;    /* where a frame begins */
typedef uint64_t arena_handle_t; /* of an object in a stack; never 0, and no pointer or reference is equal to one */

enum { ARENA_FRAME_SMALL = 128, ARENA_FRAME_GUARD = 4 * ARENA_FRAME_SMALL };

/* This thread's; made at its first call, a few allocations. It ends with the thread, or with the last arena_close. NULL
 * and errno, as of an allocation. */
arena_stack_t *arena_stack(arena_t *a);

/* Of stacks of this heap in this process, from their next growth on; 1 GiB unless $ARENA_STACK_MAX says otherwise.
 * -EINVAL: under 2 KiB or over 512 GiB. */
int arena_stack_set_max(arena_t *a, size_t bytes);

size_t arena_stack_size(const arena_stack_t *s); /* bytes that it has now */

/* Halves it, again and again while at most a quarter is used, but not under 2 KiB: what a collection does. -ENOMEM: it
 * is as it was. */
int arena_stack_shrink(arena_stack_t *s);

void *arena_frame_alloc_slow(arena_stack_t *s, size_t size); /* behind arena_frame_alloc */
void arena_frame_pop_slow(arena_stack_t *s, arena_frame_t frame);

static inline arena_frame_t arena_frame_push(const arena_stack_t *s) { return s->top; }

static inline void arena_frame_pop(arena_stack_t *s, arena_frame_t frame)
{
    if (__builtin_expect(frame >= s->pop_max, 0)) {
        arena_frame_pop_slow(s, frame);
        __asm__ volatile(""); /* not a jump: the caller is to be found on the way back */
    } else
        s->top = frame;
}

/* Not initialised. NULL and errno: ENOMEM the maximum is reached, or as of an allocation; then nothing has moved. */
static inline void *arena_frame_alloc(arena_stack_t *s, size_t size)
{
    size_t top = s->top, end = top + ((size + 15) & ~(size_t)15);
    if (__builtin_expect(size - 1 >= (size_t)1 << 40 || end > s->limit, 0))
        return arena_frame_alloc_slow(s, size);
    s->top = end;
    return s->base + top;
}

/* The same without a look at what room there is, for frames of at most ARENA_FRAME_SMALL bytes in all: they fit into
 * the guard area, which is always there. So it never fails and never moves the stack. At most four such frames may be
 * inside one another without an arena_frame_alloc between them (a function that calls no other, and what it is called
 * by); ARENA_DEBUG=stack aborts at the fifth. size: a constant; a bigger one is compared. */
static inline void *arena_frame_alloc_small(arena_stack_t *s, size_t size)
{
    if (size > ARENA_FRAME_SMALL)
        return arena_frame_alloc(s, size);
    if (__builtin_expect(!s->base, 0)) /* a fork's child: it is empty */
        arena_frame_pop_slow(s, (arena_frame_t)-1);
    size_t top = s->top;
    s->top = top + ((size + 15) & ~(size_t)15);
    return s->base + top;
}

static inline arena_handle_t arena_frame_ref(const arena_stack_t *s, const void *p)
{
    return s->handles + (uint64_t)((const char *)p - s->base);
}

/* NULL: of another thread's stack, or its frame was popped (and nothing pushed over it since). */
static inline void *arena_frame_ptr(const arena_stack_t *s, arena_handle_t handle)
{
    uint64_t at = handle - s->handles;
    return __builtin_expect(at < s->top, 1) ? s->base + at : NULL;
}

/* An object that must outlive its frame: a copy on the heap, OWNED until it is published. flags: as of
 * arena_alloc_flags.
 * NULL and errno: EINVAL not in the stack, or more than there is of it. The handle's: the same by a handle. */
void *arena_escape(arena_stack_t *s, const void *p, size_t size, unsigned flags);
void *arena_escape_handle(arena_stack_t *s, arena_handle_t handle, size_t size, unsigned flags);

#ifdef __cplusplus
}
#endif
#endif
