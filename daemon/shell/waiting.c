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

/* Says that memory is short: in the map, which every client compares at its slow paths, and by a notice to those that have
 * leases, once a second at most. Who owes an answer from the last time sleeps, and is not waited for. */
void trim_ask(struct server *s, const struct connection *except)
{
    struct core *core = &s->core;
    bool first = !s->trim_sent_ns, notices = first || !except || core->now_ns - s->notice_sent_ns > 1000000000ULL;
    s->trim_sent_ns = core->now_ns;
    core->trim_serial = (uint32_t)(core->trim_serial + 1) ? (uint32_t)(core->trim_serial + 1) : 1;
    for (const struct connection *c = s->connections; c; c = c->next)
        if (c->client && c != except && !c->client->read_only) {
            c->client->trim_waited = !owes_trim(c->client);
            c->client->trim_asked = core->trim_serial;
        }
    store_relaxed(&core->heap.header->shortages, (uint32_t)core->trim_serial);
    if (notices) {
        s->notice_sent_ns = core->now_ns;
        s->notice_again = s->notice_at != NULL; /* who has been passed is told when the others have been */
        if (!s->notice_at)
            s->notice_at = s->connections;
        s->notice_except = except;
        connections_notice(s);
    }
}

/* Nothing has changed since another request was refused just now. */
static bool is_refused_already(const struct server *s)
{
    return s->refused_progress == s->core.progress && s->core.now_ns - s->refused_ns < 1000000000ULL;
}

/* Asks the others to trim, unless they were asked since this request came; false: it is too soon. */
static bool ask_to_trim(struct server *s, const struct pending *p)
{
    enum { PAUSE_NS = 50000000 }; /* who hammers at a full heap does not keep the others' caches empty */
    uint64_t now = s->core.now_ns;
    if (s->trim_sent_ns && s->trim_sent_ns >= p->since_ns)
        return true;
    if (s->trim_sent_ns && now - s->trim_sent_ns < PAUSE_NS)
        return false;
    trim_ask(s, p->connection);
    return true;
}

static bool awaits_trim(const struct connection *c) { return c && c->client && c->client->trim_waited && owes_trim(c->client); }

/* All are looked at once a turn, however many requests wait. */
static bool others_trim(struct server *s, const struct pending *p)
{
    struct turn *t = &s->core.turn;
    if (s->core.now_ns - p->asked_ns > s->config->trim_timeout_ms * 1000000ULL)
        return false; /* whoever may have asked since */
    if (s->notice_at)
        return true; /* not all have been asked yet */
    if (!t->trims_counted) {
        t->trims_counted = true;
        for (const struct connection *c = s->connections; c; c = c->next)
            t->trims_awaited += awaits_trim(c);
    }
    return t->trims_awaited > awaits_trim(p->connection);
}

/* Is there something left that may still bring memory? Starts it if so: what runs already, a sweep, what the others give
 * back when they are asked, and a sweep of that. */
static bool still_hope(struct server *s, struct pending *p)
{
    struct core *core = &s->core;
    if (core->reclaim.running || (s->works && core->now_ns - p->since_ns < s->config->trim_timeout_ms * 1000000ULL))
        return true;
    if (p->hope == HOPE_SWEEP) {
        if (!is_swept(core, p))
            return true;
        if (is_refused_already(s))
            return false;
        if (!ask_to_trim(s, p))
            return true;
        p->hope = HOPE_TRIM;
        p->asked_ns = s->trim_sent_ns;
    }
    if (p->hope == HOPE_TRIM) {
        if (others_trim(s, p))
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
    if (rc == -ENOMEM && p->type != MSG_EXTEND && still_hope(s, p))
        return false;
    if (rc == -EDQUOT && p->type != MSG_EXTEND && !is_swept(&s->core, p))
        return false; /* it may have freed what it is charged for */
    if (rc == -ENOMEM && p->type != MSG_EXTEND) {
        s->refused_progress = s->core.progress;
        s->refused_ns = s->core.now_ns;
    }
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
