/* Objects under 16 bytes that hold no references: what classes of 4, 8 and 12 bytes save, in documents as they are.
 *
 *   make bench-tiny FILES='*.json'
 *
 * Each file is parsed with cJSON over the heap: its nodes (64 bytes, with pointers) are scan objects, its strings noscan.
 * Once as the library does it, once with noscan sizes of less than 16 bytes rounded up to 16. What is held is asked of the
 * daemon: bytes of objects, their state words, and the pages of their spans. Then the other way to serve such objects is
 * computed from the same requests in the same order: several packed into a block of 16 bytes, as Go does, with a state
 * word for each part, as frees here are exact and come from any process. Every second record (RECORD requests in a row) is
 * freed, and what can be used again is counted: a block only when all its parts are free, an object of a class by itself. */
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cjson/cJSON.h>

#include "client/arena.h"

enum { BLOCK = 16, WORD = 2, RECORD = 20, TRIES = 2000 };

/* One request of a string of less than 16 bytes, where a packing would have put it. */
struct part {
    uint32_t block, record;
    uint8_t size;
};

static arena_t *a;
static bool rounded;
static uint64_t requests, tiny_requests, tiny_bytes, node_bytes;
static struct part *parts;
static uint64_t part_count, part_capacity, block_count;
static uint32_t block_used;

