#include "daemon/shell/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/shell/collector.h"
#include "daemon/shell/hello.h"
#include "daemon/shell/info.h"
#include "daemon/shell/waiting.h"
#include "daemon/os/kept.h"
#include "daemon/os/log.h"
#include "daemon/os/refuse.h"
#include "shm/ticket.h"

/* Watches a client's process. It outlives the connection: a socket may close while its process lives, and a forked child
 * may hold it open when the process is dead. */
struct watch {
    uv_poll_t poll;
    struct server *server;
    struct client *client;
    int fd;
};

static void on_events(uv_poll_t *poll, int status, int events);

/* ---- death ------------------------------------------------------------------------------------------------------------------- */

static void watch_closed(uv_handle_t *handle)
{
    struct watch *watch = handle->data;
    close(watch->fd);
    free(watch);
}

static void on_death(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;
    struct server *s = watch->server;
    struct client *client = watch->client;
    (void)status, (void)events;
    uv_poll_stop(poll);
    uv_close((uv_handle_t *)poll, watch_closed);
    if (!client)
        return;
    s->core.now_ns = uv_hrtime();
    log_event(LOG_LEVEL_INFO, "death", "tag=%u pid=%u uid=%u leased_pages=%llu", client->tag, client->pid, client->uid,
              (unsigned long long)client->leased_pages);
    struct connection *c = client->connection;
    client->pidfd = -1;
    client->watch = NULL;
    client_die(&s->core, client);
    if (c) {
        c->client = NULL;
        client->connection = NULL;
        connection_close(c, NULL);
    }
    server_pump(s);
}

int connection_watch(struct connection *c, struct client *client)
{
    struct watch *watch = calloc(1, sizeof *watch);
    if (!watch)
        return -ENOMEM;
    *watch = (struct watch){.server = c->server, .client = client, .fd = c->pidfd};
    watch->poll.data = watch;
    int rc = uv_poll_init(&c->server->loop, &watch->poll, watch->fd);
    if (rc < 0) {
        free(watch);
        return rc;
    }
    uv_poll_start(&watch->poll, UV_READABLE, on_death);
    client->pidfd = c->pidfd;
    client->watch = watch;
    client->untold[0] = 0;
    c->pidfd = -1;
    const struct tag *t = &c->server->core.heap.tags[client->tag];
    if (kept_is_on() && t->inode && !peer_opens_again(t))
        kept_add(t->inode, client->pidfd);
    return 0;
}

/* A client that said goodbye: its process may live on, but means nothing any more. */
void connection_unwatch(struct client *client)
{
    struct watch *watch = client->watch;
    if (!watch)
        return;
    client->watch = NULL;
    client->pidfd = -1;
    watch->client = NULL;
    uv_poll_stop(&watch->poll);
    uv_close((uv_handle_t *)&watch->poll, watch_closed);
}

/* A look at a client whose process nobody watches: from now on it is watched, or dead, or it cannot be told: true. */
static bool look(struct server *s, struct client *client)
{
    struct connection c = {.server = s, .pidfd = -1};
    char why[PEER_WHY] = "";
    const struct tag *t = &s->core.heap.tags[client->tag];
    c.pidfd = kept_take(t->inode);
    enum peer_verdict verdict = c.pidfd >= 0 ? PEER_ALIVE : peer_look(t, s->pids_are_ours, &c.pidfd, why);
    if (verdict == PEER_ALIVE && connection_watch(&c, client) == 0)
        return false;
    if (verdict == PEER_DEAD) {
        log_event(LOG_LEVEL_INFO, "death", "tag=%u pid=%u uid=%u while=\"%s\"", client->tag, client->pid, client->uid,
                  client->untold[0] ? "it could not be told" : "no daemon ran");
        client_die(&s->core, client);
        return false;
    }
    if (verdict == PEER_ALIVE) {
        close(c.pidfd);
        snprintf(why, sizeof why, "the daemon is out of memory");
    }
    if (!client->untold[0]) {
        client->untold_since_ns = s->core.now_ns;
        log_event(LOG_LEVEL_WARNING, "untold", "tag=%u pid=%u uid=%u why=\"%s\" kept=\"what it holds, until it comes back or "
                  "is seen to be dead\"", client->tag, client->pid, client->uid, why);
    }
    snprintf(client->untold, sizeof client->untold, "%s", why);
    return true;
}

