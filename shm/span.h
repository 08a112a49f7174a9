/* Spans as the map shows them. The daemon alone writes records and entries (the functions below marked so); everybody
 * reads them. A position that came from outside is a number until span_at() has said that a span begins there. */
#ifndef SHM_SPAN_H
#define SHM_SPAN_H

#include "shm/layout.h"
#include "shm/sizeclass.h"
#include "shm/state.h"

/* What a span is, read once from its record and its first page's entry. */
struct span_info {
    uint64_t first;      /* page */
    uint32_t page_count;
    uint32_t objects;
    uint32_t size;       /* of an object, bytes */
    uint8_t span_class;
    uint16_t *words;
};

/* 1 if a span begins at page `first`, and what it is. Costs two loads. */
static inline int span_at(const struct heap *h, uint64_t first, struct span_info *ret)
{
    if (first >= h->page_count)
        return 0;
    const struct span *span = &h->spans[first];
    unsigned c = load_acquire(&span->span_class); /* [SP1] */
    if (!CLASS_VALID(c))
        return 0;
    uint32_t page_count = load_acquire(&span->page_count); /* [PC1] before the entries that it grew by */
    ret->first = first;
    ret->page_count = page_count;
    ret->span_class = (uint8_t)c;
    ret->objects = CLASS_IS_LARGE(c) ? 1 : class_table[c].objects;
    ret->size = CLASS_IS_LARGE(c) ? 0 : class_table[c].size;
    ret->words = h->words + (uint64_t)load_relaxed(&span->unit) * UNIT_WORDS;
    return 1;
}

/* One step of a walk over spans: 1 and the span that begins at *page, which moves behind it; or 0, and *page moves on by one. */
static inline int span_next(const struct heap *h, uint64_t *page, struct span_info *ret)
{
    if (!span_at(h, *page, ret) || !ret->page_count) {
        ++*page;
        return 0;
    }
    *page += ret->page_count;
    return 1;
}

static inline uint32_t span_units(uint32_t objects) { return (objects + UNIT_WORDS - 1) / UNIT_WORDS; }

/* Makes pages [first, first + page_count) a span. Daemon only; the words are FREE already.
 * die: after the first entries: a daemon that restarts clears entries that no record covers. */
void span_write(struct heap *h, uint64_t first, uint32_t page_count, unsigned span_class, uint32_t unit, uint16_t lessee,
                uint16_t charged, uint32_t uid);

/* The same in parts, for a span whose entries are written a few at a time: entries from index `from` on, any number of times,
 * and when all are written the record. */
void span_begin(struct heap *h, uint64_t first);
void span_write_entries(struct heap *h, uint64_t first, uint32_t from, uint32_t count, unsigned span_class, uint32_t unit);
void span_write_record(struct heap *h, uint64_t first, uint32_t page_count, unsigned span_class, uint32_t unit, uint16_t lessee,
                       uint16_t charged, uint32_t uid);

/* Undoes it; the entries become PAGE_WARM, or PAGE_COLD where `returned` says so. Daemon only.
 * die: the record goes first: see span_write(). */
void span_clear(struct heap *h, uint64_t first);

/* The record alone. die: entries that no record covers; see span_write(). */
void span_clear_record(struct heap *h, uint64_t first);

/* The doors below are the daemon's as well.
 *
 * Entries of pages that are no span's, PAGE_WARM or PAGE_COLD. die: some of them are. In any
 * order, and a few at a time. */
void pages_set_free(struct heap *h, uint64_t first, uint64_t count, int warm);

/* A large span has grown, its entries first; or is to shrink, its entries afterwards. die: entries that no record covers; a
 * daemon that starts clears them. */
static inline void span_set_page_count(struct heap *h, uint64_t first, uint32_t pages)
{
    store_release(&h->spans[first].page_count, pages); /* [PC1] */
}

/* The client that alone may take its FREE objects; 0: nobody. die: leased to a client that was told nothing: that one will
 * not list it when it resumes; or nobody's and not yet counted, which a daemon that starts does. */
static inline void span_set_lessee(struct heap *h, uint64_t first, uint16_t tag)
{
    store_release(&h->spans[first].lessee, tag); /* [LS1] */
}

/* The client whose quota pays for it; 0: it is gone. die: another client of the same user pays, or nobody but the user. */
static inline void span_set_charged(struct heap *h, uint64_t first, uint16_t tag) { store_relaxed(&h->spans[first].charged, tag); }

/* Bit i: page i has no memory behind it. die: a page is marked that still has memory, which is found as a stray's is. */
static inline void span_set_returned(struct heap *h, uint64_t first, uint16_t mask)
{
    store_release(&h->spans[first].returned, mask); /* [RP1] */
}

/* Of a span of small objects all hints, of a large one the first: by exchanges, and then the words are counted. die: no
 * hint and not counted; whose span it is counts it again when it takes over. */
static inline void span_clear_hints(const struct heap *h, uint64_t first, uint32_t page_count)
{
    for (uint32_t i = 0; i < page_count && i < SMALL_PAGES; i++)
        hint_clear(&h->hints[first + i]);
}

/* The pages are cut into a span: its hints are of no objects. */
static inline void span_reset_hints(const struct heap *h, uint64_t first, uint32_t page_count)
{
    for (uint32_t i = 0; i < page_count && i < SMALL_PAGES; i++)
        hint_reset(&h->hints[first + i]);
}

/* How many of its words are FREE now. O(objects). */
uint32_t span_count_free(const struct span_info *span);

/* Checks the record at `first` and its entries (invariants 1, 2, 3 of shm/layout.h): NULL, or what is wrong.
 * O(pages of the span), for a large one its first and last 8 pages. */
const char *span_check(const struct heap *h, uint64_t first);

/* Where a pointer points. */
struct object {
    uint64_t first;     /* page of its span */
    uint32_t index;     /* in the span */
    uint32_t remainder; /* bytes from the object's start; only below 4 GiB exact, see object_find() */
    uint64_t offset;    /* of the object's start in the heap */
    uint64_t size;
    uint8_t span_class;
    uint16_t *word;
};

/* Finds the object that holds heap offset `offset`: 1, or 0 if it is in no object. Any pointer, interior too. */
int object_find(const struct heap *h, uint64_t offset, struct object *ret);

#endif
