/* The rows of speed: fixed, random, cross, published, large. An operation is a block allocated,
 * marked, checked, freed.
 *
 * Each worker warms up for a third of its time and WARM_MS at least, then is measured: by the wall clock, less the time
 * that others had its CPU, a daemon of its heap excepted, as that is part of the price. (In cross
 * rows by the wall clock alone, as either waits for the other.) */
#include "tests/bench/speed.h"

#include <string.h>

#include "tests/bench/peer.h"

enum { SLOTS = 4096, LARGE_SLOTS = 32, BATCH_MAX = 10000, WARM_MS = 200 };

struct clock {
    uint64_t from, waited, daemon, until;
};

static void clock_begin(struct clock *c, const struct worker *w, unsigned divisor)
{
    c->waited = waited_ns();
    c->daemon = peer_daemon_ns();
    c->from = now_ns();
    uint64_t ms = w->ms / divisor;
    c->until = c->from + (divisor > 1 && ms < WARM_MS ? WARM_MS : ms) * 1000000;
}

INLINE bool clock_runs(const struct clock *c)
{
    return now_ns() < c->until;
}

static void clock_end(const struct clock *c, struct worker *w, uint64_t operations)
{
    uint64_t busy = now_ns() - c->from, waited = waited_ns() - c->waited,
             daemon = peer_daemon_ns() - c->daemon;
    uint64_t excused = waited > daemon ? waited - daemon : 0;
    const struct speed *s = w->argument;
    w->operations = operations;
    w->busy_ns = !s->passes && excused < busy ? busy - excused : busy;
}

/* ---- fixed ---- */

INLINE uint64_t fixed_loop(struct worker *w, peer_t h, const struct speed *s, unsigned divisor,
                           bool whole, bool shared, struct clock *c)
{
    static void *blocks[BATCH_MAX];
    uint64_t operations = 0;
    const size_t size = s->least;
    const unsigned batch = s->batch, turns = batch >= 100 ? 1 : 100;
    clock_begin(c, w, divisor);
    do {
        for (unsigned turn = 0; turn < turns; turn++) {
            for (unsigned i = 0; i < batch; i++) {
                blocks[i] = block_need(shared ? peer_alloc_shared(h, size) : peer_alloc(h, size));
                block_mark(blocks[i], size, i, whole);
            }
            for (unsigned i = batch; i--;) {
                block_check(blocks[i], size, i, whole);
                peer_free(h, blocks[i]);
            }
        }
        operations += (uint64_t)turns * batch;
    } while (clock_runs(c));
    return operations;
}

/* One at a time has a loop of its own, as a program that needs one block has. */
INLINE uint64_t single_loop(struct worker *w, peer_t h, size_t size, unsigned divisor, bool whole,
                            struct clock *c)
{
    uint64_t operations = 0;
    clock_begin(c, w, divisor);
    do {
        for (unsigned turn = 0; turn < 200; turn++) {
            void *p = block_need(peer_alloc(h, size));
            block_mark(p, size, turn, whole);
            block_check(p, size, turn, whole);
            peer_free(h, p);
        }
        operations += 200;
    } while (clock_runs(c));
    return operations;
}

static void fixed_main(struct worker *w)
{
    const struct speed *s = w->argument;
    struct clock c;
    uint64_t operations;
    peer_t h = peer_enter(0);
    if (w->whole)
        fixed_loop(w, h, s, 1, true, s->shared, &c);
    else if (s->shared) {
        fixed_loop(w, h, s, 3, false, true, &c);
        operations = fixed_loop(w, h, s, 1, false, true, &c);
        clock_end(&c, w, operations);
    } else if (s->batch == 1) {
        single_loop(w, h, s->least, 3, false, &c);
        operations = single_loop(w, h, s->least, 1, false, &c);
        clock_end(&c, w, operations);
    } else {
        fixed_loop(w, h, s, 3, false, false, &c);
        operations = fixed_loop(w, h, s, 1, false, false, &c);
        clock_end(&c, w, operations);
    }
}

/* ---- random replacement ---- */

struct slots {
    void **at;
    uint32_t *held; /* sizes, in the checking run alone */
    uint32_t sizes[SIZES];
};

static void touch(char *p, size_t size)
{
    for (size_t at = 4096; at < size; at += 4096)
        ((volatile char *)p)[at] = 1;
}

INLINE uint64_t random_loop(struct worker *w, peer_t h, const struct speed *s, struct slots *slots,
                            unsigned divisor, bool whole, bool shared, bool touched,
                            struct clock *c)
{
    uint64_t operations = 0, rng = w->seed;
    const unsigned turns = touched ? 8 : 128;
    clock_begin(c, w, divisor);
    do {
        for (unsigned turn = 0; turn < turns; turn++) {
            uint64_t r = chance(&rng);
            unsigned i = (unsigned)((r >> 32) * s->slots >> 32);
            uint32_t size = slots->sizes[r % SIZES];
            void *p = slots->at[i];
            block_check(p, whole ? slots->held[i] : 8, i, whole);
            peer_free(h, p);
            p = block_need(shared ? peer_alloc_shared(h, size) : peer_alloc(h, size));
            block_mark(p, size, i, whole);
            if (touched)
                touch(p, size);
            if (whole)
                slots->held[i] = size;
            slots->at[i] = p;
        }
        operations += turns;
    } while (clock_runs(c));
    return operations;
}

