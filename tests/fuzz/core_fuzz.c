/* The daemon's core, its requests and its connections, driven by bytes: processes connect, send packets, write what a
 * client can write, hang up and die, while time passes, memory comes late or not at all and the daemon is started anew.
 * Real are all files but the loop (server.c), threads (backing.c, worker.c, collector.c), what is seen of processes
 * (peer.c, allow.c) and of files (strays.c): those are stood in for here, so that one input does the same each time.
 *
 * Input: actions, a byte each and what belongs to it; what is cut short is zeros. Below ACTION_FIRST: a packet from
 * that connection, [bytes: 2, little endian] [packet]. After each action the turns that it asked for are done, unless
 * others are to come first. Nothing may break an invariant, trip an assertion, exceed a turn's bounds or keep a daemon
 * from starting: the map is never written here. The checks at the end are the core's own, and sums of what it counts. */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/shell/collector.h"
#include "daemon/shell/connection.h"
#include "daemon/shell/hello.h"
#include "daemon/shell/waiting.h"
#include "daemon/passes/gc.h"
#include "daemon/passes/gc_rows.h"
#include "daemon/shell/info.h"
#include "daemon/os/log.h"
#include "shm/assert.h"
#include "shm/hazard.h"
#include "shm/root.h"
#include "tests/daemon/fixture.h"

enum {
    CONNECTIONS = 6,
    PROCESSES = 3,
    ACTION_FIRST = CONNECTIONS,
    ACTION_TICKS = ACTION_FIRST, /* [ticks: 1] */
    ACTION_WORD,       /* [page: 2] [object of its span: 1] [word: 2] */
    ACTION_HINT,       /* [page: 2] [hint: 1] */
    ACTION_TICKET,     /* [tag: 1] [id: 1] [kind: 1] */
    ACTION_HAZARD,     /* [slot: 1] [owner: 1] [tag: 1] */
    ACTION_TURNING,    /* [tag: 1] [threads: 1] */
    ACTION_BYTES,      /* [page: 2] [number in it: 2] [value: 3] */
    ACTION_HANG_UP,    /* [connection: 1] */
    ACTION_DIE,        /* [process: 1] */
    ACTION_RESTART,    /* [how: 1] bit 0: another boot; 1, 2: what is seen of processes; 3: another pid namespace */
    ACTION_COLLECT,    /* [step: 1] */
    ACTION_LAND,       /* [which: 1] [error: 1] memory that was asked for is there, or not */
    ACTION_LATE,       /* [late: 1] memory comes by ACTION_LAND only */
    ACTION_LIMIT,      /* [which: 1] [value: 2] */
    ACTION_ALLOWANCE,  /* [pages: 2] */
    ACTION_REFUSE,     /* [uid: 1] bits of users that may not attach; then those that do are looked at again */
    ACTION_DEAF,       /* [connection: 1] it does not read, or reads again */
    ACTION_TOGETHER,   /* [actions: 1] that come before the next turn */
    ACTION_STRAYS,     /* [pages: 1] a pattern of pages that have memory */
    ACTION_ODD_PACKET, /* [connection: 1] [kind: 1] */
    ACTION_TRIM,       /* */
    ACTION_WORDS,      /* [page: 2] [word: 2] all of its span */
    ACTION_FILL,       /* [page: 2] [page: 2] [step: 1] references to the second page and on, so many bytes * 8 apart */
    ACTION_COUNT
};

/* A process's death is its pidfd becoming readable, as an eventfd's. */
struct process {
    uint32_t pid, uid;
    int pidfd;
};

static struct server server;
static struct config config;
static struct heap heap;
static struct geometry geometry;
static void *map, *state;
static uint8_t *objects;
static struct process processes[PROCESSES];
static int client_fd[CONNECTIONS];
static bool deaf[CONNECTIONS], welcomed[CONNECTIONS];
static unsigned char seen[FUZZ_TYPES]; /* messages that a connection which was welcome has sent, or heard */
static int arrivals[CONNECTIONS + 1], arrived; /* connections that were not accepted yet, the oldest first */
static unsigned refused_uids, look_verdict, boot, pid_namespace;
static uint64_t clock_ns, stray_pattern;
static bool words_written, late_only;
static struct later later, stray_later;

