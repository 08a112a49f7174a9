/* One mcentral a span class: `nonempty` are its unleased spans with a free object, `empty` those without, and the leased
 * ones; `returned` those with free objects that must be backed again first (scavenge.c). A refill takes from nonempty
 * first, oldest first; then it sweeps; then it has returned ones backed; then it cuts new spans from the mheap.
 *
 * Who allocates pays. A span is of one user from the moment it is cut until it is wholly free and uncut.
 *   - Only that user's clients are leased it, so all objects that were ever allocated in it are that user's.
 *   - The user is charged for all of it, also when the client that filled it is gone.
 *   - Among the clients of one user the charge goes to whoever leased it last.
 * For that nonempty and returned are lists of each user; `empty`, which nobody takes from, is of all.
 * A span that users share would have to be divided by its objects, and a SHARED word does not say whose it is.
 *
 * The lists are threaded through core->dspans by page number. The truth is in the map: a span with a lessee is on
 * `empty`, one without is where its count puts it, so a restarted daemon finds the same lists.
 */
#include "daemon/core/core.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "shm/assert.h"

/* ---- lists ---------------------------------------------------------------------------------------------------------------- */

struct span_chain {
    uint32_t *first, *last;
    uint64_t *count;
};

static struct span_chain chain_of(struct core *core, const struct span_info *span, enum span_list list)
{
    struct mcentral *c = &core->central[span->span_class];
    struct user_spans *u = NULL;
    if (list == LIST_NONEMPTY || list == LIST_RETURNED) { /* a large span has one object, and so is on neither */
        ASSERT(span->span_class < SPAN_CLASS_COUNT);
        u = user_spans(account_of(core, core->heap.spans[span->first].uid), span->span_class);
    }
    switch (list) {
    case LIST_NONEMPTY:
        return (struct span_chain){&u->nonempty_first, &u->nonempty_last, &c->nonempty_count};
    case LIST_RETURNED:
        return (struct span_chain){&u->returned_first, &u->returned_last, &c->returned_count};
    default:
        return (struct span_chain){&c->empty_first, &c->empty_last, &c->empty_count};
    }
}

static bool is_chained(enum span_list list) { return list != LIST_NONE && list != LIST_BUSY; }

static void list_remove(struct core *core, const struct span_info *span)
{
    struct dspan *d = &core->dspans[span->first];
    if (is_chained(d->list)) {
        struct span_chain chain = chain_of(core, span, d->list);
        --*chain.count;
        *(d->prev == SPAN_END ? chain.first : &core->dspans[d->prev].next) = d->next;
        *(d->next == SPAN_END ? chain.last : &core->dspans[d->next].prev) = d->prev;
    }
    d->list = LIST_NONE;
}

/* Where on a list: fuller spans go to its front, from which refills take, so that the emptier ones get the time to become
 * wholly free. */
static void list_add(struct core *core, const struct span_info *span, enum span_list list)
{
    uint32_t first = (uint32_t)span->first;
    struct dspan *d = &core->dspans[first];
    ASSERT(d->list == LIST_NONE);
    d->list = (uint8_t)list;
    if (!is_chained(list))
        return;
    struct span_chain chain = chain_of(core, span, list);
    bool front = d->free * 2u <= span->objects;
    ++*chain.count;
    d->prev = front ? SPAN_END : *chain.last;
    d->next = front ? *chain.first : SPAN_END;
    *(d->prev == SPAN_END ? chain.first : &core->dspans[d->prev].next) = first;
    *(d->next == SPAN_END ? chain.last : &core->dspans[d->next].prev) = first;
}

static void list_move(struct core *core, const struct span_info *span, enum span_list list)
{
    if (core->dspans[span->first].list == list)
        return;
    list_remove(core, span);
    if (list != LIST_NONE)
        list_add(core, span, list);
}

void mcentral_init(struct core *core)
{
    for (int i = 0; i < (int)CLASS_LIMIT; i++)
        core->central[i].empty_first = core->central[i].empty_last = SPAN_END;
}

