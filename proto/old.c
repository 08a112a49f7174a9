#include "proto/old.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <msgpack.h>

enum kind { KIND_END, KIND_U32, KIND_OPT32, KIND_U64, KIND_STR, KIND_BIN, KIND_LIST };

struct field {
    const char *name;
    enum kind kind;
    uint64_t least, most;
    size_t at, count_at; /* in struct msg; count_at of BIN and LIST */
};

#define AT_U32(name)  offsetof(struct msg, name), 0
#define AT_OPT32(name) AT_U32(name)
#define AT_U64(name)  offsetof(struct msg, name), 0
#define AT_STR(name)  offsetof(struct msg, name), 0
#define AT_BIN(name)  offsetof(struct msg, name), offsetof(struct msg, name##_bytes)
#define AT_LIST(name) offsetof(struct msg, name), offsetof(struct msg, name##_count)

enum field_number {
#define FIELD_NUMBER(name, kind, least, most) FIELD_##name,
    MSG_FIELDS(FIELD_NUMBER)
#undef FIELD_NUMBER
};

static const struct field fields[] = {
#define FIELD_ROW(name, kind, least, most) {#name, KIND_##kind, (least), (most), AT_##kind(name)},
    MSG_FIELDS(FIELD_ROW)
#undef FIELD_ROW
};

#define FIELDS_MAX 12
struct message {
    const char *name;
    uint32_t number;
    bool from_client;
    int field_count;
    uint8_t fields[FIELDS_MAX];
};

/* (a, b, c) -> FIELD_a, FIELD_b, FIELD_c */
#define NUMBER_OF(name)  FIELD_##name
#define F1(a)            NUMBER_OF(a)
#define F2(a, ...)       NUMBER_OF(a), F1(__VA_ARGS__)
#define F3(a, ...)       NUMBER_OF(a), F2(__VA_ARGS__)
#define F4(a, ...)       NUMBER_OF(a), F3(__VA_ARGS__)
#define F5(a, ...)       NUMBER_OF(a), F4(__VA_ARGS__)
#define F6(a, ...)       NUMBER_OF(a), F5(__VA_ARGS__)
#define F7(a, ...)       NUMBER_OF(a), F6(__VA_ARGS__)
#define F8(a, ...)       NUMBER_OF(a), F7(__VA_ARGS__)
#define F9(a, ...)       NUMBER_OF(a), F8(__VA_ARGS__)
#define F10(a, ...)      NUMBER_OF(a), F9(__VA_ARGS__)
#define PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, N, ...) N
#define COUNT(...)       PICK(__VA_ARGS__, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)
#define NUMBERS(...)     PICK(__VA_ARGS__, F10, F9, F8, F7, F6, F5, F4, F3, F2, F1, 0)(__VA_ARGS__)
#define SENDER_CLIENT    true
#define SENDER_DAEMON    false

static const struct message messages[] = {
#define MESSAGE_ROW(name, number, sender, list) {#name, number, SENDER_##sender, COUNT list, {NUMBERS list}},
    MSG_TABLE(MESSAGE_ROW)
#undef MESSAGE_ROW
};

static const struct message *message_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++)
        if (messages[i].number == type)
            return &messages[i];
    return NULL;
}

const char *msg_name(uint32_t type)
{
    const struct message *message = message_of(type);
    return message ? message->name : "unknown";
}

int msg_from_client(uint32_t type)
{
    const struct message *message = message_of(type);
    return message && message->from_client;
}

/* ---- encoding --------------------------------------------------------------------------------------------------------- */

struct out {
    uint8_t *at, *end;
    bool full;
};

static int out_write(void *data, const char *bytes, size_t count)
{
    struct out *out = data;
    if ((size_t)(out->end - out->at) < count) {
        out->full = true;
        return -1;
    }
    if (count)
        memcpy(out->at, bytes, count);
    out->at += count;
    return 0;
}

static int encode_field(msgpack_packer *pk, const struct msg *m, const struct field *f)
{
    const uint8_t *at = (const uint8_t *)m + f->at;
    uint64_t number = 0;
    uint32_t count = 0;
    if (f->kind == KIND_U32 || f->kind == KIND_OPT32)
        number = *(const uint32_t *)(const void *)at;
    else if (f->kind == KIND_U64)
        number = *(const uint64_t *)(const void *)at;
    else if (f->kind == KIND_STR)
        number = strnlen((const char *)at, MSG_TEXT_MAX);
    else
        number = count = *(const uint32_t *)(const void *)((const uint8_t *)m + f->count_at);
    if (number < f->least || number > f->most)
        return -EINVAL;
    switch (f->kind) {
    case KIND_STR:
        msgpack_pack_str(pk, number);
        return msgpack_pack_str_body(pk, at, number) ? -EINVAL : 0;
    case KIND_BIN:
        msgpack_pack_bin(pk, count);
        return msgpack_pack_bin_body(pk, *(const uint8_t *const *)(const void *)at, count) ? -EINVAL : 0;
    case KIND_LIST:
        msgpack_pack_array(pk, count);
        for (uint32_t i = 0; i < count; i++)
            msgpack_pack_uint32(pk, ((const uint32_t *)(const void *)at)[i]);
        return 0;
    default:
        return msgpack_pack_uint64(pk, number) ? -EINVAL : 0;
    }
}