static struct process *process_of(int connection) { return &processes[connection / 2]; }

/* ---- in place of libuv's clock, peer.c, allow.c ------------------------------------------------------------------ */

uint64_t uv_hrtime(void) { return clock_ns; }

int peer_identify(struct connection *c, bool fallback, const char **ret_why)
{
    (void)fallback;
    ASSERT(arrived > 0);
    const struct process *p = process_of(arrivals[0]);
    memmove(arrivals, arrivals + 1, (size_t)--arrived * sizeof *arrivals);
    *ret_why = "not to be seen";
    if (refused_uids >> 6 & 1)
        return -ESRCH;
    c->pid = refused_uids >> 5 & 1 ? 0 : p->pid; /* 0: of a namespace that is not seen */
    c->uid = p->uid;
    c->start_time = p->pid * 10;
    c->inode = p->pid + 1000;
    c->pidfd = fcntl(p->pidfd, F_DUPFD_CLOEXEC, 0);
    return c->pidfd < 0 ? -EMFILE : 0;
}

enum peer_verdict peer_look(const struct tag *t, bool pid_is_ours, int *ret_pidfd, char why[PEER_WHY])
{
    (void)pid_is_ours;
    snprintf(why, PEER_WHY, "nothing is seen");
    if (look_verdict >= 2)
        return PEER_UNTOLD;
    for (int i = 0; i < PROCESSES && look_verdict != 1; i++)
        if (processes[i].pid + 1000 == t->inode) {
            *ret_pidfd = fcntl(processes[i].pidfd, F_DUPFD_CLOEXEC, 0);
            return PEER_ALIVE;
        }
    return PEER_DEAD;
}

bool peer_is_client(const struct connection *c, const struct client *client)
{
    return c->server->core.heap.tags[client->tag].inode == c->inode;
}

bool peer_opens_again(const struct tag *t) { return (void)t, true; }

void peer_command(uint32_t pid, char command[16]) { snprintf(command, 16, "p%u", pid); }

uint64_t peer_pid_namespace(void) { return 4000 + pid_namespace; }

void peer_boot_id(char boot_id[32])
{
    memset(boot_id, 0, 32);
    snprintf(boot_id, 32, "boot %u", boot);
}

const char *allow_refuses(const struct config *c, const struct connection *connection)
{
    (void)c;
    return refused_uids >> (connection->uid - 1000) & 1 ? "this user is not allowed" : NULL;
}

/* ---- in place of collector.c: one thread, and steps as the input says -------------------------------------------- */

static struct {
    struct gc *gc;
    struct connection *requester;
    uint32_t id;
    bool dry_run, marked;
} collector;

static void collection_over(const char *result)
{
    struct gc_rows rows;
    gc_is_over(&server.core);
    int rc = gc_rows_make(&rows, &server.core, collector.gc ? gc_report(collector.gc) : NULL, 0, result, 1, 2);
    ASSERT(rc == 0 && rows.count > 0);
    if (collector.requester) {
        connection_reply(collector.requester, collector.id, MSG(rows, .body = (const uint8_t *)rows.bodies[0].data,
                                                                .body_bytes = (uint32_t)rows.bodies[0].size));
    }
    gc_rows_free(&rows);
    collector.requester = NULL;
    if (collector.gc)
        gc_end(&server.core, collector.gc);
    collector.gc = NULL;
    gc_release(&server.core, NULL);
    for (int gc_too = 0; gc_too < 2; gc_too++)
        for (struct connection *c = server.connections, *next; c; c = next) {
            next = c->next;
            if (c->held && (gc_too || !c->held_is_gc))
                connection_release(c);
        }
}

