/* Goal: the daemon may be killed at any moment, under load, and nothing is lost; clients see a pause.
 * Method: the serving process is killed with SIGKILL again and again while processes churn, publish, commit and die; a
 * keeper, or a daemon started again over a backing directory, takes its place. At the end every figure is exact. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

struct board {
    _Atomic uint64_t opened, steps, stop, trouble;
};
static struct board *board;
static struct daemon d;
static uint64_t seed;

static int setup(void **state)
{
    (void)state;
    board = shared_memory(sizeof *board);
    seed = seed_get();
    return 0;
}

/* Lists in transactions, each with a root that the next one replaces; objects of all sizes between them. */
static int worker(void *argument)
{
    uint64_t s = seed + (uint64_t)(uintptr_t)argument * 77, round = 0;
    enum { SLOTS = 200 };
    void *slots[SLOTS] = {NULL};
    arena_ref_t old = 0;
    char name[32];
    arena_t *a = open_heap(&d);
    atomic_fetch_add(&board->opened, 1);
    snprintf(name, sizeof name, "list-%d", (int)(intptr_t)argument);
    while (!atomic_load(&board->stop)) {
        int rc;
        if ((rc = arena_tx_begin(a)) != 0)
            return 10 + (rc == -ENOTCONN);
        arena_ref_t head = 0;
        for (int i = 0; i < 20; i++) {
            arena_ref_t *node = arena_alloc(a, 16 + rnd(&s) % 3000);
            if (!node)
                return 12;
            node[0] = head;
            node[1] = round;
            head = arena_ref(a, node);
        }
        if ((rc = arena_tx_commit(a, name, old, head)) != 0) {
            fprintf(stderr, "commit of round %llu: %s\n", (unsigned long long)round, strerror(-rc));
            return 13;
        }
        for (arena_ref_t next; old; old = next) { /* what the root led to before is still whole, and is freed now */
            arena_ref_t *node = arena_ptr(a, old);
            next = node[0];
            if (node[1] != round - 1)
                return 14;
            arena_free(a, node);
        }
        old = head;
        for (int i = 0; i < 100; i++) {
            size_t k = rnd(&s) % SLOTS;
            arena_free(a, slots[k]);
            if (!(slots[k] = arena_alloc(a, rnd(&s) % 50 ? rnd(&s) % 9000 : rnd(&s) % 300000)))
                return 15;
        }
        if (rnd(&s) % 20 == 0)
            arena_trim(a);
        round++;
        atomic_fetch_add(&board->steps, 1);
    }
    for (int i = 0; i < SLOTS; i++)
        arena_free(a, slots[i]);
    return arena_close(a) == 0 ? 0 : 16;
}

static void await_steps(uint64_t more)
{
    uint64_t until = atomic_load(&board->steps) + more;
    while (atomic_load(&board->steps) < until && !atomic_load(&board->trouble))
        pause_us(1000);
}

static void finish(pid_t *pids, int count)
{
    atomic_store(&board->stop, 1);
    for (int i = 0; i < count; i++)
        assert_int_equal(reap(pids[i]), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "transactions", 0);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_cached", 0);
    assert_int_equal(stat_of(&d, "objects_used"), count * 20); /* the lists that the roots lead to */
    assert_int_equal(stat_of(&d, "roots"), count);
    assert_int_equal(check_of(&d), 0);
}

static void a_keeper_starts_a_killed_daemon_again_under_load(void **state)
{
    (void)state;
    memset(board, 0, sizeof *board);
    daemon_start(&d, "512M", NULL);
    pid_t pids[3];
    for (int i = 0; i < 3; i++)
        pids[i] = spawn(worker, (void *)(intptr_t)(i + 1));
    for (int i = 0; i < 40; i++) {
        await_steps(rnd(&seed) % 40);
        pid_t serving = daemon_serving(&d);
        assert_int_not_equal(serving, d.pid);
        kill(serving, SIGKILL);
        while (daemon_serving(&d) == serving || daemon_serving(&d) == d.pid)
            ;
    }
    await_steps(50);
    finish(pids, 3);
    assert_in_range(stat_of(&d, "epoch"), 2, 41); /* one that is killed before it serves does not count itself */
    daemon_clean(&d);
}

