/* The connection to the daemon: requests and replies, one at a time under conn.lock, and what happens when it is lost.
 *
 * A daemon that died comes back with the same heap: the client connects again, says HELLO with its tag, lists its leases
 * (RESUME; the daemon takes back what is not listed) and repeats its request, unless the map says that it was done. A
 * daemon with another heap id is another heap: ESTALE from then on. Why each may be repeated:
 *
 *   LEASE, LARGE  what a lost GRANT had leased is not listed, so it was taken back; so was what the request gave back
 *   EXTEND        to so many pages in all: the second time it has them
 *   TX_TAGS       what lost TAGS had named stays this client's, unused, until it ends
 *   TX_COMMIT     looked up: the transaction is committed. Only its own thread lets its tag go on from there
 *   ROOT          looked up: the tag's done is the request's id. The root itself does not tell: another client may
 *                 have moved it on since
 *   MODE          says what is from now on, not what changes
 *   INFO          changes nothing
 *   BYE           done, it is answered ESTALE: the tag is not this client's any more
 *
 * What was refused, or changed nothing, is decided anew. RELEASE and a MODE with id 0 have no reply and are not repeated;
 * TRIM and GC are a monitor's, by a connection of its own. */
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"
#include "proto/packet.h"

enum { DENIED_MAX = 16 }; /* times in a row, in half a second */

static void conn_look_up(int fd)
{
    struct timeval every = {.tv_sec = 0, .tv_usec = 100000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &every, sizeof every);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &every, sizeof every);
}

int conn_connect(const char *path, bool looks_up)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -errno;
    if (looks_up)
        conn_look_up(fd);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno == EINTR)
            continue;
        int rc = -errno;
        close(fd);
        return rc;
    }
    return fd;
}

void conn_init(struct connection *c, int fd)
{
    pthread_mutex_init(&c->lock, NULL);
    c->fd = fd;
    c->stale = false;
    c->next_id = 0;
    c->ahead.id = 0;
}

/* Not all of MSG_TEXT_MAX: a library's thread-local memory is scarce where it is loaded late. */
static __thread char reason[240];

void reason_set(const char *text) { snprintf(reason, sizeof reason, "%.239s", text); }

PUBLIC const char *arena_reason(void) { return reason; }

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

void conn_unlock(struct arena *a)
{
    pthread_mutex_unlock(&a->conn.lock);
    cancel_on();
}

int64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (int64_t)ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

struct patience conn_patience(const struct arena *a)
{
    return (struct patience){.left_ms = a->timeout_ms < 0 ? INT64_MAX : a->timeout_ms ? a->timeout_ms : 30000, .seen_ms = now_ms()};
}

bool conn_waits(struct patience *p)
{
    enum { LOOK_MS = 200 };
    int64_t now = now_ms(), spent = now - p->seen_ms;
    p->seen_ms = now;
    p->left_ms -= spent < LOOK_MS ? spent : LOOK_MS;
    return p->left_ms > 0;
}

static void drop(struct connection *c)
{
    if (c->fd >= 0)
        close(c->fd);
    c->fd = -1;
    c->ahead.id = 0;
}

/* Goes on over reconnections, so that done names one request. (It comes again after 2^32 requests: a ROOT that was lost
 * with its connection could be taken for one just so many requests before it, if no root was moved between the two.) */
static uint32_t next_id(struct connection *c) { return ++c->next_id ? c->next_id : ++c->next_id; }

/* The reply to what was asked ahead came while another was waited for. */
static void keep_ahead(struct connection *c)
{
    struct ahead *ahead = &c->ahead;
    bool grant = c->in.type == MSG_GRANT && c->in.list_count <= sizeof ahead->list / sizeof *ahead->list;
    ahead->arrived = true;
    ahead->error = grant ? 0 : c->in.type == MSG_ERROR ? (int)c->in.error : EPROTO;
    if (!grant)
        return;
    ahead->flags = c->in.flags;
    ahead->count = c->in.list_count;
    memcpy(ahead->list, c->in.list, ahead->count * sizeof *ahead->list);
}

