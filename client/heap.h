/* A heap, inside: what a process keeps of a heap that it has mapped. Every module's state of a heap is in it: private memory of
 * the process, with the module's own locks; README.md has their order. A forked child throws it away and begins anew
 * (link/fork.c). sync: says who may write a field. */
#ifndef CLIENT_HEAP_H
#define CLIENT_HEAP_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>

#include "client/alloc/keep.h"
#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/arena.h"
#include "client/link/conn.h"
#include "client/link/hooks.h"
#include "client/link/returns.h"
#include "shm/collect.h"
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

enum { TX_TAGS_MAX = 1024 /* of a client: what the daemon grants */ };

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
    uint32_t gc_turn; /* the forks' generation in which a thread is in arena_gc with a safepoint of its own. sync: registry_lock */
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

#define SAME_PLACE(inside, outside, field) \
    _Static_assert(offsetof(struct inside, field) == offsetof(struct outside, field), "arena_inline.h: another layout, another number")

SAME_PLACE(arena, arena_inline_heap, base);
SAME_PLACE(arena, arena_inline_heap, fast_bytes);
SAME_PLACE(arena, arena_inline_heap, pages);
SAME_PLACE(arena, arena_inline_heap, words);
SAME_PLACE(arena, arena_inline_heap, classes);
SAME_PLACE(arena, arena_inline_heap, tls_at);

_Static_assert(PAGE_SIZE == ARENA_INLINE_PAGE && UNIT_WORDS == ARENA_INLINE_UNIT_WORDS && SMALL_MAX == ARENA_INLINE_SMALL_MAX &&
                   WORD_SHARED == ARENA_INLINE_WORD_SHARED, "");

static inline const struct arena_inline_heap *hot_of(const struct arena *a) { return (const void *)a; }

/* The daemon serves another heap: every call says -ESTALE, also those that need no round trip. */
static inline bool heap_is_stale(const struct arena *a) { return unlikely(load_relaxed(&a->conn.stale)); }

static inline void late_look(struct arena *a)
{
    if (unlikely(load_relaxed(&a->late)))
        hooks.late(a);
}

/* What comes to be SHARED is born pinned. */
static inline bool pins_are_declared(const struct arena *a) { return load_relaxed(&a->gc_mode) == GC_PINS; }

/* The serial of the collection that runs; 0: none does. */
static inline uint32_t collecting(const struct arena *a) { return collect_serial(&a->heap); }

#endif
