/* Requests for memory, and those that wait for it.
 *
 * A request for memory that cannot be met at once waits: for memory that is being backed, for a whole sweep, for dead
 * clients' memory, and at last for clients that were asked to trim. Only then it is refused. */
#include "daemon/shell/waiting.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/shell/connection.h"

/* ---- the answers ------------------------------------------------------------------------------------------------------- */

/* Tries a request; -EAGAIN: not now. Otherwise it has been answered, but for the errors. */
static int try_memory(struct connection *c, const struct pending *p)
{
    struct core *core = &c->server->core;
    uint32_t spans[LEASE_SPANS_MAX];
    bool fresh = false;
    int rc;
    if (p->type == MSG_LEASE)
        rc = mcentral_cache_span(core, c->client, p->span_class, p->pages, spans, LEASE_SPANS_MAX, &fresh);
    else if (p->type == MSG_LARGE)
        rc = mcentral_cache_large(core, c->client, p->span_class, p->pages, p->align, spans, &fresh);
    else
        rc = mcentral_extend(core, c->client, p->id, p->first, p->pages);
    if (rc < 0)
        return rc;
    if (p->type == MSG_EXTEND)
        connection_ok(c, p->id, p->pages);
    else
        connection_reply(c, p->id, MSG(grant, .epoch = core->heap.header->epoch, .span_class = p->span_class,
                                       .flags = fresh ? GRANT_FRESH : 0, .list = spans, .list_count = (uint32_t)rc));
    return 0;
}

/* Is it the heap's own space that is lacking? Else the machine has no memory for it. */
static bool is_full(const struct core *core, const struct pending *p, uint32_t need)
{
    const struct mheap *m = &core->mheap;
    struct span_info span;
    if (p->type != MSG_EXTEND)
        return pagealloc_find(&m->free, need, p->type == MSG_LARGE && p->align ? p->align : 1) == PAGEALLOC_NONE ||
               !m->units.free_count;
    if (!span_at(&core->heap, p->first, &span) || p->pages <= span.page_count ||
        p->pages > core->heap.page_count - p->first)
        return true;
    return !pagealloc_all_free(&m->free, p->first + span.page_count, p->pages - span.page_count);
}

static void no_memory(struct connection *c, const struct pending *p)
{
    const struct core *core = &c->server->core;
    const struct mheap *m = &core->mheap;
    const char *dir = c->server->regions.directory;
    uint32_t need = p->type == MSG_LEASE ? class_table[p->span_class].pages : p->pages;
    const struct mcentral *central = &core->central[p->span_class];
    uint64_t partly = p->type == MSG_LEASE ? central->nonempty_count + central->returned_count : 0; /* its user has none */
    char others[96] = "";
    if (partly)
        snprintf(others, sizeof others, "; what is free in %llu spans of this size is other users'", (unsigned long long)partly);
    if (is_full(core, p, need))
        connection_error(c, p->id, ENOMEM, "the heap is full: %llu of %llu pages in spans, no run of %u is to be had%s",
                         (unsigned long long)m->used_pages, (unsigned long long)core->heap.page_count, need, others);
    else
        connection_error(c, p->id, ENOMEM, "the machine has no memory: %llu MiB of the heap are free, but the machine and its "
                         "cgroups%s%s would give %llu MiB beyond memory-reserve",
                         (unsigned long long)(m->free.free_count >> (20 - PAGE_SHIFT)), dir ? ", and the file system of " : "",
                         dir ? dir : "",
                         (unsigned long long)(m->backing.allowance(m->backing.context) >> (20 - PAGE_SHIFT)));
}

static void memory_error(struct connection *c, const struct pending *p, int rc)
{
    struct core *core = &c->server->core;
    core->refused_full += rc == -ENOMEM;
    core->refused_limit += rc == -EDQUOT;
    if (rc == -EDQUOT)
        connection_limit(c, p->id);
    else if (rc == -ENOMEM)
        no_memory(c, p);
    else if (rc == -EINVAL)
        connection_error(c, p->id, EINVAL, "span class %u is not of the kind that %s grants", p->span_class, msg_name(p->type));
    else
        connection_error(c, p->id, rc, "%s", strerror(-rc));
}

