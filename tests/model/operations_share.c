/* Objects that change hands: published, claimed, passed by the board to other processes. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

static _Atomic arena_ref_t *cell_of(struct ctx *c)
{
    arena_ref_t *cells = arena_ptr(c->a, R->board);
    return (_Atomic arena_ref_t *)&cells[below(c, CELLS)];
}

static void publish_or_claim(struct ctx *c)
{
    struct slot *s = random_slot(c);
    if (slot_state(s) == SLOT_OWNED)
        slot_publish(c, s);
    else if (slot_state(s) == SLOT_SHARED)
        slot_claim(c, s);
}

static void twice(struct ctx *c)
{
    struct slot *s = random_slot(c);
    void *p = slot_object(c, s);
    if (slot_state(s) == SLOT_OWNED)
        CHECK(arena_claim(c->a, p) == -EBUSY, "what is owned was claimed");
    else if (slot_state(s) == SLOT_SHARED)
        CHECK(arena_publish(c->a, p) == 0, "what is published cannot be published again");
    if (slot_state(s) != SLOT_EMPTY)
        slot_verify(c, s, "twice");
}

/* In a round with a collector it is pinned, and stays so until the board leads to it. The lock of the board: who takes it
 * off and frees it takes all of its pins away, so this one is taken back before. */
static void send(struct ctx *c)
{
    struct slot *s = random_slot(c);
    _Atomic arena_ref_t *cell = cell_of(c);
    arena_ref_t empty = 0;
    if (!is_headed(s->size) || (slot_state(s) != SLOT_OWNED && slot_state(s) != SLOT_SHARED))
        return;
    if (slot_state(s) == SLOT_OWNED && !slot_publish(c, s))
        return;
    if (R->set.collector && root_trylock(&R->board_lock) != 0)
        return;
    slot_set(s, SLOT_UNSURE);
    PASS_ON();
    if (atomic_compare_exchange_strong(cell, &empty, s->ref)) {
        unpin(c, slot_object(c, s));
        slot_forget(c, s);
        atomic_fetch_add(&R->count.passed, 1);
    } else
        slot_set(s, SLOT_SHARED);
    if (R->set.collector)
        root_unlock(&R->board_lock);
}

/* What is found there is somebody's object, whole. */
static void take(struct ctx *c)
{
    struct slot *s = empty_slot(c);
    _Atomic arena_ref_t *cell = cell_of(c);
    if (!s || (R->set.collector && root_trylock(&R->board_lock) != 0))
        return;
    arena_ref_t ref = atomic_load(cell);
    const struct head *head = arena_ptr(c->a, ref);
    if (!ref || !pin(c, head)) {
        if (R->set.collector)
            root_unlock(&R->board_lock);
        return;
    }
    s->ref = ref;
    s->id = 0; /* whatever is found there */
    s->size = 0;
    slot_set(s, SLOT_UNSURE);
    bool mine = atomic_compare_exchange_strong(cell, &ref, 0);
    if (R->set.collector)
        root_unlock(&R->board_lock);
    if (!mine) {
        slot_set(s, SLOT_EMPTY);
        return;
    }
    RECEIVE();
    s->size = head_size(head); /* first: with an id it is that object */
    s->id = head->id;
    CHECK(is_headed(s->size) && s->size <= R->set.heap_bytes && head->graph == s->id, "what was on the board has no head: %llu of %llu bytes",
          (unsigned long long)s->id, (unsigned long long)s->size);
    atomic_fetch_add_explicit(&c->p->live_bytes, s->size, memory_order_relaxed);
    slot_set(s, SLOT_SHARED);
    slot_verify(c, s, "taken off the board");
    if (below(c, 3) == 0)
        slot_free(c, s);
    else if (below(c, 2))
        slot_claim(c, s);
}

const struct operation share_operations[] = {
    {"publish_or_claim", publish_or_claim, 60, FOR_WORKERS},
    {"twice", twice, 10, FOR_WORKERS},
    {"send", send, 90, FOR_WORKERS | FOR_CHILDREN},
    {"take", take, 90, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
