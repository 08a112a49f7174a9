/* proto/msg: the table of messages, its types, its encoder and its decoder.
 *
 * Goal: what one side writes the other reads; everything that does not fit the table is refused
 * with a line that names message and field; and no packet, however it was made, costs more than its
 * length in memory or more than two levels of stack. Method: the tests follow the table, so that a
 * new message is tested as soon as it is there; packets that the encoder would never write are
 * built byte by byte. The seed is printed; SEED replays it.
 */
#include "tests/shm/fixture.h"

#include <errno.h>

#include <msgpack.h>

#include "proto/msg.h"

enum kind { KIND_U32, KIND_OPT32, KIND_U64, KIND_STR, KIND_BIN, KIND_LIST, KIND_JOB, KIND_PAD };

struct field {
    const char *name;
    enum kind kind;
    uint64_t least, most;
    size_t at, count_at; /* in struct msg */
};

enum { FIELDS_MAX = 16 };

struct message {
    const char *name;
    uint32_t type;
    int from_client;
    uint32_t reply;
    const struct field *fields;
    int count;
};

/* clang-format off */
#define AT_U32(message, field)   offsetof(struct msg, message.field), 0
#define AT_OPT32(message, field) AT_U32(message, field)
#define AT_U64(message, field)   AT_U32(message, field)
#define AT_STR(message, field)   AT_U32(message, field)
#define AT_BIN(message, field)   offsetof(struct msg, message.field), offsetof(struct msg, message.field##_bytes)
#define AT_LIST(message, field)  offsetof(struct msg, message.field), offsetof(struct msg, message.field##_count)
#define AT_JOB(message, field)   0, 0
#define AT_PAD(message, field)   0, 0
#define ROW(message, field, kind, least, most) {#field, KIND_##kind, (least), (most), AT_##kind(message, field)},
#define ROWS(NAME, name, number, sender, reply, list) static const struct field fields_##name[] = {MSG_EACH(ROW, name, list)};
MSG_TABLE(ROWS)

#define SENDER_CLIENT 1
#define SENDER_DAEMON 0
#define MESSAGE_ROW(NAME, name, number, sender, reply, list) \
    {#NAME, number, SENDER_##sender, MSG_##reply, fields_##name, sizeof fields_##name / sizeof(struct field)},
static const struct message messages[] = {MSG_TABLE(MESSAGE_ROW)};
/* clang-format on */
enum { MESSAGES = sizeof messages / sizeof messages[0] };

/* The fields of a message. */
static int fields_of(const struct message *message, const struct field **out)
{
    assert_true(message->count <= FIELDS_MAX);
    for (int i = 0; i < message->count; i++)
        out[i] = &message->fields[i];
    return message->count;
}

static uint32_t job_of(const struct message *message) { return message->type >> 8; }

static void *part(struct msg *m, size_t at) { return (uint8_t *)m + at; }
static uint32_t *u32_at(struct msg *m, size_t at) { return part(m, at); }
static uint64_t *u64_at(struct msg *m, size_t at) { return part(m, at); }
static const char **str_at(struct msg *m, size_t at) { return part(m, at); }
static const uint8_t **bin_at(struct msg *m, size_t at) { return part(m, at); }
static const uint32_t **list_at(struct msg *m, size_t at) { return part(m, at); }

static uint8_t filler[MSG_MAX + 1]; /* what binaries hold, */
static char letters[MSG_TEXT_MAX + 2]; /* strings, */
static uint32_t numbers[MSG_LIST_MAX + 1]; /* and lists */

/* Gives a field a number as its value, or a length. */
static void set_field(struct msg *m, const struct field *f, uint64_t value)
{
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32:
        *u32_at(m, f->at) = (uint32_t)value;
        break;
    case KIND_U64:
        *u64_at(m, f->at) = value;
        break;
    case KIND_STR:
        *str_at(m, f->at) = letters + sizeof letters - 1 - value;
        break;
    case KIND_BIN:
        *bin_at(m, f->at) = filler;
        *u32_at(m, f->count_at) = (uint32_t)value;
        break;
    case KIND_LIST:
        *u32_at(m, f->count_at) = (uint32_t)value;
        *list_at(m, f->at) = numbers;
        break;
    case KIND_JOB:
    case KIND_PAD:
        break;
    }
}

