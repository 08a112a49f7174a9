/* Free: see free.c. `call`: the function that was called, for messages.
 * Memory: none of its own. sync: the thread's mcache is its own; words are atomic. */
#ifndef CLIENT_FREE_H
#define CLIENT_FREE_H

#include "client/alloc/mcache.h"

int free_slow(struct arena *a, void *p, const char *call);

static inline void free_as(struct arena *a, void *p, const char *call)
{
    if (p && unlikely(!arena_inline_push(hot_of(a), hot_mcache(mcache_of(a)), p)))
        free_slow(a, p, call);
}
void free_of_tx(struct arena *a, struct mcache *mc, unsigned tag, void *p, uint16_t *word); /* OWNED(tag), not committed */
/* To the limbo: OWNED by it, from any standing that may be freed. False: a bad free, reported. */
bool free_to_limbo(struct arena *a, void *p, uint16_t limbo, const char *call);
void free_of_limbo(struct arena *a, void *p); /* and out of it */

#endif
