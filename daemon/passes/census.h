/* The census: walks the whole heap a turn at a time and answers `stat`, `clients`, `classes`, `spans`, `roots`, `map`
 * and `check` from what it counted. Nothing is kept for statistics' sake on the paths that allocate. */
#ifndef DAEMON_CENSUS_H
#define DAEMON_CENSUS_H

#include "daemon/core/core.h"

struct census;

/* Figures that the core does not know. */
struct census_outside {
    uint64_t heap_backed, map_backed, state_backed;
    const char *name, *socket;
    uint64_t pid, pid_namespace, keeper_pid, managed; /* keeper_pid 0: none; managed: by a service manager */
    uint64_t reloads, reloads_refused;
    const char *reload_error;          /* of the last one; "": none */
    uint64_t strays;                   /* bytes that have memory and should have none */
};

/* what: INFO_*. NULL: out of memory. cursor: where the rows begin. */
struct census *census_new(struct core *core, unsigned what, uint64_t cursor);
void census_free(struct census *census);

/* Up to `words` state words and TURN_SPANS spans; true when it is through. */
bool census_turn(struct census *census, uint32_t words);

/* The rows as msgpack, an array of maps of at most MSG_BODY_MAX bytes; *ret_cursor: where the next ones begin, 0: that
 * was all. The caller frees *ret. 0 or -ENOMEM. */
int census_rows(struct census *census, const struct census_outside *outside, void **ret, size_t *ret_bytes,
                uint64_t *ret_cursor);

#endif
