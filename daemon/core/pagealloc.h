/* A set of free page numbers with an address-ordered search for runs.
 *
 * A bitmap, and over it a radix tree of summaries: for each chunk of 512 pages, and each eight nodes below a node, how
 * long the free run at its start is, the longest one, and the one at its end (the structure of Go's page allocator,
 * mpagealloc.go). Neighbours coalesce by construction; the lowest run of n pages is found in O(log n) nodes. Private
 * memory, mapped without reservation: what was never touched costs nothing.
 *
 * Most of a large heap was never used. From `fresh` on all pages are free, and neither bits nor summaries say so: they are
 * zero and untouched. A page from there that is taken moves `fresh` behind it first. So memory and time are in proportion
 * to what was used, and a search sees the tree below `fresh`, then the one run that goes over it.
 *
 * Invariants (pagealloc_check(), O(touched)): each summary is what its children, or its bits, say; none is set from fresh on.
 * Loop thread.
 */
#ifndef DAEMON_PAGEALLOC_H
#define DAEMON_PAGEALLOC_H

#include <stdbool.h>
#include <stdint.h>

#define PAGEALLOC_NONE   UINT64_MAX
#define PAGEALLOC_LEVELS 9

struct summary {
    uint32_t start, max, end; /* pages */
};

struct pagealloc {
    uint64_t count;      /* pages 0..count-1 */
    uint64_t free_count;
    uint64_t fresh;      /* see above; count: there are none */
    uint64_t touched;    /* nor do they say anything from here on: all pages from it to `fresh` are taken, and always were */
    uint64_t *bits;      /* 1: free */
    struct summary *level[PAGEALLOC_LEVELS]; /* [0]: by chunk of 512 pages; the last has one node */
    uint64_t nodes[PAGEALLOC_LEVELS];
    unsigned levels;
};

int pagealloc_init(struct pagealloc *p, uint64_t count); /* all taken; count < 2^32. -ENOMEM */
void pagealloc_fini(struct pagealloc *p);                /* also of a zeroed one */

void pagealloc_free(struct pagealloc *p, uint64_t first, uint64_t count); /* all were taken */
void pagealloc_take(struct pagealloc *p, uint64_t first, uint64_t count); /* all were free */
void pagealloc_free_rest(struct pagealloc *p, uint64_t first); /* from first on all were taken since the start. O(1) */

/* The lowest run of `count` free pages at a multiple of align (a power of two); takes nothing. PAGEALLOC_NONE */
uint64_t pagealloc_find(const struct pagealloc *p, uint64_t count, uint64_t align);
/* The same for a caller who knows that none begins below `from`. */
uint64_t pagealloc_find_above(const struct pagealloc *p, uint64_t from, uint64_t count, uint64_t align);

bool pagealloc_all_free(const struct pagealloc *p, uint64_t first, uint64_t count);
uint64_t pagealloc_longest(const struct pagealloc *p); /* free run, pages. O(log n) */
bool pagealloc_any_free(const struct pagealloc *p, uint64_t first, uint64_t count);

/* The first free, or taken, page at or after `from`; count: none. */
uint64_t pagealloc_next_free(const struct pagealloc *p, uint64_t from);
uint64_t pagealloc_next_taken(const struct pagealloc *p, uint64_t from);

/* The first free run at or after `from`, and the last one that ends at or before `before`: their length, at most limit
 * (clipped at its end, and at its beginning). 0: none. */
uint64_t pagealloc_next_run(const struct pagealloc *p, uint64_t from, uint64_t limit, uint64_t *ret_first);
uint64_t pagealloc_prev_run(const struct pagealloc *p, uint64_t before, uint64_t limit, uint64_t *ret_first);

/* NULL, or what is wrong. */
const char *pagealloc_check(const struct pagealloc *p);

#endif
