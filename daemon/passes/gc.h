/* The collector: frees what is published, and is neither reachable nor pinned. See gc.c for what it promises and why.
 *
 *   loop      gc_begin   what clients see: a collection runs
 *   loop      gc_turner  who turns words of a commit just then is waited for, before the workers start
 *   workers   gc_work    snapshot -> mark -> the last look at roots and pins -> done
 *   loop      gc_release state words that spans gave up meanwhile, by turns, from the end of the snapshot on
 *   loop      gc_sweep   white objects SHARED -> FREE, by turns
 *   loop      gc_end
 *
 * A collection's own memory is private and bounded: two bits a state word, and GC_POOL_CHUNKS chunks of references. */
#ifndef DAEMON_GC_H
#define DAEMON_GC_H

#include "daemon/core/core.h"

enum { GC_WORKERS_MAX = 64 };

struct gc;

struct gc_count {
    uint64_t objects, bytes;
};

/* Of a user whose client is gone. */
struct gc_user {
    uint32_t uid;
    struct gc_count white;
    UT_hash_handle hh;
};

struct gc_report {
    bool dry_run;
    uint32_t workers, rounds, overflows;
    uint64_t roots;               /* words that named roots, pins and owned objects gave */
    struct gc_count scanned;      /* objects whose bytes were read, and how many bytes */
    struct gc_count marked;       /* published objects that were reached */
    struct gc_count white;        /* those that were not: freed, or to be freed */
    struct gc_count *by_class;    /* white ones, by span class: 256 */
    struct gc_count *by_tag;      /* and by the client that its span is charged to: TAG_COUNT; [0] is not used */
    struct gc_user *by_user;      /* or by its user, when that client is gone */
};

/* The next client that has declared nothing, from tag `from` on; 0: none, a collection may begin. */
unsigned gc_blocker(const struct core *core, unsigned from);

/* The next live client, from tag `from` on, that turns words of a committed transaction to SHARED; 0: none. After gc_begin() the
 * workers start when there is none. What a client says of itself here is believed: it can only keep a collection from running. */
unsigned gc_turner(const struct core *core, unsigned from);
void gc_snapped(struct core *core, const struct gc *gc); /* its snapshot is taken: clients may turn words again */

/* Clients see from now on that a collection runs. The caller lets none of them leave its safepoint, and none in, until
 * gc_end(). `objects`: the heap region, readable, of heap.heap_bytes. NULL: out of memory. */
struct gc *gc_begin(struct core *core, const uint8_t *objects, uint32_t workers, bool dry_run);
void gc_is_over(struct core *core);            /* clients see it: before the requester is answered */
void gc_end(struct core *core, struct gc *gc); /* and frees it */

/* State words that spans have given up since it began may be used again from the end of its snapshot on, and those that are
 * held after its end (NULL) at once: a turn's worth of them. */
bool gc_may_release(struct gc *gc);
void gc_release(struct core *core, struct gc *gc);

/* A worker's whole share; `workers` threads call it, each once. 0; -ECANCELED; -EAGAIN: a client kept pinning. */
int gc_work(struct gc *gc);
void gc_worker_missing(struct gc *gc); /* one of them could not be started */
void gc_cancel(struct gc *gc);         /* any thread */

/* After all workers are through with 0: true when there is more to do. */
bool gc_sweep(struct core *core, struct gc *gc, uint32_t words);

const struct gc_report *gc_report(const struct gc *gc);

#endif
