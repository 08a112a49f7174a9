/* Scavenging inside spans: pages of unleased, partly used spans that hold nothing but FREE objects go back to the system.
 *
 *      nonempty --- idle, some pages all FREE ---> busy (being returned) ---> returned
 *         ^                                                                      |
 *         +--------------------- busy (being backed) <--- a refill wants it -----+
 *
 * In an unleased span FREE is stable: nobody but a lessee takes a FREE object. A span is on no list while its pages are in
 * flight, so it cannot be leased or uncut. The map says which pages have nothing behind them (`returned`), before they are
 * punched and until they are backed again: so a daemon that comes after this one, at any instruction, backs a page before
 * it leases it. A span that is found wholly free later gives its pages to the mheap as they are, warm or cold.
 */
#include "daemon/core/core.h"

#include <errno.h>

#include "shm/assert.h"

enum { IDLE_TICKS = 2 }; /* of the mheap, after which a span on nonempty is looked at */

/* Which of its pages hold FREE objects only, a bit each. Costs a load a word. */
static uint16_t free_pages(const struct span_info *span)
{
    uint16_t mask = 0;
    ASSERT(span->size); /* a large one has one object: it is never partly used */
    for (uint32_t i = 0; i < span->page_count && i < SMALL_PAGES; i++) {
        uint64_t from = i * PAGE_SIZE / span->size, to = ((i + 1) * PAGE_SIZE - 1) / span->size;
        bool all = true;
        for (uint64_t object = from; object <= to && object < span->objects && all; object++)
            all = load_relaxed(&span->words[object]) == WORD_FREE;
        mask |= (uint16_t)(all << i);
    }
    return mask;
}

typedef int (*run_fn)(void *context, uint64_t first, uint64_t pages);

/* Calls fn for each run of bits: the mask of those that it took. */
static uint16_t each_run(struct core *core, uint64_t first, uint16_t mask, run_fn fn)
{
    struct dspan *d = &core->dspans[first];
    uint16_t taken = 0;
    for (unsigned i = 0; i < SMALL_PAGES; i++) {
        unsigned run = 0;
        while (i + run < 16 && (mask >> (i + run) & 1))
            run++;
        if (run == 0)
            continue;
        if (fn(core->mheap.backing.context, first + i, run) < 0)
            break;
        taken |= (uint16_t)(((1u << run) - 1) << i);
        d->in_flight++;
        i += run;
    }
    return taken;
}

static void return_pages(struct core *core, const struct span_info *span, uint16_t mask)
{
    mcentral_set_busy(core, span);
    core_set_returned(core, span->first, mask); /* first the map: what is not marked there is backed */
    uint16_t taken = each_run(core, span->first, mask, core->mheap.backing.give_back);
    core_set_returned(core, span->first, taken);
    if (!core->dspans[span->first].in_flight)
        mcentral_set_idle(core, span);
}

bool scavenge_turn(struct core *core, uint32_t spans, uint32_t words)
{
    uint64_t page = core->scavenge_cursor, top = core->mheap.top;
    if (page >= top)
        page = 1;
    while (page < top && spans && words) {
        struct span_info span;
        spans--;
        if (!core_span_next(core, &page, &span))
            continue;
        struct dspan *d = &core->dspans[span.first];
        bool idle = core->scavenge_now || (uint8_t)(core->mheap.tick - d->tick) >= IDLE_TICKS;
        if (d->list != LIST_NONEMPTY || d->looked || !idle)
            continue;
        d->looked = 1;
        if (span.page_count == 1)
            continue; /* some of its only page is used */
        words -= words < span.objects ? words : span.objects;
        uint16_t mask = free_pages(&span);
        if (mask)
            return_pages(core, &span, mask);
    }
    core->scavenge_cursor = page;
    return page < top;
}

int scavenge_back(struct core *core, struct uid_account *account, unsigned span_class, uint32_t pages)
{
    const struct user_spans *c = user_spans(account, span_class);
    uint32_t asked = 0;
    while (c && asked < pages && c->returned_first != SPAN_END) {
        struct span_info span;
        uint32_t first = c->returned_first;
        bool ok = span_at(&core->heap, first, &span);
        ASSERT(ok && span.span_class == span_class);
        uint16_t mask = core->heap.spans[first].returned;
        if (!mheap_may_grow(&core->mheap, (uint64_t)__builtin_popcount(mask), core->now_ns))
            break;
        mcentral_set_busy(core, &span);
        core->mheap.grow_request = span.page_count;
        each_run(core, first, mask, core->mheap.backing.grow); /* what is not taken stays marked */
        if (!core->dspans[first].in_flight) {
            mcentral_set_idle(core, &span);
            break;
        }
        asked += span.page_count;
    }
    return asked ? -EAGAIN : -ENOMEM;
}