int account_spans(struct uid_account *account, unsigned span_class)
{
    if (CLASS_IS_LARGE(span_class) || account->spans_at[span_class])
        return 0;
    struct user_spans *grown = realloc(account->spans, (account->spans_count + 1u) * sizeof *grown);
    if (!grown)
        return -ENOMEM;
    account->spans = grown;
    grown[account->spans_count] = (struct user_spans){SPAN_END, SPAN_END, SPAN_END, SPAN_END};
    account->spans_at[span_class] = ++account->spans_count;
    return 0;
}

/* ---- charges ------------------------------------------------------------------------------------------------------------------ */

void span_charged(struct uid_account *account, struct client *client, uint32_t pages)
{
    account->charged_pages += pages;
    account->charged_spans++;
    if (client) {
        client->charged_pages += pages;
        client->charged_spans++;
    }
}

static void span_discharge(struct core *core, const struct span *span)
{
    struct uid_account *account = account_of(core, span->uid);
    struct client *client = span->charged ? core->clients[span->charged] : NULL;
    account->charged_pages -= span->page_count;
    account->charged_spans--;
    if (client) {
        client->charged_pages -= span->page_count;
        client->charged_spans--;
    }
}

/* -EDQUOT if `pages` more pages in `spans` more spans are too many. ours: they are charged to the client's user already. */
static int quota_check(struct core *core, const struct client *client, uint64_t pages, uint64_t spans, bool ours)
{
    const struct limits *l = &core->limits;
    const struct uid_account *a = client->account;
    uint64_t bytes = pages << PAGE_SHIFT;
    int rc = limit_check(core, "limit-client-bytes", l->client_bytes, client->charged_pages << PAGE_SHIFT, bytes);
    if (rc == 0 && !ours)
        rc = limit_check(core, "limit-user-bytes", l->uid_bytes, (a->charged_pages + a->cutting_pages) << PAGE_SHIFT, bytes);
    if (rc == 0 && spans)
        rc = limit_check(core, "limit-client-spans", l->client_spans, client->charged_spans, spans);
    if (rc == 0 && spans && !ours)
        rc = limit_check(core, "limit-user-spans", l->uid_spans, a->charged_spans, spans);
    return rc;
}

/* ---- cutting and uncutting ------------------------------------------------------------------------------------------------------ */

static uint32_t objects_of(unsigned span_class) { return CLASS_IS_LARGE(span_class) ? 1 : class_table[span_class].objects; }

/* Pages and state words for a span. */
static int take(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t align,
                uint64_t *ret_first, uint32_t *ret_unit)
{
    uint32_t objects = objects_of(span_class), unit;
    uint64_t first;
    int rc = account_spans(client->account, span_class);
    if (rc == 0)
        rc = mheap_alloc(&core->mheap, pages, align, core->now_ns, &first);
    if (rc < 0)
        return rc;
    rc = mheap_alloc_units(&core->mheap, span_units(objects), &client->next_unit, &unit);
    if (rc < 0) {
        mheap_free(&core->mheap, first, pages, true);
        return rc;
    }
    span_reset_hints(&core->heap, first, pages);
    core->turn.words += objects;
    *ret_first = first;
    *ret_unit = unit;
    return 0;
}

/* A span is in the map: it is the client's. */
static void note_cut(struct core *core, struct client *client, unsigned span_class, uint64_t first, uint32_t pages)
{
    span_charged(client->account, client, pages);
    core->dspans[first] =
        (struct dspan){.next = SPAN_END, .prev = SPAN_END, .free = (uint16_t)objects_of(span_class)};
    core->spans++;
}

/* Cuts `pages` pages into a span, leased and charged to `client`: words, entries, record, in this order. */
static int cut(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t align,
               uint64_t *ret_first)
{
    uint32_t unit;
    int rc = take(core, client, span_class, pages, align, ret_first, &unit);
    if (rc < 0)
        return rc;
    span_write(&core->heap, *ret_first, pages, span_class, unit, client->tag, client->tag, client->uid);
    core->turn.entries += pages;
    note_cut(core, client, span_class, *ret_first, pages);
    return 0;
}

/* ---- entries by turns ----------------------------------------------------------------------------------------------------------- */

