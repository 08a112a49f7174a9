#include "shm/span.h"

#include <stddef.h>

void span_begin(struct heap *h, uint64_t first)
{
    /* entries without a record are of warm pages, unless this says otherwise */
    store_release(&h->spans[first].returned, 0); /* [RP1] */
}

void span_write_entries(struct heap *h, uint64_t first, uint32_t from, uint32_t count, unsigned span_class, uint32_t unit)
{
    for (uint32_t i = from; i < from + count; i++)
        store_relaxed(&h->pages[first + i], page_entry_make(span_class, unit, i));
}

void span_write_record(struct heap *h, uint64_t first, uint32_t page_count, unsigned span_class, uint32_t unit,
                       uint16_t lessee, uint16_t charged, uint32_t uid)
{
    struct span *span = &h->spans[first];
    store_relaxed(&span->page_count, page_count);
    store_relaxed(&span->unit, unit);
    store_relaxed(&span->uid, uid);
    store_relaxed(&span->charged, charged);
    store_relaxed(&span->lessee, lessee);
    store_release(&span->span_class, (uint8_t)span_class); /* [SP1] */
}

void span_write(struct heap *h, uint64_t first, uint32_t page_count, unsigned span_class, uint32_t unit,
                uint16_t lessee, uint16_t charged, uint32_t uid)
{
    span_begin(h, first);
    span_write_entries(h, first, 0, page_count, span_class, unit);
    span_write_record(h, first, page_count, span_class, unit, lessee, charged, uid);
}

void span_clear(struct heap *h, uint64_t first)
{
    struct span *span = &h->spans[first];
    uint32_t page_count = load_relaxed(&span->page_count);
    uint16_t returned = load_relaxed(&span->returned);
    store_release(&span->span_class, 0); /* [SP1] */
    for (uint32_t i = 0; i < page_count; i++)
        store_relaxed(&h->pages[first + i], i < SMALL_PAGES && (returned >> i & 1) ? PAGE_COLD : PAGE_WARM);
}

void span_clear_record(struct heap *h, uint64_t first)
{
    store_release(&h->spans[first].span_class, 0); /* [SP1] */
}

void pages_set_free(struct heap *h, uint64_t first, uint64_t count, int warm)
{
    for (uint64_t i = 0; i < count; i++)
        store_relaxed(&h->pages[first + i], warm ? PAGE_WARM : PAGE_COLD);
}

uint32_t span_count_free(const struct span_info *span)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < span->objects; i++)
        count += load_relaxed(&span->words[i]) == WORD_FREE;
    fence_acquire(); /* [ST1] */
    return count;
}

const char *span_check(const struct heap *h, uint64_t first)
{
    const struct span *span = &h->spans[first];
    unsigned c = load_acquire(&span->span_class); /* [SP1] */
    uint32_t page_count = load_relaxed(&span->page_count), unit = load_relaxed(&span->unit);
    if (!CLASS_VALID(c))
        return "span class out of range";
    if (page_count == 0 || page_count > h->page_count - first)
        return "more pages than the heap has";
    if (!CLASS_IS_LARGE(c) && page_count != class_table[c].pages)
        return "page count is not the size class's";
    uint32_t objects = CLASS_IS_LARGE(c) ? 1 : class_table[c].objects;
    if (unit == 0 || unit + (uint64_t)span_units(objects) > h->unit_count)
        return "state words out of range";
    if (load_relaxed(&span->lessee) >= TAG_COUNT || load_relaxed(&span->charged) >= TAG_COUNT)
        return "lessee out of range";
    for (uint32_t i = 0; i < page_count; i++) {
        if (load_relaxed(&h->pages[first + i]) != page_entry_make(c, unit, i))
            return "a page entry disagrees with the span's record";
        if (i == 7 && page_count > SMALL_PAGES)
            i = page_count - 9;
    }
    return NULL;
}

int object_find(const struct heap *h, uint64_t offset, struct object *ret)
{
    if (offset >= h->heap_bytes)
        return 0;
    uint64_t page = offset >> PAGE_SHIFT;
    uint64_t entry = load_relaxed(&h->pages[page]);
    unsigned c = page_entry_class(entry);
    uint32_t back = page_entry_index(entry);
    if (!CLASS_VALID(c) || back > page)
        return 0;
    ret->first = page - back;
    ret->span_class = (uint8_t)c;
    uint64_t in_span = offset - (ret->first << PAGE_SHIFT);
    if (CLASS_IS_LARGE(c)) {
        ret->index = 0;
        ret->size = (uint64_t)load_relaxed(&h->spans[ret->first].page_count) << PAGE_SHIFT;
    } else {
        ret->index = class_index(&class_table[c], in_span);
        ret->size = class_table[c].size;
        if (ret->index >= class_table[c].objects)
            return 0;
    }
    uint64_t start = (uint64_t)ret->index * ret->size;
    ret->offset = (ret->first << PAGE_SHIFT) + start;
    ret->remainder = in_span - start > UINT32_MAX ? UINT32_MAX : (uint32_t)(in_span - start);
    uint64_t word = (uint64_t)page_entry_unit(entry) * UNIT_WORDS + ret->index;
    if (word >= h->unit_count * UNIT_WORDS)
        return 0;
    ret->word = h->words + word;
    return 1;
}
