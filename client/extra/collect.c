/* Collections: what a process tells the collector of itself - it runs, is at a safepoint, or pins what it holds - and how it asks
 * for one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include <msgpack.h>

#include "client/extra/pins.h"
#include "client/extra/stack.h"
#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "client/link/reason.h"
#include "client/link/socket.h"
#include "client/own/object.h"
#include "proto/packet.h"

/* ---- safepoints ---------------------------------------------------------------------------------------------------------------------- */

/* In a process that pins, ARENA_SHARED takes the slow path. */
static void set_mode(struct arena *a, int mode)
{
    store_relaxed(&a->fast_flags, mode == GC_PINS ? ARENA_NOSCAN | ARENA_ZERO : ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED);
    store_relaxed(&a->gc_mode, (uint8_t)mode);
}

static int declare(struct arena *a, int mode)
{
    conn_lock(a);
    a->conn.out.mode = CLIENT_MODE_SAFEPOINT;
    a->conn.out.value = (uint64_t)mode;
    int rc = conn_call(a, MSG_MODE, MSG_OK);
    conn_unlock(a);
    return rc;
}

PUBLIC int arena_safepoint(arena_t *a, int mode)
{
    int rc = 0, before;
    if (mode < 0 || mode >= GC_MODE_COUNT)
        return refused(-EINVAL, "arena_safepoint: mode %d is none", mode);
    if (mode == GC_PINS && a->read_only)
        return refused(-EACCES, "arena_safepoint: a reader cannot pin");
    if (forked(a) && (rc = arena_reattach(a)) < 0)
        return rc;
    before = load_relaxed(&a->gc_mode);
    bool enters = mode == GC_SAFEPOINT && before != GC_SAFEPOINT;
    if ((enters || (mode == GC_PINS && before == GC_RUNS)) && (rc = stack_collect(a)) < 0) /* while it may still allocate */
        return rc;
    if (enters && (rc = stacks_keep(a)) < 0)
        return rc;
    if (mode == GC_PINS && (rc = limbo_tag(a)) < 0)
        return rc;
    late_settle(a);
    if (mode == GC_PINS) /* what comes to be SHARED from here on is born pinned */
        set_mode(a, mode);
    rc = declare(a, mode);
    if (rc != -EINPROGRESS)
        set_mode(a, rc == 0 ? mode : before);
    else if (before == GC_PINS || mode == GC_PINS) /* the rules of both: born pinned, as before */
        set_mode(a, GC_PINS);
    if (rc != -EINPROGRESS && load_relaxed(&a->gc_mode) != GC_SAFEPOINT)
        stacks_let_go(a);
    late_settle(a);
    return rc;
}

/* ---- a collection ---------------------------------------------------------------------------------------------------------------------- */

struct place {
    const char *name;
    size_t at;
};
static const struct place places[] = {
#define PLACE(name) {#name, offsetof(struct arena_gc_stats, name)}
    PLACE(objects), PLACE(bytes), PLACE(objects_kept), PLACE(bytes_kept), PLACE(objects_scanned), PLACE(bytes_scanned),
    PLACE(mark_ns), PLACE(total_ns), PLACE(workers), PLACE(blockers),
#undef PLACE
};

static bool is_text(const msgpack_object *o, const char *text)
{
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == strlen(text) && memcmp(o->via.str.ptr, text, o->via.str.size) == 0;
}

static const msgpack_object *value_of(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size; i++)
        if (is_text(&map->via.map.ptr[i].key, name))
            return &map->via.map.ptr[i].val;
    return NULL;
}

static uint64_t number_of(const msgpack_object *map, const char *name)
{
    const msgpack_object *v = value_of(map, name);
    return v && v->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? v->via.u64 : 0;
}

/* The rows of the answer: the first says what came of it, and one of those in the way is named. */
static int read_rows(const msgpack_object *rows, struct arena_gc_stats *out)
{
    if (rows->type != MSGPACK_OBJECT_ARRAY || rows->via.array.size == 0)
        return -EPROTO;
    const msgpack_object *first = &rows->via.array.ptr[0], *result = value_of(first, "result");
    if (!result)
        return -EPROTO;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t value = number_of(first, places[i].name);
        memcpy((char *)out + places[i].at, &value, sizeof value);
    }
    if (rows->via.array.size > 1 && is_text(result, "refused")) {
        const msgpack_object *row = &rows->via.array.ptr[1], *command = value_of(row, "command");
        out->blocker_pid = number_of(row, "pid");
        if (command && command->type == MSGPACK_OBJECT_STR)
            snprintf(out->blocker_command, sizeof out->blocker_command, "%.*s", (int)command->via.str.size,
                     command->via.str.ptr);
    }
    return is_text(result, "freed") || is_text(result, "dry run") ? 0 : is_text(result, "refused") ? -EBUSY : -EAGAIN;
}

struct asked {
    struct patience patience;
    uint32_t serial; /* of the collection that was seen to run */
    struct msg m;
    uint8_t packet[MSG_MAX];
};

/* Waits as long as a daemon that does nothing is waited for: the beginning of a collection is a sign of life. */
static bool waits_on(const struct arena *a, struct asked *x)
{
    uint32_t serial = collecting(a);
    if (serial != x->serial)
        x->patience = conn_patience(a);
    x->serial = serial;
    return conn_waits(&x->patience);
}

