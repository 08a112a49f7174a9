/* INFO: walks over the heap for monitors, and what they may make the daemon hold. */
#ifndef DAEMON_INFO_H
#define DAEMON_INFO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct server;
struct connection;

/* What INFO may hold: bounds that no number of monitors passes. A connection: one reply, and the next one only when it has
 * read that one. Who has not read it for hello-timeout is cut off. */
enum {
    INFO_WALKS = 4,               /* over the heap at once; a walk serves all that ask for the same before it begins */
    INFO_REPLY = 64 << 10,        /* bytes of a reply */
    INFO_SMALL = 4 << 10,         /* one that is not counted: the socket's bound holds it */
    INFO_UNREAD_USER = 4 << 20,   /* bytes of replies that one user's connections have not read; root's: as those of all */
    INFO_UNREAD_ALL = 16 << 20,   /* and those of all, */
    INFO_UNREAD_ROOT = 1 << 20,   /* of which this is left to root */
};

/* The reply comes later. */
void info_request(struct connection *c, uint32_t id, unsigned what, uint64_t cursor);

/* A turn's work; true: there is more. */
bool info_turn(struct server *s);
bool info_waits(const struct server *s); /* something can be done in a turn */

/* With the clock: who has read its reply, and who will not. */
void info_tick(struct server *s);

/* The connection closes: what it has asked for is not answered. */
void info_forget(struct connection *c);
void info_free(struct server *s);

#endif
