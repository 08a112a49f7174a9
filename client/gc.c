/* What a process tells the collector of itself: whether it is at a safepoint or pins what it holds, and its pins.
 *
 * Pins are references in tables that are OWNED scan objects: so the collector finds them as it finds everything, they
 * cost no round trip, and they are freed with their process. A slot whose pin is taken away while a collection runs
 * stays as it is until that collection has ended (3. in daemon/gc.c): what was pinned at any moment of it counts. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <msgpack.h>
#include <uthash.h>

#include "client/client.h"
#include "client/stack.h"
#include "proto/packet.h"

enum { TABLES_MAX = 65536 };

struct pin {
    uint64_t ref;    /* of the object's start */
    uint64_t *slot;  /* in a table */
    uint64_t count;  /* 0: only a collection that runs still needs it */
    UT_hash_handle hh;
    struct pin *later;
    bool is_later;   /* on the list of what waits for the end of a collection */
};

struct late_free {
    struct late_free *next;
    void *object;
};

/* sync: lock */
struct pins {
    pthread_mutex_t lock;
    struct pin *by_ref;          /* uthash */
    struct pin *later;           /* of count 0, or pinned again since */
    struct late_free *free_later; /* objects that may be freed then */
    uint32_t serial;             /* of the collection that all of these wait for */
    struct pin_table *first, *last;
    uint32_t tables, used;       /* slots used of the last one */
    uint64_t **free_slots;
    uint64_t free_count, free_capacity;
};

int pins_init(struct arena *a)
{
    if (!a->pins)
        a->pins = malloc(sizeof *a->pins);
    if (!a->pins)
        return -ENOMEM;
    memset(a->pins, 0, sizeof *a->pins); /* a forked child forgets its parent's: another thread may have been in the middle of
        them */
    pthread_mutex_init(&a->pins->lock, NULL);
    return 0;
}

static void drop(struct pins *s, struct pin *pin)
{
    HASH_DEL(s->by_ref, pin);
    free(pin);
}

void pins_fini(struct arena *a)
{
    struct pins *s = a->pins;
    struct pin *pin, *next;
    if (!s)
        return;
    HASH_ITER(hh, s->by_ref, pin, next)
        drop(s, pin);
    while (s->free_later) {
        struct late_free *f = s->free_later;
        s->free_later = f->next;
        free(f);
    }
    free(s->free_slots);
    free(s);
    a->pins = NULL;
}

static uint32_t collecting(const struct arena *a) { return load_acquire(&a->heap.header->collecting); } /* [GC1] */

/* ---- tables ------------------------------------------------------------------------------------------------------------------------- */

/* A new table, OWNED by the process also when this thread is in a transaction. */
static struct pin_table *table_new(struct arena *a)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    struct transaction *tx = tx_suspend(mc);
    unsigned span_class = SPAN_CLASS(size_class_of(PIN_TABLE_BYTES, 0), 0);
    struct pin_table *table = alloc_class(mc, span_class, ARENA_ZERO, PIN_TABLE_BYTES);
    tx_resume(mc, tx);
    return table;
}

/* die: a table that nobody knows of; it is freed with its process. */
static int table_add(struct arena *a, struct pins *s)
{
    if (s->tables == TABLES_MAX)
        return -ENOMEM;
    struct pin_table *table = table_new(a);
    if (!table)
        return -errno;
    if (s->last)
        store_release(&s->last->next, arena_ref(a, table)); /* [PN1] */
    else {
        conn_lock(a);
        a->conn.out.mode = CLIENT_MODE_PINS;
        a->conn.out.value = arena_ref(a, table);
        int rc = conn_call(a, MSG_MODE, MSG_OK);
        conn_unlock(a);
        if (rc < 0) {
            arena_free(a, table);
            return rc;
        }
        s->first = table;
    }
    s->last = table;
    s->tables++;
    s->used = 0;
    return 0;
}

static int slot_take(struct arena *a, struct pins *s, uint64_t **ret)
{
    if (s->free_count) {
        *ret = s->free_slots[--s->free_count];
        return 0;
    }
    if (!s->last || s->used == PIN_TABLE_SLOTS) {
        int rc = table_add(a, s);
        if (rc < 0)
            return rc;
    }
    *ret = &s->last->slots[s->used++];
    return 0;
}

