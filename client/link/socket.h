/* The socket to the daemon: descriptors, patience, one packet out, one packet in. See socket.c.
 * Memory: struct connection, in conn.h. sync: conn.lock, but for what a descriptor is.
 * Invariant: a descriptor is used, polled and closed only while it is the file that it was. */
#ifndef CLIENT_SOCKET_H
#define CLIENT_SOCKET_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/msg.h"

struct arena;
struct connection;

/* What a descriptor is: its number may be another file's by now, as after a closefrom(3) and an open(2) of the program's. */
struct fd_id {
    dev_t device;
    ino_t inode;
};

/* How long a call still waits for a daemon: timeout_ms at first. Each look counts the time since the one before, but no more
 * than 200 ms: a process that was stopped meanwhile has not waited. */
struct patience {
    int64_t left_ms, seen_ms;
};

struct fd_id fd_id(int fd);
bool fd_is(int fd, struct fd_id id);
void fd_close(int fd, struct fd_id id); /* if it is that */

int64_t now_ms(void); /* monotonic */
struct patience conn_patience(const struct arena *a);
bool conn_waits(struct patience *p); /* false: no more */

/* A new connection's descriptor, above those that programs use. It, and what is sent and received by it, return -EAGAIN now
 * and then, so that patience is looked at. */
int conn_connect(const char *path);
void conn_init(struct connection *c, int fd);
bool conn_is_there(struct connection *c); /* its descriptor is still its own; else it is forgotten, and not touched */
void conn_forget(struct connection *c);   /* a forked child's: closes what is its parent's connection, which goes on */
void conn_drop(struct connection *c);     /* hangs up, also where a forked child still has the descriptor */

/* Parts of a conn_call(), under the lock. conn_send: in the daemon's epoch; flags are MSG_DONTWAIT, or 0. conn_receive: until the reply to `id` is there,
 * by a connection that was there a moment ago: 0, the error in it, or -EPIPE: lost. patience NULL: waits for nothing, and
 * returns -EAGAIN. */
uint32_t conn_next_id(struct connection *c);
int conn_send(struct arena *a, struct msg m, int flags);
int conn_receive(struct arena *a, uint32_t id, uint32_t expect, struct patience *patience);
/* No reply, no wait. -EAGAIN: the daemon reads nothing, and nothing was sent; else 0, or the connection is gone, and what was to
 * be told is told by RESUME. */
int conn_tell(struct arena *a, struct msg m);

#endif