/* step 0: cancels; else as far as it goes. */
static void collection_step(unsigned step)
{
    if (!collector.gc)
        return;
    if (step == 0) {
        gc_cancel(collector.gc);
        collection_over("canceled");
    } else if (!collector.marked) {
        if (gc_turner(&server.core, 0))
            collection_over("refused");
        else {
            int rc = gc_work(collector.gc);
            gc_snapped(&server.core, collector.gc);
            collector.marked = true;
            if (rc < 0)
                collection_over("gave up");
        }
    } else {
        gc_release(&server.core, collector.gc);
        if (!gc_sweep(&server.core, collector.gc, TURN_WORDS)) {
            if (!collector.dry_run)
                sweep_cycle(&server.core);
            collection_over(collector.dry_run ? "dry run" : "freed");
        }
    }
}

void collector_request(struct connection *c, uint32_t id, unsigned flags, uint64_t cursor)
{
    struct core *core = &server.core;
    if (cursor) {
        connection_error(c, id, ESTALE, "another collection has run since");
        return;
    }
    ASSERT(!collector.gc);
    collector.requester = c;
    collector.id = id;
    collector.marked = false;
    collector.dry_run = flags & GC_DRY_RUN;
    if (core->reclaim.running || core->mheap.returning_pages || gc_blocker(core, 0))
        collection_over("refused");
    else {
        collector.gc = gc_begin(core, objects, 2, collector.dry_run);
        ASSERT(collector.gc);
        gc_worker_missing(collector.gc);
    }
}

void collector_forget(struct connection *c)
{
    if (collector.requester == c)
        collector.requester = NULL;
}

bool collector_defers(struct connection *c, const struct msg *m, const uint8_t *packet, size_t bytes)
{
    bool is_gc = m->type == MSG_GC && m->gc.cursor == 0;
    bool enters = m->type == MSG_HELLO && !(m->hello.flags & (HELLO_MONITOR | HELLO_LOOK));
    bool leaves = m->type == MSG_SAFEPOINT && c->client &&
                  (m->safepoint.gc_mode == GC_RUNS || heap.tags[c->client->tag].gc_mode == GC_SAFEPOINT);
    if (!collector.gc || (!is_gc && !enters && !leaves))
        return false;
    connection_hold(c, packet, bytes, is_gc);
    return true;
}

/* ---- in place of server.c, backing.c, strays.c ------------------------------------------------------------------- */

uint64_t strays_pages(const struct server *s) { return s->strays.found; }

static uint64_t has_memory(void *context, uint64_t first, uint64_t pages)
{
    uint64_t end = first + pages;
    (void)context;
    while (first < end && !(stray_pattern >> first % 64 & 1))
        first++;
    return first;
}

static int clear(void *context, uint64_t first, uint64_t pages)
{
    (void)context;
    if (stray_pattern >> 63) /* the worker cannot be asked */
        return -ENOMEM;
    return later_ask(&stray_later, first, pages, false);
}

/* No page is returned while a collection runs. */
static int give_back(void *context, uint64_t first, uint64_t pages)
{
    return collector.gc ? -EBUSY : later_give_back(context, first, pages);
}

static int back_units(void *context, uint64_t first, uint64_t units)
{
    (void)context, (void)first;
    server.core.turn.backed += units * UNIT_BYTES;
    return 0;
}

static void trim_turn(void)
{
    struct core *core = &server.core;
    if (server.trim_wanted && !later.count && mheap_scavenge(&core->mheap, 0, 4096, true) == 0 && !core->sweep_to_go)
        server.trim_wanted = false;
}

void server_trim(struct server *s)
{
    sweep_cycle(&s->core);
    s->trim_wanted = true;
    s->core.scavenge_cursor = 0;
    s->core.scavenge_now = true;
}

void server_pump(struct server *s)
{
    trim_turn();
    if (s->core.progress != s->pending_progress)
        connections_retry(s);
}

