/* Transactions: a thread's. While one is open, what the thread allocates is OWNED(x), x being the transaction's tag, and is
 * noted in a private log. Commit is one update of the map by the daemon, together with the root's; from then on OWNED(x)
 * counts as SHARED, and the log's words are turned to SHARED by compare-and-swap. If this process dies before, the daemon's
 * pass frees them all; after, it turns them. Abort frees what the log names.
 *
 * The log is a note about objects, and an object may be gone: freed, moved, published by itself, its span cut anew. So:
 *  1. An entry {object, word} is acted on only if the page entry of the object still leads to that word, and the word is
 *     OWNED(x). Then the object is one of this transaction: only its own allocations make a word OWNED(x), and while it is
 *     OWNED(x) its span stays as it is.
 *  2. Each object that is OWNED(x) has an entry: room is made before the object is taken, or there is no object. While a
 *     commit is in doubt none becomes OWNED(x): it might be published at once, unpinned, and a collection's.
 *  3. When the log is full and much was freed, what is dead or named twice is dropped. So its size is in proportion to
 *     what lives.
 *  4. Only a commit and an abort act on it. What a collection keeps for later (gc.c) is OWNED by another tag: see 1.
 *
 * The words are not turned while a collection takes its snapshot, but after it: they are its roots, whatever it has read
 * before and after the commit. `turning` in the state region says that somebody is at it, so that a collection waits for
 * him [TN1].
 *
 * A tag may be used again when no word bears it: the client says so with its next commit. A process that claims or frees
 * such a word may have read it before, so the tag rests until no hazard names it (shm/hazard.h). A transaction costs one
 * round trip. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/alloc/large.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/reason.h"
#include "client/link/socket.h"
#include "client/own/free.h"
#include "client/own/object.h"
#include "client/own/tx.h"
#include "shm/hazard.h"
#include "shm/root.h"

enum { TURN_WORDS = 1024 /* turned between two looks at the collector */ };

/* ---- tags --------------------------------------------------------------------------------------------------------------------------- */

/* Of the tags that may run, those that no hazard names come first: tx_clean of them. They were committed before the scan,
 * and are not now; who sets a hazard after it finds that, and leaves their words alone. */
static void find_clean(struct arena *a)
{
    uint64_t named[TAG_COUNT / 64 + 1] = {0};
    if (a->tx_ready_count == 0)
        return;
    fence_seq_cst(); /* [HZ1] after their state was changed */
    for (uint32_t i = 0; i < HAZARD_COUNT; i++) {
        uint32_t tag = load_acquire(&a->heap.hazards[i]) & 0xffff; /* [HZ1] */
        if (tag < TAG_COUNT)
            named[tag / 64] |= 1ULL << tag % 64;
    }
    for (uint32_t i = a->tx_clean; i < a->tx_ready_count; i++) {
        uint32_t tag = a->tx_ready[i];
        if (tag < TAG_COUNT && !(named[tag / 64] >> tag % 64 & 1)) {
            a->tx_ready[i] = a->tx_ready[a->tx_clean];
            a->tx_ready[a->tx_clean++] = tag;
        }
    }
}

/* A tag that was not committed since it was found clean is clean. Called with conn.lock held. */
static void put_clean(struct arena *a, unsigned tag)
{
    if (a->tx_ready_count == TX_TAGS_MAX)
        return; /* the process has no more of them */
    a->tx_ready[a->tx_ready_count++] = a->tx_ready[a->tx_clean];
    a->tx_ready[a->tx_clean++] = tag;
}

static int ask_for_tags(struct arena *a)
{
    enum { TAGS_ASKED = 16 };
    int rc = conn_call(a, MSG(tx_tags, .count = TAGS_ASKED));
    const struct msg_tags *tags = &a->conn.in.tags;
    for (uint32_t i = 0; rc == 0 && i < tags->list_count && a->tx_ready_count < TX_TAGS_MAX; i++)
        put_clean(a, tags->list[i]); /* the daemon has looked */
    return rc == 0 && a->tx_clean == 0 ? -EPROTO : rc;
}

