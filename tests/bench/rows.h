/* The rows that are not of speed: each prints its lines; exit status, 2: no such row, 77: not for
 * this peer. */
#ifndef TESTS_BENCH_ROWS_H
#define TESTS_BENCH_ROWS_H

#include "tests/bench/bench.h"

int space_run(const struct run *run);  /* space/{wide,tiny} */
int growth_run(const struct run *run); /* growth/SIZE */
int service_run(
    const struct run *run); /* attach/SIZE, reclaim/{quiet,death,backing,returning}, flood/{quiet,leases,roots} */

/* A figure of /proc/PID/smaps_rollup in bytes; pid 0: this process. */
uint64_t rollup_bytes(int pid, const char *field);

#endif