static void assert_field_equal(struct msg *a, struct msg *b, const struct field *f)
{
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32:
        assert_int_equal(*u32_at(a, f->at), *u32_at(b, f->at));
        break;
    case KIND_U64:
        assert_int_equal(*u64_at(a, f->at), *u64_at(b, f->at));
        break;
    case KIND_STR:
        assert_string_equal(*str_at(a, f->at), *str_at(b, f->at));
        break;
    case KIND_BIN:
        assert_int_equal(*u32_at(a, f->count_at), *u32_at(b, f->count_at));
        if (*u32_at(a, f->count_at))
            assert_memory_equal(*bin_at(a, f->at), *bin_at(b, f->at), *u32_at(a, f->count_at));
        break;
    case KIND_LIST:
        assert_int_equal(*u32_at(a, f->count_at), *u32_at(b, f->count_at));
        assert_memory_equal(*list_at(a, f->at), *list_at(b, f->at),
                            *u32_at(a, f->count_at) * sizeof(uint32_t));
        break;
    case KIND_JOB:
    case KIND_PAD:
        break;
    }
}

static struct msg sent, got;
static struct msg_space space;
static uint8_t packet[MSG_MAX + 64];
static char why[MSG_TEXT_MAX + 1];

static int decode(size_t bytes)
{
    memset(&got, 0xa5, sizeof got);
    memset(&space, 0xa5, sizeof space);
    why[0] = 0;
    return msg_decode(&got, &space, packet, bytes, why);
}

static void assert_refused(size_t bytes)
{
    int rc = decode(bytes);
    if (rc != -EPROTO || !why[0])
        fail_msg("%zu bytes gave %d: %s", bytes, rc, why);
}

/* A message whose fields all have their least value (a lowest id: 1). */
static void least_of(const struct message *message, struct msg *m)
{
    const struct field *fields[FIELDS_MAX];
    int count = fields_of(message, fields);
    memset(m, 0, sizeof *m);
    m->type = message->type;
    m->id = 1;
    for (int i = 0; i < count; i++)
        set_field(m, fields[i], fields[i]->least);
}

/* ---- what is right ------------------------------------------------------------------------ */

static void assert_round_trip(const struct message *message)
{
    const struct field *fields[FIELDS_MAX];
    int count = fields_of(message, fields), bytes = msg_encode(&sent, packet, MSG_MAX);
    assert_true(bytes > 0);
    if (decode((size_t)bytes) != 0)
        fail_msg("%s", why);
    assert_int_equal(got.type, sent.type);
    assert_int_equal(got.id, sent.id);
    for (int i = 0; i < count; i++)
        assert_field_equal(&sent, &got, fields[i]);
}

static void every_message_reads_back_with_each_field_at_both_ends_of_its_range(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        least_of(&messages[n], &sent);
        assert_round_trip(&messages[n]);
        for (int i = 0; i < count; i++) {
            set_field(&sent, fields[i], fields[i]->most); /* and so, at last, all at their most */
            assert_round_trip(&messages[n]);
        }
        sent.id = UINT32_MAX;
        assert_round_trip(&messages[n]);
    }
}

static void every_message_reads_back_with_random_values(void **state)
{
    uint64_t seed = seed_get();
    (void)state;
    for (int round = 0; round < 20000; round++) {
        const struct message *message = &messages[random_below(&seed, MESSAGES)];
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(message, fields);
        least_of(message, &sent);
        sent.id = (uint32_t)random_next(&seed);
        for (int i = 0; i < count; i++) {
            uint64_t range = fields[i]->most - fields[i]->least + 1; /* 0: all 64 bits */
            uint64_t value = random_next(&seed) >> random_below(&seed, 64);
            if (fields[i]->kind > KIND_U64)
                range = range > 100 ? 100 : range;
            set_field(&sent, fields[i], fields[i]->least + (range ? value % range : value));
        }
        assert_round_trip(message);
    }
}

