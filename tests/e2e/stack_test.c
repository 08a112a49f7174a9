/* Goal: a thread's stack grows and shrinks by copies and loses nothing; handles survive the move;
 * guard, threads, forks and death are as arena.h says. Method: one daemon with a heap of 256 MiB;
 * random frames against a model; processes killed at random steps. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;

static int setup(void **state)
{
    return daemon_setup(state, &d, "256M", &a);
}

static void a_stack_begins_small_doubles_and_halves(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    assert_ptr_equal(arena_stack(a), s);
    assert_int_equal(arena_stack_size(s), 2048);
    arena_frame_t f = arena_frame_push(s);
    char *p = arena_frame_alloc(s, 1500);
    assert_int_equal((uintptr_t)p % 16, 0);
    memset(p, 7, 1500);
    arena_handle_t h = arena_frame_ref(s, p);
    assert_int_equal(arena_stack_size(s), 2048);
    arena_frame_t g = arena_frame_push(s);
    assert_non_null(arena_frame_alloc(s, 100));
    assert_int_equal(arena_stack_size(s), 4096);
    char *moved = arena_frame_ptr(s, h);
    assert_ptr_not_equal(moved, p);
    for (int i = 0; i < 1500; i++)
        assert_int_equal(moved[i], 7);
    assert_non_null(arena_frame_alloc(s, 1 << 20)); /* several doublings at once */
    assert_int_equal(arena_stack_size(s), 2 << 20);
    arena_frame_pop(s, g);
    assert_int_equal(arena_stack_shrink(s), 0);
    assert_int_equal(arena_stack_size(s),
                     4096); /* 1516 bytes and the guard need half of it or more */
    moved = arena_frame_ptr(s, h);
    for (int i = 0; i < 1500; i++)
        assert_int_equal(moved[i], 7);
    arena_frame_pop(s, f);
    assert_null(arena_frame_ptr(s, h));
    arena_trim(a); /* counts as a collection */
    assert_int_equal(arena_stack_size(s), 2048);
    assert_int_equal(stat_of(&d, "objects_owned"), 1);
    assert_int_equal(check_of(&d), 0);
}

/* A stack of `bytes` of which nothing is used. */
static void fill_and_drain(arena_stack_t *s, size_t bytes)
{
    arena_frame_t f = arena_frame_push(s);
    assert_non_null(arena_frame_alloc(s, bytes - 1000));
    arena_frame_pop(s, f);
    assert_int_equal(arena_stack_size(s), bytes);
}

static void a_collection_halves_it_and_reads_it(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    struct arena_gc_stats stats = {.size = sizeof stats};
    arena_frame_t f = arena_frame_push(s);
    arena_handle_t held = arena_frame_ref(s, arena_frame_alloc(s, 64));
    void **first = arena_frame_ptr(s, held);
    memset(first, 0, 64);
    first[3] = arena_alloc_flags(a, 100, ARENA_SHARED | ARENA_ZERO);
    void *kept = first[3];
    memset(arena_alloc_flags(a, 200, ARENA_SHARED), 0,
           200); /* nothing leads to it but garbage above the top */
    fill_and_drain(s, 16384);
    assert_int_equal(arena_gc(a, ARENA_GC_DRY_RUN | ARENA_GC_SAFEPOINT, &stats), 0);
    assert_int_equal(arena_gc(a, ARENA_GC_SAFEPOINT, &stats), 0);
    assert_int_equal(arena_stack_size(s), 2048);
    first = arena_frame_ptr(s, held);
    assert_ptr_equal(first[3], kept);
    assert_int_equal(arena_usable_size(a, kept), 112);
    assert_true(stats.objects_kept >= 1);
    fill_and_drain(s, 8192);
    assert_int_equal(arena_safepoint(a, ARENA_SAFEPOINT), 0);
    assert_int_equal(arena_stack_size(s), 2048);
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0);
    fill_and_drain(s, 32768); /* while it pins, what it left is freed later */
    assert_int_equal(arena_safepoint(a, ARENA_RUNS), 0);
    arena_free(a, kept);
    arena_frame_pop(s, f);
    arena_trim(a);
    assert_int_equal(arena_stack_size(s), 2048);
    assert_int_equal(check_of(&d), 0);
}

