/* Collections: what a process tells the collector of itself - it runs, is at a safepoint, or pins what it holds - and how it asks
 * for one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#include "client/extra/pins.h"
#include "client/extra/stack.h"
#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "client/link/reason.h"
#include "client/link/registry.h"
#include "client/link/socket.h"
#include "client/own/object.h"
#include "proto/call.h"
#include "proto/rows.h"

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
    int rc = conn_call(a, MSG(safepoint, .gc_mode = (uint64_t)mode));
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

/* The rows of the answer: the first says what came of it, and one of those in the way is named. */
static int read_rows(const struct rows *rows, struct arena_gc_stats *out)
{
    if (rows->count == 0)
        return -EPROTO;
    const msgpack_object *first = &rows->row[0];
    bool is_refused = row_is(first, "result", "refused");
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t value = row_u64(first, places[i].name);
        memcpy((char *)out + places[i].at, &value, sizeof value);
    }
    if (rows->count > 1 && is_refused) {
        const msgpack_object *command = row_value(&rows->row[1], "command");
        out->blocker_pid = row_u64(&rows->row[1], "pid");
        if (command && command->type == MSGPACK_OBJECT_STR)
            snprintf(out->blocker_command, sizeof out->blocker_command, "%.*s", (int)command->via.str.size,
                     command->via.str.ptr);
    }
    return row_is(first, "result", "freed") || row_is(first, "result", "dry run") ? 0 : is_refused ? -EBUSY : -EAGAIN;
}

struct asked {
    struct arena *arena;
    struct patience patience;
    uint32_t serial; /* of the collection that was seen to run */
    struct fd_id id;
    struct call call;
};

/* Waits as long as a daemon that does nothing is waited for: the beginning of a collection is a sign of life. */
static bool waits_on(struct asked *x)
{
    uint32_t serial = collecting(x->arena);
    if (serial != x->serial)
        x->patience = conn_patience(x->arena);
    x->serial = serial;
    return conn_waits(&x->patience);
}

/* As call's wait: the descriptor may be the program's by now. */
static int wait_on(void *context, enum call_moment moment)
{
    struct asked *x = context;
    return !fd_is(x->call.fd, x->id) || (moment == CALL_SILENT && !waits_on(x)) ? -ENOTCONN : 0;
}

static int exchange(struct asked *x, struct msg request)
{
    int rc = call(&x->call, request);
    if (rc < 0 && x->call.in.type == MSG_ERROR)
        return refused(rc, "%s", x->call.in.error.text);
    return rc < 0 && rc != -EPROTO ? -ENOTCONN : rc;
}

/* Is it this heap's daemon that is at the socket? Where another's is, the client's own connection tells whether this heap is of
 * the past: its daemon may live on without a socket. */
static int look(struct asked *x)
{
    struct arena *a = x->arena;
    const struct msg_welcome *welcome = &x->call.in.welcome;
    int rc = exchange(x, call_hello(HELLO_LOOK, 0));
    if (rc == 0 && x->call.in.type != MSG_WELCOME)
        rc = -EPROTO;
    if (rc < 0 || (welcome->heap_id_bytes == HEAP_ID_BYTES && memcmp(welcome->heap_id, a->heap.header->heap_id, HEAP_ID_BYTES) == 0))
        return rc;
    conn_lock(a);
    rc = conn_call(a, MSG(ping));
    conn_unlock(a);
    return rc == -ESTALE ? rc : -ENOTCONN;
}

/* Asks as a monitor, by a connection of its own: this process's other threads go on meanwhile. A collection whose asker has
 * hung up is not begun. */
static int ask(struct arena *a, struct asked *x, unsigned flags, struct arena_gc_stats *out)
{
    struct rows rows;
    int fd;
    x->arena = a;
    x->patience = conn_patience(a);
    x->serial = collecting(a);
    while ((fd = conn_connect(a->socket)) == -EAGAIN && waits_on(x)) /* so many wait to be let in */
        ;
    if (fd < 0)
        return -ENOTCONN;
    x->id = fd_id(fd);
    x->call.fd = fd;
    x->call.wait = wait_on;
    x->call.context = x;
    x->call.last_id = 0;
    int rc = look(x);
    if (rc == 0)
        rc = exchange(x, call_hello(HELLO_MONITOR, 0));
    if (rc == 0)
        rc = exchange(x, MSG(gc, .flags = flags & ARENA_GC_DRY_RUN ? GC_DRY_RUN : 0));
    if (fd_is(fd, x->id)) /* a child that was forked meanwhile may have it too */
        shutdown(fd, SHUT_RDWR);
    fd_close(fd, x->id);
    if (rc < 0)
        return rc;
    rc = rows_open(&rows, &x->call.in.rows);
    if (rc == 0)
        rc = read_rows(&rows, out);
    rows_close(&rows);
    return rc;
}

/* A safepoint that lasts as long as a call is one thread's at a time: who left it first would take it from the others. A
 * forked child has none of its parent's. */
static void turn_take(struct arena *a)
{
    registry_enter();
    while (a->gc_turn == fork_generation())
        registry_wait();
    a->gc_turn = fork_generation();
    pthread_mutex_unlock(&registry_lock);
}

static void turn_end(struct arena *a)
{
    registry_enter();
    a->gc_turn = 0;
    pthread_cond_broadcast(&registry_changed);
    pthread_mutex_unlock(&registry_lock);
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
    if (flags & ARENA_GC_SAFEPOINT)
        turn_take(a);
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
    if (flags & ARENA_GC_SAFEPOINT)
        turn_end(a);
    late_settle(a);
    cancel_on();
    if (stats) {
        size_t size = stats->size;
        memcpy(stats, &own, size < sizeof own ? size : sizeof own);
        stats->size = size;
    }
    return rc;
}
