/* arena: a heap in shared memory for many processes.
 *
 * A daemon, arenad(8), owns the heap. Any number of processes map it with this library. Each allocates and frees from
 * caches of its own, at the speed of a private malloc. Objects pass between processes without a copy.
 *
 * Ownership
 *
 * An object has one owner at every instant:
 *   OWNED             by the process that allocated or claimed it. Only it may free it; when it ends the object is free
 *   in a transaction  as OWNED, until the commit makes all of the transaction SHARED at once
 *   SHARED            by nobody. It outlives every process. Any process may free or claim it, and the collector frees it
 *                     if nothing leads to it
 *
 *               arena_alloc           arena_publish, arena_tx_commit
 *       (free) -------------> OWNED ------------------------------------> SHARED
 *         ^                    |  ^                                        |  |
 *         |  arena_free, or    |  |              arena_claim               |  |
 *         +-- its process ends-+  +----------------------------------------+  |
 *         |                         arena_free by any process, a collection   |
 *         +-------------------------------------------------------------------+
 *
 * A process may die at any instruction. What it had cached, and what it OWNED, is free again; what it had published
 * stays, whole.
 *
 *     arena_t *a;
 *     if (arena_open(&a, NULL, NULL) == 0) {
 *         char *text = arena_alloc(a, 100);          // OWNED: dies with this process
 *         arena_publish(a, text);                    // SHARED: outlives it; anyone may free it
 *         arena_root_set(a, "greeting", arena_ref(a, text));
 *     }
 *
 * Conventions
 *
 * Sizes are bytes. A function that returns int returns 0 or a negative errno; a predicate returns 1 or 0. A function
 * that returns a pointer returns NULL and sets errno. EINTR is never returned. Beside this header stand
 *   arena_buf.h, arena_vec.h   buffers and vectors that grow
 *   arena_stack.h              a stack for short-lived objects of one thread
 *   arena_gc.h                 the collector and its pins
 *   arena_inline.h             arena_alloc and arena_free compiled into their callers
 * The first four are included at the end of this one, unless ARENA_CORE is defined before it.
 *
 * Errors
 *
 * Every call that may allocate or ask the daemon can fail with
 *   ENOMEM    the heap is full, or the machine; never a SIGBUS later
 *   EDQUOT    a limit of the daemon's: arena_reason() names it
 *   ENOTCONN  the daemon was away for timeout_ms. What the call asked for was not done and will not be. Caches go on,
 *             and the next slow path tries again
 *   ESTALE    the daemon serves another heap now, and this one is of the past. It is for ever
 *   EINVAL    an argument
 *   EACCES    this process is a reader
 *   EAGAIN    more threads at once than the process has addresses for caches: 32 MiB of addresses each, at most 8192
 *             threads
 *
 * What calls do in a reader, once the heap is stale, and in a forked child (FK: as a client of its own):
 *   call                              reader          stale heap      forked child
 *   arena_ref, _ptr, _same_address,   works           works           works
 *     _usable_size
 *   arena_root_get, _wait, _stats     works           -ESTALE         FK
 *   arena_root_set, _cas              -EACCES         -ESTALE         FK
 *   arena_alloc and its kin           EACCES          ESTALE          FK
 *   arena_realloc                     EACCES          ESTALE          FK; of its parent's OWNED: error handler
 *   arena_free                        error handler   nothing         FK; of its parent's OWNED: error handler
 *   arena_publish, _claim             -EACCES         -ESTALE         FK; of its parent's OWNED: -EBUSY
 *   arena_tx_begin, _commit, _abort   -EACCES         -ESTALE         FK; none is open
 *   buffers, vectors                  -EACCES         within their    only read: they are the parent's
 *                                                     room; ESTALE
 *   frames                            EACCES          as buffers      FK; its stack is empty
 *   arena_pin, _unpin                 -EACCES         -ESTALE         FK; nothing is pinned
 *   arena_safepoint                   ARENA_PINS:     -ESTALE         FK; nothing is declared
 *                                     -EACCES
 *   arena_gc                          -EACCES         -ESTALE         FK
 *   arena_trim                        0               -ESTALE         FK
 *   arena_close                       works           0, no more      works, and makes it no client
 *
 * Cost
 *
 * "Fast" is no lock, no system call and no atomic read-modify-write. A "slow path" takes a lock of this process's and
 * moves a batch of objects. One slow path in many makes a round trip to the daemon: 10-70 us.
 *
 * Threads
 *
 * Every function may be called by any thread, arena_close with its condition. None may be called from a signal handler.
 *  - Each thread has caches of its own. They are given back when it ends.
 *  - Destructors of thread-specific data may call every function, in every round. What a thread takes in the last
 *    round is given back by the next thread that comes, by arena_trim or by arena_close.
 *  - No call is a cancellation point, also not one that waits: a pthread_cancel acts after the call. (Not with
 *    PTHREAD_CANCEL_ASYNCHRONOUS.)
 *  - A thread that ends, also by being cancelled, aborts its transaction.
 *  - Heaps do not wait for one another's daemons.
 *
 * fork
 *
 * The child has the mapping. It becomes a client of its own at its first call, and stays none if it only calls
 * arena_close, execs or ends.
 *  - What the parent owned stays the parent's: the child can read it and cannot free it, buffers and vectors too.
 *  - The child's stack is empty. It has no pins and no open transaction, and has declared nothing to the collector.
 *  - It uses no lock, cache or connection of its parent's, whatever the parent's other threads were in the middle of.
 *  - Handlers of pthread_atfork may call every function, in any order with ours.
 *  - _Fork and clone are forks too, in a child that may call malloc. Before Linux 4.14 only fork is noticed.
 *  - After vfork: nothing but exec.
 *
 * exec
 *
 * The new program has nothing. What the old one owned is free when the new one attaches, or when the process ends.
 *
 * Descriptors
 *
 * A heap has one, the connection's. It is close-on-exec, high, and looked at before each use: if the program has
 * closed it, the connection is lost and made anew, and whatever else has its number by then is not touched. An attach
 * (arena_open, a forked child's first call) has three more while it runs, arena_gc one, arena_profile_write a file.
 * The look and the use are two steps. So who closes descriptors that are not its own, as closefrom(3) does, does so
 * while no other thread is inside a call: at the start, or in a forked child before exec. Else one packet may be sent
 * to, or read from, what has got the number between the two.
 * The library is not unloaded by dlclose.
 *
 * Environment
 *
 * Read by the first arena_open of a heap. An empty variable counts as unset. In a program that runs with more rights
 * than its caller (setuid, setgid, capabilities of its file) each counts as unset.
 *   ARENA_SOCKET        the daemon's socket, where arena_open is given none
 *   XDG_RUNTIME_DIR     of a directory: see arena_open and arena_profile_write
 *   ARENA_DEBUG         words with commas between them:
 *                         stack   a stack moves at every arena_frame_alloc (arena_stack.h)
 *                         escape  pointers into popped frames are reported (arena_stack.h)
 *                         pins    uses of unpinned objects are reported (arena_gc.h)
 *                         core    the heap stands in core dumps: `arenactl inspect --core` and gdb read it there
 *   ARENA_STACK_MAX     bytes, as 64K or 1G: the most that a stack grows to (arena_stack.h)
 *   ARENA_PROFILE       one allocation in so many is sampled (arena_profile_write); on: 65536, off
 *   ARENA_PROFILE_DIR   where arena-PID.prof is written
 * A variable that cannot be used is named on one line of standard error, with what it may say, and counts as unset;
 * the heap is opened. Of ARENA_DEBUG the known words are obeyed. An ARENA_SOCKET that is too long is named too, and is
 * -ENAMETOOLONG. The line comes once, as long as the same is to be said; arena_reason() says it each time.
 *
 * Core dumps and locked memory
 *
 * A process's core dump has nothing of the heap: a dump reads every page, also those that have no memory behind them,
 * and reading gives them some, outside every limit. ARENA_DEBUG=core leaves the heap in, and sets
 * the bits of mapped files in /proc/self/coredump_filter, without which the map would not be there. For the same reason lock
 * memory with mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), never without MCL_ONFAULT, and read no page of the
 * heap that no object is in. The daemon takes such memory back, and names in its log whom it suspects.
 *
 * What nothing can know
 *
 *  - A receiver takes a published object off a queue and dies before it claims it. The object stays SHARED; only the
 *    collector finds it.
 *  - A free after the object was allocated again is not caught, nor are racing frees by threads of one process of an
 *    object that it still owns.
 *  - Processes that share a heap can write one another's data.
 */
