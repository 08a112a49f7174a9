/* Pins: what a process holds that the collector is to find.
 *
 * Pins are references in tables that are OWNED scan objects: so the collector finds them as it finds everything, they
 * cost no round trip, and they are freed with their process. A slot whose pin is taken away while a collection runs
 * stays as it is until that collection has ended (B in daemon/passes/gc.c): what was pinned at any moment of it counts.
 *
 * A pin is a note about an object, and goes with it. While this process has any, its frees take the slow path
 * (arena.fast_bytes), where the pins of what is freed are taken away before anybody can have its place. An object that
 * another process frees leaves its pins here: they keep whatever comes to that place, until arena_unpin finds them by the
 * address. The thread that has freed a pinned object may unpin it after that as well as before: ghosts.
 *
 * The limbo: objects that were copied while a collection may still have to read them. Their words are OWNED by a tag like a
 * transaction's that never commits. So a free of one by the program is known for a double free, no transaction acts on it,
 * and it is freed with the process, at whatever instruction that dies. The next slow path of any thread after the
 * collection empties it. */
#include <stdlib.h>
#include <string.h>

#include <uthash.h>

#include "client/alloc/alloc.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/extra/pins.h"
#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/reason.h"
#include "client/own/free.h"
#include "client/own/tx.h"

enum { TABLES_MAX = 65536 };

struct pin {
    uint64_t ref;    /* of the object's start */
    uint64_t size;   /* bytes */
    uint64_t *slot;  /* in a table */
    uint64_t count;  /* 0: only a collection that runs still needs it */
    UT_hash_handle hh;
    struct pin *later;
    bool is_later;   /* on the list of what waits for the end of a collection */
};

struct limbo_entry {
    struct limbo_entry *next;
    void *object;
};

/* sync: lock */
struct pins {
    pthread_mutex_t lock;
    uint32_t id;                 /* of these pins, of all that the process has ever had. constant */
    pthread_mutex_t growing;     /* before it: a table is added, one at a time */
    struct pin *by_ref;          /* uthash */
    struct pin *later;           /* of count 0, or pinned again since */
    struct limbo_entry *limbo;
    uint32_t serial;             /* of the collection that all of these wait for */
    uint64_t pinned;             /* pins of a count; 0: frees may be fast */
    struct pin_table *first, *last;
    struct pin_table *spare;     /* allocated, not in use. sync: growing */
    uint32_t tables, used;       /* slots used of the last one */
    uint64_t **free_slots;
    uint64_t free_count, free_capacity;
};

/* Pins that went with an object that this thread has freed: to unpin it after that is right too, and does nothing. Only the
 * last ones: who does so does it at once. */
static __thread struct ghost {
    uint64_t ref, size;
    uint32_t pins; /* whose: struct pins' id */
    uint32_t count;
} ghosts[4];
static __thread uint32_t ghost_next;
enum { GHOSTS = sizeof ghosts / sizeof *ghosts };

static struct ghost *ghost_find(const struct arena *a, uint64_t at)
{
    for (int i = 0; i < GHOSTS; i++)
        if (ghosts[i].count && ghosts[i].pins == a->pins->id && at - ghosts[i].ref < ghosts[i].size)
            return &ghosts[i];
    return NULL;
}

static void ghost_drop(const struct arena *a, uint64_t at)
{
    for (struct ghost *g; (g = ghost_find(a, at)) != NULL;)
        g->count = 0;
}

static bool in_debug(const struct arena *a) { return (a->debug & DEBUG_PINS) != 0; }

/* One store switches the fast path of all threads' frees. */
static void set_fast(struct arena *a, bool fast) { store_relaxed(&a->fast_bytes, fast && !in_debug(a) ? a->heap_bytes : 0); }

