/* arena: a heap in shared memory for many processes.
 *
 * A daemon, arenad(8), owns the heap; any number of processes map it with this library, allocate and free from caches
 * of their own at the speed of a private malloc, and pass objects to one another. A process may die at any instruction:
 * what it had cached, and what it had allocated but not published, is free again; what it had published stays.
 *
 *     arena_t *a;
 *     if (arena_open(&a, NULL, NULL) == 0) {
 *         char *text = arena_alloc(a, 100);          // OWNED: dies with this process
 *         arena_publish(a, text);                    // SHARED: outlives it; anyone may free it
 *         arena_root_set(a, "greeting", arena_ref(a, text));
 *     }
 *
 * Sizes are bytes. Functions that return int return 0 or a negative errno (predicates 1 or 0); functions that return a
 * pointer return NULL and set errno. Every function may be called by any thread; none from a signal handler (they are
 * not async-signal-safe: a handler between a check and its store would break any order). EINTR is never returned.
 *
 * Errors of an allocation, and of every call that makes one:
 *   ENOMEM    the heap is full, or the machine; never a SIGBUS later
 *   EDQUOT    a limit of the daemon's
 *   ENOTCONN  the daemon was away for timeout_ms; caches go on, the next slow path tries again
 *   ESTALE    the daemon serves another heap now, and this one is of the past
 *   EINVAL    an argument
 *   EACCES    a reader may not
 *   EAGAIN    more threads at once than the process has addresses for caches: 32 MiB of addresses each, at most 8192
 *             threads
 * ESTALE is for ever: once a call has learned of it, every call of every thread that needs the heap says so. arena_free
 * and arena_close do nothing then, and arena_close returns 0. What needs only the mapping goes on: arena_ref,
 * arena_ptr, arena_usable_size, and buffers, vectors and frames within the room that they have.
 *
 * Cost: "fast" is no lock, no system call and no atomic read-modify-write. A "slow path" takes a lock of this process's
 * and moves a batch of objects; one in many of them makes a round trip to the daemon (10-70 us).
 *
 * fork: The child has the mapping. It is a client of its own from its first call on; it is none if it only calls
 * arena_close, execs or ends. What the parent owned stays the parent's: the child can read it and cannot free it. That
 * goes for buffers and vectors too; its stack is empty. The child has no pins, no open transaction, and has declared
 * nothing to the collector. It uses no lock, cache or connection of its parent's, whatever the parent's other threads
 * were in the middle of. Handlers of pthread_atfork may call every function, in any order with ours. _Fork and clone
 * are forks too, in a child that may call malloc. Before Linux 4.14 only fork is noticed. After vfork: nothing but
 * exec.
 *
 * exec: The new program has nothing. What the old one owned is free when the new one attaches, or when the process
 * ends.
 *
 * Threads: Each has caches of its own, given back when it ends. Destructors of thread-specific data may call every
 * function in every round. What a thread takes in the last round is given back by the next thread that comes,
 * arena_trim or arena_close. No call is a cancellation point, also not one that waits: a pthread_cancel that comes
 * meanwhile acts after it. (Not with PTHREAD_CANCEL_ASYNCHRONOUS.) A thread that ends, also by being cancelled, aborts
 * its transaction. Heaps do not wait for one another's daemons.
 *
 * Descriptors: One a heap, the connection's. An attach (arena_open, a forked child's first call) has three more while
 * it runs, arena_gc one, arena_profile_write a file. The connection's is close-on-exec and high, and looked at before
 * it is used. If the program has closed it, the connection is lost and made anew; whatever else has its number by then
 * is not touched. The library is not unloaded by dlclose.
 *
 * What nothing can know: A receiver that takes a published object off a queue and dies before it claims it leaves it
 * SHARED; only the collector finds that. A free after the object was allocated again is not caught, nor are racing
 * frees by threads of one process of an object that it still owns. Processes that share a heap can write one another's
 * data.
 */
#ifndef ARENA_H
#define ARENA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct arena arena_t;   /* a mapped heap, of this process */
typedef uint64_t arena_ref_t;   /* offset of an object in the heap; 0 is null; the same in every process */

