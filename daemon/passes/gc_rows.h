/* What a collection has found, as rows: one of kind "collection", then "class", "client" and "user" ones that say where
 * the unreachable bytes are, or "blocker" ones that say who was in the way. msgpack, in bodies that fit a packet. */
#ifndef DAEMON_GC_ROWS_H
#define DAEMON_GC_ROWS_H

#include <msgpack.h>

#include "daemon/passes/gc.h"

struct gc_rows {
    msgpack_sbuffer *bodies; /* arrays of maps */
    uint32_t count;
};

/* result: "freed", "dry run", "refused", "canceled", "gave up". report NULL: there was no collection. `turner`: the
 * tag of a client that was in the way of one that had declared itself; 0: none. 0 or -ENOMEM. */
int gc_rows_make(struct gc_rows *rows, const struct core *core, const struct gc_report *report, unsigned turner,
                 const char *result, uint64_t mark_ns, uint64_t total_ns);
void gc_rows_free(struct gc_rows *rows);

#endif
