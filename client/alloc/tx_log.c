#include "client/alloc/mcache.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/conn.h"
#include "client/link/reason.h"
#include "client/link/socket.h"

#include <stdlib.h>
#include <string.h>

enum { LOG_FIRST = 256 };

/* ---- which are open -------------------------------------------------------------------------------------------------- */

void tx_init(struct arena *a)
{
    pthread_mutex_init(&a->tx_lock, NULL);
    a->tx_open = a->tx_late = NULL; /* a forked child's parent's */
    a->tx_clean = 0;
    a->limbo = 0;
}

void tx_link(struct arena *a, struct transaction **list, struct transaction *tx)
{
    pthread_mutex_lock(&a->tx_lock);
    tx->next = *list;
    *list = tx;
    pthread_mutex_unlock(&a->tx_lock);
}

void tx_unlink(struct arena *a, struct transaction *tx)
{
    pthread_mutex_lock(&a->tx_lock);
    struct transaction **at = &a->tx_open;
    while (*at && *at != tx)
        at = &(*at)->next;
    if (*at)
        *at = tx->next;
    pthread_mutex_unlock(&a->tx_lock);
}

bool tx_is_mine(const struct arena *a, unsigned tag)
{
    return tag != load_relaxed(&a->limbo) && tag_is_of(&a->heap, tag, TAG_TX, a->tag);
}

void tx_set_closed(struct arena *a, struct transaction *tx, bool closed)
{
    pthread_mutex_lock(&a->tx_lock);
    tx->closed = closed;
    pthread_mutex_unlock(&a->tx_lock);
}

struct transaction *tx_suspend(struct mcache *mc)
{
    struct transaction *tx = mc->tx;
    mc->tx = NULL;
    mc->owned = WORD_OWNED(mc->arena->tag);
    mcache_expect(mc);
    return tx;
}

void tx_resume(struct mcache *mc, struct transaction *tx)
{
    mc->tx = tx;
    if (tx)
        mc->owned = WORD_OWNED(tx->tag);
    mcache_expect(mc);
}

void tx_free(struct transaction *tx)
{
    free(tx->log.slots);
    free(tx->moved.slots);
    free(tx);
}

/* The heap is closed: the daemon frees what they had, or turns it. */
void tx_fini(struct arena *a)
{
    struct transaction **lists[] = {&a->tx_open, &a->tx_late}, *tx;
    for (int i = 0; i < 2; i++)
        while ((tx = *lists[i]) != NULL) {
            *lists[i] = tx->next;
            tx_free(tx);
        }
}

/* ---- in doubt -------------------------------------------------------------------------------------------------------- */

int tx_settle(struct arena *a, struct transaction *tx, bool waits)
{
    if (!tx->in_doubt)
        return 0;
    struct patience patience = conn_patience(a);
    if (!waits)
        patience.left_ms = 0;
    conn_lock(a);
    int rc = conn_call_within(a, MSG(ping), patience);
    conn_unlock(a);
    if (rc == -ENOTCONN || rc == -EINPROGRESS)
        return -ENOTCONN;
    tx->in_doubt = false;
    return rc == 0 && tag_state(&a->heap, tx->tag) == TAG_TX_COMMITTED ? -EALREADY : 0;
}

/* Something new is to be of a transaction whose commit was in doubt: 0 if that was not done. If it was, whatever bears the tag is
 * published from its first moment on, so there is nothing new; the commit or the abort that follows tells the caller. */
static int reopen(struct arena *a, struct transaction *tx)
{
    int rc = tx_settle(a, tx, true);
    if (rc == 0)
        tx_set_closed(a, tx, false);
    if (rc != -EALREADY)
        return rc;
    tx->in_doubt = true;
    return refused(rc, "the commit that was in doubt was done: nothing more can be of its transaction");
}

/* ---- the log --------------------------------------------------------------------------------------------------------- */

/* 1. of own/tx.c */
bool tx_is_live(const struct arena *a, unsigned tag, const struct arena_slot *s)
{
    struct object object;
    return object_find(&a->heap, (uint64_t)((uint8_t *)s->object - a->base), &object) && !object.remainder &&
           object.word == s->word && load_relaxed(s->word) == WORD_OWNED(tag);
}

