/* Goal: a collection frees what is published, unreachable and unpinned, and nothing else; it is refused when it cannot
 * know; it is safe while clients that pin run on, and when anybody dies in the middle. Method: what is reachable is
 * computed here a second way, by typed walks over the test's own objects; whether an object is still there is asked
 * through arena_publish, which tells published, free and another's apart. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static uint64_t seed;

static int setup(void **state)
{
    seed = seed_get();
    return daemon_setup(state, &d, NULL, NULL);
}

static struct arena_gc_stats collect(arena_t *a, unsigned flags)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    int rc = arena_gc(a, flags | ARENA_GC_SAFEPOINT, &stats);
    if (rc < 0)
        fail_msg("arena_gc: %s (%llu in the way, pid %llu, %s)", strerror(-rc), (unsigned long long)stats.blockers,
                 (unsigned long long)stats.blocker_pid, stats.blocker_command);
    return stats;
}

static uint64_t *published(arena_t *a, size_t size, unsigned flags)
{
    uint64_t *p = arena_alloc_flags(a, size, flags | ARENA_ZERO);
    assert_non_null(p);
    assert_int_equal(arena_publish(a, p), 0);
    return p;
}

static bool is_there(arena_t *a, void *p)
{
    int rc = arena_publish(a, p);
    assert_true(rc == 0 || rc == -EINVAL);
    return rc == 0;
}

/* ---- pins, again and again ---------------------------------------------------------------------------------------------------- */

static void what_is_unpinned_after_a_collection_is_freed_by_the_next(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0); /* arena_gc makes no other round trip */
    for (int i = 0; i < 300; i++) {
        uint64_t *p = published(a, 64, 0);
        assert_int_equal(arena_pin(a, p), 0);
        assert_int_equal(collect(a, 0).objects, 0);
        assert_int_equal(arena_unpin(a, p), 0);
        assert_int_equal(collect(a, 0).objects, 1);
    }
    arena_close(a);
}

/* ---- what counts ------------------------------------------------------------------------------------------------------------ */

