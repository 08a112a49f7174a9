/* What the end-to-end tests share: a private daemon, its figures, and processes that can be killed.
 *
 * Each test program starts daemons of its own in a directory of its own under $TMPDIR, which is removed at the end. A
 * daemon is known to serve when it says so (--ready-fd). Daemons and spawned processes end when the test program does,
 * however it ends. When something fails the end of the daemon's log is printed. */
#ifndef TESTS_E2E_HARNESS_H
#define TESTS_E2E_HARNESS_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <sys/types.h>

#include <cmocka.h>

#include "client/arena.h"

/* A sanitizer's build does less of what is done millions of times. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { LESS = 20 };
#else
enum { LESS = 1 };
#endif

struct daemon {
    pid_t pid;        /* of what was started: the keeper, or the daemon with --keeper=no */
    char dir[80], socket[100], log[100];
};

/* Starts build/arenad --foreground on a socket of its own with the given further options (NULL ends). */
void daemon_start(struct daemon *d, const char *max, ...);
/* The same again, on the same socket: after a kill. */
void daemon_again(struct daemon *d, const char *max, ...);
/* SIGTERM, and waits: its exit status. */
int daemon_stop(struct daemon *d);
void daemon_kill(struct daemon *d); /* SIGKILL, and waits */
void daemon_clean(struct daemon *d); /* removes the directory */

/* The pid that accepts connections: behind a keeper, its child. */
pid_t daemon_serving(const struct daemon *d);
int daemon_fd_count(const struct daemon *d);

/* A figure of arena_stats by a connection of the harness's own, through arenactl stat --json. */
uint64_t stat_of(const struct daemon *d, const char *name);
/* Waits until a figure is what it should be; figures of the reclaiming pass come by turns. Ends when the daemon does. */
void stat_await(const struct daemon *d, const char *name, uint64_t value);
/* arenactl check: its exit status; what it printed goes to standard error when it is not 0. */
int check_of(const struct daemon *d);

/* Waits until a counter in shared memory is at least `until`; fails when the process that counts has ended before. */
void await_counter(_Atomic uint64_t *counter, uint64_t until, pid_t pid);

/* Makes a directory of the test's own below $TMPDIR. */
void temp_dir(char *out, size_t capacity, const char *name);

/* $ARENA_BUILD, else build: where the programs are. */
const char *programs_dir(void);

arena_t *open_heap(const struct daemon *d);

/* Runs fn in a process of its own; the exit status is its return value. */
pid_t spawn(int (*fn)(void *argument), void *argument);
int reap(pid_t pid); /* exit status, or 128 + signal */

/* Repeatable randomness: SEED= or fresh; printed. */
uint64_t seed_get(void);
uint64_t rnd(uint64_t *state);

/* Runs a command line, collects what it prints (both streams): its exit status. */
int run(char *out, size_t capacity, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
