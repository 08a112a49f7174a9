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

#include "client/client.h"
#include "shm/hazard.h"
#include "shm/root.h"

enum { LOG_FIRST = 256, TURN_WORDS = 1024 /* turned between two looks at the collector */ };

struct log {
    struct arena_slot *slots;
    size_t count, capacity;
};

struct transaction {
    uint16_t tag;
    bool in_doubt;           /* a commit was not answered: it may have been done. In tx_late: its thread has ended */
    bool closed;             /* to objects that other threads move: while a commit is under way or in doubt. sync: tx_lock */
    struct log log;          /* in the order of allocation, until it is compacted. sync: its thread */
    struct log moved;        /* objects of it that other threads have moved. sync: tx_lock */
    uint64_t freed;          /* of its objects since the log was compacted, by its thread; */
    uint64_t freed_by_others; /* what a->tx_freed_by_others was then */
    uint64_t expected, desired; /* of the commit in doubt */
    char root[ROOT_NAME];
    struct transaction *next; /* of tx_open or tx_late. sync: tx_lock */
};

static int reopen(struct arena *a, struct transaction *tx);

/* ---- the log ---------------------------------------------------------------------------------------------------------------------- */

/* 1. above */
static bool is_live(const struct arena *a, unsigned tag, const struct arena_slot *s)
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
        if (is_live(a, tag, &log->slots[i]))
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

/* ---- which are open ---------------------------------------------------------------------------------------------------------------- */

void tx_init(struct arena *a)
{
    pthread_mutex_init(&a->tx_lock, NULL);
    a->tx_open = a->tx_late = NULL; /* a forked child's parent's */
    a->tx_clean = 0;
    a->limbo = 0;
}

static void tx_link(struct arena *a, struct transaction **list, struct transaction *tx)
{
    pthread_mutex_lock(&a->tx_lock);
    tx->next = *list;
    *list = tx;
    pthread_mutex_unlock(&a->tx_lock);
}

static void tx_unlink(struct arena *a, struct transaction *tx)
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

static void set_closed(struct arena *a, struct transaction *tx, bool closed)
{
    pthread_mutex_lock(&a->tx_lock);
    tx->closed = closed;
    pthread_mutex_unlock(&a->tx_lock);
}

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
    a->conn.out.count = 16;
    int rc = conn_call(a, MSG_TX_TAGS, MSG_TAGS);
    for (uint32_t i = 0; rc == 0 && i < a->conn.in.list_count && a->tx_ready_count < TX_TAGS_MAX; i++)
        put_clean(a, a->conn.in.list[i]); /* the daemon has looked */
    return rc == 0 && a->tx_clean == 0 ? -EPROTO : rc;
}

/* Puts the tags that bear no word into a request's list: how many. */
static uint32_t list_resolved(struct arena *a)
{
    struct msg *out = &a->conn.out;
    memcpy(out->list, a->tx_resolved, a->tx_resolved_count * sizeof *out->list);
    out->list_count = a->tx_resolved_count;
    return out->list_count;
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
    struct msg *out = &a->conn.out;
    out->tag = a->tag;
    out->name[0] = 0;
    out->expected = out->desired = 0;
    uint32_t told = list_resolved(a);
    int rc = told ? conn_call(a, MSG_TX_COMMIT, MSG_OK) : -EDQUOT;
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

/* The thread's is over: it is nobody's any more but the caller's. */
static struct transaction *leave(struct mcache *mc)
{
    struct transaction *tx = mc->tx;
    tx_unlink(mc->arena, tx);
    tx_suspend(mc);
    return tx;
}

static void tx_free(struct transaction *tx)
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

/* The leases of the log's large objects go back, before the commit: after it others may free them. */
static int let_go_of_large(struct arena *a, const struct transaction *tx, const struct log *log)
{
    int rc = 0;
    for (size_t i = 0; i < log->count && rc == 0; i++) {
        uint64_t page = (uint64_t)((uint8_t *)log->slots[i].object - a->base) >> PAGE_SHIFT;
        if (CLASS_IS_LARGE(page_entry_class(load_relaxed(&a->pages[page]))) && is_live(a, tx->tag, &log->slots[i]))
            rc = large_let_go(a, page);
    }
    return rc;
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
    if (rc == -ENOTCONN || rc == -EINPROGRESS)
        return -ENOTCONN;
    tx->in_doubt = false;
    return rc == 0 && tag_state(&a->heap, tx->tag) == TAG_TX_COMMITTED ? -EALREADY : 0;
}

/* Something new is to be of a transaction whose commit was in doubt: 0 if that was not done. If it was, whatever bears the tag is
 * published from its first moment on, so there is nothing new; the commit or the abort that follows tells the caller. */
static int reopen(struct arena *a, struct transaction *tx)
{
    int rc = settle(a, tx, true);
    if (rc == 0)
        set_closed(a, tx, false);
    if (rc != -EALREADY)
        return rc;
    tx->in_doubt = true;
    return refused(rc, "the commit that was in doubt was done: nothing more can be of its transaction");
}

/* Frees what a log names; the thread is in no transaction any more. */
static void free_log(struct arena *a, struct mcache *mc, unsigned tag, const struct log *log)
{
    for (size_t i = 0; i < log->count; i++)
        if (is_live(a, tag, &log->slots[i]))
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
    uint32_t *turning = &a->heap.turning[a->tag];
    while (log->count) {
        fetch_add_relaxed(turning, 1);
        fence_seq_cst(); /* [TN1] it is seen, or the flag is */
        bool may = !snapshot_is_taken(a);
        for (unsigned n = 0; may && log->count && n < TURN_WORDS; n++)
            word_publish_swap(log->slots[--log->count].word, WORD_OWNED(tag)); /* T9 */
        fetch_add_release(turning, (uint32_t)-1); /* [TN1] the words before it */
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
    int rc = settle(a, tx, false);
    if (rc == -EALREADY)
        return turn_all(a, tx, true);
    if (rc < 0)
        return false;
    discard(a, mcache_of(a), tx);
    return true;
}

bool tx_turn_late(struct arena *a)
{
    bool waits = false, taken = snapshot_is_taken(a);
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
    struct msg *out = &a->conn.out;
    out->tag = tx->tag;
    strcpy(out->name, tx->root);
    out->expected = tx->expected;
    out->desired = tx->desired;
    uint32_t told = list_resolved(a);
    fence_release(); /* [TG1] what the objects hold is written before they are published */
    int rc = conn_call(a, MSG_TX_COMMIT, MSG_OK);
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
    int rc = settle(a, tx, true);
    if (rc == -EALREADY) {
        bool same = is_the_one_in_doubt(tx, root, expected, desired);
        committed(mc);
        return same ? 0 : refused(-EALREADY, "the commit before, which was in doubt, was done: this one was not");
    }
    if (rc < 0)
        return rc;
    set_closed(a, tx, true);
    rc = let_go_of_large(a, tx, &tx->log);
    if (rc == 0)
        rc = let_go_of_large(a, tx, &tx->moved);
    if (rc < 0) {
        set_closed(a, tx, false);
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
    set_closed(a, tx, tx->in_doubt); /* what may be published already takes in no copy */
    if (rc == -EINVAL && root)
        refused_root(a, root, desired, tx->tag);
    return rc == -EPERM ? -EINVAL : rc;
}

/* 0, or why not: see settle(). */
static int abort_tx(struct mcache *mc, bool waits)
{
    struct arena *a = mc->arena;
    int rc = settle(a, mc->tx, waits);
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
