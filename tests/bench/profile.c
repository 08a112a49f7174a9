/* What a profile costs a program that does nothing but allocate and free: prints CPU ns of one pair
 * of calls. The worst case there is; whatever else a program does costs it nothing. See profile.sh.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "client/arena.h"

enum { PAIRS = 20000000, BATCH = 100 };

static double cpu_ns(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) * 1e9 +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e3;
}

int main(void)
{
    arena_t *a;
    void *objects[BATCH];
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    double from = cpu_ns();
    for (int i = 0; i < PAIRS / BATCH; i++) {
        for (int k = 0; k < BATCH; k++) {
            objects[k] = arena_alloc(a, 64);
            *(volatile uint64_t *)objects[k] = 1;
        }
        for (int k = 0; k < BATCH; k++)
            arena_free(a, objects[k]);
    }
    printf("%.3f\n", (cpu_ns() - from) / PAIRS);
    return arena_close(a);
}
