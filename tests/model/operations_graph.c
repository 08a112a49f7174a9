/* Graphs behind roots: made whole in a transaction, moved with their root, verified by everybody, taken away and freed. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "tests/model/operations.h"

enum { NODES = 40 };

void root_name(char name[32], int root) { snprintf(name, 32, "graph-%d", root); }

/* In the open transaction. False: there is no memory. */
static bool graph_build(struct ctx *c, struct graph *g)
{
    arena_ref_t refs[NODES];
    *g = (struct graph){0, id_new(), 1 + below(c, is_small_heap() ? 5 : NODES), 0};
    for (uint64_t i = 0; i < g->count; i++) {
        size_t size = sizeof(struct head) + (below(c, 30) && !is_small_heap() ? below(c, 1500) : random_size(c));
        struct head *head = arena_alloc(c->a, size);
        if (!head) {
            may_fail(c, errno, "a node");
            return false;
        }
        object_fill(head, size, id_new());
        head->next = g->ref;
        head->other = i && below(c, 4) == 0 ? refs[below(c, i)] : 0;
        head->graph = g->graph;
        head->number = i;
        head->count = g->count;
        g->ref = refs[i] = arena_ref(c->a, head);
        g->sum += id_mixed(head->id);
    }
    return true;
}

void graph_verify(struct ctx *c, const struct graph *g, const char *where)
{
    uint64_t seen = 0, sum = 0;
    for (arena_ref_t ref = g->ref; ref; seen++) {
        const struct head *head = node_verify(arena_ptr(c->a, ref), g->graph, where);
        CHECK(seen < g->count && head->count == g->count && head->number == g->count - 1 - seen, "%s: node %llu of graph %llu comes as number %llu",
              where, (unsigned long long)head->number, (unsigned long long)g->graph, (unsigned long long)seen);
        if (head->other)
            CHECK(node_verify(arena_ptr(c->a, head->other), g->graph, where)->number < head->number, "%s: a link back", where);
        sum += id_mixed(head->id);
        ref = head->next;
    }
    CHECK(seen == g->count && sum == g->sum, "%s: graph %llu has %llu nodes in place of %llu, or others", where,
          (unsigned long long)g->graph, (unsigned long long)seen, (unsigned long long)g->count);
}

void graph_free(struct ctx *c, const struct graph *g)
{
    struct taking *taking = &c->t->taking;
    bool claims = below(c, 4) == 0;
    uint64_t freed = 0;
    for (arena_ref_t at = g->ref; at; freed++) {
        struct head *head = arena_ptr(c->a, at);
        arena_ref_t next = node_verify(head, g->graph, "a graph that was taken away")->next;
        struct head *behind = arena_ptr(c->a, next);
        if (next && !pin(c, behind)) /* owned it stays too */
            CHECK(arena_claim(c->a, behind) == 0, "a node of one's own cannot be claimed");
        atomic_store(&taking->intact, next);
        if (claims && R->set.collector == false)
            CHECK(arena_claim(c->a, head) == 0, "a node of one's own cannot be claimed");
        arena_free(c->a, head);
        atomic_store(&taking->at, next);
        at = next;
    }
    CHECK(freed == g->count, "a graph of %llu nodes had %llu", (unsigned long long)g->count, (unsigned long long)freed);
    atomic_fetch_add(&R->count.taken, 1);
}

/* The root leads to `next` now, and what it led to is this thread's. Holds the lock before, not after. */
static void root_moved(struct ctx *c, struct root_shadow *root)
{
    struct graph old = root->now;
    c->t->taking.graph = old.graph;
    atomic_store(&c->t->taking.intact, old.ref);
    atomic_store(&c->t->taking.at, old.ref);
    root->now = root->next;
    atomic_store(&root->moving, 0);
    root_unlock(root);
    if (old.ref)
        graph_free(c, &old);
}