static void a_decoder_sets_the_fields_of_the_message_and_all_else_is_zero(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        static struct msg expect;
        int count = fields_of(&messages[n], fields);
        least_of(&messages[n], &sent);
        int bytes = msg_encode(&sent, packet, MSG_MAX);
        assert_int_equal(decode((size_t)bytes), 0);
        memset(&expect, 0, sizeof expect);
        expect.type = got.type;
        expect.id = got.id;
        for (int i = 0; i < count; i++) {
            set_field(&expect, fields[i], fields[i]->least);
            if (fields[i]->kind == KIND_BIN || fields[i]->kind == KIND_STR || fields[i]->kind == KIND_LIST)
                *bin_at(&expect, fields[i]->at) = *bin_at(&got, fields[i]->at);
        }
        assert_memory_equal(&got, &expect, sizeof got);
    }
}

static void what_a_maker_is_not_told_is_zero_or_empty(void **state)
{
    (void)state;
    sent = MSG(root, .mode = ROOT_MODE_CAS);
    assert_int_equal(sent.type, MSG_ROOT);
    assert_int_equal(decode((size_t)msg_encode(&sent, packet, MSG_MAX)), 0);
    assert_int_equal(got.root.mode, ROOT_MODE_CAS);
    assert_string_equal(got.root.name, "");
    assert_true(got.root.expected == 0 && got.root.desired == 0 && got.id == 0);
    sent = MSG(safepoint, .gc_mode = 2);
    assert_int_equal(sent.type, MSG_SAFEPOINT);
    assert_int_equal(decode((size_t)msg_encode(&sent, packet, MSG_MAX)), 0);
    assert_true(got.type == MSG_SAFEPOINT && got.safepoint.gc_mode == 2);
}

/* So that one struct msg_space holds what a decoded message points to. */
static void a_message_has_one_text_and_one_list_at_most(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        int texts = 0, lists = 0;
        for (int i = 0; i < messages[n].count; i++) {
            texts += messages[n].fields[i].kind == KIND_STR;
            lists += messages[n].fields[i].kind == KIND_LIST;
        }
        assert_true(texts <= 1 && lists <= 1);
    }
}

/* The bytes of version 1: what is changed here is refused, or taken for something else, by programs that are out there. */
static void packets_are_what_they_always_were(void **state)
{
    static const uint32_t list[] = {7, 300};
    static const struct {
        struct msg m;
        const char *bytes;
        size_t count;
    } always[] = {
#define ALWAYS(bytes, ...) {__VA_ARGS__, bytes, sizeof bytes - 1}
        ALWAYS("\x9a\x01\x05\x01\x01\x09\x04\xc4\x00\x00\x00\x00",
               {.type = MSG_HELLO, .id = 5, .hello = {.version_min = 1, .version = 1, .layout = 9, .flags = HELLO_LOOK}}),
        ALWAYS("\x97\x03\x05\x02\x14\x04\x00\x92\x07\xcd\x01\x2c",
               {.type = MSG_LEASE, .id = 5, .lease = {.epoch = 2, .span_class = 20, .pages = 4, .list = list, .list_count = 2}}),
        ALWAYS("\x97\x08\x05\x03\xa1r\x01\x02\x90",
               {.type = MSG_TX_COMMIT, .id = 5, .tx_commit = {.tag = 3, .name = "r", .expected = 1, .desired = 2}}),
        ALWAYS("\x94\x0d\x05\x00\x00", {.type = MSG_PING, .id = 5}),
        ALWAYS("\x94\x0d\x05\x01\x02", {.type = MSG_SAFEPOINT, .id = 5, .safepoint = {.gc_mode = 2}}),
        ALWAYS("\x94\x0d\x05\x02\x10", {.type = MSG_PINS, .id = 5, .pins = {.table = 16}}),
        ALWAYS("\x94\x0d\x00\x03\x09", {.type = MSG_TRIMMED, .trimmed = {.serial = 9}}),
        ALWAYS("\x9c\x20\x05\x01\x02\x03\xc4\x01i\x04\x05\x06\x07\x00\x01",
               {.type = MSG_WELCOME, .id = 5,
                .welcome = {.version = 1, .tag = 2, .epoch = 3, .heap_id = (const uint8_t *)"i", .heap_id_bytes = 1, .base = 4,
                            .heap_bytes = 5, .map_bytes = 6, .state_bytes = 7, .flags = WELCOME_RESUMED}}),
        ALWAYS("\x94\x23\x05\x0c\xa2no", {.type = MSG_ERROR, .id = 5, .error = {.error = 12, .text = "no"}}),
    };
    (void)state;
    for (size_t i = 0; i < sizeof always / sizeof always[0]; i++) {
        assert_int_equal(msg_encode(&always[i].m, packet, MSG_MAX), always[i].count);
        assert_memory_equal(packet, always[i].bytes, always[i].count);
    }
}

