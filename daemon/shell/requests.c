/* What each message asks for, and the requests that wait for memory.
 *
 * A request for memory that cannot be met at once waits: for memory that is being backed, for a whole sweep, for dead
 * clients' memory, and at last for clients that were asked to trim. Only then it is refused. */
#include "daemon/shell/connection.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "daemon/shell/collector.h"
#include "daemon/shell/info.h"
#include "daemon/os/log.h"
#include "shm/assert.h"

static struct msg in, out; /* large; one packet is handled at a time */

static void reply_ok(struct connection *c, uint32_t id, uint64_t value)
{
    out.type = MSG_OK;
    out.id = id;
    out.value = value;
    connection_send(c, &out, NULL, 0);
}

static uint32_t real_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint32_t)ts.tv_sec;
}

/* The reply to an -EDQUOT: which limit it was, and by how much. */
static void limit_error(struct connection *c, uint32_t id)
{
    const struct refusal *r = &c->server->core.refusal;
    connection_error(c, id, EDQUOT, "%s is reached: %llu of %llu in use, %llu more wanted", r->limit,
                     (unsigned long long)r->used, (unsigned long long)r->most, (unsigned long long)r->more);
}

/* ---- HELLO, RESUME, BYE -------------------------------------------------------------------------------------------------------- */

static void welcome_send(struct connection *c, unsigned tag, unsigned flags, const int *fds, int count)
{
    const struct map_header *header = c->server->core.heap.header;
    out.type = MSG_WELCOME;
    out.id = in.id;
    out.version = PROTO_VERSION;
    out.tag = tag;
    out.epoch = header->epoch;
    out.heap_id = header->heap_id;
    out.heap_id_bytes = 16;
    out.base = header->base;
    out.heap_bytes = header->heap_max;
    out.map_bytes = header->map_bytes;
    out.state_bytes = header->state_bytes;
    out.mcache_bytes = 0; /* an mcache is its client's private memory */
    out.flags = flags;
    connection_send(c, &out, fds, count);
}

static void welcome(struct connection *c, unsigned flags)
{
    struct server *s = c->server;
    bool read_only = c->client->read_only, fresh = !(flags & WELCOME_RESUMED);
    int fds[REGION_COUNT], count = 0;
    for (int i = 0; fresh && i < REGION_COUNT; i++)
        fds[count++] = read_only || i == REGION_MAP ? s->regions.read_only_fd[i] : s->regions.fd[i];
    welcome_send(c, c->client->tag, flags, fds, count);
}

/* A client that comes back: the same process, its tag still its own. */
static void hello_resume(struct connection *c)
{
    struct server *s = c->server;
    struct client *client = s->core.clients[in.tag];
    struct tag *t = &s->core.heap.tags[in.tag];
    if (in.heap_id_bytes != 16 || memcmp(in.heap_id, s->core.heap.header->heap_id, 16) != 0) {
        connection_error(c, in.id, ESTALE, "the daemon serves another heap now");
        return;
    }
    if (!client || client->state == CLIENT_DYING || !peer_is_client(c, client)) {
        connection_error(c, in.id, ESTALE, "tag %u is not this process's any more", in.tag);
        return;
    }
    if (client->connection) {
        struct connection *old = client->connection;
        mcentral_give_up(&s->core, client);
        old->client = NULL;
        connection_close(old, NULL);
    }
    if (!client->watch && connection_watch(c, client) < 0) {
        connection_error(c, in.id, ENOMEM, "out of memory");
        return;
    }
    if (!client->pid) /* its pid was not seen, or another namespace's */
        t->pid = client->pid = c->pid;
    if (client->read_only) /* it declares anew what it is at: what it gave up meanwhile counts no more */
        client_gc_mode(&s->core, client, GC_RUNS);
    client->state = CLIENT_LIVE;
    client->resuming = true;
    client_list_begin(client);
    client->connection = c;
    c->client = client;
    c->greeted = true;
    log_event(LOG_LEVEL_INFO, "resume", "tag=%u pid=%u uid=%u", client->tag, client->pid, client->uid);
    welcome(c, WELCOME_RESUMED);
}

/* The memory of a program that another one has replaced by exec is gone, and so is what it held, though the process and its
 * pidfd live on. */
static void bury_replaced(struct connection *c, const struct tag *identity)
{
    struct client *client = NULL;
    while ((client = client_replaced(&c->server->core, identity, client)) != NULL) {
        struct connection *old = client->connection;
        log_event(LOG_LEVEL_INFO, "death", "tag=%u pid=%u uid=%u leased_pages=%llu by=exec", client->tag, client->pid,
                  client->uid, (unsigned long long)client->leased_pages);
        connection_unwatch(client);
        client->connection = NULL;
        if (old)
            old->client = NULL;
        client_die(&c->server->core, client);
        if (old)
            connection_close(old, NULL);
    }
}

