/* What the end-to-end tests share: a private daemon, its figures, and processes that can be killed.
 *
 * Each test program starts daemons of its own in a directory of its own under $TMPDIR, which is removed at the end. A
 * daemon is known to serve when it says so (--ready-fd). Daemons and spawned processes end when the test program does,
 * however it ends. When something fails the end of the daemon's log is printed. */
#ifndef TESTS_E2E_HARNESS_H
#define TESTS_E2E_HARNESS_H

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdbool.h>
#include <sys/types.h>

#include <cmocka.h>

#include "client/arena.h"
#include "tests/random.h"

/* A sanitizer's build does less of what is done millions of times. */
#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { LESS = 20 };
#else
enum { LESS = 1 };
#endif

struct daemon {
    pid_t pid; /* of what was started: the keeper, or the daemon with --keeper=no */
    char dir[80], socket[100], log[100];
    arena_t **heap; /* closed by daemon_teardown(); NULL: none */
};

/* Runs in the daemon's process before the program does: to enter a namespace, to be refused something. NULL: nothing. */
extern void (*daemon_prepare)(void);

/* Starts build/arenad --foreground on a socket of its own with the given further options (NULL ends). */
void daemon_start(struct daemon *d, const char *max, ...);
/* The same again, on the same socket: after a kill. */
void daemon_again(struct daemon *d, const char *max, ...);
/* SIGTERM, and waits: its exit status. */
int daemon_stop(struct daemon *d);
void daemon_kill(struct daemon *d); /* SIGKILL, and waits */
void daemon_clean(struct daemon *d); /* removes the directory */

/* The setup of a group or of a test: a daemon is started, the heap is opened in *heap, *state is the
 * daemon. With max NULL the test itself starts it, with heap NULL it opens the heap. (Not for a group
 * whose tests have an initial state each: cmocka would give them the group's.) */
int daemon_setup(void **state, struct daemon *d, const char *max, arena_t **heap);
/* What is left of both is closed, stopped and removed. */
int daemon_teardown(void **state);

/* The pid that accepts connections: behind a keeper, its child. */
pid_t daemon_serving(const struct daemon *d);
int daemon_fd_count(const struct daemon *d);
/* Its map, writable as it is for the daemon: for a test that plays the daemon between two of its steps. Of a daemon that runs on
 * memfds as this user. */
struct map_header *daemon_map(const struct daemon *d);

/* arenactl with a command and its options: its exit status. */
int arenactl(const struct daemon *d, char *out, size_t capacity, const char *format, ...)
    __attribute__((format(printf, 4, 5)));
/* The first figure of that name in what arenactl COMMAND --json prints; of arena_stats. */
uint64_t figure_of(const struct daemon *d, const char *command, const char *name);
uint64_t stat_of(const struct daemon *d, const char *name);
/* Waits until a figure is what it should be; figures of the reclaiming pass come by turns. Ends when the daemon does. */
void stat_await(const struct daemon *d, const char *name, uint64_t value);
/* arenactl check: its exit status; what it printed goes to standard error when it is not 0. */
int check_of(const struct daemon *d);

/* Waits until a counter in shared memory is at least `until`; fails when the process that counts has ended before. */
void await_counter(_Atomic uint64_t *counter, uint64_t until, pid_t pid);

/* Zeros that spawned processes share. */
void *shared_memory(size_t bytes);

/* Between two looks: others have the processor. */
void pause_us(unsigned us);

/* pthread_cancel. ThreadSanitizer reports a race in the middle of the store that it saw, and to name the first place it
 * opens the program's files by the open() that programs call: a cancellation point. A thread that is cancelled there takes
 * the report along, and seems to be cancelled where nothing can cancel it. So a place is named before. */
int thread_cancel(pthread_t thread);

/* Makes a directory of the test's own below $TMPDIR. */
void temp_dir(char *out, size_t capacity, const char *name);
int temp_dir_remove(const char *dir); /* with all that is in it: 0 */

/* $ARENA_BUILD, else build: where the programs are. */
const char *programs_dir(void);

arena_t *open_heap(const struct daemon *d);

/* A socket of the test's own at a path, in place of what was there; one of SOCK_SEQPACKET listens. */
int bind_socket(const char *path, int type);

/* Runs fn in a process of its own; the exit status is its return value. */
pid_t spawn(int (*fn)(void *argument), void *argument);
int reap(pid_t pid); /* exit status, or 128 + signal */

/* Runs a command line, collects what it prints (both streams): its exit status. */
int run(char *out, size_t capacity, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Lines of a file, which is there, that a pattern of grep's meets. */
int line_count(const char *path, const char *pattern);

/* A memory cgroup of the test's own, with a limit as "200M"; false: none can be made. What has entered must have ended, or
 * have left for the one that it came from (memory_cgroup_leave()), before it is removed. */
struct memory_cgroup {
    char where[256], dir[300], from[600];
    bool mounted;
};
bool memory_cgroup_make(struct memory_cgroup *group, const char *limit);
void memory_cgroup_enter(const struct memory_cgroup *group, pid_t pid);
void memory_cgroup_leave(const struct memory_cgroup *group, pid_t pid);
void memory_cgroup_remove(const struct memory_cgroup *group);

/* An empty config file where another user can go; the caller unlinks it. 0 or 1, as a setup returns. */
int conf_make(char ret_path[64]);
void conf_write(const char *path, const char *text);

/* Gives a collection much to mark: a list of `count` own objects, and then this process is at a safepoint. 0; 1: the heap has
 * no room; 2: no safepoint. */
int hold_a_list(arena_t *a, uint64_t count);

#endif