static void types_have_names_and_senders(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        assert_string_equal(msg_name(messages[n].type), messages[n].name);
        assert_int_equal(msg_from_client(messages[n].type), messages[n].from_client);
        assert_int_equal(msg_reply(messages[n].type), messages[n].reply);
        for (int other = 0; other < n; other++)
            assert_int_not_equal(messages[n].type, messages[other].type);
    }
    assert_string_equal(msg_name(0), "unknown");
    assert_int_equal(msg_reply(0), MSG_NONE);
    assert_int_equal(msg_from_client(0), 0);
    assert_int_equal(msg_from_client(UINT32_MAX), 0);
}

static void a_buffer_that_is_too_small_is_refused_at_every_size(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        least_of(&messages[n], &sent);
        int bytes = msg_encode(&sent, packet, MSG_MAX);
        for (int size = 0; size < bytes; size++) {
            packet[size] = 0x77;
            assert_int_equal(msg_encode(&sent, packet, (size_t)size), -EINVAL);
            assert_int_equal(packet[size], 0x77);
        }
        assert_int_equal(msg_encode(&sent, packet, (size_t)bytes), bytes);
    }
}

static void the_encoder_refuses_values_out_of_range_and_unknown_types(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        for (int i = 0; i < count; i++) {
            const struct field *f = fields[i];
            uint64_t most = f->kind <= KIND_OPT32 ? UINT32_MAX
                            : f->kind == KIND_STR ? MSG_TEXT_MAX
                                                  : UINT64_MAX;
            if (f->kind == KIND_JOB || f->kind == KIND_PAD)
                continue;
            least_of(&messages[n], &sent);
            if (f->kind <= KIND_U64 && f->least > 0) {
                set_field(&sent, f, f->least - 1);
                assert_int_equal(msg_encode(&sent, packet, MSG_MAX), -EINVAL);
            }
            if (f->kind == KIND_LIST)
                *u32_at(&sent, f->count_at) = (uint32_t)f->most + 1;
            else if (f->most < most)
                set_field(&sent, f, f->most + 1);
            else
                continue;
            assert_int_equal(msg_encode(&sent, packet, MSG_MAX), -EINVAL);
        }
    }
    memset(&sent, 0, sizeof sent);
    assert_int_equal(msg_encode(&sent, packet, MSG_MAX), -EINVAL);
}

/* ---- packets by hand ---------------------------------------------------------------------- */

static size_t at; /* in packet */

static void put(uint8_t byte)
{
    packet[at++] = byte;
}

static void put_be(uint64_t value, int bytes)
{
    while (bytes-- > 0)
        put((uint8_t)(value >> 8 * bytes));
}

static void put_u64(uint64_t value)
{
    put(0xcf);
    put_be(value, 8);
}

static void put_str(size_t length)
{
    put(0xda);
    put_be(length, 2);
    memset(packet + at, 'n', length);
    at += length;
}

static void put_bin(size_t length)
{
    put(0xc5);
    put_be(length, 2);
    at += length;
}

static void put_list(uint64_t count, uint64_t element)
{
    put(0xdd);
    put_be(count, 4);
    for (uint64_t i = 0; i < count; i++)
        put_u64(element);
}

/* A field by its number or length, in range or not. */
static void put_value(const struct field *f, uint64_t value)
{
    switch (f->kind) {
    case KIND_U32:
    case KIND_OPT32:
    case KIND_U64:
    case KIND_JOB:
    case KIND_PAD:
        put_u64(value);
        break;
    case KIND_STR:
        put_str(value);
        break;
    case KIND_BIN:
        put_bin(value);
        break;
    case KIND_LIST:
        put(0xdc);
        put_be(value, 2);
        for (uint64_t i = 0; i < value; i++)
            put((uint8_t)(i & 0x7f));
        break;
    }
}

