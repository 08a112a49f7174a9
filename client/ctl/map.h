/* The heap as a picture: what each page is, read once, and cut into cells that each stand for some pages.
 *
 * The kinds share out all pages but the first, which is never used (reference 0 is null):
 *   leased + large_leased                    = bytes_leased of stat
 *   leased + full + partial + hollow + large + large_leased = heap_in_use
 *   free + returned + untouched              = pages_free; free = pages_warm
 */
#ifndef CLIENT_CTL_MAP_H
#define CLIENT_CTL_MAP_H

#include <stdio.h>

#include "client/ctl/ctl.h"

/* KIND(name, glyph, ASCII, colour of a terminal, of a picture, what it is) */
#define MAP_KINDS(KIND)                                                                                                \
    KIND(leased, "▓", 'o', 34, "#0072b2", "span leased to a client")                                                   \
    KIND(full, "█", '#', 32, "#009e73", "span without a free object")                                                  \
    KIND(partial, "▒", '+', 33, "#e69f00", "span with free objects")                                                   \
    KIND(hollow, "░", ':', 33, "#f6d998", "page in such a span, returned to the system")                               \
    KIND(large, "■", 'M', 35, "#aa4499", "large object")                                                               \
    KIND(large_leased, "□", 'm', 36, "#56b4e9", "large object, leased to a client")                                    \
    KIND(free, "·", '.', 37, "#d5d8dc", "free, with memory")                                                           \
    KIND(returned, "-", '-', 90, "#f1f3f5", "free, returned to the system")                                            \
    KIND(untouched, " ", ' ', 90, "#ffffff", "free, never used")

enum map_kind {
#define MAP_ENUM(name, glyph, ascii, colour, fill, text) MAP_##name,
    MAP_KINDS(MAP_ENUM)
#undef MAP_ENUM
    MAP_KIND_COUNT
};

enum { MAP_LEVELS = 8, MAP_RUN_BINS = 28 };

struct map_run {
    uint32_t first, pages;
    uint8_t kind;
    uint8_t level; /* of its objects, how many eighths are in use */
};

struct map {
    uint64_t page_count, top; /* no page from top on was ever used */
    uint64_t pages[MAP_KIND_COUNT];
    uint64_t free_runs[MAP_RUN_BINS], free_pages[MAP_RUN_BINS]; /* runs of free pages below top, by log2 of their length */
    uint64_t longest_run;                                       /* pages, those above top too */
    struct map_run *runs;
    size_t run_count, run_capacity;
    cJSON *stat;
};

struct map_cell {
    uint8_t kind;  /* of most of its pages */
    uint8_t level; /* in use, eighths, of those pages */
};

/* Reads it from the daemon: 0, or an exit status after one line. */
int map_read(struct ctl *ctl, struct map *map);
void map_free(struct map *map);

/* `count` cells of `pages_each` pages, from page 0 on; the caller frees them. NULL: out of memory */
struct map_cell *map_cells(const struct map *map, size_t count, uint64_t pages_each);

/* Writes the picture: 0, or CTL_OUTPUT after one line. */
int map_svg(const struct map *map, const char *path);

extern const char *const map_names[MAP_KIND_COUNT], *const map_texts[MAP_KIND_COUNT], *const map_fills[MAP_KIND_COUNT];

#endif
