/* Goal: while the daemon stands still, or is gone, every call ends in its own time, says so, and loses nothing; what was asked
 * meanwhile is settled when it is there again.
 * Method: the serving process is stopped, continued, killed; no time is measured: a call that hangs is the test's end. How long
 * one has waited is told by how often the library has looked up from its socket: each 100 ms at the least. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;

static _Atomic unsigned looks, sends;

/* In place of the C library's, for the library too. */
__attribute__((visibility("default"))) ssize_t recvmsg(int fd, struct msghdr *message, int flags)
{
    ssize_t got = syscall(SYS_recvmsg, fd, message, flags);
    atomic_fetch_add(&looks, got < 0 && errno == EAGAIN && !(flags & MSG_DONTWAIT));
    return got;
}

__attribute__((visibility("default"))) ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    atomic_fetch_add(&sends, 1);
    return syscall(SYS_sendmsg, fd, message, flags);
}

static int setup(void **state)
{
    (void)state;
    daemon_start(&d, "1G", NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    daemon_clean(&d);
    return 0;
}

static void open_for(int timeout_ms)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = timeout_ms;
    while (arena_open(&a, d.socket, &options) == -ENOTCONN) /* on a busy machine it may not have answered by then */
        ;
    assert_non_null(a);
}

static void close_heap(void)
{
    arena_close(a);
    a = NULL;
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
}

static void frees_and_trims_return_while_the_daemon_stands_still(void **state)
{
    enum { OBJECTS = 200000 / LESS };
    void **objects = calloc(OBJECTS, sizeof *objects);
    uint64_t seed = seed_get();
    arena_ref_t ref;
    (void)state;
    open_for(200);
    for (int i = 0; i < OBJECTS; i++)
        while (!(objects[i] = arena_alloc(a, rnd(&seed) % 4000)))
            assert_int_equal(errno, ENOTCONN);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    for (int i = 0; i < OBJECTS; i++)
        arena_free(a, objects[i]); /* more to tell than the socket takes */
    for (int i = 0; i < 20; i++)
        arena_trim(a);
    while (arena_alloc(a, 100))
        ;
    assert_int_equal(errno, ENOTCONN);
    assert_null(arena_alloc(a, 100000));
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(arena_root_wait(a, "nobody's", 0, 10, &ref), -ETIMEDOUT);
    kill(serving, SIGCONT);
    while (!arena_alloc(a, 100000))
        assert_int_equal(errno, ENOTCONN);
    close_heap();
    free(objects);
}

/* An open transaction of two objects; the second leads to the first. */
static arena_ref_t two_objects(void)
{
    int rc;
    while ((rc = arena_tx_begin(a)) != 0)
        assert_int_equal(rc, -ENOTCONN);
    arena_ref_t *first, *second;
    while (!(first = arena_alloc(a, 100)) || !(second = arena_alloc(a, 100)))
        assert_int_equal(errno, ENOTCONN);
    *second = arena_ref(a, first);
    return arena_ref(a, second);
}

static arena_ref_t root_now(void)
{
    arena_ref_t ref = 0;
    int rc = arena_root_get(a, "list", &ref);
    assert_true(rc == 0 || rc == -ENOENT);
    return ref;
}

/* What the root leads to is published: both can be claimed, and are freed. */
static void take_list(arena_ref_t list)
{
    arena_ref_t *second = arena_ptr(a, list);
    void *first = arena_ptr(a, *second);
    assert_int_equal(arena_claim(a, second), 0);
    assert_int_equal(arena_claim(a, first), 0);
    arena_free(a, first);
    arena_free(a, second);
}