/* Clients that cannot be told are looked at again, ever more seldom: a few a tick. */
static void look_again(struct server *s)
{
    enum { LOOKS = 256, EVERY_MAX = 60000 / TICK_MS };
    if (!s->look_at_tick || s->ticks < s->look_at_tick)
        return;
    for (uint32_t looks = 0; s->look_tag < s->core.heap.header->tag_top; s->look_tag++) {
        struct client *client = s->core.clients[s->look_tag];
        if (!client || client->state != CLIENT_DETACHED || client->watch)
            continue;
        if (looks++ == LOOKS)
            return;
        s->look_untold += look(s, client);
    }
    s->look_every = s->look_every * 2 < EVERY_MAX ? s->look_every * 2 : EVERY_MAX;
    s->look_at_tick = s->look_untold ? s->ticks + s->look_every : 0;
    s->look_tag = 1;
    s->look_untold = 0;
}

/* The pids of clients that cannot be told are another namespace's: here they would come to mean other processes. */
static void forget_pid(struct server *s, struct client *client)
{
    tag_set_pid(&s->core.heap, client->tag, 0);
    client->pid = 0;
}

/* die: boot id and namespace are noted last; a successor looks at all again. Pids that were forgotten are not known to be
 * anybody's, in any namespace. */
void connections_find_dead(struct server *s)
{
    struct map_header *header = s->core.heap.header;
    char boot_id[32];
    uint64_t pid_namespace = peer_pid_namespace();
    uint32_t untold = 0;
    peer_boot_id(boot_id);
    bool other_boot = boot_id[0] && header->boot_id[0] && memcmp(boot_id, header->boot_id, sizeof boot_id) != 0;
    s->pids_are_ours = pid_namespace && header->pid_namespace == pid_namespace;
    for (unsigned tag = 1; tag < header->tag_top; tag++) {
        struct client *client = s->core.clients[tag];
        if (!client || client->state != CLIENT_DETACHED)
            continue;
        if (ticket_is_goodbye(&s->core.heap, tag)) {
            log_event(LOG_LEVEL_INFO, "bye", "tag=%u pid=%u uid=%u why=\"while no daemon ran\"", tag, client->pid, client->uid);
            client_die(&s->core, client);
        } else if (other_boot) {
            log_event(LOG_LEVEL_INFO, "death", "tag=%u pid=%u uid=%u while=\"no daemon ran\"", tag, client->pid, client->uid);
            client_die(&s->core, client);
        } else if (look(s, client)) {
            untold++;
            if (pid_namespace && !s->pids_are_ours)
                forget_pid(s, client);
        }
    }
    kept_drop_rest();
    memcpy(header->boot_id, boot_id, sizeof boot_id);
    header->pid_namespace = pid_namespace;
    s->look_tag = s->look_every = 1;
    s->look_at_tick = untold ? 2 : 0;
}

/* ---- closing ------------------------------------------------------------------------------------------------------------------ */

void connection_leave(struct connection *c)
{
    struct client *client = c->client;
    connection_unwatch(client);
    client->connection = NULL;
    c->client = NULL;
    client_die(&c->server->core, client);
}

bool connection_hung_up(const struct connection *c)
{
    struct pollfd p = {.fd = c->fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) == 1;
}

/* The peer has hung up. What it had sent before, it has given up, but for a goodbye. A new client that has left its WELCOME
 * unread knows neither its tag nor its regions. */
