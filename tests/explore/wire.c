#include "tests/explore/wire.h"

#include <stdio.h>

#include "shm/ticket.h"

enum { QUEUE = 6 };

/* ---- the wire -------------------------------------------------------------------------------- */

struct packet {
    uint32_t type, id, epoch, span_class, pages, tag, flags, error, list_count;
    uint32_t first, value;
    uint32_t list[WIRE_LIST];
    uint64_t expected, desired;
    char name[8];
};

static struct wire {
    uint32_t up;      /* connected */
    uint32_t greeted; /* the daemon's: HELLO was served, by this daemon */
    uint32_t gone;    /* the daemon's: it has seen that the process is dead, or it said goodbye */
    uint32_t in_count, out_count;
    uint32_t serving;                    /* the daemon's: id of the request that it is at */
    uint32_t listed;                     /* of RESUME, a bit a page */
    uint32_t line, serving_line;         /* which connection it is; that of the request */
    uint32_t full;                       /* something was told that found no room */
    uint32_t busy, lost;                 /* the daemon is at a request; it has died meanwhile */
    struct packet in[QUEUE], out[QUEUE]; /* to the daemon, to the client */
} wires[WORLD_CLIENTS + 1];

static void put_list(struct packet *p, const uint32_t *list, uint32_t count)
{
    p->list_count = count;
    if (count > WIRE_LIST)
        ex_violation("the world's packets are too short for a list of %u", count);
    for (uint32_t i = 0; i < count && i < WIRE_LIST; i++)
        p->list[i] = list[i];
}

static void put_root(struct packet *p, const char *name, uint64_t expected, uint64_t desired)
{
    p->expected = expected;
    p->desired = desired;
    snprintf(p->name, sizeof p->name, "%s", name ? name : "");
}

static void packet_of(const struct msg *m, uint32_t epoch, struct packet *p)
{
    *p = (struct packet){.type = m->type, .id = m->id, .epoch = epoch};
    switch (m->type) {
    case MSG_HELLO: p->tag = m->hello.tag; break;
    case MSG_RESUME:
        p->flags = m->resume.flags;
        put_list(p, m->resume.list, m->resume.list_count);
        break;
    case MSG_LEASE:
        p->span_class = m->lease.span_class;
        p->pages = m->lease.pages;
        put_list(p, m->lease.list, m->lease.list_count);
        break;
    case MSG_LARGE:
        p->span_class = m->large.span_class;
        p->pages = m->large.pages;
        break;
    case MSG_RELEASE: put_list(p, m->release.list, m->release.list_count); break;
    case MSG_EXTEND:
        p->first = m->extend.first;
        p->pages = m->extend.pages;
        break;
    case MSG_TX_COMMIT:
        p->tag = m->tx_commit.tag;
        put_root(p, m->tx_commit.name, m->tx_commit.expected, m->tx_commit.desired);
        put_list(p, m->tx_commit.list, m->tx_commit.list_count);
        break;
    case MSG_ROOT: put_root(p, m->root.name, m->root.expected, m->root.desired); break;
    case MSG_SAFEPOINT: p->value = (uint32_t)m->safepoint.gc_mode; break;
    default: break;
    }
}

/* As a packet is decoded: the list is in the connection's space. */
static void msg_of(const struct packet *p, struct msg *m, struct msg_space *space)
{
    memset(m, 0, sizeof *m);
    memcpy(space->list, p->list, sizeof p->list);
    m->type = p->type;
    m->id = p->id;
    if (p->type == MSG_GRANT)
        m->grant = (struct msg_grant){.epoch = p->epoch, .flags = p->flags, .list = space->list, .list_count = p->list_count};
    else if (p->type == MSG_WELCOME)
        m->welcome.epoch = p->epoch;
    else if (p->type == MSG_ERROR)
        m->error.error = p->error;
}

static void pop(struct packet *queue, uint32_t *count)
{
    memmove(queue, queue + 1, (*count - 1) * sizeof *queue);
    memset(&queue[--*count], 0, sizeof *queue);
}

static unsigned queue_most; /* packets to the daemon, on their way */

static bool has_room(void *w)
{
    return ((struct wire *)w)->in_count < queue_most || !((struct wire *)w)->up;
}
static bool has_answer(void *w)
{
    return ((struct wire *)w)->out_count || !((struct wire *)w)->up;
}

