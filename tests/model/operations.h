/* One thread's view of the model, and the tables of what it may do.
 *
 * Each operation is one function that calls the library, checks what it said against the shadow, and leaves the shadow
 * true. Which comes next is drawn by weight. */
#ifndef TESTS_MODEL_OPERATIONS_H
#define TESTS_MODEL_OPERATIONS_H

#include "tests/model/shadow.h"

/* sync: its thread */
struct ctx {
    arena_t *a;
    struct process_shadow *p;
    struct thread_shadow *t;
    uint64_t seed;
    bool in_tx;     /* what is allocated is of the open transaction */
    int expected;   /* error that the next bad free has to be called, and was: 0 */
    struct held *held; /* references to the slots' objects that are held: an own object. NULL: none yet */
    size_t held_count, held_room;
    arena_buf_t buf; /* a text that grows over many operations; arena NULL: none yet */
    uint64_t buf_id;
};

enum { FOR_WORKERS = 1, FOR_CHILDREN = 2, FOR_READERS = 4, WITH_COLLECTOR = 8, WITHOUT_COLLECTOR = 16 };

struct operation {
    const char *name;
    void (*run)(struct ctx *c);
    uint16_t weight, flags;
};
extern const struct operation object_operations[], share_operations[], tx_operations[], graph_operations[], grow_operations[], hold_operations[],
    stack_operations[], collector_operations[], process_operations[], reader_operations[]; /* run NULL ends each */

/* A random one for a process of that kind. */
void operation_run(struct ctx *c, unsigned kind);
void operations_index(void); /* once, before the first */

int self_index(void);               /* of this process; -1: the one that tests */
const char *self_operation(void);   /* of this thread */
extern __thread struct ctx *self_ctx;
void error_handler(void *context, int error, const void *p, const char *message);

/* May a call fail so, in this round? Whatever else it said ends the run. */
void may_fail(struct ctx *c, int error, const char *what);
void allocation_failed(struct ctx *c, int error, size_t size);
bool fills_up(struct ctx *c); /* this thread allocates more than it frees for now */
/* The daemon did not answer in time: -ENOTCONN. Where nothing stands still nothing may take 30 seconds. */
bool not_answered(struct ctx *c, int error, const char *what);
/* After -EINPROGRESS: asks until it is answered. Then it is known what was done. */
void settle_doubt(struct ctx *c);

static inline uint64_t below(struct ctx *c, uint64_t n) { return rnd(&c->seed) % n; }
size_t random_size(struct ctx *c);
static inline bool is_small_heap(void) { return R->set.heap_bytes <= 1 << 20; } /* 128 pages for twelve threads */
struct slot *random_slot(struct ctx *c);
struct slot *empty_slot(struct ctx *c); /* NULL: none found at a glance */
static inline void *slot_object(struct ctx *c, const struct slot *s) { return arena_ptr(c->a, s->ref); }

/* The object is this thread's from now on, filled with a new pattern: OWNED, or of the open transaction, or SHARED. */
void slot_put(struct ctx *c, struct slot *s, void *p, size_t size, uint32_t state);
void slot_verify(struct ctx *c, const struct slot *s, const char *where);
void slot_free(struct ctx *c, struct slot *s);
bool slot_publish(struct ctx *c, struct slot *s); /* OWNED -> SHARED, and pinned; false: no memory for the pin */
bool slot_claim(struct ctx *c, struct slot *s);   /* SHARED -> OWNED */
void slot_forget(struct ctx *c, struct slot *s);  /* it is no longer this thread's */
void object_new(struct ctx *c, struct slot *s);   /* by any function that allocates */
void object_resize(struct ctx *c, struct slot *s);
void drop_tx_slots(struct ctx *c);
static inline bool slot_is_free_to_use(const struct slot *s) /* an object, and no other leads to it */
{
    uint32_t state = slot_state(s);
    return state == SLOT_OWNED || state == SLOT_TX || state == SLOT_SHARED;
}

bool pin(struct ctx *c, const void *p);
void unpin(struct ctx *c, const void *p);

/* Frees the nodes of a graph that only this thread knows. */
void graph_free(struct ctx *c, const struct graph *g);
void graph_verify(struct ctx *c, const struct graph *g, const char *where);
void root_name(char name[32], int root);

/* In operations_tx.c. */
bool tx_begin(struct ctx *c);
void tx_meddle(struct ctx *c);
void tx_abort(struct ctx *c);
bool tx_commit(struct ctx *c, const char *root, arena_ref_t expected, arena_ref_t desired);

/* Operations of a process run beside one another; one can be alone for a while. */
void gate_alone(void);
void gate_shared_again(void);
/* Declares it, as often as it takes. */
void declare(arena_t *a, int mode);

/* A cancellation of this thread may take effect here, and nowhere else. */
void thread_may_end(struct ctx *c);

void grow_some(struct ctx *c);
void hold_some(struct ctx *c);
void held_free(struct ctx *c); /* all that is held, and what holds it */
void frames_some(struct ctx *c);

#endif
