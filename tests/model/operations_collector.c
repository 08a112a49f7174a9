/* The collector, safepoints and pins. In a round with a collector every process declares ARENA_PINS, and what it publishes
 * and keeps to itself is pinned (see slot_publish()); in others nobody declares anything, so nothing may be freed. */
#include <errno.h>
#include <pthread.h>
#include <string.h>

#include "tests/model/operations.h"
#include "tests/model/worker.h"

static void collect(struct ctx *c)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    unsigned flags = below(c, 4) == 0 ? ARENA_GC_DRY_RUN : 0;
    int rc = arena_gc(c->a, flags, &stats);
    if (rc == -EBUSY)
        CHECK(stats.blockers > 0, "a collection was refused, and nobody is in the way");
    CHECK(rc == 0 || rc == -EBUSY || rc == -EAGAIN || rc == -ENOTCONN || rc == -ENOMEM, "a collection: %s: %s", strerror(-rc), arena_reason());
    if (rc == 0 && !flags) {
        atomic_fetch_add(&R->count.collections, 1);
        atomic_fetch_add(&R->count.collected, stats.objects);
    }
}

static void collect_refused(struct ctx *c)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    int rc = arena_gc(c->a, 0, &stats);
    CHECK(rc != 0, "a collection ran, and this process has declared nothing");
    CHECK(rc == -EBUSY || rc == -EAGAIN || rc == -ENOTCONN || rc == -ENOMEM, "a collection: %s: %s", strerror(-rc), arena_reason());
    CHECK(arena_gc(c->a, 64, NULL) == -EINVAL, "a collection with unknown flags");
}

/* The whole process rests: its other threads are outside. It uses what it owns. */
static void safepoint(struct ctx *c)
{
    gate_alone();
    declare(c->a, ARENA_SAFEPOINT);
    if (below(c, 2))
        collect(c);
    for (int i = 0; i < SLOTS; i++)
        if (slot_state(&c->t->slots[i]) == SLOT_OWNED && below(c, 4) == 0)
            slot_verify(c, &c->t->slots[i], "at a safepoint");
    struct slot *s = empty_slot(c);
    if (s)
        object_new(c, s);
    declare(c->a, ARENA_PINS);
    gate_shared_again();
}

/* A pin goes with its object. */
static void pin_and_free(struct ctx *c)
{
    static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER; /* another thread of this process may get the place, and pin it */
    struct slot *s = random_slot(c);
    if (slot_state(s) != SLOT_OWNED && slot_state(s) != SLOT_SHARED)
        return;
    void *p = slot_object(c, s);
    pthread_mutex_lock(&alone);
    int rc = arena_pin(c->a, p);
    if (rc == 0)
        rc = arena_pin(c->a, (char *)p + s->size / 2);
    if (rc < 0)
        may_fail(c, -rc, "arena_pin");
    else if (below(c, 2)) {
        slot_free(c, s);
        for (int i = 0; i < 2; i++) /* who freed it may take his pins away after that as well as before */
            CHECK((rc = arena_unpin(c->a, p)) == 0 || rc == -EINVAL, "an unpin of what was freed: %s", strerror(-rc));
        rc = arena_unpin(c->a, p);
        CHECK(rc == -EINVAL, "the pin of a freed object is there still: %d", rc);
    } else {
        CHECK(arena_unpin(c->a, p) == 0 && arena_unpin(c->a, p) == 0, "an unpin as often as it was pinned");
        CHECK(arena_unpin(c->a, p) == -EINVAL, "an unpin more often than it was pinned");
    }
    pthread_mutex_unlock(&alone);
    CHECK(arena_pin(c->a, NULL) == -EINVAL && arena_safepoint(c->a, 77) == -EINVAL, "what cannot be pinned or declared");
}

/* A pin goes along with an object that moves: it is published without another. */
static void pin_and_move(struct ctx *c)
{
    struct slot *s = random_slot(c);
    if (slot_state(s) != SLOT_OWNED || !pin(c, slot_object(c, s)))
        return;
    object_resize(c, s);
    if (slot_state(s) != SLOT_OWNED)
        return;
    slot_set(s, SLOT_UNSURE);
    int rc = arena_publish(c->a, slot_object(c, s));
    CHECK(rc == 0, "publish of an own object: %s", strerror(-rc));
    slot_set(s, SLOT_SHARED);
}

const struct operation collector_operations[] = {
    {"collect", collect, 10, FOR_WORKERS | FOR_CHILDREN | WITH_COLLECTOR},
    {"pin_and_move", pin_and_move, 10, FOR_WORKERS | WITH_COLLECTOR},
    {"safepoint", safepoint, 2, FOR_WORKERS | WITH_COLLECTOR},
    {"collect_refused", collect_refused, 1, FOR_WORKERS | WITHOUT_COLLECTOR},
    {"pin_and_free", pin_and_free, 10, FOR_WORKERS | WITHOUT_COLLECTOR},
    {NULL, NULL, 0, 0},
};
