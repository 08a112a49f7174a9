/* The protocol: messages as data.
 *
 * A packet of the Unix socket (SOCK_SEQPACKET) is one message: a msgpack array [type, id, field...] of at most
 * MSG_MAX bytes. The tables below are the protocol; types, encoder, decoder, tests and arena-protocol(7) follow them.
 * A request has an id that the client chooses, not 0; the reply to it bears the same one. Id 0 is of messages that have
 * no reply. Both sides check every field against its range before they look at it; a message that does not fit its
 * table ends the connection, with an ERROR that says which field if one can still be sent.
 *
 * A later version may add fields at the end of a message: a decoder ignores what is behind the fields it knows, and
 * HELLO settles which version is spoken. Nothing is ever removed within one version.
 *
 * Each message has a type of its own, struct msg_lease and its kin, with the fields of its row and no others. It is made
 * whole, by MSG(lease, .pages = 4): what is not named is 0 or empty. See README.md.
 */
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include <stddef.h>
#include <stdint.h>

#define PROTO_VERSION     1 /* spoken; the daemon serves PROTO_VERSION_MIN..PROTO_VERSION */
#define PROTO_VERSION_MIN 1

#define MSG_MAX      65536 /* bytes of a packet */
#define MSG_LIST_MAX 4096  /* numbers in a list */
#define MSG_TAGS_MAX 64    /* tags that one TX_TAGS asks for */
#define MSG_NAME_MAX 63
#define MSG_TEXT_MAX 511
#define MSG_BODY_MAX 61440

/* clang-format off */

/* A field: kind, least, most. Kinds:
 *   U32, U64   a number, least <= value <= most
 *   OPT32      a U32 that came later, at the end of its message; 0 where an older peer leaves it out
 *   STR, BIN   text without NULs; bytes. The range is the length's
 *   LIST       of u32; the range is their number's
 *   JOB        which of several messages of one number it is; no member
 *   PAD        a number that has no meaning any more: 0 is sent, any is taken; no member */
#define MSG_FIELD_version_min U32, 0, UINT32_MAX    /* of the protocol */
#define MSG_FIELD_version     U32, 0, UINT32_MAX    /* of the protocol: highest that the client speaks; in WELCOME the one */
#define MSG_FIELD_layout      U32, 0, UINT32_MAX    /* LAYOUT_VERSION */
#define MSG_FIELD_flags       U32, 0, UINT32_MAX
#define MSG_FIELD_heap_id     BIN, 0, 16            /* empty: none yet */
#define MSG_FIELD_tag         U32, 0, 32767
#define MSG_FIELD_epoch       U32, 0, UINT32_MAX    /* of the daemon that granted; a message of another epoch is refused */
#define MSG_FIELD_span_class  U32, 2, 255
#define MSG_FIELD_pages       U32, 1, 16777215
#define MSG_FIELD_align       U32, 1, 256           /* pages, a power of two */
#define MSG_FIELD_first       U32, 0, 134217727     /* first page of a span */
#define MSG_FIELD_count       U32, 1, MSG_TAGS_MAX
#define MSG_FIELD_list        LIST, 0, MSG_LIST_MAX /* first pages of spans, or tags */
#define MSG_FIELD_name        STR, 0, MSG_NAME_MAX  /* of a root */
#define MSG_FIELD_mode        U32, 0, 7
#define MSG_FIELD_expected    U64, 0, UINT64_MAX
#define MSG_FIELD_desired     U64, 0, UINT64_MAX
#define MSG_FIELD_what        U32, 0, 31
#define MSG_FIELD_cursor      U64, 0, UINT64_MAX    /* 0: from the start; in ROWS 0: that was all */
#define MSG_FIELD_base        U64, 0, UINT64_MAX
#define MSG_FIELD_heap_bytes  U64, 0, UINT64_MAX
#define MSG_FIELD_map_bytes   U64, 0, UINT64_MAX
#define MSG_FIELD_state_bytes U64, 0, UINT64_MAX
#define MSG_FIELD_value       U64, 0, UINT64_MAX
#define MSG_FIELD_gc_mode     U64, 0, UINT64_MAX    /* enum gc_mode */
#define MSG_FIELD_table       U64, 0, UINT64_MAX    /* a reference */
#define MSG_FIELD_serial      U64, 0, UINT64_MAX    /* of a notice */
#define MSG_FIELD_error       U32, 1, 4095          /* an errno */
#define MSG_FIELD_text        STR, 0, MSG_TEXT_MAX
#define MSG_FIELD_body        BIN, 0, MSG_BODY_MAX  /* msgpack of its own */
#define MSG_FIELD_image       OPT32, 0, UINT32_MAX  /* of the program that the process runs; 0: not told */
#define MSG_FIELD_copy        OPT32, 0, UINT32_MAX  /* of the library in that program; 0: not told */
#define MSG_FIELD_job         JOB, 0, 7
#define MSG_FIELD_pad         PAD, 0, UINT64_MAX

