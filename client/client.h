/* The library inside: what a process keeps of a heap that it has mapped.
 *
 *   alloc  ->  mcache.c   the thread's magazines, in its mcache; no lock
 *              lease.c    the process's leased spans; a lock a span class
 *              conn.c     the connection to the daemon; one lock
 *   and on the same level as lease.c: large.c, a cache of freed large objects
 *   beside them: keep.c    how much of all this is kept, and who is asked for it when memory is short
 *                returns.c spans that were let go, until the daemon is told
 *
 * Lock order: the connection's, then a span class's or the large cache's, then that of the returns. So no lock is held over
 * a wait for the daemon but the connection's own; who holds another takes that one only by conn_trylock(). registry_lock is
 * taken before none of them and held over no wait. All in private memory; a forked child throws it away and begins anew
 * (fork.c). sync: says who may touch a field.
 */
#ifndef CLIENT_CLIENT_H
#define CLIENT_CLIENT_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <sys/types.h>

#include "client/arena.h"
#include "client/link/cancel.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/registry.h"
#include "proto/msg.h"
#include "shm/layout.h"
#include "shm/sizeclass.h"
#include "shm/span.h"
#include "shm/state.h"
#include "shm/tag.h"

/* The fast paths are in it, for programs that compile them into their loops; here with shm's names for the accesses. */
#define ARENA_INLINE_INSIDE
#define ARENA_INLINE_LOAD(p) load_relaxed(p)
#define ARENA_INLINE_STORE(p, v) store_relaxed(p, v)
#define ARENA_INLINE_SWAP(p, seen, v) cas_acq_rel(p, seen, v)
#include "client/arena_inline.h"

#define PUBLIC __attribute__((visibility("default")))

enum {
    MCACHE_BYTES = 32 << 20,       /* of addresses, a thread's */
    MCACHES_MAX = 8192,            /* threads at once */
    MAGAZINE_BYTES = 2 << 20,      /* of objects in one magazine */
    MAGAZINE_SLOTS = 16384,
    LEASE_FEW_PAGES = 8,           /* 64 KiB: what a lease asks for of a class that has little */
    LEASE_MAX_PAGES = 128,         /* 1 MiB: the most that it asks for */
    HINT_LOOKS = 64,               /* full spans whose hints a refill looks at before it asks the daemon */
    FREES_ONLY_SLOTS = 64,         /* of a magazine of a thread that only frees in its class, */
    FREES_ONLY_BYTES = 64 << 10,   /* whichever is less */
    SHRINK_MIN = 256 << 10,        /* of a class: what is flushed below it is no shrinking */
    KEEP_FREE_LEAST = 1 << 20,     /* to which what is kept is halved while a process shrinks */
    HELD_FEW = 64 << 20,           /* of what is leased or filled: up to it ripples of free bytes are kept up to */
    RIPPLE_FEW = 12 << 20,         /* this */
    TX_TAGS_MAX = 1024,            /* of a client: what the daemon grants */
};

/* ---- the thread's mcache ------------------------------------------------------------------------------------------ */

#define NO_WORD 0x10000u /* no state word is equal to it */

struct transaction;

/* Private memory, 32 MiB of addresses a thread, wiped in a fork's child. sync: its thread, but for `expect` and `own`, which
 * any thread may set to NO_WORD. The first four and the magazines are in arena_inline.h too */
struct mcache {
    uint32_t expect;        /* what the word of an entry must be for the fast path: CACHED(tag); NO_WORD while every
                               allocation has more to do, as in a transaction with its log */
    uint32_t own;           /* OWNED(tag) */
    uint16_t cached;        /* CACHED(tag) */
    uint16_t owned;         /* what an allocation stores: OWNED(tag), or OWNED(x) in a transaction */
    uint32_t number;        /* of its place among the heap's */
    uint32_t trim_seen;     /* the last call to give back that it has answered. sync: atomic [TR1] */
    struct arena *arena;
    struct transaction *tx; /* private memory; NULL: none is open */
    uint64_t budget_used;   /* bytes: capacities x sizes of all magazines. sync: atomic, its thread stores */
    uint32_t steal_cursor;
    uint32_t steal_pause;   /* growths that are refused unasked, after one that took from others */
    uint32_t sample_in;     /* allocations until the next sample; 0: not counted yet */
    uint64_t refilled[4];   /* classes that this thread allocates in: a bit each */
    uint64_t used_serial[4];/* classes that refilled or flushed since the cursor passed them: a bit each */
    struct mcache *next_free;
    struct arena_magazine magazines[256] __attribute__((aligned(64)));
    struct arena_slot *bases[256]; /* the oldest entries; NULL: it has no slots yet */
};