static const struct message *being_put;

static void put_head(const struct message *message, int fields)
{
    at = 0;
    put(0xdc);
    put_be((uint64_t)fields + 2, 2);
    put_u64(message->type & 0xff);
    put_u64(1);
    being_put = message;
}

/* The job is the message's, whatever is asked for. */
static void put_field(const struct field *f, uint64_t value)
{
    put_value(f, f->kind == KIND_JOB ? job_of(being_put) : value);
}

/* One of the twelve things that an element can be; 0: at its end. */
static int put_other(int which, enum kind kind)
{
    switch (which) {
    case 0:
        put(0xc0);
        return 1; /* nil */
    case 1:
        put(0xc2);
        return 1; /* false */
    case 2:
        put(0xff);
        return 1; /* -1 */
    case 3:
        put(0xd3), put_be(1ULL << 63, 8);
        return 1; /* the least of all numbers */
    case 4:
        put(0xca), put_be(0x3f800000, 4);
        return 1; /* 1.0f */
    case 5:
        put(0xcb), put_be(0x3ff0000000000000, 8);
        return 1;
    case 6:
        put(0x80);
        return 1; /* an empty map */
    case 7:
        put(0xd4), put_be(0x0101, 2);
        return 1; /* an ext of one byte */
    case 8:
        if (kind > KIND_U64 && kind < KIND_JOB)
            put(1);
        else
            put(0xc0);
        return 1;
    case 9:
        if (kind != KIND_STR)
            put(0xa1), put('x');
        else
            put(0xc0);
        return 1;
    case 10:
        if (kind != KIND_BIN)
            put(0xc4), put_be(0x0100, 2);
        else
            put(0xc0);
        return 1;
    case 11:
        if (kind != KIND_LIST)
            put(0x91), put(1);
        else
            put(0xc0);
        return 1;
    default:
        return 0;
    }
}

/* why says which message and which field */
static void assert_refused_by_name(const struct message *message, const struct field *f)
{
    assert_refused(at);
    if (!strstr(why, message->name) || !strstr(why, f->name))
        fail_msg("%s of %s was refused with: %s", f->name, message->name, why);
}

static void a_job_that_no_message_has_is_refused(void **state)
{
    (void)state;
    for (uint64_t job = 0; job < 300; job++) {
        at = 0;
        put(0x94);
        put(13);
        put(1);
        put_u64(job);
        put(1);
        if (job <= 3)
            assert_int_equal(decode(at), 0);
        else
            assert_refused(at);
        if (job <= 3)
            assert_int_equal(got.type, MSG_JOB(13, (uint32_t)job));
    }
}

static void each_field_is_refused_below_and_above_its_range(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        for (int wrong = 0; wrong < count; wrong++)
            for (int above = -1; above <= 1; above++) {
                const struct field *f = fields[wrong];
                if ((above < 0 && f->least == 0) || (above > 0 && f->most == UINT64_MAX) || f->kind == KIND_JOB)
                    continue;
                put_head(&messages[n], count);
                for (int i = 0; i < count; i++)
                    put_field(fields[i], i != wrong  ? fields[i]->least
                                         : above < 0 ? f->least - 1
                                                     : f->most + (uint64_t)above);
                if (above == 0)
                    assert_int_equal(decode(at), 0);
                else if (at <= MSG_MAX)
                    assert_refused_by_name(&messages[n], f);
                else
                    assert_refused(at);
            }
    }
}

static void each_field_is_refused_with_each_type_that_is_not_its_own(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields), more = 1;
        for (int wrong = 0; wrong < count; wrong++)
            for (int which = 0; more || which == 0; which++) {
                more = 1;
                put_head(&messages[n], count);
                for (int i = 0; i < count && more; i++)
                    if (i == wrong)
                        more = put_other(which, fields[i]->kind);
                    else
                        put_field(fields[i], fields[i]->least);
                if (!more)
                    break;
                if (fields[wrong]->kind == KIND_JOB)
                    assert_refused(at); /* whose it would be is not known */
                else
                    assert_refused_by_name(&messages[n], fields[wrong]);
            }
    }
}