static void serve(unsigned i);

/* At most one of each is on its way, so numbers need not grow; but for those of which tickets and
 * done tell one from the other. */
enum { ID_CALL = 1, ID_AHEAD };

static uint32_t give_ups_left;
static bool may_give_up;

/* As client/link/conn.c's. */
static bool has_ticket(const struct msg *m)
{
    return m->type == MSG_ROOT || m->type == MSG_TX_COMMIT || m->type == MSG_EXTEND || m->type == MSG_SAFEPOINT;
}

static bool has_answer_or_gives_up(void *w)
{
    return give_ups_left || has_answer(w);
}

/* client/link/conn.c's sending and receiving; -EPIPE: lost. */
static int send_out(struct arena *a, const struct msg *m, bool waits)
{
    struct wire *w = &wires[ex_self()];
    if (waits)
        ex_wait(has_room, w);
    else if (!has_room(w)) {
        w->full = 1;
        return -EAGAIN;
    }
    if (!w->up)
        return -EPIPE;
    packet_of(m, a->conn.epoch, &w->in[w->in_count++]);
    if (!ex_running()) {
        unsigned self = ex_self();
        ex_heap_select(DAEMON);
        serve(self);
        ex_heap_select(self);
    }
    return 0;
}

static int receive_in(struct arena *a, uint32_t id)
{
    struct wire *w = &wires[ex_self()];
    struct ahead *ahead = &a->conn.ahead;
    for (;;) {
        ex_wait(has_answer_or_gives_up, w);
        if (!w->out_count && w->up) {
            give_ups_left--;
            return -ETIMEDOUT;
        }
        if (!w->out_count)
            return -EPIPE;
        struct packet p = w->out[0];
        pop(w->out, &w->out_count);
        msg_of(&p, &a->conn.in, &a->conn.space);
        if (ahead->id && p.id == ahead->id) { /* what was asked for ahead */
            ahead->arrived = true;
            ahead->error = p.type == MSG_ERROR ? (int)p.error : 0;
            ahead->flags = p.flags;
            ahead->count = p.list_count;
            memcpy(ahead->list, p.list, sizeof p.list);
            if (p.id == id)
                return -ahead->error;
            continue;
        }
        if (p.id == id)
            return p.type == MSG_ERROR ? -(int)p.error : 0;
    }
}

static int exchange(struct arena *a, struct msg *request)
{
    request->id = has_ticket(request) ? ID_AHEAD + ++a->conn.next_id : ID_CALL;
    int rc = send_out(a, request, true);
    return rc < 0 ? rc : receive_in(a, request->id);
}

/* Hangs up: what the daemon has not begun with it does not do. */
static void drop(struct arena *a)
{
    struct wire *w = &wires[ex_self()];
    w->up = 0;
    memset(w->in, 0, sizeof w->in);
    memset(w->out, 0, sizeof w->out);
    w->in_count = w->out_count = 0;
    a->conn.fd = -1;
    a->conn.ahead.id = 0;
}

int conn_ask_ahead(struct arena *a, struct msg request)
{
    struct connection *c = &a->conn;
    if (c->ahead.id)
        return -EALREADY;
    if (c->fd < 0)
        return -ENOTCONN;
    request.id = ID_AHEAD;
    int rc = send_out(a, &request, false);
    if (rc < 0) {
        if (rc != -EAGAIN)
            drop(a);
        return rc;
    }
    c->ahead.id = ID_AHEAD;
    c->ahead.span_class = request.lease.span_class;
    c->ahead.arrived = false;
    return 0;
}

bool conn_ahead_arrived(struct arena *a)
{
    struct connection *c = &a->conn;
    struct wire *w = &wires[ex_self()];
    if (c->fd >= 0 && c->ahead.id && !c->ahead.arrived && (w->out_count || !w->up)) {
        receive_in(a, c->ahead.id);
        if (!c->ahead.arrived)
            drop(a);
    }
    return c->ahead.id && c->ahead.arrived;
}