static void slot_give_back(struct pins *s, uint64_t *slot)
{
    store_relaxed(slot, 0);
    if (s->free_count == s->free_capacity) {
        uint64_t capacity = s->free_capacity ? s->free_capacity * 2 : 64;
        uint64_t **grown = realloc(s->free_slots, capacity * sizeof *grown);
        if (!grown)
            return; /* this slot is not used again */
        s->free_slots = grown;
        s->free_capacity = capacity;
    }
    s->free_slots[s->free_count++] = slot;
}

/* ---- what waits for the end of a collection ---------------------------------------------------------------------------------------- */

/* Takes the lock, and puts away what no collection needs any more. */
static struct pins *pins_lock(struct arena *a)
{
    struct pins *s = a->pins;
    pthread_mutex_lock(&s->lock);
    if ((!s->later && !s->free_later) || collecting(a) == s->serial)
        return s;
    while (s->later) {
        struct pin *pin = s->later;
        s->later = pin->later;
        pin->later = NULL;
        pin->is_later = false;
        if (pin->count == 0) {
            slot_give_back(s, pin->slot);
            drop(s, pin);
        }
    }
    while (s->free_later) {
        struct late_free *f = s->free_later;
        s->free_later = f->next;
        arena_free(a, f->object);
        free(f);
    }
    return s;
}

static void pins_unlock(struct pins *s) { pthread_mutex_unlock(&s->lock); }

/* What waits for a collection that is over waits no longer, also if this process pins nothing any more. */
static void pins_settle(struct arena *a)
{
    if (a->pins && a->generation == fork_generation && !heap_is_stale(a))
        pins_unlock(pins_lock(a));
}

/* An object whose references were copied elsewhere: while a collection runs it stays as it is, to be read. False: it is
 * to be freed at once. */
bool gc_free_later(struct arena *a, void *object)
{
    if (likely(!collecting(a)))
        return false;
    struct late_free *f = malloc(sizeof *f);
    if (!f)
        return false;
    struct pins *s = pins_lock(a);
    uint32_t serial = collecting(a);
    if (serial) {
        *f = (struct late_free){s->free_later, object};
        s->free_later = f;
        s->serial = serial;
    }
    pins_unlock(s);
    if (!serial)
        free(f);
    return serial != 0;
}

/* ---- pin and unpin ------------------------------------------------------------------------------------------------------------------ */

static int pins_ready(struct arena *a)
{
    if (a->read_only)
        return -EACCES;
    return mcache_get(a) ? 0 : -errno;
}

/* The reference of the object that holds p, if it is one that is not free; else 0. */
static uint64_t ref_of(const struct arena *a, const void *p)
{
    struct object object;
    uint64_t offset = p ? (uint64_t)((const uint8_t *)p - a->base) : 0;
    if (!p || !object_find(&a->heap, offset, &object))
        return 0;
    uint16_t word = load_relaxed(object.word);
    return word == WORD_FREE || word_is_cached(word) ? 0 : object.offset;
}

static int pin_locked(struct arena *a, struct pins *s, uint64_t ref)
{
    struct pin *pin;
    HASH_FIND(hh, s->by_ref, &ref, sizeof ref, pin);
    if (pin) {
        pin->count++;
        return 0;
    }
    pin = calloc(1, sizeof *pin);
    if (!pin)
        return -ENOMEM;
    int rc = slot_take(a, s, &pin->slot);
    if (rc < 0) {
        free(pin);
        return rc;
    }
    pin->ref = ref;
    pin->count = 1;
    HASH_ADD(hh, s->by_ref, ref, sizeof pin->ref, pin);
    store_relaxed(pin->slot, ref);
    return 0;
}

PUBLIC int arena_pin(arena_t *a, const void *p)
{
    int rc = pins_ready(a);
    if (rc < 0)
        return rc;
    uint64_t ref = ref_of(a, p);
    if (!ref)
        return -EINVAL;
    struct pins *s = pins_lock(a);
    rc = pin_locked(a, s, ref);
    pins_unlock(s);
    fence_seq_cst(); /* [GC1] the pin is there before the caller looks again */
    return rc;
}