static void lists_with_elements_that_are_no_32_bit_numbers_are_refused(void **state)
{
    const struct message *message = &messages[0];
    const struct field *fields[FIELDS_MAX];
    (void)state;
    while (message->type != MSG_TAGS)
        message++;
    assert_int_equal(fields_of(message, fields), 1);
    put_head(message, 1);
    put_list(3, UINT32_MAX);
    assert_int_equal(decode(at), 0);
    assert_int_equal(got.tags.list_count, 3);
    assert_int_equal(got.tags.list[2], UINT32_MAX);
    put_head(message, 1);
    put_list(3, 1ULL << 32);
    assert_refused_by_name(message, fields[0]);
    for (int which = 0; which < 12; which++) {
        put_head(message, 1);
        put(0x91);
        put_other(which, KIND_U32);
        if (which != 8 || packet[at - 1] == 0xc0)
            assert_refused(at);
    }
}

static void a_number_reads_the_same_in_every_width(void **state)
{
    static const uint8_t heads[] = {0xcc, 0xcd, 0xce, 0xcf, 0xd0, 0xd1, 0xd2, 0xd3};
    const struct message bye = {.name = "BYE", .type = MSG_BYE};
    (void)state;
    for (int i = 0; i < 8; i++) {
        put_head(&bye, 1);
        put(heads[i]);
        put_be(100, 1 << i % 4);
        assert_int_equal(decode(at), 0);
        assert_int_equal(got.bye.flags, 100);
    }
}

static void a_name_with_a_nul_inside_is_refused(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        for (int wrong = 0; wrong < count; wrong++) {
            if (fields[wrong]->kind != KIND_STR)
                continue;
            put_head(&messages[n], count);
            for (int i = 0; i < count; i++) {
                put_field(fields[i], i == wrong ? 5 : fields[i]->least);
                if (i == wrong)
                    packet[at - 2] = 0;
            }
            assert_refused_by_name(&messages[n], fields[wrong]);
        }
    }
}

static void too_few_fields_are_refused_and_later_ones_ignored(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        for (int present = 0; present <= count + 3; present++) {
            put_head(&messages[n], present);
            for (int i = 0; i < present; i++)
                if (i < count)
                    put_field(fields[i], fields[i]->least);
                else
                    put_other(i - count + 4, KIND_U32);
            if (present < count && fields[present]->kind != KIND_OPT32) {
                assert_refused(at);
                continue;
            }
            assert_int_equal(decode(at), 0);
            for (int i = present; i < count; i++) /* left out by an older peer */
                assert_int_equal(*u32_at(&got, fields[i]->at), 0);
        }
    }
}

static void a_packet_cut_short_at_any_byte_is_refused_and_so_is_one_byte_more(void **state)
{
    (void)state;
    for (int n = 0; n < MESSAGES; n++) {
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(&messages[n], fields);
        least_of(&messages[n], &sent);
        for (int i = 0; i < count; i++)
            if (fields[i]->kind > KIND_U64)
                set_field(&sent, fields[i], fields[i]->most < 10 ? fields[i]->most : 10);
        int bytes = msg_encode(&sent, packet, MSG_MAX);
        for (int cut = 0; cut < bytes; cut++)
            assert_refused((size_t)cut);
        packet[bytes] = 0xc0;
        assert_refused((size_t)bytes + 1);
        assert_int_equal(decode((size_t)bytes), 0);
    }
}

/* ---- bombs -------------------------------------------------------------------------------- */

static void headers_that_announce_more_than_the_packet_holds_are_refused(void **state)
{
    static const uint8_t heads[] = {0xdd, 0xdf, 0xdb, 0xc6,
                                    0xc9}; /* array, map, str, bin, ext of 32-bit length */
    static const uint32_t counts[] = {1, 2, 4096, 65536, 100000000, INT32_MAX, UINT32_MAX};
    (void)state;
    for (size_t h = 0; h < sizeof heads; h++)
        for (size_t c = 0; c < sizeof counts / sizeof counts[0]; c++) {
            at = 0; /* the whole packet: five bytes that some decoders answer with 96 GB */
            put(heads[h]);
            put_be(counts[c], 4);
            assert_int_equal(msg_precheck(packet, at, 100), -EPROTO);
            assert_refused(at);
            at = 0; /* as the last field of a message */
            put(0x93);
            put(MSG_TAGS);
            put(1);
            put(heads[h]);
            put_be(counts[c], 4);
            assert_int_equal(msg_precheck(packet, at, 100), -EPROTO);
            assert_refused(at);
            put(0); /* with one element */
            if (counts[c] > 1)
                assert_refused(at);
        }
}

