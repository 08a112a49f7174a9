#include "shm/check.h"

#include "shm/collect.h"
#include "shm/redo.h"
#include "shm/root.h"
#include "shm/span.h"
#include "shm/tag.h"

static void tell(finding_fn *fn, void *context, enum check_place place, uint64_t number, bool suspicious, const char *text)
{
    fn(context, &(struct finding){place, number, suspicious, text});
}

const char *check_counts(const struct heap *h)
{
    if (h->header->tag_top > TAG_COUNT)
        return "the header says that more tags were used than there are";
    if (load_acquire(&h->header->top) > h->page_count) /* [TP1] */
        return "the header says that more pages were used than there are";
    return NULL;
}

void check_tables(const struct heap *h, finding_fn *fn, void *context)
{
    for (unsigned tag = 1; tag < h->header->tag_top; tag++)
        if (load_acquire(&h->tags[tag].state) >= TAG_STATE_COUNT) /* [TG1] */
            tell(fn, context, CHECK_TAG, tag, false, "a tag in a state that there is not");
    for (uint32_t slot = 0; slot < h->root_slots && root_touched(h, slot); slot++) {
        const char *why = root_check(h, slot);
        if (why)
            tell(fn, context, CHECK_ROOT, slot, false, why);
    }
}

/* ---- what was cut short ------------------------------------------------------------------------------------------------ */

static bool redo_is_whole(const struct heap *h)
{
    const struct redo *redo = &h->header->redo;
    return redo->tag < h->header->tag_top && redo->client < h->header->tag_top && redo->root_slot < h->root_slots &&
           root_name_check(redo->root_name) == 0;
}

void check_repair(struct heap *h)
{
    root_repair(h);
    const struct redo *redo = redo_pending(h);
    if (!redo || !redo_is_whole(h))
        return;
    if (tag_state(h, redo->tag) == TAG_TX)
        tag_set_state(h, redo->tag, TAG_TX_COMMITTED);
    root_write(h, redo->root_slot, redo->root_name, redo->root_ref, redo->root_uid);
    if (redo->client)
        tag_set_done(h, redo->client, redo->request);
    redo_end(h);
}

void check_unfinished(const struct heap *h, finding_fn *fn, void *context)
{
    if (redo_pending(h))
        tell(fn, context, CHECK_HEADER, 0, true,
             redo_is_whole(h) ? "the move of a root was cut short; a daemon that starts finishes it"
                              : "a redo record that is none; a daemon that starts passes it over");
    if (collect_serial(h))
        tell(fn, context, CHECK_HEADER, 0, true, "a collection was under way");
    for (uint32_t slot = 0; slot < h->root_slots && root_touched(h, slot); slot++)
        if (h->roots[slot].used && !h->roots[slot].ref)
            tell(fn, context, CHECK_ROOT, slot, true, "the setting or removal of a root was cut short; it is not there");
}

/* ---- a whole heap ---------------------------------------------------------------------------------------------------------- */

struct look {
    const struct heap *h;
    uint8_t *units;
    finding_fn *fn;
    void *context;
    uint64_t stray_words, stray_pages; /* the first of each is told when all are counted */
    uint64_t stray_word_page, stray_page;
};

static bool take_unit(struct look *look, uint64_t unit)
{
    uint8_t *byte = &look->units[unit / 8], bit = (uint8_t)(1u << unit % 8);
    bool taken = *byte & bit;
    *byte |= bit;
    return !taken;
}

static bool is_client(const struct heap *h, unsigned tag)
{
    enum tag_state state = tag < TAG_COUNT ? tag_state(h, tag) : TAG_FREE;
    return state == TAG_CLIENT || state == TAG_CLIENT_DYING;
}

static bool is_somebody(const struct heap *h, unsigned tag) { return tag < TAG_COUNT && tag_state(h, tag) != TAG_FREE; }