static void random_measure(struct worker *w, peer_t h, const struct speed *s, struct slots *slots)
{
    struct clock c;
    uint64_t operations;
    for (unsigned divisor = 3;; divisor = 1) {
        if (s->shared)
            operations = random_loop(w, h, s, slots, divisor, false, true, false, &c);
        else if (s->touched)
            operations = random_loop(w, h, s, slots, divisor, false, false, true, &c);
        else
            operations = random_loop(w, h, s, slots, divisor, false, false, false, &c);
        if (divisor == 1)
            break;
        if (s->workers > 1)
            workers_meet(w, s->workers);
    }
    clock_end(&c, w, operations);
}

static void random_main(struct worker *w)
{
    const struct speed *s = w->argument;
    peer_t h = peer_enter(s->unconnected ? w->index : 0);
    struct slots *slots = calloc(1, sizeof *slots);
    slots->at = calloc(s->slots, sizeof *slots->at);
    slots->held = calloc(s->slots, sizeof *slots->held);
    sizes_fill(slots->sizes, s->least, s->most, s->logarithmic, 88172645463325252ULL);
    for (unsigned i = 0; i < s->slots; i++) {
        slots->held[i] = slots->sizes[i % SIZES];
        slots->at[i] = block_need(peer_alloc(h, slots->held[i]));
        block_mark(slots->at[i], slots->held[i], i, w->whole);
    }
    if (w->whole) {
        struct clock c;
        random_loop(w, h, s, slots, 1, true, s->shared, false, &c);
    } else
        random_measure(w, h, s, slots);
    for (unsigned i = 0; i < s->slots; i++) {
        block_check(slots->at[i], slots->held[i], i, w->whole);
        peer_free(h, slots->at[i]);
    }
    free(slots->held);
    free(slots->at);
    free(slots);
}

/* ---- cross free ---- */

/* Both sides look at the other's index only when what they knew of it is used up. */
INLINE void ring_push(struct ring *ring, uint64_t *tail, uint64_t *known_head, void *p)
{
    while (*tail - *known_head == RING_SLOTS)
        *known_head = atomic_load_explicit(&ring->head, memory_order_acquire);
    ring->slots[*tail % RING_SLOTS] = p;
    atomic_store_explicit(&ring->tail, ++*tail, memory_order_release);
}

INLINE void *ring_pop(struct ring *ring, uint64_t *head, uint64_t *known_tail)
{
    while (*head == *known_tail) {
        atomic_store_explicit(&ring->head, *head, memory_order_release);
        *known_tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    }
    void *p = ring->slots[*head % RING_SLOTS];
    ++*head;
    if (*head % 64 == 0)
        atomic_store_explicit(&ring->head, *head, memory_order_release);
    return p;
}

INLINE void cross_produce(struct worker *w, peer_t h, const uint32_t *sizes, bool whole)
{
    struct ring *ring = &w->shared->ring;
    uint64_t tail = 0, known_head = 0, operations = 0;
    struct clock c;
    for (unsigned divisor = 3;; divisor = 1) {
        operations = 0;
        clock_begin(&c, w, divisor);
        do {
            for (unsigned turn = 0; turn < 128; turn++) {
                uint32_t size = sizes[(operations + turn) % SIZES];
                void *p = block_need(peer_alloc(h, size));
                block_mark(p, size, whole ? size : 0, whole);
                peer_publish(h, p);
                ring_push(ring, &tail, &known_head, p);
            }
            operations += 128;
        } while (clock_runs(&c));
        if (divisor == 1)
            break;
    }
    clock_end(&c, w, operations);
    ring_push(ring, &tail, &known_head, NULL);
}

INLINE void cross_consume(struct worker *w, peer_t h, const uint32_t *sizes, bool whole)
{
    struct ring *ring = &w->shared->ring;
    uint64_t head = 0, known_tail = 0;
    void *p;
    (void)sizes;
    while ((p = ring_pop(ring, &head, &known_tail)) != NULL) {
        uint32_t size = 8;
        if (whole) /* the mark tells the size that it was made with */
            size = (uint32_t)(*(uint64_t *)p ^ (uint64_t)(uintptr_t)p);
        block_check(p, size > 32768 ? 8 : size, whole ? size : 0, whole);
        peer_free(h, p);
    }
}