PUBLIC int arena_unpin(arena_t *a, const void *p)
{
    struct object object;
    struct pin *pin = NULL;
    int rc = pins_ready(a);
    if (rc < 0)
        return rc;
    if (!p || !object_find(&a->heap, (uint64_t)((const uint8_t *)p - a->base), &object))
        return -EINVAL;
    struct pins *s = pins_lock(a);
    HASH_FIND(hh, s->by_ref, &object.offset, sizeof object.offset, pin);
    if (!pin || pin->count == 0)
        rc = -EINVAL;
    else if (--pin->count == 0) {
        fence_seq_cst(); /* [GC1] what the caller stored, then the flag */
        uint32_t serial = collecting(a);
        if (serial) {
            if (!pin->is_later) {
                pin->later = s->later;
                s->later = pin;
            }
            pin->is_later = true;
            s->serial = serial;
        } else if (!pin->is_later) {
            slot_give_back(s, pin->slot);
            drop(s, pin);
        }
    }
    pins_unlock(s);
    return rc;
}

/* ---- safepoints ---------------------------------------------------------------------------------------------------------------------- */

PUBLIC int arena_safepoint(arena_t *a, int mode)
{
    if (mode < 0 || mode >= GC_MODE_COUNT)
        return -EINVAL;
    if (mode == GC_PINS && a->read_only)
        return -EACCES;
    if (a->generation != fork_generation) {
        int rc = arena_reattach(a);
        if (rc < 0)
            return rc;
    }
    if (mode == GC_SAFEPOINT && load_relaxed(&a->gc_mode) == GC_RUNS)
        stack_collect(a); /* while it may still allocate */
    pins_settle(a);
    conn_lock(a);
    a->conn.out.mode = CLIENT_MODE_SAFEPOINT;
    a->conn.out.value = (uint64_t)mode;
    int rc = conn_call(a, MSG_MODE, MSG_OK);
    conn_unlock(a);
    if (rc == 0)
        store_relaxed(&a->gc_mode, (uint8_t)mode);
    return rc;
}

/* ---- a collection ---------------------------------------------------------------------------------------------------------------------- */

struct place {
    const char *name;
    size_t at;
};
static const struct place places[] = {
#define PLACE(name) {#name, offsetof(struct arena_gc_stats, name)}
    PLACE(objects), PLACE(bytes), PLACE(objects_kept), PLACE(bytes_kept), PLACE(objects_scanned), PLACE(bytes_scanned),
    PLACE(mark_ns), PLACE(total_ns), PLACE(workers), PLACE(blockers),
#undef PLACE
};

static bool is_text(const msgpack_object *o, const char *text)
{
    return o->type == MSGPACK_OBJECT_STR && o->via.str.size == strlen(text) && memcmp(o->via.str.ptr, text, o->via.str.size) == 0;
}

static const msgpack_object *value_of(const msgpack_object *map, const char *name)
{
    for (uint32_t i = 0; map->type == MSGPACK_OBJECT_MAP && i < map->via.map.size; i++)
        if (is_text(&map->via.map.ptr[i].key, name))
            return &map->via.map.ptr[i].val;
    return NULL;
}

static uint64_t number_of(const msgpack_object *map, const char *name)
{
    const msgpack_object *v = value_of(map, name);
    return v && v->type == MSGPACK_OBJECT_POSITIVE_INTEGER ? v->via.u64 : 0;
}

/* The rows of the answer: the first says what came of it, and one of those in the way is named. */
static int read_rows(const msgpack_object *rows, struct arena_gc_stats *out)
{
    if (rows->type != MSGPACK_OBJECT_ARRAY || rows->via.array.size == 0)
        return -EPROTO;
    const msgpack_object *first = &rows->via.array.ptr[0], *result = value_of(first, "result");
    if (!result)
        return -EPROTO;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        uint64_t value = number_of(first, places[i].name);
        memcpy((char *)out + places[i].at, &value, sizeof value);
    }
    if (rows->via.array.size > 1 && is_text(result, "refused")) {
        const msgpack_object *row = &rows->via.array.ptr[1], *command = value_of(row, "command");
        out->blocker_pid = number_of(row, "pid");
        if (command && command->type == MSGPACK_OBJECT_STR)
            snprintf(out->blocker_command, sizeof out->blocker_command, "%.*s", (int)command->via.str.size,
                     command->via.str.ptr);
    }
    return is_text(result, "freed") || is_text(result, "dry run") ? 0 : is_text(result, "refused") ? -EBUSY : -EAGAIN;
}