/* flags of arena_alloc_flags */
enum {
    ARENA_NOSCAN = 1, /* holds no references: the collector does not read it; up to 12 bytes it costs 4, 8 or 12, and is
                         aligned to 4 only, but for a size of 5 to 8: to 8 */
    ARENA_ZERO = 2,   /* all bytes are 0 */
    ARENA_SHARED = 4, /* published from the start; also in a transaction, whose end changes nothing of it. In a process
                         that declared ARENA_PINS it is born pinned: see arena_pin */
};

enum { ARENA_READ_ONLY = 1 }; /* arena_options.flags: no writable mapping of anything; reads and roots only */

struct arena_options {
    size_t size;     /* of this structure: set by ARENA_OPTIONS_INIT, so that it can grow */
    unsigned flags;  /* ARENA_READ_ONLY */
    int timeout_ms;  /* longest wait for a daemon that is gone; 0: 30000, -1: for ever. While this process was stopped
                        it has not waited */
};
#define ARENA_OPTIONS_INIT { sizeof(struct arena_options), 0, 0 }

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

/* ---- a heap --------------------------------------------------------------------------------------------------- */

/* Attaches to the daemon at `socket`; NULL: $ARENA_SOCKET, else $XDG_RUNTIME_DIR/arenad/default.sock if it exists, else
 * /run/arenad/default.sock. A second open of one heap in one process shares the mapping, counted; a reader's and a
 * writer's are two. 0.1 to 0.6 ms. A relative path is that of the directory at this call, also after a chdir.
 *   -ENOENT, -ECONNREFUSED  no daemon there
 *   -ENOTCONN         a daemon that says nothing for timeout_ms
 *   -ENAMETOOLONG     a socket's path has at most 107 bytes
 *   -EACCES           this user is not allowed
 *   -EDQUOT           too many clients
 *   -EPROTONOSUPPORT  the daemon is of another version
 *   -EUCLEAN          the daemon found a heap that cannot be trusted, keeps it and does not serve it
 *   -EINVAL           bad options
 *   -ENOMEM           here or there
 *   -EMFILE           no descriptor, here or there; or 16 heaps are open in this process
 * arena_reason() has the daemon's words.
 *
 * The environment is read here, by the first open of a heap: ARENA_SOCKET, ARENA_DEBUG, ARENA_STACK_MAX, ARENA_PROFILE,
 * ARENA_PROFILE_DIR, XDG_RUNTIME_DIR. An empty variable counts as unset. In a program that runs with more rights than
 * its caller (setuid, setgid, capabilities of its file) each counts as unset.
 *
 * A variable that cannot be used is named, with what it may say, and counts as unset; the heap is opened. Of
 * ARENA_DEBUG the words that there are are obeyed. An ARENA_SOCKET that is too long is named too, and is -ENAMETOOLONG.
 * There is no error handler yet, so one line on standard error says it, never an abort: once, as long as the same is to
 * be said. arena_reason() says it each time.
 *
 * A process's core dump has nothing of the heap: a dump reads every page, also those that have no memory behind them,
 * and reading gives them some, outside every limit. ARENA_DEBUG=core leaves the heap in (of a small one, on a machine
 * with room). For the same reason lock memory with mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT), never without
 * MCL_ONFAULT, and read no page of the heap that no object is in: the daemon takes such memory back, and names in its
 * log whom it suspects. */
int arena_open(arena_t **out, const char *socket, const struct arena_options *options);

/* The last close says goodbye: what this process owns is freed. No other thread may be inside a call with `a`. -EBUSY:
 * in an error handler, where the call that has called it goes on with the heap (arena_on_error). */
int arena_close(arena_t *a);

/* ---- objects -------------------------------------------------------------------------------------------------- */

/* A scan object (it may hold references), OWNED by this process; aligned to 16 bytes from 16 bytes on, below to 8.
 * size 0 is a unique object. Up to 32 KiB fast; above, a slow path with a cache of freed ones. (arena_inline.h compiles
 * the fast paths of arena_alloc and arena_free into their callers.) */
void *arena_alloc(arena_t *a, size_t size);
void *arena_alloc_flags(arena_t *a, size_t size, unsigned flags); /* EINVAL: unknown flags */
void *arena_calloc(arena_t *a, size_t count, size_t size);        /* ENOMEM also when count * size overflows */

