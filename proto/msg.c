#include "proto/msg.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include <msgpack.h>

enum kind { KIND_U32, KIND_OPT32, KIND_U64, KIND_STR, KIND_BIN, KIND_LIST, KIND_JOB, KIND_PAD };

struct field {
    const char *name;
    enum kind kind;
    uint64_t least, most;
    size_t at, count_at; /* in the message's struct; count_at of BIN and LIST */
};

struct message {
    const char *name;
    uint32_t type;
    bool from_client;
    uint32_t reply;
    int field_count;
    const struct field *fields;
};

#define AT_U32(message, field)   offsetof(struct msg_##message, field), 0
#define AT_OPT32(message, field) AT_U32(message, field)
#define AT_U64(message, field)   AT_U32(message, field)
#define AT_STR(message, field)   AT_U32(message, field)
#define AT_BIN(message, field)   offsetof(struct msg_##message, field), offsetof(struct msg_##message, field##_bytes)
#define AT_LIST(message, field)  offsetof(struct msg_##message, field), offsetof(struct msg_##message, field##_count)
#define AT_JOB(message, field)   0, 0
#define AT_PAD(message, field)   0, 0
#define SENDER_CLIENT            true
#define SENDER_DAEMON            false

#define FIELD_ROW(message, field, kind, least, most) {#field, KIND_##kind, (least), (most), AT_##kind(message, field)},
#define FIELD_ROWS(NAME, name, number, sender, reply, list) \
    static const struct field fields_of_##name[] = {MSG_EACH(FIELD_ROW, name, list)};
MSG_TABLE(FIELD_ROWS)

#define MESSAGE_ROW(NAME, name, number, sender, reply, list) \
    {#NAME, MSG_##NAME, SENDER_##sender, MSG_##reply, sizeof fields_of_##name / sizeof(struct field), fields_of_##name},
static const struct message messages[] = {MSG_TABLE(MESSAGE_ROW)};

static const struct message *message_of(uint32_t type)
{
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++)
        if (messages[i].type == type)
            return &messages[i];
    return NULL;
}

/* The number in the packet, and the job where several messages share it. */
static uint32_t number_of(const struct message *message) { return message->type & MSG_NUMBER_MAX; }
static uint32_t job_of(const struct message *message) { return message->type / MSG_JOB(0, 1); }
static bool has_job(const struct message *message) { return message->fields[0].kind == KIND_JOB; }

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

uint32_t msg_reply(uint32_t type)
{
    const struct message *message = message_of(type);
    return message ? message->reply : (uint32_t)MSG_NONE;
}

/* The fields of all messages begin at one place: they are a union. */
static const void *part(const struct msg *m, size_t at) { return (const uint8_t *)&m->hello + at; }
static void *part_of(struct msg *m, size_t at) { return (uint8_t *)&m->hello + at; }

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

/* What the range of a field is about: its value, or its length. */
static uint64_t measure(const struct message *message, const struct msg *m, const struct field *f)
{
    const char *text;
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32: return *(const uint32_t *)part(m, f->at);
    case KIND_U64: return *(const uint64_t *)part(m, f->at);
    case KIND_STR:
        text = *(const char *const *)part(m, f->at);
        return text ? strnlen(text, f->most + 1) : 0;
    case KIND_BIN:
    case KIND_LIST: return *(const uint32_t *)part(m, f->count_at);
    case KIND_JOB: return job_of(message);
    default: return 0;
    }
}

