/* The socket to the daemon: descriptors, patience, one packet out, one packet in.
 *
 * The descriptor is a high one, and is looked at before each use: a program may have closed it, and have a file of its own
 * there. Then the connection is lost, and the descriptor is the program's. */
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/link/conn.h"
#include "client/link/reason.h"
#include "client/link/socket.h"
#include "proto/packet.h"

/* ---- descriptors ------------------------------------------------------------------------------------------------------ */

struct fd_id fd_id(int fd)
{
    struct stat st;
    return fd >= 0 && fstat(fd, &st) == 0 ? (struct fd_id){st.st_dev, st.st_ino} : (struct fd_id){0, 0};
}

bool fd_is(int fd, struct fd_id id)
{
    struct stat st;
    return fd >= 0 && id.inode && fstat(fd, &st) == 0 && st.st_ino == id.inode && st.st_dev == id.device;
}

void fd_close(int fd, struct fd_id id)
{
    if (fd_is(fd, id))
        close(fd);
}

/* Moves a new descriptor out of the way: programs close, count and number theirs from below, and 0, 1 and 2 are for what they
 * print. Its number, or -EMFILE. */
static int fd_raise(int fd)
{
    static const int from[] = {900, 400, 100, 3}; /* the soft limit is 1024 where nobody has changed it */
    struct fd_id id = fd_id(fd);
    for (size_t i = 0; i < sizeof from / sizeof from[0]; i++) {
        int high = fcntl(fd, F_DUPFD_CLOEXEC, from[i]);
        if (high >= 0) {
            fd_close(fd, id);
            return high;
        }
    }
    if (fd > 2)
        return fd;
    fd_close(fd, id);
    return -EMFILE;
}

/* ---- the socket ------------------------------------------------------------------------------------------------------- */

static void conn_look_up(int fd)
{
    struct timeval every = {.tv_sec = 0, .tv_usec = 100000};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &every, sizeof every);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &every, sizeof every);
}

int conn_connect(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    strcpy(address.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    fd = fd < 0 ? -errno : fd_raise(fd);
    if (fd < 0)
        return fd;
    struct fd_id id = fd_id(fd);
    conn_look_up(fd);
    while (connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno == EINTR)
            continue;
        int rc = -errno;
        fd_close(fd, id);
        return rc;
    }
    return fd;
}

void conn_init(struct connection *c, int fd)
{
    pthread_mutex_init(&c->lock, NULL);
    c->fd = fd;
    c->id = fd_id(fd);
    c->stale = false;
    c->next_id = 0;
    c->granted_count = 0;
    c->ahead.id = 0;
}

bool conn_is_there(struct connection *c)
{
    if (c->fd >= 0 && !fd_is(c->fd, c->id))
        c->fd = -1;
    return c->fd >= 0;
}

void conn_forget(struct connection *c)
{
    fd_close(c->fd, c->id);
    c->fd = -1;
    c->ahead.id = 0;
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

/* Hangs up, also where a forked child still has the descriptor. */
void conn_drop(struct connection *c)
{
    if (conn_is_there(c))
        shutdown(c->fd, SHUT_RDWR);
    conn_forget(c);
}

/* Goes on over reconnections, so that done names one request. (It comes again after 2^32 requests: a ROOT that was lost
 * with its connection could be taken for one just so many requests before it, if no root was moved between the two.) */
uint32_t conn_next_id(struct connection *c) { return ++c->next_id ? c->next_id : ++c->next_id; }

/* The reply to what was asked ahead came while another was waited for. */
static void keep_ahead(struct connection *c)
{
    struct ahead *ahead = &c->ahead;
    const struct msg_grant *grant = &c->in.grant;
    bool granted = c->in.type == MSG_GRANT && grant->list_count <= GRANT_SPANS_MAX;
    ahead->arrived = true;
    ahead->error = granted ? 0 : c->in.type == MSG_ERROR ? (int)c->in.error.error : EPROTO;
    if (!granted)
        return;
    ahead->flags = grant->flags;
    ahead->count = grant->list_count;
    memcpy(ahead->list, grant->list, ahead->count * sizeof *ahead->list);
}

/* A request may be sent again to a daemon that was started meanwhile. */
static void set_epoch(struct msg *m, uint32_t epoch)
{
    switch (m->type) {
    case MSG_LEASE: m->lease.epoch = epoch; break;
    case MSG_LARGE: m->large.epoch = epoch; break;
    case MSG_RELEASE: m->release.epoch = epoch; break;
    case MSG_EXTEND: m->extend.epoch = epoch; break;
    default: break;
    }
}

int conn_send(struct arena *a, struct msg m, int flags)
{
    struct connection *c = &a->conn;
    set_epoch(&m, c->epoch);
    int bytes = msg_encode(&m, c->packet, sizeof c->packet);
    if (bytes < 0)
        return bytes;
    return conn_is_there(c) ? packet_send(c->fd, c->packet, (size_t)bytes, NULL, 0, flags) : -EPIPE;
}

/* Receives until the reply to `id` is there, by a connection that was there a moment ago. 0, the error in it, or -EPIPE: lost.
 * patience NULL: waits for nothing, and returns -EAGAIN. */
int conn_receive(struct arena *a, uint32_t id, uint32_t expect, struct patience *patience)
{
    struct connection *c = &a->conn;
    char why[MSG_TEXT_MAX + 1];
    for (;;) {
        ssize_t got = packet_receive(c->fd, c->packet, sizeof c->packet, NULL, 0, NULL, patience ? 0 : MSG_DONTWAIT);
        if (got == -EAGAIN) { /* SO_RCVTIMEO: the daemon is there and says nothing */
            if (!patience)
                return -EAGAIN;
            if (!conn_waits(patience))
                return -ETIMEDOUT;
            if (!conn_is_there(c))
                return -EPIPE;
            continue;
        }
        if (got <= 0)
            return -EPIPE;
        if (msg_decode(&c->in, &c->space, c->packet, (size_t)got, why) < 0)
            return -EPROTO;
        if (c->in.type == MSG_NOTICE && c->in.id == 0)
            continue; /* to trim: header->shortages tells it too, also to who never reads */
        if (c->ahead.id && c->in.id == c->ahead.id) {
            keep_ahead(c);
            if (c->in.id == id)
                return -c->ahead.error;
            continue;
        }
        if (c->in.id != id && !(c->in.type == MSG_ERROR && c->in.id == 0)) /* 0: refused, whatever was asked */
            continue;
        if (c->in.type == MSG_ERROR) {
            reason_set(c->in.error.text);
            return -(int)c->in.error.error;
        }
        return c->in.type == expect ? 0 : -EPROTO;
    }
}

int conn_tell(struct arena *a, struct msg m)
{
    if (a->conn.fd < 0)
        return -ENOTCONN;
    int rc = conn_send(a, m, MSG_DONTWAIT);
    if (rc < 0 && rc != -EAGAIN)
        conn_drop(&a->conn);
    return rc;
}
