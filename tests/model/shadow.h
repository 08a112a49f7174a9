/* The shadow: what the model knows of the heap, beside the heap.
 *
 * It lies in memory that all processes of a run map (a memfd that survives exec), so it outlives every one of them:
 *
 *     run ---- process[0..] ---- thread[0..] ---- slot[0..]     an object that this thread holds
 *      |                               `--------- taking        a graph that it frees, node by node
 *      |------ root[0..]                                        which graph a root leads to, or is about to
 *      `------ orphan[0..]                                      what killed processes may have left behind
 *
 * Before a step that lets an object outlive its process the slot says UNSURE, after it what came of it. So whatever
 * instruction a process is killed at: an UNSURE object may be in either state, and everything else is exactly what the
 * shadow says. Each field has one writer: the thread it belongs to; when its process is dead, whoever buries it; a root's
 * is who holds its lock.
 *
 * Objects are filled with a pattern of their id. Those of at least a head's size begin with one, so that who finds one
 * on the board or behind a root knows what it should hold.
 */
#ifndef TESTS_MODEL_SHADOW_H
#define TESTS_MODEL_SHADOW_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/arena.h"
#include "tests/random.h"

enum {
    WORKERS = 4,
    READERS = 1,
    CHILDREN = 8, /* forked by workers, at one time */
    PROCESSES = WORKERS + READERS + CHILDREN,
    THREADS = 3,
    SLOTS = 256,
    CELLS = 128,   /* of the board: an object of the heap, through which objects are passed */
    ROOTS = 24,
    PILLARS = 8,   /* objects that are never freed; the root "turn" goes from one to the next */
    ORPHANS = 1 << 16,
};

/* The start of an object that may be found by others. Its numbers are no references by mistake: those that could be have
 * a bit set that no reference has. */
struct head {
    uint64_t id, marked_size;
    arena_ref_t next;        /* of its graph */
    arena_ref_t other;       /* any node of its graph behind it, or 0 */
    uint64_t graph, number, count; /* which graph, which of how many: the last comes first */
};

#define MARK (1ULL << 62)
static inline uint64_t head_size(const struct head *head) { return head->marked_size & ~MARK; }

enum slot_state {
    SLOT_EMPTY,
    SLOT_OWNED,
    SLOT_TX,     /* of the thread's open transaction */
    SLOT_UNSURE, /* published, perhaps */
    SLOT_SHARED, /* published, and only this thread knows it; pinned where there is a collector */
    SLOT_HELD,   /* published and not pinned: an own object leads to it */
};

struct slot {
    _Atomic uint32_t state;
    uint64_t id, size;
    arena_ref_t ref;
};

struct graph {
    arena_ref_t ref;
    uint64_t graph, count, sum; /* sum: of mixed ids */
};

/* Nodes are freed from the front: `at` may have been freed, unless it is also `intact`; all from `intact` on are there. */
struct taking {
    _Atomic arena_ref_t at, intact;
    uint64_t graph;
};

struct thread_shadow {
    _Atomic uint32_t parked;
    _Atomic uint32_t turning; /* a move of "turn" was asked for and is not noted yet */
    _Atomic uint32_t unknown; /* objects that may be published by now and whose place only the call knows */
    uint32_t operation;       /* for the report of a failure */
    _Atomic uint64_t operations;
    uint64_t seed;
    struct taking taking;
    struct slot slots[SLOTS];
};

enum process_state { PROCESS_FREE, PROCESS_FORKING, PROCESS_ALIVE };

struct process_shadow {
    _Atomic int32_t pid;
    _Atomic uint32_t state;
    _Atomic uint32_t attached;
    _Atomic uint32_t main_parked;
    _Atomic uint32_t threads; /* that run, or are about to */
    _Atomic uint64_t live_bytes;
    uint64_t seed;
    struct thread_shadow thread[THREADS];
};

struct root_shadow {
    pthread_mutex_t lock; /* robust, shared */
    _Atomic uint32_t moving; /* now or next; until the daemon's answer is known */
    struct graph now, next;
};

/* What a dead process may have left. An object: by its id, 0 where it is what its head says. A node: that one of a graph.
 * A graph: all of it from here on, whole. */
