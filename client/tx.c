/* Transactions: a thread's. While one is open, what the thread allocates is OWNED(x), x being the transaction's tag, and
 * its state word is noted in a private log. Commit is one update of the map by the daemon, together with the root's; from
 * then on OWNED(x) counts as SHARED, and the log's words are turned to SHARED by compare-and-swap. If this process dies
 * before, the daemon's pass frees them all; after, it turns them. Abort frees what the log names.
 *
 * A tag may be used again when no word bears it: the client says so with its next commit, and takes another one from its
 * stock meanwhile, so a transaction costs one round trip. */
#include <stdlib.h>
#include <string.h>

#include "client/client.h"
#include "shm/root.h"

struct transaction {
    uint16_t tag;
    struct arena_slot *log; /* in the order of allocation; some may have been freed since */
    size_t count, capacity;
    bool log_failed; /* out of private memory: the words are found by the pass when this process ends */
    bool in_doubt;   /* a commit was not answered: it may have been done, or be done yet */
};

void tx_log(struct mcache *mc, void *object, uint16_t *word)
{
    struct transaction *tx = mc->tx;
    if (!tx)
        return;
    if (tx->count == tx->capacity) {
        size_t capacity = tx->capacity ? tx->capacity * 2 : 256;
        struct arena_slot *grown = realloc(tx->log, capacity * sizeof *grown);
        if (!grown) {
            tx->log_failed = true;
            return;
        }
        tx->log = grown;
        tx->capacity = capacity;
    }
    tx->log[tx->count++] = (struct arena_slot){object, word};
}

bool tx_is_mine(const struct arena *a, unsigned tag)
{
    return tag_is_of(&a->heap, tag, TAG_TX, a->tag);
}

/* A tag in state TAG_TX that bears no word. */
int tx_take_tag(struct arena *a, uint16_t *ret)
{
    int rc = heap_is_stale(a) ? -ESTALE : 0;
    conn_lock(a);
    if (rc == 0 && a->tx_ready_count == 0) {
        a->conn.out.count = 16;
        rc = conn_call(a, MSG_TX_TAGS, MSG_TAGS);
        for (uint32_t i = 0; rc == 0 && i < a->conn.in.list_count && a->tx_ready_count < TX_TAGS_MAX; i++)
            a->tx_ready[a->tx_ready_count++] = a->conn.in.list[i];
        if (rc == 0 && a->tx_ready_count == 0)
            rc = -EPROTO;
    }
    if (rc == 0) { /* the one that has rested longest: a claimer may still look at a word that bore it */
        *ret = (uint16_t)a->tx_ready[0];
        memmove(a->tx_ready, a->tx_ready + 1, --a->tx_ready_count * sizeof *a->tx_ready);
    }
    conn_unlock(a);
    return rc;
}

PUBLIC int arena_tx_begin(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    uint16_t tag = 0;
    if (!mc)
        return -errno;
    if (mc->tx)
        return -EALREADY;
    struct transaction *tx = calloc(1, sizeof *tx);
    if (!tx)
        return -ENOMEM;
    int rc = tx_take_tag(a, &tag);
    if (rc < 0) {
        free(tx);
        return rc;
    }
    tx->tag = tag;
    mc->tx = tx;
    mc->owned = WORD_OWNED(tag);
    mcache_expect(mc); /* every allocation goes to the log */
    return 0;
}

