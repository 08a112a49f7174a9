#include "daemon/core/core.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "shm/assert.h"
#include "shm/check.h"
#include "shm/collect.h"

static uint64_t dspan_bytes(const struct core *core) { return core->heap.page_count * sizeof(struct dspan); }

/* ---- rebuild ---------------------------------------------------------------------------------------------------------------- */

static void first_fault(void *context, const struct finding *finding)
{
    const char **why = context;
    if (!*why)
        *why = finding->text;
}

static int rebuild_span(struct core *core, uint64_t first, char *ret_why)
{
    struct heap *h = &core->heap;
    struct span_info span;
    const struct span *record = &h->spans[first];
    const char *why = span_check(h, first);
    span_at(h, first, &span);
    if (!why && !pagealloc_all_free(&core->mheap.units, record->unit, span_units(span.objects)))
        why = "two spans share state words";
    if (why) {
        snprintf(ret_why, 256, "page %llu: %s", (unsigned long long)first, why);
        return -EUCLEAN;
    }
    pagealloc_take(&core->mheap.units, record->unit, span_units(span.objects));
    core->mheap.units_used += span_units(span.objects);
    core->mheap.used_pages += span.page_count;
    core->cold_in_spans += (uint64_t)__builtin_popcount(record->returned);
    core->spans++;
    uint16_t lessee_tag = load_acquire(&record->lessee); /* [LS1] */
    struct client *lessee = lessee_tag < TAG_COUNT ? core->clients[lessee_tag] : NULL;
    struct client *charged = record->charged < TAG_COUNT ? core->clients[record->charged] : NULL;
    if (!charged)
        span_set_charged(h, first, 0);
    struct uid_account *account = account_of(core, record->uid);
    if (!account || account_spans(account, span.span_class) < 0)
        return -ENOMEM;
    span_charged(account, charged, span.page_count);
    core->dspans[first] = (struct dspan){.next = SPAN_END, .prev = SPAN_END};
    if (lessee) {
        lessee->leased_pages += span.page_count;
        lessee->leased_spans++;
        mcentral_list_leased(core, &span);
    } else {
        span_set_lessee(h, first, 0);
        mcentral_place(core, &span, span_count_free(&span));
    }
    return 0;
}

/* Of a span that was being uncut when the daemon died: had this page no memory behind it? The record is whole, but for
 * its class. */
static bool was_returned(const struct heap *h, uint64_t page, uint64_t entry)
{
    uint32_t index = page_entry_index(entry);
    return page_entry_class(entry) && index < SMALL_PAGES && index <= page &&
           (load_acquire(&h->spans[page - index].returned) >> index & 1); /* [RP1] */
}

static int rebuild_pages(struct core *core, char *ret_why)
{
    struct heap *h = &core->heap;
    uint64_t page = 1, top = load_acquire(&h->header->top); /* [TP1] page 0 is nobody's: reference 0 is null */
    if (top == 0)
        top = 1;
    core->mheap.top = top;
    pagealloc_free_rest(&core->mheap.free, top);
    while (page < top) {
        struct span_info span;
        if (span_at(h, page, &span)) {
            /* entries may be unfinished only where the record is not valid; an extension cut short has none beyond */
            int rc = rebuild_span(core, page, ret_why);
            if (rc < 0)
                return rc;
            page += span.page_count;
            continue;
        }
        uint64_t entry = load_relaxed(&h->pages[page]);
        bool warm = entry != PAGE_COLD && !was_returned(h, page, entry); /* what was cut or uncut by halves was warm */
        if (entry != PAGE_COLD && entry != PAGE_WARM)
            pages_set_free(h, page, 1, warm);
        pagealloc_free(&core->mheap.free, page, 1);
        if (warm)
            pagealloc_free(&core->mheap.warm, page, 1);
        page++;
    }
    return 0;
}

int core_start(struct core *core, const struct heap *heap, const struct backing *backing, const struct limits *limits,
               uint64_t now_ns, char *ret_why)
{
    memset(core, 0, sizeof *core);
    core->heap = *heap;
    core->limits = *limits;
    core->now_ns = now_ns;
    snprintf(ret_why, 256, "out of memory");
    core->clients = calloc(TAG_COUNT, sizeof *core->clients);
    core->dspans = mmap(NULL, dspan_bytes(core), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (!core->clients || core->dspans == MAP_FAILED || reclaim_init(core) < 0 ||
        mheap_init(&core->mheap, &core->heap, backing) < 0) {
        core_stop(core);
        return -ENOMEM;
    }
    mcentral_init(core);
    const char *why = check_counts(&core->heap);
    if (why) {
        snprintf(ret_why, 256, "%s", why);
        core_stop(core);
        return -EUCLEAN;
    }
    if (core->heap.header->tag_top == 0)
        tag_raise_top(&core->heap, 1);
    core->trim_serial = load_relaxed(&core->heap.header->shortages);
    for (int i = 0; i < USER_SHORTAGES; i++)
        if ((int32_t)(core->heap.header->user_shortages[i] - (uint32_t)core->trim_serial) > 0)
            core->trim_serial = core->heap.header->user_shortages[i];
    collect_end(&core->heap); /* one that the last daemon did not finish */
    pagealloc_free_rest(&core->mheap.units, 1); /* unit 0 is nobody's */
    check_repair(&core->heap);
    int rc = 0;
    check_tables(&core->heap, first_fault, &why);
    if (!why) {
        clients_rebuild(core);
        rc = rebuild_pages(core, ret_why);
        if (rc == 0 && (why = clients_check(core)) == NULL)
            why = roots_check(core, &(struct roots_look){0}, core->heap.root_slots);
    }
    if (why) {
        snprintf(ret_why, 256, "%s", why);
        rc = -EUCLEAN;
    }
    if (rc < 0) {
        core_stop(core);
        return rc;
    }
    store_relaxed(&core->heap.header->epoch, core->heap.header->epoch + 1);
    return 0;
}

void core_stop(struct core *core)
{
    mheap_fini(&core->mheap);
    if (core->dspans && core->dspans != MAP_FAILED)
        munmap(core->dspans, dspan_bytes(core));
    free(core->reclaim.start);
    clients_free(core);
    memset(core, 0, sizeof *core);
}

static void raise_to(uint64_t *most, uint64_t value) { *most = value > *most ? value : *most; }

void turn_end(struct core *core)
{
    struct turn *t = &core->turn, *most = &core->turn_most;
    ASSERT(t->packets <= TURN_PACKETS && t->retries <= TURN_RETRIES);
    ASSERT(t->words <= TURN_WORDS + PACKET_WORDS);
    ASSERT(t->backed <= TURN_BACKED + PACKET_BACKED);
    ASSERT(t->entries <= TURN_ENTRIES + PACKET_ENTRIES);
    raise_to(&most->words, t->words);
    raise_to(&most->entries, t->entries);
    raise_to(&most->backed, t->backed);
    raise_to(&most->packets, t->packets);
    raise_to(&most->retries, t->retries);
    *t = (struct turn){0};
}

bool core_turn(struct core *core)
{
    bool more = reclaim_turn(core, TURN_WORDS);
    more = sweep_turn(core) || more;
    return mcentral_entries_turn(core) || more;
}
