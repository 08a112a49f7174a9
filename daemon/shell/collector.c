#include "daemon/shell/collector.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/shell/connection.h"
#include "daemon/passes/gc.h"
#include "daemon/passes/gc_rows.h"
#include "daemon/os/sigbus.h"
#include "daemon/os/log.h"
#include "daemon/os/sched.h"
#include "shm/assert.h"

/* settling: the flag is up, and some client still turns words of a commit */
enum collector_state { COLLECTOR_IDLE, COLLECTOR_WAITING, COLLECTOR_SETTLING, COLLECTOR_MARKING, COLLECTOR_SWEEPING };

enum {
    SETTLE_MS = 1000, /* a turning is 1024 words at a time: who is longer at it stands still */
    LOOK_MS = 1,      /* at it, and at the snapshot's end */
};

struct collector {
    enum collector_state state;
    struct connection *requester; /* NULL: it has gone */
    uint32_t id;
    bool dry_run;
    struct gc *gc;
    void *objects;                /* the heap region, read-only, while a collection runs */
    uv_thread_t threads[GC_WORKERS_MAX];
    uint32_t thread_count;
    uint32_t running;             /* sync: atomic */
    int rc;                       /* of the workers, the worst. sync: atomic */
    uv_async_t marked;
    uv_timer_t look;              /* while settling and marking */
    uint32_t worker_count;
    unsigned turner;              /* tag of the client that stood still in a turning; 0: none */
    uint64_t since_ns, marked_ns;
    struct gc_rows rows;          /* of the last one, for whoever reads them in portions */
    uint32_t serial;
};

/* ---- the answer ------------------------------------------------------------------------------------------------------------------- */

static void send_rows(struct connection *c, uint32_t id, const struct collector *k, uint32_t body)
{
    connection_reply(c, id, MSG(rows, .cursor = body + 1 < k->rows.count ? (uint64_t)k->serial << 32 | (body + 1) : 0,
                                .body = (const uint8_t *)k->rows.bodies[body].data,
                                .body_bytes = (uint32_t)k->rows.bodies[body].size));
}

static void unmap_objects(struct server *s)
{
    sigbus_remove(s->collector->objects);
    munmap(s->collector->objects, s->core.heap.heap_bytes);
}

static void answer(struct server *s, const char *result)
{
    struct collector *k = s->collector;
    const struct gc_report *report = k->gc ? gc_report(k->gc) : NULL;
    gc_rows_free(&k->rows);
    k->serial++;
    int rc = gc_rows_make(&k->rows, &s->core, report, k->turner, result, k->marked_ns - k->since_ns, uv_hrtime() - k->since_ns);
    if (k->requester && rc == 0)
        send_rows(k->requester, k->id, k, 0);
    else if (k->requester)
        connection_error(k->requester, k->id, ENOMEM, "the daemon is out of memory");
    if (report)
        log_event(LOG_LEVEL_INFO, "collect", "result=\"%s\" objects=%llu bytes=%llu kept=%llu scanned_bytes=%llu mark_ms=%llu",
                  result, (unsigned long long)report->white.objects, (unsigned long long)report->white.bytes,
                  (unsigned long long)report->marked.objects, (unsigned long long)report->scanned.bytes,
                  (unsigned long long)((k->marked_ns - k->since_ns) / 1000000));
    k->requester = NULL;
}

/* Who waited goes on: clients first, or one collection after the other would keep them waiting. */
static void release_held(struct server *s)
{
    for (int gc_too = 0; gc_too < 2; gc_too++)
        for (struct connection *c = s->connections, *next; c; c = next) {
            next = c->next;
            if (c->held && (gc_too || !c->held_is_gc))
                connection_release(c);
        }
}

static void finish(struct server *s, const char *result)
{
    struct collector *k = s->collector;
    gc_is_over(&s->core); /* before the answer: who has read it and unpins sees no collection */
    answer(s, result);
    if (k->gc)
        gc_end(&s->core, k->gc);
    if (k->objects)
        unmap_objects(s);
    k->gc = NULL;
    k->objects = NULL;
    k->state = COLLECTOR_IDLE;
    uv_timer_stop(&k->look);
    release_held(s);
}

static void fail(struct server *s, int error, const char *what)
{
    struct collector *k = s->collector;
    log_event(LOG_LEVEL_WARNING, "collect", "error=\"%s: %s\"", what, strerror(error));
    if (k->requester)
        connection_error(k->requester, k->id, error, "%s: %s", what, strerror(error));
    k->requester = NULL;
    finish(s, "failed");
}

/* ---- marking ------------------------------------------------------------------------------------------------------------------------ */