static void connection_end(struct connection *c)
{
    enum { QUEUED_MAX = 1024 }; /* more than a socket holds */
    static uint8_t buf[MSG_MAX + 1];
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (c->client && c->welcomed && error == ECONNRESET) {
        log_event(LOG_LEVEL_INFO, "bye", "tag=%u pid=%u uid=%u why=\"it did not read its welcome\"", c->client->tag,
                  c->client->pid, c->client->uid);
        connection_leave(c);
    }
    c->ended = true;
    for (int i = 0; i < QUEUED_MAX && c->client && !c->closing; i++) {
        ssize_t got = packet_receive(c->fd, buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT);
        if (got == 0 || (got < 0 && got != -EMSGSIZE))
            break;
        if (got > 0)
            request_handle(c, buf, (size_t)got);
    }
    connection_close(c, NULL);
}

static void connection_free(struct connection *c)
{
    while (c->out_first) {
        struct packet *next = c->out_first->next;
        free(c->out_first);
        c->out_first = next;
    }
    free(c->held);
    free(c->rest);
    free(c->listed_tags);
    if (c->counted)
        account_disconnect(&c->server->core, c->uid);
    if (c->pidfd >= 0)
        close(c->pidfd);
    free(c);
}

static void connection_closed(uv_handle_t *handle)
{
    struct connection *c = handle->data;
    close(c->fd);
    connection_free(c);
}

/* The client, if there is one, is not dead by this: its process may come back, and its pidfd tells when it is gone. Unless it
 * has closed the heap. */
void connection_close(struct connection *c, const char *why)
{
    struct server *s = c->server;
    if (c->closing)
        return;
    c->closing = true;
    if (why)
        log_event(LOG_LEVEL_WARNING, "cut", "pid=%u uid=%u tag=%u why=\"%s\"", c->pid, c->uid,
                  c->client ? c->client->tag : 0u, why);
    if (c->client && ticket_is_goodbye(&s->core.heap, c->client->tag)) {
        log_event(LOG_LEVEL_INFO, "bye", "tag=%u pid=%u uid=%u why=\"it has hung up\"", c->client->tag, c->client->pid,
                  c->client->uid);
        connection_leave(c);
    }
    if (c->client) {
        mcentral_give_up(&s->core, c->client); /* what waits is dropped below */
        c->client->connection = NULL;
        c->client->resuming = false;
        if (c->client->read_only) /* it cannot take a declaration back that waits here: its word goes with its connection */
            client_gc_mode(&s->core, c->client, GC_RUNS);
        c->client->trim_asked = c->client->trim_answered; /* a notice may be lost with the connection */
        if (c->client->state == CLIENT_LIVE)
            c->client->state = CLIENT_DETACHED;
    }
    ready_remove(&c->ready);
    if (s->notice_at == c)
        s->notice_at = c->next;
    if (s->notice_except == c)
        s->notice_except = NULL;
    collector_forget(c);
    for (struct pending *p = s->pending_first; p; p = p->next)
        if (p->connection == c)
            p->connection = NULL;
    info_forget(c);
    connection_resume_forget(c);
    *(c->prev ? &c->prev->next : &s->connections) = c->next;
    if (c->next)
        c->next->prev = c->prev;
    s->connection_count--;
    uv_poll_stop(&c->poll);
    uv_close((uv_handle_t *)&c->poll, connection_closed); /* the descriptor is closed after that */
}

/* ---- sending ------------------------------------------------------------------------------------------------------------------- */

static void set_polling(struct connection *c)
{
    bool write = c->out_first != NULL;
    if (!c->closing)
        uv_poll_start(&c->poll,
                      write                ? UV_WRITABLE | (c->held ? UV_DISCONNECT : 0)
                      : c->held || c->owed ? UV_DISCONNECT
                                           : UV_READABLE | UV_DISCONNECT,
                      on_events);
}

void connection_owe(struct connection *c, int change)
{
    c->owed += (uint32_t)change;
    set_polling(c);
}

