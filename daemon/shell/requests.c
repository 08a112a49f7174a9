/* What each message asks for. */
#include "daemon/shell/connection.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/os/log.h"
#include "daemon/shell/collector.h"
#include "daemon/shell/hello.h"
#include "daemon/shell/info.h"
#include "daemon/shell/waiting.h"

/* ---- memory ------------------------------------------------------------------------------------------------------------- */

struct spans {
    uint32_t epoch;
    const uint32_t **list;
    uint32_t *count;
};

/* What a message gives back. */
static struct spans given_back(struct msg *m)
{
    if (m->type == MSG_LEASE)
        return (struct spans){m->lease.epoch, &m->lease.list, &m->lease.list_count};
    if (m->type == MSG_LARGE)
        return (struct spans){m->large.epoch, &m->large.list, &m->large.list_count};
    return (struct spans){m->release.epoch, &m->release.list, &m->release.list_count};
}

/* What a turn has no room for is a packet of its own, the same but for what it has given back. */
static void stand_in_line(struct connection *c, const struct msg *rest)
{
    static uint8_t packet[MSG_MAX];
    int bytes = msg_encode(rest, packet, sizeof packet);
    if (bytes < 0)
        connection_close(c, "a packet that could not be split");
    else
        connection_rest(c, packet, (size_t)bytes);
}

/* Takes back what m gives back. False: not all of it, so the rest of m comes later; or the connection is closed. */
static bool take_back(struct connection *c, struct msg *m)
{
    struct spans spans = given_back(m);
    if (spans.epoch != c->server->core.heap.header->epoch)
        return true; /* leases of an older daemon were settled by RESUME */
    if (*spans.count > RETURN_SPANS_MAX) {
        connection_close(c, "it gave back more spans than a packet may");
        return false;
    }
    uint32_t count = *spans.count < RETURN_SPANS_TURN ? *spans.count : RETURN_SPANS_TURN;
    for (uint32_t i = 0; i < count; i++)
        if (mcentral_uncache_span(&c->server->core, c->client, (*spans.list)[i]) < 0) {
            connection_close(c, "it gave back a span that it had not leased");
            return false;
        }
    *spans.list += count;
    *spans.count -= count;
    if (*spans.count)
        stand_in_line(c, m);
    return *spans.count == 0;
}

static void on_refill(struct connection *c, struct msg *m)
{
    if (!take_back(c, m))
        return;
    uint32_t epoch = given_back(m).epoch;
    if (epoch != c->server->core.heap.header->epoch)
        connection_error(c, m->id, ESTALE, "%s of epoch %u", msg_name(m->type), epoch);
    else if (m->type == MSG_LEASE)
        wait_lease(c, m->id, &m->lease);
    else
        wait_large(c, m->id, &m->large);
}

static void on_trim(struct connection *c, uint32_t id)
{
    struct server *s = c->server;
    if (s->core.turn.trims++ == 0) /* all are told once a turn, however many ask for it */
        trim_ask(s, NULL);
    server_trim(s);
    connection_ok(c, id, 0);
}

static void on_trimmed(struct connection *c, uint32_t id, const struct msg_trimmed *m)
{
    if (m->serial == 0)
        server_trim(c->server);
    else
        c->client->trim_answered = m->serial, c->server->core.progress++;
    if (id)
        connection_ok(c, id, 0);
}

/* ---- roots, transactions, the collector --------------------------------------------------------------------------------- */

static void on_root(struct connection *c, uint32_t id, const struct msg_root *m)
{
    int rc = client_root(&c->server->core, c->client, id, m->name, m->mode, m->expected, m->desired);
    if (rc == -EDQUOT)
        connection_limit(c, id);
    else if (rc < 0 && rc != -ECANCELED)
        connection_error(c, id, rc, "root %s: %s", m->name, strerror(-rc));
    else if (rc == 0)
        connection_ok(c, id, 0);
}

static void on_commit(struct connection *c, uint32_t id, const struct msg_tx_commit *m)
{
    struct core *core = &c->server->core;
    for (uint32_t i = 0; i < m->list_count; i++)
        if (client_tx_resolved(core, c->client, m->list[i]) < 0) {
            connection_close(c, "it resolved a transaction that is not its own");
            return;
        }
    int rc = client_tx_commit(core, c->client, id, m->tag, m->name, m->expected, m->desired);
    if (rc == -EDQUOT)
        connection_limit(c, id);
    else if (rc < 0 && rc != -ECANCELED)
        connection_error(c, id, rc, "commit of transaction %u with root \"%s\": %s", m->tag, m->name, strerror(-rc));
    else if (rc == 0)
        connection_ok(c, id, 0);
}