int conn_ahead(struct arena *a, unsigned span_class)
{
    struct connection *c = &a->conn;
    if (!c->ahead.id || c->ahead.span_class != span_class)
        return -ENOENT;
    int rc = c->ahead.arrived ? -c->ahead.error : receive_in(a, c->ahead.id);
    if (!c->ahead.arrived)
        drop(a);
    c->ahead.id = 0;
    return rc;
}

void conn_lock(struct arena *a)
{
    pthread_mutex_lock(&a->conn.lock);
}
bool conn_trylock(struct arena *a)
{
    return pthread_mutex_trylock(&a->conn.lock) == 0;
}
void conn_unlock(struct arena *a)
{
    bool sent;
    do {
        sent = returns_send(a);
        pthread_mutex_unlock(&a->conn.lock);
        fence_seq_cst();
    } while (sent && returns_pending(&a->returns) && pthread_mutex_trylock(&a->conn.lock) == 0);
}

void conn_kick(struct arena *a)
{
    if (!returns_pending(&a->returns))
        return;
    fence_seq_cst();
    if (conn_trylock(a))
        conn_unlock(a);
}
struct patience conn_patience(const struct arena *a) /* nobody waits */
{
    (void)a;
    return (struct patience){0, 0};
}
bool conn_waits(struct patience *p)
{
    (void)p;
    return false;
}

static int reconnect(struct arena *a)
{
    struct connection *c = &a->conn;
    struct wire *w = &wires[ex_self()];
    for (;;) {
        uint64_t cursor = 0;
        drop(a);
        w->up = 1;
        w->line++;
        w->greeted = 0;
        memset(w->in, 0, sizeof w->in);
        memset(w->out, 0, sizeof w->out);
        w->in_count = w->out_count = 0;
        struct msg request = MSG(hello, .tag = a->tag);
        int rc = exchange(a, &request);
        if (rc == 0)
            c->epoch = c->in.welcome.epoch;
        for (bool last = false; rc == 0 && !last;) {
            /* as short packets as can be, so that a crash may come between two */
            uint32_t count = returns_list(a, &cursor, c->list, 1);
            last = cursor >= a->heap.page_count;
            request = MSG(resume, .flags = last ? RESUME_LAST : 0, .list = c->list, .list_count = count);
            rc = exchange(a, &request);
        }
        c->fd = rc == 0 ? 1 : -1;
        w->lost &= rc != 0;
        if (rc == -ETIMEDOUT) {
            drop(a);
            return -ENOTCONN;
        }
        if (rc != -EPIPE)
            return rc;
    }
}

static bool is_mutated(const char *function)
{
    return ex_mutant() && ex_mutant()->mutation == MUTANT_BACKWARDS &&
           strcmp(ex_mutant()->function, function) == 0;
}

static bool was_done(struct arena *a, const struct msg *m)
{
    const struct tag *own = &a->heap.tags[a->tag];
    if (m->type == MSG_TX_COMMIT && tag_state(&a->heap, m->tx_commit.tag) == TAG_TX_COMMITTED)
        return true;
    if (is_mutated("was_done")) /* only by the request's id */
        return has_ticket(m) && m->id && load_acquire(&own->done) == m->id;
    if (m->type == MSG_EXTEND)
        return load_acquire(&a->heap.spans[m->extend.first].page_count) == m->extend.pages;
    if (m->type == MSG_SAFEPOINT)
        return load_acquire(&own->gc_mode) == m->safepoint.gc_mode;
    return has_ticket(m) && m->id && load_acquire(&own->done) == m->id;
}

static bool has_ended(struct arena *a, const struct msg *m)
{
    if (m->type != MSG_TX_COMMIT || is_mutated("has_ended")) /* its root may not be moved yet */
        return was_done(a, m);
    return load_acquire(&a->heap.tags[a->tag].done) == m->id;
}

static struct arena *taken_by; /* as ex_wait() has one argument; one client gives up at a time */
static const struct msg *taken; /* on the stack of who gives up */

/* For so long it waits for a daemon that was faster. One that has come to the end of the request and
 * has not noted it is waited for in vain: the call does not return. */
static bool has_ended_or_stands(void *w)
{
    const struct wire *wire = w;
    return wire->busy || wire->lost || has_ended(taken_by, taken);
}

