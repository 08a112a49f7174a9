/* A private arenad of the bench's. */
#ifndef TESTS_BENCH_DAEMON_H
#define TESTS_BENCH_DAEMON_H

#include <sys/types.h>

struct bench_daemon {
    pid_t pid;
    char dir[80], socket[100];
};

int bench_daemon_start(struct bench_daemon *d, const char *max); /* 0, or an errno after a printed line */
void bench_daemon_stop(struct bench_daemon *d);
struct bench_daemon *peer_daemon(unsigned heap); /* that of peer_setup */

#endif