static void cross_main(struct worker *w)
{
    static uint32_t sizes[SIZES];
    const struct speed *s = w->argument;
    peer_t h = peer_enter(0);
    if (w->index == 0)
        sizes_fill(sizes, s->least, s->most, false, 88172645463325252ULL);
    workers_meet(w, s->workers);
    if (w->index == 0 && w->whole)
        cross_produce(w, h, sizes, true);
    else if (w->index == 0)
        cross_produce(w, h, sizes, false);
    else if (w->whole)
        cross_consume(w, h, sizes, true);
    else
        cross_consume(w, h, sizes, false);
    workers_meet(w, s->workers); /* a process that ends early would take its heap along */
}

/* ---- rows ---- */

static bool sizes_of(const char *name, struct speed *s)
{
    char *end;
    s->least = s->most = (uint32_t)strtoul(name, &end, 10);
    if (end != name)
        return true;
    s->least = 8;
    s->logarithmic = strcmp(name, "wide") == 0;
    s->most = s->logarithmic ? 32768 : 1000;
    return s->logarithmic || strcmp(name, "small") == 0;
}

/* 1: one worker; t, p, u: two threads, two processes, two processes on heaps of their own */
static bool workers_of(const char *name, struct speed *s)
{
    s->workers = name[0] == '1' ? 1 : 2;
    s->how = strcmp(name, "2p") == 0 || strcmp(name, "p") == 0 || strcmp(name, "2u") == 0
                 ? PROCESSES
                 : THREADS;
    s->unconnected = strcmp(name, "2u") == 0;
    return strcmp(name, "1t") == 0 || strcmp(name, "2t") == 0 || strcmp(name, "t") == 0 ||
           s->how == PROCESSES;
}

/* Random replacement of 16..128 B in N slots, or of small blocks in a heap of a size, or beside N
 * idle clients. */
static bool flat_parse(const char *what, const char *value, struct speed *s)
{
    s->fn = random_main;
    s->least = 8, s->most = 1000;
    if (strcmp(what, "objects") == 0) {
        s->least = 16, s->most = 128;
        s->slots = (unsigned)strtoul(value, NULL, 10);
        return s->slots > 0;
    }
    if (strcmp(what, "heap") == 0)
        return snprintf(s->max, sizeof s->max, "%s", value) < (int)sizeof s->max;
    s->crowd = (unsigned)strtoul(value, NULL, 10);
    return strcmp(what, "clients") == 0 && s->crowd > 0;
}

bool speed_parse(const char *row, struct speed *s)
{
    char text[64], *part[4] = {text, NULL, NULL, NULL};
    snprintf(text, sizeof text, "%s", row);
    for (unsigned n = 1; n < 4 && (part[n] = strchr(part[n - 1], '/')) != NULL; n++)
        *part[n]++ = 0;
    *s = (struct speed){.workers = 1, .slots = SLOTS, .batch = 1, .how = THREADS, .max = "8G"};
    if (!part[1])
        return false;
    if (strcmp(part[0], "published") == 0) {
        s->shared = true;
        s->fn = strcmp(part[1], "small") == 0 ? random_main : fixed_main;
        s->batch = part[2] ? (unsigned)atoi(part[2]) : 1;
        return sizes_of(part[1], s) && s->batch >= 1 && s->batch <= BATCH_MAX;
    }
    if (strcmp(part[0], "large") == 0) {
        s->least = 64 << 10, s->most = 4 << 20, s->logarithmic = true;
        s->slots = LARGE_SLOTS;
        s->touched = strcmp(part[1], "touched") == 0;
        s->fn = random_main;
        return s->touched || strcmp(part[1], "untouched") == 0;
    }
    if (strcmp(part[0], "flat") == 0)
        return part[2] && flat_parse(part[1], part[2], s);
    if (!part[2] || !sizes_of(part[1], s))
        return false;
    s->batch = (unsigned)atoi(part[2]);
    s->fn = fixed_main;
    if (strcmp(part[0], "fixed") == 0)
        return s->batch >= 1 && s->batch <= BATCH_MAX;
    s->fn = strcmp(part[0], "random") == 0 ? random_main : cross_main;
    s->passes = s->fn == cross_main;
    return (s->fn == random_main || strcmp(part[0], "cross") == 0) && workers_of(part[2], s);
}

int speed_run(const struct run *run, const struct speed *s)
{
    double before = 0, after = 0;
    if (s->fn == cross_main ? s->how == PROCESSES && !peer_is_shared : peer_only_passes)
        return 77;
    if ((s->unconnected || s->crowd || strcmp(s->max, "8G") != 0) && !peer_is_arena)
        return 77;
    if (peer_setup(s->unconnected ? 2 : 1, s->max) != 0 ||
        (s->crowd > 1 && peer_crowd(s->crowd - 1) != 0))
        return 1;
    if (workers_run(run, s->fn, s, s->workers, s->how, true) < 0)
        return 1;
    if (s->workers > 1)
        before = round_trip_near(run);
    double mops = workers_run(run, s->fn, s, s->workers, s->how, false);
    if (s->workers > 1)
        after = round_trip_ns(run);
    if (mops <= 0)
        return 1;
    printf("%s\tmops\t%.4f\t%.0f\t%.0f\n", run->row, mops, before, after);
    return 0;
}