static void check(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

/* Go's rule: at a multiple of 8, 4 or 2 if the size is one. */
static uint32_t aligned(uint32_t at, uint32_t size)
{
    uint32_t align = size % 8 == 0 ? 8 : size % 4 == 0 ? 4 : size % 2 == 0 ? 2 : 1;
    return (at + align - 1) / align * align;
}

static void pack(uint32_t size)
{
    uint32_t at = aligned(block_used, size);
    if (!block_count || at + size > BLOCK) {
        block_count++;
        at = 0;
    }
    block_used = at + size;
    if (part_count == part_capacity) {
        part_capacity = part_capacity ? part_capacity * 2 : 4096;
        parts = realloc(parts, part_capacity * sizeof *parts);
        check(parts != NULL, "realloc");
    }
    parts[part_count++] = (struct part){(uint32_t)block_count - 1, (uint32_t)(requests / RECORD), (uint8_t)size};
}

static void *hook_alloc(size_t size)
{
    bool node = size == sizeof(cJSON), tiny = size < 16;
    requests++;
    node_bytes += node ? size : 0;
    tiny_requests += tiny;
    tiny_bytes += tiny ? size : 0;
    if (tiny && !rounded)
        pack((uint32_t)(size ? size : 1));
    return arena_alloc_flags(a, tiny && rounded ? 16 : size, node ? 0 : ARENA_NOSCAN);
}

static void hook_free(void *p) { arena_free(a, p); }

static char *read_file(const char *path)
{
    FILE *f = fopen(path, "re");
    char *text = NULL;
    long size;
    if (f && fseek(f, 0, SEEK_END) == 0 && (size = ftell(f)) >= 0 && (text = malloc((size_t)size + 1)) != NULL) {
        rewind(f);
        text[fread(text, 1, (size_t)size, f)] = 0;
    }
    if (f)
        fclose(f);
    return text;
}

struct held {
    uint64_t objects, bytes, pages, words;
};

static struct held held_now(void)
{
    struct arena_stats s = {.size = sizeof s};
    check(arena_trim(a) == 0, "arena_trim");
    check(arena_stats(a, &s) == 0, "arena_stats");
    return (struct held){s.objects_used, s.bytes_used, s.heap_in_use, s.words_in_use};
}

/* Parses all files and says what they hold. */
static struct held parse_all(int count, char **paths, cJSON **roots, bool round_up)
{
    struct held before = held_now(), after;
    rounded = round_up;
    requests = tiny_requests = tiny_bytes = node_bytes = 0;
    for (int i = 0; i < count; i++) {
        char *text = read_file(paths[i]);
        roots[i] = text ? cJSON_Parse(text) : NULL;
        free(text);
    }
    after = held_now();
    return (struct held){after.objects - before.objects, after.bytes - before.bytes, after.pages - before.pages,
                         after.words - before.words};
}

static void print_held(const char *name, struct held h, struct held than)
{
    printf("  %-26s %10llu %12llu %12llu %10llu", name, (unsigned long long)h.objects, (unsigned long long)h.bytes,
           (unsigned long long)h.pages, (unsigned long long)h.words);
    uint64_t all = h.pages + h.words, all_than = than.pages + than.words;
    printf(all == all_than ? "\n" : "   %+.1f %%\n", 100.0 * ((double)all - (double)all_than) / (double)all_than);
}

static uint64_t class_of(uint32_t size) { return size <= 4 ? 4 : size <= 8 ? 8 : size <= 12 ? 12 : 16; }

/* The two ways to serve requests of less than 16 bytes, with every second record freed. */
static void print_ways(void)
{
    uint64_t classes = 0, classes_again = 0, blocks_again = 0, parts_most = 0, parts_in_block = 0;
    uint32_t *left = calloc(block_count + 1, sizeof *left);
    check(left != NULL, "calloc");
    for (uint64_t i = 0; i < part_count; i++) {
        classes += class_of(parts[i].size) + WORD;
        classes_again += parts[i].record % 2 ? class_of(parts[i].size) + WORD : 0;
        left[parts[i].block] += parts[i].record % 2 == 0;
        parts_in_block = i && parts[i].block == parts[i - 1].block ? parts_in_block + 1 : 1;
        parts_most = parts_in_block > parts_most ? parts_in_block : parts_most;
    }
    for (uint64_t i = 0; i < block_count; i++)
        blocks_again += left[i] == 0;
    free(left);
    printf("\nrequests of less than 16 bytes: %llu, %.1f bytes each; bytes with state words, and what can be used again when "
           "every second record is freed\n",
           (unsigned long long)part_count, (double)tiny_bytes / (double)(tiny_requests ? tiny_requests : 1));
    printf("  %-26s %12llu\n", "one block each", (unsigned long long)(part_count * (BLOCK + WORD)));
    printf("  %-26s %12llu %12llu\n", "classes 4, 8, 12", (unsigned long long)classes, (unsigned long long)classes_again);
    /* words stand where an object's index says: a block has as many as it may have parts, at least 4 */
    const uint64_t words[2] = {4, parts_most > 4 ? parts_most : 4};
    for (int i = 0; i < (words[1] > 4 ? 2 : 1); i++) {
        uint64_t block = BLOCK + words[i] * WORD;
        printf("  packed, %llu words a block %14llu %12llu\n", (unsigned long long)words[i],
               (unsigned long long)(block_count * block), (unsigned long long)(blocks_again * block));
    }
}

int main(int argc, char **argv)
{
    int rc = arena_open(&a, NULL, NULL), count = argc - 1, parsed = 0;
    cJSON_Hooks hooks = {hook_alloc, hook_free};
    if (rc < 0 || count < 1) {
        fprintf(stderr, "%s\n", rc < 0 ? strerror(-rc) : "usage: tiny FILE.json...");
        return 1;
    }
    cJSON **roots = calloc((size_t)count, sizeof *roots);
    check(roots != NULL, "calloc");
    cJSON_InitHooks(&hooks);
    struct held at_first = held_now();
    struct held with = parse_all(count, argv + 1, roots, false);
    for (int i = 0; i < count; i++) {
        parsed += roots[i] != NULL;
        cJSON_Delete(roots[i]);
    }
    for (int i = 0; i < TRIES && held_now().pages > at_first.pages; i++)
        ; /* what was freed is given back by the daemon's sweep */
    struct held without = parse_all(count, argv + 1, roots, true);
    printf("%d documents, %llu requests: %.1f %% of them of less than 16 bytes, %.1f %% nodes of %zu bytes\n", parsed,
           (unsigned long long)requests, 100.0 * (double)tiny_requests / (double)requests,
           100.0 * (double)node_bytes / sizeof(cJSON) / (double)requests, sizeof(cJSON));
    printf("  %-26s %10s %12s %12s %10s   %s\n", "", "objects", "bytes", "of spans", "words", "spans + words");
    print_held("none under 16", without, without);
    print_held("classes 4, 8, 12", with, without);
    struct held nodes = {.pages = node_bytes, .words = node_bytes / sizeof(cJSON) * WORD};
    struct held s_without = {without.objects - node_bytes / sizeof(cJSON), without.bytes - node_bytes,
                             without.pages - nodes.pages, without.words - nodes.words};
    struct held s_with = {with.objects - node_bytes / sizeof(cJSON), with.bytes - node_bytes, with.pages - nodes.pages,
                          with.words - nodes.words};
    print_held("strings only: none", s_without, s_without);
    print_held("strings only: classes", s_with, s_without);
    struct held go = {.objects = without.objects - part_count + block_count,
                      .bytes = without.bytes - (part_count - block_count) * BLOCK};
    printf("  %-26s %10llu %12llu   bytes of objects: %+.1f %%; by classes %+.1f %%\n", "packed as Go does, no words",
           (unsigned long long)go.objects, (unsigned long long)go.bytes, 100.0 * (double)go.bytes / (double)without.bytes - 100,
           100.0 * (double)with.bytes / (double)without.bytes - 100);
    print_ways();
    for (int i = 0; i < count; i++)
        cJSON_Delete(roots[i]);
    return arena_close(a) < 0;
}