/* NULL p: alloc; size 0: free, NULL. It keeps scan or noscan, and whose the object is: OWNED, SHARED, or of the
 * transaction that it is of. Its pins move along. In place where the size class, or the pages behind a large object,
 * allow it; to a smaller size also where that wastes at most half of the object, or 256 bytes. On failure NULL, and p
 * is as it was. A smaller size never fails for want of memory.
 *   EINVAL  not an object, or not this process's to free: the error handler was told
 *   EBUSY   it is of another thread's transaction, which is being committed */
void *arena_realloc(arena_t *a, void *p, size_t size);

/* alignment of the pointer, in this process: any power of two up to 2 MiB, else EINVAL. Where the common address is
 * taken the heap is mapped at one of the same alignment; ENOMEM: there was none, and this alignment is not to be
 * had. */
void *arena_aligned_alloc(arena_t *a, size_t alignment, size_t size);

/* Frees an own object, or a published one of any process. A bad pointer goes to the error handler and nothing is done.
 * Fast for own objects; one compare-and-swap more for published ones. NULL does nothing. */
void arena_free(arena_t *a, void *p);

size_t arena_usable_size(arena_t *a, const void *p); /* all of it may be used; 0: not an object. Of a
                        freed one, what it was, until its place is used anew: it does not tell whether p may be used */

size_t arena_alloc_batch(arena_t *a, size_t size, void **out, size_t count); /* how many it got; errno if fewer */
void arena_free_batch(arena_t *a, void **objects, size_t count);

/* Gives back all that this process caches: this thread's magazines and the process's leases now, other threads'
 * magazines at their next allocation. What was given back may go to the system at once. Waits for nobody, as arena_free
 * and arena_publish: what the daemon takes no message of now, because it stands still, the next call tells it.
 *
 * What a process keeps without using it, of a heap of H bytes with k clients (4 where there are fewer). Below 1 GiB:
 * H/4k in all, a quarter each of it in its threads' magazines, in free small objects, in full memory in which others
 * may free, and in freed large objects; one that only frees large objects keeps none. From 1 GiB on: 3 MiB a thread, at
 * most H/2k; 3 MiB of free small objects (12 MiB while it holds less than 64 MiB), 32 MiB each of the other two, and of
 * these three H/k, at most 256 MiB, while it keeps asking for what it gave back. When memory is short all of it is
 * asked back, from who works: a thread gives back at its next allocation that its magazines do not serve, and at its
 * next free of a large object. Before an allocation fails with ENOMEM its own process's threads and all clients were
 * asked; who sleeps keeps what it has. So an allocation that fails waits up to a fifth of a second, and trim-timeout.
 * One message to the daemon for each 1024 spans. */
int arena_trim(arena_t *a);

/* ---- growing: buffers and vectors -------------------------------------------------------------------------------
 *
 * Both are small structures of the caller's, in private memory, over one object of the heap that is OWNED by this
 * process: if it dies the object is freed. They belong to one thread at a time. What they hold moves when they grow,
 * except in place: up to the end of the object's size class at no cost, and a large object into free pages behind it
 * for a round trip. They at least double while they are small and copied, and take a quarter more while they grow in
 * place. detach gives the object itself, cut to what is used, which can be published like any other. Until then it is
 * of no transaction, whichever is open while it grows; detach gives it to the one that is open on the thread, as if it
 * were allocated by that call. In a forked child they are the parent's: only read. */

struct arena_buf { /* bytes. sync: its user's; read the first three, write none */
    char *data;      /* NULL: nothing reserved yet. Behind the last byte there is always a 0 */
    size_t length;   /* bytes in use */
    size_t capacity; /* bytes that fit without growth */
    arena_t *arena;
    int error;       /* the first growth that failed, a negative errno; kept until arena_buf_clear */
};
typedef struct arena_buf arena_buf_t;

