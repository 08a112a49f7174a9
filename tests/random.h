/* Repeatable randomness: every test that uses it prints its seed, and SEED= runs it again. */
#ifndef TESTS_RANDOM_H
#define TESTS_RANDOM_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/* SEED=, or a fresh one; never 0. */
static inline uint64_t seed_get(void)
{
    const char *text = getenv("SEED");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    uint64_t seed =
        text ? strtoull(text, NULL, 0) : (uint64_t)ts.tv_nsec * 2654435761u + (uint64_t)ts.tv_sec;
    seed |= 1;
    fprintf(stderr, "SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

/* xorshift64: all 64 bits */
static inline uint64_t random_next(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
    return random_next(state) % n;
}

/* xorshift64*, its upper 53 bits: for what is taken modulo small numbers */
static inline uint64_t rnd(uint64_t *state)
{
    return random_next(state) * 2685821657736338717ULL >> 11;
}

#endif
