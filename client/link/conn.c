/* The connection to the daemon: requests and replies, one at a time under conn.lock, and what happens when it is lost.
 *
 * A daemon that died comes back with the same heap: the client connects again, says HELLO with its tag, lists its leases
 * and its transactions' tags (RESUME; the daemon takes back what is not listed) and repeats its request, unless the map says
 * that it was done. A daemon with another heap id is another heap: ESTALE from then on.
 *
 * What is given up after timeout_ms has no effect later, or the caller learns what effect it had. The daemon does nothing
 * that came by a connection which has hung up, or whose client has come back by another one. But it may stand still between
 * that look and the request, for an hour. So, of each request:
 *
 *                 may be repeated, because                                 given up, because
 *   LEASE, LARGE  what a lost GRANT had leased is not listed, so it was    the same
 *                 taken back; so was what the request gave back
 *   TX_TAGS       what lost TAGS had named is not listed, so it is free    the same
 *   EXTEND        to so many pages in all: the second time it has them     a ticket; the span's page_count tells
 *   TX_COMMIT     looked up: the transaction is committed. Only its own    a ticket; the transaction's state tells
 *                 thread lets its tag go on from there
 *   ROOT          looked up: the tag's done is the request's id. The root  a ticket; tag.done tells
 *                 itself does not tell: another client may have moved it
 *   SAFEPOINT,    says what is from now on, not what changes               a ticket; the tag's gc_mode or pins tell. A
 *   PINS                                                                   reader has none: it hangs up, then looks whether
 *                                                                          a collection runs
 *   INFO          changes nothing                                          the same
 *   BYE           done, it is answered ESTALE: the tag is not this         it is meant to be done later, too: a ticket
 *                 client's any more                                        says that to hang up is a goodbye. A reader has
 *                                                                          none: it is gone when its library attaches
 *                                                                          anew, or its process ends
 *
 * The ticket (shm/ticket.h) is taken back before the caller is told. Where the daemon was faster and does not come to an end
 * with it in GRACE_MS, the answer is -EINPROGRESS, and the next RESUME settles it: by then the daemon has done all that it
 * will ever do of it.
 *
 * What was refused, or changed nothing, is decided anew. RELEASE and a TRIMMED with id 0 have no reply and are not repeated;
 * TRIM and GC are a monitor's, by a connection of its own. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/returns.h"
#include "client/link/socket.h"
#include "proto/call.h"
#include "shm/ticket.h"

enum {
    DENIED_MAX = 16, /* times in a row, in half a second */
    GRACE_MS = 200,  /* beyond a call's patience, for the end of a request that the daemon has begun */
};

void conn_lock(struct arena *a)
{
    struct connection *c = &a->conn;
    uint32_t before = load_relaxed(&c->gave_up);
    cancel_off();
    pthread_mutex_lock(&c->lock);
    c->waited_out = load_relaxed(&c->gave_up) != before;
}

bool conn_trylock(struct arena *a)
{
    cancel_off();
    if (pthread_mutex_trylock(&a->conn.lock) == 0)
        return true;
    cancel_on();
    return false;
}

/* What others let go meanwhile is sent first. What they let go after that, while the lock was still taken, they leave to
 * this thread's second look. */
void conn_unlock(struct arena *a)
{
    bool sent;
    do {
        sent = returns_send(a);
        pthread_mutex_unlock(&a->conn.lock);
        fence_seq_cst(); /* [RQ1] unlocked, then the queue is looked at */
    } while (sent && returns_pending(&a->returns) && pthread_mutex_trylock(&a->conn.lock) == 0);
    cancel_on();
}

void conn_kick(struct arena *a)
{
    if (!returns_pending(&a->returns))
        return;
    fence_seq_cst(); /* [RQ1] it is queued, then the lock is looked at */
    if (conn_trylock(a))
        conn_unlock(a); /* sends it */
}

static int exchange(struct arena *a, struct msg *request, struct patience *patience)
{
    request->id = conn_next_id(&a->conn);
    int rc;
    while ((rc = conn_send(a, *request, 0)) == -EAGAIN) /* SO_SNDTIMEO: the daemon reads nothing */
        if (!conn_waits(patience))
            return -ETIMEDOUT;
    if (rc < 0)
        return rc == -EINVAL ? rc : -EPIPE;
    return conn_receive(a, request->id, msg_reply(request->type), patience);
}

/* What a TAGS has brought is known, and so kept when the connection is lost. */
static void note_granted(struct connection *c)
{
    const struct msg_tags *tags = &c->in.tags;
    for (uint32_t i = 0; i < tags->list_count; i++)
        if (c->granted_count < GRANTED_TAGS_MAX)
            c->granted[c->granted_count++] = (uint16_t)tags->list[i];
}