static void a_backing_directory_brings_the_heap_back(void **state)
{
    char dir[128], out[256];
    (void)state;
    memset(board, 0, sizeof *board);
    temp_dir(dir, sizeof dir, "backing");
    daemon_start(&d, "256M", "--backing", dir, NULL);
    pid_t pids[2];
    for (int i = 0; i < 2; i++)
        pids[i] = spawn(worker, (void *)(intptr_t)(i + 1));
    for (uint64_t i = 0; i < 2; i++) /* an orderly stop takes the socket away: who opens the heap then finds none */
        await_counter(&board->opened, i + 1, pids[i]);
    for (int i = 0; i < 10; i++) {
        await_steps(rnd(&seed) % 40);
        if (i % 2)
            daemon_kill(&d);
        else
            assert_int_equal(daemon_stop(&d), 0); /* an orderly stop keeps the heap too */
        daemon_again(&d, "256M", "--backing", dir, NULL);
    }
    await_steps(50);
    finish(pids, 2);
    daemon_clean(&d);
    run(out, sizeof out, "rm -rf %s", dir);
}

static int owner_that_is_killed(void *argument)
{
    arena_t *a = open_heap(&d);
    int *fd = argument;
    for (int i = 0; i < 100; i++)
        arena_alloc(a, 100);
    void *p = arena_alloc(a, 100);
    arena_publish(a, p);
    arena_root_set(a, "kept", arena_ref(a, p));
    if (write(fd[1], "x", 1) == 1)
        pause();
    return 0;
}

static void a_client_that_died_while_no_daemon_ran_is_reclaimed(void **state)
{
    char dir[128], out[256], byte;
    int fd[2];
    arena_ref_t ref;
    (void)state;
    temp_dir(dir, sizeof dir, "backing");
    assert_int_equal(pipe(fd), 0);
    daemon_start(&d, "64M", "--backing", dir, NULL);
    pid_t pid = spawn(owner_that_is_killed, fd);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    daemon_kill(&d);
    kill(pid, SIGKILL);
    reap(pid);
    daemon_again(&d, "64M", "--backing", dir, NULL);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_used", 1);
    assert_int_equal(check_of(&d), 0);
    arena_t *a = open_heap(&d);
    assert_int_equal(arena_root_get(a, "kept", &ref), 0);
    arena_close(a);
    daemon_stop(&d);
    /* a map that cannot be trusted is not served, and is kept */
    assert_int_equal(run(out, sizeof out, "printf xxxxxxxx | dd of=%s/map bs=1 conv=notrunc status=none", dir), 0);
    assert_int_equal(run(out, sizeof out, "%s/arenad --foreground --socket %s --max 64M --backing %s", programs_dir(),
                         d.socket, dir), 1);
    assert_non_null(strstr(out, "kept for inspection"));
    assert_int_equal(access(dir, F_OK), 0);
    daemon_clean(&d);
    run(out, sizeof out, "rm -rf %s", dir);
}

/* Another socket, and another name of the directory: it is refused, and leaves nothing. --reset does not help it. */
static void refused_in(const char *dir)
{
    static const char *const options[] = {"", "--reset", "--keeper=no"};
    char out[1024], says[256];
    snprintf(says, sizeof says, "arenad: another daemon serves the heap in %s/../backing: stop it", dir);
    for (int i = 0; i < 3; i++) {
        int status = run(out, sizeof out, "%s/arenad --foreground --socket %s.2 --max 64M --backing %s/../backing %s",
                         programs_dir(), d.socket, dir, options[i]);
        assert_int_equal(status, 1);
        if (!strstr(out, says) || strchr(out, '\n') != out + strlen(out) - 1)
            fail_msg("not one line '%s': %s", says, out);
        run(out, sizeof out, "test -e %s.2 && echo there", d.socket);
        assert_string_equal(out, "");
    }
}

static void one_daemon_serves_a_directory(void **state)
{
    char above[128], dir[160], out[256];
    arena_ref_t ref;
    (void)state;
    temp_dir(above, sizeof above, "backing");
    snprintf(dir, sizeof dir, "%s/backing", above);
    assert_int_equal(run(out, sizeof out, "mkdir %s", dir), 0);
    daemon_start(&d, "64M", "--backing", dir, NULL);
    arena_t *a = open_heap(&d);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, arena_alloc_flags(a, 100, ARENA_SHARED))), 0);
    for (int i = 0; i < 3; i++) { /* as it was started, and after a kill: the client lives on, and holds no lock */
        refused_in(dir);
        daemon_kill(&d);
        daemon_again(&d, "64M", "--backing", dir, NULL);
    }
    assert_int_equal(daemon_stop(&d), 0);
    daemon_again(&d, "64M", "--backing", dir, NULL);
    assert_int_equal(arena_root_get(a, "kept", &ref), 0);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
    temp_dir_remove(above);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_keeper_starts_a_killed_daemon_again_under_load),
        cmocka_unit_test(a_backing_directory_brings_the_heap_back),
        cmocka_unit_test(a_client_that_died_while_no_daemon_ran_is_reclaimed),
        cmocka_unit_test(one_daemon_serves_a_directory),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
