/* The process's leased spans: the client's side of the mcentrals.
 *
 * A refill takes from the class's stash: entries that threads' magazines gave back, still CACHED, so that they move
 * between threads without a word being touched. Then it takes FREE objects from the spans of `current`, oldest first; then
 * from wholly free ones (`idle`); then it looks at the hints of `full` spans, in which other processes may have freed; only then it asks the daemon, for twice as
 * much as last time. What is kept is bounded, and the bounds grow while what was let go is soon asked for again.
 *
 * Condition 1 of the design: a lease is scanned and let go under one lock, its span class's; so no FREE word of a span
 * is taken after its release was sent. A span that is given back was removed from the lists before.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/client.h"

int lease_init(struct arena *a)
{
    uint64_t bytes = a->heap.page_count * sizeof *a->leases;
    bool fork = a->leases != NULL; /* they are the parent's */
    if (!fork) {
        void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            return -ENOMEM;
        a->leases = p;
    } else
        madvise(a->leases, bytes, MADV_DONTNEED);
    if (fork) /* the stashes too are forgotten: another thread may have been in the middle of one */
        memset(a->central, 0, sizeof a->central);
    a->keep = (struct keep){.free_limit = KEEP_FREE_MIN, .full_limit = KEEP_FULL_MIN};
    return 0;
}

void lease_fini(struct arena *a)
{
    if (a->leases)
        munmap(a->leases, a->heap.page_count * sizeof *a->leases);
    a->leases = NULL;
    for (int i = 0; i < 256; i++)
        free(a->central[i].stash);
}

/* Makes a central at its first use, so that an attach touches none of them: a mutex of zeros is one that was initialised.
 * Called with its lock held. */
static void central_use(struct central *c)
{
    if (c->ready)
        return;
    for (int list = 0; list < LEASE_LISTS; list++)
        c->first[list] = c->last[list] = LEASE_END;
    c->ready = true;
}

/* ---- lists -------------------------------------------------------------------------------------------------------------------------- */

static uint64_t span_bytes(const struct central *c, const struct arena *a)
{
    return (uint64_t)class_table[c - a->central].pages << PAGE_SHIFT;
}

/* `list` is left as it is: a span on its way from one list to another must not look as if it were let go to a thread
 * that lists the leases for a RESUME (lease_list(), without this lock). Who lets go of it clears it, under conn.lock. */
static void list_remove(struct arena *a, struct central *c, uint32_t first)
{
    struct lease *l = &a->leases[first];
    *(l->prev == LEASE_END ? &c->first[l->list] : &a->leases[l->prev].next) = l->next;
    *(l->next == LEASE_END ? &c->last[l->list] : &a->leases[l->next].prev) = l->prev;
    c->count[l->list]--;
    if (l->list == LEASE_FULL)
        fetch_sub_relaxed(&a->keep.full_bytes, span_bytes(c, a));
}

static void list_append(struct arena *a, struct central *c, uint32_t first, enum lease_list list)
{
    struct lease *l = &a->leases[first];
    store_relaxed(&l->list, (uint8_t)list);
    l->next = LEASE_END;
    l->prev = c->last[list];
    *(l->prev == LEASE_END ? &c->first[list] : &a->leases[l->prev].next) = first;
    c->last[list] = first;
    c->count[list]++;
    if (list == LEASE_FULL)
        fetch_add_relaxed(&a->keep.full_bytes, span_bytes(c, a));
}

static void list_move(struct arena *a, struct central *c, uint32_t first, enum lease_list list)
{
    if (a->leases[first].list == list)
        return;
    list_remove(a, c, first);
    list_append(a, c, first, list);
}

static void count_free(struct arena *a, uint32_t first, const struct class_info *info, int change)
{
    struct lease *l = &a->leases[first];
    l->free = (uint16_t)(l->free + change);
    fetch_add_relaxed(&a->keep.free_bytes, (uint64_t)((int64_t)change * info->size));
}

/* ---- giving back ---------------------------------------------------------------------------------------------------------------------- */

