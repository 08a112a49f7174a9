/* An allocator under measure. worker.c is compiled once for each (-DPEER_ARENA, _PRIVATE, _BOOST,
 * _RING) and linked with its shared library, so that a call goes where a user's program's goes:
 * straight through the dynamic symbol. What is called once is in peer_NAME.c.
 *
 * PEER_PRIVATE is malloc and free of whatever library stands first in the link line: glibc,
 * jemalloc, mimalloc, tcmalloc. PEER_RING allocates nothing: it hands out a fixed set of blocks in
 * turn, and so measures what the passing costs. */
#ifndef TESTS_BENCH_PEER_H
#define TESTS_BENCH_PEER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(PEER_ARENA)
#ifdef PEER_INLINE
#include "client/arena_inline.h"
#else
#include "client/arena.h"
#endif
typedef arena_t *peer_t;
static inline void *peer_alloc(peer_t h, size_t size) { return arena_alloc(h, size); }
static inline void *peer_alloc_shared(peer_t h, size_t size)
{
    return arena_alloc_flags(h, size, ARENA_SHARED);
}
static inline void peer_free(peer_t h, void *p) { arena_free(h, p); }
static inline int peer_publish(peer_t h, void *p) { return arena_publish(h, p); }

#elif defined(PEER_PRIVATE)
typedef int peer_t;
static inline void *peer_alloc(peer_t h, size_t size) { return (void)h, malloc(size); }
static inline void *peer_alloc_shared(peer_t h, size_t size) { return (void)h, malloc(size); }
static inline void peer_free(peer_t h, void *p) { (void)h, free(p); }
static inline int peer_publish(peer_t h, void *p) { return (void)h, (void)p, 0; }

#elif defined(PEER_BOOST)
typedef void *peer_t;
/* of libbench_boost.so: the segment's code is all templates */
void *boost_alloc(peer_t segment, size_t size);
void boost_free(peer_t segment, void *p);
static inline void *peer_alloc(peer_t h, size_t size) { return boost_alloc(h, size); }
static inline void *peer_alloc_shared(peer_t h, size_t size) { return boost_alloc(h, size); }
static inline void peer_free(peer_t h, void *p) { boost_free(h, p); }
static inline int peer_publish(peer_t h, void *p) { return (void)h, (void)p, 0; }

#elif defined(PEER_RING)
struct pool {
    char *blocks;
    size_t count, next, at;
};
typedef struct pool *peer_t;
static inline void *peer_alloc(peer_t h, size_t size)
{
    if (h->next++ == h->count)
        h->next = 1, h->at = 0;
    void *p = h->blocks + h->at;
    h->at += (size + 15) & ~(size_t)15;
    return p;
}
static inline void *peer_alloc_shared(peer_t h, size_t size) { return peer_alloc(h, size); }
static inline void peer_free(peer_t h, void *p) { (void)h, (void)p; }
static inline int peer_publish(peer_t h, void *p) { return (void)h, (void)p, 0; }
#else
#error "which peer?"
#endif

/* Can processes pass its blocks to one another? Is it no allocator, but what the rows of passing
 * are held against? */
extern const bool peer_is_shared, peer_only_passes, peer_is_arena;

/* Checks that the calls go to the library that is meant, and makes `heaps` heaps, before any worker
 * is there; what it made is removed when the process exits. 0, or an errno after a printed line.
 * max: as `arenad --max`. */
int peer_setup(unsigned heaps, const char *max);

/* For each worker, thread or process, before its first call. */
peer_t peer_enter(unsigned heap);

/* Gives back what is cached, as far as the peer offers that. */
void peer_trim(peer_t h);

/* Bytes of shared memory that the heap holds now, every region counted, and what is private to its
 * daemon; what is private to this process is the caller's to count. */
uint64_t peer_shared_bytes(peer_t h);

/* Requests that a daemon has answered since the heap was made; 0 where there is none. */
uint64_t peer_round_trips(peer_t h);

/* CPU time that the daemons of the heaps have used; 0 where there is none. */
uint64_t peer_daemon_ns(void);

/* Attaches `count` idle clients that have allocated a block each, until the process exits; where
 * there are clients. */
int peer_crowd(unsigned count);

#endif
