#include "tests/model/verify.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "tests/model/operations.h"

struct verify_counts verified;

/* ---- a set of references --------------------------------------------------------------------------------------------- */

enum { SET_SIZE = 1 << 17 };
struct set {
    arena_ref_t refs[SET_SIZE];
    uint64_t count;
};
static struct set live, freed;

static bool set_has(const struct set *set, arena_ref_t ref)
{
    for (uint64_t i = id_mixed(ref) % SET_SIZE; set->refs[i]; i = (i + 1) % SET_SIZE)
        if (set->refs[i] == ref)
            return true;
    return false;
}

static bool set_add(struct set *set, arena_ref_t ref)
{
    uint64_t i = id_mixed(ref) % SET_SIZE;
    for (; set->refs[i]; i = (i + 1) % SET_SIZE)
        if (set->refs[i] == ref)
            return false;
    assert_true(++set->count < SET_SIZE / 2);
    set->refs[i] = ref;
    return true;
}

static void set_clear(struct set *set) { memset(set, 0, sizeof *set); }

static void alive(arena_ref_t ref, const char *where)
{
    if (!set_add(&live, ref))
        fail_msg("%s: the object at %llx was handed out twice", where, (unsigned long long)ref);
}

/* ---- preparing --------------------------------------------------------------------------------------------------------- */

static arena_ref_t permanent(arena_t *a, size_t size)
{
    void *p = arena_calloc(a, 1, size);
    assert_non_null(p);
    assert_int_equal(arena_publish(a, p), 0);
    return arena_ref(a, p);
}

void heap_prepare(struct daemon *d)
{
    char name[32];
    arena_t *a = open_heap(d);
    R->board = permanent(a, CELLS * sizeof(arena_ref_t));
    assert_int_equal(arena_root_set(a, "board", R->board), 0);
    for (int i = 0; i < PILLARS; i++) {
        R->pillar[i] = permanent(a, 64);
        snprintf(name, sizeof name, "pillar-%d", i);
        assert_int_equal(arena_root_set(a, name, R->pillar[i]), 0);
    }
    assert_int_equal(arena_root_set(a, "turn", R->pillar[0]), 0);
    assert_int_equal(arena_close(a), 0);
}

/* ---- figures ----------------------------------------------------------------------------------------------------------- */

static struct arena_stats figures(arena_t *a)
{
    struct arena_stats stats = {.size = sizeof stats};
    int rc = arena_stats(a, &stats);
    if (rc < 0)
        fail_msg("arena_stats: %s", strerror(-rc));
    return stats;
}

/* The dead are gone when only the others are counted: until then the words of some may still be theirs. */
static void await_clients(arena_t *a, uint64_t clients)
{
    uint64_t now;
    for (unsigned tries = 0; (now = figures(a).clients) != clients; tries++) {
        if (tries > 20000)
            fail_msg("%llu clients, should become %llu", (unsigned long long)now, (unsigned long long)clients);
        pause_us(tries < 100 ? 500 : 5000);
    }
}

static void check_whole(struct daemon *d)
{
    if (check_of(d) != 0)
        fail_msg("the check found a fault");
    verified.checks++;
}

/* ---- roots ------------------------------------------------------------------------------------------------------------- */

/* Its mover died: the root is where it was, or where it was to go. */
static void settle_root(arena_t *a, int i)
{
    struct root_shadow *root = &R->root[i];
    char name[32];
    arena_ref_t ref = 0;
    if (!atomic_load(&root->moving))
        return;
    root_name(name, i);
    int rc = arena_root_get(a, name, &ref);
    if (rc != 0 && rc != -ENOENT)
        fail_msg("%s: %s", name, strerror(-rc));
    if (ref != root->now.ref && ref != root->next.ref)
        fail_msg("%s leads to %llx, neither to %llx nor to %llx", name, (unsigned long long)ref, (unsigned long long)root->now.ref,
                 (unsigned long long)root->next.ref);
    if (ref == root->next.ref) {
        if (root->now.ref)
            orphan_add((struct orphan){ORPHAN_GRAPH, root->now.ref, 0, 0, root->now.graph});
        root->now = root->next;
    }
    atomic_store(&root->moving, 0);
}

static void count_graph(struct ctx *c, int i)
{
    const struct graph *g = &R->root[i].now;
    char name[32];
    arena_ref_t ref = 0;
    root_name(name, i);
    arena_root_get(c->a, name, &ref);
    if (ref != g->ref)
        fail_msg("%s leads to %llx, should to %llx", name, (unsigned long long)ref, (unsigned long long)g->ref);
    if (!g->ref)
        return;
    graph_verify(c, g, name);
    for (; ref; ref = ((struct head *)arena_ptr(c->a, ref))->next)
        alive(ref, name);
}

/* ---- orphans ------------------------------------------------------------------------------------------------------------ */

/* It was published, and nobody knows it. */
static bool orphan_claim(struct ctx *c, arena_ref_t ref)
{
    if (set_has(&live, ref) || set_has(&freed, ref))
        return false;
    int rc = arena_claim(c->a, arena_ptr(c->a, ref));
    if (rc != 0 && rc != -EBUSY && rc != -EINVAL)
        fail_msg("a claim of an orphan: %s", strerror(-rc));
    return rc == 0;
}