static void hold_pages(struct arena *a, struct central *c, int64_t pages)
{
    if ((int64_t)c->held_pages + pages < 0)
        pages = -(int64_t)c->held_pages;
    c->held_pages = (uint32_t)(c->held_pages + pages);
    fetch_add_relaxed(&a->keep.held_pages, (uint64_t)pages);
}

/* Lets go of the oldest spans of a list until `enough` says so or `most` were let go; one message for each 1024. */
static uint32_t release(struct arena *a, struct central *c, enum lease_list list, uint32_t most, const uint64_t *measure,
                        uint64_t bound)
{
    const struct class_info *info = &class_table[c - a->central];
    uint32_t total = 0;
    while (total < most && c->first[list] != LEASE_END && load_relaxed(measure) > bound) {
        conn_lock(a);
        struct msg *out = &a->conn.out;
        out->list_count = 0;
        while (total < most && out->list_count < 1024 && c->first[list] != LEASE_END && load_relaxed(measure) > bound) {
            uint32_t first = c->first[list];
            list_remove(a, c, first);
            if (list != LEASE_FULL)
                hold_pages(a, c, -(int64_t)info->pages);
            count_free(a, first, info, -(int)a->leases[first].free);
            memset(&a->leases[first], 0, sizeof(struct lease));
            out->list[out->list_count++] = first;
            total++;
        }
        conn_tell(a, MSG_RELEASE); /* if the daemon is gone, RESUME will not list them */
        conn_unlock(a);
    }
    return total;
}

/* A quarter of the class was flushed and not taken again. */
static bool is_shrinking(const struct central *c)
{
    return c->flushed > SHRINK_MIN && c->flushed * 4 > (uint64_t)c->held_pages << PAGE_SHIFT;
}

/* Too much FREE memory is leased: wholly free spans go first. */
static void release_free(struct arena *a, struct central *c)
{
    struct keep *k = &a->keep;
    uint64_t limit = load_relaxed(&k->free_limit), before = load_relaxed(&k->free_bytes);
    if (before <= limit)
        return;
    release(a, c, LEASE_IDLE, UINT32_MAX, &k->free_bytes, limit - limit / 4);
    if (load_relaxed(&k->free_bytes) > limit)
        release(a, c, LEASE_CURRENT, UINT32_MAX, &k->free_bytes, limit - limit / 4);
    uint64_t after = load_relaxed(&k->free_bytes);
    c->gave_back += before > after ? before - after : 0;
}

/* A lease is needed: what had been let go since the last one was let go too early, so more is kept from now on. A swing,
 * in which a good part of the class went and comes back, is followed as far as it goes; ripples, as of random replacement,
 * only to a 64th of what the process holds, or RIPPLE_FEW while that is little: there what is kept weighs less than a round
 * trip, in a large process more. */
static void adapt(struct arena *a, struct central *c)
{
    struct keep *k = &a->keep;
    uint64_t most = a->heap_bytes / 4 < KEEP_MAX ? a->heap_bytes / 4 : KEEP_MAX;
    uint64_t limit = load_relaxed(&k->free_limit), held = load_relaxed(&k->held_pages) << PAGE_SHIFT;
    uint64_t ripple = held <= HELD_FEW ? RIPPLE_FEW : held / 64;
    uint64_t swung = c->gave_back > c->stash_peak ? c->gave_back : c->stash_peak;
    if (swung * 8 < (uint64_t)c->held_pages << PAGE_SHIFT) {
        most = most < ripple ? most : ripple;
        most = most < KEEP_FREE_MIN ? KEEP_FREE_MIN : most;
        most = most < limit ? limit : most;
    }
    uint64_t free_want = limit + c->gave_back;
    uint64_t full_want = load_relaxed(&k->full_limit) + exchange_relaxed(&k->missed_bytes, 0);
    store_relaxed(&k->free_limit, free_want < most ? free_want : most);
    store_relaxed(&k->full_limit, full_want < KEEP_MAX ? full_want : KEEP_MAX);
    c->gave_back = c->flushed = c->stash_peak = 0;
}