enum orphan_kind { ORPHAN_OBJECT, ORPHAN_NODE, ORPHAN_GRAPH };
struct orphan {
    enum orphan_kind kind;
    arena_ref_t ref;
    uint64_t id, size, graph;
};

/* How a round is run: chosen by the seed, or by the caller. */
struct settings {
    uint64_t heap_bytes, size_max;
    char max[16], debug[32], profile[32], socket[100], directory[100], programs[200];
    bool backing, collector, kills, stops, limits;
    int timeout_ms;
    uint32_t slots; /* that each thread uses */
};

struct counts {
    _Atomic uint64_t operations, full, forks, execs, cancels, closes, graphs, taken, passed, collections, collected, aborts, unanswered,
        in_doubt, bytes;
};

struct run {
    struct settings set;
    struct counts count;
    _Atomic uint32_t pause, stop, failures, stopped; /* stopped: processes that stand still now, the daemon among them */
    _Atomic uint64_t ids;
    _Atomic uint64_t turns, turns_unsure; /* moves of "turn" that were done; that may have been */
    _Atomic uint64_t unknown;             /* published objects that nobody knows, at most */
    arena_ref_t board, pillar[PILLARS];
    struct root_shadow root[ROOTS];
    struct root_shadow board_lock; /* where there is a collector: a pin goes with its object, so who takes must be alone */
    struct process_shadow process[PROCESSES];
    _Atomic uint32_t orphan_count;
    struct orphan orphan[ORPHANS];
};
extern struct run *run_shadow; /* of this process: all the files call it so */
#define R run_shadow

int shadow_make(void);          /* its descriptor */
void shadow_attach(int fd);
void shadow_reset(void);        /* for a new round; settings are kept */

/* Says what went wrong, with the process, the thread and its operation, and ends this process. */
void model_fail(const char *file, int line, const char *format, ...) __attribute__((format(printf, 3, 4), noreturn));
#define FAIL(...) model_fail(__FILE__, __LINE__, __VA_ARGS__)
#define CHECK(condition, ...) ((condition) ? (void)0 : FAIL(__VA_ARGS__))

static inline uint32_t slot_state(const struct slot *s) { return atomic_load_explicit(&s->state, memory_order_acquire); }
/* The other fields first: who buries this process reads them by the state. */
static inline void slot_set(struct slot *s, uint32_t state) { atomic_store_explicit(&s->state, state, memory_order_release); }

static inline uint64_t id_new(void) { return (atomic_fetch_add(&R->ids, 1) + 1) | MARK; }
static inline uint64_t id_mixed(uint64_t id) { return (id ^ id >> 31) * 0x9e3779b97f4a7c15ULL; }

/* All of an object, or of a long one its beginning, its end and a word in 509. `from`: behind the head, or 0. */
void pattern_fill(void *p, size_t from, size_t size, uint64_t id);
bool pattern_holds(const void *p, size_t from, size_t size, uint64_t id, size_t *ret_at);
static inline bool is_headed(size_t size) { return size >= sizeof(struct head); }

void object_fill(void *p, size_t size, uint64_t id); /* with a head where there is room: a graph of one node */
void object_verify(const void *p, size_t size, uint64_t id, const char *where);
const struct head *node_verify(const void *p, uint64_t graph, const char *where); /* of a graph, by what its head says */

/* Waits where the run is paused. Nothing of the heap is touched meanwhile. */
void park(_Atomic uint32_t *parked);

/* The process is dead, or the program that it was: what it may have left goes to the orphans. */
void shadow_bury(struct process_shadow *p);
bool shadow_bury_pid(int32_t pid); /* false: it is none of the model's */
void orphan_add(struct orphan orphan);

/* Robust: 0, or EBUSY. The record says by `moving` whether its last holder died in the middle. */
int root_trylock(struct root_shadow *root);
void root_unlock(struct root_shadow *root);

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/* ThreadSanitizer does not see what happens before what by way of another process. */
#if defined __SANITIZE_THREAD__
void __tsan_acquire(void *address);
void __tsan_release(void *address);
#define PASS_ON() __tsan_release(R)
#define RECEIVE() __tsan_acquire(R)
#else
#define PASS_ON() ((void)0)
#define RECEIVE() ((void)0)
#endif

#endif