static int send_out(struct arena *a, uint32_t type, uint32_t id)
{
    struct connection *c = &a->conn;
    c->out.type = type;
    c->out.id = id;
    c->out.epoch = c->epoch;
    int bytes = msg_encode(&c->out, c->packet, sizeof c->packet);
    return bytes < 0 ? bytes : packet_send(c->fd, c->packet, (size_t)bytes, NULL, 0, 0);
}

/* Receives until the reply to `id` is there; notices on the way are noted. 0, the error in it, or -EPIPE: lost. */
static int receive_in(struct arena *a, uint32_t id, uint32_t expect, struct patience *patience)
{
    struct connection *c = &a->conn;
    char why[MSG_TEXT_MAX + 1];
    for (;;) {
        ssize_t got = packet_receive(c->fd, c->packet, sizeof c->packet, NULL, 0, NULL, 0);
        if (got == -EAGAIN) { /* SO_RCVTIMEO: the daemon is there and says nothing */
            if (!conn_waits(patience))
                return -ETIMEDOUT;
            continue;
        }
        if (got <= 0)
            return -EPIPE;
        if (msg_decode(&c->in, c->packet, (size_t)got, why) < 0)
            return -EPROTO;
        if (c->in.type == MSG_NOTICE && c->in.id == 0) {
            if (c->in.what == NOTICE_TRIM)
                store_relaxed(&a->trim_notice, c->in.value);
            continue;
        }
        if (c->ahead.id && c->in.id == c->ahead.id) {
            keep_ahead(c);
            if (c->in.id == id)
                return -c->ahead.error;
            continue;
        }
        if (c->in.id != id && !(c->in.type == MSG_ERROR && c->in.id == 0)) /* 0: refused, whatever was asked */
            continue;
        if (c->in.type == MSG_ERROR) {
            reason_set(c->in.text);
            return -(int)c->in.error;
        }
        return c->in.type == expect ? 0 : -EPROTO;
    }
}

static int exchange(struct arena *a, uint32_t type, uint32_t expect, struct patience *patience)
{
    uint32_t id = next_id(&a->conn);
    int rc;
    while ((rc = send_out(a, type, id)) == -EAGAIN) /* SO_SNDTIMEO: the daemon reads nothing */
        if (!conn_waits(patience))
            return -ETIMEDOUT;
    if (rc < 0)
        return rc == -EINVAL ? rc : -EPIPE;
    return receive_in(a, id, expect, patience);
}

/* HELLO with the tag that this process has, and its leases. */
static int resume(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    uint64_t cursor = 0;
    c->out.version_min = c->out.version = PROTO_VERSION;
    c->out.layout = LAYOUT_VERSION;
    c->out.flags = a->read_only ? HELLO_READ_ONLY : 0;
    c->out.heap_id = a->heap.header->heap_id;
    c->out.heap_id_bytes = 16;
    c->out.tag = a->tag;
    int rc = exchange(a, MSG_HELLO, MSG_WELCOME, patience);
    if (rc < 0)
        return rc;
    c->epoch = c->in.epoch;
    do {
        c->out.list_count = lease_list(a, &cursor, c->out.list, 4000);
        c->out.flags = cursor >= a->heap.page_count ? RESUME_LAST : 0;
        rc = exchange(a, MSG_RESUME, MSG_OK, patience);
    } while (rc == 0 && cursor < a->heap.page_count);
    return rc;
}

/* Waits for a daemon, as long as there is patience, and resumes. 0, -ENOTCONN, -ESTALE. Who may not open its socket, as
 * after a setuid, has no use in waiting; but a daemon that starts may just be about to let it. */
