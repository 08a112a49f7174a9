#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <msgpack.h>

#include "client/client.h"
#include "client/ctl/ctl.h"
#include "proto/packet.h"

static uint8_t packet[MSG_MAX];

int ctl_call(struct ctl *ctl, struct msg *m, struct msg *ret, uint32_t expect)
{
    char why[MSG_TEXT_MAX + 1] = "";
    m->id = ++ctl->next_id;
    int bytes = msg_encode(m, packet, sizeof packet);
    int rc = bytes < 0 ? bytes : packet_send(ctl->fd, packet, (size_t)bytes, NULL, 0, 0);
    for (;;) {
        ssize_t got = packet_receive(ctl->fd, packet, sizeof packet, NULL, 0, NULL, 0);
        if (got <= 0) {
            fprintf(stderr, "arenactl: the daemon closed the connection%s%s\n", rc < 0 ? ": " : "", rc < 0 ? strerror(-rc) : "");
            return CTL_UNREACHABLE;
        }
        if (msg_decode(ret, packet, (size_t)got, why) < 0) {
            fprintf(stderr, "arenactl: the daemon said what this program does not understand: %s\n", why);
            return CTL_UNREACHABLE;
        }
        if (ret->type == MSG_ERROR && (ret->id == m->id || ret->id == 0)) {
            fprintf(stderr, "arenactl: refused: %s\n", ret->text);
            return CTL_UNREACHABLE;
        }
        if (ret->id == m->id && ret->type == expect)
            return 0;
    }
}

int ctl_connect(struct ctl *ctl)
{
    static struct msg m, reply;
    char buf[256];
    if (ctl->fd >= 0)
        return 0;
    const char *path = socket_path(ctl->socket, buf, sizeof buf);
    ctl->fd = conn_connect(path);
    if (ctl->fd < 0) {
        fprintf(stderr, "arenactl: no daemon at %s: %s\n", path, strerror(-ctl->fd));
        ctl->fd = -1;
        return CTL_UNREACHABLE;
    }
    m.type = MSG_HELLO;
    m.version_min = m.version = PROTO_VERSION;
    m.layout = LAYOUT_VERSION;
    m.flags = HELLO_MONITOR;
    return ctl_call(ctl, &m, &reply, MSG_OK);
}

void ctl_disconnect(struct ctl *ctl)
{
    if (ctl->fd >= 0)
        close(ctl->fd);
    ctl->fd = -1;
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

static cJSON *row_of(const msgpack_object *map)
{
    cJSON *row = cJSON_CreateObject();
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        char name[64], text[512];
        if (kv->key.type != MSGPACK_OBJECT_STR)
            continue;
        snprintf(name, sizeof name, "%.*s", (int)kv->key.via.str.size, kv->key.via.str.ptr);
        if (kv->val.type == MSGPACK_OBJECT_POSITIVE_INTEGER)
            cJSON_AddItemToObject(row, name, number_value(kv->val.via.u64));
        else if (kv->val.type == MSGPACK_OBJECT_STR) {
            snprintf(text, sizeof text, "%.*s", (int)kv->val.via.str.size, kv->val.via.str.ptr);
            cJSON_AddStringToObject(row, name, text);
        }
    }
    return row;
}

static int add_rows(cJSON *rows, const struct msg *reply)
{
    msgpack_unpacked unpacked;
    int rc = 0;
    if (msg_precheck(reply->body, reply->body_bytes, 3) < 0)
        return CTL_UNREACHABLE;
    msgpack_unpacked_init(&unpacked);
    if (msgpack_unpack_next(&unpacked, (const char *)reply->body, reply->body_bytes, NULL) != MSGPACK_UNPACK_SUCCESS ||
        unpacked.data.type != MSGPACK_OBJECT_ARRAY)
        rc = CTL_UNREACHABLE;
    for (uint32_t i = 0; rc == 0 && i < unpacked.data.via.array.size; i++)
        if (unpacked.data.via.array.ptr[i].type == MSGPACK_OBJECT_MAP)
            cJSON_AddItemToArray(rows, row_of(&unpacked.data.via.array.ptr[i]));
    msgpack_unpacked_destroy(&unpacked);
    return rc;
}

cJSON *ctl_rows(struct ctl *ctl, unsigned what)
{
    static struct msg m, reply;
    uint64_t cursor = 0;
    if (ctl_connect(ctl) != 0)
        return NULL;
    cJSON *rows = cJSON_CreateArray();
    do {
        m.type = MSG_INFO;
        m.what = what;
        m.cursor = cursor;
        if (ctl_call(ctl, &m, &reply, MSG_ROWS) != 0 || add_rows(rows, &reply) != 0) {
            cJSON_Delete(rows);
            return NULL;
        }
        cursor = reply.cursor;
    } while (cursor);
    return rows;
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

const char *human(uint64_t bytes)
{
    static char buffers[8][16];
    static unsigned next;
    char *out = buffers[next++ % 8];
    static const char units[] = " KMGTP";
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1024 && units[unit + 1]) {
        value /= 1024;
        unit++;
    }
    snprintf(out, 16, unit && value < 100 ? "%.1f%c" : "%.0f%c", value, units[unit]);
    if (!unit)
        out[strlen(out) - 1] = 0;
    return out;
}