/* The span that holds a page in flight; false: it is the mheap's. */
static bool span_of(struct core *core, uint64_t page, struct span_info *ret)
{
    uint64_t entry = load_relaxed(&core->heap.pages[page]);
    return page_entry_class(entry) && span_at(&core->heap, page - page_entry_index(entry), ret);
}

static void landed(struct core *core, const struct span_info *span, uint64_t first, uint64_t pages, bool backed)
{
    const struct span *record = &core->heap.spans[span->first];
    struct dspan *d = &core->dspans[span->first];
    uint16_t bits = (uint16_t)(((1u << pages) - 1) << (first - span->first));
    ASSERT(d->list == LIST_BUSY && d->in_flight);
    if (backed)
        core_set_returned(core, span->first, (uint16_t)(record->returned & ~bits));
    if (--d->in_flight == 0)
        mcentral_set_idle(core, span);
}

void core_grown(struct core *core, uint64_t first, uint64_t pages, int error, uint64_t now_ns)
{
    struct span_info span;
    if (!span_of(core, first, &span)) {
        mheap_grown(&core->mheap, first, pages, error, now_ns);
        return;
    }
    if (error)
        mheap_note_failure(&core->mheap, pages, now_ns);
    landed(core, &span, first, pages, error == 0);
}

void core_returned(struct core *core, uint64_t first, uint64_t pages, int error)
{
    struct span_info span;
    if (!span_of(core, first, &span)) {
        mheap_returned(&core->mheap, first, pages, error);
        return;
    }
    if (!error)
        core->heap.header->pages_returned += pages;
    landed(core, &span, first, pages, error != 0);
}

/* ---- strays: memory behind pages that should have none ------------------------------------------------------------------ */

enum { STRAY_PIECE = 128 }; /* pages: a punch of 1 MiB takes 0.2-0.4 ms of the worker */

/* A span on `returned` is out of every refill's way while its pages are cleared. */
static uint64_t stray_in_span(struct core *core, const struct stray_ops *ops, const struct span_info *span)
{
    uint16_t mask = core->heap.spans[span->first].returned;
    uint64_t asked = 0;
    for (unsigned i = 0; i < SMALL_PAGES; i++) {
        unsigned run = 0;
        while (i + run < 16 && (mask >> (i + run) & 1))
            run++;
        if (run && ops->has_memory(ops->context, span->first + i, run) < span->first + i + run) {
            mcentral_set_busy(core, span);
            if (ops->clear(ops->context, span->first + i, run) == 0) {
                core->dspans[span->first].in_flight++;
                asked += run;
            }
        }
        i += run;
    }
    if (core->dspans[span->first].list == LIST_BUSY && !core->dspans[span->first].in_flight)
        mcentral_set_idle(core, span);
    return asked;
}

/* In a run of cold pages: pieces, from *at on, which comes to what was not looked at. */
static uint64_t stray_in_run(struct core *core, const struct stray_ops *ops, uint64_t *at, uint64_t end, uint32_t *steps,
                             uint64_t most)
{
    uint64_t asked = 0;
    while (*at < end && *steps && asked < most) {
        uint64_t first = ops->has_memory(ops->context, *at, end - *at);
        uint64_t pages = end - first < STRAY_PIECE ? end - first : STRAY_PIECE;
        *at = first + pages;
        --*steps;
        if (pages == 0)
            break;
        mheap_take_cold(&core->mheap, first, pages);
        if (ops->clear(ops->context, first, pages) < 0) {
            mheap_cleared(&core->mheap, first, pages);
            break;
        }
        asked += pages;
    }
    return asked;
}

bool scavenge_strays(struct core *core, const struct stray_ops *ops, uint64_t *cursor, uint32_t steps, uint64_t most,
                     uint64_t *ret_asked)
{
    uint64_t page = *cursor ? *cursor : 1, end = core->heap.page_count, asked = 0;
    while (page < end && steps && asked < most) {
        struct span_info span;
        steps--;
        if (span_at(&core->heap, page, &span)) {
            page += span.page_count;
            if (core->dspans[span.first].list == LIST_RETURNED)
                asked += stray_in_span(core, ops, &span);
            continue;
        }
        uint64_t first, run_end = pagealloc_next_taken(&core->mheap.free, page);
        uint64_t run = mheap_next_cold(&core->mheap, page, run_end, &first);
        if (!run) { /* warm, or in flight */
            page = run_end > page ? run_end : page + 1;
            continue;
        }
        page = first;
        asked += stray_in_run(core, ops, &page, first + run, &steps, most - asked);
    }
    *cursor = page;
    *ret_asked = asked;
    return page >= end;
}

void core_cleared(struct core *core, uint64_t first, uint64_t pages)
{
    struct span_info span;
    if (!span_of(core, first, &span))
        mheap_cleared(&core->mheap, first, pages);
    else if (--core->dspans[span.first].in_flight == 0)
        mcentral_set_idle(core, &span);
}