/* A whole cycle from now on: of one that is under way, what it has passed is not looked at again. */
static void want_sweep(const struct core *core, struct pending *p)
{
    p->swept_at = core->sweep_serial + 1 + (core->sweep_to_go != 0);
}

static bool is_swept(struct core *core, const struct pending *p)
{
    if (core->sweep_serial < p->swept_at && !core->sweep_to_go)
        sweep_cycle(core);
    return core->sweep_serial >= p->swept_at || !core->sweep_to_go; /* nothing is there to be swept */
}

static bool owes_trim(const struct client *client) { return (int32_t)(client->trim_asked - client->trim_answered) > 0; }

/* A client that is asked has an answer to give; who owes one from the last time sleeps, and is not waited for. */
static void ask_client(struct core *core, struct client *client)
{
    client->trim_waited = !owes_trim(client);
    client->trim_asked = core->trim_serial;
}

static void next_shortage(struct core *core)
{
    core->trim_serial = (uint32_t)(core->trim_serial + 1) ? (uint32_t)(core->trim_serial + 1) : 1;
    core->turn.trims_counted = false;
}

/* Says that memory is short: in the map, which every client compares at its slow paths, and by a notice to those that have
 * leases, once a second at most. */
void trim_ask(struct server *s, const struct connection *except)
{
    struct core *core = &s->core;
    bool first = !s->trim_sent_ns, notices = first || !except || core->now_ns - s->notice_sent_ns > 1000000000ULL;
    s->trim_sent_ns = core->now_ns;
    next_shortage(core);
    for (const struct connection *c = s->connections; c; c = c->next)
        if (c->client && c != except && !c->client->read_only)
            ask_client(core, c->client);
    store_relaxed(&core->heap.header->shortages, (uint32_t)core->trim_serial);
    for (int i = 0; i < USER_SHORTAGES; i++) /* so that none is left behind by half of all serials */
        store_relaxed(&core->heap.header->user_shortages[i], (uint32_t)core->trim_serial);
    if (notices) {
        s->notice_sent_ns = core->now_ns;
        s->notice_again = s->notice_at != NULL; /* who has been passed is told when the others have been */
        if (!s->notice_at)
            s->notice_at = s->connections;
        s->notice_except = except;
        connections_notice(s);
    }
}

/* The same where a limit is met: it is told to the user's own clients, and to those of users whose numbers fall together. */
static void trim_ask_user(struct server *s, const struct connection *except)
{
    struct core *core = &s->core;
    uint32_t slot = except->client->uid % USER_SHORTAGES;
    except->client->account->trim_sent_ns = core->now_ns;
    next_shortage(core);
    for (const struct connection *c = s->connections; c; c = c->next)
        if (c->client && c != except && !c->client->read_only && c->client->uid % USER_SHORTAGES == slot)
            ask_client(core, c->client);
    store_relaxed(&core->heap.header->user_shortages[slot], (uint32_t)core->trim_serial);
}

static bool awaits_trim(const struct connection *c) { return c && c->client && c->client->trim_waited && owes_trim(c->client); }
static bool can_trim(const struct connection *c) { return c && c->client && !c->client->read_only && !owes_trim(c->client); }

/* All are looked at once a turn, and when they have been asked, however many requests wait. */
static void count_trims(struct server *s)
{
    struct turn *t = &s->core.turn;
    if (t->trims_counted)
        return;
    t->trims_counted = true;
    t->trimmers = (struct trimmers){0};
    for (struct uid_account *account = s->core.accounts; account; account = account->hh.next)
        account->trimmers = t->trimmers;
    for (const struct connection *c = s->connections; c; c = c->next) {
        if (!c->client)
            continue;
        struct trimmers *own = &c->client->account->trimmers;
        t->trimmers.awaited += awaits_trim(c), own->awaited += awaits_trim(c);
        t->trimmers.able += can_trim(c), own->able += can_trim(c);
    }
}