int pins_init(struct arena *a)
{
    static uint32_t last_id; /* sync: atomic */
    if (!a->pins)
        a->pins = malloc(sizeof *a->pins);
    if (!a->pins)
        return -ENOMEM;
    memset(a->pins, 0, sizeof *a->pins); /* a forked child forgets its parent's: another thread may have been in the middle of
        them */
    pthread_mutex_init(&a->pins->lock, NULL);
    pthread_mutex_init(&a->pins->growing, NULL);
    a->pins->id = fetch_add_relaxed(&last_id, 1) + 1;
    a->late = false;
    a->fast_flags = ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED;
    set_fast(a, true);
    tx_init(a);
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
    tx_fini(a);
    HASH_ITER(hh, s->by_ref, pin, next)
        drop(s, pin);
    while (s->limbo) {
        struct limbo_entry *e = s->limbo;
        s->limbo = e->next;
        free(e);
    }
    free(s->free_slots);
    free(s);
    a->pins = NULL;
}

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
    struct object o;
    if (table && object_find(&a->heap, (uint64_t)((uint8_t *)table - a->base), &o)) {
        uint16_t seen = load_relaxed(o.word);
        if (seen != WORD_OWNED(a->tag)) /* it is sampled; but the collector believes the client's own tag alone */
            word_adopt_swap(o.word, seen, WORD_OWNED(a->tag)); /* T19 */
    }
    return table;
}

/* Tells the daemon of the first table. */
static int table_declare(struct arena *a, const struct pin_table *table)
{
    conn_lock(a);
    int rc = conn_call(a, MSG(pins, .table = arena_ref(a, table)));
    conn_unlock(a);
    return rc;
}

static bool has_slot(const struct pins *s) { return s->free_count || (s->last && s->used < PIN_TABLE_SLOTS); }

/* One more table if there is no slot. Without the lock: who frees meanwhile does not wait for the daemon. growing is held.
 * die: a table that nobody knows of; it is freed with its process. */
static int table_add(struct arena *a, struct pins *s)
{
    pthread_mutex_lock(&s->lock);
    bool enough = has_slot(s), full = s->tables == TABLES_MAX;
    pthread_mutex_unlock(&s->lock);
    if (enough || full)
        return enough ? 0 : refused(-ENOMEM, "a process has at most %d pins", TABLES_MAX * (int)PIN_TABLE_SLOTS);
    struct pin_table *table = s->spare ? s->spare : table_new(a);
    if (!table)
        return -errno;
    s->spare = table; /* what was asked and not answered may have been done: it stays one */
    int rc = s->first ? 0 : table_declare(a, table);
    if (rc < 0)
        return rc;
    s->spare = NULL;
    pthread_mutex_lock(&s->lock);
    if (s->last)
        store_release(&s->last->next, arena_ref(a, table)); /* [PN1] */
    else
        s->first = table;
    s->last = table;
    s->tables++;
    s->used = 0;
    pthread_mutex_unlock(&s->lock);
    return 0;
}

static int tables_grow(struct arena *a)
{
    cancel_off();
    pthread_mutex_lock(&a->pins->growing);
    int rc = table_add(a, a->pins);
    pthread_mutex_unlock(&a->pins->growing);
    cancel_on();
    return rc;
}

static uint64_t *slot_take(struct pins *s) { return s->free_count ? s->free_slots[--s->free_count] : &s->last->slots[s->used++]; }

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

static void free_limbo(struct arena *a, struct limbo_entry *limbo)
{
    while (limbo) {
        struct limbo_entry *e = limbo;
        limbo = e->next;
        free_of_limbo(a, e->object);
        free(e);
    }
}

/* Takes the lock, and puts away the pins that no collection needs any more; *ret_limbo, if it is asked for: what the caller
 * frees without the lock. */
static struct pins *pins_lock(struct arena *a, struct limbo_entry **ret_limbo)
{
    struct pins *s = a->pins;
    cancel_off();
    pthread_mutex_lock(&s->lock);
    if ((!s->later && !s->limbo) || collecting(a) == s->serial)
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
    if (ret_limbo) {
        *ret_limbo = s->limbo;
        s->limbo = NULL;
    }
    return s;
}

static void pins_unlock(struct pins *s)
{
    pthread_mutex_unlock(&s->lock);
    cancel_on();
}

void late_settle(struct arena *a)
{
    struct limbo_entry *limbo = NULL;
    if (!a->pins || forked(a) || heap_is_stale(a))
        return;
    store_relaxed(&a->late, false); /* who adds something meanwhile sets it again */
    tx_turn_late(a);
    struct pins *s = pins_lock(a, &limbo);
    if (s->later || s->limbo)
        store_relaxed(&a->late, true);
    pins_unlock(s);
    free_limbo(a, limbo);
}

/* ---- the limbo ---------------------------------------------------------------------------------------------------------------------- */