static void flush_words(struct arena *a, struct central *c, const struct arena_slot *slots, uint32_t count);
static bool accept_ahead(struct arena *a, struct central *c);

static void stash_empty(struct arena *a, struct central *c)
{
    fetch_sub_relaxed(&a->keep.free_bytes, (uint64_t)c->stash_count * class_table[c - a->central].size);
    flush_words(a, c, c->stash, c->stash_count);
    c->stash_count = 0;
}

static void give_back_all(struct arena *a, struct central *c)
{
    stash_empty(a, c);
    free(c->stash);
    c->stash = NULL;
    c->stash_capacity = 0;
    const uint64_t always = 1;
    if (c->asked_ahead) {
        conn_lock(a);
        accept_ahead(a, c);
        conn_unlock(a);
    }
    c->grant_spans = 0;
    for (int list = LEASE_CURRENT; list < LEASE_LISTS; list++)
        release(a, c, (enum lease_list)list, UINT32_MAX, &always, 0);
    hold_pages(a, c, -(int64_t)c->held_pages);
    c->gave_back = 0;
}

void lease_release_all(struct arena *a)
{
    for (unsigned i = 2; i < SPAN_CLASS_COUNT; i++) {
        struct central *c = &a->central[i];
        pthread_mutex_lock(&c->lock);
        central_use(c);
        give_back_all(a, c);
        pthread_mutex_unlock(&c->lock);
    }
    store_relaxed(&a->keep.free_limit, KEEP_FREE_MIN);
    store_relaxed(&a->keep.full_limit, KEEP_FULL_MIN);
}

void trim_if_asked(struct mcache *mc)
{
    struct arena *a = mc->arena;
    uint64_t notice = load_relaxed(&a->trim_notice);
    if (unlikely(notice && exchange_relaxed(&a->trim_notice, 0))) {
        fetch_add_relaxed(&a->trim_serial, 1);
        large_release_all(a);
        lease_release_all(a);
    } else
        notice = 0;
    if (unlikely(mc->trim_seen != load_relaxed(&a->trim_serial))) {
        mc->trim_seen = load_relaxed(&a->trim_serial);
        mcache_flush_all(mc);
        lease_release_all(a);
    }
    if (notice) {
        conn_lock(a);
        a->conn.out.mode = CLIENT_MODE_TRIMMED;
        a->conn.out.value = notice;
        conn_tell(a, MSG_MODE);
        conn_unlock(a);
    }
}

/* ---- the stash ---------------------------------------------------------------------------------------------------------------------------- */

static bool stash_grow(struct central *c, uint32_t count)
{
    uint32_t capacity = c->stash_capacity ? c->stash_capacity * 2 : 64;
    while (capacity < count)
        capacity *= 2;
    struct arena_slot *grown = realloc(c->stash, capacity * sizeof *grown);
    if (!grown)
        return false;
    c->stash = grown;
    c->stash_capacity = capacity;
    return true;
}

/* Keeps entries as they are, CACHED: no word is touched. False: that would be more than the process may keep. */
static bool stash_put(struct arena *a, struct central *c, const struct arena_slot *slots, uint32_t count)
{
    uint64_t bytes = (uint64_t)count * class_table[c - a->central].size;
    if (load_relaxed(&a->keep.free_bytes) + bytes > load_relaxed(&a->keep.free_limit) ||
        (c->stash_count + count > c->stash_capacity && !stash_grow(c, c->stash_count + count)))
        return false;
    memcpy(c->stash + c->stash_count, slots, count * sizeof *slots);
    c->stash_count += count;
    uint64_t all = (uint64_t)c->stash_count * class_table[c - a->central].size;
    c->stash_peak = all > c->stash_peak ? all : c->stash_peak;
    fetch_add_relaxed(&a->keep.free_bytes, bytes);
    return true;
}

