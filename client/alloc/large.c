/* Large objects: spans of one object. A process keeps a bounded cache of freed ones (keep.h), so that their churn makes no
 * round trip; its bound grows while what it let go is asked for again. A process that only frees keeps none.
 *
 * A large span stays leased to the process that asked for it until its object is published or let go: then nobody leases
 * it, and whoever frees it later only leaves FREE and a hint, which the daemon's sweep finds. Entries of the cache are
 * CACHED by this client; some are still leased, some are not.
 *
 * How many pages a span has is noted in its lease, and the note is what counts here: the map's page_count changes whenever
 * the daemon comes to an EXTEND, be it one that this process has given up. An EXTEND that was answered changes the note.
 * After one of which nobody can say whether it was done the note is the smaller count, and the object is in doubt: it is
 * not cached (a free lets go of the span, and the daemon knows its count) and not published, until a call has reached the
 * daemon again and the map tells. A span that nobody leases cannot be extended: its note is the map's count when it was freed. */
#include <string.h>
#include <sys/mman.h>

#include "client/alloc/keep.h"
#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "client/link/returns.h"

enum { POPULATE_MAX = 512 }; /* pages, 4 MiB: what a program asks for beyond it may be sparse */

void large_init(struct arena *a)
{
    struct large_cache *l = &a->large;
    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->lock, NULL);
    for (int i = 0; i < 256; i++)
        l->bins[0][i] = l->bins[1][i] = LEASE_END;
    l->oldest = l->newest = LEASE_END;
    l->limit = keep_large_least(&a->keep);
}

/* Eight bins a doubling: a bin's sizes are at most 12.5 % apart. */
static unsigned bin_of(uint64_t pages)
{
    unsigned log = 63 - (unsigned)__builtin_clzll(pages);
    return log < 3 ? (unsigned)pages : 8 + (log - 3) * 8 + (unsigned)(pages >> (log - 3) & 7);
}

static uint32_t map_pages(const struct arena *a, uint64_t first) { return load_relaxed(&a->heap.spans[first].page_count); }
static uint32_t noted_pages(const struct arena *a, uint64_t first) { return load_relaxed(&a->leases[first].pages); }
static void note_pages(struct arena *a, uint64_t first, uint32_t pages) { store_relaxed(&a->leases[first].pages, pages); }

uint16_t *large_word(const struct arena *a, uint64_t first)
{
    return a->words + (uint64_t)page_entry_unit(load_relaxed(&a->pages[first])) * UNIT_WORDS;
}

/* ---- the cache: chained by bin in leases[first], by age in leases[first + 1] ------------------------------------------------- */

static void cache_add(struct arena *a, uint32_t first, bool noscan, uint64_t pages)
{
    struct large_cache *l = &a->large;
    struct lease *bin = &a->leases[first], *age = &a->leases[first + 1];
    uint32_t *head = &l->bins[noscan][bin_of(pages)];
    bin->next = *head;
    bin->prev = LEASE_END;
    if (*head != LEASE_END)
        a->leases[*head].prev = first;
    *head = first;
    age->next = LEASE_END;
    age->prev = l->newest;
    *(l->newest == LEASE_END ? &l->oldest : &a->leases[l->newest + 1].next) = first;
    l->newest = first;
    l->bytes += pages << PAGE_SHIFT;
}

static void cache_remove(struct arena *a, uint32_t first, bool noscan, uint64_t pages)
{
    struct large_cache *l = &a->large;
    struct lease *bin = &a->leases[first], *age = &a->leases[first + 1];
    *(bin->prev == LEASE_END ? &l->bins[noscan][bin_of(pages)] : &a->leases[bin->prev].next) = bin->next;
    if (bin->next != LEASE_END)
        a->leases[bin->next].prev = bin->prev;
    *(age->prev == LEASE_END ? &l->oldest : &a->leases[age->prev + 1].next) = age->next;
    *(age->next == LEASE_END ? &l->newest : &a->leases[age->next + 1].prev) = age->prev;
    l->bytes -= pages << PAGE_SHIFT;
}

