/* Measures one row with one allocator, and prints a line for each figure: row, metric, value, and
 * the round trip of a cache line between the workers' CPUs before and after (0: one worker).
 *
 * PEER: arena glibc jemalloc mimalloc tcmalloc boost ring
 *
 *     build/bench/worker-PEER ROW [ms=100] [cpu=0] [wait=0] [seed=1] [nice=0]
 *
 *     build/bench/worker-arena fixed/64/100 ms=2000
 *     perf record -g build/bench/worker-arena random/small/1t ms=5000
 *     valgrind --tool=callgrind build/bench/worker-arena fixed/16/1 ms=200
 *
 * wait= is how many ms two workers wait at most for CPUs that are near one another.
 * nice=-20 (root) is for a machine that others use too.
 * It starts (for arena) a daemon of its own, pins itself to a CPU, runs the row a moment with whole
 * blocks marked and checked, then for `ms` with their first words. Exit status: 0, 77 the row is
 * not for this peer, else it failed. */
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/bench/bench.h"
#include "tests/bench/rows.h"
#include "tests/bench/speed.h"

static bool option(const char *text, const char *name, uint64_t *value)
{
    size_t n = strlen(name);
    if (strncmp(text, name, n) != 0 || text[n] != '=')
        return false;
    *value = (uint64_t)strtoll(text + n + 1, NULL, 10);
    return true;
}

/* A session of its own, as the kernel shares the CPU out among sessions first, and then by niceness
 * within each. */
static void go_before_others(int priority)
{
    setsid();
    setpriority(PRIO_PROCESS, 0, priority);
    FILE *f = fopen("/proc/self/autogroup", "we");
    if (f) {
        fprintf(f, "%d", priority);
        fclose(f);
    }
}

int main(int argc, char **argv)
{
    uint64_t ms = 100, cpu = 0, wait = 0, seed = 1, priority = 0;
    struct speed speed;
    for (int i = 2; i < argc; i++)
        if (!option(argv[i], "ms", &ms) && !option(argv[i], "cpu", &cpu) &&
            !option(argv[i], "seed", &seed) && !option(argv[i], "wait", &wait) &&
            !option(argv[i], "nice", &priority))
            argc = 0;
    if (argc < 2) {
        fprintf(stderr, "usage: %s ROW [ms=N] [cpu=N] [wait=N] [seed=N] [nice=N]\n", argv[0]);
        return 2;
    }
    struct run run = {.row = argv[1],
                      .ms = (unsigned)ms,
                      .cpu = (unsigned)cpu,
                      .wait_ms = (unsigned)wait,
                      .seed = seed | 1};
    if (priority)
        go_before_others((int)priority);
    if (speed_parse(run.row, &speed))
        return speed_run(&run, &speed);
    int rc = strncmp(run.row, "space/", 6) == 0    ? space_run(&run)
             : strncmp(run.row, "growth/", 7) == 0 ? growth_run(&run)
                                                   : service_run(&run);
    if (rc == 2)
        fprintf(stderr, "no such row: %s\n", run.row);
    return rc;
}
