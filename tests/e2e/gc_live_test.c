/* Goal: collections take nothing from clients that go on working while they pin, that come and go, and that die, and
 * survive the death of the daemon in the middle; what is lost is all found in the end. Method: processes push, move, free,
 * claim and lose the nodes of lists that a root leads to, others pass through safepoints, while this one collects again and
 * again, and workers, or the daemon, are killed at moments that chance chooses. Freed nodes are used again at once for
 * other things, so one that was taken from a list shows. At the end the lists are counted, and that must be all. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum {
    LISTS = 16, WORKERS = 3, NODE_MIN = 32, NODE_MAX = 200,
    MADE_MAX = 3000, /* nodes between two collections, so that slow ones find a heap that is not full */
};

struct node {
    arena_ref_t next;
    uint64_t number, inverse; /* ~number */
};
struct table {
    _Atomic uint64_t lock[LISTS]; /* the holder's pid */
    arena_ref_t head[LISTS];
};
struct board {
    _Atomic uint64_t collections, stop, asking, bad, made;
    uint64_t deaths;
};

static struct daemon d;
static struct board *board;
static uint64_t seed;

static int setup(void **state)
{
    board = shared_memory(sizeof *board);
    seed = seed_get();
    return daemon_setup(state, &d, NULL, NULL);
}

static void die_if(bool bad, int status)
{
    if (bad) {
        fprintf(stderr, "process %d: fault %d\n", (int)getpid(), status);
        atomic_fetch_add(&board->bad, 1);
        _exit(status);
    }
}

static void lock_list(struct table *t, int list)
{
    uint64_t free_value = 0, me = (uint64_t)getpid();
    while (!atomic_compare_exchange_weak(&t->lock[list], &free_value, me)) {
        free_value = 0;
        sched_yield();
    }
}
static void unlock_list(struct table *t, int list) { atomic_store(&t->lock[list], 0); }

static struct table *table_of(arena_t *a)
{
    arena_ref_t ref = 0;
    die_if(arena_root_get(a, "table", &ref) != 0, 20);
    return arena_ptr(a, ref);
}

static struct node *pinned(arena_t *a, arena_ref_t ref)
{
    struct node *n = arena_ptr(a, ref);
    if (n)
        die_if(arena_pin(a, n) != 0, 21); /* -EINVAL: it is free, and in a list */
    return n;
}
static void let_go(arena_t *a, struct node *n)
{
    if (n)
        die_if(arena_unpin(a, n) != 0, 22);
}

/* ---- what workers do; each of them has pinned what it stores ------------------------------------------------------------------ */

static void push(arena_t *a, struct table *t, int list, struct node *n)
{
    lock_list(t, list);
    struct node *head = pinned(a, t->head[list]);
    n->next = arena_ref(a, head);
    t->head[list] = arena_ref(a, n);
    unlock_list(t, list);
    let_go(a, head);
}

/* The first of a list, pinned and taken out; NULL: it is empty. */
static struct node *pop(arena_t *a, struct table *t, int list)
{
    lock_list(t, list);
    struct node *n = pinned(a, t->head[list]), *next = n ? pinned(a, n->next) : NULL;
    if (n) {
        die_if(n->inverse != ~n->number, 23);
        t->head[list] = arena_ref(a, next);
    }
    unlock_list(t, list);
    let_go(a, next);
    return n;
}

static struct node *new_node(arena_t *a, uint64_t *s)
{
    struct node *n = arena_alloc(a, NODE_MIN + rnd(s) % (NODE_MAX - NODE_MIN));
    die_if(!n, 24);
    memset(n, 0, arena_usable_size(a, n)); /* what was left there might look like references, and lead to what is lost */
    n->number = rnd(s);
    n->inverse = ~n->number;
    die_if(arena_pin(a, n) != 0 || arena_publish(a, n) != 0, 25);
    return n;
}

static void look(struct table *t, arena_t *a, int list)
{
    lock_list(t, list); /* which keeps all of them where they are */
    for (const struct node *n = arena_ptr(a, t->head[list]); n; n = arena_ptr(a, n->next))
        die_if(n->inverse != ~n->number, 26);
    unlock_list(t, list);
}

