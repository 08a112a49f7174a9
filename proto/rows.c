#include "proto/rows.h"

#include <errno.h>
#include <string.h>

enum { DEPTH = 8 }; /* of a body: an array, of maps, of what they hold */

static int is_text(const msgpack_object *o, const char *text)
{
    size_t length = strlen(text);
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == length && memcmp(o->via.str.ptr, text, length) == 0;
}

int rows_open(struct rows *r, const struct msg_rows *m)
{
    msgpack_unpacked_init(&r->unpacked);
    r->row = NULL;
    r->count = 0;
    if (msg_precheck(m->body, m->body_bytes, DEPTH) < 0 ||
        msgpack_unpack_next(&r->unpacked, (const char *)m->body, m->body_bytes, NULL) != MSGPACK_UNPACK_SUCCESS ||
        r->unpacked.data.type != MSGPACK_OBJECT_ARRAY)
        return -EPROTO;
    const msgpack_object_array *array = &r->unpacked.data.via.array;
    for (uint32_t i = 0; i < array->size; i++)
        if (array->ptr[i].type != MSGPACK_OBJECT_MAP)
            return -EPROTO;
    r->row = array->ptr;
    r->count = array->size;
    return 0;
}

void rows_close(struct rows *r) { msgpack_unpacked_destroy(&r->unpacked); }

const msgpack_object *row_value(const msgpack_object *row, const char *name)
{
    for (uint32_t i = 0; i < row->via.map.size; i++)
        if (is_text(&row->via.map.ptr[i].key, name))
            return &row->via.map.ptr[i].val;
    return NULL;
}

uint64_t row_u64(const msgpack_object *row, const char *name)
{
    const msgpack_object *v = row_value(row, name);
    return v && v->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? v->via.u64 : 0;
}

int row_is(const msgpack_object *row, const char *name, const char *text)
{
    const msgpack_object *v = row_value(row, name);
    return v && is_text(v, text);
}
