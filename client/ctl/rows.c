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
#include "proto/packet.h"

static uint8_t packet[MSG_MAX];

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

static int send_hello(int fd, uint32_t id)
{
    static struct msg m;
    static uint8_t hello[256];
    m = (struct msg){.type = MSG_HELLO,
                     .id = id,
                     .version_min = PROTO_VERSION,
                     .version = PROTO_VERSION,
                     .layout = LAYOUT_VERSION,
                     .flags = HELLO_MONITOR};
    int bytes = msg_encode(&m, hello, sizeof hello);
    return bytes < 0 ? bytes : packet_send(fd, hello, (size_t)bytes, NULL, 0, 0);
}

/* 1: there is something to read, or the end; 0: not for so long; -1: a signal came. */
static int wait_readable(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};
    return poll(&p, 1, ANSWER_MS);
}

/* Does it answer anybody? To count a large heap or to collect takes it long, and it serves others meanwhile. */
static bool is_awake(const struct ctl *ctl)
{
    char buf[256];
    int fd = connect_patiently(ctl_socket(ctl, buf, sizeof buf));
    if (fd < 0)
        return false;
    bool awake = send_hello(fd, 1) == 0;
    for (int rc; awake && (rc = wait_readable(fd)) != 1;)
        awake = rc < 0 && errno == EINTR && (!ctl->wait || ctl->wait((struct ctl *)ctl) == 0);
    close(fd);
    return awake;
}

/* Until there is a reply to read. */
static int wait_reply(struct ctl *ctl, bool is_hello)
{
    for (;;) {
        if (ctl->wait && ctl->wait(ctl) != 0)
            return CTL_UNREACHABLE;
        int rc = wait_readable(ctl->fd);
        if (rc == 1)
            return 0;
        if (rc == 0 && (is_hello || !is_awake(ctl)))
            return ctl_fail(ctl,
                            "the daemon has not answered for %d seconds: is it stopped, or still "
                            "starting? See its log, and try again",
                            ANSWER_MS / 1000);
    }
}

int ctl_call(struct ctl *ctl, struct msg *m, struct msg *ret, uint32_t expect)
{
    char why[MSG_TEXT_MAX + 1] = "";
    m->id = ++ctl->next_id;
    int bytes = msg_encode(m, packet, sizeof packet);
    int rc = bytes < 0 ? bytes : packet_send(ctl->fd, packet, (size_t)bytes, NULL, 0, 0);
    for (;;) {
        ctl->closed = false;
        int waited = wait_reply(ctl, m->type == MSG_HELLO);
        if (waited != 0)
            return waited;
        ssize_t got = packet_receive(ctl->fd, packet, sizeof packet, NULL, 0, NULL, 0);
        if (got == -EAGAIN)
            continue;
        ctl->closed = got <= 0;
        if (ctl->closed)
            return ctl_fail(
                ctl,
                "the daemon closed the connection%s%s: has it ended? See its log, and try again",
                rc < 0 ? ": " : "", rc < 0 ? strerror(-rc) : "");
        if (msg_decode(ret, packet, (size_t)got, why) < 0)
            return ctl_fail(ctl,
                            "the daemon said what this program does not understand: %s; are both "
                            "of one version?",
                            clean(why, false));
        if (ret->type == MSG_ERROR && (ret->id == m->id || ret->id == 0))
            return ctl_fail(ctl, "the daemon refused: %s", clean(ret->text, false));
        if (ret->id == m->id && ret->type == expect)
            return 0;
    }
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

static int say_hello(struct ctl *ctl)
{
    static struct msg m, reply;
    m.type = MSG_HELLO;
    m.version_min = m.version = PROTO_VERSION;
    m.layout = LAYOUT_VERSION;
    m.flags = HELLO_MONITOR;
    return ctl_call(ctl, &m, &reply, MSG_OK);
}

/* A daemon that ends leaves its newest connections without an answer: it is tried again, until nobody is there or another
 * daemon is. */
int ctl_connect(struct ctl *ctl)
{
    enum { TRIES = 3 };
    const bool hold_errors = ctl->hold_errors;
    char buf[256];
    if (ctl->fd >= 0)
        return 0;
    const char *path = ctl_socket(ctl, buf, sizeof buf);
    for (int tries = 1;; tries++) {
        ctl->fd = connect_patiently(path);
        if (ctl->fd < 0) {
            int error = -ctl->fd;
            ctl->fd = -1;
            return ctl_fail(ctl, "no daemon at %s: %s; %s", clean(path, false), strerror(error),
                            advice(error));
        }
        ctl->closed = false;
        ctl->hold_errors = true;
        int rc = say_hello(ctl);
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
    if (ctl->fd >= 0)
        close(ctl->fd);
    ctl->fd = -1;
}

/* ---- rows as they come ----------------------------------------------------------------------- */

static bool is_named(const msgpack_object_kv *kv, const char *name)
{
    size_t length = strlen(name);
    return kv->key.type == MSGPACK_OBJECT_STR && kv->key.via.str.size == length &&
           memcmp(kv->key.via.str.ptr, name, length) == 0;
}

uint64_t map_number(const msgpack_object *row, const char *name)
{
    for (uint32_t i = 0; i < row->via.map.size; i++)
        if (is_named(&row->via.map.ptr[i], name) &&
            row->via.map.ptr[i].val.type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            return row->via.map.ptr[i].val.via.u64;
    return 0;
}

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

static int each_row(struct ctl *ctl, const struct msg *reply, row_fn *fn, void *context)
{
    msgpack_unpacked unpacked;
    int rc = 0;
    msgpack_unpacked_init(&unpacked);
    if (msg_precheck(reply->body, reply->body_bytes, 8) < 0 ||
        msgpack_unpack_next(&unpacked, (const char *)reply->body, reply->body_bytes, NULL) !=
            MSGPACK_UNPACK_SUCCESS ||
        unpacked.data.type != MSGPACK_OBJECT_ARRAY)
        rc = ctl_fail(
            ctl,
            "the daemon's rows are not what this program understands; are both of one version?");
    for (uint32_t i = 0; rc == 0 && i < unpacked.data.via.array.size; i++)
        if (unpacked.data.via.array.ptr[i].type == MSGPACK_OBJECT_MAP)
            fn(context, &unpacked.data.via.array.ptr[i]);
    msgpack_unpacked_destroy(&unpacked);
    return rc;
}

int ctl_each(struct ctl *ctl, struct msg *m, row_fn *fn, void *context)
{
    static struct msg reply;
    int rc = ctl_connect(ctl);
    m->cursor = 0;
    while (rc == 0) {
        rc = ctl_call(ctl, m, &reply, MSG_ROWS);
        if (rc == 0)
            rc = each_row(ctl, &reply, fn, context);
        if (!reply.cursor)
            break;
        m->cursor = reply.cursor;
    }
    return rc;
}

int ctl_each_info(struct ctl *ctl, unsigned what, row_fn *fn, void *context)
{
    static struct msg m;
    m.type = MSG_INFO;
    m.what = what;
    return ctl_each(ctl, &m, fn, context);
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