/* Uses what was freed for something else. */
static void scribble(arena_t *a, uint64_t *s)
{
    void *noise[20];
    for (int i = 0; i < 20; i++) {
        size_t size = NODE_MIN + rnd(s) % (NODE_MAX - NODE_MIN);
        noise[i] = arena_alloc(a, size);
        die_if(!noise[i], 27);
        memset(noise[i], 0x5a, size);
    }
    for (int i = 0; i < 20; i++)
        arena_free(a, noise[i]);
}

static void step(arena_t *a, struct table *t, uint64_t *s)
{
    int from = (int)(rnd(s) % LISTS), to = (int)(rnd(s) % LISTS);
    uint64_t what = rnd(s) % 16;
    if (what < 5 && atomic_fetch_add(&board->made, 1) >= MADE_MAX)
        what = 15;
    struct node *n = what < 5 ? new_node(a, s) : what < 14 ? pop(a, t, from) : NULL;
    if (!n) {
        look(t, a, from);
        scribble(a, s);
        return;
    }
    if (what == 5) {
        arena_free(a, n);
    } else if (what == 6 || what == 7) {
        /* lost */
    } else if (what == 8) {
        die_if(arena_claim(a, n) != 0, 28);
        n->number = rnd(s);
        n->inverse = ~n->number;
        die_if(arena_publish(a, n) != 0, 29);
        push(a, t, to, n);
    } else
        push(a, t, to, n);
    let_go(a, n);
}