/* Its tag, taken at the first need, or when the process declares itself. */
int limbo_tag(struct arena *a)
{
    uint16_t tag = 0;
    if (load_relaxed(&a->limbo))
        return 0;
    int rc = tx_take_tag(a, &tag);
    if (rc < 0)
        return rc;
    struct pins *s = pins_lock(a, NULL);
    if (!a->limbo)
        store_relaxed(&a->limbo, tag); /* before any word bears it */
    pins_unlock(s); /* one too many, of two threads at once, rests until the process ends */
    return 0;
}

int limbo_prepare(struct arena *a, struct limbo_entry **ret)
{
    if (likely(load_relaxed(&a->gc_mode) == GC_RUNS && !collecting(a)))
        return 0;
    int rc = limbo_tag(a);
    if (rc < 0)
        return rc;
    *ret = malloc(sizeof **ret);
    return *ret ? 0 : refused(-ENOMEM, "no private memory to note an object that is freed after a collection");
}

/* die: the object is its owner's, or in the limbo: freed by the pass; or SHARED as before. */
void limbo_or_free(struct arena *a, void *object, struct limbo_entry *entry, const char *call)
{
    fence_seq_cst(); /* [GC1] the copy is there, or the flag is seen */
    uint32_t serial = collecting(a);
    if (serial && !entry && limbo_prepare(a, &entry) < 0) /* another thread has declared itself meanwhile, and a collection runs */
        return; /* it stays until the process ends, or a collection finds it */
    if (!entry || !serial) {
        free(entry);
        free_as(a, object, call);
        return;
    }
    if (!free_to_limbo(a, object, load_relaxed(&a->limbo), call)) {
        free(entry);
        return;
    }
    entry->object = object;
    struct pins *s = pins_lock(a, NULL);
    entry->next = s->limbo;
    s->limbo = entry;
    uint32_t now = collecting(a);
    s->serial = now ? now : serial;
    pins_unlock(s);
    store_relaxed(&a->late, true);
}

/* ---- pin and unpin ------------------------------------------------------------------------------------------------------------------ */

static int pins_ready(struct arena *a, const char *call)
{
    if (a->read_only)
        return refused(-EACCES, "%s: this process is a reader", call);
    if (heap_is_stale(a))
        return -ESTALE;
    return mcache_get(a) ? 0 : -errno;
}

/* The object that holds p, if it is one that is not free. */
static bool object_of(const struct arena *a, const void *p, struct object *ret)
{
    uint64_t offset = p ? (uint64_t)((const uint8_t *)p - a->base) : 0;
    if (!p || !object_find(&a->heap, offset, ret))
        return false;
    uint16_t word = load_relaxed(ret->word);
    return word == WORD_SHARED || (word_is_owned(word) && word_tag(word) != load_relaxed(&a->limbo));
}

static struct pin *pin_find(const struct pins *s, uint64_t ref)
{
    struct pin *pin;
    HASH_FIND(hh, s->by_ref, &ref, sizeof ref, pin);
    return pin;
}

static void pin_count(struct arena *a, struct pins *s, struct pin *pin, uint64_t more)
{
    if (pin->count == 0 && more && s->pinned++ == 0)
        set_fast(a, false);
    pin->count += more;
}

/* -EAGAIN: there is no slot. */
static int pin_locked(struct arena *a, struct pins *s, uint64_t ref, uint64_t size, uint64_t count)
{
    struct pin *pin = pin_find(s, ref);
    if (pin) {
        pin->size = size;
        pin_count(a, s, pin, count);
        return 0;
    }
    if (!has_slot(s))
        return -EAGAIN;
    pin = calloc(1, sizeof *pin);
    if (!pin)
        return refused(-ENOMEM, "no private memory for a pin");
    pin->slot = slot_take(s);
    pin->ref = ref;
    pin->size = size;
    HASH_ADD(hh, s->by_ref, ref, sizeof pin->ref, pin);
    pin_count(a, s, pin, count);
    store_relaxed(pin->slot, ref);
    return 0;
}

/* `count` pins of an object; 0: as many as another has, but at least `least`. */
static int pin_times(struct arena *a, uint64_t ref, uint64_t size, uint64_t count, uint64_t as_of, uint64_t least)
{
    int rc;
    for (;;) {
        struct pins *s = pins_lock(a, NULL);
        const struct pin *other = count ? NULL : pin_find(s, as_of);
        uint64_t n = count ? count : other && other->count ? other->count : least;
        rc = n ? pin_locked(a, s, ref, size, n) : 0;
        pins_unlock(s);
        if (rc != -EAGAIN || (rc = tables_grow(a)) < 0)
            break;
    }
    fence_seq_cst(); /* [GC1] the pin is there before the caller looks again */
    return rc;
}

