/* Goal: nobody gets more than the config allows; who is refused is told which limit it was; SIGHUP changes limits and
 * keeps the old ones when the file is wrong. Method: a config file, clients that ask for more, arena_reason(). */
#include <errno.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

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

static uint64_t limit_of(const char *name) { return figure_of(&d, "limits", name); }

static void limit_await(const char *name, uint64_t value)
{
    while (limit_of(name) != value)
        ;
}

static void says(const char *what)
{
    if (!strstr(arena_reason(), what))
        fail_msg("should say %s, says: %s", what, arena_reason());
}

/* Allocates until it is refused: bytes that it got. */
static uint64_t fill(arena_t *a, size_t size, int error)
{
    uint64_t got = 0;
    errno = 0;
    while (arena_alloc(a, size))
        got += size;
    assert_int_equal(errno, error);
    return got;
}

static void bytes_and_spans_of_a_client_and_of_a_user(void **state)
{
    (void)state;
    conf_write(conf, "limit-client-bytes = 4M\nlimit-user-bytes = 6M\n");
    daemon_start(&d, "64M", "--config", conf, NULL);
    arena_t *a = open_heap(&d);
    assert_string_equal(arena_reason(), "");
    uint64_t got = fill(a, 1000, EDQUOT);
    says("limit-client-bytes is reached");
    says("of 4194304 in use");
    assert_in_range(got, 3 << 20, 4 << 20);
    fill(a, 100000, EDQUOT);
    says("limit-client-bytes");
    assert_int_equal(stat_of(&d, "clients"), 1);
    pid_t pid = fork(); /* another client of the same user: 2 MiB are left to it */
    if (pid == 0) {
        arena_t *b;
        if (arena_open(&b, d.socket, NULL) != 0)
            _exit(1);
        uint64_t had = 0;
        while (arena_alloc(b, 1000))
            had += 1000;
        _exit(errno != EDQUOT ? 2 : !strstr(arena_reason(), "limit-user-bytes") ? 3 : had < 1 << 20 || had > 2 << 20 ? 4 : 0);
    }
    assert_int_equal(reap(pid), 0);
    conf_write(conf, "limit-client-bytes = 16M\nlimit-client-spans = 600\n"); /* the user's limit is the default again: none */
    kill(d.pid, SIGHUP);
    limit_await("client_bytes", 16 << 20);
    assert_int_equal(limit_of("uid_bytes"), 0);
    fill(a, 1000, EDQUOT);
    says("limit-client-spans");
    conf_write(conf, "limit-client-bytes = lots\nlimit-client-spans = 7\n");
    kill(d.pid, SIGHUP);
    conf_write(conf, "limit-client-spans = 600\nlimit-user-spans = 601\n"); /* read after the wrong one, or in its place */
    while (limit_of("uid_spans") != 601) {
        assert_int_not_equal(limit_of("client_spans"), 7);
        kill(d.pid, SIGHUP);
    }
    assert_int_equal(limit_of("client_bytes"), 0);
    arena_close(a);
    stat_await(&d, "spans", 0);
    a = open_heap(&d); /* what was charged is not any more */
    assert_true(fill(a, 1000, EDQUOT) > 4 << 20);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
}

static void a_wrong_file_changes_nothing(void **state)
{
    (void)state;
    char out[4096];
    conf_write(conf, "limit-client-bytes = 4M\n");
    daemon_start(&d, "16M", "--config", conf, NULL);
    conf_write(conf, "limit-user-roots = 5\nlimit-client-bytes = lots\n");
    kill(d.pid, SIGHUP);
    while (run(out, sizeof out, "grep -c 'result=refused' %s", d.log) != 0)
        ;
    assert_int_equal(limit_of("client_bytes"), 4 << 20);
    assert_int_equal(limit_of("uid_roots"), 65536);
}

