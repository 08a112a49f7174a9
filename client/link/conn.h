/* The connection to the daemon: requests and replies, one at a time, and what happens when it is lost. See conn.c.
 * Memory: private, a heap's. sync: conn.lock, which alone is held over a wait for the daemon. Who holds another lock takes it
 * only by conn_trylock(). A forked child makes it anew.
 * Invariant: what a GRANT has brought is on a list before the lock is released, so that a RESUME lists it. */
#ifndef CLIENT_CONN_H
#define CLIENT_CONN_H

#include <pthread.h>

#include "client/link/socket.h"
#include "proto/msg.h"

/* Spans of a packet: that are granted at most, that a RELEASE gives back, and that a LEASE or LARGE gives back beside what it
 * asks for. */
enum { GRANT_SPANS_MAX = 1024, RETURNS_MOST = 1024, RETURNS_BESIDE = 512 };

/* A lease that was asked for before it was needed: one at a time. sync: conn.lock */
struct ahead {
    uint32_t id;         /* of its request; 0: none */
    uint32_t span_class;
    bool arrived;
    int error;           /* of what arrived; 0: a grant */
    uint32_t flags, count;
    uint32_t list[GRANT_SPANS_MAX];
};

enum { GRANTED_TAGS_MAX = 1024 }; /* transactions of a client */

/* What is always needed is first: an attach touches few pages. */
struct connection {
    pthread_mutex_t lock;
    int fd;              /* -1: none. Used, polled and closed only while it is what `id` says */
    struct fd_id id;
    uint32_t epoch;      /* of the daemon that it is to */
    uint32_t next_id;
    bool stale;          /* the daemon serves another heap: for ever. sync: atomic [EX1], set with conn.lock */
    bool waited_out;     /* who holds the lock has waited for one that gave up */
    uint32_t gave_up;    /* calls that no daemon answered in time. sync: atomic, set with conn.lock */
    uint32_t granted_count;
    struct ahead ahead;
    struct msg in;       /* what came last; it points into `space` and `packet` */
    uint32_t list[MSG_LIST_MAX]; /* for a request's: of spans that go back. A reconnection uses it too */
    struct msg_space space;
    uint8_t packet[MSG_MAX];
    uint16_t granted[GRANTED_TAGS_MAX]; /* every tag that a TAGS has brought: to be listed when it comes back */
};

/* With conn.lock held conn_call sends a request and leaves the reply in conn.in. A lost connection is made anew and the
 * request repeated. It returns
 *   0             done. Of ROOT, TX_COMMIT, EXTEND, SAFEPOINT and PINS conn.in may hold nothing: the map told it
 *   -ENOTCONN     no answer came in time, and the request was not done and never will be: what a LEASE, LARGE or TX_TAGS
 *                 would have brought, and a LEASE or LARGE would have given back, the next RESUME settles
 *   -EINPROGRESS  in doubt, of ROOT, TX_COMMIT, EXTEND, SAFEPOINT and PINS: the daemon has begun with this
 *                 very request and stands still, or died. The connection is given up. As soon as a conn_call has returned
 *                 anything but this and -ENOTCONN it is settled, and the map tells: the root, the transaction's state, the
 *                 span's page_count, the tag's gc_mode
 *   -ESTALE       the daemon serves another heap
 *   another error of the daemon's: not done */
void conn_lock(struct arena *a);    /* and cancelling waits, until conn_unlock */
bool conn_trylock(struct arena *a);
void conn_unlock(struct arena *a);
void conn_kick(struct arena *a); /* sends what waits among the returns, if nobody holds the lock: who holds it does */
void conn_set_stale(struct arena *a); /* with conn.lock held: the heap is of the past, for ever, and no thread's fast path serves it */
int conn_call(struct arena *a, struct msg request);
int conn_call_within(struct arena *a, struct msg request, struct patience patience);
/* Sends a LEASE, and lets its reply come when it comes: 0, -EALREADY: one is under way, or as
 * conn_tell(). conn_ahead() waits for it: 0 and the grant in conn.ahead, -ENOENT: none of this class was asked for, or the error
 * that it was answered with. A connection that is lost takes it along: spans that were granted and not accepted are not listed
 * by RESUME, so the daemon takes them back. */
int conn_ask_ahead(struct arena *a, struct msg request);
int conn_ahead(struct arena *a, unsigned span_class);
bool conn_ahead_arrived(struct arena *a); /* it is there, and conn_ahead() does not wait */

#endif