#ifndef ARENA_H
#define ARENA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Of this header. A program may run with another library of the same major version: arena_version() tells. */
#define ARENA_VERSION_MAJOR 1
#define ARENA_VERSION_MINOR 0
#define ARENA_VERSION_PATCH 0
#define ARENA_VERSION (ARENA_VERSION_MAJOR * 10000 + ARENA_VERSION_MINOR * 100 + ARENA_VERSION_PATCH)
int arena_version(void); /* the library's ARENA_VERSION */

typedef struct arena arena_t;   /* a mapped heap, of this process */
typedef uint64_t arena_ref_t;   /* offset of an object in the heap; 0 is null; the same in every process */

/* ---- a heap --------------------------------------------------------------------------------------------------- */

enum { ARENA_READ_ONLY = 1 }; /* arena_options.flags: no writable mapping of anything; reads and roots only */

struct arena_options {
    size_t size;     /* of this structure: set by ARENA_OPTIONS_INIT, so that it can grow */
    unsigned flags;  /* ARENA_READ_ONLY */
    int timeout_ms;  /* longest wait for a daemon that is gone; 0: 30000, -1: for ever. While this process was stopped
                        it has not waited */
};
#define ARENA_OPTIONS_INIT { sizeof(struct arena_options), 0, 0 }