static int exchange(struct arena *a, int fd, struct fd_id id, struct asked *x, uint32_t type, uint32_t expect)
{
    char why[MSG_TEXT_MAX + 1];
    ssize_t got;
    x->m.type = type;
    x->m.id++;
    int bytes = msg_encode(&x->m, x->packet, sizeof x->packet), rc = bytes < 0 ? bytes : -EAGAIN;
    while (rc == -EAGAIN) {
        rc = fd_is(fd, id) ? packet_send(fd, x->packet, (size_t)bytes, NULL, 0, 0) : -EPIPE;
        if (rc == -EAGAIN && !waits_on(a, x))
            break;
    }
    if (rc < 0)
        return -ENOTCONN;
    do
        got = fd_is(fd, id) ? packet_receive(fd, x->packet, sizeof x->packet, NULL, 0, NULL, 0) : 0;
    while (got == -EAGAIN && waits_on(a, x));
    if (got <= 0)
        return -ENOTCONN;
    rc = msg_decode(&x->m, x->packet, (size_t)got, why);
    if (rc == 0 && x->m.type == MSG_ERROR)
        return refused(-(int)x->m.error, "%s", x->m.text);
    return rc < 0 || x->m.type != expect ? -EPROTO : 0;
}

/* Is it this heap's daemon that is at the socket? Where another's is, the client's own connection tells whether this heap is of
 * the past: its daemon may live on without a socket. */
static int look(struct arena *a, int fd, struct fd_id id, struct asked *x)
{
    x->m = (struct msg){.version_min = PROTO_VERSION, .version = PROTO_VERSION, .layout = LAYOUT_VERSION, .flags = HELLO_LOOK};
    int rc = exchange(a, fd, id, x, MSG_HELLO, MSG_WELCOME);
    if (rc < 0 || (x->m.heap_id_bytes == 16 && memcmp(x->m.heap_id, a->heap.header->heap_id, 16) == 0))
        return rc;
    conn_lock(a);
    a->conn.out.mode = a->conn.out.value = 0; /* any reply will do */
    rc = conn_call(a, MSG_MODE, MSG_OK);
    conn_unlock(a);
    return rc == -ESTALE ? rc : -ENOTCONN;
}

/* Asks as a monitor, by a connection of its own: this process's other threads go on meanwhile. A collection whose asker has
 * hung up is not begun. */
static int ask(struct arena *a, struct asked *x, unsigned flags, struct arena_gc_stats *out)
{
    x->patience = conn_patience(a);
    x->serial = collecting(a);
    int fd;
    while ((fd = conn_connect(a->socket)) == -EAGAIN && waits_on(a, x)) /* so many wait to be let in */
        ;
    if (fd < 0)
        return -ENOTCONN;
    struct fd_id id = fd_id(fd);
    int rc = look(a, fd, id, x);
    x->m = (struct msg){.id = x->m.id, .version_min = PROTO_VERSION, .version = PROTO_VERSION, .layout = LAYOUT_VERSION,
                        .flags = HELLO_MONITOR};
    if (rc == 0)
        rc = exchange(a, fd, id, x, MSG_HELLO, MSG_OK);
    x->m.flags = flags & ARENA_GC_DRY_RUN ? GC_DRY_RUN : 0;
    x->m.cursor = 0;
    if (rc == 0)
        rc = exchange(a, fd, id, x, MSG_GC, MSG_ROWS);
    if (fd_is(fd, id)) /* a child that was forked meanwhile may have it too */
        shutdown(fd, SHUT_RDWR);
    fd_close(fd, id);
    if (rc < 0)
        return rc;
    msgpack_unpacked unpacked;
    if (msg_precheck(x->m.body, x->m.body_bytes, 3) < 0)
        return -EPROTO;
    msgpack_unpacked_init(&unpacked);
    rc = msgpack_unpack_next(&unpacked, (const char *)x->m.body, x->m.body_bytes, NULL) == MSGPACK_UNPACK_SUCCESS
             ? read_rows(&unpacked.data, out)
             : -EPROTO;
    msgpack_unpacked_destroy(&unpacked);
    return rc;
}

PUBLIC int arena_gc(arena_t *a, unsigned flags, struct arena_gc_stats *stats)
{
    struct arena_gc_stats own = {.size = sizeof own};
    if (flags & ~(unsigned)(ARENA_GC_DRY_RUN | ARENA_GC_SAFEPOINT) || (stats && stats->size < sizeof(size_t)))
        return refused(-EINVAL, "arena_gc: unknown flags 0x%x, or stats without their size", flags);
    if (a->read_only)
        return refused(-EACCES, "arena_gc: this process is a reader");
    if (heap_is_stale(a))
        return -ESTALE;
    struct asked *x = malloc(sizeof *x);
    if (!x)
        return refused(-ENOMEM, "arena_gc: no private memory to ask with");
    cancel_off();
    late_settle(a);
    int before = load_relaxed(&a->gc_mode);
    bool enter = flags & ARENA_GC_SAFEPOINT && before == GC_RUNS;
    if (!(flags & ARENA_GC_DRY_RUN) && before != GC_SAFEPOINT)
        stack_collect(a);
    int rc = enter ? arena_safepoint(a, GC_SAFEPOINT) : 0;
    if (rc == 0)
        rc = ask(a, x, flags, &own);
    free(x);
    if (enter) {
        int left = arena_safepoint(a, GC_RUNS);
        rc = rc < 0 ? rc : left;
    }
    late_settle(a);
    cancel_on();
    if (stats) {
        size_t size = stats->size;
        memcpy(stats, &own, size < sizeof own ? size : sizeof own);
        stats->size = size;
    }
    return rc;
}
