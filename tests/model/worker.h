/* One process of the model: THREADS threads that run operations, started, joined, cancelled and started again by main. */
#ifndef TESTS_MODEL_WORKER_H
#define TESTS_MODEL_WORKER_H

#include <sys/types.h>

#include "tests/model/shadow.h"

enum { READER_INDEX = WORKERS, CHILD_INDEX = WORKERS + READERS };

/* The program was started as one: does what it is for, and ends. */
int worker_main(int index);

/* Replaces this program by itself. */
void worker_exec_again(int index) __attribute__((noreturn));

/* Forks and waits; what the child does with the heap is checked by its exit status. */
void fork_and_wait(uint64_t seed, arena_t *a);

arena_t *attach(struct process_shadow *p, unsigned flags);
extern int shadow_fd;
extern const char *model_path;
const char *operation_name(uint32_t operation);

#endif