static void worker_main(void *argument)
{
    struct server *s = argument;
    struct collector *k = s->collector;
    sched_worker();
    int rc = gc_work(k->gc);
    if (rc < 0)
        store_relaxed(&k->rc, rc);
    if (fetch_sub_relaxed(&k->running, 1) == 1)
        uv_async_send(&k->marked);
}

static void on_marked(uv_async_t *async)
{
    struct server *s = async->data;
    struct collector *k = s->collector;
    if (k->state != COLLECTOR_MARKING || load_relaxed(&k->running))
        return;
    while (k->thread_count)
        uv_thread_join(&k->threads[--k->thread_count]);
    k->marked_ns = uv_hrtime();
    gc_snapped(&s->core, k->gc);
    if (k->rc < 0)
        finish(s, k->rc == -EAGAIN ? "gave up" : "canceled");
    else
        k->state = COLLECTOR_SWEEPING;
    server_pump(s);
}

static uint32_t core_count(void)
{
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > GC_WORKERS_MAX ? GC_WORKERS_MAX : (uint32_t)n;
}

static void start_threads(struct server *s, uint32_t count)
{
    struct collector *k = s->collector;
    k->running = count + 1;
    k->rc = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (sched_create(&k->threads[k->thread_count], worker_main, s) == 0)
            k->thread_count++;
        else {
            gc_worker_missing(k->gc);
            fetch_sub_relaxed(&k->running, 1);
        }
    }
    if (k->thread_count == 0)
        k->rc = -EAGAIN;
    if (fetch_sub_relaxed(&k->running, 1) == 1)
        uv_async_send(&k->marked);
}

/* Has a client in the way died, and the loop not been told yet? */
static bool blocker_is_dead(const struct server *s)
{
    for (unsigned tag = 0; (tag = gc_blocker(&s->core, tag + 1)) != 0;) {
        struct pollfd p = {.fd = s->core.clients[tag]->pidfd, .events = POLLIN};
        if (p.fd >= 0 && poll(&p, 1, 0) == 1)
            return true;
    }
    return false;
}

/* The flag is up. The snapshot begins when no client turns words that were committed before: who turns any from here on sees
 * the flag. One that stands still in the middle of it is in the way. */
static void settle(struct server *s)
{
    struct collector *k = s->collector;
    unsigned turner = gc_turner(&s->core, 0);
    if (!turner) {
        k->state = COLLECTOR_MARKING;
        start_threads(s, k->worker_count);
    } else if (uv_hrtime() - k->since_ns > SETTLE_MS * 1000000ULL) {
        k->turner = turner;
        gc_end(&s->core, k->gc);
        k->gc = NULL;
        finish(s, "refused");
    }
}

static void on_look(uv_timer_t *timer)
{
    struct server *s = timer->data;
    struct collector *k = s->collector;
    if (k->state == COLLECTOR_SETTLING) {
        settle(s);
        server_pump(s);
    } else if (k->state == COLLECTOR_MARKING && gc_may_release(k->gc)) {
        gc_snapped(&s->core, k->gc);
        uv_timer_stop(timer);
    }
}

/* A reader cannot take back what it has declared, as it writes nothing: it hangs up, and then looks whether a collection
 * runs. So its word counts only if its connection is there, looked at after the flag is up. True: each is there. */
static bool readers_are_there(struct server *s)
{
    bool all = true;
    for (unsigned tag = 1; tag < s->core.heap.header->tag_top; tag++) {
        struct client *client = s->core.clients[tag];
        if (!client || !client->read_only || client->state == CLIENT_DYING ||
            load_relaxed(&s->core.heap.tags[tag].gc_mode) == GC_RUNS ||
            (client->connection && !connection_hung_up(client->connection)))
            continue;
        client_gc_mode(&s->core, client, GC_RUNS);
        all = false;
    }
    return all;
}

/* Begins when nothing is in the way: no dead client's words, no page on its way back to the system; and if there is still
 * somebody who asks for it. */
static void begin(struct server *s)
{
    struct collector *k = s->collector;
    uint32_t count = core_count();
    if (k->requester && connection_hung_up(k->requester))
        k->requester = NULL;
    if (!k->requester) {
        k->state = COLLECTOR_IDLE;
        release_held(s);
        return;
    }
    if (s->core.reclaim.running || s->core.mheap.returning_pages || blocker_is_dead(s))
        return;
    if (gc_blocker(&s->core, 0)) {
        finish(s, "refused");
        return;
    }
    k->since_ns = k->marked_ns = uv_hrtime();
    k->objects = mmap(NULL, s->core.heap.heap_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, s->regions.fd[REGION_HEAP], 0);
    if (k->objects == MAP_FAILED) {
        k->objects = NULL;
        fail(s, errno, "cannot map the heap");
        return;
    }
    if (s->regions.directory && sigbus_add(k->objects, s->core.heap.heap_bytes, (uint64_t)sysconf(_SC_PAGESIZE)) < 0) {
        fail(s, ENOSPC, "cannot guard the heap");
        return;
    }
    k->gc = gc_begin(&s->core, k->objects, count, k->dry_run);
    if (!k->gc) {
        fail(s, ENOMEM, "cannot begin a collection");
        return;
    }
    if (!readers_are_there(s)) {
        gc_end(&s->core, k->gc);
        k->gc = NULL;
        finish(s, "refused");
        return;
    }
    k->worker_count = count;
    k->state = COLLECTOR_SETTLING;
    uv_timer_start(&k->look, on_look, LOOK_MS, LOOK_MS);
    settle(s);
}

