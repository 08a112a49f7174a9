/* Requests for memory, those that wait for it, and what others are asked for meanwhile. */
#ifndef DAEMON_WAITING_H
#define DAEMON_WAITING_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

struct connection;
struct server;

/* A request that waits for memory. */
struct pending {
    struct pending *next;
    struct connection *connection; /* NULL: it has gone */
    uint32_t type, id, span_class, pages, align, first;
    uint64_t since_ns;
    uint64_t asked_ns; /* when others were asked to trim */
    uint64_t swept_at; /* core.sweep_serial when a whole cycle that it waits for has ended */
    enum { HOPE_SWEEP, HOPE_TRIM, HOPE_SWEEP_AGAIN } hope;
    bool ahead; /* of need: refused at once when memory is short */
};

/* Answered now, or when there is memory or no hope. */
void wait_lease(struct connection *c, uint32_t id, const struct msg_lease *m);
void wait_large(struct connection *c, uint32_t id, const struct msg_large *m);
void wait_extend(struct connection *c, uint32_t id, const struct msg_extend *m);

void connections_retry(struct server *s);

/* Says that memory is short to all but `except`. */
void trim_ask(struct server *s, const struct connection *except);
/* A turn's part of the notices to trim; s->notice_at: there are more. */
void connections_notice(struct server *s);

#endif