/* A move that is not a commit: what became of it? 1 done, 0 not. */
static int move_answered(struct ctx *c, struct root_shadow *root, const char *name, int rc)
{
    arena_ref_t ref = 0;
    if (rc == 0)
        return 1;
    if (rc == -EINPROGRESS)
        settle_doubt(c);
    else if (!(rc == -EDQUOT && R->set.limits))
        CHECK(not_answered(c, -rc, "the move of a root"), "the move of a root: %s: %s", strerror(-rc), arena_reason());
    int got = arena_root_get(c->a, name, &ref);
    CHECK(got == 0 || got == -ENOENT, "a look at a root: %s", strerror(-got));
    if (rc == -EINPROGRESS && ref == root->next.ref)
        return 1;
    CHECK(ref == root->now.ref, "%s leads to %llx, not to %llx, after %s", name, (unsigned long long)ref, (unsigned long long)root->now.ref,
          strerror(-rc));
    return 0;
}

/* A root that nobody moves, held: NULL. What it leads to is pinned, where that is needed: it will be freed. */
static struct root_shadow *root_hold(struct ctx *c, char name[32], bool to_be_moved)
{
    int i = (int)below(c, ROOTS);
    struct root_shadow *root = &R->root[i];
    arena_ref_t ref = 0;
    if (root_trylock(root) != 0)
        return NULL;
    if (atomic_load(&root->moving)) { /* by a dead process: the one that tests will find out */
        root_unlock(root);
        return NULL;
    }
    root_name(name, i);
    int rc = arena_root_get(c->a, name, &ref);
    CHECK(rc == (root->now.ref ? 0 : -ENOENT) && ref == root->now.ref, "%s leads to %llx, should to %llx: %d", name,
          (unsigned long long)ref, (unsigned long long)root->now.ref, rc);
    if (to_be_moved && ref && !pin(c, arena_ptr(c->a, ref))) {
        root_unlock(root);
        return NULL;
    }
    return root;
}

static void root_let_go(struct ctx *c, struct root_shadow *root)
{
    if (root->now.ref)
        unpin(c, arena_ptr(c->a, root->now.ref));
    root_unlock(root);
}

static void graph_commit(struct ctx *c)
{
    char name[32];
    struct graph g;
    struct root_shadow *root = root_hold(c, name, true);
    if (!root)
        return;
    if (!tx_begin(c)) {
        root_let_go(c, root);
        return;
    }
    tx_meddle(c);
    if (!graph_build(c, &g)) {
        tx_abort(c);
        root_let_go(c, root);
        return;
    }
    tx_meddle(c);
    if (below(c, 8) == 0) {
        int rc = arena_tx_commit(c->a, name, g.ref, g.ref);
        CHECK(rc == -EAGAIN || not_answered(c, -rc, "a commit that expects another"), "a commit that expects another: %s", strerror(-rc));
    }
    root->next = g;
    atomic_store(&root->moving, 1);
    if (tx_commit(c, name, root->now.ref, g.ref)) {
        atomic_fetch_add(&R->count.graphs, 1);
        root_moved(c, root);
        return;
    }
    atomic_store(&root->moving, 0);
    root_let_go(c, root);
}

static void graph_take(struct ctx *c)
{
    char name[32];
    struct root_shadow *root = root_hold(c, name, true);
    if (!root)
        return;
    if (root->now.ref) {
        root->next = (struct graph){0};
        atomic_store(&root->moving, 1);
        int rc = below(c, 2) ? arena_root_set(c->a, name, 0) : arena_root_cas(c->a, name, root->now.ref, 0);
        if (move_answered(c, root, name, rc)) {
            root_moved(c, root);
            return;
        }
        atomic_store(&root->moving, 0);
    } else
        CHECK(arena_root_cas(c->a, name, 8, 0) < 0, "a root that is not there was taken away");
    root_let_go(c, root);
}