static void odd_sizes_and_the_maximum(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    void *zero = arena_frame_alloc(s, 0), *other = arena_frame_alloc(s, 0);
    assert_non_null(zero);
    assert_ptr_not_equal(zero, other);
    static const size_t impossible[] = {SIZE_MAX, SIZE_MAX - 20, 1ULL << 40, 1ULL << 39,
                                        1ULL << 31};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        arena_frame_t top = arena_frame_push(s);
        errno = 0;
        assert_null(arena_frame_alloc(s, impossible[i]));
        assert_int_equal(errno, ENOMEM);
        assert_int_equal(arena_frame_push(s), top);
    }
    assert_int_equal(arena_stack_set_max(a, 2047), -EINVAL);
    assert_int_equal(arena_stack_set_max(a, (1ULL << 39) + 1), -EINVAL);
    assert_int_equal(arena_stack_set_max(a, 64 << 10), 0);
    size_t got = 0;
    while (arena_frame_alloc(s, 1000))
        got += 1008;
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(arena_stack_size(s), 64 << 10);
    assert_true(got > 60000);
    arena_frame_pop(s, f);
    assert_int_equal(arena_stack_set_max(a, 1 << 30), 0);
    assert_int_equal(arena_stack_shrink(s), 0);
    assert_int_equal(arena_stack_size(s), 2048);
}

/* A list through the stack, of frames at random depths, by handles. */
struct node {
    arena_handle_t next;
    uint64_t value;
    size_t bytes;
    unsigned char fill[];
};

static void descend(arena_stack_t *s, arena_handle_t list, uint64_t *seed, unsigned depth)
{
    arena_frame_t f = arena_frame_push(s);
    unsigned count = (unsigned)(rnd(seed) % 5);
    for (unsigned i = 0; i < count; i++) {
        size_t bytes = rnd(seed) % (rnd(seed) % 10 ? 200 : 5000);
        struct node *n = arena_frame_alloc(s, sizeof *n + bytes),
                    *before = arena_frame_ptr(s, list);
        assert_non_null(n);
        n->next = list;
        n->value = before ? before->value + 1 : 0;
        n->bytes = bytes;
        memset(n->fill, (int)n->value, bytes);
        list = arena_frame_ref(s, n);
    }
    while (depth && rnd(seed) % 9 > 3)
        descend(s, list, seed, depth - 1);
    if (rnd(seed) % 8 == 0)
        assert_int_equal(arena_stack_shrink(s), 0);
    uint64_t expect = 0;
    for (struct node *n = arena_frame_ptr(s, list); n; n = arena_frame_ptr(s, n->next)) {
        assert_true(!expect || n->value + 1 == expect);
        expect = n->value;
        for (size_t i = 0; i < n->bytes; i++)
            assert_int_equal(n->fill[i], (unsigned char)n->value);
    }
    assert_int_equal(expect, 0);
    arena_frame_pop(s, f);
}

static void what_is_reached_by_handles_survives_every_move(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    arena_stack_t *s = arena_stack(a);
    arena_frame_t before = arena_frame_push(s);
    for (int i = 0; i < 30; i++)
        descend(s, 0, &seed, 12);
    assert_int_equal(arena_frame_push(s), before);
}