static int compare_slots(const void *a, const void *b)
{
    const struct arena_slot *x = a, *y = b;
    return x->object < y->object ? -1 : x->object > y->object;
}

/* Drops what is dead, and all but one of the entries of an object that was freed and allocated again in its place. */
static void compact(const struct arena *a, unsigned tag, struct log *log)
{
    size_t live = 0, count = 0;
    for (size_t i = 0; i < log->count; i++)
        if (tx_is_live(a, tag, &log->slots[i]))
            log->slots[live++] = log->slots[i];
    qsort(log->slots, live, sizeof *log->slots, compare_slots);
    for (size_t i = 0; i < live; i++)
        if (!count || log->slots[count - 1].object != log->slots[i].object)
            log->slots[count++] = log->slots[i];
    log->count = count;
}

/* Room for one more. `freed`: at most so many of its entries are dead or twice there. */
static bool make_room(const struct arena *a, unsigned tag, struct log *log, uint64_t freed)
{
    if (log->count && freed >= log->count / 4)
        compact(a, tag, log);
    if (log->count <= log->capacity / 2 && log->count < log->capacity)
        return true;
    size_t capacity = log->capacity ? log->capacity * 2 : LOG_FIRST;
    struct arena_slot *grown = realloc(log->slots, capacity * sizeof *grown);
    if (!grown)
        return log->count < log->capacity;
    log->slots = grown;
    log->capacity = capacity;
    return true;
}

int tx_room(struct mcache *mc)
{
    struct transaction *tx = mc->tx;
    int rc = likely(!tx->in_doubt) ? 0 : reopen(mc->arena, tx);
    if (rc < 0 || likely(tx->log.count < tx->log.capacity))
        return rc;
    uint64_t others = load_relaxed(&mc->arena->tx_freed_by_others);
    uint64_t freed = tx->freed + (others - tx->freed_by_others);
    tx->freed = 0;
    tx->freed_by_others = others;
    if (make_room(mc->arena, tx->tag, &tx->log, freed))
        return 0;
    return refused(-ENOMEM, "no private memory to note an object of a transaction");
}

void tx_log(struct mcache *mc, void *object, uint16_t *word)
{
    struct log *log = &mc->tx->log;
    log->slots[log->count++] = (struct arena_slot){object, word};
}

void tx_freed(struct arena *a, const struct mcache *mc, unsigned tag)
{
    if (mc && mc->tx && mc->tx->tag == tag)
        mc->tx->freed++;
    else
        fetch_add_relaxed(&a->tx_freed_by_others, 1);
}

int tx_adopt(struct mcache *mc, void *object)
{
    struct object o;
    struct arena *a = mc->arena;
    int rc = mc->tx ? tx_room(mc) : 0;
    if (!mc->tx || rc < 0)
        return rc;
    if (!object_find(&a->heap, (uint64_t)((uint8_t *)object - a->base), &o))
        return -EINVAL;
    uint16_t seen = load_relaxed(o.word);
    if (seen == WORD_OWNED(a->tag))
        word_adopt(o.word, mc->owned); /* T10 */
    else if (!word_is_owned(seen) || !tx_is_mine(a, word_tag(seen)) || !word_adopt_swap(o.word, seen, mc->owned)) /* T19 */
        return 0; /* published already; the other way: one that is sampled */
    tx_log(mc, object, o.word);
    return 0;
}

int tx_move(struct arena *a, unsigned tag, void *object, uint16_t *word)
{
    int rc = -EBUSY;
    pthread_mutex_lock(&a->tx_lock);
    struct transaction *tx = a->tx_open;
    while (tx && tx->tag != tag)
        tx = tx->next;
    if (tx && !tx->closed) {
        struct log *log = &tx->moved;
        rc = log->count < log->capacity || make_room(a, tag, log, log->count) ? 0 : -ENOMEM;
        if (rc == 0) {
            word_adopt_swap(word, load_relaxed(word), WORD_OWNED(tag)); /* T19: OWNED(t), or one that is sampled: mine */
            log->slots[log->count++] = (struct arena_slot){object, word};
        }
    }
    pthread_mutex_unlock(&a->tx_lock);
    return rc;
}