/* One object in place of a graph. */
static void root_to_object(struct ctx *c)
{
    char name[32];
    struct slot *s = random_slot(c);
    if (!is_headed(s->size) || (slot_state(s) != SLOT_OWNED && slot_state(s) != SLOT_SHARED))
        return;
    struct root_shadow *root = root_hold(c, name, true);
    if (!root)
        return;
    if (slot_state(s) == SLOT_OWNED) {
        if (below(c, 4) == 0)
            CHECK(arena_root_set(c->a, name, s->ref) < 0, "a root leads to what is not published");
        if (!slot_publish(c, s)) {
            root_let_go(c, root);
            return;
        }
    }
    root->next = (struct graph){s->ref, s->id, 1, id_mixed(s->id)};
    slot_set(s, SLOT_UNSURE);
    atomic_store(&root->moving, 1);
    int rc = below(c, 2) ? arena_root_set(c->a, name, s->ref) : arena_root_cas(c->a, name, root->now.ref, s->ref);
    if (move_answered(c, root, name, rc)) {
        unpin(c, slot_object(c, s));
        slot_forget(c, s);
        root_moved(c, root);
        return;
    }
    slot_set(s, SLOT_SHARED);
    atomic_store(&root->moving, 0);
    root_let_go(c, root);
}

static void graph_look(struct ctx *c)
{
    char name[32];
    struct root_shadow *root = root_hold(c, name, false);
    if (!root)
        return;
    if (root->now.ref)
        graph_verify(c, &root->now, "a look at a root's graph");
    root_unlock(root);
}

/* ---- a root without a lock: from pillar to pillar ------------------------------------------------------------------ */

static int pillar_of(arena_ref_t ref)
{
    for (int i = 0; i < PILLARS; i++)
        if (R->pillar[i] == ref)
            return i;
    FAIL("the root turn leads to %llx, which is no pillar", (unsigned long long)ref);
}

static void turn(struct ctx *c)
{
    arena_ref_t ref = 0;
    CHECK(arena_root_get(c->a, "turn", &ref) == 0, "the root turn is not there");
    int i = pillar_of(ref);
    atomic_store(&c->t->turning, 1);
    int rc = arena_root_cas(c->a, "turn", ref, R->pillar[(i + 1) % PILLARS]);
    if (rc == 0)
        atomic_fetch_add(&R->turns, 1);
    else if (rc == -EINPROGRESS) {
        settle_doubt(c);
        atomic_fetch_add(&R->turns_unsure, 1);
    } else
        CHECK(rc == -EAGAIN || not_answered(c, -rc, "a turn"), "a turn: %s: %s", strerror(-rc), arena_reason());
    atomic_store(&c->t->turning, 0);
}

static void wait_for_turn(struct ctx *c)
{
    arena_ref_t old = 0, now = 0;
    CHECK(arena_root_get(c->a, "turn", &old) == 0, "the root turn is not there");
    int rc = arena_root_wait(c->a, "turn", old, (int)below(c, 4), &now);
    CHECK(rc == -ETIMEDOUT || not_answered(c, -rc, "a wait") || (rc == 0 && now != old && pillar_of(now) >= 0), "a wait for a root: %d", rc);
    CHECK(arena_root_wait(c->a, "turn", 0, 1000, &now) == 0 && now, "a wait for a root that is there");
    CHECK(arena_root_wait(c->a, "never", 0, 0, &now) == -ETIMEDOUT, "a wait for a root that is not there");
    CHECK(arena_root_get(c->a, "never", &now) == -ENOENT && arena_root_get(c->a, "", &now) == -EINVAL, "a look at a root that is not there");
}

const struct operation graph_operations[] = {
    {"graph_commit", graph_commit, 30, FOR_WORKERS},
    {"graph_take", graph_take, 20, FOR_WORKERS},
    {"root_to_object", root_to_object, 15, FOR_WORKERS},
    {"graph_look", graph_look, 30, FOR_WORKERS | FOR_CHILDREN},
    {"turn", turn, 10, FOR_WORKERS | FOR_CHILDREN},
    {"wait_for_turn", wait_for_turn, 3, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
const struct operation reader_operations[] = {
    {"graph_look_reader", graph_look, 60, FOR_READERS},
    {"wait_for_turn_reader", wait_for_turn, 3, FOR_READERS},
    {NULL, NULL, 0, 0},
};
