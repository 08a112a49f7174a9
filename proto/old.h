/* The protocol: messages as data.
 *
 * A packet of the Unix socket (SOCK_SEQPACKET) is one message: a msgpack array [type, id, field...] of at most
 * MSG_MAX bytes. The tables below are the protocol; encoder, decoder, its tests and arena-protocol(7) follow them.
 * A request has an id that the client chooses, not 0; the reply to it bears the same one. Id 0 is of messages that have
 * no reply. Both sides check every field against its range before they look at it; a message that does not fit its
 * table ends the connection, with an ERROR that says which field if one can still be sent.
 *
 * A later version may add fields at the end of a message: a decoder ignores what is behind the fields it knows, and
 * HELLO settles which version is spoken. Nothing is ever removed within one version.
 */
#ifndef PROTO_OLD_H
#define PROTO_OLD_H

#define msg_name old_name
#define msg_from_client old_from_client
#define msg_encode old_encode
#define msg_decode old_decode
#define msg_precheck old_precheck

#include <stddef.h>
#include <stdint.h>

#define PROTO_VERSION     1 /* spoken; the daemon serves PROTO_VERSION_MIN..PROTO_VERSION */
#define PROTO_VERSION_MIN 1

#define MSG_MAX      65536 /* bytes of a packet */
#define MSG_LIST_MAX 4096  /* numbers in a list */
#define MSG_NAME_MAX 63
#define MSG_TEXT_MAX 511
#define MSG_BODY_MAX 61440

/* FIELD(name, kind, least, most): kinds are U32, U64 (least <= value <= most), STR and BIN (length), LIST (of u32; at
 * most `most` of them), and OPT32: a U32 that came later, at the end of its message; 0 where an older peer leaves it out. */
#define MSG_FIELDS(FIELD)                                                                                              \
    FIELD(version_min, U32, 0, UINT32_MAX)  /* of the protocol */                                                      \
    FIELD(version, U32, 0, UINT32_MAX)      /* of the protocol: highest that the client speaks; in WELCOME the one */  \
    FIELD(layout, U32, 0, UINT32_MAX)       /* LAYOUT_VERSION */                                                       \
    FIELD(flags, U32, 0, UINT32_MAX)                                                                                   \
    FIELD(heap_id, BIN, 0, 16)              /* empty: none yet */                                                      \
    FIELD(tag, U32, 0, 32767)                                                                                          \
    FIELD(epoch, U32, 0, UINT32_MAX)        /* of the daemon that granted; a message of another epoch is refused */    \
    FIELD(span_class, U32, 2, 255)                                                                                     \
    FIELD(pages, U32, 1, 16777215)                                                                                     \
    FIELD(align, U32, 1, 256)               /* pages, a power of two */                                                \
    FIELD(first, U32, 0, 134217727)         /* first page of a span */                                                 \
    FIELD(count, U32, 1, 64)                                                                                           \
    FIELD(list, LIST, 0, MSG_LIST_MAX)      /* first pages of spans, or tags */                                        \
    FIELD(name, STR, 0, MSG_NAME_MAX)       /* of a root */                                                            \
    FIELD(mode, U32, 0, 7)                                                                                             \
    FIELD(expected, U64, 0, UINT64_MAX)                                                                                \
    FIELD(desired, U64, 0, UINT64_MAX)                                                                                 \
    FIELD(what, U32, 0, 31)                                                                                            \
    FIELD(cursor, U64, 0, UINT64_MAX)       /* 0: from the start; in ROWS 0: that was all */                           \
    FIELD(base, U64, 0, UINT64_MAX)                                                                                    \
    FIELD(heap_bytes, U64, 0, UINT64_MAX)                                                                              \
    FIELD(map_bytes, U64, 0, UINT64_MAX)                                                                               \
    FIELD(state_bytes, U64, 0, UINT64_MAX)                                                                             \
    FIELD(mcache_bytes, U64, 0, UINT64_MAX)                                                                            \
    FIELD(value, U64, 0, UINT64_MAX)                                                                                   \
    FIELD(error, U32, 1, 4095)              /* an errno */                                                             \
    FIELD(text, STR, 0, MSG_TEXT_MAX)                                                                                  \
    FIELD(body, BIN, 0, MSG_BODY_MAX)       /* msgpack of its own */                                                   \
    FIELD(image, OPT32, 0, UINT32_MAX)      /* of the program that the process runs; 0: not told */