static void what_roots_lead_to_stays_and_the_rest_is_freed(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    uint64_t *root = published(a, 64, 0), *by_ref = published(a, 48, 0), *by_pointer = published(a, 5000, 0);
    uint64_t *inside = published(a, 400, 0), *large = published(a, 300000, 0), *behind = published(a, 16, 0);
    uint64_t *bytes = published(a, 100, ARENA_NOSCAN), *hidden = published(a, 32, 0), *lost = published(a, 32, 0);
    uint64_t *lost_large = published(a, 100000, 0), *circle = published(a, 32, 0);
    assert_true(arena_same_address(a));
    root[0] = arena_ref(a, by_ref);
    root[7] = (uint64_t)(uintptr_t)by_pointer;
    by_pointer[624] = arena_ref(a, inside) + 399;             /* into the middle, by reference */
    by_ref[3] = (uint64_t)(uintptr_t)large + 200001;          /* and by pointer */
    large[300000 / 8 - 1] = arena_ref(a, behind);
    behind[0] = (uint64_t)(uintptr_t)bytes;
    bytes[3] = arena_ref(a, hidden);                          /* is not read */
    lost[0] = arena_ref(a, root);                             /* leads somewhere, nothing leads to it */
    circle[0] = arena_ref(a, circle);
    assert_int_equal(arena_root_set(a, "root", arena_ref(a, root)), 0);

    struct arena_gc_stats dry = collect(a, ARENA_GC_DRY_RUN);
    assert_int_equal(dry.objects, 4);
    assert_true(is_there(a, hidden) && is_there(a, lost) && is_there(a, lost_large) && is_there(a, circle));
    struct arena_gc_stats did = collect(a, 0);
    assert_int_equal(did.objects, 4);
    assert_int_equal(did.bytes, dry.bytes);
    assert_true(did.bytes >= 100000 + 3 * 32);
    assert_int_equal(did.objects_kept, 7);
    assert_true(!is_there(a, hidden) && !is_there(a, lost) && !is_there(a, lost_large) && !is_there(a, circle));
    assert_true(is_there(a, root) && is_there(a, by_ref) && is_there(a, by_pointer) && is_there(a, inside));
    assert_true(is_there(a, large) && is_there(a, behind) && is_there(a, bytes));
    assert_int_equal(collect(a, 0).objects, 0);

    root[0] = 0; /* valid becoming invalid: what hung on it goes */
    assert_int_equal(collect(a, 0).objects, 4);
    assert_true(is_there(a, inside) && !is_there(a, by_ref) && !is_there(a, large) && !is_there(a, bytes));
    assert_int_equal(arena_root_set(a, "root", 0), 0);
    assert_int_equal(collect(a, 0).objects, 3);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

static void owned_objects_and_open_transactions_are_roots(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    uint64_t *mine = arena_calloc(a, 1, 64), *by_mine = published(a, 64, 0), *by_tx = published(a, 64, 0);
    mine[2] = arena_ref(a, by_mine);
    assert_int_equal(arena_tx_begin(a), 0);
    uint64_t *in_tx = arena_calloc(a, 1, 40), *noscan = arena_alloc_flags(a, 64, ARENA_NOSCAN | ARENA_ZERO);
    in_tx[0] = arena_ref(a, by_tx);
    assert_int_equal(collect(a, 0).objects, 0);
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0); /* now all of that is published, and nothing leads to it */
    assert_int_equal(collect(a, 0).objects, 3);
    assert_true(!is_there(a, in_tx) && !is_there(a, noscan) && !is_there(a, by_tx) && is_there(a, by_mine));
    arena_free(a, mine);
    assert_int_equal(collect(a, 0).objects, 1);
    assert_int_equal(arena_tx_begin(a), 0);
    in_tx = arena_calloc(a, 1, 40);
    by_tx = arena_calloc(a, 1, 64);
    in_tx[4] = (uint64_t)(uintptr_t)by_tx;
    assert_int_equal(arena_tx_commit(a, "tx", 0, arena_ref(a, in_tx)), 0);
    assert_int_equal(collect(a, 0).objects, 0);
    assert_true(is_there(a, in_tx) && is_there(a, by_tx));
    arena_close(a);
}

