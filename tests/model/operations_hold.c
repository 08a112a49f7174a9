/* An own object that leads to published ones: an array of references, which grows, shrinks and moves, in transactions and out
 * of them, while collections run. What it holds is not pinned: only the array keeps it. */
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

/* To another place, with as much room as is needed and some: while a collection may be just reading it. */
static bool held_move(struct ctx *c)
{
    size_t room = c->held_count + 1 + below(c, 64);
    struct held *moved = arena_realloc(c->a, c->held, room * sizeof *moved);
    if (!moved) {
        allocation_failed(c, errno, room * sizeof *moved);
        return false;
    }
    size_t before = c->held_room * sizeof *moved;
    void *again = moved != c->held && before ? arena_alloc(c->a, before) : NULL; /* its old place, if that is free too early */
    c->held = moved;
    c->held_room = room;
    if (again) {
        object_fill(again, before, id_new());
        arena_free(c->a, again);
    }
    return true;
}

static void hold(struct ctx *c)
{
    struct slot *s = random_slot(c);
    if (slot_state(s) != SLOT_SHARED || c->in_tx)
        return;
    if (c->held_count == c->held_room && !held_move(c))
        return;
    c->held[c->held_count++] = (struct held){s->ref, (uint64_t)(s - c->t->slots) | MARK};
    slot_set(s, SLOT_HELD);
    unpin(c, slot_object(c, s)); /* the object that holds it was stored to before */
}

static void let_go(struct ctx *c)
{
    if (c->held_count == 0)
        return;
    struct slot *s = slot_of(c, &c->held[c->held_count - 1]);
    if (!pin(c, slot_object(c, s)))
        return;
    slot_set(s, SLOT_SHARED);
    c->held[--c->held_count] = (struct held){0, 0};
    slot_verify(c, s, "what was held");
}

static void held_verify(struct ctx *c)
{
    for (size_t i = 0; i < c->held_count; i++)
        slot_verify(c, slot_of(c, &c->held[i]), "what is held");
}

void held_free(struct ctx *c)
{
    for (size_t i = 0; i < c->held_count; i++) { /* while it still leads to it */
        struct slot *s = slot_of(c, &c->held[i]);
        if (!pin(c, slot_object(c, s)) && strstr(R->set.debug, "pins"))
            c->expected = ENOLCK;
        slot_free(c, s);
        c->expected = 0;
    }
    arena_free(c->a, c->held);
    c->held = NULL;
    c->held_count = c->held_room = 0;
}

static void many(struct ctx *c)
{
    for (uint64_t i = below(c, 40); i > 0; i--)
        hold(c);
    held_verify(c);
    if (c->held)
        held_move(c);
    for (uint64_t i = below(c, 40); i > 0; i--)
        let_go(c);
    held_verify(c);
}

void hold_some(struct ctx *c)
{
    if (below(c, 3) < 2)
        hold(c);
    else if (c->held && below(c, 2))
        held_move(c);
    else
        let_go(c);
}

const struct operation hold_operations[] = {
    {"hold_some", hold_some, 30, FOR_WORKERS},
    {"held_verify", held_verify, 6, FOR_WORKERS},
    {"many", many, 6, FOR_WORKERS},
    {NULL, NULL, 0, 0},
};