/* Its last count is taken away: it goes, now or after the collection that runs. */
static void pin_end(struct arena *a, struct pins *s, struct pin *pin)
{
    pin->count = 0;
    if (--s->pinned == 0)
        set_fast(a, true);
    fence_seq_cst(); /* [GC1] what the caller stored, then the flag */
    uint32_t serial = collecting(a);
    if (serial) {
        if (!pin->is_later) {
            pin->later = s->later;
            s->later = pin;
        }
        pin->is_later = true;
        s->serial = serial;
        store_relaxed(&a->late, true);
    } else if (!pin->is_later) {
        slot_give_back(s, pin->slot);
        drop(s, pin);
    }
}

PUBLIC int arena_pin(arena_t *a, const void *p)
{
    struct object object;
    int rc = pins_ready(a, "arena_pin");
    if (rc < 0)
        return rc;
    late_look(a);
    if (!object_of(a, p, &object))
        return refused(-EINVAL, "arena_pin(%p): not in an object, or it is free", p);
    ghost_drop(a, object.offset); /* it is another object by now */
    return pin_times(a, object.offset, object.size, 1, 0, 0);
}

/* The pin that was set by this address, or by another into the same object: also when another process has freed that, and its
 * span has gone or was cut anew. */
static struct pin *pin_by_address(const struct arena *a, const struct pins *s, const void *p)
{
    struct object object;
    uint64_t at = (uint64_t)((const uint8_t *)p - a->base);
    struct pin *pin = pin_find(s, at), *next;
    if (pin && pin->count)
        return pin;
    if (object_find(&a->heap, at, &object) && (pin = pin_find(s, object.offset)) != NULL && pin->count)
        return pin;
    HASH_ITER(hh, s->by_ref, pin, next)
        if (pin->count && at - pin->ref < pin->size)
            return pin;
    return NULL;
}

PUBLIC int arena_unpin(arena_t *a, const void *p)
{
    int rc = pins_ready(a, "arena_unpin");
    if (rc < 0)
        return rc;
    late_look(a);
    struct ghost *ghost = p ? ghost_find(a, (uint64_t)((const uint8_t *)p - a->base)) : NULL;
    if (ghost) {
        ghost->count--;
        return 0;
    }
    struct pins *s = pins_lock(a, NULL);
    struct pin *pin = p ? pin_by_address(a, s, p) : NULL;
    if (!pin)
        rc = -EINVAL;
    else if (pin->count > 1)
        pin->count--;
    else
        pin_end(a, s, pin);
    pins_unlock(s);
    return rc < 0 ? refused(rc, "arena_unpin(%p): not pinned by this process", p) : 0;
}

void pins_unpin(struct arena *a, uint64_t ref)
{
    struct pins *s = pins_lock(a, NULL);
    struct pin *pin = pin_find(s, ref);
    if (pin && pin->count) {
        ghost_drop(a, ref);
        ghosts[ghost_next++ % GHOSTS] = (struct ghost){ref, pin->size, s->id, (uint32_t)pin->count};
        pin_end(a, s, pin);
    }
    pins_unlock(s);
}

void pins_moved(const struct arena *a, uint64_t ref) { ghost_drop(a, ref); }

int pins_copy(struct arena *a, uint64_t from, uint64_t to, uint64_t size, bool born)
{
    return load_relaxed(&a->fast_bytes) && !born ? 0 : pin_times(a, to, size, 0, from, born);
}

void *pinned_alloc(struct arena *a, struct mcache *mc, size_t size, unsigned flags)
{
    struct transaction *tx = tx_suspend(mc);
    void *p = arena_alloc_flags(a, size, flags & ~(unsigned)ARENA_SHARED);
    tx_resume(mc, tx);
    if (!p)
        return NULL;
    int rc = arena_pin(a, p);
    if (rc == 0)
        rc = arena_publish(a, p);
    if (rc == 0)
        return p;
    free_slow(a, p, "arena_alloc_flags");
    errno = -rc;
    return NULL;
}

bool pins_is_pinned(struct arena *a, uint64_t ref)
{
    struct pins *s = pins_lock(a, NULL);
    const struct pin *pin = pin_find(s, ref);
    bool is = pin && pin->count;
    pins_unlock(s);
    return is;
}