/* As client/link/conn.c's, with one look in place of many: when the daemon comes to an end is chosen. */
static int give_up(struct arena *a, const struct msg *m)
{
    drop(a);
    if (!has_ticket(m) || !m->id)
        return -ENOTCONN;
    if (is_mutated("give_up")) /* it says so without taking it back */
        return -ENOTCONN;
    if (ticket_cancel(&a->heap, a->tag, m->id))
        return -ENOTCONN;
    taken_by = a;
    taken = m;
    ex_wait(has_ended_or_stands, &wires[ex_self()]);
    return has_ended(a, m) ? 0 : -EINPROGRESS;
}

int conn_call_within(struct arena *a, struct msg request, struct patience patience)
{
    return (void)patience, conn_call(a, request);
}

/* client/link/conn.c's, without its clock. */
int conn_call(struct arena *a, struct msg request)
{
    for (;;) {
        int rc = a->conn.fd >= 0 ? exchange(a, &request) : -EPIPE;
        if (rc == -ETIMEDOUT)
            return give_up(a, &request);
        if (rc != -EPIPE)
            return rc;
        rc = reconnect(a);
        if (rc < 0)
            return rc == -ENOTCONN ? give_up(a, &request) : rc;
        if (request.type == MSG_LEASE)
            request.lease.list_count = 0;
        if (was_done(a, &request))
            return 0;
    }
}

