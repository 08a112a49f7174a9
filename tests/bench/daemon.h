/* A private arenad of the bench's. */
#ifndef TESTS_BENCH_DAEMON_H
#define TESTS_BENCH_DAEMON_H

#include <stdint.h>
#include <sys/types.h>

struct bench_daemon {
    pid_t pid;
    char dir[80], socket[100];
};

int bench_daemon_start(struct bench_daemon *d,
                       const char *max); /* 0, or an errno after a printed line */
void bench_daemon_stop(struct bench_daemon *d);
struct bench_daemon *peer_daemon(unsigned heap); /* that of peer_setup */

struct map_header;
const struct map_header *
peer_map(unsigned heap); /* the daemon's own map, read only: figures without a question */

uint64_t
peer_region_bytes(const char *name); /* memory behind the first heap's regions "arena-NAME..." */

#endif