/* A larger one passes the bound of the socket while less than twice its size waits there. */
static int send_packet(struct connection *c, const uint8_t *data, size_t bytes, const int *fds, int fd_count)
{
    const int small = CONNECTION_SOCKET / 2, large = (int)bytes; /* the kernel takes twice that */
    bool raise = bytes > CONNECTION_SOCKET / 2;
    if (raise)
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &large, sizeof large);
    int rc = packet_send(c->fd, data, bytes, fds, fd_count, MSG_DONTWAIT);
    if (raise)
        setsockopt(c->fd, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    return rc;
}

static void flush_out(struct connection *c)
{
    while (c->out_first) {
        struct packet *p = c->out_first;
        int rc = send_packet(c, p->data, p->bytes, NULL, 0);
        if (rc == -EAGAIN)
            return;
        c->out_first = p->next;
        free(p);
        if (rc < 0) {
            connection_close(c, NULL);
            return;
        }
    }
    set_polling(c);
}

void connection_send(struct connection *c, const struct msg *m, const int *fds, int fd_count)
{
    static uint8_t buf[MSG_MAX];
    if (c->closing)
        return;
    int bytes = msg_encode(m, buf, sizeof buf), rc;
    if (bytes < 0) {
        connection_close(c, "a reply that could not be encoded");
        return;
    }
    c->server->core.heap.header->round_trips += m->id != 0;
    c->welcomed = m->type == MSG_WELCOME && !(m->welcome.flags & WELCOME_RESUMED) && m->welcome.tag;
    c->server->core.turn.bytes += (uint64_t)bytes;
    rc = c->out_first ? -EAGAIN : send_packet(c, buf, (size_t)bytes, fds, fd_count);
    if (rc == -EAGAIN && fd_count == 0) {
        struct packet *p = malloc(sizeof *p + (size_t)bytes);
        if (!p) {
            connection_close(c, "out of memory for a reply");
            return;
        }
        p->next = NULL;
        p->bytes = (uint32_t)bytes;
        memcpy(p->data, buf, (size_t)bytes);
        *(c->out_first ? &c->out_last->next : &c->out_first) = p;
        c->out_last = p;
        set_polling(c);
    } else if (rc < 0)
        connection_close(c, rc == -EAGAIN ? "it does not read" : NULL);
}

void connection_reply(struct connection *c, uint32_t id, struct msg m)
{
    m.id = id;
    connection_send(c, &m, NULL, 0);
}

void connection_ok(struct connection *c, uint32_t id, uint64_t value) { connection_reply(c, id, MSG(ok, .value = value)); }

void connection_error(struct connection *c, uint32_t id, int error, const char *format, ...)
{
    char text[MSG_TEXT_MAX + 1];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    connection_reply(c, id, MSG(error, .error = (uint32_t)(error < 0 ? -error : error), .text = text));
}

void connection_limit(struct connection *c, uint32_t id)
{
    const struct refusal *r = &c->server->core.refusal;
    connection_error(c, id, EDQUOT, "%s is reached: %llu of %llu in use, %llu more wanted", r->limit,
                     (unsigned long long)r->used, (unsigned long long)r->most, (unsigned long long)r->more);
}

/* ---- accepting -------------------------------------------------------------------------------------------------------------------- */

static const char no_descriptor[] = "the daemon has no file descriptor left: raise LimitNOFILE of its service";

