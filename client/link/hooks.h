/* Hooks: what a lower layer calls in a higher one. Each is on a slow path only.
 * Memory: the library's own. sync: written once, by life/open.c before main(), and constant from then on: also in a forked
 * child, and for every thread. */
#ifndef CLIENT_HOOKS_H
#define CLIENT_HOOKS_H

#include <stdbool.h>

struct arena;

struct hooks {
    /* of link/fork.c: the first thread of a forked child makes new what all heaps share. `forking`: it is the one that forked */
    void (*begin_anew)(bool forking);
    void (*forked)(void); /* in the child, by the thread that forked, once that is done */
    /* of link/conn.c: the daemon serves another heap, and no fast path may serve this one any more. With conn.lock held */
    void (*stale)(struct arena *a);
    /* of link/attach.c: a forked child has become a client of its own. `same`: of its parent's heap; else of none. 0 or a
     * negative errno, with which the child is no client */
    int (*attached)(struct arena *a, bool same);
};

extern struct hooks hooks;

#endif