#define SAME_PLACE(inside, outside, field) \
    _Static_assert(offsetof(struct inside, field) == offsetof(struct outside, field), "arena_inline.h: another layout, another number")
SAME_PLACE(mcache, arena_inline_mcache, expect);
SAME_PLACE(mcache, arena_inline_mcache, own);
SAME_PLACE(mcache, arena_inline_mcache, cached);
SAME_PLACE(mcache, arena_inline_mcache, owned);
SAME_PLACE(mcache, arena_inline_mcache, magazines);
_Static_assert(sizeof(struct arena_magazine) == 32 && PAGE_CLASS_BITS == ARENA_INLINE_CLASS_BITS, "a page entry's class bits are a magazine's place");
_Static_assert(PAGE_SIZE == ARENA_INLINE_PAGE && UNIT_WORDS == ARENA_INLINE_UNIT_WORDS && SMALL_MAX == ARENA_INLINE_SMALL_MAX &&
                   WORD_SHARED == ARENA_INLINE_WORD_SHARED, "");

/* ---- the process's leases --------------------------------------------------------------------------------------------- */

enum lease_list { LEASE_NONE, LEASE_CURRENT, LEASE_IDLE, LEASE_FULL, LEASE_LISTS };

/* By first page. sync: the lock of its span class, or of the large cache */
struct lease {
    uint32_t next, prev;
    union {
        struct {
            uint16_t free;   /* FREE objects, as far as this process knows */
            uint16_t cursor; /* words below it were looked at */
        };
        uint32_t pages;  /* of a large span that is leased here or cached: how many are surely its own. sync: atomic */
    };
    uint8_t list;        /* enum lease_list. sync: atomic; to LEASE_NONE under returns.lock, from it under conn.lock */
    uint8_t span_class;
    uint8_t again;       /* something was flushed below the cursor */
    uint8_t doubt;       /* large: an EXTEND of it may be done yet, or have been. sync: atomic, set and cleared with conn.lock */
};
#define LEASE_END UINT32_MAX

/* The client's side of an mcentral. current: spans with a FREE object, oldest first; idle: wholly free; full: worked
 * through, kept in case that other processes free in them. All zero until it is used first. sync: lock */
struct central {
    pthread_mutex_t lock;
    bool ready;
    uint32_t first[LEASE_LISTS], last[LEASE_LISTS], count[LEASE_LISTS];
    struct arena_slot *stash;   /* entries that left their magazines, CACHED; the newest last. Private memory */
    uint32_t stash_count, stash_capacity;
    uint32_t grant_spans; /* of the last lease, if it was cut fresh and nothing flushed since: the class grows */
    uint32_t held_pages;  /* leased or filled: what the next lease is in proportion to */
    uint64_t stash_peak;  /* bytes, since the last lease */
    uint64_t flushed;     /* bytes, less what was taken again, since the last lease */
    uint64_t gave_back;   /* FREE bytes that went back since the last lease: if they are asked for again, keep more */
};

/* The account of what the process keeps: see keep.h. sync: relaxed atomics */
struct keep {
    uint64_t free_bytes, free_limit; /* in current, idle and stashes; the limits adapt within keep.h's bounds */
    uint64_t full_bytes, full_limit;
    uint64_t held_pages;   /* of all classes */
    uint64_t missed_bytes; /* flushed into spans that had been let go, since the last lease */
    uint32_t trim_serial;  /* a thread that finds it changed gives its magazines back [TR1] */
    uint32_t shortage_seen; /* of header->shortages */
    uint64_t called_ms;    /* when trim_serial was last counted up for want of memory */
    uint64_t most, magazines; /* bounds of so many `clients` */
    uint32_t clients;
};

struct large_cache {
    pthread_mutex_t lock;
    uint32_t bins[2][256]; /* by noscan and size bin: first pages, chained in leases[first] */
    uint32_t oldest, newest; /* chained in leases[first + 1] */
    uint64_t bytes, limit;
    bool evicted; /* since the last round trip */
    bool allocates; /* this process does, and does not only free what others allocate. sync: atomic */
    uint32_t evictions;
};