int msg_encode(const struct msg *m, uint8_t *buf, size_t capacity)
{
    const struct message *message = message_of(m->type);
    struct out out = {buf, buf + capacity, false};
    if (!message)
        return -EINVAL;
    msgpack_packer pk;
    msgpack_packer_init(&pk, &out, out_write);
    msgpack_pack_array(&pk, (size_t)message->field_count + 2);
    msgpack_pack_uint32(&pk, m->type);
    msgpack_pack_uint32(&pk, m->id);
    for (int i = 0; i < message->field_count; i++)
        if (encode_field(&pk, m, &fields[message->fields[i]]) < 0)
            return -EINVAL;
    return out.full ? -EINVAL : (int)(out.at - buf);
}

/* ---- decoding --------------------------------------------------------------------------------------------------------- */

/* the size of a msgpack element's head by its first byte: how many bytes follow it, how many elements it announces */
static bool element_head(const uint8_t *p, size_t left, size_t *ret_bytes, uint64_t *ret_elements)
{
    static const uint8_t length_bytes[32] = {
        [0x04] = 1, [0x05] = 2, [0x06] = 4,             /* bin */
        [0x07] = 1, [0x08] = 2, [0x09] = 4,             /* ext */
        [0x19] = 1, [0x1a] = 2, [0x1b] = 4,             /* str */
        [0x1c] = 2, [0x1d] = 4, [0x1e] = 2, [0x1f] = 4, /* array, map */
    };
    static const uint8_t fixed_bytes[32] = {
        [0x0a] = 4, [0x0b] = 8, [0x0c] = 1, [0x0d] = 2, [0x0e] = 4, [0x0f] = 8, /* floats, unsigned */
        [0x10] = 1, [0x11] = 2, [0x12] = 4, [0x13] = 8,                         /* signed */
        [0x14] = 2, [0x15] = 3, [0x16] = 5, [0x17] = 9, [0x18] = 17,            /* fixed ext */
    };
    uint8_t b = p[0];
    *ret_elements = 0;
    *ret_bytes = 1;
    if (b < 0x80 || b >= 0xe0)
        return true;
    if (b < 0x90)
        *ret_elements = 2 * (uint64_t)(b & 15);
    else if (b < 0xa0)
        *ret_elements = b & 15;
    else if (b < 0xc0)
        *ret_bytes = 1 + (size_t)(b & 31);
    else if (length_bytes[b - 0xc0]) {
        size_t n = length_bytes[b - 0xc0];
        uint64_t length = 0;
        if (left < 1 + n)
            return false;
        for (size_t i = 0; i < n; i++)
            length = length << 8 | p[1 + i];
        *ret_bytes = 1 + n;
        if (b >= 0xde)
            *ret_elements = 2 * length;
        else if (b >= 0xdc)
            *ret_elements = length;
        else
            *ret_bytes += length + (b >= 0xc7 && b <= 0xc9 ? 1 : 0);
    } else
        *ret_bytes = 1 + (size_t)fixed_bytes[b - 0xc0];
    return b != 0xc1 && *ret_bytes <= left;
}

static const uint8_t *precheck(const uint8_t *p, const uint8_t *end, unsigned depth)
{
    size_t bytes;
    uint64_t elements;
    if (p >= end || !element_head(p, (size_t)(end - p), &bytes, &elements))
        return NULL;
    p += bytes;
    if (elements > (uint64_t)(end - p) || (elements && depth == 0))
        return NULL;
    for (uint64_t i = 0; i < elements && p; i++)
        p = precheck(p, end, depth - 1);
    return p;
}

int msg_precheck(const uint8_t *bytes, size_t count, unsigned depth)
{
    const uint8_t *end = precheck(bytes, bytes + count, depth);
    return end == bytes + count ? 0 : -EPROTO;
}

static const char *decode_number(const msgpack_object *o, const struct field *f, uint64_t *ret)
{
    if (o->type != MSGPACK_OBJECT_POSITIVE_INTEGER)
        return "is not an unsigned number";
    if (o->via.u64 < f->least || o->via.u64 > f->most)
        return "is out of range";
    *ret = o->via.u64;
    return NULL;
}

