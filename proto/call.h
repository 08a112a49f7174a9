/* A request and its reply, for who has a connection of its own and asks one thing at a time: a monitor. A client's own
 * connection is client/link/conn.c's: it is also made anew, and what was asked ahead comes by it. */
#ifndef PROTO_CALL_H
#define PROTO_CALL_H

#include <stdint.h>

#include "proto/msg.h"

/* The only place that makes a HELLO. Who comes back adds heap_id and tag. */
struct msg call_hello(unsigned flags, uint32_t image);

enum call_moment {
    CALL_SENDS,    /* the request is about to be sent, */
    CALL_RECEIVES, /* a reply is about to be read: */
    CALL_SILENT,   /* neither could be done in the time that the socket is waited for: it is tried again */
};

struct call {
    int fd;
    uint32_t last_id;
    int (*wait)(void *context, enum call_moment moment); /* 0, or the error with which it is given up */
    void *context;
    struct msg in; /* what came last */
    struct msg_space space;
    char why[MSG_TEXT_MAX + 1]; /* of -EPROTO */
    uint8_t packet[MSG_MAX];
};

/* Sends the request, with the next id, and reads until its reply is in c->in. 0; -EPIPE: the connection is lost (its last words
 * were read before); -EPROTO: it cannot be understood; the error in an ERROR, which is in c->in; or wait's. Notices are passed
 * over. A HELLO's reply is a WELCOME or an OK. */
int call(struct call *c, struct msg request);

#endif