/* MESSAGE(name, number, sender, fields in order). Senders: CLIENT, DAEMON. */
#define MSG_TABLE(MESSAGE)                                                                                             \
    /* first of all, once. tag and heap_id: those of a client that comes back; RESUME follows. image: a client of this \
     * process with another image, neither of them 0, is gone: exec has replaced it */                                 \
    MESSAGE(HELLO, 1, CLIENT, (version_min, version, layout, flags, heap_id, tag, image))                              \
    /* after a HELLO with a tag: `list` of leased spans; flags 1: the last packet of them. flags 2: of the tags of      \
     * transactions that it knows; if there is such a packet, what it does not list was lost, and is free. -> OK */    \
    MESSAGE(RESUME, 2, CLIENT, (flags, list))                                                                          \
    /* refill: about `pages` pages of spans of a class; gives back the spans in `list`. flags LEASE_AHEAD: refused     \
     * rather than waited for. -> GRANT, ERROR */                                                                      \
    MESSAGE(LEASE, 3, CLIENT, (epoch, span_class, pages, flags, list))                                                 \
    /* one span of `pages` pages, of a large class. -> GRANT, ERROR */                                                 \
    MESSAGE(LARGE, 4, CLIENT, (epoch, span_class, pages, align, list))                                                 \
    /* uncache: gives back spans. No reply. */                                                                         \
    MESSAGE(RELEASE, 5, CLIENT, (epoch, list))                                                                         \
    /* a leased large span to `pages` pages, more or fewer, in place. -> OK, ERROR */                                  \
    MESSAGE(EXTEND, 6, CLIENT, (epoch, first, pages))                                                                  \
    /* `count` tags for transactions. -> TAGS, ERROR */                                                                \
    MESSAGE(TX_TAGS, 7, CLIENT, (count))                                                                               \
    /* commits `tag` and moves root `name` ("": none); tags in `list` bear no word any more. -> OK, ERROR */           \
    MESSAGE(TX_COMMIT, 8, CLIENT, (tag, name, expected, desired, list))                                                \
    /* mode ROOT_MODE_*. -> OK, ERROR */                                                                               \
    MESSAGE(ROOT, 9, CLIENT, (name, mode, expected, desired))                                                          \
    /* what INFO_*; pages of rows by `cursor`. -> ROWS, ERROR */                                                       \
    MESSAGE(INFO, 10, CLIENT, (what, cursor))                                                                          \
    /* return all that can be returned, ask every client to. -> OK */                                                  \
    MESSAGE(TRIM, 11, CLIENT, (flags))                                                                                 \
    /* collects; flags GC_DRY_RUN; cursor: more rows of the last one. -> ROWS, ERROR */                                \
    MESSAGE(GC, 12, CLIENT, (flags, cursor))                                                                           \
    /* `value`: a state of this client that others may ask for; mode CLIENT_MODE_*. No reply with id 0, else OK */     \
    MESSAGE(MODE, 13, CLIENT, (mode, value))                                                                           \
    /* goodbye: nothing of this client lives on. -> OK, then the daemon closes */                                      \
    MESSAGE(BYE, 14, CLIENT, (flags))                                                                                  \
    /* profile and the like: `body` for whoever asks by INFO. No reply. */                                             \
    MESSAGE(REPORT, 15, CLIENT, (what, body))                                                                          \
    /* with fds: heap, map (O_RDONLY), state; a reader's are all O_RDONLY. mcache_bytes: 0, there is none any more */  \
    MESSAGE(WELCOME, 32, DAEMON,                                                                                       \
            (version, tag, epoch, heap_id, base, heap_bytes, map_bytes, state_bytes, mcache_bytes, flags))             \
    MESSAGE(GRANT, 33, DAEMON, (epoch, span_class, flags, list))                                                       \
    MESSAGE(OK, 34, DAEMON, (value))                                                                                   \
    MESSAGE(ERROR, 35, DAEMON, (error, text))                                                                          \
    MESSAGE(TAGS, 36, DAEMON, (list))                                                                                  \
    MESSAGE(ROWS, 37, DAEMON, (cursor, body))                                                                          \
    /* id 0, at any time: what NOTICE_* */                                                                             \
    MESSAGE(NOTICE, 38, DAEMON, (what, value))

