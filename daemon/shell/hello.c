/* HELLO, RESUME and BYE: a client comes, comes back, and goes. */
#include "daemon/shell/hello.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "daemon/os/log.h"
#include "daemon/shell/connection.h"

/* ---- HELLO ------------------------------------------------------------------------------------------------------------ */

static uint32_t real_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint32_t)ts.tv_sec;
}

static void welcome_send(struct connection *c, uint32_t id, unsigned tag, unsigned flags, const int *fds, int count)
{
    const struct map_header *header = c->server->core.heap.header;
    struct msg m = MSG(welcome, .version = PROTO_VERSION, .tag = tag, .epoch = header->epoch, .heap_id = header->heap_id,
                       .heap_id_bytes = sizeof header->heap_id, .base = header->base, .heap_bytes = header->heap_max,
                       .map_bytes = header->map_bytes, .state_bytes = header->state_bytes, .flags = flags);
    m.id = id;
    connection_send(c, &m, fds, count);
}

static void welcome(struct connection *c, uint32_t id, unsigned flags)
{
    struct server *s = c->server;
    bool read_only = c->client->read_only, fresh = !(flags & WELCOME_RESUMED);
    int fds[REGION_COUNT], count = 0;
    for (int i = 0; fresh && i < REGION_COUNT; i++)
        fds[count++] = read_only || i == REGION_MAP ? s->regions.read_only_fd[i] : s->regions.fd[i];
    welcome_send(c, id, c->client->tag, flags, fds, count);
}

/* A client that comes back: the same process, its tag still its own. */
static void hello_resume(struct connection *c, uint32_t id, const struct msg_hello *m)
{
    struct server *s = c->server;
    struct client *client = s->core.clients[m->tag];
    if (m->heap_id_bytes != 16 || memcmp(m->heap_id, s->core.heap.header->heap_id, 16) != 0) {
        connection_error(c, id, ESTALE, "the daemon serves another heap now");
        return;
    }
    if (!client || client->state == CLIENT_DYING || !peer_is_client(c, client)) {
        connection_error(c, id, ESTALE, "tag %u is not this process's any more", m->tag);
        return;
    }
    if (client->connection) {
        struct connection *old = client->connection;
        mcentral_give_up(&s->core, client);
        old->client = NULL;
        connection_close(old, NULL);
    }
    if (!client->watch && connection_watch(c, client) < 0) {
        connection_error(c, id, ENOMEM, "out of memory");
        return;
    }
    if (!client->pid) { /* its pid was not seen, or another namespace's */
        client->pid = c->pid;
        tag_set_pid(&s->core.heap, client->tag, c->pid);
    }
    if (client->read_only) /* it declares anew what it is at: what it gave up meanwhile counts no more */
        client_gc_mode(&s->core, client, GC_RUNS);
    client->state = CLIENT_LIVE;
    client->resuming = true;
    client_list_begin(client);
    client->connection = c;
    c->client = client;
    c->greeted = true;
    log_event(LOG_LEVEL_INFO, "resume", "tag=%u pid=%u uid=%u", client->tag, client->pid, client->uid);
    welcome(c, id, WELCOME_RESUMED);
}

/* Clients that are gone though their process and its pidfd live on: see client_replaced(). One that somebody is connected as
 * lives, whatever another connection of its process says. */
static void bury_replaced(struct connection *c, const struct tag *identity, bool fresh)
{
    struct core *core = &c->server->core;
    struct client *client = NULL;
    while ((client = client_replaced(core, identity, fresh, client)) != NULL) {
        struct connection *old = client->connection;
        bool by_exec = core->heap.tags[client->tag].image != identity->image;
        if (!by_exec && old && !connection_hung_up(old))
            continue;
        log_event(LOG_LEVEL_INFO, "death", "tag=%u pid=%u uid=%u leased_pages=%llu by=%s", client->tag, client->pid,
                  client->uid, (unsigned long long)client->leased_pages, by_exec ? "exec" : "open");
        connection_unwatch(client);
        client->connection = NULL;
        if (old)
            old->client = NULL;
        client_die(core, client);
        if (old)
            connection_close(old, NULL);
    }
}