/* Spans that were let go and that the daemon is to be told of: see returns.c. */
struct returns {
    pthread_mutex_t lock; /* the innermost */
    uint32_t first, last; /* chained in the leases */
    uint32_t waiting;     /* all that is to be told: spans, answer, trimmed. sync: atomic, stored with the lock */
    uint32_t answer;      /* serial of the shortage that this process has answered; 0: none */
    uint64_t listed_to;   /* the RESUME that is under way has listed all leases below this page; all ones: none is. sync: atomic,
                             with the lock */
    bool trimmed;         /* arena_trim is to be told */
};

/* ---- the connection ------------------------------------------------------------------------------------------------- */

/* A lease that was asked for before it was needed: one at a time. sync: conn.lock */
struct ahead {
    uint32_t id;         /* of its request; 0: none */
    uint32_t span_class;
    bool arrived;
    int error;           /* of what arrived; 0: a grant */
    uint32_t flags, count;
    uint32_t list[1024]; /* the most that a grant has */
};

/* What a descriptor is: its number may be another file's by now, as after a closefrom(3) and an open(2) of the program's. */
struct fd_id {
    dev_t device;
    ino_t inode;
};

enum { GRANTED_TAGS_MAX = 1024 }; /* transactions of a client */

/* What is always needed is first: an attach touches few pages. */
struct connection {
    pthread_mutex_t lock;
    int fd;              /* -1: none. Used, polled and closed only while it is what `id` says */
    struct fd_id id;
    uint32_t epoch;      /* of the daemon that it is to */
    uint32_t next_id;
    bool stale;          /* the daemon serves another heap: for ever. sync: atomic [EX1], set with conn.lock */
    bool waited_out;     /* who holds the lock has waited for one that gave up */
    uint32_t gave_up;    /* calls that no daemon answered in time. sync: atomic, set with conn.lock */
    uint32_t granted_count;
    struct ahead ahead;
    struct msg in, out;
    struct msg kept;     /* a request, while a reconnection uses `out` */
    uint8_t packet[MSG_MAX];
    uint16_t granted[GRANTED_TAGS_MAX]; /* every tag that a TAGS has brought: to be listed when it comes back */
};

/* ---- a heap ----------------------------------------------------------------------------------------------------------- */

struct arena {
    /* hot, constant after arena_open but for fast_bytes; in arena_inline.h too */
    uint8_t *base;
    uint64_t fast_bytes; /* the fast paths of a free serve what is below it: heap_bytes, or 0 while something is pinned. sync:
                            atomic */
    const uint64_t *pages;
    uint16_t *words;
    const uint8_t *classes; /* size_classes */
    uint64_t tls_at; /* where this heap's entry of tls_mcaches is, from the thread pointer */
    uint32_t index;  /* in tls_mcaches */
    uint16_t tag;
    bool read_only, same_address;
    uint64_t heap_bytes;
    struct heap heap;
    uint64_t map_bytes, state_bytes;
    /* sync: registry lock */
    uint32_t opens;
    uint32_t busy; /* threads that give back what a thread has left here */
    struct mcache *free_mcaches;
    uint32_t mcache_count;
    uint32_t mcache_slots; /* that there are addresses for */
    uint8_t *mcache_base;
    struct lease *leases;  /* by page. sync: see struct lease */
    struct keep keep;
    struct pins *pins;    /* a lock of its own, before all others */
    uint32_t fast_flags;  /* the highest of arena_alloc_flags that its fast path serves. sync: atomic */
    uint16_t limbo;       /* tag of what is freed after a collection; 0: none yet. sync: atomic */
    bool late;            /* something waits for the end of a collection, or of its snapshot. sync: atomic */
    uint8_t gc_mode;      /* as last declared. sync: atomic */
    int timeout_ms;
    unsigned debug;        /* DEBUG_*, of $ARENA_DEBUG. constant after arena_open */
    bool watched;          /* allocations take the slow path, and are told to watch_alloc(). sync: atomic [EX1] */
    struct profile *profile; /* of $ARENA_PROFILE; NULL: none. constant after arena_open */
    uint16_t sampled_tag;    /* of what it samples; 0: none could be had. constant after arena_open */
    struct escape *escape; /* what ARENA_DEBUG=escape keeps. sync: registry_lock */
    uint64_t stack_max;    /* bytes. sync: atomic */
    char *socket;
    uint32_t generation;  /* of forks, when it attached. sync: atomic [FK2]: what the child has made new, before it */
    uint32_t attaching;   /* a thread attaches it for this generation. sync: registry_lock */
    uint32_t attached;    /* how often that was tried. sync: registry_lock */
    int attach_error;     /* how it ended. sync: registry_lock */
    arena_error_fn *on_error; /* sync: atomic [EH1] */
    void *on_error_context;   /* sync: atomic, before it */
    /* each with a lock of its own */
    struct connection conn;
    struct returns returns;
    struct large_cache large;
    struct central central[256];
    uint32_t tx_ready[TX_TAGS_MAX]; /* tags of transactions that may be begun. sync: conn.lock */
    uint32_t tx_ready_count;
    uint32_t tx_clean;             /* so many of them, the first, are named by no hazard */
    pthread_mutex_t tx_lock;       /* taken last: nothing is called with it */
    struct transaction *tx_open;   /* this process's. sync: tx_lock */
    struct transaction *tx_late;   /* committed ones whose words are not turned yet. sync: tx_lock */
    uint64_t tx_freed_by_others;   /* objects of transactions, not by their threads. sync: atomic */
    uint32_t tx_resolved[TX_TAGS_MAX]; /* that bear no word any more, to be told with the next commit. sync: conn.lock */
    uint32_t tx_resolved_count;
};

