/* Goal: threads come and go, with destructors of other keys that use the heap to the last round, and leave nothing behind:
 * neither a place, nor memory, nor a pointer into what is no more. Heaps do not wait for one another; one heap is one client,
 * however many threads open it.
 *
 * Method: thread stacks of the test's own, unmapped when the thread is gone, with the thread-local memory in them; a daemon
 * that stands still (SIGSTOP) beside one that serves. */
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

#ifdef __SANITIZE_THREAD__
/* In the last one it has put away what it keeps of the thread, and so the library's last is the one before. What a thread takes
 * after that is handed on by its death, as the system tells by a robust mutex: an order that ThreadSanitizer does not know. */
enum { ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS - 2 };
#else
enum { ROUNDS = PTHREAD_DESTRUCTOR_ITERATIONS };
#endif
enum { STACK_BYTES = 2 << 20, MANY = 10000, FEW = 8 };

static struct daemon d;
static arena_t *a;

static int setup(void **state) { return daemon_setup(state, &d, "256M", NULL); }
static int teardown(void **state) { return daemon_teardown(state); }

/* Runs fn in a thread whose stack and thread-local memory are gone when it is. */
static void in_a_thread_of_its_own_memory(void *(*fn)(void *), void *argument)
{
    pthread_attr_t attr;
    pthread_t thread;
    void *stack = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(stack != MAP_FAILED);
    pthread_attr_init(&attr);
    pthread_attr_setstack(&attr, stack, STACK_BYTES);
    assert_int_equal(pthread_create(&thread, &attr, fn, argument), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    munmap(stack, STACK_BYTES);
}

/* ---- destructors ------------------------------------------------------------------------------------------------------------- */

static pthread_key_t key; /* made after the library's: its destructor comes later in each round */
static int from_round, to_round;
static _Atomic int failed;
static bool takes_a_stack, begins;

static void uses_the_heap(void)
{
    void *p = arena_alloc(a, 100);
    failed |= !p;
    if (p)
        memset(p, 0x77, 100);
    arena_free(a, p);
    if (takes_a_stack) {
        arena_stack_t *s = arena_stack(a);
        failed |= !s || !arena_frame_alloc(s, 100);
    }
    if (begins) {
        int rc = arena_tx_begin(a); /* that of the round before may be open: nobody has told the library of its end */
        failed |= (rc != 0 && rc != -EALREADY) || !arena_alloc(a, 64);
    }
}

static void destructor(void *value)
{
    int round = (int)(intptr_t)value;
    if (round >= from_round && round <= to_round)
        uses_the_heap();
    if (round < to_round)
        pthread_setspecific(key, (void *)(intptr_t)(round + 1));
}

static void *ends(void *argument)
{
    if (!argument)
        arena_free(a, arena_alloc(a, 32));
    pthread_setspecific(key, (void *)(intptr_t)1);
    return NULL;
}

static void open_it(void)
{
    a = open_heap(&d);
    arena_free(a, arena_alloc(a, 1));
}

static void close_it(void)
{
    assert_int_equal(failed, 0);
    assert_int_equal(arena_close(a), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

static void destructors_may_use_the_heap_in_any_round(void **state)
{
    (void)state;
    for (int what = 0; what < 3 + (ROUNDS == PTHREAD_DESTRUCTOR_ITERATIONS); what++)
        for (from_round = 1; from_round <= ROUNDS; from_round++)
            for (to_round = from_round; to_round <= ROUNDS; to_round++) {
                takes_a_stack = what == 1;
                begins = what == 2;
                open_it();
                in_a_thread_of_its_own_memory(ends, what == 3 ? &d : NULL); /* 3: first used in a destructor */
                arena_free(a, arena_alloc(a, 100));
                in_a_thread_of_its_own_memory(ends, NULL);
                close_it(); /* writes to nobody's thread-local memory */
                begins = takes_a_stack = false;
            }
}

static void what_such_threads_have_left_comes_back(void **state)
{
    (void)state;
    from_round = to_round = ROUNDS;
    takes_a_stack = begins = true;
    open_it();
    for (int i = 0; i < 50; i++) {
        in_a_thread_of_its_own_memory(ends, NULL);
        begins = i % 2;
    }
    takes_a_stack = begins = false;
    assert_int_equal(arena_trim(a), 0);
    stat_await(&d, "objects_used", 0);
    stat_await(&d, "objects_cached", 0);
    close_it();
}

static void ten_thousand_such_threads_use_up_no_place(void **state)
{
    (void)state;
    from_round = to_round = ROUNDS;
    open_it();
    for (int i = 0; i < MANY / LESS; i++)
        in_a_thread_of_its_own_memory(ends, NULL);
    arena_free(a, arena_alloc(a, 100));
    assert_true(stat_of(&d, "objects_cached") < 1000);
    close_it();
}

/* Without any destructor: nobody tells the library. */
static void *ends_at_once(void *argument)
{
    (void)argument;
    uses_the_heap();
    syscall(SYS_exit, 0);
    return NULL;
}

static void threads_that_end_without_destructors_are_found(void **state)
{
    (void)state;
    if (LESS > 1)
        skip(); /* a sanitizer keeps books of threads too */
    open_it();
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        assert_int_equal(pthread_create(&thread, NULL, ends_at_once, NULL), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
    }
    assert_int_equal(arena_trim(a), 0);
    stat_await(&d, "objects_cached", 0);
    close_it();
}

static void *ends_with_a_stack(void *argument)
{
    (void)argument;
    arena_stack_t *s = arena_stack(a);
    for (int i = 0; i < 10; i++) {
        arena_frame_t f = arena_frame_push(s);
        failed |= !arena_frame_alloc(s, 100 << i);
        arena_frame_pop(s, f);
    }
    return NULL;
}

/* Who ends looks for its own among all stacks, while others grow theirs: a race that ThreadSanitizer would tell of. */
static void stacks_grow_while_others_end(void **state)
{
    (void)state;
    open_it();
    for (int round = 0; round < 50; round++) {
        pthread_t threads[FEW];
        for (int i = 0; i < FEW; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, ends_with_a_stack, NULL), 0);
        for (int i = 0; i < FEW; i++)
            assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
    close_it();
}

/* ---- a heap's place after its close ---------------------------------------------------------------------------------------------- */

static pthread_barrier_t met;

/* In its last round it has an mcache, and waits; meanwhile the heap is closed, and others are opened and closed. */
static void waits_in_its_last_round(void *value)
{
    int round = (int)(intptr_t)value;
    if (round < ROUNDS) {
        pthread_setspecific(key, (void *)(intptr_t)(round + 1));
        return;
    }
    uses_the_heap();
    pthread_barrier_wait(&met);
    pthread_barrier_wait(&met);
    void *p = arena_alloc(a, 100); /* by now `a` is another heap's, which may be in the first one's memory */
    failed |= !p;
    arena_free(a, p);
}

static void another_heap_does_not_get_the_place_of_one_that_a_thread_still_knows(void **state)
{
    (void)state;
    struct daemon other;
    pthread_t threads[FEW];
    pthread_key_t before = key;
    assert_int_equal(pthread_key_create(&key, waits_in_its_last_round), 0);
    daemon_start(&other, "64M", "--base", "0x551000000000", NULL);
    pthread_barrier_init(&met, NULL, FEW + 1);
    open_it();
    for (int i = 0; i < FEW; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ends, NULL), 0);
    pthread_barrier_wait(&met);
    assert_int_equal(arena_close(a), 0);
    for (int i = 0; i < 40; i++) { /* more than a process has places for */
        assert_int_equal(arena_open(&a, other.socket, NULL), 0);
        arena_free(a, arena_alloc(a, 100));
        if (i < 39)
            assert_int_equal(arena_close(a), 0);
    }
    pthread_barrier_wait(&met);
    for (int i = 0; i < FEW; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(failed, 0);
    assert_int_equal(arena_close(a), 0);
    assert_int_equal(check_of(&other), 0);
    daemon_stop(&other);
    daemon_clean(&other);
    pthread_key_delete(key);
    key = before;
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- several opens, several heaps ------------------------------------------------------------------------------------------------- */

static void *opens(void *argument)
{
    arena_t *opened = NULL;
    pthread_barrier_wait(&met);
    return arena_open(&opened, argument, NULL) == 0 ? opened : NULL;
}

static void concurrent_opens_of_one_heap_are_one_client(void **state)
{
    (void)state;
    struct daemon one;
    pthread_t threads[FEW];
    void *opened[FEW];
    daemon_start(&one, "64M", "--limit-clients", "1", NULL);
    pthread_barrier_init(&met, NULL, FEW);
    for (int round = 0; round < 50 / LESS + 1; round++) {
        for (int i = 0; i < FEW; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, opens, one.socket), 0);
        for (int i = 0; i < FEW; i++) {
            assert_int_equal(pthread_join(threads[i], &opened[i]), 0);
            assert_non_null(opened[i]);
            assert_ptr_equal(opened[i], opened[0]);
        }
        assert_int_equal(stat_of(&one, "clients"), 1);
        for (int i = 0; i < FEW; i++)
            assert_int_equal(arena_close(opened[i]), 0);
    }
    daemon_stop(&one);
    daemon_clean(&one);
}

static void *opens_and_closes(void *argument)
{
    for (int i = 0; i < 100 / LESS + 1; i++) {
        arena_t *opened;
        if (arena_open(&opened, argument, NULL) != 0)
            return opened;
        void *p = arena_alloc(opened, 100);
        arena_free(opened, p);
        if (!p || arena_close(opened) != 0)
            return opened;
    }
    return NULL;
}

/* A close and an open that meet: the limit is never found used up by a client that is about to go. */
static void opens_and_closes_that_meet_keep_within_the_limit(void **state)
{
    (void)state;
    struct daemon one;
    pthread_t threads[FEW];
    daemon_start(&one, "64M", "--limit-clients", "1", NULL);
    for (int i = 0; i < FEW; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, opens_and_closes, one.socket), 0);
    for (int i = 0; i < FEW; i++) {
        void *result;
        assert_int_equal(pthread_join(threads[i], &result), 0);
        assert_null(result);
    }
    stat_await(&one, "clients", 0);
    assert_int_equal(check_of(&one), 0);
    daemon_stop(&one);
    daemon_clean(&one);
}

static void *opens_with_patience(void *argument)
{
    arena_t *opened = NULL;
    struct arena_options o = ARENA_OPTIONS_INIT;
    o.timeout_ms = -1;
    pthread_barrier_wait(&met);
    return arena_open(&opened, argument, &o) == 0 ? opened : NULL;
}

static void *allocates(void *argument)
{
    (void)argument;
    uses_the_heap();
    return NULL;
}

static void a_heap_whose_daemon_stands_still_holds_up_no_other(void **state)
{
    (void)state;
    struct daemon stopped;
    pthread_t opener, thread;
    void *opened;
    arena_t *again;
    daemon_start(&stopped, "64M", "--keeper=no", "--base", "0x551000000000", NULL);
    from_round = to_round = 2;
    open_it();
    kill(stopped.pid, SIGSTOP);
    pthread_barrier_init(&met, NULL, 2);
    assert_int_equal(pthread_create(&opener, NULL, opens_with_patience, stopped.socket), 0);
    pthread_barrier_wait(&met);
    for (int i = 0; i < 100; i++) { /* it waits meanwhile, from one of these on */
        assert_int_equal(pthread_create(&thread, NULL, allocates, NULL), 0);
        assert_int_equal(pthread_join(thread, NULL), 0);
        in_a_thread_of_its_own_memory(ends, NULL);
        assert_int_equal(arena_open(&again, d.socket, NULL), 0);
        assert_ptr_equal(again, a);
        assert_int_equal(arena_close(again), 0);
    }
    close_it(); /* the last one, too */
    open_it();
    kill(stopped.pid, SIGCONT);
    assert_int_equal(pthread_join(opener, &opened), 0);
    assert_non_null(opened);
    assert_int_equal(arena_close(opened), 0);
    close_it();
    daemon_stop(&stopped);
    daemon_clean(&stopped);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(destructors_may_use_the_heap_in_any_round),
        cmocka_unit_test(what_such_threads_have_left_comes_back),
        cmocka_unit_test(ten_thousand_such_threads_use_up_no_place),
        cmocka_unit_test(threads_that_end_without_destructors_are_found),
        cmocka_unit_test(stacks_grow_while_others_end),
        cmocka_unit_test(another_heap_does_not_get_the_place_of_one_that_a_thread_still_knows),
        cmocka_unit_test(concurrent_opens_of_one_heap_are_one_client),
        cmocka_unit_test(opens_and_closes_that_meet_keep_within_the_limit),
        cmocka_unit_test(a_heap_whose_daemon_stands_still_holds_up_no_other),
    };
    pthread_key_create(&key, destructor);
    return cmocka_run_group_tests(tests, setup, teardown);
}