static void orphan_free(struct ctx *c, arena_ref_t ref)
{
    arena_free(c->a, arena_ptr(c->a, ref));
    set_add(&freed, ref);
    verified.orphans++;
}

static void free_orphan_graph(struct ctx *c, const struct orphan *o)
{
    for (arena_ref_t ref = o->ref, next; ref; ref = next) {
        if (set_has(&freed, ref))
            return;
        const struct head *head = node_verify(arena_ptr(c->a, ref), o->graph, "a graph that was left behind");
        next = head->next;
        if (!orphan_claim(c, ref))
            fail_msg("node %llu of a graph that was left behind, at %llx, is not published", (unsigned long long)head->number,
                     (unsigned long long)ref);
        orphan_free(c, ref);
    }
}

/* Another killed process may have had the same place, and its object be another. */
static bool some_orphan_is(arena_ref_t ref, uint64_t id, uint64_t size)
{
    for (uint32_t i = 0; i < atomic_load(&R->orphan_count); i++) {
        const struct orphan *o = &R->orphan[i];
        if (o->kind == ORPHAN_OBJECT && o->ref == ref && (o->id == id || o->id == 0) && (o->size == size || o->id == 0))
            return true;
    }
    return false;
}

static bool headless_orphan_is(struct ctx *c, arena_ref_t ref)
{
    size_t at;
    for (uint32_t i = 0; i < atomic_load(&R->orphan_count); i++) {
        const struct orphan *o = &R->orphan[i];
        if (o->kind == ORPHAN_OBJECT && o->ref == ref && o->id && !is_headed(o->size) &&
            pattern_holds(arena_ptr(c->a, ref), 0, o->size, o->id, &at))
            return true;
    }
    return false;
}

static void free_orphan_object(struct ctx *c, const struct orphan *o)
{
    const struct head *head = arena_ptr(c->a, o->ref);
    if (!orphan_claim(c, o->ref))
        return;
    size_t usable = arena_usable_size(c->a, head);
    if (usable >= sizeof *head && some_orphan_is(o->ref, head->id, head_size(head)) && head_size(head) <= usable && is_headed(head_size(head)))
        object_verify(head, head_size(head), head->id, "what was left behind");
    else if (!headless_orphan_is(c, o->ref)) {
        if (atomic_load(&R->unknown) == 0) /* else it may be one of those whose place only the call knew */
            fail_msg("what was left behind at %llx is none of the objects that it may be", (unsigned long long)o->ref);
        atomic_fetch_sub(&R->unknown, 1);
    }
    orphan_free(c, o->ref);
}

static void free_orphans(struct ctx *c)
{
    set_clear(&freed);
    for (uint32_t i = 0; i < atomic_load(&R->orphan_count); i++)
        if (R->orphan[i].kind == ORPHAN_GRAPH)
            free_orphan_graph(c, &R->orphan[i]);
    for (uint32_t i = 0; i < atomic_load(&R->orphan_count); i++) {
        const struct orphan *o = &R->orphan[i];
        if (o->kind == ORPHAN_OBJECT)
            free_orphan_object(c, o);
        else if (o->kind == ORPHAN_NODE && orphan_claim(c, o->ref)) {
            node_verify(arena_ptr(c->a, o->ref), o->graph, "a node that was left behind");
            orphan_free(c, o->ref);
        }
    }
    atomic_store(&R->orphan_count, 0);
}

static uint64_t collect(arena_t *a)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    int rc;
    while ((rc = arena_gc(a, ARENA_GC_SAFEPOINT, &stats)) == -EAGAIN)
        ;
    if (rc != 0)
        fail_msg("arena_gc: %s; in the way: %d, %s", strerror(-rc), (int)stats.blocker_pid, stats.blocker_command);
    return stats.objects;
}

/* ---- the count ----------------------------------------------------------------------------------------------------------- */

static uint64_t count_slots(struct ctx *c)
{
    uint64_t owned = 0;
    for (int i = 0; i < PROCESSES; i++)
        for (int t = 0; t < THREADS; t++)
            for (int k = 0; k < SLOTS; k++) {
                const struct slot *s = &R->process[i].thread[t].slots[k];
                uint32_t state = slot_state(s);
                if (state == SLOT_EMPTY || state == SLOT_TX) /* of a cancelled thread: free by now */
                    continue;
                if (state == SLOT_UNSURE)
                    fail_msg("process %d is unsure of an object, and rests", i);
                slot_verify(c, s, "a recount");
                alive(s->ref, "a recount");
                owned += state == SLOT_OWNED;
            }
    return owned;
}

static void count_board(struct ctx *c)
{
    const arena_ref_t *cells = arena_ptr(c->a, R->board);
    alive(R->board, "the board");
    for (int i = 0; i < PILLARS; i++)
        alive(R->pillar[i], "a pillar");
    for (int i = 0; i < CELLS; i++) {
        const struct head *head = arena_ptr(c->a, cells[i]);
        if (!cells[i])
            continue;
        alive(cells[i], "the board");
        if (head_size(head) > R->set.heap_bytes || !is_headed(head_size(head)))
            fail_msg("cell %d of the board leads to an object of %llu bytes", i, (unsigned long long)head_size(head));
        object_verify(head, head_size(head), head->id, "the board");
    }
}

