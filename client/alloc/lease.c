/* The process's leased spans: the client's side of the mcentrals.
 *
 * A refill, step by step:
 *   1. the class's stash: entries that threads' magazines gave back, still CACHED, so that they move between threads without
 *      a word being touched
 *   2. FREE objects of the spans of `current`, oldest first, then of wholly free ones (`idle`)
 *   3. the hints of `full` spans, in which other processes may have freed
 *   4. the daemon, with the class's lock released. conn.lock comes first: who has waited for it looks once more at 1 to 3, as
 *      another thread may have leased for the class, or flushed
 * What is kept is bounded (keep.h), and the bounds grow while what was let go is soon asked for again.
 *
 * Condition 1 of shm/README.md: a lease is scanned and let go under one lock, its span class's; so no FREE word of a span
 * is taken after its release was sent. A span that is given back was removed from the lists before, and what is granted
 * comes onto one before conn.lock is released: a RESUME lists it.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/alloc/keep.h"
#include "client/alloc/lease.h"
#include "client/heap.h"
#include "client/link/conn.h"
#include "client/link/returns.h"

enum {
    LEASE_FEW_PAGES = 8,           /* 64 KiB: what a lease asks for of a class that has little */
    LEASE_MAX_PAGES = 128,         /* 1 MiB: the most that it asks for */
    LEASE_AHEAD_PARTS = 4,         /* a lease ahead is at most so small a part of what may be kept FREE */
    HINT_LOOKS = 64,               /* full spans whose hints a refill looks at before it asks the daemon */
    SHRINK_MIN = 256 << 10,        /* of a class: what is flushed below it is no shrinking */
    HELD_FEW = 64 << 20,           /* of what is leased or filled: up to it ripples of free bytes are kept up to */
    RIPPLE_FEW = 12 << 20,         /* this */
};

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
    returns_init(a);
    keep_init(&a->keep, a->heap_bytes, a->heap.header, tag_shortage(&a->heap, a->tag));
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

/* `list` keeps its value: a thread that lists the leases for a RESUME reads it without this lock, and must not take a span
 * that is on its way from one list to another for one that was let go. returns_put() clears it. */
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

/* Lets go of the oldest span of a list. */
static void let_go(struct arena *a, struct central *c, enum lease_list list)
{
    const struct class_info *info = &class_table[c - a->central];
    uint32_t first = c->first[list];
    list_remove(a, c, first);
    if (list != LEASE_FULL)
        hold_pages(a, c, -(int64_t)info->pages);
    count_free(a, first, info, -(int)a->leases[first].free);
    returns_put(a, first);
}

/* Lets go of the oldest spans of a list until `measure` is at most `bound`. */
static void release(struct arena *a, struct central *c, enum lease_list list, const uint64_t *measure, uint64_t bound)
{
    while (c->first[list] != LEASE_END && load_relaxed(measure) > bound)
        let_go(a, c, list);
}

/* Too much memory that is worked through is leased. In a small heap that is less than a span of many classes, so what other
 * classes have goes too, where nobody is at it: who leases in one class after the other would keep a span of each. */
static void release_full(struct arena *a, struct central *c)
{
    const uint64_t *full = &a->keep.full_bytes;
    uint64_t bound = keep_now(&a->keep, load_relaxed(&a->keep.full_limit));
    release(a, c, LEASE_FULL, full, bound);
    for (unsigned i = 2; i < SPAN_CLASS_COUNT && keep_is_small(&a->keep) && load_relaxed(full) > bound; i++) {
        struct central *other = &a->central[i];
        if (other == c || pthread_mutex_trylock(&other->lock) != 0)
            continue;
        if (other->ready)
            release(a, other, LEASE_FULL, full, bound);
        pthread_mutex_unlock(&other->lock);
    }
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
    uint64_t limit = keep_now(&a->keep, load_relaxed(&k->free_limit)), before = load_relaxed(&k->free_bytes);
    if (before <= limit)
        return;
    release(a, c, LEASE_IDLE, &k->free_bytes, limit - limit / 4);
    if (load_relaxed(&k->free_bytes) > limit)
        release(a, c, LEASE_CURRENT, &k->free_bytes, limit - limit / 4);
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
    uint64_t most = keep_most(&a->keep), all = most, least = keep_free_least(&a->keep);
    uint64_t limit = load_relaxed(&k->free_limit), held = load_relaxed(&k->held_pages) << PAGE_SHIFT;
    uint64_t ripple = held <= HELD_FEW ? RIPPLE_FEW : held / 64;
    uint64_t swung = c->gave_back > c->stash_peak ? c->gave_back : c->stash_peak;
    if (swung * 8 < (uint64_t)c->held_pages << PAGE_SHIFT) {
        most = most < ripple ? most : ripple;
        most = most < least ? least : most;
        most = most < limit ? limit : most;
    }
    uint64_t free_want = limit + c->gave_back;
    uint64_t full_want = load_relaxed(&k->full_limit) + exchange_relaxed(&k->missed_bytes, 0);
    store_relaxed(&k->free_limit, free_want < most ? free_want : most);
    store_relaxed(&k->full_limit, full_want < all ? full_want : all);
    c->gave_back = c->flushed = c->stash_peak = 0;
}