/* A large object has an entry a page: 8.4 million for 64 GiB, which take 20 ms. What the turn has no room for is written and
 * cleared by mcentral_entries_turn(): before the record is there, and after it has gone. die: entries that no record covers,
 * in any number and order; the next start clears them. */
static bool fits_turn(const struct core *core, uint32_t pages)
{
    return pages <= SMALL_PAGES || core->turn.entries + pages <= TURN_ENTRIES;
}

static void cutting_begin(struct core *core, struct client *client, const struct cutting *begun)
{
    client->cutting = *begun;
    client->account->cutting_pages += begun->pages;
    *(core->cutting_first ? &core->cutting_last->cutting.next : &core->cutting_first) = client;
    core->cutting_last = client;
}

/* It is not, or not any more, on the list; all was written. */
static void cutting_end(struct client *client)
{
    client->account->cutting_pages -= client->cutting.pages;
    client->cutting = (struct cutting){0};
}

static bool is_cutting(const struct client *client, unsigned span_class, uint32_t from, uint32_t pages)
{
    const struct cutting *c = &client->cutting;
    return c->pages && c->span_class == span_class && c->from == from && c->pages == pages;
}

/* Pages that no record covers any more are cleared and free, and with the last of them a unit (0: none). */
static void clear(struct core *core, uint64_t first, uint32_t pages, uint32_t unit)
{
    if (fits_turn(core, pages)) {
        pages_set_free(&core->heap, first, pages, true);
        mheap_free(&core->mheap, first, pages, true);
        if (unit)
            mheap_free_units(&core->mheap, unit, 1);
        core->turn.entries += pages <= SMALL_PAGES ? 0 : pages;
        core->progress++;
        return;
    }
    core->dspans[first].clearing.next = core->clearing;
    core->dspans[first].clearing.pages = pages;
    core->dspans[first].clearing.unit = unit;
    core->clearing = (uint32_t)first;
    core->mheap.clearing_pages += pages;
}

void mcentral_give_up(struct core *core, struct client *client)
{
    struct cutting c = client->cutting;
    struct client *before = NULL, *at = core->cutting_first;
    if (!c.pages)
        return;
    for (; at && at != client; at = at->cutting.next)
        before = at;
    if (at) {
        *(before ? &before->cutting.next : &core->cutting_first) = c.next;
        if (core->cutting_last == client)
            core->cutting_last = before;
    }
    cutting_end(client);
    clear(core, c.first + c.from, c.pages, c.from ? 0 : c.unit);
}

/* From the last page to the first: where they begin says that they wait. */
static uint32_t clear_some(struct core *core, uint32_t most)
{
    uint32_t first = core->clearing, unit = core->dspans[first].clearing.unit, pages = core->dspans[first].clearing.pages;
    uint32_t some = pages < most ? pages : most;
    pages -= some;
    core->dspans[first].clearing.pages = pages;
    if (!pages) {
        core->clearing = core->dspans[first].clearing.next;
        core->dspans[first] = (struct dspan){.next = SPAN_END, .prev = SPAN_END};
    }
    pages_set_free(&core->heap, first + pages, some, true);
    mheap_free(&core->mheap, first + pages, some, true);
    core->mheap.clearing_pages -= some;
    if (!pages && unit)
        mheap_free_units(&core->mheap, unit, 1);
    core->progress++;
    return some;
}

/* Whoever was served stands behind the others. */
static uint32_t write_some(struct core *core, uint32_t most)
{
    struct client *client = core->cutting_first;
    struct cutting *c = &client->cutting;
    uint32_t left = c->pages - c->done, some = left < most ? left : most;
    span_write_entries(&core->heap, c->first, c->from + c->done, some, c->span_class, c->unit);
    c->done += some;
    core->cutting_first = c->next;
    c->next = NULL;
    if (c->done == c->pages)
        core->progress++;
    else {
        *(core->cutting_first ? &core->cutting_last->cutting.next : &core->cutting_first) = client;
        core->cutting_last = client;
    }
    return some;
}