/* Attaches to the daemon at `socket`. NULL is the first of these that there is: $ARENA_SOCKET,
 * $XDG_RUNTIME_DIR/arenad/default.sock, /run/arenad/default.sock. options NULL: the defaults. 0.1 to 0.6 ms.
 *
 * A second open of one heap in one process shares the mapping, counted; a reader's and a writer's are two. A relative
 * path is that of the directory at this call, also after a chdir.
 *   -ENOENT           no daemon there
 *   -ECONNREFUSED     no daemon there
 *   -ENOTCONN         a daemon that says nothing for timeout_ms
 *   -ENAMETOOLONG     a socket's path has at most 107 bytes
 *   -EACCES           this user is not allowed
 *   -EDQUOT           too many clients
 *   -EPROTONOSUPPORT  the daemon is of another version
 *   -EUCLEAN          the daemon found a heap that cannot be trusted, keeps it and does not serve it
 *   -EINVAL           bad options
 *   -ENOMEM           here or there
 *   -EMFILE           no descriptor, here or there; or 16 heaps are open in this process
 * arena_reason() has the daemon's words. */
int arena_open(arena_t **out, const char *socket, const struct arena_options *options);

/* The last close says goodbye: what this process owns is freed. No other thread may be inside a call with `a`.
 *   -EBUSY    in an error handler, where the call that has called it goes on with the heap (arena_on_error) */
int arena_close(arena_t *a);

/* ---- objects -------------------------------------------------------------------------------------------------- */

/* flags of arena_alloc_flags */
enum {
    ARENA_NOSCAN = 1, /* holds no references: the collector does not read it. Alignment: 4 bytes for sizes 1-4 and 9-12,
                         8 bytes for 5-8, 16 bytes from 13 on */
    ARENA_ZERO = 2,   /* all bytes are 0 */
    ARENA_SHARED = 4, /* published from the start; also in a transaction, whose end changes nothing of it. In a process
                         that declared ARENA_PINS it is born pinned: see arena_pin */
};

/* A scan object (it may hold references), OWNED by this process. Aligned to 16 bytes from 16 bytes on, below to 8.
 * size 0 is a unique object. Up to 32 KiB fast; above, a slow path with a cache of freed ones. */
void *arena_alloc(arena_t *a, size_t size);
void *arena_alloc_flags(arena_t *a, size_t size, unsigned flags); /* EINVAL: unknown flags */
void *arena_calloc(arena_t *a, size_t count, size_t size);        /* ENOMEM also when count * size overflows */

