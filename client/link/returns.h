/* What this process has leased, by first page, and the spans that it has let go of, until the daemon is told. See returns.c.
 * Memory: private: one struct lease for each page of the heap, in a mapping of zeros that is backed where it is used.
 * sync: see the fields; returns.lock is the innermost lock.
 * Invariant: a queued span is leased to this client in the map, so nobody else is granted it. */
#ifndef CLIENT_RETURNS_H
#define CLIENT_RETURNS_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "shm/atomic.h"

struct arena;

enum lease_list { LEASE_NONE, LEASE_CURRENT, LEASE_IDLE, LEASE_FULL, LEASE_LISTS };

/* By first page. sync: the lock of its span class, or of the large cache */
struct lease {
    uint32_t next, prev;
    union {
        struct {
            uint16_t free;   /* FREE objects, as far as this process knows */
            uint16_t cursor; /* words below it were looked at */
        };
        uint32_t pages;  /* of a large span that is leased here or cached: how many are surely its own. sync: atomic */
    };
    uint8_t list;        /* enum lease_list. sync: atomic; to LEASE_NONE under returns.lock, from it under conn.lock */
    uint8_t span_class;
    uint8_t again;       /* something was flushed below the cursor */
    uint8_t doubt;       /* large: an EXTEND of it may be done yet, or have been. sync: atomic, set and cleared with conn.lock */
};
#define LEASE_END UINT32_MAX

/* Spans that were let go and that the daemon is to be told of: see returns.c. */
struct returns {
    pthread_mutex_t lock; /* the innermost */
    uint32_t first, last; /* chained in the leases */
    uint32_t waiting;     /* all that is to be told: spans, answer, trimmed. sync: atomic, stored with the lock */
    uint32_t answer;      /* serial of the shortage that this process has answered; 0: none */
    uint64_t listed_to;   /* the RESUME that is under way has listed all leases below this page; all ones: none is. sync: atomic,
                             with the lock */
    bool trimmed;         /* arena_trim is to be told */
};

/* None of them waits for the daemon, or for a thread that does. */
void returns_init(struct arena *a);
bool returns_put(struct arena *a, uint32_t first); /* lets go of a lease; false: it was let go before */
/* A lease of small objects that nobody here has taken yet goes back. With conn.lock held. */
void returns_add(struct arena *a, uint32_t first);
/* For the list of a LEASE or LARGE, with conn.lock held: how many. What was not sent is put back. */
uint32_t returns_take(struct arena *a, uint32_t *out, uint32_t most);
void returns_put_back(struct arena *a, const uint32_t *list, uint32_t count);
void returns_answer(struct arena *a, uint32_t serial); /* after what was given back; 0: none */
void returns_trimmed(struct arena *a);
bool returns_send(struct arena *a); /* with conn.lock held; false: more waits, and cannot be sent now */
static inline bool returns_pending(const struct returns *r) { return unlikely(load_relaxed(&r->waiting) != 0); }
/* The first pages of all leases, in portions, with conn.lock held: for RESUME. At cursor 0 what is queued is forgotten: it is
 * not listed, so the daemon takes it back. */
uint32_t returns_list(struct arena *a, uint64_t *cursor, uint32_t *out, uint32_t capacity);

#endif