bool mcentral_entries_turn(struct core *core)
{
    uint32_t room = TURN_ENTRIES / 2;
    while (room && core->clearing)
        room -= clear_some(core, room);
    for (room = TURN_ENTRIES / 2; room && core->cutting_first;)
        room -= write_some(core, room);
    return mcentral_entries_wait(core);
}

/* Cuts a large span of which the entries do not fit the turn: -EAGAIN until they are written. */
static int cut_by_turns(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t align,
                        uint64_t *ret_first)
{
    struct cutting *c = &client->cutting;
    if (!c->pages) {
        struct cutting begun = {.pages = pages, .span_class = (uint8_t)span_class};
        int rc = take(core, client, span_class, pages, align, &begun.first, &begun.unit);
        if (rc < 0)
            return rc;
        span_begin(&core->heap, begun.first);
        cutting_begin(core, client, &begun);
    }
    if (c->done < c->pages)
        return -EAGAIN;
    *ret_first = c->first;
    span_write_record(&core->heap, c->first, pages, span_class, c->unit, client->tag, client->tag, client->uid);
    cutting_end(client);
    note_cut(core, client, span_class, *ret_first, pages);
    return 0;
}

/* Gives a wholly free, unleased span back to the mheap. */
static void uncut(struct core *core, const struct span_info *span)
{
    const struct span *record = &core->heap.spans[span->first];
    uint16_t returned = record->returned;
    uint32_t unit = record->unit;
    ASSERT(record->lessee == 0);
    list_move(core, span, LIST_NONE);
    span_discharge(core, record);
    core->cold_in_spans -= (uint64_t)__builtin_popcount(returned);
    if (span->page_count > SMALL_PAGES) {
        span_clear_record(&core->heap, span->first);
        core->spans--;
        clear(core, span->first, span->page_count, unit);
        return;
    }
    span_clear(&core->heap, span->first);
    mheap_free_units(&core->mheap, unit, span_units(span->objects));
    if (!returned)
        mheap_free(&core->mheap, span->first, span->page_count, true);
    else
        for (uint32_t i = 0; i < span->page_count; i++)
            mheap_free(&core->mheap, span->first + i, 1, !(i < SMALL_PAGES && (returned >> i & 1)));
    core->spans--;
    core->progress++;
}

void mcentral_place(struct core *core, const struct span_info *span, uint32_t free_objects)
{
    struct dspan *d = &core->dspans[span->first];
    if (d->list == LIST_BUSY)
        return; /* it is counted again when its pages have landed */
    if (free_objects == span->objects) {
        uncut(core, span);
        return;
    }
    d->free = (uint16_t)free_objects;
    d->tick = core->mheap.tick;
    d->looked = 0;
    enum span_list list = load_relaxed(&core->heap.spans[span->first].returned) ? LIST_RETURNED
                          : free_objects                                       ? LIST_NONEMPTY
                                                                               : LIST_EMPTY;
    if (list != LIST_EMPTY && d->list != list)
        core->progress++;
    list_move(core, span, LIST_NONE); /* its place on the list changes with its count */
    list_move(core, span, list);
}

void mcentral_set_busy(struct core *core, const struct span_info *span) { list_move(core, span, LIST_BUSY); }

void mcentral_set_idle(struct core *core, const struct span_info *span)
{
    list_move(core, span, LIST_NONE);
    mcentral_place(core, span, span_count_free(span));
}

/* ---- cache_span, uncache_span ------------------------------------------------------------------------------------------------------ */

/* die: charged to another client of the same user than the one that lists it when it resumes, or than nobody. */
static void lease(struct core *core, struct client *client, const struct span_info *span)
{
    const struct span *record = &core->heap.spans[span->first];
    ASSERT(record->uid == client->uid);
    list_move(core, span, LIST_EMPTY);
    core->dspans[span->first].listed = 0;
    client->leased_pages += span->page_count;
    client->leased_spans++;
    if (record->charged != client->tag) {
        span_discharge(core, record);
        span_charged(client->account, client, span->page_count);
        span_set_charged(&core->heap, span->first, client->tag);
    }
    span_set_lessee(&core->heap, span->first, client->tag);
}