/* The number of a message that shares its first one with others: a field of kind JOB, its first, tells which it is. */
#define MSG_JOB(number, job) ((number) | (job) << 8)
#define MSG_NUMBER_MAX       255

/* MESSAGE(NAME, name, number, sender, reply, fields in order). Senders: CLIENT, DAEMON. Every request may be answered by an
 * ERROR instead; NONE: no reply. */
#define MSG_TABLE(MESSAGE)                                                                                             \
    /* first of all, once. tag and heap_id: those of a client that comes back; RESUME follows. image: a client of this \
     * process with another image, neither of them 0, is gone: exec has replaced it. copy: a library has one client of \
     * a kind, reader or writer; with a HELLO without a tag it has none yet, and one that nobody is connected as is    \
     * gone. A monitor is answered by OK */                                                                            \
    MESSAGE(HELLO, hello, 1, CLIENT, WELCOME, (version_min, version, layout, flags, heap_id, tag, image, copy))        \
    /* after a HELLO with a tag: `list` of leased spans; flags 1: the last packet of them. flags 2: of the tags of     \
     * transactions that it knows; if there is such a packet, what it does not list was lost, and is free */           \
    MESSAGE(RESUME, resume, 2, CLIENT, OK, (flags, list))                                                              \
    /* refill: about `pages` pages of spans of a class; gives back the spans in `list`. flags LEASE_AHEAD: refused     \
     * rather than waited for */                                                                                       \
    MESSAGE(LEASE, lease, 3, CLIENT, GRANT, (epoch, span_class, pages, flags, list))                                   \
    /* one span of `pages` pages, of a large class */                                                                  \
    MESSAGE(LARGE, large, 4, CLIENT, GRANT, (epoch, span_class, pages, align, list))                                   \
    /* uncache: gives back spans */                                                                                    \
    MESSAGE(RELEASE, release, 5, CLIENT, NONE, (epoch, list))                                                          \
    /* a leased large span to `pages` pages, more or fewer, in place */                                                \
    MESSAGE(EXTEND, extend, 6, CLIENT, OK, (epoch, first, pages))                                                      \
    /* `count` tags for transactions */                                                                                \
    MESSAGE(TX_TAGS, tx_tags, 7, CLIENT, TAGS, (count))                                                                \
    /* commits `tag` and moves root `name` ("": none); tags in `list` bear no word any more */                         \
    MESSAGE(TX_COMMIT, tx_commit, 8, CLIENT, OK, (tag, name, expected, desired, list))                                 \
    /* mode ROOT_MODE_* */                                                                                             \
    MESSAGE(ROOT, root, 9, CLIENT, OK, (name, mode, expected, desired))                                                \
    /* what INFO_*; pages of rows by `cursor` */                                                                       \
    MESSAGE(INFO, info, 10, CLIENT, ROWS, (what, cursor))                                                              \
    /* return all that can be returned, ask every client to */                                                         \
    MESSAGE(TRIM, trim, 11, CLIENT, OK, (flags))                                                                       \
    /* collects; flags GC_DRY_RUN; cursor: more rows of the last one */                                                \
    MESSAGE(GC, gc, 12, CLIENT, ROWS, (flags, cursor))                                                                 \
    /* asks for no more than the reply */                                                                              \
    MESSAGE(PING, ping, MSG_JOB(13, 0), CLIENT, OK, (job, pad))                                                        \
    /* what the client does at a collection */                                                                         \
    MESSAGE(SAFEPOINT, safepoint, MSG_JOB(13, 1), CLIENT, OK, (job, gc_mode))                                          \
    /* where the client's first table of pins is */                                                                    \
    MESSAGE(PINS, pins, MSG_JOB(13, 2), CLIENT, OK, (job, table))                                                      \
    /* the client has given back what NOTICE `serial` asked for. 0: of its own accord, and what it gave back may go to \
     * the system at once */                                                                                           \
    MESSAGE(TRIMMED, trimmed, MSG_JOB(13, 3), CLIENT, OK, (job, serial))                                               \
    /* goodbye: nothing of this client lives on. The daemon answers, then it closes */                                 \
    MESSAGE(BYE, bye, 14, CLIENT, OK, (flags))                                                                         \
    /* with fds: heap, map (O_RDONLY), state; a reader's are all O_RDONLY */                                           \
    MESSAGE(WELCOME, welcome, 32, DAEMON, NONE,                                                                        \
            (version, tag, epoch, heap_id, base, heap_bytes, map_bytes, state_bytes, pad, flags))                      \
    MESSAGE(GRANT, grant, 33, DAEMON, NONE, (epoch, span_class, flags, list))                                          \
    MESSAGE(OK, ok, 34, DAEMON, NONE, (value))                                                                         \
    MESSAGE(ERROR, error, 35, DAEMON, NONE, (error, text))                                                             \
    MESSAGE(TAGS, tags, 36, DAEMON, NONE, (list))                                                                      \
    MESSAGE(ROWS, rows, 37, DAEMON, NONE, (cursor, body))                                                              \
    /* id 0, at any time: what NOTICE_* */                                                                             \
    MESSAGE(NOTICE, notice, 38, DAEMON, NONE, (what, value))

