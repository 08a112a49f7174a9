/* Pins: what a process holds that the collector is to find; and the limbo, for what was copied meanwhile. See pins.c.
 * Memory: private; the tables are objects of the heap, OWNED by this process. sync: a lock of its own, before all others.
 * Invariant: what was pinned at any moment of a collection stays in its table until that has ended. */
#ifndef CLIENT_PINS_H
#define CLIENT_PINS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct arena;
struct limbo_entry;
struct mcache;

int pins_init(struct arena *a); /* also in a forked child: it has none of its parent's */
void pins_fini(struct arena *a);

/* An object was copied, and may be freed. While a collection runs that may still have to read it, it goes to the limbo: for
 * that limbo_prepare() makes room before the copy, and limbo_or_free() comes after it. */
int limbo_prepare(struct arena *a, struct limbo_entry **ret); /* 0 or a negative errno */
void limbo_or_free(struct arena *a, void *object, struct limbo_entry *entry, const char *call);
void late_settle(struct arena *a); /* what waits for the end of a collection that is over */

/* Pins of this process's on the object that begins at `ref` go with it; one that is to take its place gets as many, once at
 * least if `born`. -ENOMEM and the like: nothing has changed. */
void pins_unpin(struct arena *a, uint64_t ref);
void pins_moved(const struct arena *a, uint64_t ref); /* to the copy of what was freed: there is none to be unpinned any more */
int pins_copy(struct arena *a, uint64_t from, uint64_t to, uint64_t size, bool born);
bool pins_is_pinned(struct arena *a, uint64_t ref);
void *pinned_alloc(struct arena *a, struct mcache *mc, size_t size, unsigned flags); /* ARENA_SHARED, born pinned */
int limbo_tag(struct arena *a); /* takes its tag, if it has none yet: 0 or a negative errno */

#endif