static const char *decode_list(struct msg *m, const msgpack_object *o, const struct field *f)
{
    uint32_t *list = (uint32_t *)(void *)((uint8_t *)m + f->at);
    if (o->type != MSGPACK_OBJECT_ARRAY)
        return "is not an array";
    if (o->via.array.size > f->most)
        return "has too many elements";
    for (uint32_t i = 0; i < o->via.array.size; i++) {
        const msgpack_object *e = &o->via.array.ptr[i];
        if (e->type != MSGPACK_OBJECT_POSITIVE_INTEGER || e->via.u64 > UINT32_MAX)
            return "holds something that is not a 32-bit number";
        list[i] = (uint32_t)e->via.u64;
    }
    *(uint32_t *)(void *)((uint8_t *)m + f->count_at) = o->via.array.size;
    return NULL;
}

static const char *decode_field(struct msg *m, const msgpack_object *o, const struct field *f)
{
    uint8_t *at = (uint8_t *)m + f->at;
    uint64_t number = 0;
    const char *why;
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32:
        if ((why = decode_number(o, f, &number)) == NULL)
            *(uint32_t *)(void *)at = (uint32_t)number;
        return why;
    case KIND_U64:
        if ((why = decode_number(o, f, &number)) == NULL)
            *(uint64_t *)(void *)at = number;
        return why;
    case KIND_STR:
        if (o->type != MSGPACK_OBJECT_STR)
            return "is not a string";
        if (o->via.str.size > f->most || (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
            return "is too long or holds a NUL";
        if (o->via.str.size) /* of an empty string msgpack has no pointer */
            memcpy(at, o->via.str.ptr, o->via.str.size);
        at[o->via.str.size] = 0;
        return NULL;
    case KIND_BIN:
        if (o->type != MSGPACK_OBJECT_BIN)
            return "is not binary";
        if (o->via.bin.size > f->most)
            return "is too long";
        *(const uint8_t **)(void *)at = (const uint8_t *)o->via.bin.ptr;
        *(uint32_t *)(void *)((uint8_t *)m + f->count_at) = o->via.bin.size;
        return NULL;
    case KIND_LIST:
        return decode_list(m, o, f);
    default:
        return "is unknown";
    }
}

static int decode_array(struct msg *m, const msgpack_object *array, char *ret_why)
{
    const msgpack_object *e = array->via.array.ptr;
    uint32_t count = array->via.array.size;
    if (count < 2 || e[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || e[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
        e[0].via.u64 > UINT32_MAX || e[1].via.u64 > UINT32_MAX) {
        snprintf(ret_why, MSG_TEXT_MAX, "a message must begin with two numbers, its type and its id");
        return -EPROTO;
    }
    m->type = (uint32_t)e[0].via.u64;
    m->id = (uint32_t)e[1].via.u64;
    const struct message *message = message_of(m->type);
    if (!message) {
        snprintf(ret_why, MSG_TEXT_MAX, "unknown message type %u", m->type);
        return -EPROTO;
    }
    for (int i = 0; i < message->field_count; i++) {
        const struct field *f = &fields[message->fields[i]];
        if ((uint32_t)i + 2 >= count && f->kind == KIND_OPT32) {
            *(uint32_t *)(void *)((uint8_t *)m + f->at) = 0;
            continue;
        }
        if ((uint32_t)i + 2 >= count) {
            snprintf(ret_why, MSG_TEXT_MAX, "%s has %u fields, not %d", message->name, count - 2, message->field_count);
            return -EPROTO;
        }
        const char *why = decode_field(m, &e[i + 2], f);
        if (why) {
            snprintf(ret_why, MSG_TEXT_MAX, "%s: field %s %s", message->name, f->name, why);
            return -EPROTO;
        }
    }
    return 0;
}

int msg_decode(struct msg *ret, const uint8_t *packet, size_t bytes, char *ret_why)
{
    if (bytes > MSG_MAX || msg_precheck(packet, bytes, 2) < 0) {
        snprintf(ret_why, MSG_TEXT_MAX, "a packet of %zu bytes that is not one msgpack array of depth 2", bytes);
        return -EPROTO;
    }
    msgpack_zone zone;
    if (!msgpack_zone_init(&zone, 2048))
        return snprintf(ret_why, MSG_TEXT_MAX, "out of memory"), -ENOMEM;
    msgpack_object object;
    int rc = -EPROTO;
    if (msgpack_unpack((const char *)packet, bytes, NULL, &zone, &object) != MSGPACK_UNPACK_SUCCESS ||
        object.type != MSGPACK_OBJECT_ARRAY)
        snprintf(ret_why, MSG_TEXT_MAX, "a packet of %zu bytes that is not a msgpack array", bytes);
    else
        rc = decode_array(ret, &object, ret_why);
    msgpack_zone_destroy(&zone);
    return rc;
}