static void accept_failed(struct server *s, int error)
{
    if (error != EMFILE && error != ENFILE) {
        if (error != EAGAIN && error != ECONNABORTED)
            log_event(LOG_LEVEL_WARNING, "accept", "error=\"%s\"", strerror(error));
        return;
    }
    close(s->fd_reserve); /* one descriptor, to take the newcomer and tell it */
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    log_event(LOG_LEVEL_WARNING, "refuse", "why=\"%s\" connections=%u", no_descriptor, s->connection_count);
    if (fd >= 0)
        refuse_fd(fd, EMFILE, no_descriptor);
    s->fd_reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static void refuse_connection(const struct server *s, uint32_t uid, char *text, size_t capacity)
{
    const struct refusal *r = &s->core.refusal;
    char user[32];
    snprintf(user, sizeof user, "user %u has", uid);
    snprintf(text, capacity, "%s is reached: %s %llu connections", r->limit, strstr(r->limit, "user") ? user : "there are",
             (unsigned long long)r->used);
}

/* False: there is no other. */
static bool accept_one(struct server *s)
{
    struct connection *c;
    int fd = accept4(s->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0) {
        accept_failed(s, errno);
        return false;
    }
    c = calloc(1, sizeof *c);
    if (!c) {
        close(fd);
        return false;
    }
    *c = (struct connection){.server = s, .fd = fd, .pidfd = -1};
    const char *why;
    int rc = peer_identify(c, s->config->pidfd_fallback, &why);
    if (rc == 0 && (why = allow_refuses(s->config, c)) != NULL) {
        log_event(LOG_LEVEL_WARNING, "refuse", "pid=%u uid=%u why=\"%s\"", c->pid, c->uid, why);
        refuse_fd(fd, EACCES, why);
        connection_free(c);
        return true;
    }
    if (rc == 0 && account_connect(&s->core, c->uid) < 0) {
        char text[160];
        refuse_connection(s, c->uid, text, sizeof text);
        log_event(LOG_LEVEL_WARNING, "refuse", "pid=%u uid=%u why=\"%s\"", c->pid, c->uid, text);
        refuse_fd(fd, EDQUOT, text);
        connection_free(c);
        return true;
    }
    c->counted = rc == 0;
    const int socket_bytes = CONNECTION_SOCKET / 2; /* the kernel takes twice that */
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &socket_bytes, sizeof socket_bytes);
    if (rc < 0 || (rc = uv_poll_init(&s->loop, &c->poll, fd)) < 0) {
        why = rc == -EMFILE || rc == -ENFILE ? no_descriptor : why;
        log_event(LOG_LEVEL_WARNING, "refuse", "pid=%u uid=%u why=\"%s\" error=\"%s\" connections=%u", c->pid, c->uid, why,
                  strerror(-rc), s->connection_count);
        refuse_fd(fd, -rc, why);
        connection_free(c);
        return true;
    }
    c->poll.data = c;
    c->next = s->connections;
    if (c->next)
        c->next->prev = c;
    s->connections = c;
    s->connection_count++;
    set_polling(c);
    ready_add(&s->ready, &c->ready); /* its HELLO is there, mostly */
    return true;
}

/* Newcomers wait for one another in the socket's queue: a few are taken at a time. */
static void accept_some(struct server *s)
{
    enum { NEWCOMERS = 8 };
    for (int n = 0; n < NEWCOMERS && accept_one(s); n++)
        ;
}

void connection_on_listen(uv_poll_t *poll, int status, int events)
{
    struct server *s = poll->data;
    (void)status, (void)events;
    ready_add(&s->ready, &s->newcomers);
}

/* After a reload: who may not attach any more is cut off. What a client holds stays its own until its process ends. */
void connections_allow_again(struct server *s)
{
    const char *why;
    for (struct connection *c = s->connections, *next; c; c = next) {
        next = c->next;
        if (!c->closing && (why = allow_refuses(s->config, c)) != NULL) {
            connection_error(c, 0, EACCES, "%s", why);
            connection_close(c, why);
        }
    }
}

/* ---- reading ----------------------------------------------------------------------------------------------------------------------- */

