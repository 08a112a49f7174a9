/* Large objects: spans of one object. A process keeps a bounded cache of freed ones, so that their churn makes no round
 * trip; its bound grows while what it let go is asked for again.
 *
 * A large span stays leased to the process that asked for it until its object is published or let go: then nobody leases
 * it, and whoever frees it later only leaves FREE and a hint, which the daemon's sweep finds. Entries of the cache are
 * CACHED by this client; some are still leased, some are not. */
#include <string.h>
#include <sys/mman.h>

#include "client/client.h"

enum {
    LIMIT_MIN = 32 << 20,
    POPULATE_MAX = 512, /* pages, 4 MiB: what a program asks for beyond it may be sparse */
};

void large_init(struct arena *a)
{
    struct large_cache *l = &a->large;
    memset(l, 0, sizeof *l);
    pthread_mutex_init(&l->lock, NULL);
    for (int i = 0; i < 256; i++)
        l->bins[0][i] = l->bins[1][i] = LEASE_END;
    l->oldest = l->newest = LEASE_END;
    l->limit = LIMIT_MIN;
}

/* Eight bins a doubling: a bin's sizes are at most 12.5 % apart. */
static unsigned bin_of(uint64_t pages)
{
    unsigned log = 63 - (unsigned)__builtin_clzll(pages);
    return log < 3 ? (unsigned)pages : 8 + (log - 3) * 8 + (unsigned)(pages >> (log - 3) & 7);
}

static uint64_t pages_of(const struct arena *a, uint64_t first) { return load_relaxed(&a->heap.spans[first].page_count); }

static uint16_t *word_of(const struct arena *a, uint64_t first)
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

static bool is_leased(const struct arena *a, uint64_t first) { return a->leases[first].list != LEASE_NONE; }

/* A cached object of at least `pages`, at most a quarter more; 0: none. */
static uint32_t cache_take(struct arena *a, bool noscan, uint64_t pages, uint64_t align)
{
    struct large_cache *l = &a->large;
    unsigned last = bin_of(pages + pages / 4);
    for (unsigned bin = bin_of(pages); bin <= last && bin < 256; bin++)
        for (uint32_t first = l->bins[noscan][bin], n = 0; first != LEASE_END && n < 16; first = a->leases[first].next, n++)
            if (pages_of(a, first) >= pages && first % align == 0) {
                cache_remove(a, first, noscan, pages_of(a, first));
                return first;
            }
    return LEASE_END;
}

/* Lets the oldest go until `bound` is kept: words FREE, then hints, then the leases. */
static void evict(struct arena *a, uint64_t bound)
{
    struct large_cache *l = &a->large;
    while (l->bytes > bound) {
        conn_lock(a);
        struct msg *out = &a->conn.out;
        out->list_count = 0;
        while (l->bytes > bound && out->list_count < 1024) {
            uint32_t first = l->oldest;
            cache_remove(a, first, CLASS_IS_NOSCAN(page_entry_class(load_relaxed(&a->pages[first]))), pages_of(a, first));
            BEFORE_FREE(a);
            if (word_flush(word_of(a, first), WORD_CACHED(a->tag)))
                hint_set(&a->heap.hints[first]);
            if (is_leased(a, first))
                out->list[out->list_count++] = first;
            a->leases[first].list = LEASE_NONE;
        }
        if (out->list_count)
            conn_tell(a, MSG_RELEASE);
        conn_unlock(a);
    }
}

static int ask_daemon(struct arena *a, unsigned span_class, uint64_t pages, uint64_t align, uint32_t *ret_first)
{
    struct large_cache *l = &a->large;
    pthread_mutex_lock(&l->lock);
    if (l->evicted && l->limit < KEEP_MAX && l->limit < a->heap_bytes / 4)
        l->limit *= 2;
    l->evicted = false;
    l->evictions = 0;
    pthread_mutex_unlock(&l->lock);
    conn_lock(a);
    a->conn.out.span_class = span_class;
    a->conn.out.pages = (uint32_t)pages;
    a->conn.out.align = (uint32_t)align;
    a->conn.out.list_count = 0;
    int rc = conn_call(a, MSG_LARGE, MSG_GRANT);
    if (rc == 0 && (a->conn.in.list_count != 1 || a->conn.in.list[0] >= a->heap.page_count))
        rc = -EPROTO;
    if (rc == 0) {
        AFTER_GRANT(a);
        *ret_first = a->conn.in.list[0];
        memset(&a->leases[*ret_first], 0, sizeof(struct lease));
        a->leases[*ret_first].list = LEASE_CURRENT;
        a->leases[*ret_first].span_class = (uint8_t)span_class;
    }
    bool fresh = rc == 0 && a->conn.in.flags & GRANT_FRESH;
    conn_unlock(a);
    if (fresh && pages <= POPULATE_MAX) /* a fault a page would cost four times as much */
        madvise(a->base + ((uint64_t)*ret_first << PAGE_SHIFT), pages << PAGE_SHIFT, MADV_POPULATE_WRITE);
    return rc;
}

