/* How long a collection takes: seconds for each GiB of published objects that are reached, by what they are.
 *
 *   make bench-gc GC_MIB=1024
 *
 * The mark runs on the daemon's threads, one a core, while clients that pin run on; the best of ROUNDS dry runs. Then the
 * root is removed, and one collection frees it all. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/arena.h"

enum { ROUNDS = 3, EDGES = 2 };

static arena_t *a;
static uint64_t seed = 88172645463325252u;

static uint64_t rnd(void)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return seed;
}

static void check(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

static void *object(size_t size, unsigned flags)
{
    void *p = arena_alloc_flags(a, size, flags | ARENA_SHARED);
    check(p != NULL, "arena_alloc");
    memset(p, 0xff, size); /* what is no reference */
    return p;
}

/* Each shape is built of `bytes` bytes and is one structure behind the object that is returned. */
typedef void *build_fn(uint64_t bytes);

/* Nodes of 64 bytes, each with two edges to its children: the order of addresses is that of the tree. */
static void *tree(uint64_t bytes)
{
    uint64_t count = bytes / 64;
    void **nodes = malloc(count * sizeof *nodes);
    check(nodes != NULL, "malloc");
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *node = nodes[i] = object(64, 0);
        if (i)
            ((uint64_t *)nodes[(i - 1) / 2])[i % 2] = arena_ref(a, node);
    }
    void *root = nodes[0];
    free(nodes);
    return root;
}

/* The same number of nodes, and two edges of each to any others; a chain through all of them in random order. */
static void *random_graph(uint64_t bytes)
{
    uint64_t count = bytes / 64;
    uint64_t **nodes = malloc(count * sizeof *nodes);
    check(nodes != NULL, "malloc");
    for (uint64_t i = 0; i < count; i++)
        nodes[i] = object(64, 0);
    for (uint64_t i = count - 1; i; i--) {
        uint64_t k = rnd() % (i + 1), *swap = nodes[i];
        nodes[i] = nodes[k];
        nodes[k] = swap;
    }
    for (uint64_t i = 0; i < count; i++) {
        nodes[i][0] = i ? arena_ref(a, nodes[i - 1]) : 0;
        for (int e = 1; e <= EDGES; e++)
            nodes[i][e] = arena_ref(a, nodes[rnd() % count]);
    }
    void *root = nodes[count - 1];
    free(nodes);
    return root;
}

/* One chain: each object is known only when the one before it was read, so one core works at a time. */
static void *chain(uint64_t bytes)
{
    uint64_t *last = NULL;
    for (uint64_t i = 0; i < bytes / 64; i++) {
        uint64_t *node = object(64, 0);
        node[0] = arena_ref(a, last);
        last = node;
    }
    return last;
}

/* Objects of 16..1000 bytes behind arrays of 4096 references. */
static void *mixed(uint64_t bytes)
{
    uint64_t *array = NULL, at = 0;
    for (uint64_t sum = 0; sum < bytes;) {
        if (!array || at == 4096) {
            uint64_t *next = object(4096 * 8, 0);
            next[0] = arena_ref(a, array);
            array = next;
            at = 1;
            sum += 4096 * 8;
        }
        size_t size = 16 + rnd() % 985;
        array[at++] = arena_ref(a, object(size, 0));
        sum += size;
    }
    return array;
}

/* Bytes that hold no references are not read: blocks of 4 KiB, noscan, behind arrays. */
static void *noscan(uint64_t bytes)
{
    uint64_t count = bytes / 4096, *array = object(count * 8, 0);
    for (uint64_t i = 0; i < count; i++)
        array[i] = arena_ref(a, object(4096, ARENA_NOSCAN));
    return array;
}

static void measure(const char *name, build_fn *build, uint64_t bytes)
{
    struct arena_gc_stats best = {.mark_ns = UINT64_MAX}, stats = {.size = sizeof stats};
    void *root = build(bytes);
    check(arena_root_set(a, "bench", arena_ref(a, root)) == 0, "arena_root_set");
    for (int i = 0; i < ROUNDS; i++) {
        int rc = arena_gc(a, ARENA_GC_SAFEPOINT | ARENA_GC_DRY_RUN, &stats);
        errno = -rc;
        check(rc == 0, "arena_gc");
        if (stats.mark_ns < best.mark_ns)
            best = stats;
    }
    double gib = (double)best.bytes_kept / (1 << 30);
    arena_root_set(a, "bench", 0);
    check(arena_gc(a, ARENA_GC_SAFEPOINT, &stats) == 0, "arena_gc");
    double freed = (double)stats.bytes / (1 << 30);
    printf("  %-34s %10llu %7.2f %8.2f %10.3f %10.1f %10.3f\n", name, (unsigned long long)best.objects_kept, gib,
           (double)best.bytes_scanned / (1 << 30), (double)best.mark_ns / 1e9 / gib,
           (double)best.mark_ns / (double)best.objects_kept, (double)stats.total_ns / 1e9 / freed);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    uint64_t bytes = (argc > 1 ? strtoull(argv[1], NULL, 10) : 1024) << 20;
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    struct arena_gc_stats stats = {.size = sizeof stats};
    arena_gc(a, ARENA_GC_SAFEPOINT | ARENA_GC_DRY_RUN, &stats);
    printf("a collection of %llu MiB of published objects, %llu workers\n  %-34s %10s %7s %8s %10s %10s %10s\n",
           (unsigned long long)bytes >> 20, (unsigned long long)stats.workers, "", "objects", "GiB", "GiB read",
           "mark s/GiB", "ns/object", "free s/GiB");
    measure("64 B, a binary tree", tree, bytes);
    measure("64 B, a random graph", random_graph, bytes);
    measure("64 B, one chain", chain, bytes);
    measure("16..1000 B behind arrays", mixed, bytes);
    measure("4 KiB noscan behind an array", noscan, bytes);
    return arena_close(a) < 0;
}