enum msg_type {
#define MSG_ENUM(name, number, sender, fields) MSG_##name = number,
    MSG_TABLE(MSG_ENUM)
#undef MSG_ENUM
};

/* HELLO.flags. monitor: neither tag nor regions. look: which heap is it? The WELCOME has a tag of 0 and no descriptors;
 * the connection is a monitor's from then on, unless another HELLO follows, without this flag */
enum { HELLO_READ_ONLY = 1, HELLO_MONITOR = 2, HELLO_LOOK = 4 };
enum { WELCOME_RESUMED = 1 };                         /* WELCOME.flags: the old tag, RESUME now */
enum { RESUME_LAST = 1, RESUME_TAGS = 2 };
enum { LEASE_AHEAD = 1 };                             /* LEASE.flags: not needed yet, so nobody is asked to trim for it */
enum { GRANT_FRESH = 1 };                             /* GRANT.flags: pages that no process has touched */
enum { ROOT_MODE_SET, ROOT_MODE_CAS };
enum { NOTICE_TRIM = 1 };
enum { TRIM_ALL = 1 };
enum { GC_DRY_RUN = 1 };
/* MODE.mode. safepoint: value is an enum gc_mode; pins: the reference of the first table of pins; trimmed: the serial
 * number of the notice; 0: of its own accord, and what it gave back may go to the system at once */
enum { CLIENT_MODE_SAFEPOINT = 1, CLIENT_MODE_PINS = 2, CLIENT_MODE_TRIMMED = 3 };
enum info_what {
    INFO_STATS = 1, INFO_CLIENTS, INFO_CLASSES, INFO_SPANS, INFO_ROOTS, INFO_CHECK, INFO_MAP, INFO_ESCAPE, INFO_LIMITS,
    INFO_USERS
};

struct msg {
    uint32_t type, id;
#define MSG_MEMBER_U32(name)  uint32_t name;
#define MSG_MEMBER_OPT32(name) uint32_t name;
#define MSG_MEMBER_U64(name)  uint64_t name;
#define MSG_MEMBER_STR(name)  char name[MSG_TEXT_MAX + 1];
#define MSG_MEMBER_BIN(name)  const uint8_t *name; uint32_t name##_bytes; /* decoded: points into the packet */
#define MSG_MEMBER_LIST(name) uint32_t name##_count; uint32_t name[MSG_LIST_MAX];
#define MSG_MEMBER(name, kind, least, most) MSG_MEMBER_##kind(name)
    MSG_FIELDS(MSG_MEMBER)
#undef MSG_MEMBER
};

/* "LEASE", or "unknown" */
const char *msg_name(uint32_t type);

/* 1: a client may send it */
int msg_from_client(uint32_t type);

/* Bytes written to buf (MSG_MAX is always enough), or -EINVAL for an unknown type or a value out of its range: a defect
 * of the caller. */
int msg_encode(const struct msg *m, uint8_t *buf, size_t capacity);

/* 0, or -EPROTO with one line in ret_why (MSG_TEXT_MAX + 1 bytes): which message and field, and what is wrong. Reads each
 * byte once, allocates at most in proportion to the packet, and sets only the fields of the message's table. */
int msg_decode(struct msg *ret, const uint8_t *packet, size_t bytes, char *ret_why);

/* Bounds of a msgpack text before a library unpacks it (its array headers are believed): depth, and no more elements
 * than bytes. 0 or -EPROTO. */
int msg_precheck(const uint8_t *bytes, size_t count, unsigned depth);

#endif
