#include "shm/layout.h"

#include <errno.h>
#include <string.h>

#include "shm/sizeclass.h"

static uint64_t round_up(uint64_t x, uint64_t to) { return (x + to - 1) / to * to; }

int geometry_init(struct geometry *g, uint64_t heap_max, uint32_t root_slots)
{
    if (heap_max < HEAP_MIN || heap_max > HEAP_MAX || root_slots == 0 || root_slots > ROOT_SLOTS_MAX)
        return -EINVAL;
    memset(g, 0, sizeof *g);
    g->heap_bytes = round_up(heap_max, HEAP_MIN);
    g->page_count = g->heap_bytes >> PAGE_SHIFT;
    g->root_slots = root_slots;
    g->tags_at = round_up(sizeof(struct map_header), 4096);
    g->gens_at = g->tags_at + TAG_COUNT * sizeof(struct tag);
    g->roots_at = round_up(g->gens_at + ROOT_GENS * sizeof(uint32_t) + ROOT_SLOTS_MAX / ROOT_BLOCK / 8, 4096);
    g->buckets_at = round_up(g->roots_at + root_slots * sizeof(struct root), 4096);
    g->pages_at = round_up(g->buckets_at + root_slots * sizeof(struct root_bucket), 4096);
    g->spans_at = round_up(g->pages_at + g->page_count * sizeof(uint64_t), 4096);
    g->map_bytes = round_up(g->spans_at + g->page_count * sizeof(struct span), 4096);
    g->tickets_at = round_up(g->page_count, 4096);
    g->hazards_at = round_up(g->tickets_at + TAG_COUNT * sizeof(uint64_t), 4096);
    g->turning_at = round_up(g->hazards_at + HAZARD_COUNT * sizeof(uint32_t), 4096);
    g->words_at = round_up(g->turning_at + TAG_COUNT * sizeof(uint32_t), 4096);
    /* a page full of 8-byte objects has 2 KiB of words: a quarter of the heap's size is enough for all but 4-byte ones */
    uint64_t words_bytes = g->heap_bytes / 4;
    if (words_bytes / UNIT_BYTES > UINT32_MAX)
        words_bytes = (uint64_t)UINT32_MAX / 4096 * 4096 * UNIT_BYTES;
    g->unit_count = words_bytes / UNIT_BYTES;
    g->state_bytes = g->words_at + words_bytes;
    return 0;
}

void heap_view(struct heap *h, const struct geometry *g, void *heap, void *map, void *state)
{
    uint8_t *m = map, *s = state;
    *h = (struct heap){
        .base = heap,
        .heap_bytes = g->heap_bytes,
        .header = map,
        .tags = (struct tag *)(m + g->tags_at),
        .root_gens = (uint32_t *)(m + g->gens_at),
        .root_touched = (uint64_t *)(m + g->gens_at + ROOT_GENS * sizeof(uint32_t)),
        .roots = (struct root *)(m + g->roots_at),
        .root_buckets = (struct root_bucket *)(m + g->buckets_at),
        .pages = (uint64_t *)(m + g->pages_at),
        .spans = (struct span *)(m + g->spans_at),
        .hints = s,
        .tickets = (uint64_t *)(void *)(s + g->tickets_at),
        .hazards = (uint32_t *)(void *)(s + g->hazards_at),
        .turning = (uint32_t *)(void *)(s + g->turning_at),
        .words = (uint16_t *)(s + g->words_at),
        .page_count = g->page_count,
        .unit_count = g->unit_count,
        .root_slots = g->root_slots,
    };
}

void heap_format(struct heap *h, const struct geometry *g, const uint8_t heap_id[16], uint64_t base)
{
    struct map_header *header = h->header;
    header->version = LAYOUT_VERSION;
    header->page_shift = PAGE_SHIFT;
    memcpy(header->heap_id, heap_id, 16);
    header->heap_max = g->heap_bytes;
    header->base = base;
    header->map_bytes = g->map_bytes;
    header->state_bytes = g->state_bytes;
    header->page_count = g->page_count;
    header->unit_count = g->unit_count;
    header->root_slots = g->root_slots;
    header->class_digest = size_class_digest();
    store_release(&header->magic, LAYOUT_MAGIC); /* [FM1] */
}

int heap_check_header(const struct map_header *header, uint64_t map_bytes, uint64_t state_bytes, struct geometry *ret_g,
                      const char **ret_why)
{
    struct geometry g;
    const char *why = NULL;
    if (map_bytes < sizeof *header || load_acquire(&header->magic) != LAYOUT_MAGIC) /* [FM1] */
        why = "not the map of a heap (wrong magic)";
    else if (header->version != LAYOUT_VERSION)
        why = "a heap of another layout version";
    else if (header->page_shift != PAGE_SHIFT || header->class_digest != size_class_digest())
        why = "a heap with another size class table";
    else if (geometry_init(&g, header->heap_max, header->root_slots) < 0)
        why = "a header with an impossible size";
    else if (g.map_bytes != header->map_bytes || g.map_bytes > map_bytes || g.state_bytes != header->state_bytes ||
             g.state_bytes > state_bytes || g.page_count != header->page_count ||
             g.unit_count != header->unit_count || g.heap_bytes != header->heap_max)
        why = "regions that are shorter than their header says";
    if (why) {
        *ret_why = why;
        return -EPROTO;
    }
    *ret_g = g;
    return 0;
}
