/* The process's leased spans: the client's side of the mcentrals. See lease.c.
 * Memory: private, a heap's; stashes are malloc's. sync: a lock a span class, under conn.lock and above that of the returns.
 * Invariant: a span on a list is leased to this client in the map; its lease is scanned and let go under its class's lock. */
#ifndef CLIENT_LEASE_H
#define CLIENT_LEASE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "client/link/returns.h"

struct arena;
struct arena_slot;

/* The client's side of an mcentral. current: spans with a FREE object, oldest first; idle: wholly free; full: worked
 * through, kept in case that other processes free in them. All zero until it is used first. sync: lock */
struct central {
    pthread_mutex_t lock;
    bool ready;
    uint32_t first[LEASE_LISTS], last[LEASE_LISTS], count[LEASE_LISTS];
    struct arena_slot *stash;   /* entries that left their magazines, CACHED; the newest last. Private memory */
    uint32_t stash_count, stash_capacity;
    uint32_t grant_spans; /* of the last lease, if it was cut fresh and nothing flushed since: the class grows */
    uint32_t held_pages;  /* leased or filled: what the next lease is in proportion to */
    uint64_t stash_peak;  /* bytes, since the last lease */
    uint64_t flushed;     /* bytes, less what was taken again, since the last lease */
    uint64_t gave_back;   /* FREE bytes that went back since the last lease: if they are asked for again, keep more */
};

/* What a word that became FREE tells the daemon or another process, and a grant of it or a reference to what was made there
 * tells another thread, is an order between this process's threads that goes through another process: ThreadSanitizer
 * cannot see it. */
#ifdef __SANITIZE_THREAD__
void __tsan_acquire(void *at);
void __tsan_release(void *at);
#define BEFORE_FREE(a) __tsan_release((a)->leases)
#define AFTER_GRANT(a) __tsan_acquire((a)->leases)
#else
#define BEFORE_FREE(a) ((void)0)
#define AFTER_GRANT(a) ((void)0)
#endif

int lease_init(struct arena *a);
void lease_fini(struct arena *a);
/* refill: up to `want` objects, each FREE -> CACHED(tag): their number, or a negative errno. */
int lease_refill(struct arena *a, unsigned span_class, struct arena_slot *out, uint32_t want);
/* flush: entries that have left their magazine, CACHED -> FREE, then the hints. */
void lease_flush(struct arena *a, unsigned span_class, const struct arena_slot *slots, uint32_t count);
void lease_release_all(struct arena *a); /* waits for nobody */

#endif
