/* Goal: who may attach is told by the groups that a process has, however many, and by numbers that can be; a reload that
 * takes the right away cuts off, and only then. Method: processes that become other users, a config file, its reload. */
#include <errno.h>
#include <grp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { GROUP = 60000, USER = 50000 };

static struct daemon d;
static char conf[64];

static int setup(void **state)
{
    daemon_setup(state, &d, NULL, NULL);
    return conf_make(conf);
}

static int teardown(void **state)
{
    unlink(conf);
    return daemon_teardown(state);
}

static void start(const char *text)
{
    conf_write(conf, text);
    daemon_start(&d, "16M", "--config", conf, "--socket-mode", "0666", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
}

/* A user with so many groups, the allowed one at a place; -1: nowhere. */
struct member {
    int groups, at;
};

static int opens(void *argument)
{
    const struct member *who = argument;
    static gid_t groups[65536];
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    for (int i = 0; i < who->groups; i++)
        groups[i] = i == who->at ? GROUP : 100000 + (gid_t)i;
    if (setgroups((size_t)who->groups, groups) < 0 || setgid(USER) < 0 || setuid(USER) < 0)
        return 20;
    int rc = arena_open(&a, d.socket, &options);
    if (rc == -EACCES)
        return strstr(arena_reason(), "see allow-users and allow-groups") ? 1 : 21;
    return rc == 0 ? 0 : 22;
}

static void a_process_is_a_member_of_the_groups_that_it_has(void **state)
{
    static const struct {
        struct member who;
        int status;
    } cases[] = {
        {{0, -1}, 1},   {{1, 0}, 0},      {{64, 63}, 0},      {{65, 64}, 0}, {{128, -1}, 1},
        {{200, 199}, 0}, {{5000, 4999}, 0}, {{65536, 40000}, 0}, {{65536, -1}, 1},
    };
    (void)state;
    if (geteuid() != 0)
        skip();
    start("allow-groups = 60000\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(reap(spawn(opens, (void *)(uintptr_t)&cases[i].who)), cases[i].status);
}

static void numbers_that_nobody_can_have_are_refused(void **state)
{
    static const char *const numbers[] = {"4294967295", "4294967296", "4294967297", "18446744073709551617",
                                          "99999999999999999999999"};
    char out[1024];
    (void)state;
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++)
        for (int groups = 0; groups < 2; groups++) {
            int status = run(out, sizeof out, "%s/arenad --foreground --socket /nowhere/s --%s 7,%s", programs_dir(),
                             groups ? "allow-groups" : "allow-users", numbers[i]);
            assert_int_equal(status, 2);
            if (!strstr(out, "has a number that no") || strchr(out, '\n') != out + strlen(out) - 1)
                fail_msg("not one line: %s", out);
        }
}

struct board {
    _Atomic uint64_t opened, ask, answered;
    _Atomic int answer;
};
static struct board *board;

/* A user who opens the heap, and makes a request whenever it is asked to. */
static int asks(void *argument)
{
    uid_t uid = (uid_t)(uintptr_t)argument;
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    options.timeout_ms = 500;
    if (setgroups(0, NULL) < 0 || setgid(uid) < 0 || setuid(uid) < 0 || arena_open(&a, d.socket, &options) != 0)
        return 20;
    struct board *mine = &board[uid - USER];
    unsigned char *p = arena_alloc(a, 100);
    memset(p, 7, 100);
    mine->opened = 1;
    for (uint64_t n = 1;; n++) {
        while (mine->ask < n)
            pause_us(100);
        mine->answer = arena_root_set(a, "none", 0);
        if (p[99] != 7)
            return 21;
        mine->answered = n;
    }
}

static int ask(int user)
{
    struct board *b = &board[user];
    uint64_t n = ++b->ask;
    while (b->answered < n)
        pause_us(100);
    return b->answer;
}

static bool log_has(const char *text)
{
    char out[64];
    return run(out, sizeof out, "grep -c -e '%s' %s", text, d.log) == 0;
}

static void a_reload_cuts_off_who_lost_access_and_nobody_else(void **state)
{
    pid_t pids[2];
    (void)state;
    if (geteuid() != 0)
        skip();
    board = shared_memory(2 * sizeof *board);
    start("allow-users = 50000, 50001\n");
    for (int i = 0; i < 2; i++) {
        pids[i] = spawn(asks, (void *)(uintptr_t)(USER + i));
        await_counter(&board[i].opened, 1, pids[i]);
        assert_int_equal(ask(i), -ENOENT);
    }
    conf_write(conf, "allow-users = 50001\nallow-users 50000\n"); /* one that cannot be read changes nothing */
    kill(daemon_serving(&d), SIGHUP);
    while (!log_has("event=reload result=refused"))
        pause_us(1000);
    assert_int_equal(ask(0), -ENOENT);
    assert_false(log_has("event=cut"));
    conf_write(conf, "allow-users = 50001\n");
    kill(daemon_serving(&d), SIGHUP);
    while (!log_has("event=cut .*uid=50000 .*this user is not allowed"))
        pause_us(1000);
    assert_false(log_has("event=cut .*uid=50001"));
    assert_int_not_equal(ask(0), -ENOENT);
    assert_int_not_equal(ask(0), -ENOENT); /* and does not come back */
    assert_int_equal(ask(1), -ENOENT);
    assert_int_equal(stat_of(&d, "objects_owned"), 2); /* what it holds is its own */
    conf_write(conf, "allow-users = 50000, 50001\n");
    kill(daemon_serving(&d), SIGHUP);
    while (ask(0) != -ENOENT) /* until it is let in again */
        pause_us(1000);
    for (int i = 0; i < 2; i++) {
        kill(pids[i], SIGKILL);
        reap(pids[i]);
    }
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
}

int main(void)
{
    unsetenv("TMPDIR"); /* where another user can go */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_process_is_a_member_of_the_groups_that_it_has, setup, teardown),
        cmocka_unit_test_setup_teardown(numbers_that_nobody_can_have_are_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reload_cuts_off_who_lost_access_and_nobody_else, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