static int reconnect(struct arena *a, struct patience *patience)
{
    struct connection *c = &a->conn;
    unsigned pause_ms = 1, denied = 0;
    for (;;) {
        drop(c);
        int fd = conn_connect(a->socket, true), rc;
        denied = fd == -EACCES ? denied + 1 : 0;
        if (denied == DENIED_MAX) {
            char text[200];
            snprintf(text, sizeof text, "the connection was lost, and this user may not open %.108s any more", a->socket);
            reason_set(text);
            return -ENOTCONN;
        }
        if (fd >= 0) {
            c->fd = fd;
            rc = resume(a, patience);
            if (rc == 0)
                return 0;
            drop(c);
            if (rc == -ESTALE) {
                heap_set_stale(a);
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

/* Had the request in conn.out been done by the daemon that died before it answered? The map tells. */
static bool was_done(const struct arena *a, uint32_t type)
{
    const struct msg *out = &a->conn.out;
    if (type == MSG_TX_COMMIT)
        return tag_state(&a->heap, out->tag) == TAG_TX_COMMITTED;
    return type == MSG_ROOT && out->id && load_relaxed(&a->heap.tags[a->tag].done) == out->id;
}

static int gave_up(struct connection *c)
{
    store_relaxed(&c->gave_up, c->gave_up + 1);
    return -ENOTCONN;
}

int conn_call(struct arena *a, uint32_t type, uint32_t expect)
{
    struct patience patience = conn_patience(a);
    if (a->conn.waited_out) /* behind one that has waited for all of it in vain: a last look */
        patience.left_ms = 0;
    return conn_call_within(a, type, expect, patience);
}

int conn_call_within(struct arena *a, uint32_t type, uint32_t expect, struct patience patience)
{
    struct connection *c = &a->conn;
    if (heap_is_stale(a))
        return -ESTALE;
    c->out.id = 0; /* not sent yet */
    for (bool again = false;; again = true) {
        int rc = -EPIPE;
        if (c->fd >= 0)
            rc = exchange(a, type, expect, &patience);
        if (rc != -EPIPE && rc != -ETIMEDOUT && rc != -EPROTO)
            return rc;
        if (rc == -ETIMEDOUT) { /* what it may still answer is settled by the next RESUME */
            drop(c);
            return gave_up(c);
        }
        if (rc == -EPROTO && again) /* the daemon does not understand it, and will not */
            return rc;
        if (!a->heap.header) { /* it has no heap yet to come back to */
            drop(c);
            return -ENOTCONN;
        }
        c->kept = c->out; /* resume() uses conn.out */
        rc = reconnect(a, &patience);
        c->out = c->kept;
        if (rc < 0)
            return rc == -ENOTCONN ? gave_up(c) : rc;
        if (type == MSG_LEASE || type == MSG_LARGE)
            c->out.list_count = 0; /* not listed, so taken back */
        if (was_done(a, type))
            return 0;
    }
}

void conn_ask_ahead(struct arena *a)
{
    struct connection *c = &a->conn;
    if (c->fd < 0 || heap_is_stale(a) || c->ahead.id)
        return;
    uint32_t id = next_id(c);
    int rc = send_out(a, MSG_LEASE, id);
    if (rc < 0) {
        if (rc != -EAGAIN)
            drop(c);
        return;
    }
    c->ahead.id = id;
    c->ahead.span_class = c->out.span_class;
    c->ahead.arrived = false;
}

int conn_ahead(struct arena *a, unsigned span_class)
{
    struct connection *c = &a->conn;
    if (!c->ahead.id || c->ahead.span_class != span_class)
        return -ENOENT;
    struct patience patience = conn_patience(a);
    int rc = c->ahead.arrived ? -c->ahead.error : receive_in(a, c->ahead.id, MSG_GRANT, &patience);
    if (!c->ahead.arrived) /* lost, or given up */
        drop(c);
    c->ahead.id = 0;
    return rc;
}

int conn_tell(struct arena *a, uint32_t type)
{
    if (a->conn.fd < 0)
        return -ENOTCONN;
    int rc = send_out(a, type, 0);
    if (rc < 0) /* also where the daemon reads nothing for long: what was to be told, the next RESUME tells */
        drop(&a->conn);
    return rc;
}