static void on_tx_tags(struct connection *c, uint32_t id, const struct msg_tx_tags *m)
{
    uint32_t tags[MSG_TAGS_MAX];
    int count = client_tx_tags(&c->server->core, c->client, m->count, tags);
    if (count == -EDQUOT)
        connection_limit(c, id);
    else if (count < 0)
        connection_error(c, id, count, "no tag is free for a transaction");
    else
        connection_reply(c, id, MSG(tags, .list = tags, .list_count = (uint32_t)count));
}

/* A declaration to the collector was made, or refused. */
static void declared(struct connection *c, const struct msg *m, int rc, uint64_t value)
{
    if (rc < 0 && rc != -ECANCELED)
        connection_error(c, m->id, rc, "%s %llu is not to be", msg_name(m->type), (unsigned long long)value);
    else if (rc == 0 && m->id)
        connection_ok(c, m->id, 0);
}

/* ---- one packet --------------------------------------------------------------------------------------------------------- */

/* The message is one that who says it may say now; else it is told. */
static bool may_ask(struct connection *c, const struct msg *m)
{
    const struct client *client = c->client;
    if (!c->greeted && m->type != MSG_HELLO) {
        connection_error(c, m->id, EPROTO, "%s before HELLO", msg_name(m->type));
        connection_close(c, "no HELLO first");
        return false;
    }
    bool for_all = m->type == MSG_HELLO || m->type == MSG_INFO || m->type == MSG_TRIM || m->type == MSG_GC;
    bool for_readers = m->type == MSG_BYE || m->type == MSG_RESUME ||
                       (m->type == MSG_SAFEPOINT && m->safepoint.gc_mode != GC_PINS);
    if (for_all || (client && (!client->read_only || for_readers) && (!client->resuming || m->type == MSG_RESUME)))
        return true;
    connection_error(c, m->id, EPERM, "%s is not for a %s", msg_name(m->type),
                     !client ? "monitor" : client->resuming ? "client that has not resumed" : "reader");
    return false;
}

static void serve(struct connection *c, struct msg *m)
{
    struct core *core = &c->server->core;
    switch (m->type) {
    case MSG_HELLO: on_hello(c, m->id, &m->hello); break;
    case MSG_RESUME: on_resume(c, m->id, &m->resume); break;
    case MSG_LEASE:
    case MSG_LARGE: on_refill(c, m); break;
    case MSG_EXTEND: wait_extend(c, m->id, &m->extend); break;
    case MSG_RELEASE: take_back(c, m); break;
    case MSG_TX_TAGS: on_tx_tags(c, m->id, &m->tx_tags); break;
    case MSG_TX_COMMIT: on_commit(c, m->id, &m->tx_commit); break;
    case MSG_ROOT: on_root(c, m->id, &m->root); break;
    case MSG_INFO: info_request(c, m->id, m->info.what, m->info.cursor); break;
    case MSG_TRIM: on_trim(c, m->id); break;
    case MSG_PING: connection_ok(c, m->id, 0); break;
    case MSG_SAFEPOINT:
        declared(c, m, client_safepoint(core, c->client, m->id, m->safepoint.gc_mode), m->safepoint.gc_mode);
        break;
    case MSG_PINS: declared(c, m, client_first_pins(core, c->client, m->id, m->pins.table), m->pins.table); break;
    case MSG_TRIMMED: on_trimmed(c, m->id, &m->trimmed); break;
    case MSG_GC: collector_request(c, m->id, m->gc.flags, m->gc.cursor); break;
    case MSG_BYE: on_bye(c, m->id); break;
    default: connection_error(c, m->id, EOPNOTSUPP, "%s is not served", msg_name(m->type)); break;
    }
}

void request_handle(struct connection *c, const uint8_t *packet, size_t bytes)
{
    static struct msg_space space; /* one packet is handled at a time */
    struct msg m;
    char why[MSG_TEXT_MAX + 1] = "";
    if (msg_decode(&m, &space, packet, bytes, why) < 0 || !msg_from_client(m.type)) {
        if (!why[0])
            snprintf(why, sizeof why, "%s is not for a client to send", msg_name(m.type));
        connection_error(c, m.id, EPROTO, "%s", why);
        connection_close(c, why);
        return;
    }
    /* Who hangs up has given up what was not answered. A look costs: refills go without, as what they grant and are given is
     * settled by the next RESUME, whenever they are done. */
    bool by_resume = m.type == MSG_LEASE || m.type == MSG_LARGE || m.type == MSG_RELEASE || m.type == MSG_TX_TAGS;
    if (m.type != MSG_BYE && (c->ended || (!by_resume && connection_hung_up(c))))
        return;
    c->welcomed = false;
    if (!may_ask(c, &m))
        return;
    if (c->client)
        c->client->heard_ns = c->server->core.now_ns;
    if (!collector_defers(c, &m, packet, bytes))
        serve(c, &m);
}