/* The newest entries, in the order in which they came. */
static uint32_t stash_take(struct arena *a, struct central *c, struct arena_slot *out, uint32_t want)
{
    uint32_t n = want < c->stash_count ? want : c->stash_count;
    if (n == 0)
        return 0;
    c->stash_count -= n;
    memcpy(out, c->stash + c->stash_count, n * sizeof *out);
    fetch_sub_relaxed(&a->keep.free_bytes, (uint64_t)n * class_table[c - a->central].size);
    return n;
}

/* ---- refill ------------------------------------------------------------------------------------------------------------------------------ */

/* Takes FREE objects of one span from its cursor on. At the span's end it goes to `full`, or stays if something was
 * flushed behind the cursor meanwhile. */
static uint32_t take_from(struct arena *a, struct central *c, uint32_t first, struct arena_slot *out, uint32_t want)
{
    const struct class_info *info = &class_table[c - a->central];
    struct lease *l = &a->leases[first];
    uint16_t *words = a->words + (uint64_t)page_entry_unit(load_relaxed(&a->pages[first])) * UNIT_WORDS;
    uint8_t *base = a->base + ((uint64_t)first << PAGE_SHIFT);
    uint16_t cached = WORD_CACHED(a->tag);
    uint32_t got = 0, i = l->cursor;
    for (; i < info->objects && got < want; i++)
        if (word_cache(&words[i], cached))
            out[got++] = (struct arena_slot){base + (uint64_t)i * info->size, &words[i]};
    count_free(a, first, info, -(int)(got < l->free ? got : l->free));
    if (i < info->objects) {
        l->cursor = (uint16_t)i;
        return got;
    }
    l->cursor = 0;
    if (l->again && l->free)
        l->again = 0;
    else {
        count_free(a, first, info, -(int)l->free); /* it was an estimate */
        list_move(a, c, first, LEASE_FULL);
    }
    return got;
}

/* How many of its words are FREE; a span that others have freed in goes to the list that it belongs to. */
static void look_again(struct arena *a, struct central *c, uint32_t first)
{
    const struct class_info *info = &class_table[c - a->central];
    struct span_info span;
    if (!span_at(&a->heap, first, &span))
        return;
    for (uint32_t i = 0; i < span.page_count && i < 16; i++)
        hint_clear(&a->heap.hints[first + i]); /* by an exchange, and then the scan */
    uint32_t n = span_count_free(&span);
    count_free(a, first, info, (int)n - (int)a->leases[first].free);
    a->leases[first].cursor = 0;
    a->leases[first].again = 0;
    list_move(a, c, first, n == 0 ? LEASE_FULL : n == info->objects ? LEASE_IDLE : LEASE_CURRENT);
}

/* Looks at the hints of some of the spans that were worked through, oldest first. */
static bool look_at_hints(struct arena *a, struct central *c)
{
    const struct class_info *info = &class_table[c - a->central];
    bool found = false;
    for (uint32_t n = 0; n < HINT_LOOKS && n < c->count[LEASE_FULL]; n++) {
        uint32_t first = c->first[LEASE_FULL];
        int seen = 0;
        for (uint32_t i = 0; i < info->pages; i++)
            seen |= hint_seen(&a->heap.hints[first + i]);
        list_remove(a, c, first); /* to the end: the next look begins behind it */
        list_append(a, c, first, LEASE_FULL);
        if (seen) {
            look_again(a, c, first);
            found |= a->leases[first].list != LEASE_FULL;
        }
    }
    return found;
}

/* populates what was cut for this lease: a fault a page would cost four times as much */
static void populate(struct arena *a, uint64_t pages, const uint32_t *list, uint32_t count)
{
    for (uint32_t i = 0; i < count;) {
        uint32_t first = list[i], run = 1;
        while (i + run < count && list[i + run] == first + run * pages)
            run++;
        madvise(a->base + ((uint64_t)first << PAGE_SHIFT), run * pages << PAGE_SHIFT, MADV_POPULATE_WRITE);
        i += run;
    }
}

