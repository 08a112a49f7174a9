/* What all operations share: which comes next, which errors are right, and how an object changes hands in the shadow. */
#include "tests/model/operations.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "tests/model/worker.h"

__thread struct ctx *self_ctx;

static const struct operation *const tables[] = {object_operations, share_operations, tx_operations,        graph_operations, grow_operations, hold_operations,
                                                 stack_operations,  collector_operations, process_operations, reader_operations};
enum { OPERATIONS_MAX = 128 };
static const struct operation *all[OPERATIONS_MAX];
static int all_count;

void operations_index(void)
{
    for (size_t i = 0; i < sizeof tables / sizeof tables[0]; i++)
        for (const struct operation *o = tables[i]; o->run && all_count < OPERATIONS_MAX; o++)
            all[all_count++] = o;
}

static unsigned weight_of(const struct operation *o, unsigned kind)
{
    if (!(o->flags & kind) || (o->flags & WITH_COLLECTOR && !R->set.collector) ||
        (o->flags & WITHOUT_COLLECTOR && R->set.collector))
        return 0;
    return o->weight;
}

void operation_run(struct ctx *c, unsigned kind)
{
    unsigned sum = 0;
    for (int i = 0; i < all_count; i++)
        sum += weight_of(all[i], kind);
    uint64_t at = below(c, sum);
    for (int i = 0; i < all_count; i++) {
        unsigned weight = weight_of(all[i], kind);
        if (at < weight) {
            c->t->operation = (uint32_t)i + 1;
            all[i]->run(c);
            c->t->operation = 0;
            break;
        }
        at -= weight;
    }
    atomic_store_explicit(&c->t->operations, atomic_load_explicit(&c->t->operations, memory_order_relaxed) + 1, memory_order_relaxed);
}

const char *operation_name(uint32_t operation)
{
    return operation == 0 || operation > (uint32_t)all_count ? "none" : all[operation - 1]->name;
}

const char *self_operation(void) { return self_ctx ? operation_name(self_ctx->t->operation) : "none"; }

int self_index(void) { return self_ctx ? (int)(self_ctx->p - R->process) : -1; }

/* ---- errors ------------------------------------------------------------------------------------------------------- */

void error_handler(void *context, int error, const void *p, const char *message)
{
    (void)context;
    if (self_ctx && self_ctx->expected && self_ctx->expected == error) {
        self_ctx->expected = 0;
        return;
    }
    if (error == EFAULT && strstr(R->set.debug, "escape"))
        return; /* what was in an object's memory before may look like a reference to a frame */
    static const char *const states[] = {"empty", "owned", "of a transaction", "unsure", "published", "held"};
    const struct slot *held = NULL;
    for (int i = 0; self_ctx && i < SLOTS; i++)
        if (slot_state(&self_ctx->t->slots[i]) != SLOT_EMPTY && slot_object(self_ctx, &self_ctx->t->slots[i]) == p)
            held = &self_ctx->t->slots[i];
    FAIL("the error handler was called: error %d, %p (%s, %llu bytes): %s", error, p, held ? states[slot_state(held)] : "in no slot",
         held ? (unsigned long long)held->size : 0, message);
}

bool not_answered(struct ctx *c, int error, const char *what)
{
    (void)c;
    if (error != ENOTCONN)
        return false;
    CHECK(R->set.stops, "%s: nobody answered, and nobody was stopped: %s", what, arena_reason());
    atomic_fetch_add(&R->count.unanswered, 1);
    return true;
}

void may_fail(struct ctx *c, int error, const char *what)
{
    if (not_answered(c, error, what))
        return;
    CHECK(error == ENOMEM || (error == EDQUOT && R->set.limits), "%s: error %d, %s: %s", what, error, strerror(error), arena_reason());
    atomic_fetch_add(&R->count.full, 1);
}

void settle_doubt(struct ctx *c)
{
    int rc;
    atomic_fetch_add(&R->count.in_doubt, 1);
    while ((rc = arena_safepoint(c->a, R->set.collector ? ARENA_PINS : ARENA_RUNS)) != 0)
        CHECK(rc == -ENOTCONN || rc == -EINPROGRESS, "a safepoint after a request in doubt: %s", strerror(-rc));
}

/* ---- slots -------------------------------------------------------------------------------------------------------- */

size_t random_size(struct ctx *c)
{
    static const uint16_t few[] = {0, 8, 12, 64, 200, 1000, 1000, 3000};
    if (is_small_heap()) /* not a page for each size class and process */
        return few[below(c, sizeof few / sizeof few[0])];
    unsigned k = (unsigned)below(c, 100);
    size_t max = R->set.size_max, size = k < 35   ? below(c, 128)
                                         : k < 65 ? below(c, 2048)
                                         : k < 85 ? below(c, 33000)
                                         : k < 97 ? below(c, 300000)
                                                  : below(c, 3000000);
    return size <= max ? size : below(c, max);
}