void on_hello(struct connection *c, uint32_t id, const struct msg_hello *m)
{
    struct server *s = c->server;
    if (c->greeted && !c->looked) {
        connection_close(c, "a second HELLO");
        return;
    }
    if (m->version < PROTO_VERSION_MIN || m->version_min > PROTO_VERSION || m->layout != LAYOUT_VERSION) {
        connection_error(c, id, EPROTONOSUPPORT,
                         "the client speaks protocol %u..%u, layout %u; this daemon %d..%d, layout %d: use the library "
                         "that came with it", m->version_min, m->version, m->layout, PROTO_VERSION_MIN, PROTO_VERSION,
                         LAYOUT_VERSION);
        return;
    }
    c->greeted = c->monitor = (m->flags & (HELLO_MONITOR | HELLO_LOOK)) != 0;
    c->looked = (m->flags & HELLO_LOOK) != 0;
    if (c->looked) {
        welcome_send(c, id, 0, 0, NULL, 0);
        return;
    }
    if (c->monitor) {
        connection_ok(c, id, 0);
        return;
    }
    struct tag identity = {.pid = c->pid, .uid = c->uid, .start_time = c->start_time, .inode = c->inode,
                           .image = m->image, .copy = m->copy, .since_s = real_s(), .read_only = (m->flags & HELLO_READ_ONLY) != 0};
    bury_replaced(c, &identity, !m->tag);
    if (m->tag) {
        hello_resume(c, id, m);
        return;
    }
    peer_command(c->pid, identity.command);
    int rc = client_attach(&s->core, &identity, &c->client);
    if (rc < 0) {
        if (rc == -EDQUOT)
            connection_limit(c, id);
        else
            connection_error(c, id, rc, "no tag is free for a client of uid %u", c->uid);
        return;
    }
    if (connection_watch(c, c->client) < 0) {
        client_die(&s->core, c->client);
        c->client = NULL;
        connection_error(c, id, ENOMEM, "out of memory");
        return;
    }
    c->client->connection = c;
    c->greeted = true;
    uint16_t tag = c->client->tag;
    welcome(c, id, 0);
    if (c->closing && c->client) { /* it has hung up: nobody knows of this client */
        struct client *client = c->client;
        connection_unwatch(client);
        client_die(&s->core, client);
        c->client = NULL;
    }
    char command[sizeof identity.command + 1] = "", quoted[2 * sizeof command + 2];
    memcpy(command, identity.command, sizeof identity.command);
    log_event(LOG_LEVEL_INFO, "attach", "tag=%u pid=%u uid=%u command=\"%s\"", tag, c->pid, c->uid,
              log_quote(quoted, sizeof quoted, command));
}

/* Looks through some of the leases of a client that has listed its own; when all was looked at, it may go on: true. */
static bool resume_turn(struct connection *c)
{
    if (!client_take_back(&c->server->core, c->client, &c->resume_at))
        return false;
    if (c->listed_tags)
        client_tx_take_back(&c->server->core, c->client, c->listed_tags);
    free(c->listed_tags);
    c->listed_tags = NULL;
    c->client->resuming = false;
    c->resume_listed = false;
    c->resume_at = 0;
    connection_owe(c, -1);
    connection_ok(c, c->resume_id, 0);
    return true;
}

static void resume_wait(struct connection *c)
{
    struct server *s = c->server;
    c->resume_next = NULL;
    *(s->resume_first ? &s->resume_last->resume_next : &s->resume_first) = c;
    s->resume_last = c;
}

/* False: out of memory. */
static bool list_tags(struct connection *c, const struct msg_resume *m)
{
    if (!c->listed_tags)
        c->listed_tags = calloc(1, TAG_COUNT / 8);
    for (uint32_t i = 0; c->listed_tags && i < m->list_count; i++)
        if (m->list[i] < TAG_COUNT)
            c->listed_tags[m->list[i] / 8] |= (uint8_t)(1u << (m->list[i] % 8));
    return c->listed_tags != NULL;
}

void on_resume(struct connection *c, uint32_t id, const struct msg_resume *m)
{
    if (!c->client->resuming) {
        connection_close(c, "RESUME without need");
        return;
    }
    if (!(m->flags & RESUME_TAGS))
        client_list(&c->server->core, c->client, m->list, m->list_count);
    else if (!list_tags(c, m)) {
        connection_error(c, id, ENOMEM, "the daemon is out of memory");
        return;
    }
    if (!(m->flags & RESUME_LAST)) {
        connection_ok(c, id, 0);
        return;
    }
    c->resume_id = id;
    c->resume_listed = true;
    connection_owe(c, 1);
    resume_wait(c);
}

void connection_resume_forget(struct connection *c)
{
    struct server *s = c->server;
    struct connection *before = NULL;
    if (!c->resume_listed)
        return;
    c->resume_listed = false;
    for (struct connection *at = s->resume_first; at != c; at = at->resume_next)
        before = at;
    *(before ? &before->resume_next : &s->resume_first) = c->resume_next;
    if (s->resume_last == c)
        s->resume_last = before;
}

/* One client a turn, each as often as any other. */
bool connections_resume(struct server *s)
{
    struct connection *c = s->resume_first;
    if (c) {
        s->resume_first = c->resume_next;
        if (!resume_turn(c))
            resume_wait(c);
    }
    return s->resume_first != NULL;
}

void on_bye(struct connection *c, uint32_t id)
{
    struct client *client = c->client;
    log_event(LOG_LEVEL_INFO, "bye", "tag=%u pid=%u uid=%u", client->tag, client->pid, client->uid);
    connection_leave(c);
    connection_ok(c, id, 0);
    connection_close(c, NULL);
}

