/* Collections as the server runs them: one at a time, its mark on threads of its own, its sweep by turns of the loop.
 *
 *   request -> WAITING (the pass for dead clients, pages on their way back) -> MARKING (threads) -> SWEEPING -> answer
 *
 * From MARKING on until the end whoever would begin to use the heap waits: a client that leaves its safepoint, one that
 * attaches or comes back, another request to collect. Their packets are kept, one a connection, and nothing more is read
 * from it. Loop thread. */
#ifndef DAEMON_COLLECTOR_H
#define DAEMON_COLLECTOR_H

#include "daemon/shell/server.h"

struct collector;

int collector_start(struct server *s);
void collector_stop(struct server *s);             /* ends a collection in the middle; before the loop is closed */
void collector_free(struct server *s);             /* after it */

void collector_request(struct connection *c, uint32_t id, unsigned flags, uint64_t cursor);
void collector_forget(struct connection *c);       /* it is being closed */

/* Must this packet wait for the end of a collection? Then it is kept, and the connection is not read until then. */
bool collector_defers(struct connection *c, const struct msg *m, const uint8_t *packet, size_t bytes);

bool collector_busy(const struct server *s);       /* has work for a turn */
void collector_turn(struct server *s);
bool collector_holds_pages(const struct server *s); /* no page may be returned to the system now */

#endif
