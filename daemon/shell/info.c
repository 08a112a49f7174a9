/* INFO: what monitors ask for.
 *
 *     request --> waiting --> with a walk --> answered --> unread --> read
 *
 *   1. A request waits until its connection has read the reply before, and its user's and all replies that nobody has read
 *      leave room for another (INFO_UNREAD_*). So a reply is made only when there is room to keep it.
 *   2. It joins a walk for the same rows that has not begun, or begins one of INFO_WALKS. The walks take turns.
 *   3. When the walk is through its rows are made once, and sent to all that joined it, a few a turn.
 *   4. What a connection has not read is known by SIOCOUTQ, looked at when it asks again, and with the clock.
 *
 * In line 1 a request that finds no room is passed over: it holds up neither those behind it nor a walk. */
#include "daemon/shell/info.h"

#include <errno.h>
#include <linux/sockios.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "daemon/shell/connection.h"

enum { REPLIES_TURN = 64 };

struct job {
    struct job *next;
    struct connection *c;
    uint32_t id;
    unsigned what;
    uint64_t cursor;
    struct walk *walk; /* NULL: it waits */
};

struct walk {
    unsigned what;
    uint64_t cursor;
    struct census *census; /* NULL: not in use, or through */
    bool begun;
    void *rows; /* when it is through */
    size_t bytes;
    uint64_t next_cursor;
    bool through;
    uint32_t jobs; /* that have joined it */
};

struct info {
    struct job *first, *last; /* in the order in which they came */
    struct walk walk[INFO_WALKS];
    uint32_t turn; /* whose walk's it is */
    bool may_join; /* a request has come, room or a walk has become free: those that wait are looked at */
    bool stuck;    /* nothing can be done before that */
};

static struct info *info_of(struct server *s)
{
    if (!s->info)
        s->info = calloc(1, sizeof *s->info);
    return s->info;
}

/* ---- what is not read ----------------------------------------------------------------------------------------------------------- */

static void credit(struct connection *c)
{
    struct server *s = c->server;
    c->unread_ticks = 0;
    if (!c->unread)
        return;
    s->unread -= c->unread;
    account_of(&s->core, c->uid)->unread -= c->unread;
    c->unread = 0;
    if (s->info)
        s->info->may_join = true;
}

/* A small reply is the socket's, as any other packet is. */
static void charge(struct connection *c, size_t bytes)
{
    if (bytes <= INFO_SMALL)
        return;
    c->unread += (uint32_t)bytes;
    c->server->unread += bytes;
    account_of(&c->server->core, c->uid)->unread += bytes;
}

/* What is left in the socket may be small packets: a notice that a client reads when it needs the daemon again. */
static bool has_read(const struct connection *c)
{
    int bytes = 0;
    return !c->out_first && (c->fd < 0 || ioctl(c->fd, SIOCOUTQ, &bytes) < 0 || (uint32_t)bytes <= c->unread);
}

static bool has_room(const struct connection *c)
{
    struct server *s = c->server;
    uint64_t most = c->uid == 0 ? INFO_UNREAD_ALL : INFO_UNREAD_ALL - INFO_UNREAD_ROOT;
    return !c->unread && s->unread + INFO_REPLY <= most &&
           (c->uid == 0 || account_of(&s->core, c->uid)->unread + INFO_REPLY <= INFO_UNREAD_USER);
}

void info_tick(struct server *s)
{
    for (struct connection *c = s->connections, *next; c; c = next) {
        next = c->next;
        if (!c->unread && !(c->monitor && c->out_first)) {
            c->unread_ticks = 0;
            continue;
        }
        if (has_read(c))
            credit(c);
        else if (++c->unread_ticks * TICK_MS > s->config->hello_timeout_ms)
            connection_close(c, "it does not read what it asked for");
    }
    server_pump(s);
}

/* ---- requests --------------------------------------------------------------------------------------------------------------------- */

void info_request(struct connection *c, uint32_t id, unsigned what, uint64_t cursor)
{
    if (what == 0 || what >= INFO_END) {
        connection_error(c, id, EINVAL, "INFO %u: there are no such rows", what);
        return;
    }
    struct info *info = info_of(c->server);
    struct job *job = info ? calloc(1, sizeof *job) : NULL;
    if (!job || !account_of(&c->server->core, c->uid)) {
        free(job);
        connection_error(c, id, ENOMEM, "the daemon is out of memory");
        return;
    }
    *job = (struct job){.c = c, .id = id, .what = what, .cursor = cursor};
    if (c->unread && has_read(c))
        credit(c);
    *(info->first ? &info->last->next : &info->first) = job;
    info->last = job;
    info->may_join = true;
    connection_owe(c, 1);
}

static void walk_free(struct info *info, struct walk *w)
{
    info->may_join = true;
    census_free(w->census);
    free(w->rows);
    *w = (struct walk){0};
}

static bool walk_is_free(const struct walk *w) { return !w->census && !w->through; }