struct asked {
    struct msg m;
    uint8_t packet[MSG_MAX];
};

static int exchange(int fd, struct asked *x, uint32_t type, uint32_t expect)
{
    char why[MSG_TEXT_MAX + 1];
    x->m.type = type;
    x->m.id++;
    int bytes = msg_encode(&x->m, x->packet, sizeof x->packet);
    int rc = bytes < 0 ? bytes : packet_send(fd, x->packet, (size_t)bytes, NULL, 0, 0);
    if (rc < 0)
        return -ENOTCONN;
    ssize_t got = packet_receive(fd, x->packet, sizeof x->packet, NULL, 0, NULL, 0);
    if (got <= 0)
        return -ENOTCONN;
    rc = msg_decode(&x->m, x->packet, (size_t)got, why);
    if (rc == 0 && x->m.type == MSG_ERROR)
        return -(int)x->m.error;
    return rc < 0 || x->m.type != expect ? -EPROTO : 0;
}

/* Asks as a monitor, by a connection of its own: this process's other threads go on meanwhile. */
static int ask(struct arena *a, struct asked *x, unsigned flags, struct arena_gc_stats *out)
{
    int fd = conn_connect(a->socket, false);
    if (fd < 0)
        return -ENOTCONN;
    x->m = (struct msg){.version_min = PROTO_VERSION, .version = PROTO_VERSION, .layout = LAYOUT_VERSION, .flags = HELLO_MONITOR};
    int rc = exchange(fd, x, MSG_HELLO, MSG_OK);
    x->m.flags = flags & ARENA_GC_DRY_RUN ? GC_DRY_RUN : 0;
    x->m.cursor = 0;
    if (rc == 0)
        rc = exchange(fd, x, MSG_GC, MSG_ROWS);
    close(fd);
    if (rc < 0)
        return rc;
    msgpack_unpacked unpacked;
    if (msg_precheck(x->m.body, x->m.body_bytes, 3) < 0)
        return -EPROTO;
    msgpack_unpacked_init(&unpacked);
    rc = msgpack_unpack_next(&unpacked, (const char *)x->m.body, x->m.body_bytes, NULL) == MSGPACK_UNPACK_SUCCESS
             ? read_rows(&unpacked.data, out)
             : -EPROTO;
    msgpack_unpacked_destroy(&unpacked);
    return rc;
}

PUBLIC int arena_gc(arena_t *a, unsigned flags, struct arena_gc_stats *stats)
{
    struct arena_gc_stats own = {.size = sizeof own};
    if (flags & ~(unsigned)(ARENA_GC_DRY_RUN | ARENA_GC_SAFEPOINT) || (stats && stats->size < sizeof(size_t)))
        return -EINVAL;
    if (a->read_only)
        return -EACCES;
    struct asked *x = malloc(sizeof *x);
    if (!x)
        return -ENOMEM;
    cancel_off();
    pins_settle(a);
    int before = load_relaxed(&a->gc_mode);
    bool enter = flags & ARENA_GC_SAFEPOINT && before == GC_RUNS;
    if (!(flags & ARENA_GC_DRY_RUN) && before != GC_SAFEPOINT)
        stack_collect(a);
    int rc = enter ? arena_safepoint(a, GC_SAFEPOINT) : 0;
    if (rc == 0)
        rc = ask(a, x, flags, &own);
    free(x);
    if (enter) {
        int left = arena_safepoint(a, GC_RUNS);
        rc = rc < 0 ? rc : left;
    }
    pins_settle(a);
    cancel_on();
    if (stats) {
        size_t size = stats->size;
        memcpy(stats, &own, size < sizeof own ? size : sizeof own);
        stats->size = size;
    }
    return rc;
}