static void arrays_in_arrays_are_refused_at_any_depth_without_stack(void **state)
{
    (void)state;
    static const uint8_t heads[] = {0x91, 0x81, 0xdc};
    for (size_t h = 0; h < sizeof heads; h++) {
        at = 0;
        while (at < MSG_MAX - 3) {
            put(heads[h]);
            if (heads[h] == 0xdc)
                put_be(1, 2);
        }
        assert_refused(at);
        packet[at - 1] = 0xc0;
        assert_refused(at);
    }
    for (unsigned depth = 1; depth < 1000; depth++) { /* the precheck counts exactly */
        memset(packet, 0x91, depth);
        packet[depth] = 0xc0;
        assert_int_equal(msg_precheck(packet, depth + 1, depth), 0);
        assert_int_equal(msg_precheck(packet, depth + 1, depth - 1), -EPROTO);
    }
}

static void a_packet_that_is_no_array_or_no_packet_at_all_is_refused(void **state)
{
    (void)state;
    assert_refused(0);
    for (int byte = 0; byte < 256; byte++) {
        at = 0;
        put((uint8_t)byte);
        assert_refused(at);
        put((uint8_t)byte);
        assert_refused(at);
    }
    at = 0;
    put(0x93);
    put_u64(1ULL << 32 | MSG_TRIM); /* a type of more than 32 bits */
    put(1);
    put(0);
    assert_refused(at);
    at = 0;
    put(0x93);
    put(MSG_TRIM);
    put_u64(1ULL << 32); /* an id of more than 32 bits */
    put(0);
    assert_refused(at);
    least_of(&messages[0], &sent);
    assert_true(msg_encode(&sent, packet, MSG_MAX) > 0);
    assert_refused(MSG_MAX + 1);
}

/* The number of elements in what msgpack made of a packet. */
static uint64_t elements(const msgpack_object *o)
{
    uint64_t n = 1;
    if (o->type == MSGPACK_OBJECT_ARRAY)
        for (uint32_t i = 0; i < o->via.array.size; i++)
            n += elements(&o->via.array.ptr[i]);
    if (o->type == MSGPACK_OBJECT_MAP)
        for (uint32_t i = 0; i < o->via.map.size; i++)
            n += elements(&o->via.map.ptr[i].key) + elements(&o->via.map.ptr[i].val);
    return n;
}

/* What the precheck lets pass, msgpack reads whole; and what it refuses, msgpack could not read
 * whole either (but for depth). Random bytes, with heads of containers and lengths more often than
 * by chance. */
static void the_precheck_and_msgpack_agree_on_what_is_whole(void **state)
{
    uint64_t seed = seed_get(), whole = 0;
    (void)state;
    for (int round = 0; round < 300000; round++) {
        size_t bytes = 1 + random_below(&seed, 24), end = 0;
        for (size_t i = 0; i < bytes; i++)
            packet[i] = (uint8_t)(random_below(&seed, 3) ? random_below(&seed, 5)
                                                         : 0x80 + random_below(&seed, 128));
        int rc = msg_precheck(packet, bytes, 30);
        if (rc == 0 || bytes < 20) { /* all counts are small enough for msgpack to believe them */
            msgpack_unpacked result;
            bool huge = false;
            for (size_t i = 0; i < bytes; i++)
                huge |= packet[i] == 0xdd || packet[i] == 0xdf;
            if (huge && rc != 0)
                continue;
            msgpack_unpacked_init(&result);
            bool ok = msgpack_unpack_next(&result, (const char *)packet, bytes, &end) ==
                          MSGPACK_UNPACK_SUCCESS &&
                      end == bytes;
            assert_int_equal(rc == 0, ok);
            if (ok)
                assert_true(elements(&result.data) <= bytes);
            whole += ok;
            msgpack_unpacked_destroy(&result);
        }
    }
    assert_true(whole > 100);
}