static struct uid_account *account_at(const struct pending *p) { return p->connection->client->account; }

/* Nothing has changed since another request was refused just now; limit: one of this user's, for a limit. */
static bool is_refused_already(const struct server *s, const struct pending *p, bool limit)
{
    uint64_t progress = limit ? account_at(p)->refused_progress : s->refused_progress;
    uint64_t ns = limit ? account_at(p)->refused_ns : s->refused_ns;
    return ns && progress == s->core.progress && s->core.now_ns - ns < 1000000000ULL;
}

static void note_refused(struct server *s, const struct pending *p, bool limit)
{
    *(limit ? &account_at(p)->refused_progress : &s->refused_progress) = s->core.progress;
    *(limit ? &account_at(p)->refused_ns : &s->refused_ns) = s->core.now_ns;
}

/* Asks the others to trim, unless they were asked since this request came, or there are none; false: it is too soon. */
static bool ask_to_trim(struct server *s, struct pending *p, bool limit)
{
    enum { PAUSE_NS = 50000000 }; /* who hammers at a full heap does not keep the others' caches empty */
    uint64_t now = s->core.now_ns, own = limit ? account_at(p)->trim_sent_ns : 0;
    uint64_t sent = own > s->trim_sent_ns ? own : s->trim_sent_ns;
    count_trims(s);
    if ((limit ? account_at(p)->trimmers.able : s->core.turn.trimmers.able) <= can_trim(p->connection))
        return p->asked_ns = sent, true; /* nobody, or who sleeps and is asked already */
    if (!sent || (sent < p->since_ns && now - sent >= PAUSE_NS)) {
        limit ? trim_ask_user(s, p->connection) : trim_ask(s, p->connection);
        sent = now;
    }
    p->asked_ns = sent;
    return sent >= p->since_ns;
}

static bool others_trim(struct server *s, const struct pending *p, bool limit)
{
    if (s->core.now_ns - p->asked_ns > s->config->trim_timeout_ms * 1000000ULL)
        return false; /* whoever may have asked since */
    if (s->notice_at)
        return true; /* not all have been asked yet */
    count_trims(s);
    return (limit ? account_at(p)->trimmers.awaited : s->core.turn.trimmers.awaited) > awaits_trim(p->connection);
}

/* What runs already and may bring memory; or, to a user at a limit, what it is charged for. */
static bool is_under_way(const struct server *s, const struct pending *p, bool limit)
{
    const struct core *core = &s->core;
    if (limit)
        return core->reclaim.running && account_at(p)->dying;
    return core->reclaim.running || (s->works && core->now_ns - p->since_ns < s->config->trim_timeout_ms * 1000000ULL);
}

/* Is there something left that may still bring memory? Starts it if so: what runs already, a sweep, what the others give
 * back when they are asked, and a sweep of that. limit: it is a limit that is met, and the others are the user's. */
static bool still_hope(struct server *s, struct pending *p, bool limit)
{
    struct core *core = &s->core;
    if (is_under_way(s, p, limit))
        return true;
    if (p->hope == HOPE_SWEEP) {
        if (!is_swept(core, p))
            return true;
        if (is_refused_already(s, p, limit))
            return false;
        if (!ask_to_trim(s, p, limit))
            return true;
        p->hope = HOPE_TRIM;
    }
    if (p->hope == HOPE_TRIM) {
        if (others_trim(s, p, limit))
            return true;
        want_sweep(core, p);
        p->hope = HOPE_SWEEP_AGAIN;
    }
    return !is_swept(core, p);
}