/* Spans that were granted come into current. */
static void accept_grant(struct arena *a, struct central *c, uint32_t flags, const uint32_t *list, uint32_t count)
{
    const struct class_info *info = &class_table[c - a->central];
    AFTER_GRANT(a);
    if (flags & GRANT_FRESH)
        populate(a, info->pages, list, count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t first = list[i];
        if (first >= a->heap.page_count || a->leases[first].list != LEASE_NONE)
            continue; /* not ours to believe */
        a->leases[first] = (struct lease){.span_class = (uint8_t)(c - a->central)};
        list_append(a, c, first, LEASE_CURRENT);
        look_again(a, c, first);
    }
    c->grant_spans = flags & GRANT_FRESH ? count : 0;
    hold_pages(a, c, (int64_t)count * info->pages);
}

/* How much a lease asks for, in pages: half of what the class holds, up to LEASE_FEW_PAGES, so that a little needs few
 * round trips; then a 128th of it, so that what is leased ahead of need is a small part of what is used. */
static uint32_t ask_pages(const struct central *c, const struct class_info *info)
{
    uint32_t few = c->held_pages / 2 < LEASE_FEW_PAGES ? c->held_pages / 2 : LEASE_FEW_PAGES, part = c->held_pages / 128;
    uint32_t ask = part < few ? few : part > LEASE_MAX_PAGES ? LEASE_MAX_PAGES : part;
    return ask < info->pages ? info->pages : ask;
}

/* A LEASE in conn.out, for conn_call. */
static void write_request(struct arena *a, struct central *c, uint32_t flags)
{
    struct msg *out = &a->conn.out;
    out->span_class = (uint32_t)(c - a->central);
    out->pages = ask_pages(c, &class_table[c - a->central]);
    out->flags = flags;
    out->list_count = 0;
    uint64_t limit = load_relaxed(&a->keep.full_limit);
    while (out->list_count < 512 && c->first[LEASE_FULL] != LEASE_END && load_relaxed(&a->keep.full_bytes) > limit) {
        uint32_t first = c->first[LEASE_FULL]; /* worked through, long ago: to the daemon's `empty` */
        list_remove(a, c, first);
        memset(&a->leases[first], 0, sizeof(struct lease));
        out->list[out->list_count++] = first;
    }
}

/* Takes what was asked for ahead, if that was of this class. */
static bool accept_ahead(struct arena *a, struct central *c)
{
    const struct ahead *ahead = &a->conn.ahead;
    c->asked_ahead = false;
    if (conn_ahead(a, (unsigned)(c - a->central)) < 0)
        return false;
    accept_grant(a, c, ahead->flags, ahead->list, ahead->count);
    return ahead->count > 0;
}

static int ask_daemon(struct arena *a, struct central *c)
{
    int rc = 0;
    adapt(a, c);
    conn_lock(a);
    if (!accept_ahead(a, c)) {
        write_request(a, c, 0);
        rc = conn_call(a, MSG_LEASE, MSG_GRANT);
        if (rc == 0)
            accept_grant(a, c, a->conn.in.flags, a->conn.in.list, a->conn.in.list_count);
    }
    conn_unlock(a);
    return rc;
}

/* A class that grows has used up half of its last lease: the next one is asked for now, so that it is there, or on its way,
 * when it is needed. Never waits for another thread's request. */
static void ask_ahead(struct arena *a, struct central *c)
{
    if (c->count[LEASE_CURRENT] + c->count[LEASE_IDLE] > c->grant_spans / 2 || !conn_trylock(a))
        return;
    if (!a->conn.ahead.id) {
        write_request(a, c, LEASE_AHEAD);
        conn_ask_ahead(a);
        c->asked_ahead = true;
    }
    conn_unlock(a);
}

