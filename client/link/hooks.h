/* Hooks: what a lower layer calls in a higher one. Each is on a slow path only.
 * Memory: the library's own. sync: written once, by life/open.c before main(), and constant from then on: also in a forked
 * child, and for every thread. */
#ifndef CLIENT_HOOKS_H
#define CLIENT_HOOKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;
struct mcache;
struct object;
struct stack;
struct thread;

struct hooks {
    /* of link/fork.c: the first thread of a forked child makes new what all heaps share. `forking`: it is the one that forked */
    void (*begin_anew)(bool forking);
    void (*forked)(void); /* in the child, by the thread that forked, once that is done */
    /* of link/conn.c: the daemon serves another heap, and no fast path may serve this one any more. With conn.lock held */
    void (*stale)(struct arena *a);
    /* of link/attach.c: a forked child has become a client of its own. `same`: of its parent's heap; else of none. 0 or a
     * negative errno, with which the child is no client */
    int (*attached)(struct arena *a, bool same);
    /* of alloc/thread.c: a thread - this one, or one that is gone - has ended, and leaves what it has of the heap beside its
     * mcache. mc NULL: it has none */
    void (*thread_exit)(struct arena *a, struct thread *t, struct mcache *mc);
    void (*thread_forget)(uint32_t index); /* a heap was closed while this thread was ending, and it may have an entry there */
    /* of alloc/trim.c: arena_trim gives back what this thread has beside its mcache */
    void (*trim)(struct arena *a);
    /* of all slow paths: something waits for the end of a collection, or of its snapshot (arena.late) */
    void (*late)(struct arena *a);
    /* of alloc/alloc.c: ARENA_SHARED in a process that pins; an object was allocated while allocations are watched */
    void *(*alloc_pinned)(struct arena *a, struct mcache *mc, size_t size, unsigned flags);
    void (*watch_alloc)(struct mcache *mc, void *object, size_t size);
    /* of own/: an object that begins at `ref` is freed, and this process has pins; ARENA_DEBUG=pins: the program uses an object; a
     * sampled object is freed, or published */
    void (*unpin)(struct arena *a, uint64_t ref);
    void (*used)(struct arena *a, const void *p, const struct object *o, const char *call);
    void (*sample_freed)(struct arena *a, const void *p);
    void (*sample_published)(struct arena *a, const void *p);
    /* of extra/stack.c, ARENA_DEBUG=escape: a frame got the object [at, end); the frames from `frame` on are popped */
    void (*frame_object)(struct stack *k, size_t at, size_t end);
    void (*frame_pop)(struct stack *k, size_t frame);
};

extern struct hooks hooks;

#endif
