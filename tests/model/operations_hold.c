/* Own objects that lead to published ones: a vector of references, which grows, shrinks and moves, in transactions and out of
 * them, while collections run. What it holds is not pinned: only the vector keeps it. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

struct held {
    arena_ref_t ref;
    uint64_t marked_slot; /* with a bit that no reference has */
};

static struct slot *slot_of(struct ctx *c, const struct held *h)
{
    uint64_t slot = h->marked_slot & ~MARK;
    CHECK(slot < SLOTS && h->marked_slot & MARK, "what is held was overwritten: %llx", (unsigned long long)h->marked_slot);
    struct slot *s = &c->t->slots[slot];
    CHECK(slot_state(s) == SLOT_HELD && s->ref == h->ref, "what is held is another object: %llx", (unsigned long long)h->ref);
    return s;
}

static void hold(struct ctx *c)
{
    struct slot *s = random_slot(c);
    struct held h = {s->ref, (uint64_t)(s - c->t->slots) | MARK};
    if (slot_state(s) != SLOT_SHARED)
        return;
    if (!c->held.arena && arena_vec_init(&c->held, c->a, sizeof h, 0, 0) != 0)
        return;
    int rc = arena_vec_push(&c->held, &h);
    if (rc < 0) {
        may_fail(c, -rc, "a vector of references");
        return;
    }
    slot_set(s, SLOT_HELD);
    unpin(c, slot_object(c, s));
}

static void let_go(struct ctx *c)
{
    if (c->held.count == 0)
        return;
    struct slot *s = slot_of(c, arena_vec_at(&c->held, c->held.count - 1));
    if (!pin(c, slot_object(c, s)))
        return;
    slot_set(s, SLOT_SHARED);
    CHECK(arena_vec_pop(&c->held, NULL) == 0, "a vector that is not empty");
    slot_verify(c, s, "what was held");
}

static void held_verify(struct ctx *c)
{
    for (size_t i = 0; i < c->held.count; i++)
        slot_verify(c, slot_of(c, arena_vec_at(&c->held, i)), "what is held");
}

void held_free(struct ctx *c)
{
    for (size_t i = 0; i < c->held.count; i++) { /* while the vector still leads to it */
        struct slot *s = slot_of(c, arena_vec_at(&c->held, i));
        if (!pin(c, slot_object(c, s)) && strstr(R->set.debug, "pins"))
            c->expected = ENOLCK;
        slot_free(c, s);
        c->expected = 0;
    }
    if (c->held.arena)
        arena_vec_fini(&c->held);
    memset(&c->held, 0, sizeof c->held);
}

static void many(struct ctx *c)
{
    for (uint64_t i = below(c, 40); i > 0; i--)
        hold(c);
    held_verify(c);
    for (uint64_t i = below(c, 40); i > 0; i--)
        let_go(c);
}

void hold_some(struct ctx *c)
{
    if (below(c, 3) < 2)
        hold(c);
    else
        let_go(c);
}

const struct operation hold_operations[] = {
    {"hold_some", hold_some, 30, FOR_WORKERS},
    {"held_verify", held_verify, 6, FOR_WORKERS},
    {"many", many, 6, FOR_WORKERS},
    {NULL, NULL, 0, 0},
};