static void pins_are_counted_and_end_with_their_process(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    uint64_t *p = published(a, 64, 0), *q = published(a, 64, 0), *r = arena_calloc(a, 1, 16);
    p[1] = arena_ref(a, q);
    assert_int_equal(arena_pin(a, p), 0);
    assert_int_equal(arena_pin(a, (char *)p + 63), 0); /* the same object */
    assert_int_equal(collect(a, 0).objects, 0);
    assert_int_equal(arena_unpin(a, p), 0);
    assert_int_equal(collect(a, 0).objects, 0);
    assert_int_equal(arena_unpin(a, p), 0);
    assert_int_equal(arena_unpin(a, p), -EINVAL);
    assert_int_equal(collect(a, 0).objects, 2);
    assert_int_equal(arena_pin(a, p), -EINVAL); /* free */
    assert_int_equal(arena_pin(a, &p), -EINVAL);
    assert_int_equal(arena_pin(a, NULL), -EINVAL);
    assert_int_equal(arena_unpin(a, r), -EINVAL);
    assert_int_equal(arena_pin(a, r), 0); /* an own one: harmless */
    enum { MANY = 5000 };
    static void *many[MANY]; /* more than one table of pins, in a transaction too: its end must not free the tables */
    for (int i = 0; i < MANY; i++) {
        if (i == 1000)
            assert_int_equal(arena_tx_begin(a), 0);
        many[i] = arena_alloc_flags(a, 16, ARENA_SHARED | ARENA_ZERO);
        assert_int_equal(arena_pin(a, many[i]), 0);
    }
    assert_int_equal(arena_tx_abort(a), 0);
    assert_int_equal(collect(a, 0).objects, 0);
    for (int i = 0; i < MANY; i += 2)
        assert_int_equal(arena_unpin(a, many[i]), 0);
    assert_int_equal(collect(a, 0).objects, MANY / 2);
    for (int i = 0; i < MANY; i++)
        assert_int_equal(is_there(a, many[i]), i % 2);
    assert_int_equal(arena_unpin(a, r), 0);
    arena_free(a, r);
    arena_close(a);
    a = open_heap(&d);
    assert_int_equal(collect(a, 0).objects, MANY / 2);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

/* ---- refusals ----------------------------------------------------------------------------------------------------------------- */

struct talk {
    int down[2], up[2];
};

static void talk_open(struct talk *t)
{
    assert_int_equal(pipe(t->down), 0);
    assert_int_equal(pipe(t->up), 0);
}

static void talk_close(struct talk *t)
{
    for (int i = 0; i < 2; i++) {
        close(t->down[i]);
        close(t->up[i]);
    }
}

/* Tells the other process to do one thing, and waits until it has. */
static int tell(struct talk *t, char what)
{
    signed char answer = 127;
    if (write(t->down[1], &what, 1) != 1 || read(t->up[0], &answer, 1) != 1)
        fail_msg("the other process has gone");
    return answer;
}

/* r: runs; s: safepoint; p: pins; o: opens; c: closes; R: opens to read */
static int obedient(void *argument)
{
    struct talk *t = argument;
    arena_t *a = NULL;
    struct arena_options reader = ARENA_OPTIONS_INIT;
    char what;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    reader.flags = ARENA_READ_ONLY;
    while (read(t->down[0], &what, 1) == 1) {
        int rc = what == 'o'   ? arena_open(&a, d.socket, NULL)
                 : what == 'R' ? arena_open(&a, d.socket, &reader)
                 : what == 'c' ? arena_close(a)
                 : what == 'r' ? arena_safepoint(a, ARENA_RUNS)
                 : what == 's' ? arena_safepoint(a, ARENA_SAFEPOINT)
                 : what == 'p' ? arena_safepoint(a, ARENA_PINS)
                               : -1;
        signed char answer = (signed char)(rc < -126 ? -126 : rc);
        if (what == 'q' || write(t->up[1], &answer, 1) != 1)
            break;
    }
    return 0;
}

static void it_is_refused_while_a_client_has_declared_nothing_and_says_who(void **state)
{
    static char out[16384];
    struct talk t;
    char name[64];
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    uint64_t *lost = published(a, 64, 0);
    struct arena_gc_stats stats = {.size = sizeof stats};
    assert_int_equal(arena_gc(a, 0, &stats), -EBUSY); /* this process itself */
    assert_int_equal(stats.blockers, 1);
    assert_int_equal(stats.blocker_pid, getpid());
    talk_open(&t);
    pid_t pid = spawn(obedient, &t);
    assert_int_equal(tell(&t, 'o'), 0);
    assert_int_equal(arena_gc(a, ARENA_GC_SAFEPOINT, &stats), -EBUSY);
    assert_int_equal(stats.blockers, 1);
    assert_int_equal(stats.blocker_pid, pid);
    assert_int_equal(strncmp(stats.blocker_command, "gc_test", 7), 0);
    assert_int_equal(arena_gc(a, 0, NULL), -EBUSY);
    assert_int_equal(arenactl(&d, out, sizeof out, "gc"), 1);
    snprintf(name, sizeof name, "%d", (int)pid);
    assert_non_null(strstr(out, name));
    assert_non_null(strstr(out, "gc_test"));
    assert_true(is_there(a, lost));
    assert_int_equal(tell(&t, 's'), 0);
    assert_int_equal(collect(a, ARENA_GC_DRY_RUN).objects, 1);
    assert_int_equal(tell(&t, 'r'), 0);
    assert_int_equal(arena_gc(a, ARENA_GC_SAFEPOINT, NULL), -EBUSY);
    assert_int_equal(tell(&t, 'p'), 0);
    assert_int_equal(collect(a, ARENA_GC_DRY_RUN).objects, 1);
    assert_int_equal(tell(&t, 'c'), 0);
    assert_int_equal(tell(&t, 'R'), 0); /* a reader holds pointers too */
    assert_int_equal(arena_gc(a, ARENA_GC_SAFEPOINT, NULL), -EBUSY);
    assert_int_equal(tell(&t, 'p'), -EACCES);
    assert_int_equal(tell(&t, 's'), 0);
    kill(pid, SIGSTOP); /* at a safepoint it may as well sleep */
    assert_int_equal(collect(a, ARENA_GC_DRY_RUN).objects, 1);
    kill(pid, SIGCONT);
    assert_int_equal(tell(&t, 'r'), 0);
    kill(pid, SIGKILL);
    assert_int_equal(reap(pid), 128 + SIGKILL);
    assert_int_equal(collect(a, 0).objects, 1); /* the dead are not waited for, whether the daemon knew already or not */
    assert_int_equal(arena_gc(a, 128, NULL), -EINVAL);
    assert_int_equal(arena_safepoint(a, 3), -EINVAL);
    assert_int_equal(arena_safepoint(a, -1), -EINVAL);
    talk_close(&t);
    arena_close(a);
}

static void *collects_again_and_again(void *heap)
{
    for (int i = 0; i < 50; i++) {
        int rc = arena_gc(heap, ARENA_GC_SAFEPOINT, NULL);
        if (rc != 0)
            return (void *)(intptr_t)rc;
    }
    return NULL;
}

/* Each is at a safepoint as long as its call lasts: one that is through takes it from nobody. */
static void threads_of_one_process_collect_one_after_the_other(void **state)
{
    pthread_t threads[3];
    void *rc;
    (void)state;
    daemon_start(&d, "16M", NULL);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, collects_again_and_again, a), 0);
    for (int i = 0; i < 3; i++) {
        pthread_join(threads[i], &rc);
        assert_int_equal((intptr_t)rc, 0);
    }
    assert_int_equal(arena_gc(a, 0, NULL), -EBUSY); /* nothing is declared */
    arena_close(a);
}