static void small_frames_fit_the_guard_wherever_the_edge_is(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    for (int step = 0; step < 300; step++) {
        char *edge = arena_frame_alloc(s, 16);
        assert_non_null(edge);
        size_t size = arena_stack_size(s);
        arena_frame_t inner[4];
        char *p[4];
        for (int i = 0; i < 4; i++) {
            inner[i] = arena_frame_push(s);
            p[i] = arena_frame_alloc_small(s, 100);
            memset(p[i], i, ARENA_FRAME_SMALL - 16);
        }
        assert_int_equal(arena_stack_size(s), size); /* not moved, and inside */
        for (int i = 0; i < 4; i++) {
            assert_int_equal(p[i][0], i);
            assert_int_equal(p[i][99], i);
        }
        assert_true(s->top <= size);
        for (int i = 4; i-- > 0;)
            arena_frame_pop(s, inner[i]);
    }
    arena_frame_pop(s, f);
    assert_int_equal(arena_stack_shrink(s), 0);
}

static void a_loop_at_the_edge_allocates_nothing(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    while (arena_stack_size(s) < 8192) /* to where the next one would make it grow */
        arena_frame_alloc(s, 16);
    arena_frame_t g = arena_frame_push(s);
    arena_frame_alloc(s, s->limit - s->top);
    uint64_t trips = stat_of(&d, "round_trips");
    char *base = s->base;
    for (int i = 0; i < 100000; i++) {
        arena_frame_t h = arena_frame_push(s);
        char *p = arena_frame_alloc(s, 64);
        p[0] = (char)i;
        arena_frame_pop(s, h);
        if (i == 0)
            base = s->base; /* it grows once */
        assert_ptr_equal(s->base, base);
    }
    assert_int_equal(arena_stack_size(s), 16384);
    assert_true(stat_of(&d, "round_trips") <=
                trips + 8); /* the questions themselves, and at most a refill */
    arena_frame_pop(s, g);
    arena_frame_pop(s, f);
    arena_stack_shrink(s);
}

static void escape_copies_to_the_heap(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    char *p = arena_frame_alloc(s, 40);
    strcpy(p, "outlives its frame");
    arena_handle_t h = arena_frame_ref(s, p);
    char *one = arena_escape(s, p, 40, 0),
         *two = arena_escape_handle(s, h, 40, ARENA_NOSCAN | ARENA_SHARED);
    assert_string_equal(one, p);
    assert_string_equal(two, p);
    errno = 0;
    assert_null(arena_escape(s, p, 49, 0)); /* 48 are there */
    assert_int_equal(errno, EINVAL);
    assert_null(arena_escape(s, one, 1, 0));
    assert_null(arena_escape_handle(s, 0, 1, 0));
    assert_null(arena_escape_handle(s, h + (1ULL << 40), 1, 0)); /* of another stack */
    assert_int_equal(arena_root_set(a, "stack", arena_ref(a, p)),
                     -EINVAL); /* a root never leads into a stack */
    assert_int_equal(arena_publish(a, p), -EINVAL);
    arena_frame_pop(s, f);
    assert_null(arena_escape_handle(s, h, 1, 0));
    assert_int_equal(arena_publish(a, one), 0);
    arena_free(a, one);
    arena_free(a, two);
}

static void a_stack_is_no_part_of_an_open_transaction(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    assert_int_equal(arena_tx_begin(a), 0);
    arena_frame_t f = arena_frame_push(s);
    assert_non_null(arena_frame_alloc(s, 50000));
    uint64_t owned = stat_of(&d, "objects_owned");
    for (int i = 0; i < 300; i++) { /* they are the transaction's all the same */
        assert_non_null(arena_frame_alloc(s, 1000));
        assert_non_null(arena_alloc(a, 50));
    }
    assert_true(stat_of(&d, "objects_owned") >= owned + 300);
    assert_int_equal(arena_tx_abort(a), 0);
    assert_int_equal(stat_of(&d, "objects_owned"), owned);
    assert_int_equal(arena_tx_begin(a), 0);
    arena_frame_pop(s, f);
    arena_stack_shrink(s);
    f = arena_frame_push(s);
    assert_non_null(arena_frame_alloc(s, 50000));
    void *published = arena_alloc(a, 50);
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0);
    assert_int_equal(stat_of(&d, "objects_owned"), owned);
    arena_free(a, published);
    memset(arena_frame_alloc(s, 5000), 1, 5000); /* what it is in was not freed */
    arena_frame_pop(s, f);
    assert_int_equal(arena_stack_shrink(s), 0);
    assert_int_equal(arena_stack_size(s), 2048);
}