int conn_tell(struct arena *a, struct msg m)
{
    if (a->conn.fd < 0)
        return -ENOTCONN;
    int rc = send_out(a, &m, false);
    if (rc < 0 && rc != -EAGAIN)
        drop(a);
    return rc;
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static uint32_t sweeps_left;
static unsigned client_count;

static struct client *client_of(unsigned i)
{
    unsigned tag = world_client(i)->tag;
    return tag < TAG_COUNT ? world_core.clients[tag] : NULL;
}

static void answer(struct wire *w, const struct packet *p)
{
    if (!w->up || w->out_count == QUEUE || w->line != w->serving_line)
        return;
    w->out[w->out_count] = *p;
    w->out[w->out_count++].id = w->serving;
}
static void answer_ok(struct wire *w)
{
    answer(w, &(struct packet){.type = MSG_OK});
}
static void answer_error(struct wire *w, int rc)
{
    answer(w, &(struct packet){.type = MSG_ERROR, .error = (uint32_t)-rc});
}

static void on_hello(struct wire *w, struct client *client)
{
    if (!client || client->state == CLIENT_DYING) {
        answer_error(w, -ESTALE);
        return;
    }
    client->state = CLIENT_LIVE;
    client->resuming = true;
    w->greeted = 1;
    w->listed = 0;
    answer(w, &(struct packet){.type = MSG_WELCOME, .epoch = world_heap.header->epoch});
}

static void on_resume(struct wire *w, struct client *client, const struct packet *p)
{
    for (uint32_t i = 0; i < p->list_count; i++)
        w->listed |= 1u << p->list[i];
    bool last = (p->flags & RESUME_LAST) != 0;
    if (is_mutated("on_resume"))
        last = true; /* takes back before all is listed */
    if (last) {
        uint64_t cursor = 0;
        client->resume_serial = 0; /* one is like another: no state of its own */
        for (uint32_t page = 0; page < WORLD_PAGES; page++)
            world_core.dspans[page].listed = 0;
        client_list_begin(client);
        for (uint32_t page = 0; page < 32; page++)
            if (w->listed >> page & 1)
                client_list(&world_core, client, &page, 1);
        while (!client_take_back(&world_core, client, &cursor))
            ;
        client->resuming = (p->flags & RESUME_LAST) == 0;
    }
    answer_ok(w);
}

static void take_back_list(struct wire *w, struct client *client, const struct packet *p)
{
    if (p->epoch != world_heap.header->epoch)
        return;
    for (uint32_t i = 0; i < p->list_count; i++)
        if (mcentral_uncache_span(&world_core, client, p->list[i]) < 0)
            ex_violation("client %u gave back span %u, which it had not leased",
                         (unsigned)(w - wires), p->list[i]);
}

static void on_lease(struct wire *w, struct client *client, const struct packet *p)
{
    struct packet grant = {.type = MSG_GRANT, .epoch = world_heap.header->epoch};
    bool fresh;
    take_back_list(w, client, p);
    if (p->epoch != world_heap.header->epoch) {
        answer_error(w, -ESTALE);
        return;
    }
    int count = mcentral_cache_span(&world_core, client, p->span_class, p->pages, grant.list,
                                    WIRE_LIST, &fresh);
    if (count < 0) { /* what daemon/shell/waiting.c tells after a sweep */
        store_relaxed(&world_heap.header->shortages, world_heap.header->shortages + 1);
        answer_error(w, count == -EAGAIN ? -ENOMEM : count);
        return;
    }
    grant.list_count = (uint32_t)count;
    grant.flags = fresh ? GRANT_FRESH : 0;
    answer(w, &grant);
}

static bool at_once(void *unused)
{
    return (void)unused, true;
}

static void on_commit(struct wire *w, struct client *client, const struct packet *p)
{
    for (uint32_t i = 0; i < p->list_count; i++)
        if (client_tx_resolved(&world_core, client, p->list[i]) < 0)
            ex_violation("a transaction was resolved that may not be");
    int rc =
        client_tx_commit(&world_core, client, p->id, p->tag, p->name, p->expected, p->desired);
    if (rc == -ECANCELED)
        return;
    ex_wait(at_once, NULL); /* what it stored is seen by who reads the answer */
    if (rc < 0)
        answer_error(w, rc);
    else
        answer_ok(w);
}

static void on_root(struct wire *w, struct client *client, const struct packet *p)
{
    int rc =
        client_root(&world_core, client, p->id, p->name, ROOT_MODE_CAS, p->expected, p->desired);
    if (rc == -ECANCELED)
        return;
    ex_wait(at_once, NULL); /* it may die before it answers */
    if (rc < 0)
        answer_error(w, rc);
    else
        answer_ok(w);
}

static void on_safepoint(struct wire *w, struct client *client, const struct packet *p)
{
    int rc = client_safepoint(&world_core, client, p->id, p->value);
    if (rc == -ECANCELED)
        return;
    ex_wait(at_once, NULL);
    if (rc < 0)
        answer_error(w, rc);
    else
        answer_ok(w);
}

static void on_extend(struct wire *w, struct client *client, const struct packet *p)
{
    int rc = mcentral_extend(&world_core, client, p->id, p->first, p->pages);
    if (rc == -ECANCELED)
        return;
    ex_wait(at_once, NULL);
    if (rc < 0)
        answer_error(w, rc == -EAGAIN ? -ENOMEM : rc);
    else
        answer_ok(w);
}

static void serve(unsigned i)
{
    struct wire *w = &wires[i];
    struct packet p = w->in[0];
    struct client *client = client_of(i);
    if (!w->in_count || !w->up) /* it has hung up since */
        return;
    pop(w->in, &w->in_count);
    w->serving = p.id;
    w->serving_line = w->line;
    w->busy = 1;
    if (may_give_up) /* the daemon has looked whether it has hung up; now it stands still */
        ex_wait(at_once, NULL);
    if (p.type == MSG_HELLO)
        on_hello(w, client);
    else if (!w->greeted || !client || (client->resuming && p.type != MSG_RESUME))
        answer_error(w, -EPERM);
    else if (p.type == MSG_RESUME)
        on_resume(w, client, &p);
    else if (p.type == MSG_LEASE)
        on_lease(w, client, &p);
    else if (p.type == MSG_RELEASE)
        take_back_list(w, client, &p);
    else if (p.type == MSG_TX_COMMIT)
        on_commit(w, client, &p);
    else if (p.type == MSG_ROOT)
        on_root(w, client, &p);
    else if (p.type == MSG_SAFEPOINT)
        on_safepoint(w, client, &p);
    else if (p.type == MSG_PING)
        answer_ok(w);
    else if (p.type == MSG_TRIMMED)
        ; /* it has trimmed */
    else if (p.type == MSG_EXTEND)
        on_extend(w, client, &p);
    else if (p.type == MSG_TX_TAGS) /* it has those that setup gave it */
        answer_error(w, -EDQUOT);
    else
        ex_violation("a packet of type %u", p.type);
    w->busy = 0;
}

static void see_death(unsigned i)
{
    struct client *client = client_of(i);
    wires[i].gone = 1;
    wires[i].up = 0;
    wires[i].in_count = 0;
    memset(wires[i].in, 0, sizeof wires[i].in);
    if (client)
        client_die(&world_core, client);
}

enum { EVENT_SERVE, EVENT_DEATH = 8, EVENT_TURN = 16, EVENT_SWEEP };

static unsigned events(unsigned *out)
{
    unsigned n = 0;
    for (unsigned i = 1; i <= client_count; i++) {
        if (wires[i].gone)
            continue;
        if (wires[i].in_count && wires[i].up)
            out[n++] = EVENT_SERVE + i;
        if (ex_is_dead(i))
            out[n++] = EVENT_DEATH + i;
    }
    if (world_core.reclaim.running || world_core.sweep_to_go)
        out[n++] = EVENT_TURN;
    if (sweeps_left && !world_core.sweep_to_go)
        out[n++] = EVENT_SWEEP;
    return n;
}

static bool has_events(void *unused)
{
    unsigned list[16];
    (void)unused;
    return events(list) != 0;
}

static void daemon_main(void *unused)
{
    (void)unused;
    for (;;) {
        unsigned list[16];
        ex_wait(has_events, NULL);
        unsigned what = list[ex_choose(events(list))];
        if (what == EVENT_SWEEP) {
            sweeps_left--;
            sweep_cycle(&world_core);
        } else if (what == EVENT_TURN)
            core_turn(&world_core);
        else if (what > EVENT_DEATH)
            see_death(what - EVENT_DEATH);
        else
            serve(what - EVENT_SERVE);
    }
}

static int no_growth(void *context, uint64_t first, uint64_t pages)
{
    return (void)context, (void)first, (void)pages, -ENOMEM;
}
static uint64_t no_allowance(void *context)
{
    return (void)context, 0;
}
static int no_units(void *context, uint64_t first, uint64_t units)
{
    return (void)context, (void)first, (void)units, 0;
}

void daemon_start(void)
{
    static const struct limits none;
    const struct backing backing = {NULL, no_growth, no_allowance, no_growth, no_units};
    char why[256];
    int rc = core_start(&world_core, &world_heap, &backing, &none, 1, why);
    if (rc < 0)
        ex_violation("the daemon does not start: %s", why);
}

/* After a crash: server_start() and connections_find_dead(). */
static void daemon_again(void *unused)
{
    (void)unused;
    daemon_start();
    for (unsigned i = 1; i <= client_count; i++) {
        struct client *client = client_of(i);
        if (client && client->state == CLIENT_DETACHED && ex_is_dead(i)) {
            wires[i].gone = 1;
            client_die(&world_core, client);
        }
    }
    daemon_main(NULL);
}

static int daemon_thread;

void daemon_run(void)
{
    daemon_thread = ex_thread("daemon", DAEMON, daemon_main, NULL, NULL);
}

void daemon_killed(void)
{
    memset(&world_core, 0, sizeof world_core);
    ex_heap_reset(DAEMON);
    for (unsigned i = 1; i <= client_count; i++) { /* what it had answered can still be read */
        wires[i].up = 0;
        wires[i].busy = 0;
        wires[i].lost = 1;
        wires[i].greeted = 0;
        wires[i].in_count = 0;
        memset(wires[i].in, 0, sizeof wires[i].in);
    }
    ex_restart(daemon_thread, daemon_again, NULL);
}

/* ---- for the world --------------------------------------------------------------------------- */

void wire_setup(const struct world_options *o)
{
    memset(wires, 0, sizeof wires);
    client_count = o->clients;
    queue_most = o->narrow ? 1 : QUEUE;
    sweeps_left = o->sweeps;
    give_ups_left = o->give_ups;
    may_give_up = o->give_ups != 0;
    ex_memory(wires, sizeof wires[0] * (o->clients + 1));
    ex_memory(&sweeps_left, sizeof sweeps_left);
    ex_memory(&give_ups_left, sizeof give_ups_left);
    taken_by = NULL;
    taken = NULL;
    ex_memory(&taken_by, sizeof taken_by);
    ex_memory(&taken, sizeof taken);
}

void wire_connect(unsigned client)
{
    wires[client] = (struct wire){.up = 1, .greeted = 1};
}

bool world_was_full(unsigned process)
{
    return wires[process].full;
}

bool world_is_connected(unsigned process)
{
    return wires[process].up;
}