static void the_report_says_where_it_was(void **state)
{
    static char out[16384];
    char pid[64];
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 10; i++)
        published(a, 64, 0);
    for (int i = 0; i < 7; i++)
        published(a, 12, ARENA_NOSCAN);
    assert_int_equal(arena_safepoint(a, ARENA_SAFEPOINT), 0);
    assert_int_equal(arenactl(&d, out, sizeof out, "gc --dry-run --json | tr -d ' \\t\\n'"), 0);
    snprintf(pid, sizeof pid, "\"pid\":%d,", (int)getpid());
    assert_non_null(strstr(out, "\"result\":\"dryrun\""));
    assert_non_null(strstr(out, "\"size\":64,\"noscan\":0,\"objects\":10,\"bytes\":640}"));
    assert_non_null(strstr(out, "\"size\":12,\"noscan\":1,\"objects\":7,\"bytes\":84}"));
    assert_non_null(strstr(out, pid));
    assert_non_null(strstr(out, "\"objects\":17,\"bytes\":724"));
    arena_close(a);
    stat_await(&d, "clients", 0);
    assert_int_equal(arenactl(&d, out, sizeof out, "gc"), 0);
    assert_non_null(strstr(out, "freed 17 objects"));
    assert_non_null(strstr(out, "(gone)"));
    assert_int_equal(stat_of(&d, "objects_used"), 0);
}

/* ---- random graphs ------------------------------------------------------------------------------------------------------------- */

enum { NODES = 6000, MAKERS = 6, SLOTS = 6 };

enum { MADE = 1, NOSCAN = 2, PINNED = 4, PUBLISHED = 8 };
struct node {
    _Atomic uint32_t flags;
    uint32_t maker;
    arena_ref_t ref;
    uint64_t size, usable, slots_at, slot_count;
};
struct graph {
    _Atomic uint32_t next;
    uint64_t kill_at[MAKERS]; /* the step at which it kills itself; 0: never */
    _Atomic uint32_t ready[MAKERS];
    struct node nodes[NODES];
};
static struct graph *graph;

