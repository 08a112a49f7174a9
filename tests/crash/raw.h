/* A client that speaks the protocol itself, and so may send and write what the library never would. What does not go as
 * it must fails the test. */
#ifndef TESTS_CRASH_RAW_H
#define TESTS_CRASH_RAW_H

#include <stdint.h>

#include "proto/old.h"
#include "shm/layout.h"

struct raw {
    int fd, fds[4], fd_count; /* its socket, and what came with the last packet */
    uint32_t tag, epoch;
    struct heap h; /* map and state, once raw_open() has mapped them */
    struct geometry g;
};

extern struct msg m;              /* what is sent next, what came last */
extern uint8_t packet[MSG_MAX];   /* the same as bytes */

int raw_connect(const char *socket_path); /* its descriptor */

/* m, with this type and id: 0 or a negative errno. */
int raw_send(int fd, uint32_t type, uint32_t id);

/* The next packet into m: its type, or 0 when the connection has ended. Notices are passed over. */
uint32_t raw_receive(struct raw *r);

/* The fields of a HELLO into m, all else zero. */
void hello_fields(uint32_t flags);

/* Connects as a client: the regions' descriptors are in r->fds. */
void raw_greet(struct raw *r, const char *socket_path);
/* The same, and maps map and state. */
void raw_open(struct raw *r, const char *socket_path);
void raw_close_fds(struct raw *r); /* the regions' */
void raw_close(struct raw *r);

#endif
