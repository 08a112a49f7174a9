/* A fuzz target is one function over bytes. libFuzzer calls it with bytes of its own making (`make
 * fuzz`); replay.c, a plain main, with each file of the kept corpus (`make test`). A wrong outcome
 * aborts. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

#include "proto/msg.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The name of a message that none of the inputs so far had, or NULL: the kept corpus has a seed for each. */
const char *fuzz_lacks(void);

enum { FUZZ_TYPES = MSG_JOB(1, 8) }; /* more than a type is */

/* The table's first message that is not among `seen`. */
static inline const char *fuzz_unseen(const unsigned char seen[FUZZ_TYPES])
{
#define FUZZ_LOOK(NAME, name, number, sender, reply, fields) if (!seen[number]) return #NAME;
    MSG_TABLE(FUZZ_LOOK)
#undef FUZZ_LOOK
    return NULL;
}

#endif