/* A span whose word is CACHED by this client. */
static int obtain(struct arena *a, bool noscan, uint64_t pages, uint64_t align, uint32_t *ret_first)
{
    pthread_mutex_lock(&a->large.lock);
    uint32_t first = cache_take(a, noscan, pages, align);
    pthread_mutex_unlock(&a->large.lock);
    if (first != LEASE_END) {
        *ret_first = first;
        return 0;
    }
    int rc = ask_daemon(a, CLASS_LARGE | noscan, pages, align, &first);
    if (rc == -ENOMEM || rc == -EDQUOT) { /* what this process hoards may be what is missing */
        large_release_all(a);
        mcache_flush_all(mcache_of(a));
        lease_release_all(a);
        rc = ask_daemon(a, CLASS_LARGE | noscan, pages, align, &first);
    }
    if (rc < 0)
        return rc;
    if (!word_cache(word_of(a, first), WORD_CACHED(a->tag)))
        return -EIO; /* somebody wrote into the state words */
    *ret_first = first;
    return 0;
}

void *large_alloc(struct arena *a, struct mcache *mc, size_t size, size_t alignment, unsigned flags)
{
    uint32_t first;
    uint64_t pages = large_pages(size), align = alignment > PAGE_SIZE ? alignment >> PAGE_SHIFT : 1;
    if (heap_is_stale(a)) {
        errno = ESTALE;
        return NULL;
    }
    if (mc->tx && !(flags & ARENA_SHARED) && !tx_room(mc)) {
        errno = refused(ENOMEM, "no private memory to note an object of a transaction");
        return NULL;
    }
    trim_if_asked(mc);
    if (!pages || size > a->heap_bytes) {
        errno = ENOMEM;
        return NULL;
    }
    if (pages < 2)
        pages = 2; /* the cache chains in the entries of two pages */
    int rc = obtain(a, flags & ARENA_NOSCAN, pages, align, &first);
    uint64_t exact = (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
    if ((rc == -ENOMEM || rc == -EDQUOT) && exact > 1 && exact < pages) /* the rounding may be what is too much */
        rc = obtain(a, flags & ARENA_NOSCAN, exact, align, &first);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    uint16_t *word = word_of(a, first);
    void *object = a->base + ((uint64_t)first << PAGE_SHIFT);
    if (flags & ARENA_ZERO)
        memset(object, 0, size);
    word_own(word, mc->cached, flags & ARENA_SHARED ? WORD_SHARED : mc->owned);
    if (flags & ARENA_SHARED)
        large_let_go(a, first);
    else if (mc->tx)
        tx_log(mc, object, word);
    if (unlikely(load_relaxed(&a->watched)))
        watch_alloc(mc, object, size);
    return object;
}

/* Its word is CACHED by this client. */
void large_free(struct arena *a, uint64_t first, uint16_t *word)
{
    struct large_cache *l = &a->large;
    (void)word;
    pthread_mutex_lock(&l->lock);
    cache_add(a, (uint32_t)first, CLASS_IS_NOSCAN(page_entry_class(load_relaxed(&a->pages[first]))), pages_of(a, first));
    if (l->bytes > l->limit) {
        evict(a, l->limit - l->limit / 4);
        l->evicted = true;
        if (++l->evictions >= 4 && l->limit > LIMIT_MIN)
            l->limit /= 2;
    }
    pthread_mutex_unlock(&l->lock);
}

/* The caller's object is about to be published. An OWNED one in a span that nobody leases stays as it is. */
void large_let_go(struct arena *a, uint64_t first)
{
    conn_lock(a);
    if (is_leased(a, first)) {
        a->leases[first].list = LEASE_NONE;
        a->conn.out.list[0] = (uint32_t)first;
        a->conn.out.list_count = 1;
        conn_tell(a, MSG_RELEASE);
    }
    conn_unlock(a);
}

int large_extend(struct arena *a, uint64_t first, uint32_t pages)
{
    conn_lock(a);
    a->conn.out.first = (uint32_t)first;
    a->conn.out.pages = pages;
    int rc = conn_call(a, MSG_EXTEND, MSG_OK);
    conn_unlock(a);
    return rc;
}

void large_release_all(struct arena *a)
{
    pthread_mutex_lock(&a->large.lock);
    evict(a, 0);
    a->large.limit = LIMIT_MIN;
    pthread_mutex_unlock(&a->large.lock);
}