static void
packets_with_random_damage_are_read_or_refused_and_what_is_read_is_in_range(void **state)
{
    uint64_t seed = seed_get();
    (void)state;
    for (int round = 0; round < 100000; round++) {
        const struct message *message = &messages[random_below(&seed, MESSAGES)];
        const struct field *fields[FIELDS_MAX];
        int count = fields_of(message, fields);
        least_of(message, &sent);
        for (int i = 0; i < count; i++)
            set_field(&sent, fields[i],
                      fields[i]->least +
                          (fields[i]->most > fields[i]->least + 5 ? random_below(&seed, 5) : 0));
        int bytes = msg_encode(&sent, packet, MSG_MAX);
        for (uint64_t flips = 1 + random_below(&seed, 3); flips > 0; flips--)
            packet[random_below(&seed, (uint64_t)bytes)] = (uint8_t)random_next(&seed);
        if (decode((size_t)bytes) != 0)
            continue;
        for (int n = 0; n < MESSAGES; n++) {
            if (messages[n].type != got.type)
                continue;
            count = fields_of(&messages[n], fields);
            for (int i = 0; i < count; i++) {
                const struct field *f = fields[i];
                if (f->kind == KIND_JOB || f->kind == KIND_PAD)
                    continue;
                uint64_t value = f->kind <= KIND_OPT32 ? *u32_at(&got, f->at)
                                 : f->kind == KIND_U64 ? *u64_at(&got, f->at)
                                 : f->kind == KIND_STR ? strlen(*str_at(&got, f->at))
                                                       : *u32_at(&got, f->count_at);
                assert_true(value >= f->least && value <= f->most);
                if (f->kind == KIND_BIN && value)
                    assert_true(*bin_at(&got, f->at) > packet &&
                                *bin_at(&got, f->at) + value <= packet + bytes);
            }
        }
    }
}

int main(void)
{
    for (size_t i = 0; i < sizeof filler; i++)
        filler[i] = (uint8_t)(i * 37);
    memset(letters, 'n', sizeof letters - 1);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        numbers[i] = (uint32_t)(i * 2654435761u);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_message_reads_back_with_each_field_at_both_ends_of_its_range),
        cmocka_unit_test(every_message_reads_back_with_random_values),
        cmocka_unit_test(a_decoder_sets_the_fields_of_the_message_and_all_else_is_zero),
        cmocka_unit_test(what_a_maker_is_not_told_is_zero_or_empty),
        cmocka_unit_test(a_message_has_one_text_and_one_list_at_most),
        cmocka_unit_test(packets_are_what_they_always_were),
        cmocka_unit_test(a_job_that_no_message_has_is_refused),
        cmocka_unit_test(types_have_names_and_senders),
        cmocka_unit_test(a_buffer_that_is_too_small_is_refused_at_every_size),
        cmocka_unit_test(the_encoder_refuses_values_out_of_range_and_unknown_types),
        cmocka_unit_test(each_field_is_refused_below_and_above_its_range),
        cmocka_unit_test(each_field_is_refused_with_each_type_that_is_not_its_own),
        cmocka_unit_test(lists_with_elements_that_are_no_32_bit_numbers_are_refused),
        cmocka_unit_test(a_number_reads_the_same_in_every_width),
        cmocka_unit_test(a_name_with_a_nul_inside_is_refused),
        cmocka_unit_test(too_few_fields_are_refused_and_later_ones_ignored),
        cmocka_unit_test(a_packet_cut_short_at_any_byte_is_refused_and_so_is_one_byte_more),
        cmocka_unit_test(headers_that_announce_more_than_the_packet_holds_are_refused),
        cmocka_unit_test(arrays_in_arrays_are_refused_at_any_depth_without_stack),
        cmocka_unit_test(a_packet_that_is_no_array_or_no_packet_at_all_is_refused),
        cmocka_unit_test(the_precheck_and_msgpack_agree_on_what_is_whole),
        cmocka_unit_test(
            packets_with_random_damage_are_read_or_refused_and_what_is_read_is_in_range),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