/* A reference to a node, in one of the four ways. */
static uint64_t way_to(arena_t *a, const struct node *n, uint64_t *s)
{
    uint64_t into = rnd(s) % 2 ? 0 : rnd(s) % n->size;
    return rnd(s) % 2 ? n->ref + into : (uint64_t)(uintptr_t)arena_ptr(a, n->ref) + into;
}

static void link_node(arena_t *a, struct node *n, uint64_t *s)
{
    uint64_t *slots = (uint64_t *)arena_ptr(a, n->ref + n->slots_at);
    for (uint64_t i = 0; i < n->slot_count; i++) {
        const struct node *to = &graph->nodes[rnd(s) % NODES];
        if (rnd(s) % 3 && atomic_load(&to->flags) & MADE)
            slots[i] = way_to(a, to, s);
    }
}

static void make_node(arena_t *a, uint32_t index, uint32_t maker, uint64_t *s)
{
    struct node *n = &graph->nodes[index];
    uint32_t flags = rnd(s) % 8 == 0 ? NOSCAN : 0;
    n->size = rnd(s) % 100 == 0 ? 40000 + rnd(s) % 400000 : 16 + rnd(s) % (rnd(s) % 10 ? 200 : 9000);
    n->slot_count = n->size / 8 < SLOTS ? n->size / 8 : rnd(s) % (SLOTS + 1);
    n->slots_at = rnd(s) % (n->size / 8 - n->slot_count + 1) * 8;
    n->maker = maker;
    void *p = arena_alloc_flags(a, n->size, flags & NOSCAN ? ARENA_NOSCAN : 0);
    if (!p)
        _exit(9);
    n->usable = arena_usable_size(a, p); /* what leads behind its size leads to it, for the collector too */
    memset(p, 0xee, n->usable);          /* leads nowhere */
    n->ref = arena_ref(a, p);
    link_node(a, n, s);
    if (rnd(s) % 16 == 0 && arena_pin(a, p) == 0)
        flags |= PINNED;
    if (rnd(s) % 3) {
        flags |= PUBLISHED;
        if (arena_publish(a, p) != 0)
            _exit(8);
    }
    atomic_store(&n->flags, flags | MADE);
}

/* Begins a transaction or ends the one that is open; all that was made in it is published with it. */
static void turn_transaction(arena_t *a, uint32_t *in_tx, uint32_t *count, bool *open, uint64_t *s)
{
    if (!*open && arena_tx_begin(a) != 0)
        _exit(5);
    if (*open && rnd(s) % 4) {
        if (arena_tx_commit(a, NULL, 0, 0) != 0)
            _exit(6);
        for (uint32_t i = 0; i < *count; i++)
            atomic_fetch_or(&graph->nodes[in_tx[i]].flags, PUBLISHED);
    } else if (*open) {
        for (uint32_t i = 0; i < *count; i++) { /* what it had published by itself stays */
            struct node *n = &graph->nodes[in_tx[i]];
            uint32_t flags = atomic_load(&n->flags);
            if (flags & PUBLISHED)
                continue;
            if (flags & PINNED) /* else it would pin whatever comes to be there */
                arena_unpin(a, arena_ptr(a, n->ref));
            atomic_store(&n->flags, 0);
        }
        if (arena_tx_abort(a) != 0)
            _exit(7);
    }
    *count = 0;
    *open = !*open;
}

/* Makes its share of nodes. Then it declares itself and waits; or it dies on the way, between two steps, so that what
 * it has noted is exact. */