static void finish(struct mcache *mc)
{
    free(mc->tx->log);
    free(mc->tx);
    mc->tx = NULL;
    mc->owned = WORD_OWNED(mc->arena->tag);
    mcache_expect(mc);
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

/* The leases of the log's large objects go back, before the commit: after it others may free them. What the log names may
 * have been freed since, and its place be anything. */
static void let_go_of_large(struct arena *a, const struct transaction *tx)
{
    for (size_t i = 0; i < tx->count; i++) {
        uint64_t page = (uint64_t)((uint8_t *)tx->log[i].object - a->base) >> PAGE_SHIFT, entry = load_relaxed(&a->pages[page]);
        if (CLASS_IS_LARGE(page_entry_class(entry)) && load_relaxed(tx->log[i].word) == WORD_OWNED(tx->tag) &&
            tx->log[i].word == a->words + (uint64_t)page_entry_unit(entry) * UNIT_WORDS)
            large_let_go(a, page);
    }
}

/* Turns the log's words to SHARED. Others may free or claim them already, so by compare-and-swap. */
static void publish_log(const struct transaction *tx)
{
    for (size_t i = 0; i < tx->count; i++)
        word_swap(tx->log[i].word, WORD_OWNED(tx->tag), WORD_SHARED);
}

static void committed(struct mcache *mc)
{
    struct arena *a = mc->arena;
    struct transaction *tx = mc->tx;
    publish_log(tx);
    if (!tx->log_failed) {
        conn_lock(a);
        if (a->tx_resolved_count < TX_TAGS_MAX)
            a->tx_resolved[a->tx_resolved_count++] = tx->tag;
        conn_unlock(a);
    }
    finish(mc);
}

/* What became of a commit that was not answered: 0 it was not done and will not be, -EALREADY it was, -ENOTCONN nobody can
 * say yet. A connection anew ends the old one, and with it what was still to be read there. */
static int settle(struct arena *a, struct transaction *tx, bool waits)
{
    if (!tx->in_doubt)
        return 0;
    struct patience patience = conn_patience(a);
    if (!waits)
        patience.left_ms = 0;
    conn_lock(a);
    a->conn.out.mode = a->conn.out.value = 0; /* any reply will do */
    int rc = conn_call_within(a, MSG_MODE, MSG_OK, patience);
    conn_unlock(a);
    if (rc == -ENOTCONN)
        return rc;
    tx->in_doubt = false;
    return rc == 0 && tag_state(&a->heap, tx->tag) == TAG_TX_COMMITTED ? -EALREADY : 0;
}

PUBLIC int arena_tx_commit(arena_t *a, const char *root, arena_ref_t expected, arena_ref_t desired)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return -errno;
    struct transaction *tx = mc->tx;
    if (!tx || (root && root_name_check(root) < 0))
        return -EINVAL;
    int rc = settle(a, tx, true);
    if (rc == -EALREADY)
        committed(mc);
    if (rc < 0)
        return rc == -EALREADY ? 0 : rc;
    let_go_of_large(a, tx);
    conn_lock(a);
    struct msg *out = &a->conn.out;
    out->tag = tx->tag;
    strcpy(out->name, root ? root : "");
    out->expected = expected;
    out->desired = desired;
    uint32_t told = a->tx_resolved_count;
    memcpy(out->list, a->tx_resolved, told * sizeof *out->list);
    out->list_count = told;
    fence_release(); /* [TG1] what the objects hold is written before they are published */
    rc = conn_call(a, MSG_TX_COMMIT, MSG_OK);
    if (rc != -ENOTCONN && rc != -ESTALE) { /* it was read: those tags may run again */
        for (uint32_t i = 0; i < told && a->tx_ready_count < TX_TAGS_MAX; i++)
            a->tx_ready[a->tx_ready_count++] = a->tx_resolved[i];
        a->tx_resolved_count = 0;
    }
    conn_unlock(a);
    tx->in_doubt |= rc == -ENOTCONN;
    if (rc < 0)
        return rc == -EPERM ? -EINVAL : rc;
    committed(mc);
    return 0;
}

/* 0, or why not: see settle(). */
static int abort_tx(struct mcache *mc, bool waits)
{
    struct arena *a = mc->arena;
    struct transaction *tx = mc->tx;
    int rc = settle(a, tx, waits);
    if (rc == -EALREADY)
        committed(mc);
    if (rc < 0)
        return rc;
    uint16_t tag = tx->tag;
    struct arena_slot *log = tx->log;
    size_t count = tx->count;
    bool clean = !tx->log_failed;
    tx->log = NULL;
    finish(mc);
    for (size_t i = 0; i < count; i++)
        if (load_relaxed(log[i].word) == WORD_OWNED(tag))
            free_slow(a, log[i].object);
    free(log);
    conn_lock(a);
    if (clean && a->tx_ready_count < TX_TAGS_MAX)
        a->tx_ready[a->tx_ready_count++] = tag;
    conn_unlock(a);
    return 0;
}

PUBLIC int arena_tx_abort(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return -errno;
    if (!mc->tx)
        return -EINVAL;
    return abort_tx(mc, true);
}

void tx_thread_exit(struct mcache *mc)
{
    if (abort_tx(mc, false) == -ENOTCONN) /* the tag is not used again: this process's end tells */
        finish(mc);
}