static void *thread(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    memset(arena_frame_alloc(s, 3000), (int)seed, 3000);
    for (int i = 0; i < 5; i++)
        descend(s, 0, &seed, 8);
    if (seed & 2)
        arena_frame_pop(s, f);
    return s;
}

static void threads_have_stacks_of_their_own_that_end_with_them(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    arena_trim(a);
    for (int round = 0; round < 10; round++) {
        pthread_t t[4];
        for (int i = 0; i < 4; i++)
            assert_int_equal(
                pthread_create(&t[i], NULL, thread, (void *)(uintptr_t)(rnd(&seed) | 1)), 0);
        void *s[4];
        for (int i = 0; i < 4; i++)
            assert_int_equal(pthread_join(t[i], &s[i]), 0);
        for (int i = 0; i < 4; i++)
            assert_ptr_not_equal(s[i], arena_stack(a));
    }
    assert_int_equal(stat_of(&d, "objects_owned"), 1); /* this thread's stack */
    assert_int_equal(check_of(&d), 0);
}

static void a_forked_child_begins_empty(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    char *p = arena_frame_alloc(s, 1000);
    memset(p, 'p', 1000);
    arena_frame_t g = arena_frame_push(s);
    arena_handle_t h = arena_frame_ref(s, p);
    pid_t pid = fork();
    if (pid == 0) {
        if (arena_frame_ptr(s, h) || arena_stack_size(s) != 0)
            _exit(1);
        arena_frame_t first = arena_frame_push(s);
        char *small = arena_frame_alloc_small(s, 100); /* before it has any memory of the heap */
        memset(small, 'c', 100);
        arena_handle_t own = arena_frame_ref(s, small);
        char *q = arena_frame_alloc(s, 100000);
        if (!q || arena_stack(a) != s)
            _exit(2);
        memset(q, 'c', 100000);
        small = arena_frame_ptr(s, own);
        if (small[0] != 'c' || small[99] != 'c')
            _exit(3);
        arena_frame_pop(s, first);
        arena_frame_pop(s, g); /* the parent's */
        arena_frame_pop(s, f);
        if (s->top != first)
            _exit(4);
        uint64_t seed = 77;
        descend(s, 0, &seed, 8);
        pthread_t t;
        void *other;
        pthread_create(&t, NULL, thread, (void *)3);
        pthread_join(t, &other);
        _exit(other == s ? 5 : 0);
    }
    assert_int_equal(reap(pid), 0);
    p = arena_frame_ptr(s, h);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(p[i], 'p');
    arena_frame_pop(s, g);
    arena_frame_pop(s, f);
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", 1);
}

/* ---- death ---------------------------------------------------------------------------------- */

static _Atomic uint64_t *steps;

static void deep(arena_t *mine, arena_stack_t *s, uint64_t *seed, unsigned depth)
{
    arena_frame_t f = arena_frame_push(s);
    char *p = arena_frame_alloc(s, rnd(seed) % 3000);
    p[0] = 1;
    atomic_fetch_add(steps, 1);
    while (depth && rnd(seed) % 3)
        deep(mine, s, seed, depth - 1);
    if (rnd(seed) % 4 == 0)
        arena_stack_shrink(s);
    if (rnd(seed) % 16 == 0)
        arena_free(mine, arena_escape(s, s->base + f, 16, 0));
    arena_frame_pop(s, f);
}

static __attribute__((noreturn)) void *deep_for_ever(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument | 1;
    arena_t *mine = open_heap(&d);
    arena_stack_t *s = arena_stack(mine);
    for (;;)
        deep(mine, s, &seed, 20);
}