static inline char *thread_pointer(void)
{
#ifdef __x86_64__
    char *self; /* the first word of the thread's block is its own address; not in C: sanitizers would see a null pointer */
    __asm__("movq %%fs:0, %0" : "=r"(self));
    return self;
#else
    return __builtin_thread_pointer();
#endif
}

/* This thread's mcaches, by heap; no_mcache where it has none yet: every fast path fails in that one. */
extern __thread struct mcache *tls_mcaches[HEAPS_MAX];
extern struct mcache no_mcache;
extern uint8_t size_classes[SIZE_CLASS_EIGHTS]; /* by eights; constant after the first arena_open() */

static inline struct mcache *mcache_of(const struct arena *a)
{
#if defined __SEG_FS && !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__ /* they would look at the address */
    return *(struct mcache *__seg_fs *)a->tls_at; /* one load: the same offset in all threads (initial-exec TLS) */
#else
    return tls_mcaches[a->index];
#endif
}

SAME_PLACE(arena, arena_inline_heap, base);
SAME_PLACE(arena, arena_inline_heap, fast_bytes);
SAME_PLACE(arena, arena_inline_heap, pages);
SAME_PLACE(arena, arena_inline_heap, words);
SAME_PLACE(arena, arena_inline_heap, classes);
SAME_PLACE(arena, arena_inline_heap, tls_at);

static inline const struct arena_inline_heap *hot_of(const struct arena *a) { return (const void *)a; }
static inline struct arena_inline_mcache *hot_mcache(struct mcache *mc) { return (void *)mc; }

/* The state word of the small object that begins at p; false: something else is there, or nothing. */
static inline bool word_of_small(const struct arena *a, struct mcache *mc, const void *p, uint16_t **ret_word)
{
    struct arena_magazine *m;
    return arena_inline_word(hot_of(a), hot_mcache(mc), (uint64_t)((const uint8_t *)p - a->base), ret_word, &m);
}

/* attach.c */
int arena_reattach(struct arena *a); /* in a forked child, at its first slow path */


/* The daemon serves another heap: every call says -ESTALE, also those that need no round trip. */
static inline bool heap_is_stale(const struct arena *a) { return unlikely(load_relaxed(&a->conn.stale)); }

/* thread.c: this thread's mcache, made if need be; NULL and errno. */
struct mcache *mcache_get(struct arena *a);
void threads_start(void);
struct thread *thread_self(void); /* NULL: it has no mcache of any heap */
/* Its thread-local memory may be gone, and speaks of the heap in that place as long as it is there. With registry_lock. */
bool thread_is_ending(struct thread *t, uint32_t index);
void threads_reap(bool everywhere); /* gives back what threads that are gone have left. Holds no lock of the caller's */
uint32_t threads_stale(void); /* places of tls_mcaches that no heap may have, a bit each. With registry_lock */
bool threads_after_fork(bool forking, uint32_t places); /* forking: by the thread that forked; returns whether it is that */
void thread_has_forked(void);
struct mcache *mcaches_map(struct arena *a); /* one more; NULL and errno. With registry_lock */
void mcaches_unmap(struct arena *a);
void mcaches_forget(struct arena *a); /* in a forked child */
void mcaches_watch(struct arena *a);  /* every thread's next allocation takes the slow path */
/* Asks the threads that hold something and have not given back since `serial` was counted up, by their next allocation: how
 * many of them had answered the call before it, so that they can be expected to answer. */