static int maker(void *argument)
{
    static uint32_t in_tx[NODES];
    uint32_t me = (uint32_t)(uintptr_t)argument, count = 0;
    uint64_t s = seed ^ (me + 1) * 0x9e3779b97f4a7c15ULL;
    bool open = false;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *a = open_heap(&d);
    for (uint64_t step = 1; step <= NODES / MAKERS; step++) {
        if (rnd(&s) % 50 == 0)
            turn_transaction(a, in_tx, &count, &open, &s);
        in_tx[count] = atomic_fetch_add(&graph->next, 1);
        make_node(a, in_tx[count], me, &s);
        count += open;
        struct node *some = &graph->nodes[rnd(&s) % NODES]; /* and changes one of its own */
        if (atomic_load(&some->flags) & MADE && some->maker == me)
            link_node(a, some, &s);
        if (step == graph->kill_at[me])
            raise(SIGKILL);
    }
    if (arena_safepoint(a, me % 2 ? ARENA_PINS : ARENA_SAFEPOINT) != 0)
        return 9;
    atomic_store(&graph->ready[me], 1);
    for (;;)
        pause();
}

static int compare_nodes(const void *a, const void *b)
{
    const struct node *const *x = a, *const *y = b;
    return (*x)->ref < (*y)->ref ? -1 : (*x)->ref > (*y)->ref;
}

/* Nodes that are there, by their place. */
struct index {
    struct node *by_ref[NODES];
    uint32_t count;
};

static struct node *node_at(const struct index *x, uint64_t offset)
{
    uint32_t low = 0, high = x->count;
    while (low < high) {
        uint32_t mid = (low + high) / 2;
        if (x->by_ref[mid]->ref <= offset)
            low = mid + 1;
        else
            high = mid;
    }
    struct node *n = low ? x->by_ref[low - 1] : NULL;
    return n && offset - n->ref < n->usable ? n : NULL;
}

enum standing { IS_FREE, IS_SHARED, IS_OWNED };
static enum standing standing_of(arena_t *a, const struct node *n)
{
    int rc = arena_publish(a, arena_ptr(a, n->ref));
    return rc == 0 ? IS_SHARED : rc == -EBUSY ? IS_OWNED : IS_FREE;
}

/* Marks in `reached` what the words of nodes lead to, from those that are there already; a plain worklist. */
static void reach_all(arena_t *a, const struct index *x, bool *reached, const enum standing *standing)
{
    static struct node *list[NODES];
    uint32_t count = 0;
    for (uint32_t i = 0; i < NODES; i++)
        if (reached[i])
            list[count++] = &graph->nodes[i];
    while (count) {
        const struct node *n = list[--count];
        const uint64_t *slots = (const uint64_t *)arena_ptr(a, n->ref + n->slots_at);
        if (atomic_load(&n->flags) & NOSCAN)
            continue;
        for (uint64_t i = 0; i < n->slot_count; i++) {
            uint64_t offset = slots[i] < 1ULL << 40 ? slots[i] : arena_ref(a, (void *)(uintptr_t)slots[i]);
            struct node *to = node_at(x, offset);
            if (!to || standing[to - graph->nodes] == IS_FREE || reached[to - graph->nodes])
                continue;
            reached[to - graph->nodes] = true;
            list[count++] = to;
        }
    }
}

