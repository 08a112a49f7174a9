/* The explorer: runs threads of real code one access to shared memory at a time, in every order.
 *
 * A thread is a coroutine on a stack of its own. It stops before each access (hooks.h); a step lets
 * it make that access and run on to its next. A state is the bytes of all registered memory, the
 * stacks and the store buffers; from each state, every thread's step, every flush of a buffer and
 * every kill is taken in turn (depth first, states already seen are not entered again), and the
 * invariant is asked. Where nothing can go on, the final check is asked.
 *
 * Stores wait in a buffer of their thread until a flush makes them visible to others; the thread
 * itself sees them at once. TSO, as x86: flushed in order. WEAK, as far as C11 allows stores to
 * pass one another: a relaxed store may be flushed before an earlier one to another place, a
 * release store may not, nor one behind a release fence. A read-modify-write, a lock, an unlock and
 * a message empty the buffer. A killed process's buffers are emptied in order.
 *
 * Not modelled: loads that pass earlier loads, and tearing of memory that is not accessed through
 * shm/atomic.h.
 *
 * A mutant is one access changed or moved; the explorer must find what that breaks. */
#ifndef TESTS_EXPLORE_EXPLORE_H
#define TESTS_EXPLORE_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { EX_THREADS = 8, EX_PROCESSES = 6 };
enum ex_order { EX_SC, EX_TSO, EX_WEAK };

enum ex_mutation {
    MUTANT_NONE,
    MUTANT_DELAY,       /* the store is made `delay` accesses of its thread later */
    MUTANT_DROP,        /* the store is not made; a swap says that it was */
    MUTANT_SKIP_IF_SET, /* the store is not made if the value is there already */
    MUTANT_PLAIN,       /* a read-modify-write becomes a load and a store */
    MUTANT_NO_LOCK,     /* the function takes no lock */
    MUTANT_BACKWARDS,   /* told by the world: see world.h */
    MUTANT_BLIND,       /* a load sees 0; a compare-and-swap succeeds and stores nothing */
};
struct ex_mutant {
    const char *what; /* printed */
    enum ex_mutation mutation;
    const char *function, *address; /* address NULL: any */
    unsigned delay;
    bool no_kills; /* what it breaks must show without any */
};

struct ex_scenario {
    const char *name;
    void (*setup)(void);              /* registers memory, adds threads; nothing is explored yet */
    void (*invariant)(void);          /* in every state; calls ex_violation() */
    void (*final)(void);              /* where no thread can go on */
    void (*killed)(unsigned process); /* after its buffers were emptied */
    enum ex_order order;
    unsigned buffer;      /* stores that wait, at most, a thread; 0: as SC */
    unsigned kills;       /* processes killed in a run, at most */
    unsigned kill_mask;   /* bit i: process i may be */
    uint64_t most_states; /* stops there: the scenario is too big. 0: no bound */
};

struct ex_result {
    uint64_t states, transitions, finals;
    unsigned depth;
    bool complete;
    char violation[256]; /* "": none */
};

/* mutant NULL: as it is. verbose: the way to a violation is printed. */
struct ex_result ex_run(const struct ex_scenario *scenario, const struct ex_mutant *mutant,
                        bool verbose);

/* ---- for the setup and the threads ----------------------------------------------------------- */

/* Memory that belongs to the state. Everything that the threads write, but their stacks. */
void ex_memory(void *p, size_t bytes);
/* Accesses here are no points: one thread's, or constant; `process` may write it while others only
 * read: its own loads are no points. */
void ex_private(const void *p, size_t bytes);
void ex_owned(const void *p, size_t bytes, unsigned process);
/* tls: given to ex_switched() each time that the thread runs */
int ex_thread(const char *name, unsigned process, void (*fn)(void *), void *argument, void *tls);
/* Begins a thread anew, as a restart does. */
void ex_restart(int thread, void (*fn)(void *), void *argument);
extern void (*ex_switched)(void *tls);
/* Memory for ex_alloc() of a process; reset: all of it is thrown away. */
void ex_heap(unsigned process, void *p, size_t bytes);
void ex_heap_reset(unsigned process);
void ex_heap_select(unsigned process); /* for what setup itself allocates */

void ex_wait(bool (*ready)(void *),
             void *argument);       /* until it is true; as a system call, empties the buffer */
unsigned ex_choose(unsigned count); /* every one of 0..count-1 is explored */
void ex_violation(const char *format, ...) __attribute__((format(printf, 1, 2)));
bool ex_is_dead(unsigned process);
unsigned ex_self(void); /* the running thread's process */
bool ex_done(int thread);
bool ex_running(void); /* false: setup or a check, where everything happens at once */
bool ex_supported(void);
const struct ex_mutant *ex_mutant(void);

#endif