static int encode_field(msgpack_packer *pk, const struct message *message, const struct msg *m, const struct field *f)
{
    uint64_t number = measure(message, m, f);
    if (number < f->least || number > f->most)
        return -EINVAL;
    switch (f->kind) {
    case KIND_STR:
        msgpack_pack_str(pk, number);
        return msgpack_pack_str_body(pk, *(const char *const *)part(m, f->at), number) ? -EINVAL : 0;
    case KIND_BIN:
        msgpack_pack_bin(pk, number);
        return msgpack_pack_bin_body(pk, *(const uint8_t *const *)part(m, f->at), number) ? -EINVAL : 0;
    case KIND_LIST:
        msgpack_pack_array(pk, number);
        for (uint64_t i = 0; i < number; i++)
            msgpack_pack_uint32(pk, (*(const uint32_t *const *)part(m, f->at))[i]);
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
    msgpack_pack_uint32(&pk, number_of(message));
    msgpack_pack_uint32(&pk, m->id);
    for (int i = 0; i < message->field_count; i++)
        if (encode_field(&pk, message, m, &message->fields[i]) < 0)
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

static const char *decode_text(const char **ret, struct msg_space *space, const msgpack_object *o, const struct field *f)
{
    if (o->type != MSGPACK_OBJECT_STR)
        return "is not a string";
    if (o->via.str.size > f->most || (o->via.str.size && memchr(o->via.str.ptr, 0, o->via.str.size)))
        return "is too long or holds a NUL";
    if (o->via.str.size) /* of an empty string msgpack has no pointer */
        memcpy(space->text, o->via.str.ptr, o->via.str.size);
    space->text[o->via.str.size] = 0;
    *ret = space->text;
    return NULL;
}

static const char *decode_list(struct msg *m, struct msg_space *space, const msgpack_object *o, const struct field *f)
{
    if (o->type != MSGPACK_OBJECT_ARRAY)
        return "is not an array";
    if (o->via.array.size > f->most)
        return "has too many elements";
    for (uint32_t i = 0; i < o->via.array.size; i++) {
        const msgpack_object *e = &o->via.array.ptr[i];
        if (e->type != MSGPACK_OBJECT_POSITIVE_INTEGER || e->via.u64 > UINT32_MAX)
            return "holds something that is not a 32-bit number";
        space->list[i] = (uint32_t)e->via.u64;
    }
    *(const uint32_t **)part_of(m, f->at) = space->list;
    *(uint32_t *)part_of(m, f->count_at) = o->via.array.size;
    return NULL;
}

/* A message has one text and one list at most: each is in `space` (tests/proto/msg_test.c looks). */
static const char *decode_field(struct msg *m, struct msg_space *space, const msgpack_object *o, const struct field *f)
{
    uint64_t number = 0;
    const char *why;
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32:
        if ((why = decode_number(o, f, &number)) == NULL)
            *(uint32_t *)part_of(m, f->at) = (uint32_t)number;
        return why;
    case KIND_U64:
        if ((why = decode_number(o, f, &number)) == NULL)
            *(uint64_t *)part_of(m, f->at) = number;
        return why;
    case KIND_STR: return decode_text(part_of(m, f->at), space, o, f);
    case KIND_BIN:
        if (o->type != MSGPACK_OBJECT_BIN)
            return "is not binary";
        if (o->via.bin.size > f->most)
            return "is too long";
        *(const uint8_t **)part_of(m, f->at) = (const uint8_t *)o->via.bin.ptr;
        *(uint32_t *)part_of(m, f->count_at) = o->via.bin.size;
        return NULL;
    case KIND_LIST: return decode_list(m, space, o, f);
    default: return decode_number(o, f, &number); /* a JOB is in the type already */
    }
}

/* Which message it is: by its number, and by its job where it shares that one. */
static const struct message *message_in(const msgpack_object *e, uint32_t count)
{
    for (size_t i = 0; i < sizeof messages / sizeof messages[0]; i++) {
        const struct message *message = &messages[i];
        if (e[0].via.u64 == number_of(message) &&
            (!has_job(message) || (count > 2 && e[2].type == MSGPACK_OBJECT_POSITIVE_INTEGER && e[2].via.u64 == job_of(message))))
            return message;
    }
    return NULL;
}

static int decode_array(struct msg *m, struct msg_space *space, const msgpack_object *array, char *ret_why)
{
    const msgpack_object *e = array->via.array.ptr;
    uint32_t count = array->via.array.size;
    if (count < 2 || e[0].type != MSGPACK_OBJECT_POSITIVE_INTEGER || e[1].type != MSGPACK_OBJECT_POSITIVE_INTEGER ||
        e[0].via.u64 > UINT32_MAX || e[1].via.u64 > UINT32_MAX) {
        snprintf(ret_why, MSG_TEXT_MAX, "a message must begin with two numbers, its type and its id");
        return -EPROTO;
    }
    m->id = (uint32_t)e[1].via.u64;
    const struct message *message = message_in(e, count);
    if (!message) {
        snprintf(ret_why, MSG_TEXT_MAX, "unknown message type %u, or a job that it does not have", (uint32_t)e[0].via.u64);
        return -EPROTO;
    }
    m->type = message->type;
    for (int i = 0; i < message->field_count; i++) {
        const struct field *f = &message->fields[i];
        if ((uint32_t)i + 2 >= count && f->kind == KIND_OPT32)
            continue;
        if ((uint32_t)i + 2 >= count) {
            snprintf(ret_why, MSG_TEXT_MAX, "%s has %u fields, not %d", message->name, count - 2, message->field_count);
            return -EPROTO;
        }
        const char *why = decode_field(m, space, &e[i + 2], f);
        if (why) {
            snprintf(ret_why, MSG_TEXT_MAX, "%s: field %s %s", message->name, f->name, why);
            return -EPROTO;
        }
    }
    return 0;
}

int msg_decode(struct msg *ret, struct msg_space *space, const uint8_t *packet, size_t bytes, char *ret_why)
{
    memset(ret, 0, sizeof *ret);
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
        rc = decode_array(ret, space, &object, ret_why);
    msgpack_zone_destroy(&zone);
    return rc;
}
