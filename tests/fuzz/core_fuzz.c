/* Packets into the daemon's requests and core, without a loop and without sockets: two connections of one process, their
 * packets as the input has them. Input: any number of [connection 0 or 1: 1 byte] [bytes: 2, little endian] [packet].
 * After each packet the turns that it asked for are done, and at the end the heap is checked: nothing that is sent may
 * break an invariant, trip an assertion or exceed a turn's bounds. */
#include "tests/fuzz/fuzz.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "daemon/collector.h"
#include "daemon/connection.h"
#include "daemon/info.h"
#include "daemon/log.h"
#include "shm/assert.h"
#include "tests/daemon/fixture.h"

static struct server server;
static struct config config;
static struct connection *open_ones[2];
static struct heap heap;
static struct geometry geometry;
static void *map, *state;

/* ---- in place of connection.c and collector.c ------------------------------------------------------------------------------- */

void server_trim(struct server *s) { sweep_cycle(&s->core); }

uint64_t strays_pages(const struct server *s) { return (void)s, 0; }

void connection_send(struct connection *c, const struct msg *m, const int *fds, int fd_count)
{
    static uint8_t buf[MSG_MAX];
    (void)c, (void)fds, (void)fd_count;
    ASSERT(msg_encode(m, buf, sizeof buf) > 0);
}

void connection_error(struct connection *c, uint32_t id, int error, const char *format, ...)
{
    char text[MSG_TEXT_MAX + 1];
    va_list args;
    (void)c, (void)id, (void)error;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
}

void connection_close(struct connection *c, const char *why)
{
    (void)why;
    if (c->closing)
        return;
    c->closing = true;
    if (c->client) {
        c->client->connection = NULL;
        c->client->resuming = false;
        if (c->client->state == CLIENT_LIVE)
            c->client->state = CLIENT_DETACHED;
    }
    for (struct pending *p = server.pending_first; p; p = p->next)
        if (p->connection == c)
            p->connection = NULL;
    info_forget(c);
    connection_resume_forget(c);
    *(c->prev ? &c->prev->next : &server.connections) = c->next;
    if (c->next)
        c->next->prev = c->prev;
}

void connection_rest(struct connection *c, const uint8_t *packet, size_t bytes)
{
    uint8_t *copy = malloc(bytes);
    ASSERT(copy);
    memcpy(copy, packet, bytes);
    request_handle(c, copy, bytes);
    free(copy);
}

void server_pump(struct server *s) { (void)s; }

void connection_owe(struct connection *c, int change) { c->owed += (uint32_t)change; }

int connection_watch(struct connection *c, struct client *client)
{
    (void)c;
    client->watch = client;
    return 0;
}

void connection_unwatch(struct client *client) { client->watch = NULL; }

bool connection_hung_up(const struct connection *c) { return (void)c, false; }

void connection_leave(struct connection *c)
{
    struct client *client = c->client;
    connection_unwatch(client);
    client->connection = NULL;
    c->client = NULL;
    client_die(&c->server->core, client);
}

bool collector_defers(struct connection *c, const struct msg *m, const uint8_t *packet, size_t bytes)
{
    (void)c, (void)m, (void)packet, (void)bytes;
    return false;
}

void collector_request(struct connection *c, uint32_t id, unsigned flags, uint64_t cursor)
{
    (void)flags, (void)cursor;
    connection_error(c, id, EBUSY, "no collector here");
}

bool collector_holds_pages(const struct server *s) { return (void)s, false; }

/* ---- the world -------------------------------------------------------------------------------------------------------------------- */

static struct later later = {.allowance = 400};

static void land_all(void)
{
    while (later.count) {
        later_answer(&server.core, later_take(&later, later.count - 1), 0);
        server.core.progress++;
    }
}

static void start(void)
{
    const struct backing backing = later_backing(&later);
    const uint8_t id[16] = {7};
    char why[256];
    if (!map) {
        log_set_level(-1);
        ASSERT(geometry_init(&geometry, 8 << 20, 256) == 0);
        map = mmap(NULL, geometry.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        state = mmap(NULL, geometry.state_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        ASSERT(map != MAP_FAILED && state != MAP_FAILED);
    } else {
        madvise(map, geometry.map_bytes, MADV_DONTNEED);
        madvise(state, geometry.state_bytes, MADV_DONTNEED);
    }
    memset(&server, 0, sizeof server);
    for (int i = 0; i < REGION_COUNT; i++)
        server.regions.fd[i] = server.regions.read_only_fd[i] = -1;
    server.config = &config;
    config.limits = (struct limits){.client_spans = 500, .roots = 20, .clients = 20};
    heap_view(&heap, &geometry, NULL, map, state);
    heap_format(&heap, &geometry, id, 0x550000000000);
    ASSERT(core_start(&server.core, &heap, &backing, &config.limits, 1000000000, why) == 0);
}

static struct connection *connection_of(int i)
{
    struct connection *c = open_ones[i];
    if (c && !c->closing)
        return c;
    if (c)
        free(c->listed_tags);
    free(c);
    c = open_ones[i] = calloc(1, sizeof *c);
    ASSERT(c);
    *c = (struct connection){.server = &server, .fd = -1, .pidfd = -1, .pid = (uint32_t)getpid(), .start_time = 5};
    c->next = server.connections;
    if (c->next)
        c->next->prev = c;
    server.connections = c;
    return c;
}

/* What the loop would do next. */
static void turns(void)
{
    for (int n = 0; n < 50; n++) {
        land_all();
        bool more = core_turn(&server.core);
        more = info_turn(&server) || more;
        more = connections_resume(&server) || more;
        connections_retry(&server);
        turn_end(&server.core);
        server.core.now_ns += 50000000;
        if (!more && !server.pending_count && !later.count)
            return;
    }
}

static void check(void)
{
    const struct census_outside outside = {.name = "fuzz", .socket = "fuzz"};
    void *body;
    size_t bytes;
    uint64_t cursor;
    struct census *census = census_new(&server.core, INFO_CHECK, 0);
    ASSERT(census);
    while (!census_turn(census, TURN_WORDS))
        ;
    ASSERT(census_rows(census, &outside, &body, &bytes, &cursor) == 0);
    ASSERT(bytes == 1 && *(uint8_t *)body == 0x90); /* an empty array: no fault */
    free(body);
    census_free(census);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    start();
    while (size >= 3) {
        size_t bytes = (size_t)data[1] | (size_t)data[2] << 8;
        struct connection *c = connection_of(data[0] & 1);
        data += 3;
        size -= 3;
        bytes = bytes < size ? bytes : size;
        uint8_t *packet = malloc(bytes ? bytes : 1); /* of its own size: a read behind it is noticed */
        ASSERT(packet);
        memcpy(packet, data, bytes);
        if (!c->owed)
            request_handle(c, packet, bytes);
        free(packet);
        data += bytes;
        size -= bytes;
        turns();
    }
    check();
    for (int i = 0; i < 2; i++) {
        if (open_ones[i])
            free(open_ones[i]->listed_tags);
        free(open_ones[i]);
        open_ones[i] = NULL;
    }
    while (server.pending_first) {
        struct pending *next = server.pending_first->next;
        free(server.pending_first);
        server.pending_first = next;
    }
    info_free(&server);
    later.count = 0;
    core_stop(&server.core);
    return 0;
}