/* The daemon has read them: they may run again, once clean. */
static void resolved_told(struct arena *a, uint32_t told)
{
    for (uint32_t i = 0; i < told && a->tx_ready_count < TX_TAGS_MAX; i++)
        a->tx_ready[a->tx_ready_count++] = a->tx_resolved[i];
    memmove(a->tx_resolved, a->tx_resolved + told, (a->tx_resolved_count - told) * sizeof *a->tx_resolved);
    a->tx_resolved_count -= told;
}

/* All tags are in use or resolved, so that no commit can tell these: a commit of what is no transaction does, and is refused
 * behind its list. */
static int tell_resolved(struct arena *a)
{
    uint32_t told = a->tx_resolved_count;
    int rc = told ? conn_call(a, MSG(tx_commit, .tag = a->tag, .list = a->tx_resolved, .list_count = told)) : -EDQUOT;
    if (rc != -EPERM)
        return rc < 0 ? rc : -EPROTO;
    resolved_told(a, told);
    find_clean(a);
    return a->tx_clean ? 0 : -EDQUOT;
}

static int take_tag(struct arena *a, uint16_t *ret)
{
    int rc = heap_is_stale(a) ? -ESTALE : 0;
    conn_lock(a);
    if (rc == 0 && a->tx_clean == 0)
        find_clean(a);
    if (rc == 0 && a->tx_clean == 0)
        rc = ask_for_tags(a);
    if (rc == -EDQUOT)
        rc = tell_resolved(a);
    if (rc == 0) {
        *ret = (uint16_t)a->tx_ready[--a->tx_clean];
        a->tx_ready[a->tx_clean] = a->tx_ready[--a->tx_ready_count];
    }
    conn_unlock(a);
    return rc;
}

/* A tag in state TAG_TX that bears no word. Where all are in use by commits that wait for the end of a snapshot, that is
 * waited for: it is soon over. */
int tx_take_tag(struct arena *a, uint16_t *ret)
{
    int rc = take_tag(a, ret);
    if (likely(rc != -EDQUOT))
        return rc;
    struct patience patience = conn_patience(a);
    cancel_off();
    for (bool waits = true; rc == -EDQUOT && waits && conn_waits(&patience);) {
        const struct timespec pause = {.tv_nsec = 1000000};
        nanosleep(&pause, NULL);
        waits = tx_turn_late(a);
        rc = take_tag(a, ret);
    }
    cancel_on();
    return rc;
}

/* ---- begin and end ------------------------------------------------------------------------------------------------------------------ */

PUBLIC int arena_tx_begin(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    uint16_t tag = 0;
    if (!mc)
        return -errno;
    if (heap_is_stale(a))
        return -ESTALE;
    if (mc->tx)
        return refused(-EALREADY, "a transaction is open on this thread");
    late_look(a);
    struct transaction *tx = calloc(1, sizeof *tx);
    if (!tx)
        return refused(-ENOMEM, "no private memory for a transaction");
    int rc = tx_take_tag(a, &tag);
    if (rc < 0) {
        free(tx);
        return rc;
    }
    tx->tag = tag;
    tx->freed_by_others = load_relaxed(&a->tx_freed_by_others);
    tx_link(a, &a->tx_open, tx);
    mc->tx = tx;
    mc->owned = WORD_OWNED(tag);
    mcache_expect(mc); /* every allocation goes to the log */
    return 0;
}

/* The thread's is over: it is nobody's any more but the caller's. */
static struct transaction *leave(struct mcache *mc)
{
    struct transaction *tx = mc->tx;
    tx_unlink(mc->arena, tx);
    tx_suspend(mc);
    return tx;
}

