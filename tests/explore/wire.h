/* The wire between the clients and the daemon, and what is at its ends: the client's connection
 * (client/link/conn.c) and the daemon's loop and handlers (daemon/shell/server.c, connection.c, requests.c, hello.c, waiting.c),
 * written here again, step by step. Packets are short; a full queue makes its sender wait. */
#ifndef TESTS_EXPLORE_WIRE_H
#define TESTS_EXPLORE_WIRE_H

#include "tests/explore/world.h"

enum { DAEMON = 0, WIRE_LIST = 8 }; /* the daemon's process; items of a packet's list */

/* In world_setup(): all wires are down, and memory that belongs to the state is registered. */
void wire_setup(const struct world_options *options);
void wire_connect(unsigned client); /* as a greeted client is */

void daemon_start(void);  /* its core, over world_heap */
void daemon_run(void);    /* its loop, as a thread */
void daemon_killed(void); /* forgets all that is its own, and begins anew */

#endif
