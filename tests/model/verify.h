/* The recount: all rest, and the whole heap is compared with the shadow. */
#ifndef TESTS_MODEL_VERIFY_H
#define TESTS_MODEL_VERIFY_H

#include "tests/e2e/harness.h"

void heap_prepare(struct daemon *d); /* the board, the pillars, the root "turn" */

/* All processes rest. What killed ones left behind is settled and freed. */
void recount(struct daemon *d);

/* All processes have ended: what is there is taken away, and then nothing may be left. */
void recount_last(struct daemon *d);

struct verify_counts {
    uint64_t recounts, checks, orphans, unknown, lost;
};
extern struct verify_counts verified;

#endif