/* The leases of the log's large objects go back, before the commit: after it others may free them. */
static int let_go_of_large(struct arena *a, const struct transaction *tx, const struct log *log)
{
    int rc = 0;
    for (size_t i = 0; i < log->count && rc == 0; i++) {
        uint64_t page = (uint64_t)((uint8_t *)log->slots[i].object - a->base) >> PAGE_SHIFT;
        if (CLASS_IS_LARGE(page_entry_class(load_relaxed(&a->pages[page]))) && tx_is_live(a, tx->tag, &log->slots[i]))
            rc = large_let_go(a, page);
    }
    return rc;
}

/* Frees what a log names; the thread is in no transaction any more. */
static void free_log(struct arena *a, struct mcache *mc, unsigned tag, const struct log *log)
{
    for (size_t i = 0; i < log->count; i++)
        if (tx_is_live(a, tag, &log->slots[i]))
            free_of_tx(a, mc, tag, log->slots[i].object, log->slots[i].word);
}

/* An aborted one's objects, tag and memory. */
static void discard(struct arena *a, struct mcache *mc, struct transaction *tx)
{
    free_log(a, mc, tx->tag, &tx->log);
    free_log(a, mc, tx->tag, &tx->moved);
    conn_lock(a);
    put_clean(a, tx->tag);
    conn_unlock(a);
    tx_free(tx);
}

/* ---- turning ------------------------------------------------------------------------------------------------------------------------ */

/* Turns a log's words to SHARED, its newest first; others may free or claim them already, so by compare-and-swap. False:
 * a snapshot is being taken, and what is left in the log waits for its end.
 * die: some are SHARED, the rest is found by the pass (TAG_TX_PUBLISHING); `turning` is reset with the tag. */
static bool turn(const struct arena *a, unsigned tag, struct log *log)
{
    while (log->count) {
        turning_begin(&a->heap, a->tag);
        bool may = !snapshot_is_taken(&a->heap);
        for (unsigned n = 0; may && log->count && n < TURN_WORDS; n++)
            word_publish_swap(log->slots[--log->count].word, WORD_OWNED(tag)); /* T9 */
        turning_end(&a->heap, a->tag);
        if (!may)
            return false;
    }
    return true;
}

/* True: no word bears its tag any more, and it is gone. What is done later is done by any slow path, also by a free: that
 * waits for nobody who waits for the daemon. */
static bool turn_all(struct arena *a, struct transaction *tx, bool later)
{
    if (!turn(a, tx->tag, &tx->log) || !turn(a, tx->tag, &tx->moved))
        return false;
    if (later && !conn_trylock(a))
        return false;
    if (!later)
        conn_lock(a);
    if (a->tx_resolved_count < TX_TAGS_MAX)
        a->tx_resolved[a->tx_resolved_count++] = tx->tag;
    conn_unlock(a);
    tx_free(tx);
    return true;
}

static void turn_later(struct arena *a, struct transaction *tx)
{
    tx_link(a, &a->tx_late, tx);
    store_relaxed(&a->late, true);
}

/* One whose thread has ended while its commit was in doubt: true when that is settled. */
static bool settle_orphan(struct arena *a, struct transaction *tx)
{
    if (load_relaxed(&a->conn.fd) < 0 || !conn_trylock(a)) /* who needs the daemon makes a connection anew */
        return false;
    conn_unlock(a);
    int rc = tx_settle(a, tx, false);
    if (rc == -EALREADY)
        return turn_all(a, tx, true);
    if (rc < 0)
        return false;
    discard(a, mcache_of(a), tx);
    return true;
}

bool tx_turn_late(struct arena *a)
{
    bool waits = false, taken = snapshot_is_taken(&a->heap);
    pthread_mutex_lock(&a->tx_lock);
    struct transaction *tx = a->tx_late, *next;
    for (next = tx; next; next = next->next)
        waits |= !next->in_doubt;
    if (!taken)
        a->tx_late = NULL;
    pthread_mutex_unlock(&a->tx_lock);
    if (taken)
        return waits;
    for (waits = false; tx; tx = next) {
        next = tx->next;
        if (!(tx->in_doubt ? settle_orphan(a, tx) : turn_all(a, tx, true))) {
            waits |= !tx->in_doubt;
            turn_later(a, tx);
        }
    }
    return waits;
}