uint32_t mcaches_call(struct arena *a, const struct mcache *except, uint32_t serial);
void mcaches_expire(struct arena *a); /* no thread's fast path serves this heap any more */
void threads_forget(uint32_t index); /* a heap is closed: no thread has an mcache of it any more. With registry_lock */


/* mcache.c */
void mcache_init(struct mcache *mc, struct arena *a, uint32_t number);
uint64_t mcache_bytes(void); /* of memory that an mcache needs with its slots */
void mcache_flush_all(struct mcache *mc);
void mcache_push(struct mcache *mc, unsigned span_class, void *object, uint16_t *word); /* its word is CACHED already */
int mcache_refill(struct mcache *mc, unsigned span_class); /* an empty magazine: how many objects, or a negative errno */
static inline bool mcache_is_full(const struct mcache *mc, unsigned span_class)
{
    return mc->magazines[span_class].top >= mc->magazines[span_class].limit;
}

/* What a word that became FREE tells the daemon or another process, and a grant of it or a reference to what was made there
 * tells another thread, is an order between this process's threads that goes through another process: ThreadSanitizer
 * cannot see it. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *at);
void __tsan_release(void *at);
#define BEFORE_FREE(a) __tsan_release((a)->leases)
#define AFTER_GRANT(a) __tsan_acquire((a)->leases)
#else
#define BEFORE_FREE(a) ((void)0)
#define AFTER_GRANT(a) ((void)0)
#endif

/* lease.c */
int lease_init(struct arena *a);
void lease_fini(struct arena *a);
/* refill: up to `want` objects, each FREE -> CACHED(tag): their number, or a negative errno. */
int lease_refill(struct arena *a, unsigned span_class, struct arena_slot *out, uint32_t want);
/* flush: entries that have left their magazine, CACHED -> FREE, then the hints. */
void lease_flush(struct arena *a, unsigned span_class, const struct arena_slot *slots, uint32_t count);
void lease_release_all(struct arena *a); /* waits for nobody */

/* returns.c: none of them waits for the daemon, or for a thread that does. */
void returns_init(struct arena *a);
bool returns_put(struct arena *a, uint32_t first); /* lets go of a lease; false: it was let go before */
/* A lease of small objects that nobody here has taken yet goes back. With conn.lock held. */
void returns_add(struct arena *a, uint32_t first);
/* For the list of a LEASE or LARGE, with conn.lock held: how many. What was not sent is put back. */
uint32_t returns_take(struct arena *a, uint32_t *out, uint32_t most);
void returns_put_back(struct arena *a, const uint32_t *list, uint32_t count);
void returns_answer(struct arena *a, uint32_t serial); /* after what was given back; 0: none */
void returns_trimmed(struct arena *a);
bool returns_send(struct arena *a); /* with conn.lock held; false: more waits, and cannot be sent now */
static inline bool returns_pending(const struct arena *a) { return unlikely(load_relaxed(&a->returns.waiting) != 0); }
/* The first pages of all leases, in portions, with conn.lock held: for RESUME. At cursor 0 what is queued is forgotten: it is
 * not listed, so the daemon takes it back. */
uint32_t returns_list(struct arena *a, uint64_t *cursor, uint32_t *out, uint32_t capacity);

/* large.c */
/* The first page of a span whose word is CACHED by this client: of the cache, or the daemon. 0 or a negative errno. */
int large_take(struct arena *a, bool noscan, uint64_t pages, uint64_t align, uint32_t *ret_first);
void large_free(struct arena *a, uint64_t first); /* its word is CACHED by this client */
uint16_t *large_word(const struct arena *a, uint64_t first);
/* 0, or -ENOTCONN: nobody can say yet how many pages it has, and it may not be published before. */
int large_let_go(struct arena *a, uint64_t first);
int large_extend(struct arena *a, uint64_t first, uint32_t pages); /* more or fewer, in place */
/* The bytes of a large object that the map says has so many: of one that is leased here, what is surely its own. */
uint64_t large_bytes(const struct arena *a, uint64_t first, uint64_t bytes);
void large_release_all(struct arena *a);
void large_init(struct arena *a);

