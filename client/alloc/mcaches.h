/* All mcaches of a heap: a table of addresses, used from the first on.
 * Memory: private; one that is mapped stays mapped. sync: registry_lock makes one; any thread walks them [MC1]. */
#ifndef CLIENT_MCACHES_H
#define CLIENT_MCACHES_H

#include <stdint.h>

struct arena;
struct mcache;

struct mcache *mcaches_map(struct arena *a); /* one more; NULL and errno. With registry_lock */
void mcaches_unmap(struct arena *a);
void mcaches_watch(struct arena *a);  /* every thread's next allocation takes the slow path */
void mcaches_expire(struct arena *a); /* no thread's fast path serves this heap any more */

/* Asks the threads that hold something and have not given back since `serial` was counted up, by their next allocation: how
 * many of them had answered the call before it, so that they can be expected to answer. */
uint32_t mcaches_call(struct arena *a, const struct mcache *except, uint32_t serial);

#endif