static bool is_leased(const struct arena *a, uint64_t first) { return load_relaxed(&a->leases[first].list) != LEASE_NONE; }

static bool is_noscan(const struct arena *a, uint64_t first)
{
    return CLASS_IS_NOSCAN(page_entry_class(load_relaxed(&a->pages[first])));
}

/* A cached object of at least `pages`, at most a quarter more; 0: none. */
static uint32_t cache_take(struct arena *a, bool noscan, uint64_t pages, uint64_t align)
{
    struct large_cache *l = &a->large;
    unsigned last = bin_of(pages + pages / 4);
    for (unsigned bin = bin_of(pages); bin <= last && bin < 256; bin++)
        for (uint32_t first = l->bins[noscan][bin], n = 0; first != LEASE_END && n < 16; first = a->leases[first].next, n++)
            if (noted_pages(a, first) >= pages && first % align == 0) {
                cache_remove(a, first, noscan, noted_pages(a, first));
                return first;
            }
    return LEASE_END;
}

/* The word FREE, then the hint, then the lease. Its word is CACHED by this client, and it is not in the cache. */
static void free_span(struct arena *a, uint32_t first)
{
    BEFORE_FREE(a);
    if (word_flush(large_word(a, first), WORD_CACHED(a->tag)))
        hint_set(&a->heap.hints[first]);
    returns_put(a, first);
}

/* Lets the oldest go until `bound` is kept. */
static void evict(struct arena *a, uint64_t bound)
{
    struct large_cache *l = &a->large;
    while (l->bytes > bound && l->oldest != LEASE_END) {
        uint32_t first = l->oldest;
        cache_remove(a, first, is_noscan(a, first), noted_pages(a, first));
        free_span(a, first);
    }
}

static int ask_daemon(struct arena *a, unsigned span_class, uint64_t pages, uint64_t align, uint32_t *ret_first)
{
    struct large_cache *l = &a->large;
    pthread_mutex_lock(&l->lock);
    if (l->evicted && l->limit < keep_most(&a->keep))
        l->limit *= 2;
    l->evicted = false;
    l->evictions = 0;
    pthread_mutex_unlock(&l->lock);
    conn_lock(a);
    uint32_t given_back = returns_take(a, a->conn.list, RETURNS_BESIDE);
    int rc = conn_call(a, MSG(large, .span_class = span_class, .pages = (uint32_t)pages, .align = (uint32_t)align,
                              .list = a->conn.list, .list_count = given_back));
    const struct msg_grant *grant = &a->conn.in.grant;
    uint32_t first = 0;
    if (rc == 0 && (grant->list_count != 1 || grant->list[0] >= a->heap.page_count))
        rc = -EPROTO;
    if (rc == 0) { /* under conn.lock: a RESUME lists it */
        AFTER_GRANT(a);
        first = *ret_first = grant->list[0];
        a->leases[first].span_class = (uint8_t)span_class;
        store_relaxed(&a->leases[first].doubt, 0);
        note_pages(a, first, (uint32_t)pages);
        store_relaxed(&a->leases[first].list, LEASE_CURRENT);
    }
    bool fresh = rc == 0 && grant->flags & GRANT_FRESH;
    conn_unlock(a);
    if (fresh && pages <= POPULATE_MAX) /* a fault a page would cost four times as much */
        madvise(a->base + ((uint64_t)first << PAGE_SHIFT), pages << PAGE_SHIFT, MADV_POPULATE_WRITE);
    return rc;
}