static void roots_clients_and_transactions(void **state)
{
    (void)state;
    char name[32];
    arena_t *a, *b, *again;
    conf_write(conf, "limit-user-roots = 10\nlimit-user-clients = 3\nlimit-clients = 4\n");
    daemon_start(&d, "16M", "--config", conf, NULL);
    a = open_heap(&d);
    arena_ref_t ref = arena_ref(a, arena_alloc_flags(a, 10, ARENA_SHARED));
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "r%d", i);
        assert_int_equal(arena_root_set(a, name, ref), 0);
    }
    assert_int_equal(arena_root_set(a, "one more", ref), -EDQUOT);
    says("limit-user-roots is reached: 10 of 10 in use");
    assert_int_equal(arena_tx_begin(a), 0);
    assert_int_equal(arena_tx_commit(a, "one more", 0, ref), -EDQUOT);
    says("limit-user-roots");
    assert_int_equal(arena_tx_abort(a), 0);
    assert_int_equal(arena_root_set(a, "r3", ref), 0); /* a change is no new one */
    assert_int_equal(arena_root_set(a, "r4", 0), 0);
    assert_int_equal(arena_root_set(a, "one more", ref), 0);
    assert_int_equal(arena_open(&again, d.socket, NULL), 0); /* the same process: not a second client */
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.flags = ARENA_READ_ONLY;
    assert_int_equal(arena_open(&b, d.socket, &options), 0);
    pid_t pid = fork();
    if (pid == 0) { /* the third, and a fourth of this user */
        arena_t *c, *r;
        if (arena_open(&c, d.socket, NULL) != 0)
            _exit(1);
        if (arena_open(&r, d.socket, &options) != -EDQUOT)
            _exit(2);
        _exit(strstr(arena_reason(), "limit-user-clients is reached: 3 of 3") ? 0 : 3);
    }
    assert_int_equal(reap(pid), 0);
    arena_close(b);
    arena_close(again);
    arena_close(a);
}

static void connections_that_say_nothing_are_counted_too(void **state)
{
    (void)state;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    enum { MOST = 3 + 32 + 8 };
    int fds[MOST], count = 0, rc;
    arena_t *a;
    conf_write(conf, "limit-user-clients = 3\nhello-timeout = 100000000\n");
    daemon_start(&d, "16M", "--config", conf, NULL);
    strncpy(address.sun_path, d.socket, sizeof address.sun_path - 1);
    while ((rc = arena_open(&a, d.socket, NULL)) == 0) {
        arena_close(a);
        assert_int_not_equal(count, MOST); /* silent connections of a user that may have 3 clients, and one more is let in */
        fds[count] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fds[count++], (struct sockaddr *)&address, sizeof address), 0);
    }
    assert_int_equal(rc, -EDQUOT);
    says("limit-user-clients is reached");
    assert_true(count >= 3);
    while (count > 0)
        close(fds[--count]);
    while (arena_open(&a, d.socket, NULL) == -EDQUOT) /* until it has seen that they are gone */
        ;
    arena_close(a);
}

static int names_itself(void *argument)
{
    (void)argument;
    prctl(PR_SET_NAME, "a \"b\\c\" x=1");
    return arena_close(open_heap(&d));
}

static void a_command_s_name_does_not_end_its_quotes_in_the_log(void **state)
{
    char out[256];
    (void)state;
    daemon_start(&d, "16M", NULL);
    assert_int_equal(reap(spawn(names_itself, NULL)), 0);
    stat_await(&d, "clients", 0);
    assert_int_equal(run(out, sizeof out, "grep -cF 'command=\"a \\\"b\\\\c\\\" x=1\"' %s", d.log), 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(bytes_and_spans_of_a_client_and_of_a_user),
        TEST(a_wrong_file_changes_nothing),
        TEST(roots_clients_and_transactions),
        TEST(connections_that_say_nothing_are_counted_too),
        TEST(a_command_s_name_does_not_end_its_quotes_in_the_log),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
