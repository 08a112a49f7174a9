#include "shm/sizeclass.h"

#include "shm/fnv.h"

#define MAGIC(size)        ((uint32_t)((0x100000000ULL + (size) - 1) / (size)))
#define ROW(c, s, p, n)    [SPAN_CLASS(c, 0)] = {(s), MAGIC(s), (p), (n)}, [SPAN_CLASS(c, 1)] = {(s), MAGIC(s), (p), (n)},
const struct class_info class_table[CLASS_LIMIT] = {SIZE_CLASS_TABLE(ROW)};

const uint8_t size_class_table[SMALL_MAX / 16 + 1] = {SIZE_CLASS_LOOKUP};

void size_class_by_eights(uint8_t out[SIZE_CLASS_EIGHTS])
{
    for (uint32_t i = 0; i < SIZE_CLASS_EIGHTS; i++)
        out[i] = (uint8_t)size_class_of(i * 8, 0);
}

unsigned size_class_aligned(uint32_t size, uint32_t alignment, unsigned noscan)
{
    unsigned first = size_class_of(size ? size : 1, noscan);
    for (unsigned c = first; c < SIZE_CLASS_COUNT; c++)
        if (class_table[SPAN_CLASS(c, noscan)].size % alignment == 0)
            return c;
    return 0;
}

uint32_t large_pages(uint64_t size)
{
    uint64_t pages = (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
    if (pages > HEAP_MAX_SPAN || size > UINT64_MAX - PAGE_SIZE)
        return 0;
    if (pages <= 16)
        return (uint32_t)(pages ? pages : 1);
    unsigned shift = 63 - (unsigned)__builtin_clzll(pages - 1) - 3;
    uint64_t rounded = ((pages - 1) >> shift) + 1;
    rounded <<= shift;
    return (uint32_t)(rounded > HEAP_MAX_SPAN ? pages : rounded);
}

uint32_t size_class_digest(void)
{
    uint32_t hash = FNV_START;
    for (unsigned c = 0; c < SPAN_CLASS_COUNT; c += 2) {
        hash = fnv_add(fnv_add(hash, class_table[c].size), class_table[c].pages);
    }
    return hash;
}
