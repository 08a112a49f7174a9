/* The sweep: follows the hints that flushes leave, counts the FREE words of unleased spans, and lists them by the count:
 * a span with free objects goes on its class's nonempty, one that is wholly free back to the mheap. In an unleased span
 * FREE is stable, so a plain count is sound. A leased span's hints are left for its lessee. */
#include "daemon/core/core.h"

/* First page in [from, to) with a hint; to: none. Reads eight hints at a time. */
static uint64_t hint_next(const struct heap *h, uint64_t from, uint64_t to)
{
    while (from < to) {
        if (from % 8 == 0 && from + 8 <= to) {
            uint64_t eight = load_relaxed((const uint64_t *)(const void *)&h->hints[from]);
            if (!eight) {
                from += 8;
                continue;
            }
            return from + (uint64_t)__builtin_ctzll(eight) / 8;
        }
        if (hint_seen(&h->hints[from]))
            return from;
        from++;
    }
    return to;
}

uint32_t sweep_some(struct core *core, uint32_t spans, uint32_t hints, const struct uid_account *account, unsigned want)
{
    struct heap *h = &core->heap;
    uint32_t counted = 0;
    uint64_t words = 0, pages = 0;
    uint64_t to_go = core->mheap.top < hints ? core->mheap.top : hints;
    while (to_go && counted < spans && words + pages < TURN_WORDS && !(account && user_has_nonempty(account, want))) {
        if (core->sweep_cursor >= core->mheap.top)
            core->sweep_cursor = 0;
        uint64_t from = core->sweep_cursor;
        uint64_t to = from + to_go < core->mheap.top ? from + to_go : core->mheap.top;
        uint64_t page = hint_next(h, from, to);
        uint64_t passed = (page < to ? page + 1 : to) - from;
        core->sweep_cursor = from + passed;
        to_go -= passed;
        core->sweep_to_go -= core->sweep_to_go < passed ? core->sweep_to_go : passed;
        if (page == to)
            continue;
        uint64_t entry = load_relaxed(&h->pages[page]), first = page - page_entry_index(entry);
        struct span_info span;
        if (page_entry_class(entry) == 0 || !span_at(h, first, &span)) {
            hint_clear(&h->hints[page]); /* a stray one, by a bad free or a hostile hand */
            continue;
        }
        counted++;
        if (load_relaxed(&h->spans[first].lessee))
            continue;
        span_clear_hints(h, first, span.page_count);
        hint_clear(&h->hints[page]);
        words += span.objects;
        pages += span_entries_now(&span);
        mcentral_place(core, &span, span_count_free(&span));
    }
    if (account) { /* for a client; a pass of its own is bounded above */
        core->turn.words += words;
        core->turn.entries += pages;
    }
    return counted;
}

void sweep_cycle(struct core *core) { core->sweep_to_go = core->mheap.top; }

bool sweep_turn(struct core *core)
{
    if (core->sweep_to_go) {
        sweep_some(core, TURN_SPANS, TURN_HINTS, NULL, 0);
        if (!core->sweep_to_go)
            core->sweep_serial++;
    }
    return core->sweep_to_go != 0;
}