static int victim(void *argument)
{
    pthread_t t;
    pthread_create(&t, NULL, deep_for_ever, (void *)((uintptr_t)argument * 7));
    deep_for_ever(argument);
}

static void death_at_any_point_leaves_nothing(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    steps = shared_memory(sizeof *steps);
    for (int i = 0; i < 60; i++) {
        uint64_t until = rnd(&seed) % 400;
        atomic_store(steps, 0);
        pid_t pid = spawn(victim, (void *)(uintptr_t)rnd(&seed));
        while (atomic_load(steps) < until)
            ;
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
    }
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", 1);
    assert_int_equal(stat_of(&d, "objects_shared"), 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- the debug mode ------------------------------------------------------------------------- */

/* In processes of their own: the environment is read by arena_open. */
static int stale_pointers(void *argument)
{
    (void)argument;
    setenv("ARENA_DEBUG", "stack", 1);
    arena_t *mine = NULL;
    arena_close(a); /* the parent's; a child's close says no goodbye for it */
    if (arena_open(&mine, d.socket, NULL) < 0)
        return 1;
    arena_stack_t *s = arena_stack(mine);
    arena_frame_t f = arena_frame_push(s);
    unsigned char *p = arena_frame_alloc(s, 16);
    memset(p, 1, 16);
    arena_handle_t h = arena_frame_ref(s, p);
    for (int i = 0; i < 10; i++) {
        arena_frame_t g = arena_frame_push(s);
        unsigned char *q = arena_frame_alloc(s, 16);
        if (p[0] != 0xdb || arena_frame_ptr(s, h) == p) /* it moved, and the old place says so */
            return 2;
        p = arena_frame_ptr(s, h);
        if (p[0] != 1 || q[0] != 0)
            return 3;
        arena_frame_pop(s, g);
        if (q[0] != 0xdb)
            return 4;
    }
    uint64_t seed = 99;
    descend(s, 0, &seed, 8);
    arena_frame_pop(s, f);
    return arena_close(mine) == 0 ? 0 : 5;
}

static int five_small_frames(void *argument)
{
    int count = *(int *)argument;
    setenv("ARENA_DEBUG", "stack", 1);
    arena_t *mine = NULL;
    arena_close(a);
    if (arena_open(&mine, d.socket, NULL) < 0)
        return 1;
    arena_stack_t *s = arena_stack(mine);
    while (s->top + 16 + ARENA_FRAME_GUARD <= 2048)
        arena_frame_alloc(s, 16);
    arena_frame_t f = arena_frame_push(s);
    for (int i = 0; i < count; i++)
        arena_frame_alloc_small(s, 128);
    arena_frame_pop(s, f);
    return 0;
}

static void debug_mode_finds_stale_pointers_and_too_many_small_frames(void **state)
{
    (void)state;
    int four = 4, five = 5;
    assert_int_equal(reap(spawn(stale_pointers, NULL)), 0);
    assert_int_equal(reap(spawn(five_small_frames, &four)), 0);
    assert_int_equal(reap(spawn(five_small_frames, &five)), 128 + SIGABRT);
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stack_begins_small_doubles_and_halves),
        cmocka_unit_test(a_collection_halves_it_and_reads_it),
        cmocka_unit_test(odd_sizes_and_the_maximum),
        cmocka_unit_test(what_is_reached_by_handles_survives_every_move),
        cmocka_unit_test(small_frames_fit_the_guard_wherever_the_edge_is),
        cmocka_unit_test(a_loop_at_the_edge_allocates_nothing),
        cmocka_unit_test(escape_copies_to_the_heap),
        cmocka_unit_test(a_stack_is_no_part_of_an_open_transaction),
        cmocka_unit_test(threads_have_stacks_of_their_own_that_end_with_them),
        cmocka_unit_test(a_forked_child_begins_empty),
        cmocka_unit_test(death_at_any_point_leaves_nothing),
        cmocka_unit_test(debug_mode_finds_stale_pointers_and_too_many_small_frames),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