/* Spans of the user's `nonempty`, until `pages` pages' worth of free objects are found. */
static int cache_nonempty(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t *out,
                          uint32_t capacity, int count)
{
    const struct user_spans *mine = user_spans(client->account, span_class);
    uint64_t want = (uint64_t)pages * class_table[span_class].objects / class_table[span_class].pages, got = 0;
    want += want == 0; /* less than a span was asked for */
    while (mine && mine->nonempty_first != SPAN_END && (uint32_t)count < capacity && got < want) {
        struct span_info span;
        uint32_t first = mine->nonempty_first;
        bool ok = span_at(&core->heap, first, &span);
        ASSERT(ok && span.span_class == span_class);
        if (core->heap.spans[first].charged != client->tag && quota_check(core, client, span.page_count, 1, true) < 0)
            return count ? count : -EDQUOT;
        got += core->dspans[first].free;
        lease(core, client, &span);
        out[count++] = first;
    }
    return count;
}

int mcentral_cache_span(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t *out,
                        uint32_t capacity, bool *ret_fresh)
{
    const struct class_info *info = &class_table[span_class];
    struct mcentral *c = &core->central[span_class];
    *ret_fresh = false;
    if (!info->size)
        return -EINVAL;
    if (capacity > LEASE_SPANS_MAX)
        capacity = LEASE_SPANS_MAX;
    if (!user_has_nonempty(client->account, span_class))
        sweep_some(core, LEASE_SWEEP_SPANS, TURN_HINTS / 8, client->account, span_class);
    int count = cache_nonempty(core, client, span_class, pages, out, capacity, 0), rc = 0;
    if (count != 0)
        goto done;
    if (scavenge_back(core, client->account, span_class, pages) == -EAGAIN)
        return -EAGAIN;
    for (uint32_t got = 0; got < pages && (uint32_t)count < capacity; got += info->pages) {
        struct span_info span;
        uint64_t first;
        if ((rc = quota_check(core, client, info->pages, 1, false)) < 0)
            break;
        if ((rc = cut(core, client, span_class, info->pages, 1, &first)) < 0)
            break;
        span_at(&core->heap, first, &span);
        lease(core, client, &span);
        out[count++] = (uint32_t)first;
    }
    *ret_fresh = count > 0;
    mheap_grow_ahead(&core->mheap, core->now_ns);
    if (count == 0)
        count = rc;
done:
    if (count > 0) {
        c->refills++;
        client->refills++;
        core->heap.header->refills++;
    }
    return count;
}

int mcentral_cache_large(struct core *core, struct client *client, unsigned span_class, uint32_t pages, uint32_t align,
                         uint32_t *out, bool *ret_fresh)
{
    struct span_info span;
    uint64_t first;
    *ret_fresh = false;
    if (!CLASS_IS_LARGE(span_class))
        return -EINVAL;
    bool begun = is_cutting(client, span_class, 0, pages);
    if (!begun)
        mcentral_give_up(core, client); /* what another request had begun */
    int rc = begun ? 0 : quota_check(core, client, pages, 1, false);
    if (rc == 0)
        rc = begun || !fits_turn(core, pages) ? cut_by_turns(core, client, span_class, pages, align, &first)
                                              : cut(core, client, span_class, pages, align, &first);
    if (rc < 0)
        return rc;
    span_at(&core->heap, first, &span);
    lease(core, client, &span);
    out[0] = (uint32_t)first;
    core->central[span_class].refills++;
    client->refills++;
    core->heap.header->refills++;
    mheap_grow_ahead(&core->mheap, core->now_ns);
    *ret_fresh = true;
    return 1;
}

int mcentral_uncache_span(struct core *core, struct client *client, uint64_t first)
{
    struct span_info span;
    if (first >= core->mheap.top || !span_at(&core->heap, first, &span) ||
        load_relaxed(&core->heap.spans[first].lessee) != client->tag)
        return -EPERM;
    client->leased_pages -= span.page_count;
    client->leased_spans--;
    span_set_lessee(&core->heap, first, 0);
    span_clear_hints(&core->heap, first, span.page_count);
    core->turn.words += span.objects;
    core->turn.entries += span_entries_now(&span); /* should it be wholly free */
    mcentral_place(core, &span, span_count_free(&span));
    return 0;
}