static void one_graph(int kills)
{
    static struct index x;
    static bool reached[NODES];
    static enum standing standing[NODES], after;
    pid_t pids[MAKERS];
    memset(graph, 0, sizeof *graph);
    memset(&x, 0, sizeof x);
    memset(reached, 0, sizeof reached);
    for (int i = 0; i < kills; i++)
        graph->kill_at[i] = 1 + rnd(&seed) % (NODES / MAKERS);
    for (uint32_t i = 0; i < MAKERS; i++)
        pids[i] = spawn(maker, (void *)(uintptr_t)i);
    for (int i = 0; i < kills; i++)
        assert_int_equal(reap(pids[i]), 128 + SIGKILL);
    for (int i = kills; i < MAKERS; i++)
        while (!atomic_load(&graph->ready[i]))
            ;
    stat_await(&d, "clients", MAKERS - (uint64_t)kills);
    arena_t *a = open_heap(&d);
    collect(a, ARENA_GC_DRY_RUN); /* which waits for the pass for the dead */
    for (uint32_t i = 0; i < NODES; i++) {
        struct node *n = &graph->nodes[i];
        uint32_t flags = atomic_load(&n->flags);
        bool dead = n->maker < (uint32_t)kills;
        standing[i] = !(flags & MADE) || (dead && !(flags & PUBLISHED)) ? IS_FREE : flags & PUBLISHED ? IS_SHARED : IS_OWNED;
        if (standing[i] == IS_FREE)
            continue;
        assert_int_equal(standing_of(a, n), standing[i]);
        x.by_ref[x.count++] = n;
        if (standing[i] == IS_SHARED && rnd(&seed) % 100 == 0) {
            char name[32];
            snprintf(name, sizeof name, "r%u", i);
            assert_int_equal(arena_root_set(a, name, n->ref), 0);
            reached[i] = true;
        }
        if (standing[i] == IS_OWNED || (flags & PINNED && !dead))
            reached[i] = true;
    }
    qsort(x.by_ref, x.count, sizeof *x.by_ref, compare_nodes);
    for (uint32_t i = 1; i < x.count; i++) /* no place has two nodes */
        assert_true(x.by_ref[i - 1]->ref < x.by_ref[i]->ref);
    reach_all(a, &x, reached, standing);
    uint64_t lost = 0, kept = 0;
    for (uint32_t i = 0; i < NODES; i++) {
        lost += standing[i] == IS_SHARED && !reached[i];
        kept += standing[i] == IS_SHARED && reached[i];
    }
    assert_int_equal(collect(a, ARENA_GC_DRY_RUN).objects, lost);
    struct arena_gc_stats stats = collect(a, 0);
    assert_int_equal(stats.objects, lost);
    assert_int_equal(stats.objects_kept, kept);
    for (uint32_t i = 0; i < NODES; i++) {
        if (standing[i] == IS_FREE)
            continue;
        after = standing_of(a, &graph->nodes[i]);
        if (after != (reached[i] ? standing[i] : IS_FREE))
            fail_msg("node %u of %llu bytes at %llx was %d, is %d, %s", i, (unsigned long long)graph->nodes[i].size,
                     (unsigned long long)graph->nodes[i].ref, standing[i], after, reached[i] ? "reachable" : "lost");
    }
    assert_int_equal(check_of(&d), 0);
    for (int i = kills; i < MAKERS; i++) {
        kill(pids[i], SIGKILL);
        reap(pids[i]);
    }
    for (uint32_t i = 0; i < NODES; i++) {
        char name[32];
        snprintf(name, sizeof name, "r%u", i);
        arena_root_set(a, name, 0);
    }
    stat_await(&d, "clients", 1);
    collect(a, 0);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    arena_close(a);
    stat_await(&d, "clients", 0);
}

static void random_graphs_of_many_processes_agree_with_a_second_way(void **state)
{
    (void)state;
    graph = shared_memory(sizeof *graph);
    daemon_start(&d, "1G", NULL);
    for (int round = 0; round < 6; round++)
        one_graph(round % 4);
    munmap(graph, sizeof *graph);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_roots_lead_to_stays_and_the_rest_is_freed, daemon_teardown),
        cmocka_unit_test_teardown(owned_objects_and_open_transactions_are_roots, daemon_teardown),
        cmocka_unit_test_teardown(pins_are_counted_and_end_with_their_process, daemon_teardown),
        cmocka_unit_test_teardown(what_is_unpinned_after_a_collection_is_freed_by_the_next, daemon_teardown),
        cmocka_unit_test_teardown(it_is_refused_while_a_client_has_declared_nothing_and_says_who, daemon_teardown),
        cmocka_unit_test_teardown(threads_of_one_process_collect_one_after_the_other, daemon_teardown),
        cmocka_unit_test_teardown(the_report_says_where_it_was, daemon_teardown),
        cmocka_unit_test_teardown(random_graphs_of_many_processes_agree_with_a_second_way, daemon_teardown),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