/* Takes a job out of the list, behind `before` (NULL: it is the first). */
static void job_free(struct info *info, struct job *before, struct job *job)
{
    *(before ? &before->next : &info->first) = job->next;
    if (info->last == job)
        info->last = before;
    if (job->walk && --job->walk->jobs == 0)
        walk_free(info, job->walk);
    free(job);
}

void info_forget(struct connection *c)
{
    struct info *info = c->server->info;
    struct job *before = NULL, *next;
    for (struct job *job = info ? info->first : NULL; job; job = next) {
        next = job->next;
        if (job->c == c)
            job_free(info, before, job);
        else
            before = job;
    }
    credit(c);
}

void info_free(struct server *s)
{
    while (s->info && s->info->first)
        job_free(s->info, NULL, s->info->first);
    free(s->info);
    s->info = NULL;
}

/* ---- walks ------------------------------------------------------------------------------------------------------------------------ */

/* A walk for these rows that a job may join. */
static struct walk *walk_for(struct server *s, const struct job *job)
{
    struct walk *none = NULL;
    for (int i = 0; i < INFO_WALKS; i++) {
        struct walk *w = &s->info->walk[i];
        if (w->census && !w->begun && w->what == job->what && w->cursor == job->cursor)
            return w;
        if (walk_is_free(w))
            none = w;
    }
    if (none && (none->census = census_new(&s->core, job->what, job->cursor)) != NULL) {
        none->what = job->what;
        none->cursor = job->cursor;
        return none;
    }
    return NULL;
}

/* The oldest first; who finds no room is passed over. True: one has joined. */
static bool join(struct server *s)
{
    bool some = false;
    s->info->may_join = false;
    for (struct job *job = s->info->first; job; job = job->next) {
        if (job->walk || !has_room(job->c))
            continue;
        if ((job->walk = walk_for(s, job)) != NULL)
            job->walk->jobs++;
        some |= job->walk != NULL;
    }
    return some;
}

static void make_rows(struct server *s, struct walk *w)
{
    struct census_outside outside = {.heap_backed = region_held(&s->regions, REGION_HEAP),
                                     .map_backed = region_held(&s->regions, REGION_MAP),
                                     .state_backed = region_held(&s->regions, REGION_STATE),
                                     .name = s->config->name, .socket = s->config->socket,
                                     .pid = (uint64_t)getpid(), .pid_namespace = s->pid_namespace,
                                     .keeper_pid = (uint64_t)s->keeper_pid, .managed = s->managed,
                                     .reloads = s->reloads, .reloads_refused = s->reloads_refused,
                                     .reload_error = config_complaint(), .strays = strays_pages(s) << PAGE_SHIFT};
    if (census_rows(w->census, &outside, &w->rows, &w->bytes, &w->next_cursor) < 0)
        w->rows = NULL;
    census_free(w->census);
    w->census = NULL;
    w->through = true;
}

static void answer(struct job *job)
{
    const struct walk *w = job->walk;
    struct connection *c = job->c;
    connection_owe(c, -1);
    if (!w->rows) {
        connection_error(c, job->id, ENOMEM, "the daemon is out of memory");
        return;
    }
    charge(c, w->bytes);
    connection_reply(c, job->id, MSG(rows, .cursor = w->next_cursor, .body = w->rows, .body_bytes = (uint32_t)w->bytes));
}

/* Some of those whose walk is through. One that has no room any more waits for another walk. */
static bool answers(struct server *s)
{
    struct info *info = s->info;
    struct job *before = NULL, *next;
    uint32_t replies = 0;
    for (struct job *job = info->first; job && replies < REPLIES_TURN && turn_has_room(&s->core); job = next) {
        next = job->next;
        if (!job->walk || !job->walk->through) {
            before = job;
            continue;
        }
        if (!has_room(job->c)) {
            struct walk *w = job->walk;
            job->walk = NULL;
            if (--w->jobs == 0)
                walk_free(info, w);
            before = job;
            continue;
        }
        struct job copy = *job;
        copy.walk->jobs++; /* it outlasts the job */
        job_free(info, before, job);
        answer(&copy); /* a send that fails closes the connection, which has no other job */
        if (--copy.walk->jobs == 0)
            walk_free(info, copy.walk);
        replies++;
    }
    return replies != 0;
}

bool info_turn(struct server *s)
{
    struct info *info = s->info;
    if (!info || !info->first)
        return false;
    bool some = info->may_join && join(s), through = false;
    for (int i = 0; i < INFO_WALKS; i++) { /* one a turn */
        struct walk *w = &info->walk[info->turn++ % INFO_WALKS];
        if (!w->census)
            continue;
        w->begun = true;
        if (census_turn(w->census, TURN_WORDS))
            make_rows(s, w);
        some = true;
        break;
    }
    for (int i = 0; i < INFO_WALKS; i++)
        through |= info->walk[i].through;
    if (through) /* a turn that has no room is no reason to be stuck: nothing would say when there is some */
        some = answers(s) || !turn_has_room(&s->core) || some;
    info->stuck = !some;
    return info_waits(s);
}

bool info_waits(const struct server *s) { return s->info && s->info->first && (s->info->may_join || !s->info->stuck); }