/* MSG_EACH(macro, message, (a, b)): macro(message, a, kind, least, most) macro(message, b, ...) */
#define MSG_EACH(macro, message, fields) MSG_EACH_OF(macro, message, MSG_BARE fields)
#define MSG_BARE(...) __VA_ARGS__
#define MSG_EACH_OF(macro, message, ...) \
    MSG_PICK(__VA_ARGS__, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0)(macro, message, __VA_ARGS__)
#define MSG_PICK(_1, _2, _3, _4, _5, _6, _7, _8, _9, _10, n, ...) MSG_EACH_##n
#define MSG_EACH_1(macro, message, a)       MSG_APPLY(macro, message, a, MSG_FIELD_##a)
#define MSG_EACH_2(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_1(macro, message, __VA_ARGS__)
#define MSG_EACH_3(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_2(macro, message, __VA_ARGS__)
#define MSG_EACH_4(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_3(macro, message, __VA_ARGS__)
#define MSG_EACH_5(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_4(macro, message, __VA_ARGS__)
#define MSG_EACH_6(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_5(macro, message, __VA_ARGS__)
#define MSG_EACH_7(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_6(macro, message, __VA_ARGS__)
#define MSG_EACH_8(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_7(macro, message, __VA_ARGS__)
#define MSG_EACH_9(macro, message, a, ...)  MSG_EACH_1(macro, message, a) MSG_EACH_8(macro, message, __VA_ARGS__)
#define MSG_EACH_10(macro, message, a, ...) MSG_EACH_1(macro, message, a) MSG_EACH_9(macro, message, __VA_ARGS__)
#define MSG_APPLY(macro, ...) macro(__VA_ARGS__)

/* ---- what the table makes --------------------------------------------------------------------------------------------- */

/* MSG_LEASE */
enum msg_type {
    MSG_NONE = 0,
#define MSG_ENUM(NAME, name, number, sender, reply, fields) MSG_##NAME = (number),
    MSG_TABLE(MSG_ENUM)
#undef MSG_ENUM
};

/* struct msg_lease. A field that is a pointer is the maker's memory in a message that is sent. In one that was decoded text
 * and lists are in its struct msg_space, bytes in its packet. */
