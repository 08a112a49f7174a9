/* Transactions: all of it or nothing, with everything inside. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

bool tx_begin(struct ctx *c)
{
    int rc = arena_tx_begin(c->a);
    if (rc < 0) {
        may_fail(c, -rc, "arena_tx_begin");
        return false;
    }
    CHECK(arena_tx_begin(c->a) == -EALREADY, "a second transaction of a thread");
    c->in_tx = true;
    return true;
}

/* Whatever a thread does meanwhile: what is allocated is the transaction's, what was there before stays as it was. */
void tx_meddle(struct ctx *c)
{
    for (uint64_t i = below(c, 12); i > 0; i--) {
        struct slot *s = random_slot(c), *empty = empty_slot(c);
        switch (below(c, 8)) {
        case 0: case 1:
            if (empty)
                object_new(c, empty);
            break;
        case 2: case 3:
            if (slot_is_free_to_use(s))
                slot_free(c, s);
            break;
        case 4: case 5:
            if (slot_is_free_to_use(s))
                object_resize(c, s);
            break;
        case 6:
            if (slot_state(s) == SLOT_TX) /* out of the transaction: it stays, also after an abort */
                slot_publish(c, s);
            break;
        default:
            grow_some(c);
            hold_some(c);
            frames_some(c);
            break;
        }
    }
}

/* False: no memory for the pins. */
static bool tx_slots_pin(struct ctx *c)
{
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &c->t->slots[i];
        if (slot_state(s) != SLOT_TX)
            continue;
        if (!pin(c, slot_object(c, s))) {
            while (i-- > 0)
                if (slot_state(&c->t->slots[i]) == SLOT_TX)
                    unpin(c, slot_object(c, &c->t->slots[i]));
            return false;
        }
    }
    return true;
}

static void tx_slots_turn(struct ctx *c, uint32_t from, uint32_t to)
{
    for (int i = 0; i < SLOTS; i++)
        if (slot_state(&c->t->slots[i]) == from)
            slot_set(&c->t->slots[i], to);
}

void tx_abort(struct ctx *c)
{
    int rc;
    while ((rc = arena_tx_abort(c->a)) == -ENOTCONN && R->set.stops)
        ;
    CHECK(rc == 0, "an abort: %s", strerror(-rc));
    c->in_tx = false;
    drop_tx_slots(c);
    CHECK(arena_tx_abort(c->a) == -EINVAL, "an abort without a transaction");
    atomic_fetch_add(&R->count.aborts, 1);
}

/* The commit was in doubt: was it done? */
static bool tx_settle(struct ctx *c)
{
    int rc;
    atomic_fetch_add(&R->count.in_doubt, 1);
    while ((rc = arena_tx_abort(c->a)) == -ENOTCONN || rc == -EINPROGRESS)
        ;
    CHECK(rc == 0 || rc == -EALREADY, "an abort after a commit in doubt: %s", strerror(-rc));
    return rc == -EALREADY;
}

/* True: it is committed. False: nothing of it is there. */
bool tx_commit(struct ctx *c, const char *root, arena_ref_t expected, arena_ref_t desired)
{
    if (!tx_slots_pin(c)) {
        tx_abort(c);
        return false;
    }
    tx_slots_turn(c, SLOT_TX, SLOT_UNSURE); /* no other slot is: each operation leaves none behind */
    PASS_ON();
    for (;;) {
        int rc = arena_tx_commit(c->a, root, expected, desired);
        bool done = rc == 0 || (rc == -EINPROGRESS && tx_settle(c));
        if (done || rc == -EINPROGRESS) {
            c->in_tx = false;
            tx_slots_turn(c, SLOT_UNSURE, done ? SLOT_SHARED : SLOT_TX);
            drop_tx_slots(c);
            return done;
        }
        if (!(root && rc == -EDQUOT && R->set.limits))
            CHECK(not_answered(c, -rc, "a commit"), "a commit: %s: %s", strerror(-rc), arena_reason());
        if (rc == -ENOTCONN && below(c, 2)) /* it was not done: once more */
            continue;
        tx_slots_turn(c, SLOT_UNSURE, SLOT_TX);
        tx_abort(c);
        return false;
    }
}

static void transaction(struct ctx *c)
{
    if (!tx_begin(c))
        return;
    tx_meddle(c);
    if (below(c, 4) == 0)
        CHECK(arena_tx_commit(c->a, "a\nb", 0, 0) == -EINVAL, "a commit with a root of a bad name");
    if (below(c, 3))
        tx_commit(c, NULL, 0, 0);
    else
        tx_abort(c);
}

/* Its thread ends, or its process: what the cleanup of a thread makes of it. */
/* Objects of one size come and go, and others of another size come in their place: spans are cut anew while the log names
 * what was there. */
static void churn(struct ctx *c)
{
    void *objects[300];
    for (int turn = 0; turn < 3; turn++) {
        size_t size = below(c, 3) ? 16 + below(c, 500) : below(c, R->set.size_max > 9000 ? 9000 : R->set.size_max);
        uint64_t id = id_new();
        size_t count = arena_alloc_batch(c->a, size, objects, size > 1000 || is_small_heap() ? 30 : 300);
        for (size_t i = 0; i < count; i++)
            object_fill(objects[i], size, id + i * 7919);
        for (size_t i = 0; i < count; i++)
            object_verify(objects[i], size, id + i * 7919, "in a transaction");
        arena_free_batch(c->a, objects, count);
        int rc = below(c, 2) ? arena_trim(c->a) : 0;
        if (rc < 0)
            may_fail(c, -rc, "arena_trim");
        struct slot *s = empty_slot(c);
        if (s)
            object_new(c, s);
    }
}

static void transaction_with_churn(struct ctx *c)
{
    if (!tx_begin(c))
        return;
    churn(c);
    if (below(c, 2))
        tx_meddle(c);
    if (below(c, 3))
        tx_abort(c);
    else
        tx_commit(c, NULL, 0, 0);
}

static void transaction_left_open(struct ctx *c)
{
    if (!tx_begin(c))
        return;
    tx_meddle(c);
    thread_may_end(c);
    tx_abort(c);
}

const struct operation tx_operations[] = {
    {"transaction", transaction, 50, FOR_WORKERS},
    {"transaction_with_churn", transaction_with_churn, 12, FOR_WORKERS},
    {"transaction_left_open", transaction_left_open, 6, FOR_WORKERS},
    {NULL, NULL, 0, 0},
};
