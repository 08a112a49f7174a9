/* Objects: what a pointer points at, and whose it is: how the word of an object stands to this process.
 * Memory: none of its own. sync: words are atomic; a hazard is set before the look that counts [HZ1]. */
#ifndef CLIENT_OBJECT_H
#define CLIENT_OBJECT_H

#include "client/heap.h"
#include "client/link/environ.h"
#include "client/link/hooks.h"
#include "shm/hazard.h"

int object_at(const struct arena *a, const void *p, struct object *ret, char why[100]);
/* To the error handler. `call`: the function that was called. */
void object_bad(struct arena *a, const void *p, int error, const char *call, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
void refused_root(struct arena *a, const char *name, uint64_t ref, unsigned tx);

enum standing { STANDS_MINE, STANDS_SHARED, STANDS_OTHERWISE };

/* What was seen of a word. */
struct look {
    uint16_t seen;
    uint32_t *hazard; /* STANDS_SHARED, OWNED by a committed transaction: whose tag rests until this is cleared */
};

static inline void look_end(const struct look *l)
{
    if (l->hazard)
        hazard_clear(l->hazard); /* [HZ1] after the swap */
}

bool word_is_mine(const struct arena *a, uint16_t word);
enum standing word_standing(const struct arena *a, const uint16_t *word, struct look *l);
int word_why(const struct arena *a, uint16_t word, char why[100]);
void word_report(struct arena *a, const void *p, uint16_t word, const char *call); /* a bad free */

/* ARENA_DEBUG=pins: the program uses an object. */
static inline void object_used(struct arena *a, const void *p, const struct object *o, const char *call)
{
    if (unlikely(a->debug & DEBUG_PINS))
        hooks.used(a, p, o, call);
}

#endif