#define MSG_MEMBER_U32(name)   uint32_t name;
#define MSG_MEMBER_OPT32(name) uint32_t name;
#define MSG_MEMBER_U64(name)   uint64_t name;
#define MSG_MEMBER_STR(name)   const char *name; /* sent, NULL is empty */
#define MSG_MEMBER_BIN(name)   const uint8_t *name; uint32_t name##_bytes;
#define MSG_MEMBER_LIST(name)  const uint32_t *name; uint32_t name##_count;
#define MSG_MEMBER_JOB(name)
#define MSG_MEMBER_PAD(name)
#define MSG_MEMBER(message, field, kind, least, most) MSG_MEMBER_##kind(field)
#define MSG_STRUCT(NAME, name, number, sender, reply, fields) struct msg_##name { MSG_EACH(MSG_MEMBER, name, fields) };
MSG_TABLE(MSG_STRUCT)

/* Any message, by its type. */
struct msg {
    uint32_t type, id;
    union {
#define MSG_UNION(NAME, name, number, sender, reply, fields) struct msg_##name name;
        MSG_TABLE(MSG_UNION)
#undef MSG_UNION
    };
};

/* msg_lease(): any message, of a LEASE. */
#define MSG_MAKER(NAME, name, number, sender, reply, fields) \
    static inline struct msg msg_##name(struct msg_##name m) { return (struct msg){.type = MSG_##NAME, .name = m}; }
MSG_TABLE(MSG_MAKER)

/* MSG(lease, .pages = 4): a message to be sent; its id is 0 until somebody gives it one. */
#define MSG(name, ...) msg_##name((struct msg_##name){__VA_ARGS__})

/* clang-format on */

/* ---- flags and numbers ---------------------------------------------------------------------------------------------- */

/* HELLO.flags. monitor: neither tag nor regions. look: which heap is it? The WELCOME has a tag of 0 and no descriptors;
 * the connection is a monitor's from then on, unless another HELLO follows, without this flag */
enum { HELLO_READ_ONLY = 1, HELLO_MONITOR = 2, HELLO_LOOK = 4 };
enum { WELCOME_RESUMED = 1 }; /* WELCOME.flags: the old tag, RESUME now */
enum { RESUME_LAST = 1, RESUME_TAGS = 2 };
enum { LEASE_AHEAD = 1 }; /* LEASE.flags: not needed yet, so nobody is asked to trim for it */
enum { GRANT_FRESH = 1 }; /* GRANT.flags: pages that no process has touched */
enum { ROOT_MODE_SET, ROOT_MODE_CAS };
enum { NOTICE_TRIM = 1 };
enum { GC_DRY_RUN = 1 };
enum info_what {
    INFO_STATS = 1, INFO_CLIENTS, INFO_CLASSES, INFO_SPANS, INFO_ROOTS, INFO_CHECK, INFO_MAP, INFO_ESCAPE, INFO_LIMITS,
    INFO_USERS,
    INFO_END /* not one any more */
};

/* ---- encoding and decoding ------------------------------------------------------------------------------------------- */

/* "LEASE", or "unknown" */
const char *msg_name(uint32_t type);

/* 1: a client may send it */
int msg_from_client(uint32_t type);

/* The type of the reply to a request; MSG_NONE: it has none. */
uint32_t msg_reply(uint32_t type);

/* Bytes written to buf (MSG_MAX is always enough), or -EINVAL for an unknown type or a value out of its range: a defect
 * of the caller. */
int msg_encode(const struct msg *m, uint8_t *buf, size_t capacity);

/* What a decoded message points to, beside its packet. */
struct msg_space {
    uint32_t list[MSG_LIST_MAX];
    char text[MSG_TEXT_MAX + 1];
};

/* 0, or -EPROTO with one line in ret_why (MSG_TEXT_MAX + 1 bytes): which message and field, and what is wrong. Then ret
 * holds the type and the id as far as they were read, else 0. Reads each byte once, and allocates at most in proportion to
 * the packet. */
int msg_decode(struct msg *ret, struct msg_space *space, const uint8_t *packet, size_t bytes, char *ret_why);

/* Bounds of a msgpack text before a library unpacks it (its array headers are believed): depth, and no more elements
 * than bytes. 0 or -EPROTO. */
int msg_precheck(const uint8_t *bytes, size_t count, unsigned depth);

#endif
