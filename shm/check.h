/* What a daemon that starts does with regions that it takes over: it finishes what was cut short, and refuses what is broken.
 * `arenactl inspect` does the same with a copy of regions that nobody serves, and reads on where a daemon stops.
 *
 * A fault is what a daemon refuses the heap for. What is suspicious it puts right: a death has cut it short, or memory is held by
 * nobody. */
#ifndef SHM_CHECK_H
#define SHM_CHECK_H

#include <stdbool.h>

#include "shm/layout.h"

enum check_place { CHECK_HEADER, CHECK_TAG, CHECK_ROOT, CHECK_PAGE };

struct finding {
    enum check_place place;
    uint64_t number; /* of the tag, the root's slot or the page */
    bool suspicious; /* else a fault */
    const char *text;
};

/* Called for each thing that is found. */
typedef void finding_fn(void *context, const struct finding *finding);

/* The header's counts, which bound every walk: NULL, or what is wrong with them. */
const char *check_counts(const struct heap *h);

/* The states of tags and the marks of roots, before anything is built on them. After check_counts(). */
void check_tables(const struct heap *h, finding_fn *fn, void *context);

/* An update of the map that was cut short is finished or undone. Daemon, at its start; or over a copy. After check_counts().
 * die: every step may be repeated. */
void check_repair(struct heap *h);

/* What check_repair() is going to finish: told as suspicious. */
void check_unfinished(const struct heap *h, finding_fn *fn, void *context);

/* All of it over regions that nobody writes: tables, tags, every span with its entries and words, roots and what they lead to.
 * `units`: zeros, a bit a unit of state words. After check_repair(). O(pages + objects). */
void check_heap(const struct heap *h, uint8_t *units, finding_fn *fn, void *context);

#endif