/* How long a call still waits for a daemon: timeout_ms at first. Each look counts the time since the one before, but no more
 * than 200 ms: a process that was stopped meanwhile has not waited. */
struct patience {
    int64_t left_ms, seen_ms;
};
/* conn.c. conn_lock gives conn.out to fill in; conn_call sends it and leaves the reply in conn.in. A lost connection is
 * made anew and the request repeated. It returns
 *   0             done. Of ROOT, TX_COMMIT, MODE and EXTEND conn.in may hold nothing: the map told it
 *   -ENOTCONN     no answer came in time, and the request was not done and never will be: what a LEASE, LARGE or TX_TAGS
 *                 would have brought, and a LEASE or LARGE would have given back, the next RESUME settles
 *   -EINPROGRESS  in doubt, of ROOT, TX_COMMIT, EXTEND, and of MODE with a safepoint or pins: the daemon has begun with this
 *                 very request and stands still, or died. The connection is given up. As soon as a conn_call has returned
 *                 anything but this and -ENOTCONN it is settled, and the map tells: the root, the transaction's state, the
 *                 span's page_count, the tag's gc_mode
 *   -ESTALE       the daemon serves another heap
 *   another error of the daemon's: not done */
void conn_lock(struct arena *a);    /* and cancelling waits, until conn_unlock */
bool conn_trylock(struct arena *a);
void conn_unlock(struct arena *a);
void conn_kick(struct arena *a); /* sends what waits among the returns, if nobody holds the lock: who holds it does */
void conn_set_stale(struct arena *a); /* with conn.lock held: the heap is of the past, for ever, and no thread's fast path serves it */
int conn_call(struct arena *a, uint32_t type, uint32_t expect);
int conn_call_within(struct arena *a, uint32_t type, uint32_t expect, struct patience patience);
/* No reply, no wait. -EAGAIN: the daemon reads nothing, and nothing was sent; else 0, or the connection is gone, and what was to
 * be told is told by RESUME. */
int conn_tell(struct arena *a, uint32_t type);
/* Sends the request in conn.out, a LEASE, and lets its reply come when it comes: 0, -EALREADY: one is under way, or as
 * conn_tell(). conn_ahead() waits for it: 0 and the grant in conn.ahead, -ENOENT: none of this class was asked for, or the error
 * that it was answered with. A connection that is lost takes it along: spans that were granted and not accepted are not listed
 * by RESUME, so the daemon takes them back. */
int conn_ask_ahead(struct arena *a);
int conn_ahead(struct arena *a, unsigned span_class);
bool conn_ahead_arrived(struct arena *a); /* it is there, and conn_ahead() does not wait */
/* A new connection's descriptor, above those that programs use. It, and what is sent and received by it, return -EAGAIN now
 * and then, so that patience is looked at. */
int conn_connect(const char *path);
void conn_drop(struct connection *c);     /* hangs up, also where a forked child still has the descriptor */
/* Parts of a conn_call(), under the lock. conn_send: flags are MSG_DONTWAIT, or 0. conn_receive: until the reply to `id` is there,
 * by a connection that was there a moment ago: 0, the error in it, or -EPIPE: lost. patience NULL: waits for nothing, and
 * returns -EAGAIN. */
uint32_t conn_next_id(struct connection *c);
int conn_send(struct arena *a, uint32_t type, uint32_t id, int flags);
int conn_receive(struct arena *a, uint32_t id, uint32_t expect, struct patience *patience);
bool conn_is_there(struct connection *c); /* its descriptor is still its own; else it is forgotten, and not touched */
void conn_forget(struct connection *c);   /* a forked child's: closes what is its parent's connection, which goes on */
struct fd_id fd_id(int fd);
bool fd_is(int fd, struct fd_id id);
void fd_close(int fd, struct fd_id id); /* if it is that */
struct patience conn_patience(const struct arena *a);
bool conn_waits(struct patience *p); /* false: no more */
int64_t now_ms(void); /* monotonic */
void conn_init(struct connection *c, int fd);


/* tx.c. A transaction is open on the thread: tx_room() before an object is taken, 0 or why there is none; tx_log() after. */
void tx_init(struct arena *a);
void tx_fini(struct arena *a);
int tx_room(struct mcache *mc);
void tx_log(struct mcache *mc, void *object, uint16_t *word);
void tx_freed(struct arena *a, const struct mcache *mc, unsigned tag); /* an object of an open one is it no more */
int tx_adopt(struct mcache *mc, void *object); /* an object of the process's becomes the open one's; or there is none */
/* An object of the process's, so far, becomes that of the open transaction `tag` of any thread: 0, -ENOMEM, -EBUSY it is
 * being committed, or that is in doubt. */
