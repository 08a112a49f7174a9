/* Figures: the daemon counts, this reads its rows. And the version. */
#include <string.h>

#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "proto/rows.h"
#include "proto/stats.h"

struct place {
    const char *name;
    size_t at;
};

static const struct place places[] = {
#define PLACE(name, text) {#name, offsetof(struct arena_stats, name)},
    STATS(PLACE)
#undef PLACE
};

static void take(struct arena_stats *out, const msgpack_object *map)
{
    for (uint32_t i = 0; i < map->via.map.size; i++) {
        const msgpack_object_kv *kv = &map->via.map.ptr[i];
        if (kv->key.type != MSGPACK_OBJECT_STR || kv->val.type != MSGPACK_OBJECT_POSITIVE_INTEGER)
            continue;
        for (size_t k = 0; k < sizeof places / sizeof places[0]; k++)
            if (strlen(places[k].name) == kv->key.via.str.size &&
                memcmp(places[k].name, kv->key.via.str.ptr, kv->key.via.str.size) == 0 &&
                places[k].at + sizeof(uint64_t) <= out->size)
                memcpy((char *)out + places[k].at, &kv->val.via.u64, sizeof(uint64_t));
    }
}

PUBLIC int arena_stats(arena_t *a, struct arena_stats *out)
{
    struct rows rows;
    if (!out || out->size < sizeof(size_t) + sizeof(uint64_t))
        return -EINVAL;
    if (forked(a)) {
        int rc = arena_reattach(a);
        if (rc < 0)
            return rc;
    }
    conn_lock(a);
    int rc = conn_call(a, MSG(info, .what = INFO_STATS));
    if (rc == 0) {
        rc = rows_open(&rows, &a->conn.in.rows);
        if (rc == 0 && rows.count == 1)
            take(out, &rows.row[0]);
        else
            rc = -EPROTO;
        rows_close(&rows);
    }
    conn_unlock(a);
    return rc;
}

PUBLIC int arena_version(void) { return ARENA_VERSION; }
