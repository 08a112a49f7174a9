/* The connection, and rows. */
#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/ctl/ctl.h"
#include "client/link/environ.h"
#include "proto/call.h"
#include "proto/rows.h"

enum { ANSWER_MS = 10000 }; /* how long a daemon may be silent */

static void print_error(const struct ctl *ctl)
{
    if (!ctl->hold_errors)
        fprintf(stderr, "arenactl: %s\n", ctl->error);
}

int ctl_fail(struct ctl *ctl, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    vsnprintf(ctl->error, sizeof ctl->error, format, args);
    va_end(args);
    print_error(ctl);
    return CTL_UNREACHABLE;
}

/* Connects also where the queue is full for a while, as with a daemon that stands still. */
static int connect_patiently(const char *path)
{
    int fd;
    for (uint64_t until = now_real_ns() + ANSWER_MS * 1000000ULL;
         (fd = conn_connect(path)) == -EAGAIN && now_real_ns() < until;)
        ;
    return fd;
}

/* 1: there is something to read, or the end; 0: not for so long; -1: a signal came. */
static int wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ANSWER_MS);
}

static struct call other;

/* As call's wait: until it has said something. */
static int wait_other(void *context, enum call_moment moment)
{
    struct ctl *ctl = context;
    int rc = 1;
    while (moment == CALL_RECEIVES && (rc = wait_readable(other.fd)) < 0 && errno == EINTR && (!ctl->wait || ctl->wait(ctl) == 0))
        ;
    return rc == 1 ? 0 : -ETIMEDOUT;
}

/* Does it answer anybody? To count a large heap or to collect takes it long, and it serves others meanwhile. */
static bool is_awake(struct ctl *ctl)
{
    char buf[256];
    other = (struct call){.fd = connect_patiently(ctl_socket(ctl, buf, sizeof buf)), .wait = wait_other, .context = ctl};
    if (other.fd < 0)
        return false;
    bool awake = call(&other, call_hello(HELLO_MONITOR, 0)) != -ETIMEDOUT;
    close(other.fd);
    return awake;
}

/* As call's wait, until there is a reply to read. -ECANCELED: it has been said why not. */
static int wait_reply(void *context, enum call_moment moment)
{
    struct ctl *ctl = context;
    while (moment == CALL_RECEIVES) {
        if (ctl->wait && ctl->wait(ctl) != 0)
            return -ECANCELED;
        int rc = wait_readable(ctl->call.fd);
        if (rc == 1)
            return 0;
        if (rc == 0 && (!ctl->greeted || !is_awake(ctl))) {
            ctl_fail(ctl,
                     "the daemon has not answered for %d seconds: is it stopped, or still "
                     "starting? See its log, and try again",
                     ANSWER_MS / 1000);
            return -ECANCELED;
        }
    }
    return 0;
}

int ctl_call(struct ctl *ctl, struct msg request)
{
    ctl->closed = false;
    ctl->greeted = request.type != MSG_HELLO;
    int rc = call(&ctl->call, request);
    if (rc == 0)
        return 0;
    if (rc == -ECANCELED)
        return CTL_UNREACHABLE;
    if (ctl->call.in.type == MSG_ERROR)
        return ctl_fail(ctl, "the daemon refused: %s", clean(ctl->call.in.error.text, false));
    if (rc == -EPROTO)
        return ctl_fail(ctl,
                        "the daemon said what this program does not understand: %s; are both "
                        "of one version?",
                        clean(ctl->call.why, false));
    ctl->closed = true;
    return ctl_fail(ctl,
                    "the daemon closed the connection%s%s: has it ended? See its log, and try again",
                    rc == -EPIPE ? "" : ": ", rc == -EPIPE ? "" : strerror(-rc));
}

static const char *advice(int error)
{
    switch (error) {
    case ENOENT:
    case ECONNREFUSED:
        return "start arenad, or name its socket by --socket PATH or ARENA_SOCKET";
    case EACCES:
        return "this user may not open it: see socket-mode, socket-group and the directory's mode";
    case ENAMETOOLONG:
        return "a socket's path has at most 107 bytes";
    case EAGAIN:
        return "its queue is full: is the daemon stopped? See its log";
    case EPROTOTYPE:
        return "that is the socket of another program";
    default:
        return "name the daemon's socket by --socket PATH or ARENA_SOCKET";
    }
}

const char *ctl_socket(const struct ctl *ctl, char *buf, size_t capacity)
{
    static bool said;
    struct environment e = {.complaint = ""};
    const char *path = environ_socket(&e, ctl->socket, buf, capacity);
    if (*e.complaint && !said)
        fprintf(stderr, "arenactl: %s\n", e.complaint);
    said = said || *e.complaint;
    return path;
}

/* A daemon that ends leaves its newest connections without an answer: it is tried again, until nobody is there or another
 * daemon is. */
int ctl_connect(struct ctl *ctl)
{
    enum { TRIES = 3 };
    const bool hold_errors = ctl->hold_errors;
    char buf[256];
    if (ctl->call.fd >= 0)
        return 0;
    ctl->call.wait = wait_reply;
    ctl->call.context = ctl;
    const char *path = ctl_socket(ctl, buf, sizeof buf);
    for (int tries = 1;; tries++) {
        ctl->call.fd = connect_patiently(path);
        if (ctl->call.fd < 0) {
            int error = -ctl->call.fd;
            ctl->call.fd = -1;
            return ctl_fail(ctl, "no daemon at %s: %s; %s", clean(path, false), strerror(error),
                            advice(error));
        }
        ctl->closed = false;
        ctl->hold_errors = true;
        int rc = ctl_call(ctl, call_hello(HELLO_MONITOR, 0));
        ctl->hold_errors = hold_errors;
        if (rc == 0)
            return 0;
        ctl_disconnect(ctl);
        if (!ctl->closed || tries == TRIES) {
            print_error(ctl);
            return rc;
        }
    }
}