/* NULL p: alloc; size 0: free, NULL. On failure NULL, and p is as it was. A smaller size never fails for want of
 * memory.
 *  - It keeps scan or noscan, and whose the object is: OWNED, SHARED, or of the transaction that it is of. Its pins
 *    move along.
 *  - It is in place where the size class, or the pages behind a large object, allow it. To a smaller size it is in
 *    place also where that wastes at most half of the object, or 256 bytes.
 *   EINVAL    not an object, or not this process's to free: the error handler was told
 *   EBUSY     it is of another thread's transaction, which is being committed */
void *arena_realloc(arena_t *a, void *p, size_t size);

/* alignment of the pointer, in this process: any power of two up to 2 MiB, else EINVAL. Where the common address is
 * taken the heap is mapped at one of the same alignment.
 *   ENOMEM    also: there was no such address, and this alignment is not to be had */
void *arena_aligned_alloc(arena_t *a, size_t alignment, size_t size);

/* Frees an own object, or a published one of any process. A bad pointer goes to the error handler and nothing is done.
 * Fast for own objects; one compare-and-swap more for published ones. NULL does nothing. */
void arena_free(arena_t *a, void *p);

/* All of it may be used; 0: not an object. Of a freed one it is what it was, until its place is used anew: it cannot
 * tell whether p is still allocated. */
size_t arena_usable_size(arena_t *a, const void *p);

size_t arena_alloc_batch(arena_t *a, size_t size, void **out, size_t count); /* how many it got; errno if fewer */
void arena_free_batch(arena_t *a, void **objects, size_t count);

/* Gives back all that this process caches: this thread's magazines and the process's leases now, other threads'
 * magazines at their next allocation. What was given back may go to the system at once. It waits for nobody: what the
 * daemon takes no message of now, because it stands still, the next call tells it. One message for each 1024 spans.
 *
 * What a process keeps without using it, of a heap of H bytes with k clients (4 where there are fewer):
 *   below 1 GiB      H/4k in all: a quarter each in its threads' magazines, in free small objects, in full memory
 *                    in which others may free, and in freed large objects. One that only frees large objects keeps none
 *   from 1 GiB on    magazines: 3 MiB a thread, at most H/2k in all
 *                    free small objects: 3 MiB; 12 MiB while it holds less than 64 MiB
 *                    full memory, and freed large objects: 32 MiB each
 *                    these three together up to H/k, at most 256 MiB, while it keeps asking for what it gave back
 * When memory is short all of it is asked back. A thread gives back at its next allocation that its magazines do not
 * serve, and at its next free of a large object; who sleeps keeps what it has. Before an allocation fails its own
 * process's threads were asked, and all clients (ENOMEM) or those of its user (EDQUOT), so it waits up to a fifth of a
 * second, and trim-timeout. */
int arena_trim(arena_t *a);

/* ---- ownership ------------------------------------------------------------------------------------------------ */

/* OWNED -> SHARED: it outlives this process, and anyone may free it. Fast. SHARED already: 0.
 *   -EINVAL   not an object, or freed
 *   -EBUSY    another process's
 *   -EACCES   a reader */
int arena_publish(arena_t *a, void *p);

/* SHARED -> OWNED: reclaimed if this process dies. Of two racing claims one wins, the other gets -EBUSY.
 *   -EBUSY    owned already
 *   -EINVAL   not an object, or freed
 *   -EACCES   a reader */
int arena_claim(arena_t *a, void *p);

/* ---- references ------------------------------------------------------------------------------------------------ */

arena_ref_t arena_ref(const arena_t *a, const void *p); /* NULL: 0; not in the heap: 0 and EINVAL; interior is fine */
void *arena_ptr(const arena_t *a, arena_ref_t ref);     /* 0 or out of range: NULL */
int arena_same_address(const arena_t *a);               /* 1: raw pointers are valid in every process */

/* ---- roots: names of 1..63 bytes without control characters ---------------------------------------------------- */

/* A move takes effect once also when the daemon dies meanwhile, and its answer is true.
 *   -EINVAL       a bad name, or an object that is freed or not published
 *   -EACCES       a reader; it may get and wait
 *   -EDQUOT       too many roots of this user
 *   -ENOSPC       the table is full
 *   -ENOTCONN     nobody has answered in timeout_ms: it was not done and will not be, whatever the daemon does later
 *   -EINPROGRESS  in doubt: the daemon has begun with this very move and stands still, or died. As soon as another
 *                 call that needs the daemon has returned neither of the two, it is settled, and the root tells */
