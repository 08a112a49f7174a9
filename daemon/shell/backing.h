/* Memory behind the heap comes and goes by system calls that take milliseconds: on a thread of their own, one at a time, as
 * the kernel does one at a time for a file anyhow, and more threads would spin for its lock. What a small request waits for
 * goes first, then what a large one waits for, then what is returned to the system; none waits for ever. All of these are
 * called by the loop's thread. */
#ifndef DAEMON_BACKING_H
#define DAEMON_BACKING_H

#include <stdint.h>

struct server;
struct backer;

int backing_start(struct server *s);
void backing_stop(struct server *s); /* all that is queued is done first; then the loop's handles may be closed */
void backing_free(struct server *s);

/* The mheap's: see struct backing. The answer is core_grown() or core_returned(). */
int backing_grow(void *server, uint64_t first, uint64_t pages);
int backing_give_back(void *server, uint64_t first, uint64_t pages);

/* strays.c's: cold pages, answered by core_cleared(); map and state behind what is in use. */
int backing_clear(struct server *s, uint64_t first, uint64_t pages);
int backing_tidy(struct server *s);

/* State words below `units` are about to be backed: the worker clears none of them from here on. */
void backing_claim_units(struct server *s, uint64_t units);

#endif