/* Who has something to say stands in line: see ready.h. */
static void on_events(uv_poll_t *poll, int status, int events)
{
    struct connection *c = poll->data;
    struct server *s = c->server;
    s->core.now_ns = uv_hrtime();
    if (status < 0 || (events & UV_DISCONNECT)) {
        connection_end(c);
        server_pump(s);
        return;
    }
    if (events & UV_WRITABLE)
        flush_out(c);
    if (!(events & UV_READABLE) || c->closing || c->out_first || c->held || c->owed) /* one request at a time */
        return;
    ready_add(&s->ready, &c->ready);
}

/* One packet. */
static void serve(struct connection *c)
{
    static uint8_t buf[MSG_MAX + 1];
    struct server *s = c->server;
    if (c->rest) {
        struct packet *p = c->rest;
        c->rest = NULL;
        s->core.now_ns = uv_hrtime();
        request_handle(c, p->data, p->bytes);
        free(p);
        server_pump(s);
        return;
    }
    if (c->out_first || c->held || c->owed)
        return; /* the loop says again that there is something when it may be read */
    ssize_t got = packet_receive(c->fd, buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT);
    if (got == -EAGAIN)
        return;
    if (got <= 0) {
        connection_close(c, got == -EMSGSIZE ? "a packet of more than 64 KiB, or with file descriptors" : NULL);
        return;
    }
    s->core.now_ns = uv_hrtime();
    s->core.turn.bytes += (uint64_t)got;
    request_handle(c, buf, (size_t)got);
    server_pump(s);
}

/* What is left in line when the turn has no room any more is served in the next one. */
void connections_serve(struct server *s)
{
    struct turn *t = &s->core.turn;
    struct ready *r;
    while (t->packets < TURN_PACKETS && turn_has_room(&s->core) && (r = ready_take(&s->ready)) != NULL) {
        t->packets++;
        if (r == &s->newcomers)
            accept_some(s);
        else
            serve((struct connection *)(void *)((char *)r - offsetof(struct connection, ready)));
    }
}

static struct packet *packet_copy(struct connection *c, const uint8_t *packet, size_t bytes)
{
    struct packet *p = malloc(sizeof *p + bytes);
    if (!p) {
        connection_close(c, "out of memory for a packet that must wait");
        return NULL;
    }
    p->next = NULL;
    p->bytes = (uint32_t)bytes;
    memcpy(p->data, packet, bytes);
    return p;
}

void connection_hold(struct connection *c, const uint8_t *packet, size_t bytes, bool is_gc)
{
    struct packet *p = packet_copy(c, packet, bytes);
    if (!p)
        return;
    c->held = p;
    c->held_is_gc = is_gc;
    set_polling(c);
}

void connection_rest(struct connection *c, const uint8_t *packet, size_t bytes)
{
    if ((c->rest = packet_copy(c, packet, bytes)) != NULL) {
        ready_add(&c->server->ready, &c->ready);
        server_pump(c->server);
    }
}

void connection_release(struct connection *c)
{
    struct packet *p = c->held;
    c->held = NULL;
    set_polling(c);
    request_handle(c, p->data, p->bytes);
    free(p);
}

/* ---- the clock ---------------------------------------------------------------------------------------------------------------------- */

/* Silence is counted in ticks: time in which this process itself stood still is nobody's silence. */
void connections_tick(struct server *s)
{
    for (struct connection *c = s->connections, *next; c; c = next) {
        next = c->next;
        if (!c->greeted && !c->held && ++c->silent_ticks * TICK_MS > s->config->hello_timeout_ms)
            connection_close(c, "it said nothing");
    }
    look_again(s);
    info_tick(s);
}

void connections_close(struct server *s)
{
    while (s->connections)
        connection_close(s->connections, NULL);
    for (unsigned tag = 1; s->core.clients && tag < s->core.heap.header->tag_top; tag++)
        if (s->core.clients[tag])
            connection_unwatch(s->core.clients[tag]);
}

void connections_free(struct server *s)
{
    while (s->pending_first) {
        struct pending *next = s->pending_first->next;
        free(s->pending_first);
        s->pending_first = next;
    }
    info_free(s);
}