int arena_root_set(arena_t *a, const char *name, arena_ref_t ref);   /* a round trip; 0 removes it (-ENOENT) */
int arena_root_get(arena_t *a, const char *name, arena_ref_t *ref);  /* no round trip; -ENOENT */
int arena_root_cas(arena_t *a, const char *name, arena_ref_t expected, arena_ref_t desired); /* 0: create; -EAGAIN */

/* Waits until the root is other than `old` (0: until it exists), at once if it is; -1 for ever, 0 polls. A removed root
 * is 0. The wait is on the map, without a round trip. Once a second it looks whether the connection is there.
 *   -ETIMEDOUT    it is `old` still
 *   -ENOTCONN     no daemon came for timeout_ms */
int arena_root_wait(arena_t *a, const char *name, arena_ref_t old, int timeout_ms, arena_ref_t *ref);

/* ---- transactions: this thread's ------------------------------------------------------------------------------- */

/* What this thread allocates from here on belongs to the transaction, until commit or abort: if the process dies
 * before, all of it is freed. A round trip now and then, for tags.
 *   -EALREADY  this thread has one
 *   -EDQUOT    no tag for a transaction
 *   -ENOMEM    no private memory
 *   -ENOTCONN, -ESTALE and the rest: as of an allocation
 *
 * An object of it may be freed, moved or published by itself before the end, by any thread of the process: then
 * commit and abort have nothing to do with it. Not of it are
 *  - what is ARENA_SHARED from the start, and what is claimed;
 *  - what buffers, vectors and the stack hold (detach gives the object to the transaction);
 *  - what a realloc makes of an object that is not of it.
 * What is freed or claimed inside is not undone by an abort. It keeps a note of 16 bytes, in private memory, of each
 * object that lives; ENOMEM of an allocation: there is none for it. */
int arena_tx_begin(arena_t *a);

/* Publishes all of it as one, and with it moves the root (NULL: none). One round trip. 0, and else it is still open,
 * but after -EALREADY:
 *   -EAGAIN       the root was not `expected`
 *   -EINVAL       no transaction, a bad name, or `desired` is neither published nor of this transaction
 *   -EDQUOT       too many roots of this user
 *   -ENOSPC       the table is full
 *   -ENOTCONN     nobody has answered: it was not done and will not be. After -EINPROGRESS: nobody can say yet of the
 *                 one before
 *   -EINPROGRESS  in doubt: the daemon has begun with it and stands still, or died. A commit or an abort later tells.
 *                 A commit with the same arguments is 0 if either of the two was done
 *   -EALREADY     a commit before, with other arguments, was in doubt and was done; this one was not. It is over
 * After -EINPROGRESS, until a commit or an abort was called, what is new would be published at once. So an allocation
 * of this thread asks too: errno ENOTCONN where nobody can say yet, EALREADY where the commit was done. */
int arena_tx_commit(arena_t *a, const char *root, arena_ref_t expected, arena_ref_t desired);

/* Frees all of it. After a commit that said -EINPROGRESS it asks first (a round trip).
 *   -EINVAL    no transaction
 *   -EALREADY  that commit was done, and all is published: it is over
 *   -ENOTCONN  nobody can say yet: still open
 *   -ESTALE    it is over, with its heap */
int arena_tx_abort(arena_t *a);

/* ---- errors ---------------------------------------------------------------------------------------------------- */

/* Called for a bad free or realloc, with a message that names the function that was called. error is
 *   EINVAL    not an object of this heap, or inside one
 *   EALREADY  free already
 *   EPERM     another process's, not published
 *   EACCES    this process is a reader
 *   EFAULT    with ARENA_DEBUG=escape, see arena_stack.h; the call goes on after it
 *   ENOLCK    with ARENA_DEBUG=pins, see arena_gc.h; the call goes on after it
 *   ENOTCONN, EDQUOT and what else arena_open may say: this is a forked child that could not become a client, and what
 *             it frees stays as it is
 * The default prints the message, one line, and aborts, but for ENOLCK and in such a child. With a handler that returns, the call has
 * done nothing and the heap is whole; arena_free_batch goes on with the next object. A handler may call every
 * function, arena_close too, but where the call goes on. fn NULL: the default again. While other threads may make
 * such an error: from the default to a handler or back, not from one context to another. */
