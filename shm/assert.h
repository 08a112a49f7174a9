/* ASSERT states what our own code guarantees, and stays on. Never for what another process can write. */
#ifndef SHM_ASSERT_H
#define SHM_ASSERT_H

#include <stdio.h>
#include <stdlib.h>

#define ASSERT(condition)                                                                          \
    do {                                                                                           \
        if (__builtin_expect(!(condition), 0)) {                                                   \
            fprintf(stderr, "%s:%d: assertion failed: %s\n", __FILE__, __LINE__, #condition);      \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

#endif
