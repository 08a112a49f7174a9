/* Publish and claim: see arena.h.
 * Memory: none of its own. sync: words are atomic [PB1]. */
#ifndef CLIENT_PUBLISH_H
#define CLIENT_PUBLISH_H

#include "client/heap.h"

int publish_slow(arena_t *a, void *p); /* 0 or a negative errno */

#endif
