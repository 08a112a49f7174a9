/* Large objects: spans of one object, and a cache of freed ones. See large.c.
 * Memory: private, a heap's; chained in the leases of the first two pages of a span. sync: the cache's lock, under conn.lock and
 * above that of the returns.
 * Invariant: the word of a cached object is CACHED by this client. */
#ifndef CLIENT_LARGE_H
#define CLIENT_LARGE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

struct arena;

struct large_cache {
    pthread_mutex_t lock;
    uint32_t bins[2][256]; /* by noscan and size bin: first pages, chained in leases[first] */
    uint32_t oldest, newest; /* chained in leases[first + 1] */
    uint64_t bytes, limit;
    bool evicted; /* since the last round trip */
    bool allocates; /* this process does, and does not only free what others allocate. sync: atomic */
    uint32_t evictions;
};

/* The first page of a span whose word is CACHED by this client: of the cache, or the daemon. 0 or a negative errno. */
int large_take(struct arena *a, bool noscan, uint64_t pages, uint64_t align, uint32_t *ret_first);
void large_free(struct arena *a, uint64_t first); /* its word is CACHED by this client */
uint16_t *large_word(const struct arena *a, uint64_t first);
/* 0, or -ENOTCONN: nobody can say yet how many pages it has, and it may not be published before. */
int large_let_go(struct arena *a, uint64_t first);
int large_extend(struct arena *a, uint64_t first, uint32_t pages); /* more or fewer, in place */
/* The bytes of a large object that the map says has so many: of one that is leased here, what is surely its own. */
uint64_t large_bytes(const struct arena *a, uint64_t first, uint64_t bytes);
void large_release_all(struct arena *a);
void large_init(struct arena *a);

#endif