static void flush_words(struct arena *a, struct central *c, const struct arena_slot *slots, uint32_t count);

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
    c->grant_spans = 0;
    for (int list = LEASE_CURRENT; list < LEASE_LISTS; list++)
        while (c->first[list] != LEASE_END)
            let_go(a, c, (enum lease_list)list);
    hold_pages(a, c, -(int64_t)c->held_pages);
    c->gave_back = 0;
}

/* What was asked for ahead goes back, if it is there. Otherwise the class's next refill takes it, or the next trim. */
static void give_back_ahead(struct arena *a)
{
    struct connection *conn = &a->conn;
    if (!conn_trylock(a))
        return;
    if (conn->ahead.id && conn_ahead_arrived(a) && conn_ahead(a, conn->ahead.span_class) == 0)
        for (uint32_t i = 0; i < conn->ahead.count; i++)
            if (conn->ahead.list[i] < a->heap.page_count && load_relaxed(&a->leases[conn->ahead.list[i]].list) == LEASE_NONE)
                returns_add(a, conn->ahead.list[i]);
    conn_unlock(a);
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
    store_relaxed(&a->keep.free_limit, keep_free_least(&a->keep));
    store_relaxed(&a->keep.full_limit, keep_full_least(&a->keep));
    give_back_ahead(a);
    conn_kick(a);
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
    if (load_relaxed(&a->keep.free_bytes) + bytes > keep_now(&a->keep, load_relaxed(&a->keep.free_limit)) ||
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
    span_clear_hints(&a->heap, first, span.page_count);
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

/* What a request was answered with. */
struct grant {
    uint32_t flags, count;
    const uint32_t *list;
};

/* Spans that were granted come into current. With conn.lock held, so that a RESUME lists them. */
static void accept_grant(struct arena *a, struct central *c, const struct grant *g)
{
    const struct class_info *info = &class_table[c - a->central];
    AFTER_GRANT(a);
    for (uint32_t i = 0; i < g->count; i++) {
        uint32_t first = g->list[i];
        if (first >= a->heap.page_count || load_relaxed(&a->leases[first].list) != LEASE_NONE)
            continue; /* not ours to believe */
        a->leases[first].free = a->leases[first].cursor = 0;
        a->leases[first].again = a->leases[first].doubt = 0;
        a->leases[first].span_class = (uint8_t)(c - a->central);
        list_append(a, c, first, LEASE_CURRENT);
        look_again(a, c, first);
    }
    c->grant_spans = g->flags & GRANT_FRESH ? g->count : 0;
    hold_pages(a, c, (int64_t)g->count * info->pages);
}

/* How much a lease asks for, in pages: half of what the class holds, up to LEASE_FEW_PAGES, so that a little needs few
 * round trips; then a 128th of it, so that what is leased ahead of need is a small part of what is used. One span in a small
 * heap of which other classes keep enough. */
static uint32_t ask_pages(struct arena *a, const struct central *c)
{
    const struct class_info *info = &class_table[c - a->central];
    uint32_t few = c->held_pages / 2 < LEASE_FEW_PAGES ? c->held_pages / 2 : LEASE_FEW_PAGES, part = c->held_pages / 128;
    uint32_t ask = part < few ? few : part > LEASE_MAX_PAGES ? LEASE_MAX_PAGES : part;
    bool enough = keep_is_small(&a->keep) && load_relaxed(&a->keep.free_bytes) > keep_most(&a->keep);
    return ask < info->pages || enough ? info->pages : ask;
}

/* What it gives back is taken from the returns. */
static struct msg make_request(struct arena *a, struct central *c, uint32_t flags)
{
    /* worked through, long ago: to the daemon's `empty` */
    release_full(a, c);
    uint32_t pages = ask_pages(a, c), given_back = returns_take(a, a->conn.list, RETURNS_BESIDE);
    return MSG(lease, .span_class = (uint32_t)(c - a->central), .pages = pages, .flags = flags, .list = a->conn.list,
               .list_count = given_back);
}

/* What was asked for ahead, or what the request, a LEASE, asks for: with conn.lock held, and no other. 0 and the grant, or an
 * error. */
static int ask_daemon(struct arena *a, const struct msg *request, struct grant *ret)
{
    struct connection *conn = &a->conn;
    uint32_t span_class = request->lease.span_class;
    int rc = conn_ahead(a, span_class);
    if (rc == 0 && conn->ahead.count) {
        returns_put_back(a, request->lease.list, request->lease.list_count); /* not sent */
        *ret = (struct grant){conn->ahead.flags, conn->ahead.count, conn->ahead.list};
    } else {
        rc = conn_call(a, *request);
        *ret = (struct grant){conn->in.grant.flags, conn->in.grant.list_count, conn->in.grant.list};
    }
    if (rc == 0 && ret->flags & GRANT_FRESH)
        populate(a, class_table[span_class].pages, ret->list, ret->count);
    return rc;
}

/* A class that grows has used up half of its last lease: the next one is asked for now, so that it is there, or on its way,
 * when it is needed. Never waits, neither for another thread's request nor for a daemon that reads nothing. */
static void ask_ahead(struct arena *a, struct central *c)
{
    if (c->count[LEASE_CURRENT] + c->count[LEASE_IDLE] > c->grant_spans / 2 ||
        (uint64_t)ask_pages(a, c) << PAGE_SHIFT > keep_most(&a->keep) / LEASE_AHEAD_PARTS || !conn_trylock(a))
        return;
    if (!a->conn.ahead.id) {
        struct msg request = make_request(a, c, LEASE_AHEAD);
        if (conn_ask_ahead(a, request) == -EAGAIN)
            returns_put_back(a, request.lease.list, request.lease.list_count);
    }
    conn_unlock(a);
}

/* Objects that are there: how many. */
static uint32_t take_here(struct arena *a, struct central *c, struct arena_slot *out, uint32_t want)
{
    uint32_t got = stash_take(a, c, out, want);
    while (got == 0) {
        uint32_t first = c->first[LEASE_CURRENT];
        if (first == LEASE_END)
            first = c->first[LEASE_IDLE];
        if (first != LEASE_END) {
            list_move(a, c, first, LEASE_CURRENT);
            got += take_from(a, c, first, out + got, want - got);
        } else if (!look_at_hints(a, c))
            break;
    }
    return got;
}

/* As lease_refill, when nothing was there. */
static int lease_more(struct arena *a, struct central *c, struct arena_slot *out, uint32_t want)
{
    int rc = 0;
    conn_lock(a);
    pthread_mutex_lock(&c->lock);
    uint32_t got = take_here(a, c, out, want); /* it may have come while this thread waited for the connection */
    while (got == 0 && rc == 0) {
        struct grant grant;
        adapt(a, c);
        struct msg request = make_request(a, c, 0);
        pthread_mutex_unlock(&c->lock);
        rc = ask_daemon(a, &request, &grant);
        pthread_mutex_lock(&c->lock);
        if (rc == 0)
            accept_grant(a, c, &grant);
        got = take_here(a, c, out, want); /* also when it was refused: others may have flushed meanwhile */
    }
    pthread_mutex_unlock(&c->lock);
    conn_unlock(a);
    return got ? (int)got : rc;
}

/* What follows a refill, with the class's lock held. */
static void taken(struct arena *a, struct central *c, uint32_t got)
{
    uint64_t bytes = (uint64_t)got * class_table[c - a->central].size;
    c->flushed -= c->flushed < bytes ? c->flushed : bytes;
    if (c->grant_spans > 1)
        ask_ahead(a, c);
    if (keep_is_small(&a->keep) && load_relaxed(&a->keep.free_bytes) / 2 > keep_most(&a->keep))
        release_free(a, c); /* one span may be more than is kept: others use what is FREE in it */
    if (keep_is_small(&a->keep) && load_relaxed(&a->keep.full_bytes) / 2 > keep_most(&a->keep))
        release_full(a, c); /* and what they free in it is everybody's at once */
}

int lease_refill(struct arena *a, unsigned span_class, struct arena_slot *out, uint32_t want)
{
    struct central *c = &a->central[span_class];
    pthread_mutex_lock(&c->lock);
    central_use(c);
    int got = (int)take_here(a, c, out, want);
    if (got)
        taken(a, c, (uint32_t)got);
    pthread_mutex_unlock(&c->lock);
    if (got == 0) {
        got = lease_more(a, c, out, want);
        if (got > 0) {
            pthread_mutex_lock(&c->lock);
            taken(a, c, (uint32_t)got);
            pthread_mutex_unlock(&c->lock);
        }
    }
    conn_kick(a);
    return got;
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
        bool leased = load_relaxed(&l->list) != LEASE_NONE && l->span_class == span_class;
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
            store_relaxed(&a->keep.free_limit, half > KEEP_FREE_LEAST ? half : KEEP_FREE_LEAST); /* see keep_now() */
            stash_empty(a, c);
        }
        flush_words(a, c, slots, count);
        release_free(a, c);
    }
    pthread_mutex_unlock(&c->lock);
    conn_kick(a);
}
