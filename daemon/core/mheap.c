#include "daemon/core/mheap.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "shm/assert.h"
#include "shm/span.h"
#include "shm/state.h"

enum {
    LINE_UNITS = 4,             /* units of state words in a cache line */
    AGE_PAGES = 32,             /* pages that share an age: 256 KiB */
    GROW_MAX = 1024,            /* pages: 8 MiB, a few milliseconds of the worker */
    RETURN_PIECE = 128,         /* pages: a punch of 1 MiB takes 0.2-0.4 ms of the worker */
    BURST_NS = 20 * 1000 * 1000, /* growths closer than this are a burst */
    BURST_MAX = 4,              /* doublings of the step */
    FAILED_NS = 100 * 1000 * 1000, /* after a growth that failed, how long all others are refused unasked */
};

static uint64_t age_count(const struct mheap *m) { return m->heap->page_count / AGE_PAGES + 1; }

int mheap_init(struct mheap *m, struct heap *heap, const struct backing *backing)
{
    memset(m, 0, sizeof *m);
    m->heap = heap;
    m->backing = *backing;
    m->age = mmap(NULL, age_count(m), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (m->age == MAP_FAILED || pagealloc_init(&m->free, heap->page_count) < 0 ||
        pagealloc_init(&m->warm, heap->page_count) < 0 || pagealloc_init(&m->units, heap->unit_count) < 0 ||
        pagealloc_init(&m->held, heap->unit_count) < 0) {
        mheap_fini(m);
        return -ENOMEM;
    }
    return 0;
}

void mheap_fini(struct mheap *m)
{
    if (m->age && m->age != MAP_FAILED)
        munmap(m->age, age_count(m));
    pagealloc_fini(&m->free);
    pagealloc_fini(&m->warm);
    pagealloc_fini(&m->units);
    pagealloc_fini(&m->held);
    memset(m, 0, sizeof *m);
}

/* ---- growth ------------------------------------------------------------------------------------------------------------- */

/* How much to back at once: in proportion to what is used, so that what is ahead of demand stays below a percent; and the
 * more the closer growth follows upon growth, so that a heap that is being filled is not held up. */
static uint64_t grow_step(const struct mheap *m)
{
    uint64_t part = m->used_pages / 128, most = part < GROW_SMALL ? GROW_SMALL : part > GROW_MAX ? GROW_MAX : part;
    uint64_t step = (m->used_pages / 256 > GROW_SMALL ? m->used_pages / 256 : GROW_SMALL) << m->burst;
    return step > most ? most : step;
}

/* A growth begins. */
static void note_burst(struct mheap *m, uint64_t now_ns)
{
    bool again = m->grew_at_ns && now_ns - m->grew_at_ns < BURST_NS;
    m->burst = !again ? 0 : m->burst < BURST_MAX ? m->burst + 1 : BURST_MAX;
    m->grew_at_ns = now_ns;
    m->grew_tick = m->tick;
}

static int grow(struct mheap *m, uint64_t first, uint64_t pages)
{
    int rc = m->backing.grow(m->backing.context, first, pages);
    if (rc < 0)
        return rc;
    pagealloc_take(&m->free, first, pages);
    m->growing_pages += pages;
    return 0;
}

/* The next pages of [at, end) without memory behind them: how many, and *ret_first; 0: none. */
static uint64_t next_cold(const struct mheap *m, uint64_t at, uint64_t end, uint64_t *ret_first)
{
    uint64_t warm_at;
    if (at < end && pagealloc_all_free(&m->warm, at, 1))
        at = pagealloc_next_taken(&m->warm, at);
    *ret_first = at;
    if (at >= end)
        return 0;
    return pagealloc_next_run(&m->warm, at, 1, &warm_at) && warm_at < end ? warm_at - at : end - at;
}

/* Backs the cold parts of [first, first + pages): 0 or an error. */
static int grow_range(struct mheap *m, uint64_t first, uint64_t pages)
{
    uint64_t end = first + pages, at = first, run;
    while ((run = next_cold(m, at, end, &at)) > 0) {
        if (run > GROW_MAX)
            run = GROW_MAX;
        int rc = grow(m, at, run);
        if (rc < 0)
            return rc;
        at += run;
    }
    return 0;
}

static uint64_t cold_pages(const struct mheap *m, uint64_t first, uint64_t pages)
{
    uint64_t end = first + pages, at = first, cold = 0, run;
    for (; (run = next_cold(m, at, end, &at)) > 0; at += run)
        cold += run;
    return cold;
}

static void raise_top(struct mheap *m, uint64_t top)
{
    if (top > m->top) {
        m->top = top;
        store_release(&m->heap->header->top, top); /* [TP1] before the first entry there */
    }
}

void mheap_note_failure(struct mheap *m, uint64_t pages, uint64_t now_ns)
{
    m->failed_at_ns = now_ns ? now_ns : 1;
    m->failed_pages = pages;
}

void mheap_grown(struct mheap *m, uint64_t first, uint64_t pages, int error, uint64_t now_ns)
{
    ASSERT(m->growing_pages >= pages);
    m->growing_pages -= pages;
    if (first == m->ahead_first)
        m->ahead_pages = 0;
    pagealloc_free(&m->free, first, pages);
    if (error) {
        mheap_note_failure(m, pages, now_ns);
        return;
    }
    m->failed_at_ns = 0;
    raise_top(m, first + pages);
    pages_set_free(m->heap, first, pages, true);
    pagealloc_free(&m->warm, first, pages);
    for (uint64_t i = first / AGE_PAGES; i <= (first + pages - 1) / AGE_PAGES; i++)
        m->age[i] = m->tick;
}

bool mheap_may_grow(const struct mheap *m, uint64_t pages, uint64_t now_ns)
{
    if (m->failed_at_ns && now_ns - m->failed_at_ns < FAILED_NS && pages >= m->failed_pages)
        return false;
    return pages + m->growing_pages <= m->backing.allowance(m->backing.context);
}

void mheap_grow_ahead(struct mheap *m, uint64_t now_ns)
{
    uint64_t step = m->growing_pages ? GROW_SMALL : grow_step(m), at;
    if (m->ahead_pages || (m->growing_pages && m->growing_pages <= 2 * GROW_SMALL) || m->warm.free_count >= step / 2 ||
        !mheap_may_grow(m, step, now_ns))
        return;
    at = pagealloc_find(&m->free, 1, 1);
    while (at != PAGEALLOC_NONE) { /* the lowest cold run */
        uint64_t first, run = pagealloc_next_run(&m->free, at, step, &first);
        if (!run)
            return;
        if (!pagealloc_any_free(&m->warm, first, 1)) {
            uint64_t warm_at;
            if (pagealloc_next_run(&m->warm, first, 1, &warm_at) && warm_at - first < run)
                run = warm_at - first;
            if (!m->growing_pages)
                note_burst(m, now_ns);
            m->grow_request = 1;
            if (grow(m, first, run) == 0) {
                m->ahead_first = first;
                m->ahead_pages = run;
            }
            return;
        }
        at = pagealloc_next_taken(&m->warm, first);
        if (at == PAGEALLOC_NONE || at >= m->heap->page_count)
            return;
    }
}

/* ---- taking and giving ----------------------------------------------------------------------------------------------- */

static void take(struct mheap *m, uint64_t first, uint64_t pages)
{
    pagealloc_take(&m->free, first, pages);
    pagealloc_take(&m->warm, first, pages);
    m->used_pages += pages;
}

int mheap_alloc(struct mheap *m, uint32_t pages, uint32_t align, uint64_t now_ns, uint64_t *ret_first)
{
    uint64_t first = pagealloc_find(&m->warm, pages, align);
    if (first != PAGEALLOC_NONE) {
        take(m, first, pages);
        *ret_first = first;
        return 0;
    }
    if (m->clearing_pages) /* soon */
        return -EAGAIN;
    bool in_flight = m->growing_pages || m->returning_pages;
    uint64_t step = grow_step(m), want = pages > step ? pages : step;
    if (want > GROW_SMALL && m->warm.free_count < GROW_SMALL) /* something is left for small requests */
        want += GROW_SMALL;
    if (m->warm.free_count >= step) /* enough is warm, but in pieces: no more than is needed */
        want = pages;
    if (m->growing_pages >= pages + step) { /* enough is on its way, or will be when that has come */
        mheap_grow_ahead(m, now_ns);
        return -EAGAIN;
    }
    m->grow_request = pages;
    if (!mheap_may_grow(m, want, now_ns))
        want = pages;
    first = pagealloc_find(&m->free, want, align);
    if (first == PAGEALLOC_NONE)
        first = pagealloc_find(&m->free, want = pages, align);
    if (first == PAGEALLOC_NONE) /* what is in flight may complete a run */
        return in_flight ? -EAGAIN : -ENOMEM;
    if (!mheap_may_grow(m, cold_pages(m, first, want), now_ns)) /* what is warm of it is there already */
        return in_flight ? -EAGAIN : -ENOMEM;
    note_burst(m, now_ns);
    int rc = grow_range(m, first, want);
    return rc < 0 && !m->growing_pages ? rc : -EAGAIN;
}

void mheap_free(struct mheap *m, uint64_t first, uint64_t pages, bool warm)
{
    ASSERT(m->used_pages >= pages);
    m->used_pages -= pages;
    pagealloc_free(&m->free, first, pages);
    if (!warm)
        return;
    pagealloc_free(&m->warm, first, pages);
    for (uint64_t i = first / AGE_PAGES; i <= (first + pages - 1) / AGE_PAGES; i++)
        m->age[i] = m->tick;
}

/* Is any of these pages in a span? Those that are neither in one nor free are on their way to or from the system, or, with
 * an entry that no record covers, to or from a large span. */
static bool any_in_span(const struct mheap *m, uint64_t first, uint64_t end)
{
    for (uint64_t at = first; at < end; at++) {
        at = pagealloc_next_taken(&m->free, at);
        uint64_t entry = at < end ? load_relaxed(&m->heap->pages[at]) : 0;
        struct span_info span;
        if (page_entry_class(entry))
            return span_at(m->heap, at - page_entry_index(entry), &span) && at < span.first + span.page_count;
    }
    return false;
}

int mheap_take_next(struct mheap *m, uint64_t first, uint64_t pages, uint64_t now_ns)
{
    if (pages > m->heap->page_count - first || any_in_span(m, first, first + pages))
        return -ENOMEM;
    if (!pagealloc_all_free(&m->free, first, pages))
        return -EAGAIN;
    if (pagealloc_all_free(&m->warm, first, pages)) {
        take(m, first, pages);
        return 0;
    }
    if (!mheap_may_grow(m, cold_pages(m, first, pages), now_ns))
        return -ENOMEM;
    m->grow_request = pages;
    int rc = grow_range(m, first, pages);
    return rc < 0 ? rc : -EAGAIN;
}

/* Where units are to be had: in the line that `next` points into, else in lines of their own, else anywhere. */
static uint64_t find_units(struct mheap *m, uint32_t units, uint32_t next)
{
    uint32_t whole = (units + LINE_UNITS - 1) / LINE_UNITS * LINE_UNITS;
    if (next % LINE_UNITS && next % LINE_UNITS + units <= LINE_UNITS && pagealloc_all_free(&m->units, next, units))
        return next;
    /* what was passed over for one span of a grant is not looked at again for the next */
    uint64_t unit = pagealloc_find_above(&m->units, whole >= m->lines_units ? m->lines_from : 0, whole, LINE_UNITS);
    m->lines_units = whole;
    m->lines_from = unit != PAGEALLOC_NONE ? unit : m->units.count;
    return unit != PAGEALLOC_NONE ? unit : pagealloc_find(&m->units, units, 1);
}

int mheap_alloc_units(struct mheap *m, uint32_t units, uint32_t *next, uint32_t *ret_unit)
{
    uint64_t unit = find_units(m, units, *next);
    if (unit == PAGEALLOC_NONE)
        return m->held.free_count ? -EAGAIN : -ENOMEM;
    int rc = m->backing.back_units(m->backing.context, unit, units);
    if (rc < 0)
        return rc;
    pagealloc_take(&m->units, unit, units);
    uint16_t *words = m->heap->words + unit * UNIT_WORDS;
    for (uint32_t i = 0; i < units * UNIT_WORDS; i++)
        word_clear(&words[i]);
    m->units_used += units;
    *next = (uint32_t)unit + units;
    *ret_unit = (uint32_t)unit;
    return 0;
}

void mheap_free_units(struct mheap *m, uint32_t unit, uint32_t units)
{
    pagealloc_free(m->holding ? &m->held : &m->units, unit, units);
    m->units_used -= units;
    m->lines_from = 0;
}

void mheap_hold_units(struct mheap *m, bool hold) { m->holding = hold; }

uint64_t mheap_release_units(struct mheap *m, uint64_t limit, uint64_t *ret_first)
{
    uint64_t run = m->held.free_count ? pagealloc_next_run(&m->held, 0, limit, ret_first) : 0;
    if (!run)
        return 0;
    pagealloc_take(&m->held, *ret_first, run);
    pagealloc_free(&m->units, *ret_first, run);
    m->lines_from = 0;
    return run;
}

/* ---- scavenging ---------------------------------------------------------------------------------------------------------- */

void mheap_tick(struct mheap *m) { m->tick++; }

uint64_t mheap_scavenge(struct mheap *m, uint8_t ticks, uint64_t most, bool force)
{
    bool grew = m->growing_pages || (m->grew_at_ns && m->grew_tick == m->tick); /* would only be backed again */
    uint64_t reserve = !force ? m->reserve_pages : grew ? GROW_SMALL : 0, asked = 0, before = m->top, first, run;
    while (asked < most && m->warm.free_count > reserve &&
           (run = pagealloc_prev_run(&m->warm, before, RETURN_PIECE, &first)) > 0) {
        uint64_t spare = m->warm.free_count - reserve;
        before = first;
        if (run > spare) {
            first += run - spare;
            run = spare;
        }
        if (!force) { /* the part of the run, from its end, that has been idle long enough */
            uint64_t age = first / AGE_PAGES, last = (first + run - 1) / AGE_PAGES;
            while (last > age && (uint8_t)(m->tick - m->age[last]) >= ticks)
                last--;
            if ((uint8_t)(m->tick - m->age[last]) < ticks) {
                uint64_t idle_from = (last + 1) * AGE_PAGES;
                if (idle_from >= first + run) {
                    before = last * AGE_PAGES > first ? last * AGE_PAGES : first;
                    continue;
                }
                run -= idle_from - first;
                first = idle_from;
            }
        }
        pages_set_free(m->heap, first, run, false); /* first the map: a page that is warm there is backed */
        if (m->backing.give_back(m->backing.context, first, run) < 0) {
            pages_set_free(m->heap, first, run, true);
            break;
        }
        pagealloc_take(&m->free, first, run);
        pagealloc_take(&m->warm, first, run);
        m->returning_pages += run;
        asked += run;
    }
    return asked;
}

void mheap_returned(struct mheap *m, uint64_t first, uint64_t pages, int error)
{
    m->returning_pages -= pages;
    pagealloc_free(&m->free, first, pages);
    if (error) { /* still backed */
        pages_set_free(m->heap, first, pages, true);
        pagealloc_free(&m->warm, first, pages);
        return;
    }
    m->failed_at_ns = 0; /* what the system has again may be had again */
    m->heap->header->pages_returned += pages;
}

uint64_t mheap_next_cold(const struct mheap *m, uint64_t at, uint64_t end, uint64_t *ret_first)
{
    uint64_t first, run = pagealloc_next_run(&m->free, at, end > at ? end - at : 0, &first);
    if (!run || first >= end)
        return 0;
    return next_cold(m, first, first + run < end ? first + run : end, ret_first);
}

void mheap_take_cold(struct mheap *m, uint64_t first, uint64_t pages)
{
    pagealloc_take(&m->free, first, pages);
    m->returning_pages += pages;
}

void mheap_cleared(struct mheap *m, uint64_t first, uint64_t pages)
{
    m->returning_pages -= pages;
    pagealloc_free(&m->free, first, pages);
}

const char *mheap_check(struct mheap *m, uint64_t from, uint64_t to)
{
    for (uint64_t page = from; page < to; page++) {
        uint64_t entry = load_relaxed(&m->heap->pages[page]);
        bool free = pagealloc_all_free(&m->free, page, 1), warm = pagealloc_all_free(&m->warm, page, 1);
        if (warm && !free)
            return "a page is warm and not free";
        if (free && page_entry_class(entry))
            return "a free page has an entry of a span";
        if (free && (entry == PAGE_WARM) != warm)
            return "a free page's entry and the mheap disagree whether it is warm";
    }
    return NULL;
}