/* Now many, now few: the heap is full, and empties again. */
static bool is_shrinking(struct ctx *c) { return atomic_load(&c->t->operations) / 500 % 3 == 2; }

bool fills_up(struct ctx *c) { return !is_shrinking(c); }

static uint32_t slots_in_use(struct ctx *c) { return is_shrinking(c) ? R->set.slots / 8 + 1 : R->set.slots; }

/* What is in use is little, all are there to give back what they keep, and yet there is no memory. */
static void check_not_in_vain(size_t size)
{
    uint64_t live = size;
    if (R->set.kills || R->set.stops || R->set.heap_bytes < 32 << 20)
        return;
    for (int i = 0; i < PROCESSES; i++)
        live += atomic_load(&R->process[i].live_bytes);
    CHECK(live > R->set.heap_bytes / 8, "no memory for %zu bytes, and %llu of %llu are in use", size, (unsigned long long)live,
          (unsigned long long)R->set.heap_bytes);
}

void allocation_failed(struct ctx *c, int error, size_t size)
{
    may_fail(c, error, "an allocation");
    if (error == ENOMEM)
        check_not_in_vain(size);
}

struct slot *random_slot(struct ctx *c) { return &c->t->slots[below(c, below(c, 8) ? slots_in_use(c) : SLOTS)]; }

struct slot *empty_slot(struct ctx *c)
{
    for (int tries = 0; tries < 8; tries++) {
        struct slot *s = &c->t->slots[below(c, SLOTS)];
        if (slot_state(s) == SLOT_EMPTY)
            return s;
    }
    return NULL;
}

void slot_put(struct ctx *c, struct slot *s, void *p, size_t size, uint32_t state)
{
    size_t usable = arena_usable_size(c->a, p);
    CHECK(usable >= size, "an object of %zu bytes at %p has room for %zu", size, p, usable);
    s->id = id_new();
    s->size = size;
    s->ref = arena_ref(c->a, p);
    CHECK(s->ref && arena_ptr(c->a, s->ref) == p, "the reference of %p is %llx", p, (unsigned long long)s->ref);
    object_fill(p, size, s->id);
    slot_set(s, state);
    atomic_fetch_add_explicit(&c->p->live_bytes, size, memory_order_relaxed);
}

void slot_verify(struct ctx *c, const struct slot *s, const char *where)
{
    object_verify(slot_object(c, s), s->size, s->id, where);
}

void slot_forget(struct ctx *c, struct slot *s)
{
    atomic_fetch_sub_explicit(&c->p->live_bytes, s->size, memory_order_relaxed);
    slot_set(s, SLOT_EMPTY);
}

void slot_free(struct ctx *c, struct slot *s)
{
    void *p = slot_object(c, s);
    slot_verify(c, s, "free");
    if (slot_state(s) == SLOT_SHARED || slot_state(s) == SLOT_HELD)
        slot_set(s, SLOT_UNSURE);
    arena_free(c->a, p); /* its pin goes with it */
    slot_forget(c, s);
}

bool slot_publish(struct ctx *c, struct slot *s)
{
    void *p = slot_object(c, s);
    if (!pin(c, p))
        return false;
    slot_set(s, SLOT_UNSURE);
    int rc = arena_publish(c->a, p);
    CHECK(rc == 0, "publish of an own object: %s", strerror(-rc));
    slot_set(s, SLOT_SHARED);
    return true;
}

bool slot_claim(struct ctx *c, struct slot *s)
{
    void *p = slot_object(c, s);
    int rc = arena_claim(c->a, p);
    CHECK(rc == 0, "claim of an object that nobody else knows: %s", strerror(-rc));
    slot_set(s, SLOT_OWNED);
    unpin(c, p);
    return true;
}

void drop_tx_slots(struct ctx *c)
{
    for (int i = 0; i < SLOTS; i++)
        if (slot_state(&c->t->slots[i]) == SLOT_TX)
            slot_forget(c, &c->t->slots[i]);
}

/* ---- pins --------------------------------------------------------------------------------------------------------- */

bool pin(struct ctx *c, const void *p)
{
    if (!R->set.collector)
        return true;
    int rc = arena_pin(c->a, p);
    if (rc < 0)
        may_fail(c, -rc, "pin");
    return rc == 0;
}

void unpin(struct ctx *c, const void *p)
{
    if (!R->set.collector)
        return;
    int rc = arena_unpin(c->a, p);
    CHECK(rc == 0, "unpin of what was pinned, %p: %s", p, strerror(-rc));
}
