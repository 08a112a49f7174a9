/* A fuzz target is one function over bytes. libFuzzer calls it with bytes of its own making (`make
 * fuzz`); replay.c, a plain main, with each file of the kept corpus (`make test`). A wrong outcome
 * aborts. */
#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#endif
