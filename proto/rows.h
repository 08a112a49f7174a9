/* What a ROWS brings: an array of maps, whose keys are names. The daemon's programs write it, so a reader checks its bounds
 * before it is unpacked. Memory: rows_open() takes some, rows_close() gives it back; the rows point into it and the packet. */
#ifndef PROTO_ROWS_H
#define PROTO_ROWS_H

#include <stdint.h>

#include <msgpack.h>

#include "proto/msg.h"

struct rows {
    const msgpack_object *row; /* each a map */
    uint32_t count;
    msgpack_unpacked unpacked;
};

/* 0, or -EPROTO. To be closed in either case. */
int rows_open(struct rows *r, const struct msg_rows *m);
void rows_close(struct rows *r);

/* What a row has under a name: NULL, 0 if it is not there or is no number, or whether it is this text. */
const msgpack_object *row_value(const msgpack_object *row, const char *name);
uint64_t row_u64(const msgpack_object *row, const char *name);
int row_is(const msgpack_object *row, const char *name, const char *text);

#endif