static void count_turns(arena_t *a)
{
    arena_ref_t ref = 0;
    uint64_t sure = atomic_load(&R->turns), unsure = atomic_load(&R->turns_unsure), more = 0;
    assert_int_equal(arena_root_get(a, "turn", &ref), 0);
    while (more <= unsure && R->pillar[(sure + more) % PILLARS] != ref)
        more++;
    if (more > unsure)
        fail_msg("turn was moved %llu times, perhaps %llu more, and is elsewhere", (unsigned long long)sure, (unsigned long long)unsure);
    atomic_store(&R->turns, sure + more);
    atomic_store(&R->turns_unsure, 0);
}

static uint64_t attached(void)
{
    uint64_t n = 0;
    for (int i = 0; i < PROCESSES; i++)
        n += atomic_load(&R->process[i].attached);
    return n;
}

static void compare(struct ctx *c, uint64_t owned)
{
    struct arena_stats stats = figures(c->a);
    uint64_t shared = live.count - owned, unknown = atomic_load(&R->unknown);
    if (R->set.collector) /* what was in memory before may look like a reference: at the end it is gone, and all else with it */
        unknown = UINT64_MAX / 2;
    if (stats.objects_shared < shared || stats.objects_shared > shared + unknown)
        fail_msg("%llu objects are published, should be %llu (and %llu perhaps): %s", (unsigned long long)stats.objects_shared,
                 (unsigned long long)shared, (unsigned long long)unknown, stats.objects_shared < shared ? "lost" : "leaked");
    if (stats.objects_owned < owned)
        fail_msg("%llu objects are owned, should be %llu: lost", (unsigned long long)stats.objects_owned, (unsigned long long)owned);
}

static struct ctx *begin(struct daemon *d)
{
    static struct ctx c;
    c = (struct ctx){.a = open_heap(d), .p = &R->process[0], .t = &R->process[0].thread[0], .seed = 1};
    arena_on_error(c.a, error_handler, NULL);
    await_clients(c.a, attached() + 1);
    for (int i = 0; i < ROOTS; i++)
        settle_root(c.a, i);
    return &c;
}

void recount(struct daemon *d)
{
    struct ctx *c = begin(d);
    set_clear(&live);
    uint64_t owned = count_slots(c);
    count_board(c);
    for (int i = 0; i < ROOTS; i++)
        count_graph(c, i);
    count_turns(c->a);
    if (R->set.collector) { /* what killed processes left behind nothing leads to */
        verified.orphans += collect(c->a);
        atomic_store(&R->orphan_count, 0);
        atomic_store(&R->unknown, 0);
    } else
        free_orphans(c);
    compare(c, owned);
    assert_int_equal(arena_close(c->a), 0);
    check_whole(d);
    verified.recounts++;
}

/* ---- the end ----------------------------------------------------------------------------------------------------------- */

static void take_all_away(struct ctx *c)
{
    arena_ref_t *cells = arena_ptr(c->a, R->board);
    char name[32];
    for (int i = 0; i < CELLS; i++)
        arena_free(c->a, arena_ptr(c->a, cells[i]));
    for (int i = 0; i < ROOTS; i++) {
        struct graph g = R->root[i].now;
        root_name(name, i);
        if (!g.ref)
            continue;
        assert_int_equal(arena_root_set(c->a, name, 0), 0);
        for (arena_ref_t ref = g.ref, next; ref; ref = next) {
            next = ((struct head *)arena_ptr(c->a, ref))->next;
            arena_free(c->a, arena_ptr(c->a, ref));
        }
    }
    assert_int_equal(arena_root_set(c->a, "turn", 0), 0);
    assert_int_equal(arena_root_set(c->a, "board", 0), 0);
    arena_free(c->a, cells);
    for (int i = 0; i < PILLARS; i++) {
        snprintf(name, sizeof name, "pillar-%d", i);
        assert_int_equal(arena_root_set(c->a, name, 0), 0);
        arena_free(c->a, arena_ptr(c->a, R->pillar[i]));
    }
}

void recount_last(struct daemon *d)
{
    recount(d);
    struct ctx *c = begin(d);
    uint64_t unknown = atomic_load(&R->unknown);
    take_all_away(c);
    uint64_t found = collect(c->a);
    if (!R->set.collector && found > unknown)
        fail_msg("%llu objects are there that nobody knows, and at most %llu may be", (unsigned long long)found, (unsigned long long)unknown);
    verified.unknown += found;
    assert_int_equal(arena_close(c->a), 0);
    stat_await(d, "clients", 0);
    stat_await(d, "objects_owned", 0);
    stat_await(d, "objects_cached", 0);
    uint64_t lost = stat_of(d, "bytes_used");
    verified.lost += lost;
    assert_int_equal(lost, 0);
    check_whole(d);
    stat_await(d, "spans", 0);
}
