/* Attaching, step by step: for arena_open(), and for a forked child at its first slow path.
 * Memory: the regions, mapped; the rest is in struct arena. sync: one thread at a time attaches a heap (life/open.c's turns,
 * `attaching`). */
#ifndef CLIENT_ATTACH_H
#define CLIENT_ATTACH_H

#include <stdbool.h>

#include "client/link/conn.h"

/* Sends HELLO, as a new client or (HELLO_LOOK) to learn which heap is there, and takes the reply with its descriptors: three of
 * a client. Their number, -EPIPE: the connection was lost, or another negative errno. */
int attach_hello(struct connection *c, unsigned flags, uint32_t copy, int fds[3], struct patience *patience);
/* Connects and says HELLO, on and on while connections are lost - a daemon that is being started again, or one that was stopped
 * for long - and, if there was a daemon before, also while nobody is there; as long as there is patience. As attach_hello(). */
int attach_greet(struct arena *a, bool was_there, unsigned flags, uint32_t copy, int fds[3], struct patience *patience);
unsigned attach_flags(const struct arena *a);         /* of its HELLO */
bool attach_tries_again(struct patience *patience);   /* after a pause; false: there is no patience any more */
int attach_map(struct arena *a, const struct msg_welcome *welcome, const int *fds);
void attach_unmap(struct arena *a);
void attach_close_fds(int *fds, int count);
void attach_bye(struct arena *a); /* this client goes away at once, not only when the process ends */

/* In a forked child, at its first slow path: one thread attaches, the others wait for it, and take its answer. */
int arena_reattach(struct arena *a);

#endif