static void a_commit_that_nobody_answered_is_settled_by_an_abort_or_a_commit(void **state)
{
    unsigned done = 0;
    (void)state;
    open_for(100);
    for (int round = 0; round < 12; round++) {
        arena_ref_t old = root_now(), list = two_objects();
        pid_t serving = daemon_serving(&d);
        int rc;
        kill(serving, SIGSTOP);
        do /* -EINPROGRESS: it was stopped in the middle of it */
            rc = arena_tx_commit(a, "list", old, list);
        while (rc == -EINPROGRESS);
        assert_true(rc == -ENOTCONN || rc == 0);
        bool aborts = rc == -ENOTCONN && round % 2;
        if (aborts) /* the commit lies in the daemon's socket, and is not done: there is nothing to ask */
            assert_int_equal(arena_tx_abort(a), 0);
        kill(serving, SIGCONT);
        while (!aborts && rc == -ENOTCONN)
            rc = arena_tx_commit(a, "list", old, list);
        if (aborts) { /* nothing of it is there, now or later */
            assert_int_equal(stat_of(&d, "objects_owned"), 0);
            assert_true(root_now() == old);
        } else {
            assert_int_equal(rc, 0);
            assert_true(root_now() == list);
            take_list(list);
            done++;
        }
        assert_int_equal(arena_tx_abort(a), -EINVAL); /* none is open */
        while ((rc = arena_root_set(a, "list", 0)) == -ENOTCONN)
            ;
        assert_true(rc == 0 || (rc == -ENOENT && aborts && old == 0));
        for (int i = 0; i < 20; i++) { /* tags go round: none is committed before its time */
            arena_ref_t next = two_objects();
            assert_int_equal(arena_claim(a, arena_ptr(a, next)), -EBUSY);
            while ((rc = arena_tx_commit(a, NULL, 0, 0)) == -ENOTCONN)
                ;
            assert_int_equal(rc, 0);
            take_list(next);
        }
    }
    assert_in_range(done, 6, 12);
    close_heap();
}

/* A refill that finds one under way that was asked for ahead waits for that; then its patience is over. */
static void a_refill_behind_one_that_was_asked_ahead_waits_once(void **state)
{
    enum { PATIENCE_MS = 1000, LOOK_MS = 100, MORE = 2 /* the last look, and a clock's tick */, GROWS = 1 << 20 };
    unsigned before, sent;
    char *last = NULL, *p;
    (void)state;
    open_for(PATIENCE_MS);
    for (int i = 0; i < GROWS; i += 64, last = p) { /* its class asks ahead by now */
        while (!(p = arena_alloc(a, 64)))
            assert_int_equal(errno, ENOTCONN);
        *(char **)p = last;
    }
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    sent = atomic_load(&sends);
    for (;; last = p) {
        before = atomic_load(&looks);
        if (!(p = arena_alloc(a, 64)))
            break;
        *(char **)p = last;
    }
    assert_int_equal(errno, ENOTCONN);
    assert_true(atomic_load(&sends) - sent >= 2); /* ahead, and once more to look */
    assert_in_range(atomic_load(&looks) - before, 1, PATIENCE_MS / LOOK_MS + MORE);
    kill(serving, SIGCONT);
    while ((p = last) != NULL) {
        last = *(char **)p;
        arena_free(a, p);
    }
    close_heap();
}

static void a_wait_for_a_root_ends_in_its_own_time(void **state)
{
    arena_ref_t ref;
    (void)state;
    open_for(0);
    daemon_kill(&d);
    assert_int_equal(arena_root_wait(a, "nobody's", 0, 1500, &ref), -ETIMEDOUT); /* longer than a look at the daemon */
    daemon_again(&d, "1G", NULL);
    arena_close(a);
    a = NULL;
}

static void a_close_says_goodbye_though_the_connection_was_lost(void **state)
{
    (void)state;
    open_for(0);
    void *p = arena_alloc(a, 100);
    assert_non_null(p);
    uint64_t epoch = stat_of(&d, "epoch");
    kill(daemon_serving(&d), SIGKILL); /* its keeper starts another */
    stat_await(&d, "epoch", epoch + 1);
    arena_trim(a); /* notices */
    close_heap();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(frees_and_trims_return_while_the_daemon_stands_still, setup, teardown),
        cmocka_unit_test_setup_teardown(a_commit_that_nobody_answered_is_settled_by_an_abort_or_a_commit, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refill_behind_one_that_was_asked_ahead_waits_once, setup, teardown),
        cmocka_unit_test_setup_teardown(a_wait_for_a_root_ends_in_its_own_time, setup, teardown),
        cmocka_unit_test_setup_teardown(a_close_says_goodbye_though_the_connection_was_lost, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