int large_take(struct arena *a, bool noscan, uint64_t pages, uint64_t align, uint32_t *ret_first)
{
    pthread_mutex_lock(&a->large.lock);
    store_relaxed(&a->large.allocates, true);
    *ret_first = cache_take(a, noscan, pages, align);
    pthread_mutex_unlock(&a->large.lock);
    if (*ret_first != LEASE_END)
        return 0;
    int rc = ask_daemon(a, CLASS_LARGE | noscan, pages, align, ret_first);
    if (rc == 0 && !word_cache(large_word(a, *ret_first), WORD_CACHED(a->tag)))
        return -EIO; /* somebody wrote into the state words */
    return rc;
}

/* Its word is CACHED by this client. */
void large_free(struct arena *a, uint64_t first)
{
    struct large_cache *l = &a->large;
    pthread_mutex_lock(&l->lock);
    bool leased = is_leased(a, first);
    if (!leased)
        note_pages(a, first, map_pages(a, first)); /* nobody can extend it */
    uint64_t bytes = (uint64_t)noted_pages(a, first) << PAGE_SHIFT, limit = keep_now(&a->keep, l->limit);
    if (!load_relaxed(&l->allocates) || bytes > limit || (leased && load_relaxed(&a->leases[first].doubt)))
        free_span(a, (uint32_t)first);
    else
        cache_add(a, (uint32_t)first, is_noscan(a, first), bytes >> PAGE_SHIFT);
    if (l->bytes > limit) {
        evict(a, limit - limit / 4);
        l->evicted = true;
        if (++l->evictions >= 4 && l->limit > keep_large_least(&a->keep))
            l->limit /= 2;
    }
    pthread_mutex_unlock(&l->lock);
    conn_kick(a);
}

uint64_t large_bytes(const struct arena *a, uint64_t first, uint64_t bytes)
{
    return is_leased(a, first) && !forked(a) ? (uint64_t)noted_pages(a, first) << PAGE_SHIFT : bytes;
}

/* A call has reached the daemon, by a connection on which nothing old can be read: the map's count is the span's. With
 * conn.lock held. */
static void settle(struct arena *a, uint64_t first)
{
    note_pages(a, first, map_pages(a, first));
    store_relaxed(&a->leases[first].doubt, 0);
}

/* The caller's object is about to be published. An OWNED one in a span that nobody leases stays as it is. */
int large_let_go(struct arena *a, uint64_t first)
{
    if (unlikely(is_leased(a, first) && load_relaxed(&a->leases[first].doubt))) {
        conn_lock(a);
        int rc = load_relaxed(&a->leases[first].doubt) ? conn_call(a, MSG(ping)) : 0;
        if (rc == 0)
            settle(a, first);
        conn_unlock(a);
        if (rc < 0)
            return rc == -ESTALE ? rc : -ENOTCONN;
    }
    returns_put(a, (uint32_t)first);
    conn_kick(a);
    return 0;
}

int large_extend(struct arena *a, uint64_t first, uint32_t pages)
{
    conn_lock(a);
    uint32_t noted = noted_pages(a, first);
    bool doubt = load_relaxed(&a->leases[first].doubt);
    if (!is_leased(a, first)) { /* of nobody's, or of the parent's before a fork */
        conn_unlock(a);
        return -EPERM;
    }
    int rc = conn_call(a, MSG(extend, .first = (uint32_t)first, .pages = pages));
    if (rc == 0) {
        note_pages(a, first, pages);
        store_relaxed(&a->leases[first].doubt, 0);
    } else if (rc == -EINPROGRESS) { /* the daemon stands still in the middle of it */
        note_pages(a, first, pages < noted ? pages : noted);
        store_relaxed(&a->leases[first].doubt, 1);
    } else if (doubt && rc != -ENOTCONN && rc != -ESTALE)
        settle(a, first);
    conn_unlock(a);
    return rc;
}

void large_release_all(struct arena *a)
{
    struct large_cache *l = &a->large;
    pthread_mutex_lock(&l->lock);
    evict(a, 0);
    l->limit = keep_large_least(&a->keep);
    store_relaxed(&l->allocates, false); /* until it does again */
    pthread_mutex_unlock(&l->lock);
    conn_kick(a);
}
