/* The explored world: a tiny heap, the daemon's core, and clients, all of it the product's own
 * code, with a wire between them in place of sockets (wire.h). What is not the product's: the wire
 * itself, the daemon's loop (daemon/shell/server.c and connection.c live with libuv), the handlers of
 * daemon/shell/requests.c, hello.c, waiting.c and the client's reconnecting in client/link/conn.c.
 *
 * Processes: 0 is the daemon, 1.. are the clients. A client's threads each have an mcache. */
#ifndef TESTS_EXPLORE_WORLD_H
#define TESTS_EXPLORE_WORLD_H

#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/alloc/mcaches.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/heap.h"
#include "client/link/fork.h"
#include "client/link/reason.h"
#include "client/own/tx.h"
#include "daemon/core/core.h"
#include "tests/explore/explore.h"

enum {
    WORLD_PAGES = 8,
    WORLD_CLIENTS = 3,
    WORLD_CLASS = SPAN_CLASS(44, 0), /* three objects a span of one page; a refill takes two */
    WORLD_SIZE = 2720,
    WORLD_OBJECTS = WORLD_PAGES * 3,
};

extern struct core world_core;
extern struct heap world_heap;

struct world_options {
    unsigned clients;
    bool daemon;     /* it runs as a thread; else what setup did is all that it does */
    unsigned sweeps; /* cycles of the background sweep that it may begin at any time */
    bool single[WORLD_CLIENTS +
                1]; /* the client has one thread: its locks and counters are no points */
    bool quiet_map; /* no span is cut, uncut or leased: the map is constant, but for tags and roots
                     */
    bool transactions;
    unsigned give_ups; /* answers for which a client's patience may be at an end before they come, in all */
    bool narrow; /* a wire takes one packet at a time: what is told finds it full */
};

/* In a scenario's setup: heap, core, clients 1..n attached. */
void world_setup(const struct world_options *options);
arena_t *world_client(unsigned process);
/* A thread of client `process`, with an mcache of its own. */
int world_thread(const char *name, unsigned process, void (*fn)(void *), void *argument);

/* In setup: what comes next is done by the n-th thread that was added, at once. */
void world_become(unsigned nth);

/* What the threads do. Each keeps account of who holds what, and reports a violation when an object
 * is handed out that somebody holds. */
void *world_alloc(unsigned process);
void world_free(unsigned process, void *p);     /* its own, or one that nobody else frees */
bool world_free_try(unsigned process, void *p); /* false: refused as a bad free */
void world_holds(const void *p, unsigned process, bool published);
unsigned world_index(const void *p);
uint16_t world_word(const void *p);

/* For scenarios: bytes that are part of the state. */
struct world_board {
    uint64_t ref[4];
    uint32_t done[4], won[4], failed;
};
extern struct world_board world_board;

bool world_is_connected(
    unsigned process); /* false: it has not found out yet that the daemon died */
bool world_was_full(unsigned process); /* what it wanted to tell found no room */
void world_killed(unsigned process);
/* No word bears a tag that nobody has; a leased span's lessee lives. */
void world_invariant(void);
/* Nobody runs: the daemon's own checks, a sweep after which every FREE object can be had again, no
 * dead tag anywhere, and client and daemon agree about leases. */
void world_final(void);
/* After world_final(): objects by standing. */
struct world_census {
    unsigned free, shared, owned, cached;
};
struct world_census world_census(void);

#endif