/* Tries a waiting request: true when it is done with. */
static bool pending_try(struct server *s, struct pending *p)
{
    struct connection *c = p->connection;
    if (!c || c->closing || !c->client || (c->owed && connection_hung_up(c)))
        return true;
    int rc = try_memory(c, p);
    if (rc == 0)
        return true;
    if (rc == -EAGAIN)
        return false;
    if (rc == -ECANCELED) /* given up: its answer would be nobody's */
        return true;
    if (p->ahead) {
        connection_error(c, p->id, rc, "not to be had ahead of need");
        return true;
    }
    bool short_of = (rc == -ENOMEM || rc == -EDQUOT) && p->type != MSG_EXTEND;
    if (short_of && still_hope(s, p, rc == -EDQUOT))
        return false; /* what is charged may have been freed, too */
    if (short_of)
        note_refused(s, p, rc == -EDQUOT);
    memory_error(c, p, rc);
    return true;
}

/* Tries a request, and lets it wait where it must. */
static void ask(struct server *s, struct pending p)
{
    want_sweep(&s->core, &p);
    if (pending_try(s, &p))
        return;
    struct pending *waiting = malloc(sizeof *waiting);
    if (!waiting) {
        mcentral_give_up(&s->core, p.connection->client);
        connection_error(p.connection, p.id, ENOMEM, "the daemon is out of memory");
        return;
    }
    *waiting = p;
    connection_owe(p.connection, 1);
    s->pending_count++;
    *(s->pending_first ? &s->pending_last->next : &s->pending_first) = waiting;
    s->pending_last = waiting;
}

void wait_lease(struct connection *c, uint32_t id, const struct msg_lease *m)
{
    ask(c->server, (struct pending){.connection = c, .type = MSG_LEASE, .id = id, .span_class = m->span_class, .pages = m->pages,
                                    .since_ns = c->server->core.now_ns, .ahead = m->flags & LEASE_AHEAD});
}

void wait_large(struct connection *c, uint32_t id, const struct msg_large *m)
{
    if (m->align & (m->align - 1))
        connection_error(c, id, EINVAL, "LARGE: align %u is not a power of two", m->align);
    else
        ask(c->server, (struct pending){.connection = c, .type = MSG_LARGE, .id = id, .span_class = m->span_class,
                                        .pages = m->pages, .align = m->align, .since_ns = c->server->core.now_ns});
}

void wait_extend(struct connection *c, uint32_t id, const struct msg_extend *m)
{
    ask(c->server, (struct pending){.connection = c, .type = MSG_EXTEND, .id = id, .pages = m->pages, .first = m->first,
                                    .since_ns = c->server->core.now_ns});
}

void connections_retry(struct server *s)
{
    uint64_t progress = s->core.progress;
    bool all = true;
    for (uint32_t n = s->pending_count; n; n--) {
        struct pending *p = s->pending_first;
        if (s->core.turn.retries >= TURN_RETRIES || !turn_has_room(&s->core)) {
            all = false;
            break;
        }
        s->core.turn.retries++;
        s->pending_first = p->next;
        if (!p->next)
            s->pending_last = NULL;
        p->next = NULL;
        if (pending_try(s, p)) {
            s->pending_count--;
            if (p->connection)
                connection_owe(p->connection, -1);
            free(p);
        } else { /* once around, they stand in the order in which they came */
            *(s->pending_first ? &s->pending_last->next : &s->pending_first) = p;
            s->pending_last = p;
        }
    }
    s->pending_progress = all ? progress : progress - 1;
}

/* Some of those that are to be told to trim. */
void connections_notice(struct server *s)
{
    for (uint32_t told = 0; s->notice_at && told < TURN_NOTICES && turn_has_room(&s->core);) {
        struct connection *c = s->notice_at;
        s->notice_at = c->next;
        if (!c->client || c == s->notice_except || c->out_first || !c->client->leased_spans)
            continue;
        connection_reply(c, 0, MSG(notice, .what = NOTICE_TRIM, .value = s->core.trim_serial));
        told++;
    }
    if (!s->notice_at && s->notice_again) {
        s->notice_at = s->connections;
        s->notice_again = false;
    }
}
