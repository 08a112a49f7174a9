/* Size classes: which class serves a request, and the arithmetic of its spans. Constant tables, no shared memory. */
#ifndef SHM_SIZECLASS_H
#define SHM_SIZECLASS_H

#include <stdbool.h>

#include "shm/layout.h"

#define SMALL_MAX 32768u /* bytes: above it an object is a span of its own */

struct class_info {
    uint32_t size;    /* bytes of an object; 0: no such class, or large */
    uint32_t magic;   /* ceil(2^32 / size): offset * magic >> 32 is the object's index, for every offset in a span */
    uint16_t pages;   /* of a span */
    uint16_t objects; /* of a span */
};

/* by span class; the entries of the large classes are zero */
extern const struct class_info class_table[CLASS_LIMIT];

/* by (size + 15) / 16, sizes up to SMALL_MAX: the size class */
extern const uint8_t size_class_table[SMALL_MAX / 16 + 1];

/* The size class for `size` <= SMALL_MAX. Below 16 bytes a scan object gets 8 or 16, a noscan one 4, 8, 12 or 16. */
static inline unsigned size_class_of(uint32_t size, unsigned noscan)
{
    if (size > 12 || (size > 8 && !noscan))
        return size_class_table[(size + 15) / 16];
    if (noscan)
        return size <= 4 ? 1 : size <= 8 ? 2 : 3;
    return 2;
}

/* By (size + 7) / 8, sizes up to SMALL_MAX: the size class for scan objects. For a fast path: one look, no compare. */
enum { SIZE_CLASS_EIGHTS = SMALL_MAX / 8 + 1 };
void size_class_by_eights(uint8_t out[SIZE_CLASS_EIGHTS]);

/* The size class for objects of `size` bytes at multiples of `alignment`, a power of two up to PAGE_SIZE: the first one
 * whose size is a multiple of it and whose spans are; 0: none, take a large span. */
unsigned size_class_aligned(uint32_t size, uint32_t alignment, unsigned noscan);

static inline uint32_t class_index(const struct class_info *info, uint64_t offset)
{
    return (uint32_t)(offset * info->magic >> 32);
}

/* Pages of a large object of `size` bytes: geometric, eight steps a doubling, so that at most 12.5 % is lost and freed
 * objects fit later requests. 0: more than HEAP_MAX_SPAN. */
uint32_t large_pages(uint64_t size);

/* A digest of the table, for the map's header. */
uint32_t size_class_digest(void);

#endif