void mcentral_list_leased(struct core *core, const struct span_info *span) { list_move(core, span, LIST_EMPTY); }

/* The last pages of a large span go back. */
static void shrink(struct core *core, struct client *client, const struct span_info *span, uint32_t pages)
{
    uint32_t fewer = span->page_count - pages;
    if (!fewer)
        return;
    span_set_page_count(&core->heap, span->first, pages);
    core->turn.entries += fewer <= SMALL_PAGES ? fewer : 0;
    clear(core, span->first + pages, fewer, 0);
    client->leased_pages -= fewer;
    client->charged_pages -= fewer;
    client->account->charged_pages -= fewer;
}

/* Takes the `more` pages behind a large span: 0, and their entries can be written at once, or are written; or an error. */
static int take_behind(struct core *core, struct client *client, const struct span_info *span, uint32_t more)
{
    struct cutting begun = {.first = span->first, .from = span->page_count, .pages = more, .span_class = span->span_class,
                            .unit = core->heap.spans[span->first].unit};
    const struct cutting *c = &client->cutting;
    if (is_cutting(client, span->span_class, span->page_count, more) && c->first == span->first)
        return c->done < c->pages ? -EAGAIN : 0;
    mcentral_give_up(core, client);
    int rc = quota_check(core, client, more, 0, false);
    if (rc == 0)
        rc = mheap_take_next(&core->mheap, span->first + span->page_count, more, core->now_ns);
    if (rc < 0 || fits_turn(core, more))
        return rc;
    cutting_begin(core, client, &begun);
    return -EAGAIN;
}

int mcentral_extend(struct core *core, struct client *client, uint32_t request, uint64_t first, uint32_t pages)
{
    struct span_info span;
    if (first >= core->mheap.top || !span_at(&core->heap, first, &span) || !CLASS_IS_LARGE(span.span_class) ||
        load_relaxed(&core->heap.spans[first].lessee) != client->tag)
        return -EPERM;
    if (pages <= span.page_count) {
        if (!client_may(core, client, request))
            return -ECANCELED;
        shrink(core, client, &span, pages);
        client_did(core, client, request);
        return 0;
    }
    uint32_t more = pages - span.page_count;
    int rc = take_behind(core, client, &span, more);
    if (rc < 0)
        return rc;
    bool written = client->cutting.pages;
    if (!client_may(core, client, request)) {
        if (written)
            mcentral_give_up(core, client);
        else
            mheap_free(&core->mheap, first + span.page_count, more, true);
        return -ECANCELED;
    }
    if (written)
        cutting_end(client);
    else { /* die: entries that no record covers; cleared at the next start */
        span_write_entries(&core->heap, first, span.page_count, more, span.span_class, core->heap.spans[first].unit);
        core->turn.entries += more;
    }
    span_set_page_count(&core->heap, first, pages);
    client->leased_pages += more;
    client->charged_pages += more;
    client->account->charged_pages += more;
    client_did(core, client, request);
    return 0;
}

const char *mcentral_check(struct core *core, uint64_t first)
{
    struct span_info span;
    const char *why = span_check(&core->heap, first);
    if (why)
        return why;
    span_at(&core->heap, first, &span);
    const struct dspan *d = &core->dspans[first];
    uint16_t lessee = load_relaxed(&core->heap.spans[first].lessee);
    if (d->list == LIST_NONE)
        return "a span on no list of its mcentral";
    if (lessee && d->list != LIST_EMPTY)
        return "a leased span on a list of unleased ones";
    if (core->heap.spans[first].returned && d->list != LIST_RETURNED && d->list != LIST_BUSY)
        return "a span without memory behind all of its pages on a list of whole ones";
    if (lessee && !core->clients[lessee])
        return "a span leased to a tag without a client";
    if (!lessee && d->list == LIST_NONEMPTY && d->free > span_count_free(&span))
        return "a span on nonempty with fewer free objects than counted";
    if (pagealloc_any_free(&core->mheap.free, first, span.page_count))
        return "a page of a span is free in the mheap";
    return NULL;
}