static int worker(void *argument)
{
    uint64_t s = seed ^ (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15ULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *a = open_heap(&d);
    die_if(arena_safepoint(a, ARENA_PINS) != 0, 30);
    struct table *t = table_of(a);
    arena_pin(a, t);
    while (!atomic_load(&board->stop)) {
        step(a, t, &s);
        if (rnd(&s) % 500 == 0)
            arena_trim(a);
    }
    die_if(arena_unpin(a, t) != 0, 31);
    return arena_close(a);
}

/* Is at a safepoint most of the time; in between it holds what it likes. */
static int visitor(void *argument)
{
    uint64_t s = seed ^ (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15ULL;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    while (!atomic_load(&board->stop)) {
        arena_t *a = open_heap(&d);
        struct table *t = table_of(a);
        for (int i = 0; i < 5; i++) {
            struct node *n = new_node(a, &s);
            look(t, a, (int)(rnd(&s) % LISTS));
            push(a, t, (int)(rnd(&s) % LISTS), n);
            let_go(a, n);
            die_if(arena_safepoint(a, ARENA_SAFEPOINT) != 0, 32);
            uint64_t seen = atomic_load(&board->collections);
            while (atomic_load(&board->collections) < seen + 3 && !atomic_load(&board->stop))
                sched_yield();
            die_if(arena_safepoint(a, ARENA_RUNS) != 0, 33);
        }
        die_if(arena_close(a) != 0, 34);
    }
    return 0;
}

/* Kills the daemon while a collection was asked for, some times. */
static int assassin(void *argument)
{
    uint64_t s = seed + 99;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    for (uint64_t i = 0; i < (uint64_t)(uintptr_t)argument && !atomic_load(&board->stop); i++) {
        uint64_t seen = atomic_load(&board->asking);
        while ((atomic_load(&board->asking) == seen || atomic_load(&board->asking) % 2 == 0) && !atomic_load(&board->stop))
            sched_yield();
        for (uint64_t wait = rnd(&s) % 300000; wait; wait--)
            atomic_load(&board->asking);
        pid_t serving = daemon_serving(&d);
        if (serving > 0 && serving != d.pid)
            kill(serving, SIGKILL);
    }
    return 0;
}

/* ---- the run -------------------------------------------------------------------------------------------------------------------- */

static arena_t *make_table(void)
{
    arena_t *a = open_heap(&d);
    struct table *t = arena_alloc_flags(a, sizeof *t, ARENA_ZERO | ARENA_SHARED);
    assert_int_equal(arena_root_set(a, "table", arena_ref(a, t)), 0);
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0); /* and holds nothing */
    return a;
}

static pid_t kill_and_replace(arena_t *a, pid_t pid, uint64_t number)
{
    kill(pid, SIGKILL);
    int status = reap(pid);
    if (status != 128 + SIGKILL)
        fail_msg("a worker ended with %d", status);
    arena_ref_t ref = 0;
    assert_int_equal(arena_root_get(a, "table", &ref), 0);
    struct table *t = arena_ptr(a, ref);
    for (int i = 0; i < LISTS; i++) {
        uint64_t held = (uint64_t)pid;
        atomic_compare_exchange_strong(&t->lock[i], &held, 0);
    }
    return spawn(worker, (void *)(uintptr_t)number);
}

/* Until there were `wanted` collections. */
static void collect_many(arena_t *a, pid_t *workers, uint64_t wanted, uint64_t kills)
{
    uint64_t number = WORKERS + 1, freed = 0;
    while (atomic_load(&board->collections) < wanted && !atomic_load(&board->bad)) {
        struct arena_gc_stats stats = {.size = sizeof stats};
        atomic_fetch_add(&board->asking, 1);
        int rc = arena_gc(a, rnd(&seed) % 8 ? 0 : ARENA_GC_DRY_RUN, &stats);
        atomic_fetch_add(&board->asking, 1);
        if (rc != 0 && rc != -EBUSY && rc != -ENOTCONN)
            fail_msg("arena_gc: %s", strerror(-rc));
        if (rc != 0) {
            sched_yield();
            continue;
        }
        freed += stats.objects;
        atomic_store(&board->made, 0);
        uint64_t done = atomic_fetch_add(&board->collections, 1) + 1;
        if (kills && done % (wanted / kills) == 0) {
            uint64_t who = rnd(&seed) % WORKERS;
            workers[who] = kill_and_replace(a, workers[who], number++);
        }
    }
    assert_int_equal(atomic_load(&board->bad), 0);
    assert_true(freed > 0);
}

static void run_all(uint64_t wanted, uint64_t kills, uint64_t daemon_kills)
{
    pid_t workers[WORKERS], visitors[2], killer = 0;
    memset(board, 0, sizeof *board);
    arena_t *a = make_table();
    for (int i = 0; i < WORKERS; i++)
        workers[i] = spawn(worker, (void *)(uintptr_t)(i + 1));
    int visitor_count = daemon_kills ? 0 : 2;
    for (int i = 0; i < visitor_count; i++)
        visitors[i] = spawn(visitor, (void *)(uintptr_t)(1000 + i));
    /* Nobody attaches while the daemon is killed: who had been admitted and was not told is a client that has declared
     * nothing, and in the way until its process ends. */
    if (daemon_kills)
        stat_await(&d, "clients", WORKERS + 1);
    if (daemon_kills)
        killer = spawn(assassin, (void *)(uintptr_t)daemon_kills);
    collect_many(a, workers, wanted, kills);
    atomic_store(&board->stop, 1);
    if (killer)
        assert_int_equal(reap(killer), 0);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(reap(workers[i]), 0);
    for (int i = 0; i < visitor_count; i++)
        assert_int_equal(reap(visitors[i]), 0);
    stat_await(&d, "clients", 1);
    int rc;
    while ((rc = arena_gc(a, 0, NULL)) == -ENOTCONN || rc == -EBUSY) /* the daemon is being started again */
        sched_yield();
    assert_int_equal(rc, 0);
    uint64_t there = 1;
    struct table *t = table_of(a);
    for (int i = 0; i < LISTS; i++)
        for (const struct node *n = arena_ptr(a, t->head[i]); n; n = arena_ptr(a, n->next), there++)
            assert_int_equal(n->inverse, ~n->number);
    assert_int_equal(stat_of(&d, "objects_shared"), there);
    assert_int_equal(stat_of(&d, "objects_used"), there);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

static void clients_that_pin_work_on_while_others_pass_safepoints(void **state)
{
    (void)state;
    daemon_start(&d, "256M", NULL);
    run_all(150, 0, 0);
}

static void workers_may_die_at_any_instruction_of_a_collection(void **state)
{
    (void)state;
    daemon_start(&d, "256M", NULL);
    run_all(150, 30, 0);
}

static void the_daemon_may_die_at_any_instruction_of_a_collection(void **state)
{
    (void)state;
    daemon_start(&d, "256M", NULL);
    run_all(60, 0, 12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(clients_that_pin_work_on_while_others_pass_safepoints, daemon_teardown),
        cmocka_unit_test_teardown(workers_may_die_at_any_instruction_of_a_collection, daemon_teardown),
        cmocka_unit_test_teardown(the_daemon_may_die_at_any_instruction_of_a_collection, daemon_teardown),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
