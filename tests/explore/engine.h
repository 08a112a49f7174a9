/* What the two halves of the explorer share: explore.c runs a thread to its next access, search.c
 * goes through the states. */
#ifndef TESTS_EXPLORE_ENGINE_H
#define TESTS_EXPLORE_ENGINE_H

#include "tests/explore/explore.h"

enum {
    STACK_BYTES = 256 << 10,
    DEAD_STACK = 12 << 10, /* below a thread's stack pointer: what its next step may use; zeroed, so
                              that states are equal */
    BUFFER_MAX = 4,
    RANGES_MAX = 160,
};

enum status {
    THREAD_NONE,
    THREAD_READY,
    THREAD_WAITING,
    THREAD_CHOOSING,
    THREAD_DONE,
    THREAD_DEAD
};

struct pending_store {
    void *p;
    uint64_t value, before; /* before: what is there for others, while the thread runs */
    uint8_t size, release, fence, pad[5];
};

struct thread {
    const char *name;
    void (*fn)(void *);
    void *argument, *tls, *sp;
    bool (*ready)(void *);
    void *ready_argument;
    const char *at_function, *at_address; /* its next access */
    uint32_t process, status, choices, choice;
    uint32_t buffered, fences;
    struct pending_store buffer[BUFFER_MAX];
    uint32_t delayed; /* accesses until the store that a mutant moved; 0: none */
    uint32_t pad;
    struct pending_store late;
};

struct world_state { /* what else belongs to the state */
    uint32_t kills;
    uint32_t dead; /* processes, a bit each */
    uint32_t heap_used[EX_PROCESSES];
};
struct range {
    uint8_t *p;
    size_t bytes;
};

extern struct thread ex_threads[EX_THREADS];
extern uint8_t *ex_stacks[EX_THREADS];
extern unsigned ex_thread_count;
extern struct thread *ex_current; /* NULL: setup or a check */
extern struct world_state ex_state;
extern struct range ex_ranges[RANGES_MAX];
extern unsigned ex_range_count;
extern const struct ex_scenario *ex_scenario_now;
extern const struct ex_mutant *ex_mutant_now;

void ex_engine_reset(void);
void ex_step(struct thread *t); /* its access, and on to its next */
/* The running thread goes no further for now. */
void ex_stop(enum status status, const char *function, const char *address);

#endif
