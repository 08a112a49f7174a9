/* The rows of speed: a row's name says what is done. */
#ifndef TESTS_BENCH_SPEED_H
#define TESTS_BENCH_SPEED_H

#include "tests/bench/bench.h"

struct speed {
    worker_fn *fn;
    uint32_t least, most; /* sizes */
    unsigned batch, slots, workers, crowd;
    enum how how;
    bool logarithmic, shared, touched, unconnected, passes;
    char max[16]; /* of the heap */
};

/* fixed/SIZE/BATCH, random/{small,wide}/{1t,2t,2p,2u}, cross/{SIZE,small}/{t,p},
 * published/{SIZE/BATCH,small}, large/{touched,untouched}, flat/{objects/N,heap/SIZE,clients/N} */
bool speed_parse(const char *row, struct speed *s);

int speed_run(const struct run *run,
              const struct speed *s); /* prints its line; exit status, 77: not for this peer */

#endif
