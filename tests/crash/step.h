/* Runs a function in a process of its own, one instruction at a time (ptrace, x86-64); and what the
 * tests that do so take from the environment.
 *
 * The function calls STEP_MARK() where the stepping is to begin and where it is to end. The tracer
 * and the process run on one CPU: it is several times faster. */
#ifndef TESTS_CRASH_STEP_H
#define TESTS_CRASH_STEP_H

#include "tests/e2e/harness.h"

#if defined(__x86_64__)
#define STEP_MARK() __asm__ volatile("int3" ::: "memory")
#else
#define STEP_MARK() ((void)0)
#endif

struct stepper {
    pid_t pid;      /* of the stepped thread; 0: it is gone */
    pid_t process;  /* whose thread it is; 0: it is gone */
    int status;     /* of waitpid(), when it is gone */
    uint64_t steps; /* instructions since the first mark */
    uint64_t ip;    /* of the instruction that comes next */
};

enum step { STEP_PLAIN, STEP_SYSTEM_CALL, STEP_MARKED, STEP_GONE };

/* To the first mark. False: it ended before. */
bool step_start(struct stepper *s, void (*fn)(void *), void *argument);
/* The same in a second thread of the process, which ends where fn returns; the second mark may be
 * missing. */
bool step_start_thread(struct stepper *s, void (*fn)(void *), void *argument);
/* One instruction. STEP_SYSTEM_CALL: it was one, and has returned. STEP_MARKED: the second mark,
 * not yet passed. */
enum step step_one(struct stepper *s);
/* Is the next instruction a system call? */
bool step_at_system_call(const struct stepper *s);
/* SIGKILL, and waits. */
void step_kill(struct stepper *s);
/* A main() of `count` tests, one an operation, but for the last. It runs that one and those whose
 * name contains ONLY=; skipped, with the reason, where this machine does not allow single steps. */
int step_main(const char *group, struct CMUnitTest *tests, unsigned count, CMFixtureFunction setup,
              CMFixtureFunction teardown);
extern bool step_all;      /* CRASH=all: every point, not a sample */
extern uint64_t step_seed; /* SEED=: of the sample */

/* "function+offset" or "file+offset" of an address in this program; static memory. */
const char *step_place(uint64_t ip);

#endif