static void land(size_t i, int error)
{
    later_answer(&server.core, later_take(&later, i), error);
    server.core.progress++;
}

static void land_strays(void)
{
    while (stray_later.count) {
        struct asked asked = later_take(&stray_later, 0);
        core_cleared(&server.core, asked.first, asked.pages);
    }
}

static void tick(void)
{
    struct core *core = &server.core;
    clock_ns += TICK_MS * 1000000ULL;
    core->now_ns = clock_ns;
    server.ticks++;
    if (server.ticks % 2 == 0)
        mheap_tick(&core->mheap);
    if (!later.count)
        mheap_scavenge(&core->mheap, 2, 4096, false);
    if ((!later.count || core->scavenge_now) && !scavenge_turn(core, TURN_SPANS, TURN_WORDS))
        core->scavenge_now = false;
    if (core->sweep_to_go == 0 && server.ticks % 2 == 0)
        sweep_cycle(core);
    connections_tick(&server);
    server_pump(&server);
    connections_retry(&server);
}

/* What the loop would do next, once. True: there is more. */
static bool turn(void)
{
    struct core *core = &server.core;
    while (!late_only && later.count)
        land(later.count - 1, 0);
    server.works = later.count > 0;
    turn_end(core);
    if (core->progress != server.pending_progress)
        connections_retry(&server);
    connections_notice(&server);
    server_pump(&server);
    uv_run(&server.loop, UV_RUN_NOWAIT);
    connections_serve(&server);
    core->now_ns = clock_ns;
    bool more = core_turn(core);
    more = info_turn(&server) || more;
    more = connections_resume(&server) || more;
    connections_retry(&server);
    return more || ready_waits(&server.ready) || server.notice_at || (!late_only && later.count);
}

const char *fuzz_lacks(void) { return fuzz_unseen(seen); }

/* Which message is it? 0: none. */
static uint32_t message_of(const uint8_t *packet, size_t bytes)
{
    static struct msg_space space;
    struct msg m;
    char why[MSG_TEXT_MAX + 1];
    return msg_decode(&m, &space, packet, bytes, why) == 0 ? m.type : 0;
}

/* ---- the other side ---------------------------------------------------------------------------------------------- */

static void hang_up(int i)
{
    if (client_fd[i] >= 0)
        close(client_fd[i]);
    client_fd[i] = -1;
    deaf[i] = welcomed[i] = false;
}

static bool hear(int i)
{
    static uint8_t buf[MSG_MAX + 1];
    ssize_t got = 0;
    bool heard = false;
    while (client_fd[i] >= 0 && !deaf[i] && (got = recv(client_fd[i], buf, sizeof buf, MSG_DONTWAIT)) > 0) {
        uint32_t type = message_of(buf, (size_t)got);
        ASSERT(type && !msg_from_client(type)); /* the daemon says what a client understands */
        seen[type] = 1;
        welcomed[i] |= type == MSG_WELCOME;
        heard = true;
    }
    if (client_fd[i] >= 0 && !deaf[i] && (got == 0 || errno != EAGAIN))
        hang_up(i);
    return heard;
}

static void turns(void)
{
    for (int n = 0, quiet = 0; n < 64 && quiet < 2; n++) {
        bool more = turn();
        for (int i = 0; i < CONNECTIONS; i++)
            more = hear(i) || more;
        quiet = more ? 0 : quiet + 1;
        clock_ns += 1000000;
    }
}

static void connect_to(int i)
{
    struct sockaddr_un address;
    socklen_t length = sizeof address;
    if (client_fd[i] >= 0)
        return;
    if (arrived == CONNECTIONS)
        turns();
    client_fd[i] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ASSERT(client_fd[i] >= 0 && getsockname(server.listen_fd, (struct sockaddr *)&address, &length) == 0);
    if (connect(client_fd[i], (struct sockaddr *)&address, length) == 0)
        arrivals[arrived++] = i;
    else
        hang_up(i);
}