int lease_refill(struct arena *a, unsigned span_class, struct arena_slot *out, uint32_t want)
{
    struct central *c = &a->central[span_class];
    uint32_t got = 0;
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    central_use(c);
    got = stash_take(a, c, out, want);
    while (got == 0) {
        uint32_t first = c->first[LEASE_CURRENT];
        if (first == LEASE_END)
            first = c->first[LEASE_IDLE];
        if (first != LEASE_END) {
            list_move(a, c, first, LEASE_CURRENT);
            got += take_from(a, c, first, out + got, want - got);
        } else if (!look_at_hints(a, c) && (rc = ask_daemon(a, c)) < 0)
            break;
    }
    uint64_t taken = (uint64_t)got * class_table[span_class].size;
    c->flushed -= c->flushed < taken ? c->flushed : taken;
    if (c->grant_spans > 1)
        ask_ahead(a, c);
    pthread_mutex_unlock(&c->lock);
    return got ? (int)got : rc;
}

/* ---- flush ------------------------------------------------------------------------------------------------------------------------------- */

/* CACHED -> FREE, then the hint, of each. */
static void flush_words(struct arena *a, struct central *c, const struct arena_slot *slots, uint32_t count)
{
    unsigned span_class = (unsigned)(c - a->central);
    const struct class_info *info = &class_table[span_class];
    uint16_t cached = WORD_CACHED(a->tag);
    uint64_t ours = 0, missed = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint64_t page = (uint64_t)((uint8_t *)slots[i].object - a->base) >> PAGE_SHIFT;
        uint32_t first = (uint32_t)page - page_entry_index(load_relaxed(&a->pages[page]));
        struct lease *l = &a->leases[first];
        /* looked at before: once the word is FREE and the span is not leased here, it may be cut into another class's
         * and granted to another thread, and then the lease is not this lock's */
        bool leased = l->list != LEASE_NONE && l->span_class == span_class;
        BEFORE_FREE(a);
        if (!word_flush(slots[i].word, cached))
            continue; /* freed twice, or torn away: nobody's to give */
        hint_set(&a->heap.hints[page]); /* always: skipping it when it is set could lose one */
        if (!leased) {
            missed++;
            continue;
        }
        ours++;
        l->free++;
        l->again = 1;
        if (l->free >= info->objects)
            list_move(a, c, first, LEASE_IDLE);
        else if (l->list == LEASE_FULL)
            list_move(a, c, first, LEASE_CURRENT);
    }
    c->flushed += (ours + missed) * info->size;
    if (ours)
        fetch_add_relaxed(&a->keep.free_bytes, ours * info->size);
    if (missed)
        fetch_add_relaxed(&a->keep.missed_bytes, missed * info->size);
}

void lease_flush(struct arena *a, unsigned span_class, const struct arena_slot *slots, uint32_t count)
{
    struct central *c = &a->central[span_class];
    pthread_mutex_lock(&c->lock);
    central_use(c);
    c->grant_spans = 0; /* it does not only grow */
    if (c->held_pages == 0) /* nothing is allocated here: what others allocated goes back to them while it is warm */
        flush_words(a, c, slots, count);
    else if (!stash_put(a, c, slots, count)) {
        if (is_shrinking(c)) { /* a few objects here and there would keep whole spans from going back */
            uint64_t half = load_relaxed(&a->keep.free_limit) / 2;
            store_relaxed(&a->keep.free_limit, half > KEEP_FREE_LEAST ? half : KEEP_FREE_LEAST);
            stash_empty(a, c);
        }
        flush_words(a, c, slots, count);
        release_free(a, c);
    }
    pthread_mutex_unlock(&c->lock);
}

uint32_t lease_list(struct arena *a, uint64_t *cursor, uint32_t *out, uint32_t capacity)
{
    uint32_t count = 0;
    uint64_t page = *cursor;
    for (; page < a->heap.page_count && count < capacity; page++) {
        if (load_relaxed(&a->heap.spans[page].lessee) == a->tag && load_relaxed(&a->leases[page].list) != LEASE_NONE)
            out[count++] = (uint32_t)page;
        if (page >= a->heap.header->top)
            page = a->heap.page_count - 1;
    }
    *cursor = page;
    return count;
}