static void committed(struct mcache *mc)
{
    struct transaction *tx = leave(mc);
    if (!turn_all(mc->arena, tx, false))
        turn_later(mc->arena, tx);
}

/* ---- commit and abort --------------------------------------------------------------------------------------------------------------- */

static bool is_the_one_in_doubt(const struct transaction *tx, const char *root, arena_ref_t expected, arena_ref_t desired)
{
    if (strcmp(tx->root, root ? root : "") != 0)
        return false;
    return !root || !*root || (tx->expected == expected && tx->desired == desired);
}

/* Sends it: 0, or as of conn_call(). */
static int send_commit(struct arena *a, const struct transaction *tx)
{
    conn_lock(a);
    uint32_t told = a->tx_resolved_count;
    fence_release(); /* [TG1] what the objects hold is written before they are published */
    int rc = conn_call(a, MSG(tx_commit, .tag = tx->tag, .name = tx->root, .expected = tx->expected, .desired = tx->desired,
                              .list = a->tx_resolved, .list_count = told));
    if (rc != -ENOTCONN && rc != -EINPROGRESS && rc != -ESTALE) /* it was read */
        resolved_told(a, told);
    conn_unlock(a);
    return rc;
}

PUBLIC int arena_tx_commit(arena_t *a, const char *root, arena_ref_t expected, arena_ref_t desired)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return -errno;
    struct transaction *tx = mc->tx;
    if (heap_is_stale(a))
        return -ESTALE;
    if (!tx)
        return refused(-EINVAL, "no transaction is open on this thread");
    if (root && root_name_check(root) < 0)
        return refused(-EINVAL, "a root's name has 1 to %d bytes, none of them a control character", ROOT_NAME - 1);
    late_look(a);
    int rc = tx_settle(a, tx, true);
    if (rc == -EALREADY) {
        bool same = is_the_one_in_doubt(tx, root, expected, desired);
        committed(mc);
        return same ? 0 : refused(-EALREADY, "the commit before, which was in doubt, was done: this one was not");
    }
    if (rc < 0)
        return rc;
    tx_set_closed(a, tx, true);
    rc = let_go_of_large(a, tx, &tx->log);
    if (rc == 0)
        rc = let_go_of_large(a, tx, &tx->moved);
    if (rc < 0) {
        tx_set_closed(a, tx, false);
        return rc;
    }
    strcpy(tx->root, root ? root : "");
    tx->expected = expected;
    tx->desired = desired;
    rc = send_commit(a, tx);
    tx->in_doubt |= rc == -EINPROGRESS;
    if (rc == 0) {
        committed(mc);
        return 0;
    }
    tx_set_closed(a, tx, tx->in_doubt); /* what may be published already takes in no copy */
    if (rc == -EINVAL && root)
        refused_root(a, root, desired, tx->tag);
    return rc == -EPERM ? -EINVAL : rc;
}

/* 0, or why not: see tx_settle(). */
static int abort_tx(struct mcache *mc, bool waits)
{
    struct arena *a = mc->arena;
    int rc = tx_settle(a, mc->tx, waits);
    if (rc == -EALREADY)
        committed(mc);
    if (rc < 0)
        return rc;
    discard(a, mc, leave(mc));
    return 0;
}

PUBLIC int arena_tx_abort(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return -errno;
    if (!mc->tx)
        return heap_is_stale(a) ? -ESTALE : refused(-EINVAL, "no transaction is open on this thread");
    late_look(a);
    int rc = abort_tx(mc, true);
    return heap_is_stale(a) ? -ESTALE : rc; /* it is over all the same: nobody has what it had */
}

void tx_thread_exit(struct mcache *mc)
{
    if (abort_tx(mc, false) == -ENOTCONN) /* another thread finds out, or this process's end tells */
        turn_later(mc->arena, leave(mc));
}
