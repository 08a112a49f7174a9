/* A relay between a client and its daemon: threads of the client's own process, so that what connects has its pid. It hands
 * requests over and loses what it is told to lose. */
#ifndef TESTS_CRASH_RELAY_H
#define TESTS_CRASH_RELAY_H

#include "proto/msg.h"
#include "tests/e2e/harness.h"

/* Of the answer to a request of that type, once: passed on; lost with the connection, when board->cut says so; never given. */
enum relay_what { RELAY_PASS, RELAY_CUT, RELAY_SILENT };

/* In memory that processes may share. */
struct relay_board {
    _Atomic uint64_t passed;   /* requests of that type that the daemon was given */
    _Atomic uint64_t answered; /* the relay has an answer that it keeps */
    _Atomic uint64_t cut;      /* it may break the connection off */
};

/* Its socket is at path, in front of d's. */
void relay_start(const struct daemon *d, struct relay_board *board, char *path, size_t capacity);
void relay_lose(uint32_t type, enum relay_what what);

#endif