/* Words that bear the tag of nobody: no pass will ever free them. */
static void look_at_words(struct look *look, const struct span_info *span)
{
    for (uint32_t i = 0; i < span->objects; i++) {
        uint16_t word = load_relaxed(&span->words[i]);
        unsigned tag = word_tag(word);
        if (!tag || (word_is_cached(word) ? is_client(look->h, tag) : is_somebody(look->h, tag)))
            continue;
        if (!look->stray_words++)
            look->stray_word_page = span->first;
    }
}

/* The pages to go on behind. */
static uint64_t look_at_span(struct look *look, const struct span_info *span)
{
    const struct heap *h = look->h;
    const struct span *record = &h->spans[span->first];
    const char *why = span_check(h, span->first);
    if (why) {
        tell(look->fn, look->context, CHECK_PAGE, span->first, false, why);
        return 1; /* how far it reaches is not known */
    }
    bool alone = true;
    for (uint32_t i = 0; i < span_units(span->objects); i++)
        alone &= take_unit(look, (uint64_t)record->unit + i);
    if (!alone)
        tell(look->fn, look->context, CHECK_PAGE, span->first, false, "two spans share state words");
    if (record->lessee && !is_client(h, record->lessee))
        tell(look->fn, look->context, CHECK_PAGE, span->first, true, "a span leased to a tag without a client");
    look_at_words(look, span);
    return span->page_count;
}

static void look_at_pages(struct look *look)
{
    const struct heap *h = look->h;
    uint64_t page = 1, top = load_acquire(&h->header->top); /* [TP1] */
    while (page < top) {
        struct span_info span;
        if (span_at(h, page, &span)) {
            page += look_at_span(look, &span);
            continue;
        }
        uint64_t entry = load_relaxed(&h->pages[page]);
        if (load_relaxed(&h->spans[page].span_class)) /* span_at() takes none of them for a span */
            tell(look->fn, look->context, CHECK_PAGE, page, true, "a record of a class that there is not; it counts as free");
        if (entry != PAGE_COLD && entry != PAGE_WARM && !look->stray_pages++)
            look->stray_page = page;
        page++;
    }
}

static void look_at_root(struct look *look, uint32_t slot)
{
    struct object object;
    uint64_t ref = load_relaxed(&look->h->roots[slot].ref);
    if (!ref)
        return;
    if (!object_find(look->h, ref, &object)) {
        tell(look->fn, look->context, CHECK_ROOT, slot, true, "a root that leads to nothing");
        return;
    }
    uint16_t word = load_relaxed(object.word);
    if (word != WORD_SHARED && !(word_is_owned(word) && tag_is_committed(look->h, word_tag(word))))
        tell(look->fn, look->context, CHECK_ROOT, slot, true, "a root that leads to an object that is not published");
}

void check_heap(const struct heap *h, uint8_t *units, finding_fn *fn, void *context)
{
    struct look look = {.h = h, .units = units, .fn = fn, .context = context};
    check_tables(h, fn, context);
    for (unsigned tag = 1; tag < h->header->tag_top; tag++) {
        const char *why = load_acquire(&h->tags[tag].state) < TAG_STATE_COUNT ? tag_check(h, tag) : NULL; /* [TG1] */
        if (why)
            tell(fn, context, CHECK_TAG, tag, true, why); /* a daemon that starts ends it */
    }
    take_unit(&look, 0); /* nobody's */
    look_at_pages(&look);
    if (look.stray_words)
        tell(fn, context, CHECK_PAGE, look.stray_word_page, true, "the first of the objects that are held by a tag of nobody");
    if (look.stray_pages)
        tell(fn, context, CHECK_PAGE, look.stray_page, true,
             "the first of the pages that a span was being made of or undone, or whose span's record is lost; they count as free");
    for (uint32_t slot = 0; slot < h->root_slots && root_touched(h, slot); slot++)
        look_at_root(&look, slot);
}