void ctl_disconnect(struct ctl *ctl)
{
    if (ctl->call.fd >= 0)
        close(ctl->call.fd);
    ctl->call.fd = -1;
}

/* ---- rows as they come ----------------------------------------------------------------------- */

/* A number above 2^53 would lose bits as a double: it is kept as raw text. */
static cJSON *number_value(uint64_t value)
{
    char text[24];
    if (value < 1ULL << 53)
        return cJSON_CreateNumber((double)value);
    snprintf(text, sizeof text, "%" PRIu64, value);
    return cJSON_CreateRaw(text);
}

void row_put(cJSON *row, const char *name, uint64_t value)
{
    cJSON_AddItemToObject(row, name, number_value(value));
}

static cJSON *map_value(const msgpack_object *value, int depth)
{
    char text[1024];
    switch (value->type) {
    case MSGPACK_OBJECT_POSITIVE_INTEGER:
        return number_value(value->via.u64);
    case MSGPACK_OBJECT_NEGATIVE_INTEGER:
        return cJSON_CreateNumber((double)value->via.i64);
    case MSGPACK_OBJECT_FLOAT32:
    case MSGPACK_OBJECT_FLOAT64:
        return cJSON_CreateNumber(value->via.f64);
    case MSGPACK_OBJECT_BOOLEAN:
        return cJSON_CreateBool(value->via.boolean);
    case MSGPACK_OBJECT_STR:
        snprintf(text, sizeof text, "%.*s", (int)value->via.str.size, value->via.str.ptr);
        return cJSON_CreateString(clean(text, true));
    case MSGPACK_OBJECT_ARRAY: {
        cJSON *array = cJSON_CreateArray();
        for (uint32_t i = 0; depth < 8 && i < value->via.array.size; i++)
            cJSON_AddItemToArray(array, map_value(&value->via.array.ptr[i], depth + 1));
        return array;
    }
    case MSGPACK_OBJECT_MAP:
        return map_json(value);
    default:
        return cJSON_CreateNull();
    }
}

cJSON *map_json(const msgpack_object *map)
{
    cJSON *row = cJSON_CreateObject();
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        char name[64];
        if (kv->key.type != MSGPACK_OBJECT_STR)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)kv->key.via.str.size, kv->key.via.str.ptr);
        cJSON_AddItemToObject(row, clean(name, true), map_value(&kv->val, 0));
    }
    return row;
}

static int each_row(struct ctl *ctl, row_fn *fn, void *context)
{
    struct rows rows;
    int rc = rows_open(&rows, &ctl->call.in.rows);
    for (uint32_t i = 0; rc == 0 && i < rows.count; i++)
        fn(context, &rows.row[i]);
    rows_close(&rows);
    return rc == 0 ? 0
                   : ctl_fail(ctl, "the daemon's rows are not what this program understands; are both of one version?");
}

static int one_page(struct ctl *ctl, struct msg request, uint64_t *cursor, row_fn *fn, void *context)
{
    int rc = ctl_connect(ctl);
    if (rc == 0)
        rc = ctl_call(ctl, request);
    if (rc != 0)
        return rc;
    *cursor = ctl->call.in.rows.cursor;
    return each_row(ctl, fn, context);
}

int ctl_each_info(struct ctl *ctl, unsigned what, row_fn *fn, void *context)
{
    uint64_t cursor = 0;
    int rc;
    do
        rc = one_page(ctl, MSG(info, .what = what, .cursor = cursor), &cursor, fn, context);
    while (rc == 0 && cursor);
    return rc;
}

int ctl_each_gc(struct ctl *ctl, unsigned flags, row_fn *fn, void *context)
{
    uint64_t cursor = 0;
    int rc;
    do
        rc = one_page(ctl, MSG(gc, .flags = flags, .cursor = cursor), &cursor, fn, context);
    while (rc == 0 && cursor);
    return rc;
}

/* ---- rows as JSON values --------------------------------------------------------------------- */

static void add_row(void *context, const msgpack_object *map)
{
    cJSON_AddItemToArray(context, map_json(map));
}

cJSON *ctl_rows(struct ctl *ctl, unsigned what)
{
    cJSON *rows = cJSON_CreateArray();
    if (ctl_each_info(ctl, what, add_row, rows) == 0)
        return rows;
    cJSON_Delete(rows);
    return NULL;
}

cJSON *ctl_row(struct ctl *ctl, unsigned what)
{
    cJSON *rows = ctl_rows(ctl, what), *row = rows ? cJSON_DetachItemFromArray(rows, 0) : NULL;
    if (rows && !row)
        ctl_fail(ctl, "the daemon answered nothing; are both of one version?");
    cJSON_Delete(rows);
    return row;
}

uint64_t row_number(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    if (cJSON_IsRaw(item))
        return strtoull(item->valuestring, NULL, 10);
    return cJSON_IsNumber(item) ? (uint64_t)item->valuedouble : 0;
}

const char *row_text(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    return cJSON_IsString(item) ? item->valuestring : "";
}

void print_json(cJSON *value)
{
    char *text = cJSON_Print(value);
    puts(text ? text : "null");
    free(text);
    cJSON_Delete(value);
}
