/* Figures: the daemon counts, this reads its rows. And the version. */
#include <string.h>

#include <msgpack.h>

#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
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
    msgpack_unpacked unpacked;
    if (!out || out->size < sizeof(size_t) + sizeof(uint64_t))
        return -EINVAL;
    if (forked(a)) {
        int rc = arena_reattach(a);
        if (rc < 0)
            return rc;
    }
    conn_lock(a);
    a->conn.out.what = INFO_STATS;
    a->conn.out.cursor = 0;
    int rc = conn_call(a, MSG_INFO, MSG_ROWS);
    msgpack_unpacked_init(&unpacked);
    if (rc == 0) {
        const char *body = (const char *)a->conn.in.body;
        uint32_t bytes = a->conn.in.body_bytes;
        if (msg_precheck((const uint8_t *)body, bytes, 3) < 0 ||
            msgpack_unpack_next(&unpacked, body, bytes, NULL) != MSGPACK_UNPACK_SUCCESS ||
            unpacked.data.type != MSGPACK_OBJECT_ARRAY || unpacked.data.via.array.size != 1 ||
            unpacked.data.via.array.ptr[0].type != MSGPACK_OBJECT_MAP)
            rc = -EPROTO;
        else
            take(out, &unpacked.data.via.array.ptr[0]);
    }
    msgpack_unpacked_destroy(&unpacked);
    conn_unlock(a);
    return rc;
}

PUBLIC int arena_version(void) { return ARENA_VERSION; }