static void on_hello(struct connection *c)
{
    struct server *s = c->server;
    if (c->greeted && !c->looked) {
        connection_close(c, "a second HELLO");
        return;
    }
    if (in.version < PROTO_VERSION_MIN || in.version_min > PROTO_VERSION || in.layout != LAYOUT_VERSION) {
        connection_error(c, in.id, EPROTONOSUPPORT,
                         "the client speaks protocol %u..%u, layout %u; this daemon %d..%d, layout %d: use the library "
                         "that came with it", in.version_min, in.version, in.layout, PROTO_VERSION_MIN, PROTO_VERSION,
                         LAYOUT_VERSION);
        return;
    }
    c->greeted = c->monitor = (in.flags & (HELLO_MONITOR | HELLO_LOOK)) != 0;
    c->looked = (in.flags & HELLO_LOOK) != 0;
    if (c->looked) {
        welcome_send(c, 0, 0, NULL, 0);
        return;
    }
    if (c->monitor) {
        reply_ok(c, in.id, 0);
        return;
    }
    struct tag identity = {.pid = c->pid, .uid = c->uid, .start_time = c->start_time, .inode = c->inode,
                           .image = in.image, .since_s = real_s(), .read_only = (in.flags & HELLO_READ_ONLY) != 0};
    bury_replaced(c, &identity);
    if (in.tag) {
        hello_resume(c);
        return;
    }
    peer_command(c->pid, identity.command);
    int rc = client_attach(&s->core, &identity, &c->client);
    if (rc < 0) {
        if (rc == -EDQUOT)
            limit_error(c, in.id);
        else
            connection_error(c, in.id, rc, "no tag is free for a client of uid %u", c->uid);
        return;
    }
    if (connection_watch(c, c->client) < 0) {
        client_die(&s->core, c->client);
        c->client = NULL;
        connection_error(c, in.id, ENOMEM, "out of memory");
        return;
    }
    c->client->connection = c;
    c->greeted = true;
    uint16_t tag = c->client->tag;
    welcome(c, 0);
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
    reply_ok(c, c->resume_id, 0);
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
static bool list_tags(struct connection *c)
{
    if (!c->listed_tags)
        c->listed_tags = calloc(1, TAG_COUNT / 8);
    for (uint32_t i = 0; c->listed_tags && i < in.list_count; i++)
        if (in.list[i] < TAG_COUNT)
            c->listed_tags[in.list[i] / 8] |= (uint8_t)(1u << (in.list[i] % 8));
    return c->listed_tags != NULL;
}

static void on_resume(struct connection *c)
{
    if (!c->client->resuming) {
        connection_close(c, "RESUME without need");
        return;
    }
    if (!(in.flags & RESUME_TAGS))
        client_list(&c->server->core, c->client, in.list, in.list_count);
    else if (!list_tags(c)) {
        connection_error(c, in.id, ENOMEM, "the daemon is out of memory");
        return;
    }
    if (!(in.flags & RESUME_LAST)) {
        reply_ok(c, in.id, 0);
        return;
    }
    c->resume_id = in.id;
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

static void on_bye(struct connection *c)
{
    struct client *client = c->client;
    log_event(LOG_LEVEL_INFO, "bye", "tag=%u pid=%u uid=%u", client->tag, client->pid, client->uid);
    connection_leave(c);
    reply_ok(c, in.id, 0);
    connection_close(c, NULL);
}

/* ---- memory ---------------------------------------------------------------------------------------------------------------------- */

static void reply_grant(struct connection *c, uint32_t id, uint32_t span_class, int count, bool fresh)
{
    out.type = MSG_GRANT;
    out.id = id;
    out.epoch = c->server->core.heap.header->epoch;
    out.span_class = span_class;
    out.flags = fresh ? GRANT_FRESH : 0;
    out.list_count = (uint32_t)count;
    connection_send(c, &out, NULL, 0);
}

/* Tries a request; -EAGAIN: not now. Otherwise it has been answered, but for the errors. */
static int try_memory(struct connection *c, const struct pending *p)
{
    struct core *core = &c->server->core;
    bool fresh = false;
    int rc;
    if (p->type == MSG_LEASE)
        rc = mcentral_cache_span(core, c->client, p->span_class, p->pages, out.list, LEASE_SPANS_MAX, &fresh);
    else if (p->type == MSG_LARGE)
        rc = mcentral_cache_large(core, c->client, p->span_class, p->pages, p->align, out.list, &fresh);
    else
        rc = mcentral_extend(core, c->client, p->id, p->first, p->pages);
    if (rc < 0)
        return rc;
    if (p->type == MSG_EXTEND)
        reply_ok(c, p->id, p->pages);
    else
        reply_grant(c, p->id, p->span_class, rc, fresh);
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
        limit_error(c, p->id);
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
static void tell_to_trim(struct server *s, const struct connection *except)
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
    tell_to_trim(s, p->connection);
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

static void on_memory(struct connection *c)
{
    struct server *s = c->server;
    struct pending p = {.connection = c, .type = in.type, .id = in.id, .span_class = in.span_class, .pages = in.pages,
                        .align = in.align, .first = in.first, .since_ns = s->core.now_ns,
                        .ahead = in.type == MSG_LEASE && in.flags & LEASE_AHEAD};
    want_sweep(&s->core, &p);
    if (in.type == MSG_LARGE && (in.align & (in.align - 1))) {
        connection_error(c, in.id, EINVAL, "LARGE: align %u is not a power of two", in.align);
        return;
    }
    if (pending_try(s, &p))
        return;
    struct pending *waiting = malloc(sizeof *waiting);
    if (!waiting) {
        mcentral_give_up(&s->core, c->client);
        connection_error(c, in.id, ENOMEM, "the daemon is out of memory");
        return;
    }
    *waiting = p;
    connection_owe(c, 1);
    s->pending_count++;
    *(s->pending_first ? &s->pending_last->next : &s->pending_first) = waiting;
    s->pending_last = waiting;
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

static void take_back_list(struct connection *c)
{
    if (in.epoch != c->server->core.heap.header->epoch)
        return; /* leases of an older daemon were settled by RESUME */
    if (in.list_count > RETURN_SPANS_MAX) {
        connection_close(c, "it gave back more spans than a packet may");
        return;
    }
    uint32_t count = in.list_count < RETURN_SPANS_TURN ? in.list_count : RETURN_SPANS_TURN;
    for (uint32_t i = 0; i < count; i++)
        if (mcentral_uncache_span(&c->server->core, c->client, in.list[i]) < 0) {
            connection_close(c, "it gave back a span that it had not leased");
            return;
        }
    memmove(in.list, in.list + count, (in.list_count - count) * sizeof *in.list);
    in.list_count -= count;
}

/* What a turn has no room for is a packet of its own, the same but for what it has given back. True: it stands in line. */
static bool is_split(struct connection *c)
{
    static uint8_t rest[MSG_MAX];
    if (in.list_count == 0 || in.epoch != c->server->core.heap.header->epoch)
        return false;
    int bytes = msg_encode(&in, rest, sizeof rest);
    if (bytes < 0)
        connection_close(c, "a packet that could not be split");
    else
        connection_rest(c, rest, (size_t)bytes);
    return true;
}

/* Some of those that are to be told to trim. */
void connections_notice(struct server *s)
{
    for (uint32_t told = 0; s->notice_at && told < TURN_NOTICES && turn_has_room(&s->core);) {
        struct connection *c = s->notice_at;
        s->notice_at = c->next;
        if (!c->client || c == s->notice_except || c->out_first || !c->client->leased_spans)
            continue;
        out.type = MSG_NOTICE;
        out.id = 0;
        out.what = NOTICE_TRIM;
        out.value = s->core.trim_serial;
        connection_send(c, &out, NULL, 0);
        told++;
    }
    if (!s->notice_at && s->notice_again) {
        s->notice_at = s->connections;
        s->notice_again = false;
    }
}

/* ---- the rest ---------------------------------------------------------------------------------------------------------------------- */

static void on_root(struct connection *c)
{
    int rc = client_root(&c->server->core, c->client, in.id, in.name, in.mode, in.expected, in.desired);
    if (rc == -EDQUOT)
        limit_error(c, in.id);
    else if (rc < 0 && rc != -ECANCELED)
        connection_error(c, in.id, rc, "root %s: %s", in.name, strerror(-rc));
    else if (rc == 0)
        reply_ok(c, in.id, 0);
}

static void on_commit(struct connection *c)
{
    struct core *core = &c->server->core;
    for (uint32_t i = 0; i < in.list_count; i++)
        if (client_tx_resolved(core, c->client, in.list[i]) < 0) {
            connection_close(c, "it resolved a transaction that is not its own");
            return;
        }
    int rc = client_tx_commit(core, c->client, in.id, in.tag, in.name, in.expected, in.desired);
    if (rc == -EDQUOT)
        limit_error(c, in.id);
    else if (rc < 0 && rc != -ECANCELED)
        connection_error(c, in.id, rc, "commit of transaction %u with root \"%s\": %s", in.tag, in.name, strerror(-rc));
    else if (rc == 0)
        reply_ok(c, in.id, 0);
}

static void on_tx_tags(struct connection *c)
{
    int count = client_tx_tags(&c->server->core, c->client, in.count, out.list);
    if (count == -EDQUOT) {
        limit_error(c, in.id);
        return;
    }
    if (count < 0) {
        connection_error(c, in.id, count, "no tag is free for a transaction");
        return;
    }
    out.type = MSG_TAGS;
    out.id = in.id;
    out.list_count = (uint32_t)count;
    connection_send(c, &out, NULL, 0);
}

static void on_trim(struct connection *c)
{
    struct server *s = c->server;
    uint32_t id = in.id;
    if (s->core.turn.trims++ == 0) /* all are told once a turn, however many ask for it */
        tell_to_trim(s, NULL);
    server_trim(s);
    reply_ok(c, id, 0);
}

static void on_mode(struct connection *c)
{
    if (in.mode == CLIENT_MODE_TRIMMED && in.value == 0)
        server_trim(c->server);
    else if (in.mode == CLIENT_MODE_TRIMMED)
        c->client->trim_answered = in.value, c->server->core.progress++;
    else if (in.mode == CLIENT_MODE_SAFEPOINT || in.mode == CLIENT_MODE_PINS) {
        int rc = client_mode(&c->server->core, c->client, in.id, in.mode, in.value);
        if (rc == -ECANCELED)
            return;
        if (rc < 0) {
            connection_error(c, in.id, rc, "MODE %u %llu is not to be", in.mode, (unsigned long long)in.value);
            return;
        }
    }
    if (in.id)
        reply_ok(c, in.id, 0);
}

/* The message is one that who says it may say now; else it is told. */
static bool may_ask(struct connection *c)
{
    const struct client *client = c->client;
    if (!c->greeted && in.type != MSG_HELLO) {
        connection_error(c, in.id, EPROTO, "%s before HELLO", msg_name(in.type));
        connection_close(c, "no HELLO first");
        return false;
    }
    bool for_all = in.type == MSG_HELLO || in.type == MSG_INFO || in.type == MSG_TRIM || in.type == MSG_GC;
    bool for_readers = in.type == MSG_BYE || in.type == MSG_RESUME ||
                       (in.type == MSG_MODE && in.mode == CLIENT_MODE_SAFEPOINT && in.value != GC_PINS);
    if (for_all || (client && (!client->read_only || for_readers) && (!client->resuming || in.type == MSG_RESUME)))
        return true;
    connection_error(c, in.id, EPERM, "%s is not for a %s", msg_name(in.type),
                     !client ? "monitor" : client->resuming ? "client that has not resumed" : "reader");
    return false;
}

void request_handle(struct connection *c, const uint8_t *packet, size_t bytes)
{
    char why[MSG_TEXT_MAX + 1] = "";
    in.type = in.id = 0;
    if (msg_decode(&in, packet, bytes, why) < 0 || !msg_from_client(in.type)) {
        if (!why[0])
            snprintf(why, sizeof why, "%s is not for a client to send", msg_name(in.type));
        connection_error(c, in.id, EPROTO, "%s", why);
        connection_close(c, why);
        return;
    }
    /* Who hangs up has given up what was not answered. A look costs: refills go without, as what they grant and are given is
     * settled by the next RESUME, whenever they are done. */
    bool by_resume = in.type == MSG_LEASE || in.type == MSG_LARGE || in.type == MSG_RELEASE || in.type == MSG_TX_TAGS;
    if (in.type != MSG_BYE && (c->ended || (!by_resume && connection_hung_up(c))))
        return;
    c->welcomed = false;
    if (!may_ask(c))
        return;
    if (c->client)
        c->client->heard_ns = c->server->core.now_ns;
    if (collector_defers(c, &in, packet, bytes))
        return;
    switch (in.type) {
    case MSG_HELLO: on_hello(c); break;
    case MSG_RESUME: on_resume(c); break;
    case MSG_LEASE:
    case MSG_LARGE:
        take_back_list(c);
        if (c->closing || is_split(c))
            break;
        if (in.epoch != c->server->core.heap.header->epoch)
            connection_error(c, in.id, ESTALE, "%s of epoch %u", msg_name(in.type), in.epoch);
        else
            on_memory(c);
        break;
    case MSG_EXTEND: on_memory(c); break;
    case MSG_RELEASE:
        take_back_list(c);
        if (!c->closing)
            is_split(c);
        break;
    case MSG_TX_TAGS: on_tx_tags(c); break;
    case MSG_TX_COMMIT: on_commit(c); break;
    case MSG_ROOT: on_root(c); break;
    case MSG_INFO: info_request(c, in.id, in.what, in.cursor); break;
    case MSG_TRIM: on_trim(c); break;
    case MSG_MODE: on_mode(c); break;
    case MSG_GC: collector_request(c, in.id, in.flags, in.cursor); break;
    case MSG_BYE: on_bye(c); break;
    default: connection_error(c, in.id, EOPNOTSUPP, "%s is not served", msg_name(in.type)); break;
    }
}
