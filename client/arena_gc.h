/* arena: the collector, and what a process declares to it.
 *
 * It frees what is published, unreachable and unpinned: objects that a process published and lost, such as what a
 * receiver had taken off a queue when it died. Nothing collects by itself: somebody asks, by arena_gc or `arenactl
 * gc`.
 *
 * Reachable is what named roots, OWNED objects (also of open transactions) and pins lead to, through scan objects. In
 * a scan object each 8-byte word at a multiple of 8 counts if it is
 *  - a reference (arena_ref_t), or
 *  - where the heap is at its common address, a pointer;
 * into the middle of an object too, but not one behind its end. noscan objects are not read, nor is private memory.
 * So a collection is refused (-EBUSY) unless every client has declared what becomes of the references that it holds
 * outside the heap. A client has declared nothing when it attaches, a reader too.
 */
#ifndef ARENA_GC_H
#define ARENA_GC_H

#include "arena.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    ARENA_RUNS = 0,      /* nothing: while this client runs there is no collection */
    ARENA_SAFEPOINT = 1, /* from here on this process uses only objects that it owns or has pinned, and changes none */
    ARENA_PINS = 2       /* it runs on, and what it holds is pinned, as below; readers cannot: -EACCES */
};

/* Declares it, for the whole process. A round trip. Leaving a safepoint waits for the end of a collection that runs, as
 * does arena_open (also a forked child's first call).
 *   -EINVAL       no such mode
 *   -EACCES       a reader cannot pin
 *   -ENOTCONN     nobody has answered: nothing is declared, now or later. Who leaves a safepoint is still there, also
 *                 if the collection takes longer than timeout_ms
 *   -EINPROGRESS  in doubt: keep the rules of both until a call of it has returned neither of the two
 *   -ENOMEM, -EDQUOT, -ESTALE  as of an allocation
 *
 * Threads: the others of a process at a safepoint may go on with what is theirs alone: allocate, free it, have a
 * transaction open, whose objects are roots, push frames. They use nothing that is published, nor move references to
 * it. They publish and commit nothing before the safepoint is left.
 * fork: what a child inherits as pointers is its parent's. The collector does not see them in the child, which must
 * find them anew from a root.
 * A reader that was at a safepoint when its connection broke counts as running until one of its calls has found the
 * daemon again. */
int arena_safepoint(arena_t *a, int mode);

/* A collection leaves a pinned object, and all that it leads to, until it was unpinned as often as it was pinned, or
 * this process ends. A pin keeps nobody from freeing the object. p: into any object that is not free.
 *
 * The rules for a process that declared ARENA_PINS:
 *  1. It pins what it finds, in the heap or by a root, before it reads, frees or claims it or stores the reference
 *     anywhere. Then it looks again whether the object is still to be found there, as with hazard pointers, unless a
 *     lock keeps it there.
 *  2. It pins what it publishes before it does, until something reachable leads to it. A transaction's root does at
 *  once. 3. It moves references from one place in the heap to another only of pinned objects. arena_realloc,
 *  arena_buf_* and
 *     arena_vec_* see to that by themselves.
 *  4. Own, unpublished objects need none of that.
 *
 * Born pinned, once, before anybody can see it, is what comes into being SHARED in such a process: by ARENA_SHARED,
 * by arena_escape with it, by arena_realloc of a published object that had no pin. Who got it unpins it.
 *
 * A pin goes with its object:
 *  - A free or an abort by this process takes the object's pins away. The thread that has freed it may still unpin it
 *    at once, which does nothing.
 *  - arena_realloc takes them along.
 *  - What another process frees leaves them here. arena_unpin finds them by the address, whatever is there by then.
 *
 * Cost: a lock of this process's and a few dozen ns; for every 1023rd pin an object of 8 KiB. While a process pins
 * anything its frees, claims and publications take a slow path. arena_gc(3) has an example. ARENA_DEBUG=pins names
 * what was not pinned.
 *   -EINVAL   not an object, free, or (unpin) not pinned
 *   -EACCES   a reader
 *   -ENOMEM, -EDQUOT, -ENOTCONN, -ESTALE  as of an allocation */
int arena_pin(arena_t *a, const void *p);
int arena_unpin(arena_t *a, const void *p);

enum {
    ARENA_GC_DRY_RUN = 1,  /* frees nothing, counts what would be freed */
    ARENA_GC_SAFEPOINT = 2 /* this process is at a safepoint while the call lasts, if it has declared nothing */
};
struct arena_gc_stats {
    size_t size;              /* of this structure, set by the caller; fields beyond it are not written */
    uint64_t objects, bytes;  /* freed, or to be freed; as their size classes have them */
    uint64_t objects_kept, bytes_kept;       /* published and reached */
    uint64_t objects_scanned, bytes_scanned; /* read, owned ones too */
    uint64_t mark_ns, total_ns;
    uint64_t workers;         /* threads of the daemon that marked */
    uint64_t blockers;        /* -EBUSY: how many clients have declared nothing, or stand still in a commit's end */
    uint64_t blocker_pid;     /* -EBUSY: one of them */
    char blocker_command[16];
};

/* Asks for a collection and waits for its end; another one that runs ends first. Clients that pin run on meanwhile. By
 * a connection of its own: other threads' calls go on, but for those with ARENA_GC_SAFEPOINT: these follow one another.
 * stats may be NULL. About a second a GiB of small objects.
 *   -EBUSY     a client has declared nothing, or stands still in the middle of a commit's end: see stats. Also this
 *              process, without ARENA_GC_SAFEPOINT, once another of its threads has left the safepoint it had counted on
 *   -EAGAIN    it was given up: the daemon is being stopped, or a client pinned without end
 *   -EINVAL    flags
 *   -EACCES    a reader
 *   -ENOTCONN  no daemon, or it died, or said nothing for timeout_ms (counted anew when a collection begins). None is
 *              begun for this call any more; one that runs goes on. What was freed is free, what was not stays: ask
 *              again
 *   -ENOMEM    there or here
 *   -ESTALE    another heap is there: that one is not collected
 * die: harmless at any instruction, on both sides. */
int arena_gc(arena_t *a, unsigned flags, struct arena_gc_stats *stats);

#ifdef __cplusplus
}
#endif
#endif
