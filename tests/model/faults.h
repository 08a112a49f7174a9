/* The processes of a run, and what befalls them: kills and stops of any of them and of the daemon, at random moments. */
#ifndef TESTS_MODEL_FAULTS_H
#define TESTS_MODEL_FAULTS_H

#include "tests/e2e/harness.h"
#include "tests/model/shadow.h"

struct fault_counts {
    uint64_t client_kills, daemon_kills, client_stops, daemon_stops, trims, collections;
};
extern struct fault_counts faults;

void model_daemon_start(struct daemon *d); /* as the round's settings say */
void model_daemon_again(struct daemon *d);

void processes_start(uint64_t *seed);
void processes_end(struct daemon *d); /* they come to their end by themselves */

/* One thing that may happen now, or the end of one. */
void fault_next(struct daemon *d, uint64_t *seed);

/* All go on; then all rest between two operations. */
void quiesce(struct daemon *d);
void go_on(void);

#endif