/* capacity: bytes to reserve now; 0: none. -ENOMEM and the like, then it is empty and may be used all the same. */
int arena_buf_init(arena_buf_t *b, arena_t *a, size_t capacity);
void arena_buf_fini(arena_buf_t *b); /* frees it; then it is as if initialised with 0 */
int arena_buf_reserve(arena_buf_t *b, size_t more); /* room for that many bytes behind the length */
int arena_buf_append(arena_buf_t *b, const void *bytes, size_t count);
int arena_buf_puts(arena_buf_t *b, const char *text); /* without its 0 */
int arena_buf_printf(arena_buf_t *b, const char *format, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
/* `count` bytes at the end, to be written by the caller; NULL and errno. */
void *arena_buf_add(arena_buf_t *b, size_t count);
void arena_buf_truncate(arena_buf_t *b, size_t length); /* longer than it is: nothing */
void arena_buf_clear(arena_buf_t *b);                   /* length 0, no error; keeps its memory */

/* The noscan object with the bytes and a 0 behind them, the caller's from now on; ret_length may be NULL. The buffer is
 * empty again. NULL and errno if a growth had failed (the text would have a hole; the bytes are still there), or for an
 * empty one that cannot get an object. */
char *arena_buf_detach(arena_buf_t *b, size_t *ret_length);

struct arena_vec { /* items of one size. sync: its user's; read the first three, write none */
    void *items;
    size_t count, capacity;
    size_t item_size;
    arena_t *arena;
    unsigned flags;
};
typedef struct arena_vec arena_vec_t;

/* flags: ARENA_NOSCAN if items hold no references; ARENA_ZERO: added items are 0. -EINVAL: other flags, item_size 0. */
int arena_vec_init(arena_vec_t *v, arena_t *a, size_t item_size, size_t capacity, unsigned flags);
void arena_vec_fini(arena_vec_t *v);
int arena_vec_reserve(arena_vec_t *v, size_t more);  /* room for that many items behind the count */
void *arena_vec_add(arena_vec_t *v, size_t count);   /* at the end; the first of them, or NULL and errno */
int arena_vec_push(arena_vec_t *v, const void *item);
int arena_vec_pop(arena_vec_t *v, void *ret_item);   /* -ENOENT: it is empty; ret_item may be NULL */
void arena_vec_truncate(arena_vec_t *v, size_t count);
void *arena_vec_detach(arena_vec_t *v, size_t *ret_count); /* the object; NULL and ENOENT: there is none */

static inline void *arena_vec_at(const arena_vec_t *v, size_t i) /* NULL: beyond the last */
{
    return i < v->count ? (char *)v->items + i * v->item_size : NULL;
}

/* ---- the stack: short-lived objects of one thread ----------------------------------------------------------------
 *
 * Each thread may have one for each heap: contiguous, from 2 KiB on, in one scan object of the heap that is OWNED by
 * this process and dies with it; the collector reads it. When it is full it is copied to one of twice the size. At a
 * collection it is halved if at most a quarter is used: by this thread's arena_gc, by its arena_safepoint that enters a
 * safepoint, and by arena_trim and arena_stack_shrink, which count as one. So it moves: a pointer into it is good until
 * the next arena_frame_alloc or collection of this thread. A handle (arena_frame_ref) survives the
 * move, and is what objects in the stack use to name one another.
 *
 *     arena_stack_t *s = arena_stack(a);                 // once a thread; it is found again with one load
 *     arena_frame_t f = arena_frame_push(s);
 *     struct point *p = arena_frame_alloc(s, sizeof *p); // aligned to 16
 *     ...
 *     arena_frame_pop(s, f);                             // and all that was allocated since, inner frames too
 *
 * A frame costs a few instructions, no lock, and neither a word nor a call of the allocator. In a forked child,
 * however it was made, it is empty: frames of before the fork are gone, popping them does nothing, and the pointer to
 * it is good. ARENA_DEBUG=stack in the environment, read by arena_open, moves it at every arena_frame_alloc and fills
 * the old place with 0xdb, so that a stale pointer is found at once; ARENA_DEBUG=escape (or stack,escape) searches at
 * every pop for what still leads into the popped frames - a pointer, reference or handle in an object of the heap that
 * is this process's or published, in an outer frame, in a root - and reports it with the call sites to the handler of
 * arena_on_error: error EFAULT. Both are slow. */

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

/* ---- ownership ------------------------------------------------------------------------------------------------ */

/* OWNED -> SHARED: it outlives this process, and anyone may free it. Fast. SHARED already: 0.
 * -EINVAL not an object, or freed; -EBUSY another process's; -EACCES a reader. */
int arena_publish(arena_t *a, void *p);

/* SHARED -> OWNED: reclaimed if this process dies. Of two racing claims one wins, the other gets -EBUSY.
 * -EBUSY owned already; -EINVAL not an object, or freed; -EACCES a reader. */
int arena_claim(arena_t *a, void *p);

/* ---- transactions: this thread's ------------------------------------------------------------------------------- */

/* What this thread allocates from here on belongs to the transaction, until commit or abort: if the process dies
 * before, all of it is freed. A round trip now and then, for tags.
 *   -EALREADY  this thread has one
 *   -EDQUOT    no tag for a transaction
 *   -ENOMEM    no private memory
 *   -ENOTCONN, -ESTALE and the rest: as of an allocation
 *
 * An object of it may be freed, moved or published by itself before the end, by any thread of the process: then commit
 * and abort have nothing to do with it. Not of it are
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
 *   -EDQUOT, -ENOSPC  too many roots
 *   -ENOTCONN     nobody has answered: it was not done and will not be. After -EINPROGRESS: nobody can say yet of the
 *                 one before
 *   -EINPROGRESS  in doubt: the daemon has begun with it and stands still, or died. A commit or an abort later tells. A
 *                 commit with the same arguments is 0 if either of the two was done
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

/* ---- references ------------------------------------------------------------------------------------------------ */

arena_ref_t arena_ref(const arena_t *a, const void *p); /* NULL: 0; not in the heap: 0 and EINVAL; interior is fine */
void *arena_ptr(const arena_t *a, arena_ref_t ref);     /* 0 or out of range: NULL */
int arena_same_address(const arena_t *a);               /* 1: raw pointers are valid in every process */

/* ---- roots: names of 1..63 bytes without control characters ---------------------------------------------------- */

/* A move takes effect once also when the daemon dies meanwhile, and its answer is true.
 *   -EINVAL       a bad name, or an object that is freed or not published
 *   -EACCES       a reader; it may get and wait
 *   -EDQUOT, -ENOSPC  too many roots
 *   -ENOTCONN     nobody has answered in timeout_ms: it was not done and will not be, whatever the daemon does later
 *   -EINPROGRESS  in doubt: the daemon has begun with this very move and stands still, or died. As soon as another call
 *                 that needs the daemon has returned neither of the two, it is settled, and the root tells */
int arena_root_set(arena_t *a, const char *name, arena_ref_t ref);   /* a round trip; 0 removes it (-ENOENT) */
int arena_root_get(arena_t *a, const char *name, arena_ref_t *ref);  /* no round trip; -ENOENT */
int arena_root_cas(arena_t *a, const char *name, arena_ref_t expected, arena_ref_t desired); /* 0: create; -EAGAIN */

/* Waits until the root is other than `old` (0: until it exists), at once if it is; -1 for ever, 0 polls. A removed root
 * is 0. -ETIMEDOUT. The wait is on the map; in a long one it is looked once a second whether the connection is there,
 * and
 * -ENOTCONN says that no daemon came for timeout_ms. */
int arena_root_wait(arena_t *a, const char *name, arena_ref_t old, int timeout_ms, arena_ref_t *ref);

/* ---- the collector ------------------------------------------------------------------------------------------------
 *
 * It frees what is published, unreachable and unpinned: objects that a process published and lost, such as what a
 * receiver had taken off a queue when it died. Nothing collects by itself: somebody asks, by arena_gc or `arenactl gc`.
 *
 * Reachable is what named roots, OWNED objects (also of open transactions) and pins lead to, through scan objects: each
 * 8-byte word in them, at a multiple of 8, counts if it is a reference (arena_ref_t) or, where the heap is at its
 * common address, a pointer; into the middle of an object too, but not one behind its end. noscan objects are not read,
 * nor is private memory: so a collection is refused (-EBUSY) unless every client has declared what becomes of the
 * references that it holds outside the heap. A client has declared nothing when it attaches, a reader too. */
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
 * A reader that was at a safepoint when its connection broke counts as running until one of its calls has found the
 * daemon again. What a forked child inherits as pointers is its parent's: the collector does not see them in the child,
 * which must find them anew from a root. */
int arena_safepoint(arena_t *a, int mode);

/* The other threads of a process at a safepoint may go on with what is theirs alone: allocate, free it, have a
 * transaction open, whose objects are roots. They use nothing that is published, publish nothing and commit nothing
 * before it is left. */

/* A collection leaves a pinned object, and all that it leads to, until it was unpinned as often as it was pinned, or
 * this process ends. A pin keeps nobody from freeing it. p: into any object that is not free. The rules for a process
 *  that declared ARENA_PINS:
 *  - what it finds in the heap or by a root it pins before it reads, frees or claims it or stores the reference
 *    anywhere, and then looks again whether it is still to be found there (as with hazard pointers), unless a lock
 *    keeps it there;
 *  - what it publishes it pins before, until something reachable leads to it. A transaction's root does at once;
 *  - references that it moves from one place in the heap to another are to pinned objects. arena_realloc, arena_buf_*
 *    and arena_vec_* see to that by themselves.
 * Own, unpublished objects need none of that. What comes into being SHARED in such a process is born pinned, once,
 * before anybody can see it: by ARENA_SHARED, arena_escape with it, arena_realloc of a published object that had no
 * pin. Who got it unpins it. A pin goes with its object: a free or an abort by this process takes its pins away (the
 * thread that has freed it may still unpin it at once, which does nothing), arena_realloc takes them along. What
 * another process frees leaves them here; arena_unpin finds them by the address, whatever is there by then.
 * A lock of this process's, a few dozen ns, for every 1023rd pin an object of 8 KiB. While a process pins anything its
 * frees, claims and publications take a slow path. arena_gc(3) has an example; ARENA_DEBUG=pins names what was not
 * pinned.
 * -EINVAL not an object, free, or (unpin) not pinned; -EACCES a reader; -ENOMEM and the like. */
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
 * a connection of its own: other threads' calls go on. stats may be NULL. About a second a GiB of small objects.
 *   -EBUSY     a client has declared nothing, or stands still in the middle of a commit's end: see stats
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

/* ---- figures and errors ---------------------------------------------------------------------------------------- */

int arena_stats(arena_t *a, struct arena_stats *out); /* the daemon counts the whole heap: O(objects), not for loops */

/* Called for a bad free or realloc, with a message that names the function that was called. error is
 *   EINVAL    not an object of this heap, or inside one
 *   EALREADY  free already
 *   EPERM     another process's, not published
 *   EACCES    this process is a reader
 *   EFAULT    with ARENA_DEBUG=escape, see arena_stack; the call goes on after it
 *   ENOLCK    with ARENA_DEBUG=pins, see arena_pin; the call goes on after it
 * The default prints the message, one line, and aborts, but for ENOLCK. With a handler that returns, the call has done
 * nothing and the heap is whole; arena_free_batch goes on with the next object. A handler may call every function,
 * arena_close too, but where the call goes on. fn NULL: the default again. While other threads may make such an error:
 * from the default to a handler or back, not from one context to another. */
typedef void arena_error_fn(void *context, int error, const void *p, const char *message);
int arena_on_error(arena_t *a, arena_error_fn *fn, void *context);

/* Why the daemon refused: the line that came with this thread's last refused call, such as which limit an EDQUOT is of
 * and how much is used, which versions an EPROTONOSUPPORT is between, why a name was not taken; or the library's own,
 * where it refuses by itself: flags, modes and names that are none; no memory or no addresses of this process's; what p
 * is, where it is no object, not published, or another process's; a lost connection that is not to be made anew because
 * this user may not open the socket any more (ENOTCONN). It may be cut off at 239 bytes.
 * After an arena_open that succeeded: what could not be used of the environment, if anything.
 * "" if no call of this thread was ever refused; a later success leaves it as it is, so look at it only after
 * an error. This thread's memory, valid until its next refused call. No cost; never fails; not for signal handlers. In
 * a forked child: what the parent's thread had. */
const char *arena_reason(void);

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
#endif
