/* Building strings in a buffer that grows, preset or not, beside realloc of the C library; objects
 * by the batch; and what a transaction saves against publishing each object.
 *
 *   make bench-grow
 *
 * Best of ROUNDS; what is compared takes turns. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/arena.h"

enum { ROUNDS = 5, PIECE = 64 };

static arena_t *a;
static const char piece[PIECE + 1] =
    "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

static double now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static void check(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- strings -------------------------------------------------------------------------------- */

static void by_buffer(size_t bytes, size_t preset)
{
    arena_buf_t b;
    check(arena_buf_init(&b, a, preset) == 0, "arena_buf_init");
    for (size_t n = 0; n < bytes; n += PIECE)
        check(arena_buf_append(&b, piece, PIECE) == 0, "arena_buf_append");
    char *text = arena_buf_detach(&b, NULL);
    check(text != NULL, "arena_buf_detach");
    arena_free(a, text);
}

static void by_realloc(size_t bytes, size_t preset)
{
    size_t capacity = preset, length = 0;
    char *data = preset ? malloc(preset) : NULL;
    for (size_t n = 0; n < bytes; n += PIECE) {
        if (length + PIECE > capacity) {
            capacity = capacity ? capacity * 2 : 64;
            data = realloc(data, capacity);
            check(data != NULL, "realloc");
        }
        memcpy(data + length, piece, PIECE);
        length += PIECE;
    }
    data = realloc(data, length);
    __asm__ volatile("" : : "r"(data) : "memory");
    free(data);
}

static void strings(size_t bytes, const char *name)
{
    static const char *const names[] = {"arena_buf", "arena_buf, preset", "realloc",
                                        "realloc, preset"};
    double best[4] = {1e9, 1e9, 1e9, 1e9};
    int repeat = bytes < 16 << 20 ? 100 : 1;
    for (int round = 0; round < ROUNDS; round++)
        for (int i = 0; i < 4; i++) {
            double from = now_s();
            for (int n = 0; n < repeat; n++)
                (i < 2 ? by_buffer : by_realloc)(bytes, i % 2 ? bytes : 0);
            double s = (now_s() - from) / repeat;
            best[i] = s < best[i] ? s : best[i];
            if (bytes > 16 << 20)
                arena_trim(a);
        }
    printf("a string of %s from pieces of %d bytes\n", name, PIECE);
    for (int i = 0; i < 4; i++)
        printf("  %-20s %10.3f ms   %6.2f GiB/s\n", names[i], best[i] * 1e3,
               (double)bytes / best[i] / (1 << 30));
}

/* ---- batches -------------------------------------------------------------------------------- */

static void batches(void)
{
    enum { COUNT = 1000, TIMES = 2000 };
    static void *objects[COUNT];
    double best[2] = {1e9, 1e9};
    for (int round = 0; round < ROUNDS; round++)
        for (int kind = 0; kind < 2; kind++) {
            double from = now_s();
            for (int n = 0; n < TIMES; n++)
                if (kind) {
                    check(arena_alloc_batch(a, 64, objects, COUNT) == COUNT, "arena_alloc_batch");
                    arena_free_batch(a, objects, COUNT);
                } else {
                    for (int i = 0; i < COUNT; i++)
                        objects[i] = arena_alloc(a, 64);
                    for (int i = 0; i < COUNT; i++)
                        arena_free(a, objects[i]);
                }
            double ns = (now_s() - from) * 1e9 / TIMES / COUNT;
            best[kind] = ns < best[kind] ? ns : best[kind];
        }
    printf("64 bytes by the %d, alloc + free of one\n  %-20s %10.2f ns\n  %-20s %10.2f ns\n", COUNT,
           "one by one", best[0], "arena_*_batch", best[1]);
}

/* ---- transactions --------------------------------------------------------------------------- */

static void *objects[10000];

static void publish_each(int count)
{
    for (int i = 0; i < count; i++) {
        objects[i] = arena_alloc(a, 64);
        check(arena_publish(a, objects[i]) == 0, "arena_publish");
    }
    check(arena_root_set(a, "bench", arena_ref(a, objects[0])) == 0, "arena_root_set");
}

static void transaction(int count)
{
    check(arena_tx_begin(a) == 0, "arena_tx_begin");
    for (int i = 0; i < count; i++)
        objects[i] = arena_alloc(a, 64);
    arena_ref_t now = 0;
    arena_root_get(a, "bench", &now);
    check(arena_tx_commit(a, "bench", now, arena_ref(a, objects[0])) == 0, "arena_tx_commit");
}

static void transactions(void)
{
    static const int counts[] = {1, 100, 10000};
    printf("objects of 64 bytes behind a root, us for all\n  %8s %14s %14s\n", "objects",
           "publish each", "transaction");
    for (int c = 0; c < 3; c++) {
        int count = counts[c], times = count == 10000 ? 30 : 1000;
        double best[2] = {1e9, 1e9};
        for (int round = 0; round < ROUNDS; round++)
            for (int kind = 0; kind < 2; kind++) {
                double spent = 0;
                for (int n = 0; n < times; n++) {
                    double from = now_s();
                    (kind ? transaction : publish_each)(count);
                    spent += now_s() - from;
                    arena_free_batch(
                        a, objects,
                        (size_t)count); /* the root dangles until the next one; nobody looks */
                }
                best[kind] = spent / times < best[kind] ? spent / times : best[kind];
            }
        printf("  %8d %14.2f %14.2f\n", count, best[0] * 1e6, best[1] * 1e6);
    }
    arena_root_set(a, "bench", 0);
}

int main(int argc, char **argv)
{
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    strings(1 << 20, "1 MiB");
    if (argc < 2 || strcmp(argv[1], "--small") != 0)
        strings(1 << 30, "1 GiB");
    batches();
    transactions();
    return arena_close(a);
}
