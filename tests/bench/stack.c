/* What a frame costs: on the thread's stack, beside an object of the heap, and beside a segmented
 * stack at the edge of a segment ("hot split").
 *
 *   make bench-stack
 *
 * Each row is the best of ROUNDS rounds of COUNT; the rows of one table take turns, so that what
 * else the machine does falls on all of them. Objects are written to, as they would be. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/arena.h"

enum { COUNT = 10000000, ROUNDS = 7 };

static arena_t *a;
static arena_stack_t *s;

static double now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec * 1e9 + (double)ts.tv_nsec;
}

static inline void use(void *p)
{
    *(volatile uint64_t *)p = 1;
    __asm__ volatile("" : : "r"(p) : "memory");
}

/* ---- a segmented stack, as Go had until 1.2 ------------------------------------------------- */

struct segment {
    struct segment *before;
    size_t used;
    char bytes[2048 - 16];
};
static struct segment *segment;
static uint64_t segments_made;

static void *segmented_push(size_t size)
{
    if (segment->used + size > sizeof segment->bytes) {
        struct segment *more = arena_alloc(a, sizeof *more);
        segments_made++;
        more->before = segment;
        more->used = 0;
        segment = more;
    }
    void *p = segment->bytes + segment->used;
    segment->used += size;
    return p;
}

static void segmented_pop(size_t size)
{
    segment->used -= size;
    if (segment->used == 0 && segment->before) {
        struct segment *empty = segment;
        segment = empty->before;
        arena_free(a, empty);
    }
}

/* ---- rows ----------------------------------------------------------------------------------- */

static void heap_object(size_t size)
{
    for (int i = 0; i < COUNT; i++) {
        void *p = arena_alloc(a, size);
        use(p);
        arena_free(a, p);
    }
}

static void frame(size_t size)
{
    for (int i = 0; i < COUNT; i++) {
        arena_frame_t f = arena_frame_push(s);
        use(arena_frame_alloc(s, size));
        arena_frame_pop(s, f);
    }
}

static void small_frame(size_t size)
{
    (void)size;
    for (int i = 0; i < COUNT; i++) {
        arena_frame_t f = arena_frame_push(s);
        use(arena_frame_alloc_small(s, 64));
        arena_frame_pop(s, f);
    }
}

/* The same, not inlined: what a function with a frame pays. */
static __attribute__((noinline)) void called(size_t size)
{
    arena_frame_t f = arena_frame_push(s);
    use(arena_frame_alloc(s, size));
    arena_frame_pop(s, f);
}
static void frame_in_a_function(size_t size)
{
    for (int i = 0; i < COUNT; i++)
        called(size);
}

static __attribute__((noinline)) void called_segmented(size_t size)
{
    use(segmented_push(size));
    segmented_pop(size);
}
static void segmented(size_t size)
{
    for (int i = 0; i < COUNT; i++)
        called_segmented(size);
}

struct row {
    const char *name;
    void (*run)(size_t size);
    double best;
};

static void measure(struct row *rows, int count, size_t size)
{
    for (int i = 0; i < count; i++)
        rows[i].best = 1e30;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < count; i++) {
            double from = now_ns();
            rows[i].run(size);
            double ns = (now_ns() - from) / COUNT;
            rows[i].best = ns < rows[i].best ? ns : rows[i].best;
        }
}

static void frames(void)
{
    struct row rows[] = {{"arena_alloc + arena_free", heap_object, 0},
                         {"frame push + alloc + pop", frame, 0},
                         {"the same in a function of its own", frame_in_a_function, 0},
                         {"small frame, no compare", small_frame, 0}};
    measure(rows, 4, 64);
    printf("64 bytes, ns each (best of %d x %d)\n", ROUNDS, COUNT);
    for (int i = 0; i < 4; i++)
        printf("  %-36s %6.2f   %5.1f times faster\n", rows[i].name, rows[i].best,
               rows[0].best / rows[i].best);
}

static void hot_split(void)
{
    arena_frame_t f = arena_frame_push(s);
    struct row rows[] = {{"contiguous", frame_in_a_function, 0}, {"segmented", segmented, 0}};
    struct row edge[] = {{"contiguous", frame_in_a_function, 0}, {"segmented", segmented, 0}};
    segment = arena_alloc(a, sizeof *segment);
    segment->before = NULL;
    segment->used = 64;
    measure(rows, 2, 64);
    uint64_t before = segments_made;
    segment->used = sizeof segment->bytes - 32; /* the next call does not fit */
    arena_frame_alloc(s, s->limit - s->top);
    size_t size = arena_stack_size(s);
    measure(edge, 2, 64);
    printf("a call at the edge of a chunk (hot split), ns a call, %d calls\n", COUNT);
    printf("  %-12s %9s %9s   %s\n", "", "inside", "at edge", "allocations in all rounds");
    printf("  %-12s %9.2f %9.2f   %d (grew from %zu to %zu bytes once)\n", rows[0].name,
           rows[0].best, edge[0].best, arena_stack_size(s) != size, size, arena_stack_size(s));
    printf("  %-12s %9.2f %9.2f   %llu\n", rows[1].name, rows[1].best, edge[1].best,
           (unsigned long long)(segments_made - before));
    arena_frame_pop(s, f);
    arena_free(a, segment);
}

int main(void)
{
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    s = arena_stack(a);
    frames();
    hot_split();
    return arena_close(a);
}