/* The tags of its transactions: what it does not list was in TAGS that were lost. */
static int list_tags(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    for (uint32_t i = 0; i < c->granted_count; i++)
        c->list[i] = c->granted[i];
    struct msg request = MSG(resume, .flags = RESUME_TAGS, .list = c->list, .list_count = c->granted_count);
    return exchange(a, &request, patience);
}

/* Its leases: one packet at least, which says that it was the last. */
static int list_leases(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    uint64_t cursor = 0;
    int rc;
    do {
        uint32_t count = returns_list(a, &cursor, c->list, MSG_LIST_MAX);
        struct msg request = MSG(resume, .flags = cursor >= a->heap.page_count ? RESUME_LAST : 0, .list = c->list,
                                 .list_count = count);
        rc = exchange(a, &request, patience);
    } while (rc == 0 && cursor < a->heap.page_count);
    return rc;
}

/* HELLO with the tag that this process has, its tags, its leases; a reader says again what it has declared. */
static int resume(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    struct msg request = call_hello(a->read_only ? HELLO_READ_ONLY : 0, process_image());
    request.hello.heap_id = a->heap.header->heap_id;
    request.hello.heap_id_bytes = sizeof a->heap.header->heap_id;
    request.hello.tag = a->tag;
    request.hello.copy = process_copy();
    int rc = exchange(a, &request, patience);
    if (rc < 0)
        return rc;
    c->epoch = c->in.welcome.epoch;
    rc = a->read_only ? 0 : list_tags(a, patience);
    if (rc == 0)
        rc = list_leases(a, patience);
    if (rc == 0 && a->read_only && load_relaxed(&a->gc_mode) != GC_RUNS) {
        request = MSG(safepoint, .gc_mode = load_relaxed(&a->gc_mode));
        rc = exchange(a, &request, patience);
    }
    return rc;
}

void conn_set_stale(struct arena *a)
{
    store_relaxed(&a->conn.stale, true);
    fence_seq_cst(); /* [EX1] then `mcache_count`, `expect` and `own` */
    hooks.stale(a);
}

/* Waits for a daemon, as long as there is patience, and resumes. 0, -ENOTCONN, -ESTALE. Who may not open its socket, as
 * after a setuid, has no use in waiting; but a daemon that starts may just be about to let it. */
static int reconnect(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    unsigned pause_ms = 1, denied = 0;
    for (;;) {
        conn_drop(c);
        int fd = conn_connect(a->socket), rc;
        denied = fd == -EACCES ? denied + 1 : 0;
        if (denied == DENIED_MAX) {
            char text[200];
            snprintf(text, sizeof text, "the connection was lost, and this user may not open %.108s any more", a->socket);
            reason_set(text);
            return -ENOTCONN;
        }
        if (fd >= 0) {
            c->fd = fd;
            c->id = fd_id(fd);
            rc = resume(a, patience);
            if (rc == 0)
                return 0;
            conn_drop(c);
            if (rc == -ESTALE) {
                conn_set_stale(a);
                return -ESTALE;
            }
            if (rc != -EPIPE && rc != -ETIMEDOUT && rc != -EMFILE && rc != -ENOMEM)
                return -ENOTCONN;
        }
        if (!conn_waits(patience))
            return -ENOTCONN;
        struct timespec pause = {.tv_nsec = (long)pause_ms * 1000000};
        nanosleep(&pause, NULL);
        pause_ms = pause_ms < 50 ? pause_ms * 2 : 50;
    }
}

/* The request is one that a ticket is for: its effect would be seen by others, or is this process's only by the daemon's
 * word. */
static bool has_ticket(const struct msg *m)
{
    return m->id && (m->type == MSG_ROOT || m->type == MSG_TX_COMMIT || m->type == MSG_EXTEND || m->type == MSG_SAFEPOINT ||
                     m->type == MSG_PINS);
}

/* Had a request been done, though no answer came? The map tells. By tag.done only where the state itself does not: another
 * client may have moved a root since. A daemon that dies between the effect and done leaves it undone there, and what is said
 * again has another id. */
static bool was_done(const struct arena *a, const struct msg *m)
{
    const struct tag *own = &a->heap.tags[a->tag];
    if (m->type == MSG_TX_COMMIT)
        return tag_state(&a->heap, m->tx_commit.tag) == TAG_TX_COMMITTED;
    if (!has_ticket(m))
        return false;
    if (m->type == MSG_EXTEND)
        return load_acquire(&a->heap.spans[m->extend.first].page_count) == m->extend.pages; /* [TK2] */
    if (m->type == MSG_PINS)
        return load_acquire(&own->pins) == m->pins.table; /* [TK2] */
    if (m->type == MSG_SAFEPOINT)
        return load_acquire(&own->gc_mode) == m->safepoint.gc_mode; /* [TK2] */
    return load_acquire(&own->done) == m->id; /* [TK2] */
}