int tx_move(struct arena *a, unsigned tag, void *object, uint16_t *word);
bool tx_turn_late(struct arena *a); /* true: some still wait for the end of a snapshot */
void tx_thread_exit(struct mcache *mc);
/* What is allocated between the two is the process's own, whatever transaction is open. */
struct transaction *tx_suspend(struct mcache *mc);
void tx_resume(struct mcache *mc, struct transaction *tx);
int tx_take_tag(struct arena *a, uint16_t *ret);
bool tx_is_mine(const struct arena *a, unsigned tag);

static inline bool mcache_is_slow(const struct mcache *mc)
{
    const struct arena *a = mc->arena;
    return mc->tx || load_relaxed(&a->watched) || heap_is_stale(a) ||
           load_relaxed(&mc->trim_seen) != load_relaxed(&a->keep.trim_serial);
}

/* What `expect` of an mcache is to be: whatever has more to do with each allocation has it take the slow path. Its thread
 * and one that switches the fast paths off may be here at once. The one stores `expect` and then looks at watched, stale and
 * the calls to give back, the other stores these and then `expect`, each with a full fence between: the last store to
 * `expect` is NO_WORD. */
static inline void mcache_expect(struct mcache *mc)
{
    if (load_relaxed(&mc->expect) == (mcache_is_slow(mc) ? NO_WORD : mc->cached))
        return;
    store_relaxed(&mc->expect, mcache_is_slow(mc) ? NO_WORD : mc->cached);
    fence_seq_cst(); /* [EX1] */
    if (mcache_is_slow(mc))
        store_relaxed(&mc->expect, NO_WORD);
}

/* gc.c */
int pins_init(struct arena *a); /* also in a forked child: it has none of its parent's */
void pins_fini(struct arena *a);

/* An object was copied, and may be freed. While a collection runs that may still have to read it, it goes to the limbo: for
 * that limbo_prepare() makes room before the copy, and limbo_or_free() comes after it. */
struct limbo_entry;
int limbo_prepare(struct arena *a, struct limbo_entry **ret); /* 0 or a negative errno */
void limbo_or_free(struct arena *a, void *object, struct limbo_entry *entry, const char *call);
void late_settle(struct arena *a); /* what waits for the end of a collection that is over */

static inline void late_look(struct arena *a)
{
    if (unlikely(load_relaxed(&a->late)))
        hooks.late(a);
}

/* Pins of this process's on the object that begins at `ref` go with it; one that is to take its place gets as many, once at
 * least if `born`. -ENOMEM and the like: nothing has changed. */
void pins_unpin(struct arena *a, uint64_t ref);
void pins_moved(const struct arena *a, uint64_t ref); /* to the copy of what was freed: there is none to be unpinned any more */
int pins_copy(struct arena *a, uint64_t from, uint64_t to, uint64_t size, bool born);
bool pins_is_pinned(struct arena *a, uint64_t ref);
void *pinned_alloc(struct arena *a, struct mcache *mc, size_t size, unsigned flags); /* ARENA_SHARED, born pinned */
/* What comes to be SHARED is born pinned. */
static inline bool pins_are_declared(const struct arena *a) { return load_relaxed(&a->gc_mode) == GC_PINS; }
int limbo_tag(struct arena *a); /* takes its tag, if it has none yet: 0 or a negative errno */

/* The serial of the collection that runs; 0: none does. */
static inline uint32_t collecting(const struct arena *a) { return load_acquire(&a->heap.header->collecting); } /* [GC1] */

/* [TN1] committed words are not turned then; they are after it. */
static inline bool snapshot_is_taken(const struct arena *a)
{
    uint32_t serial = load_acquire(&a->heap.header->collecting); /* [GC1] */
    return unlikely(serial != 0) && load_acquire(&a->heap.header->snapped) != serial; /* [TN1] */
}

/* grow.c: objects that grow, for buffers and vectors */
void *object_grow(struct arena *a, void *p, size_t used, size_t need, unsigned flags, size_t *ret_capacity, const char *call);
void *object_fit(struct arena *a, void *p, size_t used, const char *call);

#endif
