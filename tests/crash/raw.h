/* A client that speaks the protocol itself, and so may send and write what the library never would. What does not go as
 * it must fails the test. */
#ifndef TESTS_CRASH_RAW_H
#define TESTS_CRASH_RAW_H

#include <stdint.h>

#include "proto/call.h"
#include "proto/msg.h"
#include "shm/layout.h"

struct raw {
    int fd, fds[4], fd_count; /* its socket, and what came with the last packet */
    uint32_t tag, epoch;
    struct heap h; /* map and state, once raw_open() has mapped them */
    struct geometry g;
};

extern struct msg m;            /* what came last */
extern uint8_t packet[MSG_MAX]; /* what was sent or came last, as bytes */

int raw_connect(const char *socket_path); /* its descriptor */

/* 0 or a negative errno. */
int raw_send(int fd, uint32_t id, struct msg message);

/* The next packet into m: its type, or 0 when the connection has ended. Notices are passed over. */
uint32_t raw_receive(struct raw *r);

/* A value for each field that a message of the table may have. */
struct raw_values {
    uint32_t version_min, version, layout, flags, tag, epoch, span_class, pages, align, first, count, mode, what, error, image, copy;
    uint64_t expected, desired, cursor, base, heap_bytes, map_bytes, state_bytes, value, gc_mode, table, serial;
    const char *name, *text;
    const uint8_t *heap_id, *body;
    uint32_t heap_id_bytes, body_bytes;
    const uint32_t *list;
    uint32_t list_count;
};

/* A message of any type, with those that are its own. */
struct msg raw_message(uint32_t type, const struct raw_values *v);

/* The same heap, and the tag of who comes back to it. */
struct msg raw_hello_again(unsigned flags, const uint8_t *heap_id, unsigned tag);

/* Connects as a client: the regions' descriptors are in r->fds. */
void raw_greet(struct raw *r, const char *socket_path);
/* The same, and maps map and state. */
void raw_open(struct raw *r, const char *socket_path);
void raw_close_fds(struct raw *r); /* the regions' */
void raw_close(struct raw *r);

#endif