typedef void arena_error_fn(void *context, int error, const void *p, const char *message);
int arena_on_error(arena_t *a, arena_error_fn *fn, void *context);

/* Why this thread's last refused call was refused: one line, cut off at 239 bytes. It is the daemon's, such as which
 * limit an EDQUOT is of and how much is used, which versions an EPROTONOSUPPORT is between, why a name was not taken; or
 * the library's own, where it refuses by itself:
 *  - flags, modes and names that are none;
 *  - no memory or no addresses of this process's;
 *  - what p is, where it is no object, not published, or another process's;
 *  - a lost connection that is not to be made anew because this user may not open the socket any more (ENOTCONN).
 * After an arena_open that succeeded: what could not be used of the environment, if anything. "" if no call of this
 * thread was ever refused. A later success leaves it as it is, so look at it only after an error. In a forked child:
 * what the parent's thread had. This thread's memory, valid until its next refused call. No cost; never fails. */
const char *arena_reason(void);

/* ---- figures ---------------------------------------------------------------------------------------------------- */

/* The heap's figures, the names of `arenactl stat --json`. Bytes unless the name says otherwise. */
struct arena_stats {
    size_t size;                /* of this structure, set by the caller; fields beyond it are not written */
    uint64_t heap_id;           /* first 64 bits of the heap's id */
    uint64_t heap_max;          /* what the heap may grow to */
    uint64_t heap_backed;       /* of the heap, with memory behind it */
    uint64_t heap_in_use;       /* in spans */
    uint64_t objects_used;      /* allocated objects: owned + shared */
    uint64_t objects_owned;     /* allocated, not published */
    uint64_t objects_shared;    /* published */
    uint64_t objects_cached;    /* free, in clients' magazines */
    uint64_t bytes_used;        /* of allocated objects, as their size classes have them */
    uint64_t bytes_cached;      /* of cached objects */
    uint64_t bytes_leased;      /* of spans leased to clients */
    uint64_t spans;             /* number of spans */
    uint64_t spans_leased;      /* number of those leased to clients */
    uint64_t clients;           /* attached clients */
    uint64_t transactions;      /* tags of transactions in use or kept by clients */
    uint64_t roots;             /* named roots */
    uint64_t refills;           /* leases granted since the heap was made */
    uint64_t round_trips;       /* requests answered since the heap was made */
    uint64_t reclaimed_clients; /* clients that died or said goodbye */
    uint64_t reclaimed_objects; /* objects that were freed after them */
    uint64_t pages_free;        /* pages of 8 KiB in no span */
    uint64_t pages_warm;        /* of these, with memory behind them */
    uint64_t pages_returned;    /* pages given back to the system since the heap was made */
    uint64_t map_backed;        /* of the map region */
    uint64_t state_backed;      /* of the state region */
    uint64_t words_in_use;      /* bytes of state words */
    uint64_t epoch;             /* how often a daemon was started over this heap */
};

int arena_stats(arena_t *a, struct arena_stats *out); /* the daemon counts the whole heap: O(objects), not for loops */

/* ARENA_PROFILE=RATE in the environment, read by arena_open, samples one allocation in RATE (on: 65536; 1: all; off:
 * none), with its call site and what becomes of it: freed before its caller returned, by its thread, by another,
 * published, taken by another client. `arenactl escape FILE` tells, by site, what need not be on the shared heap. The
 * file is written at arena_close and exit: arena-PID.prof in $ARENA_PROFILE_DIR as of arena_open, else
 * $XDG_RUNTIME_DIR, else /tmp; and by this call (path NULL: there). From a rate of 16384 on a thread of the library's
 * lets the others sample for one part in 64 of the time. -ENOENT: nothing is sampled; else what open and rename say. */
int arena_profile_write(arena_t *a, const char *path);

#ifdef __cplusplus
}
#endif

#ifndef ARENA_CORE
#include "arena_buf.h"
#include "arena_gc.h"
#include "arena_stack.h"
#include "arena_vec.h"
#endif
#endif