/* The same where no RESUME has come between: a commit's root is moved behind its tag's state. */
static bool has_ended(const struct arena *a, const struct msg *m)
{
    return m->type == MSG_TX_COMMIT ? load_acquire(&a->heap.tags[a->tag].done) == m->id : was_done(a, m); /* [TK2] */
}

/* No patience is left: the request is taken back. -ENOTCONN: it is not done. 0: the daemon has done it. Else the
 * daemon is at it. die: as if it had not been given up. */
static int take_back(struct arena *a, const struct msg *m)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    if (!has_ticket(m))
        return -ENOTCONN;
    if (a->read_only) { /* it has hung up. A collection that looks from now on does not count it as at a safepoint */
        fence_seq_cst(); /* [GC1] */
        return collect_serial(&a->heap) ? -EINPROGRESS : -ENOTCONN;
    }
    if (ticket_cancel(&a->heap, a->tag, m->id))
        return -ENOTCONN;
    for (int64_t until = now_ms() + GRACE_MS; !has_ended(a, m); nanosleep(&pause, NULL))
        if (now_ms() >= until)
            return -EINPROGRESS;
    return 0;
}

/* What it may still answer, and what it has granted, is settled by the next RESUME. */
static int give_up(struct arena *a, const struct msg *m)
{
    struct connection *c = &a->conn;
    conn_drop(c);
    store_relaxed(&c->gave_up, c->gave_up + 1);
    return take_back(a, m);
}

/* What a lost GRANT had leased, and what its request gave back, is not listed by the RESUME, so it was taken back. */
static void forget_given_back(struct msg *m)
{
    if (m->type == MSG_LEASE)
        m->lease.list_count = 0;
    else if (m->type == MSG_LARGE)
        m->large.list_count = 0;
}

int conn_call(struct arena *a, struct msg request)
{
    struct patience patience = conn_patience(a);
    if (a->conn.waited_out) /* behind one that has waited for all of it in vain: a last look */
        patience.left_ms = 0;
    return conn_call_within(a, request, patience);
}

int conn_call_within(struct arena *a, struct msg request, struct patience patience)
{
    struct connection *c = &a->conn;
    if (heap_is_stale(a))
        return -ESTALE;
    for (bool again = false;; again = true) {
        int rc = -EPIPE;
        if (c->fd >= 0)
            rc = exchange(a, &request, &patience);
        if (rc == 0 && request.type == MSG_TX_TAGS)
            note_granted(c);
        if (rc != -EPIPE && rc != -ETIMEDOUT && rc != -EPROTO)
            return rc;
        if (rc == -EPROTO && again) { /* the daemon does not understand it, and will not */
            int taken = take_back(a, &request);
            return taken == -ENOTCONN ? rc : taken;
        }
        if (!a->heap.header) { /* it has no heap yet to come back to */
            conn_drop(c);
            return -ENOTCONN;
        }
        if (rc == -ETIMEDOUT)
            return give_up(a, &request);
        rc = reconnect(a, &patience);
        if (rc < 0)
            return rc == -ENOTCONN ? give_up(a, &request) : rc;
        forget_given_back(&request);
        if (was_done(a, &request))
            return 0;
    }
}

int conn_ask_ahead(struct arena *a, struct msg request)
{
    struct connection *c = &a->conn;
    if (c->ahead.id)
        return -EALREADY;
    if (c->fd < 0 || heap_is_stale(a))
        return -ENOTCONN;
    request.id = conn_next_id(c);
    int rc = conn_send(a, request, MSG_DONTWAIT);
    if (rc < 0) {
        if (rc != -EAGAIN)
            conn_drop(c);
        return rc;
    }
    c->ahead.id = request.id;
    c->ahead.span_class = request.lease.span_class;
    c->ahead.arrived = false;
    return 0;
}

bool conn_ahead_arrived(struct arena *a)
{
    struct connection *c = &a->conn;
    if (c->fd >= 0 && c->ahead.id && !c->ahead.arrived) {
        int rc = conn_is_there(c) ? conn_receive(a, c->ahead.id, MSG_GRANT, NULL) : -EPIPE;
        if (rc != -EAGAIN && !c->ahead.arrived)
            conn_drop(c);
    }
    return c->ahead.id && c->ahead.arrived;
}

int conn_ahead(struct arena *a, unsigned span_class)
{
    struct connection *c = &a->conn;
    if (!c->ahead.id || c->ahead.span_class != span_class)
        return -ENOENT;
    struct patience patience = conn_patience(a);
    int rc = c->ahead.arrived ? -c->ahead.error : -EPIPE;
    if (!c->ahead.arrived && conn_is_there(c))
        rc = conn_receive(a, c->ahead.id, MSG_GRANT, &patience);
    if (!c->ahead.arrived) { /* lost, or given up: then all patience is spent */
        conn_drop(c);
        c->waited_out |= rc == -ETIMEDOUT;
    }
    c->ahead.id = 0;
    return rc;
}