/* As a process with this number and user, which is alive. */
static void process_start(struct process *p, uint32_t pid, uint32_t uid)
{
    *p = (struct process){.pid = pid, .uid = uid, .pidfd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    ASSERT(p->pidfd >= 0);
}

static void process_die(unsigned number)
{
    struct process *p = &processes[number];
    eventfd_write(p->pidfd, 1);
    turns();
    for (int i = 0; i < CONNECTIONS; i++)
        if (process_of(i) == p)
            hang_up(i);
    close(p->pidfd);
    process_start(p, p->pid + PROCESSES, p->uid);
}

/* ---- start and stop ---------------------------------------------------------------------------------------------- */

static void loop_start(void)
{
    const struct sockaddr_un address = {.sun_family = AF_UNIX}; /* the kernel names it */
    ASSERT(uv_loop_init(&server.loop) == 0);
    server.listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    ASSERT(server.listen_fd >= 0);
    ASSERT(bind(server.listen_fd, (const struct sockaddr *)&address, sizeof address.sun_family) == 0);
    ASSERT(listen(server.listen_fd, 64) == 0 && uv_poll_init(&server.loop, &server.listen_poll, server.listen_fd) == 0);
    server.listen_poll.data = &server;
    ready_init(&server.ready);
    uv_poll_start(&server.listen_poll, UV_READABLE, connection_on_listen);
}

static void wake_root(void *context, uint32_t *gen)
{
    ASSERT(!context && gen >= heap.root_gens && gen < heap.root_gens + ROOT_GENS);
}

static void daemon_start(void)
{
    static int null = -1;
    char why[256];
    struct backing backing = later_backing(&later);
    backing.give_back = give_back;
    backing.back_units = back_units;
    if (null < 0)
        null = open("/dev/null", O_RDWR | O_CLOEXEC);
    memset(&server, 0, sizeof server);
    for (int i = 0; i < REGION_COUNT; i++)
        server.regions.fd[i] = server.regions.read_only_fd[i] = null;
    server.config = &config;
    server.fd_reserve = -1;
    heap_view(&heap, &geometry, NULL, map, state);
    int rc = core_start(&server.core, &heap, &backing, &config.limits, clock_ns, why);
    if (rc < 0)
        fprintf(stderr, "the daemon does not start: %s\n", why);
    ASSERT(rc == 0); /* nobody but the daemon has written the map */
    server.core.wake_root = wake_root;
    loop_start();
    connections_find_dead(&server);
}

/* What is under way is lost, as by a crash: the private state, requests, pages in flight. */
static void daemon_stop(void)
{
    if (collector.gc) { /* held packets go with their connections */
        gc_cancel(collector.gc);
        gc_end(&server.core, collector.gc);
        collector.gc = NULL;
    }
    collector.requester = NULL;
    connections_close(&server);
    uv_close((uv_handle_t *)&server.listen_poll, NULL);
    while (uv_loop_alive(&server.loop))
        uv_run(&server.loop, UV_RUN_NOWAIT);
    connections_free(&server);
    ASSERT(uv_loop_close(&server.loop) == 0);
    close(server.listen_fd);
    core_stop(&server.core);
    later.count = stray_later.count = 0;
    arrived = 0;
    for (int i = 0; i < CONNECTIONS; i++)
        hang_up(i);
}

static void world_start(void)
{
    static const uint32_t uids[PROCESSES] = {1000, 1000, 1001};
    const uint8_t id[16] = {7};
    if (!map) {
        log_set_level(-1);
        ASSERT(geometry_init(&geometry, 8 << 20, 256) == 0);
        map = mmap(NULL, geometry.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        state = mmap(NULL, geometry.state_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        objects = mmap(NULL, geometry.heap_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ASSERT(map != MAP_FAILED && state != MAP_FAILED && (void *)objects != MAP_FAILED);
        for (int i = 0; i < CONNECTIONS; i++)
            client_fd[i] = -1;
    } else {
        madvise(map, geometry.map_bytes, MADV_DONTNEED);
        madvise(state, geometry.state_bytes, MADV_DONTNEED);
        madvise(objects, geometry.heap_bytes, MADV_DONTNEED);
    }
    for (uint32_t i = 0; i < PROCESSES; i++)
        process_start(&processes[i], 10 + i, uids[i]);
    config = (struct config){.limits = {.client_spans = 500, .roots = 20, .clients = 20}, .hello_timeout_ms = 2000,
                             .trim_timeout_ms = 100};
    clock_ns = 1000000000;
    refused_uids = look_verdict = boot = pid_namespace = 0;
    stray_pattern = 0;
    words_written = late_only = false;
    later.allowance = 400;
    heap_view(&heap, &geometry, NULL, map, state);
    heap_format(&heap, &geometry, id, 0x550000000000);
    daemon_start();
}

/* ---- checks ------------------------------------------------------------------------------------------------------ */

static void expect(const char *why, uint64_t at)
{
    if (why)
        fprintf(stderr, "%s (%llu)\n", why, (unsigned long long)at);
    ASSERT(!why);
}

/* Of a span whose words somebody else wrote a count may be wrong: nothing else. */
static bool by_words(const char *why) { return words_written && strstr(why, "free objects than counted"); }

/* What is counted, against what the map says. */
static void check_sums(void)
{
    static struct {
        uint64_t leased, leased_spans, charged, charged_spans;
    } of[TAG_COUNT];
    struct core *core = &server.core;
    uint64_t spans = 0, pages = 0, units = 0, cold = 0;
    memset(of, 0, heap.header->tag_top * sizeof *of);
    for (uint64_t page = 1; page < core->mheap.top;) {
        struct span_info span;
        if (!span_at(&heap, page, &span)) {
            page++;
            continue;
        }
        const struct span *record = &heap.spans[page];
        const char *why = mcentral_check(core, page);
        if (why && !by_words(why))
            expect(why, page);
        ASSERT(record->lessee < TAG_COUNT && record->charged < TAG_COUNT);
        of[record->lessee].leased += span.page_count;
        of[record->lessee].leased_spans++;
        of[record->charged].charged += span.page_count;
        of[record->charged].charged_spans++;
        spans++;
        pages += span.page_count;
        units += span_units(span.objects);
        cold += (uint64_t)__builtin_popcount(record->returned);
        page += span.page_count;
    }
    ASSERT(spans == core->spans && pages == core->mheap.used_pages && units == core->mheap.units_used);
    ASSERT(cold == core->cold_in_spans);
    ASSERT(core->mheap.units.free_count + core->mheap.held.free_count + units + 1 == heap.unit_count);
    for (unsigned tag = 1; tag < heap.header->tag_top; tag++) {
        const struct client *client = core->clients[tag];
        ASSERT(client || (!of[tag].leased && !of[tag].charged));
        ASSERT(!client || (client->leased_pages == of[tag].leased && client->leased_spans == of[tag].leased_spans));
        ASSERT(!client || (client->charged_pages == of[tag].charged && client->charged_spans == of[tag].charged_spans));
    }
}

/* Whoever asks for a root finds it, and so does the daemon. */
static void check_roots(void)
{
    for (uint32_t slot = 0; slot < heap.root_slots; slot++) {
        const struct root *root = &heap.roots[slot];
        uint64_t ref = 0;
        if (root_touched(&heap, slot) && root->ref)
            ASSERT(root_lookup(&heap, root->name, &ref) == 0 && ref == root->ref &&
                   root_find(&heap, root->name) == slot);
    }
}

static void check(void)
{

    struct core *core = &server.core;
    check_sums();
    check_roots();
    expect(clients_check(core), 0);
    expect(roots_check(core, &(struct roots_look){0}, heap.root_slots), 0);
    expect(pagealloc_check(&core->mheap.free), 0);
    expect(pagealloc_check(&core->mheap.warm), 0);
    expect(pagealloc_check(&core->mheap.units), 0);
    if (words_written || look_verdict >= 2) /* then something is suspicious, without being wrong */
        return;
    const struct census_outside outside = {.name = "fuzz", .socket = "fuzz"};
    void *body;
    size_t bytes;
    uint64_t cursor;
    struct census *census = census_new(core, INFO_CHECK, 0);
    ASSERT(census);
    while (!census_turn(census, TURN_WORDS))
        ;
    ASSERT(census_rows(census, &outside, &body, &bytes, &cursor) == 0);
    if (bytes != 1)
        fprintf(stderr, "%.*s\n", (int)bytes, (const char *)body);
    ASSERT(bytes == 1 && *(uint8_t *)body == 0x90); /* an empty array: no fault */
    free(body);
    census_free(census);
}

/* ---- the input --------------------------------------------------------------------------------------------------- */

static const uint8_t *at, *end;

static uint32_t number(int bytes)
{
    uint32_t value = 0;
    for (int i = 0; i < bytes && at < end; i++)
        value |= (uint32_t)*at++ << (8 * i);
    return value;
}

static void act_packet(int i)
{
    size_t bytes = number(2), left = (size_t)(end - at);
    bytes = bytes < left ? bytes : left;
    connect_to(i);
    uint32_t type = message_of(at, bytes);
    if (type && msg_from_client(type) && (welcomed[i] || type == MSG_HELLO))
        seen[type] = 1;
    if (client_fd[i] >= 0 && bytes)
        send(client_fd[i], at, bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    at += bytes;
}

/* More than a packet may have, nothing at all, descriptors. */
static void act_odd_packet(int i, unsigned kind)
{
    static uint8_t zeros[MSG_MAX + 2];
    connect_to(i);
    if (client_fd[i] < 0)
        return;
    if (kind % 3 == 2)
        packet_send(client_fd[i], zeros, 8, &client_fd[i], 1, MSG_DONTWAIT);
    else
        send(client_fd[i], zeros, kind % 3 ? sizeof zeros : 0, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static void act_restart(unsigned how)
{
    daemon_stop();
    boot += how & 1;
    look_verdict = how >> 1 & 3;
    pid_namespace += how >> 3 & 1;
    daemon_start();
}

static void act_limit(unsigned which, uint32_t value)
{
    struct limits *l = &config.limits;
    uint32_t *counts[] = {&l->client_spans, &l->uid_spans, &l->clients, &l->uid_clients, &l->roots, &l->uid_roots};
    if (which % 8 < 6)
        *counts[which % 8] = value;
    else
        *(which % 8 == 6 ? &l->client_bytes : &l->uid_bytes) = (uint64_t)value << PAGE_SHIFT;
    server.core.limits = *l;
}

static void act_strays(uint64_t pattern)
{
    const struct stray_ops ops = {NULL, has_memory, clear};
    uint64_t cursor = 0, asked = 0;
    stray_pattern = pattern * 0x0123456789abcdefULL;
    if (!collector.gc)
        scavenge_strays(&server.core, &ops, &cursor, 512, 1024, &asked);
    server.strays.found = asked;
    if (!late_only)
        land_strays();
}

static void act_land(uint32_t which, int error)
{
    if (later.count)
        land(which % later.count, -error);
    else
        land_strays();
}

/* In no span: one that may be some span's later. */
static uint16_t *word_at(uint32_t page, uint32_t object)
{
    uint64_t entry = load_relaxed(&heap.pages[page % heap.page_count]);
    struct span_info span;
    if (page_entry_class(entry) && span_at(&heap, page % heap.page_count - page_entry_index(entry), &span))
        return &span.words[object % span.objects];
    return &heap.words[UNIT_WORDS + (page << 8 | object) % 8192];
}

/* What a client can write. */
static void act_write(unsigned action)
{
    bool by_tag = action == ACTION_TICKET || action == ACTION_HAZARD || action == ACTION_TURNING;
    uint32_t where = number(by_tag ? 1 : 2), value;
    uint64_t *bytes = (uint64_t *)(void *)objects + where % heap.page_count * (PAGE_SIZE / 8);
    words_written = true;
    switch (action) {
    case ACTION_WORD:
        value = number(1);
        store_relaxed(word_at(where, value), (uint16_t)number(2));
        break;
    case ACTION_HINT: store_relaxed(&heap.hints[where % heap.page_count], (uint8_t)number(1)); break;
    case ACTION_TICKET:
        value = number(1);
        store_relaxed(&heap.tickets[where], (uint64_t)value << 2 | (number(1) & 3));
        break;
    case ACTION_HAZARD:
        value = number(1);
        store_relaxed(&heap.hazards[where], HAZARD(value, number(1)));
        break;
    case ACTION_WORDS:
        value = number(2);
        for (uint32_t i = 0; i < SPAN_WORDS_MAX; i++)
            store_relaxed(word_at(where, i), (uint16_t)value);
        break;
    case ACTION_FILL:
        value = number(2);
        for (uint32_t i = 0, step = number(1); i < PAGE_SIZE / 8; i++)
            bytes[i] = (value << PAGE_SHIFT) + (uint64_t)i * step * 8;
        break;
    case ACTION_TURNING: store_relaxed(&heap.turning[where], number(1)); break;
    default:
        value = number(2) % (PAGE_SIZE / 8);
        bytes[value] = number(3);
        break;
    }
}

static void act(void)
{
    unsigned action = number(1) % ACTION_COUNT, i;
    if (action < ACTION_FIRST) {
        act_packet((int)action);
        return;
    }
    switch (action) {
    case ACTION_TICKS:
        for (i = number(1) % 64 + 1; i; i--) {
            tick();
            turn(); /* what a tick has asked for is there before the next one */
        }
        break;
    case ACTION_HANG_UP: hang_up((int)(number(1) % CONNECTIONS)); break;
    case ACTION_DIE: process_die(number(1) % PROCESSES); break;
    case ACTION_RESTART: act_restart(number(1)); break;
    case ACTION_COLLECT: collection_step(number(1)); break;
    case ACTION_LAND:
        i = number(1);
        act_land(i, (int)(number(1) % 64));
        break;
    case ACTION_LATE: late_only = number(1) & 1; break;
    case ACTION_LIMIT:
        i = number(1);
        act_limit(i, number(2));
        break;
    case ACTION_ALLOWANCE: later.allowance = number(2); break;
    case ACTION_REFUSE:
        refused_uids = number(1);
        connections_allow_again(&server);
        break;
    case ACTION_DEAF:
        i = number(1) % CONNECTIONS;
        deaf[i] = !deaf[i];
        break;
    case ACTION_TOGETHER:
        for (i = number(1) % 16; i && at < end; i--)
            act();
        break;
    case ACTION_STRAYS: act_strays(number(1)); break;
    case ACTION_ODD_PACKET:
        i = number(1) % CONNECTIONS;
        act_odd_packet((int)i, number(1));
        break;
    case ACTION_TRIM: server_trim(&server); break;
    default: act_write(action); break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    world_start();
    uint8_t *copy = malloc(size ? size : 1); /* of its own size: a read behind it is noticed */
    ASSERT(copy);
    memcpy(copy, data, size);
    for (at = copy, end = copy + size; at < end;) {
        act();
        turns();
    }
    free(copy);
    collection_step(0);
    late_only = false;
    land_strays();
    turns();
    check();
    act_restart(0);
    turns();
    check();
    daemon_stop();
    for (int i = 0; i < PROCESSES; i++)
        close(processes[i].pidfd);
    return 0;
}
