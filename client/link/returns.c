/* Returns: spans that this process has let go of, until the daemon is told.
 *
 * Letting go waits for nobody: under returns.lock the lease's list becomes LEASE_NONE and its first page is queued, in one
 * step. The queue is sent by whoever next holds conn.lock, in the list of a LEASE or LARGE or as a RELEASE, and what the
 * socket does not take stays in it. Who finds conn.lock taken leaves it to the holder, who looks once more after he has
 * unlocked [RQ1]. So arena_free, arena_trim and arena_publish return at once, whatever the daemon does, and nothing is lost
 * when it reads nothing for long.
 *
 * Invariant: a queued span is leased to this client in the map, so it is granted to nobody and its entry here is used for
 * nothing else. Therefore a connection that comes back forgets the queue before it lists the leases: what was queued is not
 * listed, and the daemon takes it back. The list goes out in portions. What is let go meanwhile is queued if its page was
 * already passed, and is otherwise just not listed (`listed_to`).
 *
 * die: the daemon takes back a dead client's leases, whatever it had told.
 */
#include "client/heap.h"
#include "client/link/returns.h"
#include "client/link/socket.h"

void returns_init(struct arena *a)
{
    struct returns *r = &a->returns;
    *r = (struct returns){.first = LEASE_END, .last = LEASE_END, .listed_to = UINT64_MAX};
    pthread_mutex_init(&r->lock, NULL);
}

/* Where the queue goes on from a span. A large one may be in the cache again, chained there in the links of two pages. */
static uint32_t *next_of(struct arena *a, uint32_t first)
{
    struct lease *l = &a->leases[first];
    return CLASS_IS_LARGE(l->span_class) ? &l[1].pages : &l->next;
}

/* With returns.lock held. */
static void append(struct arena *a, uint32_t first)
{
    struct returns *r = &a->returns;
    *next_of(a, first) = LEASE_END;
    *(r->last == LEASE_END ? &r->first : next_of(a, r->last)) = first;
    r->last = first;
    store_relaxed(&r->waiting, r->waiting + 1);
}

bool returns_put(struct arena *a, uint32_t first)
{
    struct returns *r = &a->returns;
    struct lease *l = &a->leases[first];
    pthread_mutex_lock(&r->lock);
    bool leased = l->list != LEASE_NONE;
    if (leased) {
        store_relaxed(&l->list, LEASE_NONE);
        if (first < load_relaxed(&r->listed_to))
            append(a, first);
    }
    pthread_mutex_unlock(&r->lock);
    return leased;
}

void returns_add(struct arena *a, uint32_t first)
{
    a->leases[first].span_class = 0;
    returns_put_back(a, &first, 1);
}

uint32_t returns_take(struct arena *a, uint32_t *out, uint32_t most)
{
    struct returns *r = &a->returns;
    uint32_t count = 0;
    pthread_mutex_lock(&r->lock);
    for (; count < most && r->first != LEASE_END; count++) {
        out[count] = r->first;
        r->first = *next_of(a, r->first);
    }
    if (r->first == LEASE_END)
        r->last = LEASE_END;
    store_relaxed(&r->waiting, r->waiting - count);
    pthread_mutex_unlock(&r->lock);
    return count;
}

void returns_put_back(struct arena *a, const uint32_t *list, uint32_t count)
{
    pthread_mutex_lock(&a->returns.lock);
    for (uint32_t i = 0; i < count; i++)
        append(a, list[i]);
    pthread_mutex_unlock(&a->returns.lock);
}

void returns_answer(struct arena *a, uint32_t serial)
{
    struct returns *r = &a->returns;
    pthread_mutex_lock(&r->lock);
    if (serial && !r->answer)
        store_relaxed(&r->waiting, r->waiting + 1);
    if (!r->answer || (int32_t)(serial - r->answer) > 0) /* the newest is told */
        r->answer = serial;
    pthread_mutex_unlock(&r->lock);
}

void returns_trimmed(struct arena *a)
{
    struct returns *r = &a->returns;
    pthread_mutex_lock(&r->lock);
    if (!r->trimmed)
        store_relaxed(&r->waiting, r->waiting + 1);
    r->trimmed = true;
    pthread_mutex_unlock(&r->lock);
}

/* What is to be told after the spans: 0 of its own accord, or the serial of a shortage; -1: nothing. */
static int64_t take_answer(struct arena *a)
{
    struct returns *r = &a->returns;
    pthread_mutex_lock(&r->lock);
    int64_t value = r->answer ? (int64_t)r->answer : r->trimmed ? 0 : -1;
    if (value > 0)
        r->answer = 0;
    else
        r->trimmed = false;
    if (value >= 0)
        store_relaxed(&r->waiting, r->waiting - 1);
    pthread_mutex_unlock(&r->lock);
    return value;
}

/* What was given back is told before that it was: the daemon looks for it then. */
static int tell_trimmed(struct arena *a)
{
    int64_t value = take_answer(a);
    if (value < 0)
        return 0;
    int rc = conn_tell(a, MSG(trimmed, .serial = (uint64_t)value));
    if (rc < 0 && value)
        returns_answer(a, (uint32_t)value);
    else if (rc < 0)
        returns_trimmed(a);
    return rc;
}

bool returns_send(struct arena *a)
{
    uint32_t *list = a->conn.list;
    int rc = 0;
    while (rc == 0 && returns_pending(&a->returns)) {
        if (a->conn.fd < 0 || heap_is_stale(a))
            return false;
        uint32_t count = returns_take(a, list, RETURNS_MOST);
        if (count) {
            rc = conn_tell(a, MSG(release, .list = list, .list_count = count));
            if (rc == -EAGAIN) /* a connection that was lost takes them along: they are not listed */
                returns_put_back(a, list, count);
        } else
            rc = tell_trimmed(a);
    }
    return rc == 0;
}

uint32_t returns_list(struct arena *a, uint64_t *cursor, uint32_t *out, uint32_t capacity)
{
    struct returns *r = &a->returns;
    uint32_t count = 0;
    uint64_t page = *cursor;
    pthread_mutex_lock(&r->lock);
    if (page == 0) {
        r->first = r->last = LEASE_END;
        store_relaxed(&r->waiting, (r->answer != 0) + r->trimmed);
    }
    for (; page < a->heap.page_count && count < capacity; page++) {
        if (load_relaxed(&a->heap.spans[page].lessee) == a->tag && load_relaxed(&a->leases[page].list) != LEASE_NONE)
            out[count++] = (uint32_t)page;
        if (page >= a->heap.header->top)
            page = a->heap.page_count - 1;
    }
    store_relaxed(&r->listed_to, page < a->heap.page_count ? page : UINT64_MAX);
    pthread_mutex_unlock(&r->lock);
    *cursor = page;
    return count;
}