/* ---- turns --------------------------------------------------------------------------------------------------------------------------- */

static bool may_release(const struct server *s)
{
    return s->core.mheap.held.free_count != 0 && gc_may_release(s->collector->gc);
}

bool collector_busy(const struct server *s)
{
    enum collector_state state = s->collector->state;
    return state == COLLECTOR_SWEEPING || (state == COLLECTOR_WAITING && !s->core.mheap.returning_pages) || may_release(s);
}

void collector_turn(struct server *s)
{
    struct collector *k = s->collector;
    gc_release(&s->core, k->gc);
    if (k->state == COLLECTOR_WAITING)
        begin(s);
    else if (k->state == COLLECTOR_SWEEPING && !gc_sweep(&s->core, k->gc, TURN_WORDS)) {
        if (!k->dry_run)
            sweep_cycle(&s->core);
        finish(s, k->dry_run ? "dry run" : "freed");
    }
}

bool collector_holds_pages(const struct server *s) { return s->collector && s->collector->state != COLLECTOR_IDLE; }

/* ---- requests ------------------------------------------------------------------------------------------------------------------------- */

void collector_request(struct connection *c, uint32_t id, unsigned flags, uint64_t cursor)
{
    struct server *s = c->server;
    struct collector *k = s->collector;
    if (cursor) {
        if (cursor >> 32 != k->serial || (uint32_t)cursor >= k->rows.count)
            connection_error(c, id, ESTALE, "another collection has run since");
        else
            send_rows(c, id, k, (uint32_t)cursor);
        return;
    }
    ASSERT(k->state == COLLECTOR_IDLE); /* collector_defers() */
    k->requester = c;
    k->id = id;
    k->dry_run = (flags & GC_DRY_RUN) != 0;
    k->turner = 0;
    k->since_ns = k->marked_ns = uv_hrtime();
    k->state = COLLECTOR_WAITING;
}

void collector_forget(struct connection *c)
{
    if (c->server->collector && c->server->collector->requester == c)
        c->server->collector->requester = NULL;
}

bool collector_defers(struct connection *c, const struct msg *m, const uint8_t *packet, size_t bytes)
{
    const struct server *s = c->server;
    enum collector_state state = s->collector->state;
    bool runs = state > COLLECTOR_WAITING;
    bool is_gc = m->type == MSG_GC && m->gc.cursor == 0 && state != COLLECTOR_IDLE;
    bool enters = m->type == MSG_HELLO && !(m->hello.flags & (HELLO_MONITOR | HELLO_LOOK)) && runs;
    bool leaves = m->type == MSG_SAFEPOINT && runs && c->client &&
                  (m->safepoint.gc_mode == GC_RUNS || s->core.heap.tags[c->client->tag].gc_mode == GC_SAFEPOINT);
    if (!is_gc && !enters && !leaves)
        return false;
    connection_hold(c, packet, bytes, m->type == MSG_GC);
    return true;
}

/* ---- start and stop ------------------------------------------------------------------------------------------------------------------- */

int collector_start(struct server *s)
{
    struct collector *k = calloc(1, sizeof *k);
    if (!k)
        return -ENOMEM;
    int rc = uv_async_init(&s->loop, &k->marked, on_marked);
    if (rc < 0) {
        free(k);
        return rc;
    }
    uv_timer_init(&s->loop, &k->look);
    k->marked.data = k->look.data = s;
    s->collector = k;
    return 0;
}

void collector_stop(struct server *s)
{
    struct collector *k = s->collector;
    if (!k)
        return;
    if (k->state == COLLECTOR_MARKING)
        gc_cancel(k->gc);
    while (k->thread_count)
        uv_thread_join(&k->threads[--k->thread_count]);
    if (k->gc)
        gc_end(&s->core, k->gc);
    if (k->objects)
        unmap_objects(s);
    k->gc = NULL;
    k->objects = NULL;
    k->state = COLLECTOR_IDLE;
}

void collector_free(struct server *s)
{
    if (s->collector)
        gc_rows_free(&s->collector->rows);
    free(s->collector);
    s->collector = NULL;
}
