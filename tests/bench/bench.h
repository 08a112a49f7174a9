/* What every workload of a worker uses: clocks, chance, marked blocks, workers on CPUs of their
 * own. */
#ifndef TESTS_BENCH_BENCH_H
#define TESTS_BENCH_BENCH_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define INLINE static inline __attribute__((always_inline))

enum { WORKERS_MAX = 2, RING_SLOTS = 4096, NEAR_NS = 250 };

/* The command line. */
struct run {
    const char *row;
    unsigned ms;      /* measured time of a row of speed */
    unsigned cpu;     /* of the first worker */
    unsigned wait_ms; /* for CPUs that are near */
    uint64_t seed;
};

INLINE uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

INLINE uint64_t chance(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return *state = x;
}

/* ---- blocks: marked when they are allocated, checked before they are freed ----
 *
 * The mark is of the block's own address and a key of its holder, so a block that was handed out
 * twice, moved or written to by another is found. `whole` marks every byte, for the check that goes
 * ahead of each measurement. */

void block_is_wrong(const void *p, size_t at);

INLINE void block_mark(void *p, size_t size, uint64_t key, bool whole)
{
    uint64_t mark = (uint64_t)(uintptr_t)p ^ key;
    *(uint64_t *)p = mark;
    if (whole)
        for (size_t i = 8; i < size; i++)
            ((volatile uint8_t *)p)[i] = (uint8_t)(mark >> i % 8 * 8);
}

INLINE void block_check(const void *p, size_t size, uint64_t key, bool whole)
{
    uint64_t mark = (uint64_t)(uintptr_t)p ^ key;
    if (__builtin_expect(*(const uint64_t *)p != mark, 0))
        block_is_wrong(p, 0);
    if (whole)
        for (size_t i = 8; i < size; i++)
            if (((const volatile uint8_t *)p)[i] != (uint8_t)(mark >> i % 8 * 8))
                block_is_wrong(p, i);
}

/* A worker that got no memory has failed: it says so and ends. */
INLINE void *block_need(void *p)
{
    if (__builtin_expect(!p, 0)) {
        perror("no memory");
        _Exit(1);
    }
    return p;
}

/* ---- sizes ---- */

enum { SIZES = 4096 };

/* SIZES of them: uniform, or uniform in their logarithm. */
void sizes_fill(uint32_t *sizes, uint32_t least, uint32_t most, bool logarithmic, uint64_t seed);

/* ---- workers ---- */

struct ring {                            /* single producer, single consumer */
    _Alignas(128) _Atomic uint64_t head; /* written by the consumer */
    _Alignas(128) _Atomic uint64_t tail; /* written by the producer */
    _Alignas(128) void *slots[RING_SLOTS];
};

struct worker {
    unsigned index, cpu, ms;
    bool whole; /* the check that goes ahead: whole blocks, a short while */
    uint64_t seed;
    struct shared *shared;
    const void *argument;
    uint64_t operations, busy_ns; /* result */
};

struct shared { /* between the workers, threads or processes */
    _Atomic unsigned arrived;
    struct worker workers[WORKERS_MAX];
    struct ring ring;
};

typedef void worker_fn(struct worker *w);
enum how { THREADS, PROCESSES };

/* Runs fn in `count` workers on CPUs of their own: Mops/s of all together; < 0: a worker failed. */
double workers_run(const struct run *run, worker_fn *fn, const void *argument, unsigned count,
                   enum how how, bool whole);

/* For workers to begin measuring together. */
void workers_meet(struct worker *w, unsigned count);

void pin(unsigned cpu);

/* Nanoseconds that this thread wanted to run and another had its CPU. */
uint64_t waited_ns(void);

/* ns of a cache line's round trip between the CPUs of two workers. */
double round_trip_ns(const struct run *run);

/* The same, after at most run->wait_ms for the CPUs to be near one another: on a virtual machine
 * they come and go. */
double round_trip_near(const struct run *run);

#endif
