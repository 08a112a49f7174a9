/* Goal: the library touches no descriptor that is not its own, whatever the program has closed, and put in its place; one that
 * it lost is a lost connection. And none of its own stands where the program prints.
 * Method: processes close what they do not know, fill the numbers with files and sockets of their own, and go on with the
 * heap. Afterwards each of these is what it was: the same inode, the same bytes, and nothing was sent to it. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;

static void close_all(void)
{
    for (int fd = 3; fd < 1024; fd++)
        close(fd);
}

/* ---- the program's own ------------------------------------------------------------------------------------------------------ */

enum { OWN_MAX = 1024 };
static struct own {
    int fd;
    bool is_socket;
    ino_t inode;
} own[OWN_MAX];
static int own_count;
static const char bytes[] = "of the program, and of nobody else";

static void own_add(int fd, bool is_socket)
{
    struct stat st;
    assert_true(fd > 2 && fstat(fd, &st) == 0);
    own[own_count++] = (struct own){fd, is_socket, st.st_ino};
}

/* A file, and one end of a socket of the library's own type, in turn, at every number up to the last one. */
static void own_fill(int last)
{
    char path[160];
    int fd = 0;
    while (fd < last) {
        snprintf(path, sizeof path, "%s/own.%d.%d", d.dir, (int)getpid(), own_count);
        fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(write(fd, bytes, sizeof bytes), sizeof bytes);
        own_add(fd, false);
        int pair[2];
        if (fd >= last || socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
            continue;
        own_add(pair[0], true);
        own_add(pair[1], true);
        fd = pair[1];
    }
}

static void own_is_untouched(void)
{
    char found[2 * sizeof bytes];
    struct stat st;
    for (int i = 0; i < own_count; i++) {
        if (fstat(own[i].fd, &st) < 0)
            fail_msg("descriptor %d of the program was closed", own[i].fd);
        if (st.st_ino != own[i].inode)
            fail_msg("descriptor %d of the program is something else", own[i].fd);
        if (own[i].is_socket) {
            assert_int_equal(recv(own[i].fd, found, sizeof found, MSG_DONTWAIT), -1);
            assert_int_equal(errno, EAGAIN); /* nothing was sent to it, nor was it hung up */
        } else {
            assert_int_equal(pread(own[i].fd, found, sizeof found, 0), sizeof bytes);
            assert_memory_equal(found, bytes, sizeof bytes);
        }
    }
}

/* ---- the heap is used ------------------------------------------------------------------------------------------------------------ */

static void use(void)
{
    char *p = arena_alloc(a, 64), *large = arena_alloc(a, 300000);
    assert_non_null(p);
    assert_non_null(large);
    memset(large, 'x', 300000);
    assert_int_equal(arena_tx_begin(a), 0);
    char *q = arena_alloc(a, 5000);
    assert_non_null(q);
    assert_int_equal(arena_tx_commit(a, "d", 0, arena_ref(a, q)), 0);
    assert_int_equal(arena_root_set(a, "d", 0), 0);
    arena_free(a, q);
    arena_free(a, p);
    arena_free(a, large);
    arena_trim(a);
    struct arena_stats stats = {.size = sizeof stats};
    assert_int_equal(arena_stats(a, &stats), 0);
    int rc = arena_gc(a, ARENA_GC_DRY_RUN | ARENA_GC_SAFEPOINT, NULL);
    assert_true(rc == 0 || rc == -EBUSY); /* the latter where its parent runs */
}

static void open_with(int timeout_ms)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = timeout_ms;
    assert_int_equal(arena_open(&a, d.socket, &options), 0);
}

/* The library's connection, found as a debugger would. */
static int connection(void)
{
    for (int fd = 0; fd < 1024; fd++) {
        struct sockaddr_un peer = {0};
        socklen_t length = sizeof peer - 1;
        if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && strcmp(peer.sun_path, d.socket) == 0)
            return fd;
    }
    return -1;
}

/* ---- tests, each in a process of its own ---------------------------------------------------------------------------------------------- */

static int closes_all_and_goes_on(void *unused)
{
    (void)unused;
    open_with(-1);
    use();
    for (int round = 0; round < 3; round++) {
        close_all();
        own_count = 0;
        own_fill(round == 2 ? 1000 : 40); /* in the end at the connection's own number too */
        use();
        own_is_untouched();
    }
    close_all();
    own_count = 0;
    own_fill(1000);
    assert_int_equal(arena_close(a), 0);
    own_is_untouched();
    return 0;
}

static void files_in_place_of_the_connection_stay_the_programs(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(closes_all_and_goes_on, NULL)), 0);
    stat_await(&d, "clients", 0);
    assert_int_equal(check_of(&d), 0);
}

static int puts_a_socket_over_it(void *unused)
{
    (void)unused;
    open_with(-1);
    use();
    for (int round = 0; round < 20; round++) {
        int fd = connection(), pair[2];
        assert_true(fd > 2);
        assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair), 0);
        assert_int_equal(dup2(pair[0], fd), fd);
        own_count = 0;
        own_add(pair[0], true);
        own_add(pair[1], true);
        own_add(fd, true);
        if (round % 3 == 0)
            use();
        else if (round % 3 == 1)
            assert_int_equal(arena_safepoint(a, ARENA_RUNS), 0);
        else {
            arena_ref_t ref;
            assert_int_equal(arena_root_wait(a, "nobody's", 0, 1200, &ref), -ETIMEDOUT); /* with a look at the daemon */
            assert_int_equal(arena_safepoint(a, ARENA_RUNS), 0);
        }
        own_is_untouched();
        for (int i = 0; i < own_count; i++)
            close(own[i].fd);
    }
    return arena_close(a);
}

static void a_socket_at_its_number_gets_nothing(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(puts_a_socket_over_it, NULL)), 0);
    assert_int_equal(check_of(&d), 0);
}

static int child_of(bool only_closes)
{
    close_all();
    own_fill(1000);
    if (only_closes)
        assert_int_equal(arena_close(a), 0);
    else {
        for (int i = 0; i < own_count; i++) /* room for a connection */
            if (own[i].fd > 500)
                close(own[i].fd);
        while (own[own_count - 1].fd > 500)
            own_count--;
        use();
    }
    own_is_untouched();
    return 0;
}

static int forks_twice(void *unused)
{
    (void)unused;
    open_with(-1);
    use();
    for (int only_closes = 0; only_closes < 2; only_closes++) {
        pid_t pid = fork();
        if (pid == 0)
            _exit(child_of(only_closes));
        assert_int_equal(reap(pid), 0);
        use();
    }
    return arena_close(a);
}

static void a_forked_childs_files_stay_its_own(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(forks_twice, NULL)), 0);
    stat_await(&d, "clients", 0);
    assert_int_equal(check_of(&d), 0);
}

/* Nor does a child that closes hang up its parent's connection. */
static int parent_goes_on(void *unused)
{
    (void)unused;
    open_with(-1);
    int fd = connection();
    pid_t pid = fork();
    if (pid == 0) {
        arena_close(a);
        _exit(0);
    }
    assert_int_equal(reap(pid), 0);
    use();
    assert_int_equal(connection(), fd);
    return arena_close(a);
}

static void a_child_that_closes_leaves_its_parents_connection(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(parent_goes_on, NULL)), 0);
}

static int prints_to_nobody(void *argument)
{
    unsigned closed = *(unsigned *)argument;
    struct stat st;
    for (int fd = 0; fd < 3; fd++)
        if (closed & 1u << fd)
            close(fd);
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = -1;
    if (arena_open(&a, d.socket, &options) != 0)
        return 2;
    for (int round = 0; round < 2; round++) {
        for (int fd = 0; fd < 3; fd++)
            if ((closed & 1u << fd) && fstat(fd, &st) == 0)
                return 3;
        if (closed & 2) {
            printf("to nobody\n");
            fflush(stdout);
        }
        if (!arena_alloc(a, 300000) || arena_root_set(a, "d", 0) != -ENOENT)
            return 4;
        close_all(); /* and the same of a connection that is made anew */
    }
    return arena_close(a);
}

static void none_of_its_own_stands_on_the_first_three(void **state)
{
    (void)state;
    for (unsigned closed = 1; closed < 8; closed++)
        assert_int_equal(reap(spawn(prints_to_nobody, &closed)), 0);
    assert_int_equal(check_of(&d), 0);
}

static int has_few(void *unused)
{
    struct rlimit few = {24, 24};
    (void)unused;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
    open_with(-1);
    assert_true(connection() > 2);
    use();
    return arena_close(a);
}

static void a_process_with_few_descriptors_is_served(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(has_few, NULL)), 0);
}

static int loses_it_while_nobody_answers(void *unused)
{
    (void)unused;
    open_with(200);
    int rc;
    while ((rc = arena_root_set(a, "d", 0)) == -ENOTCONN)
        ;
    assert_int_equal(rc, -ENOENT);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    close_all();
    own_fill(40);
    assert_int_equal(arena_root_set(a, "d", 0), -ENOTCONN);
    assert_null(arena_alloc(a, 300000));
    assert_int_equal(errno, ENOTCONN);
    own_is_untouched();
    kill(serving, SIGCONT);
    while ((rc = arena_root_set(a, "d", 0)) == -ENOTCONN)
        ;
    assert_int_equal(rc, -ENOENT);
    own_is_untouched();
    return 0;
}

static void a_lost_one_is_ENOTCONN_while_nobody_answers(void **state)
{
    (void)state;
    pid_t serving = daemon_serving(&d);
    int status = reap(spawn(loses_it_while_nobody_answers, NULL));
    kill(serving, SIGCONT);
    assert_int_equal(status, 0);
    assert_int_equal(check_of(&d), 0);
}

static int setup(void **state) { return daemon_setup(state, &d, "256M", NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(files_in_place_of_the_connection_stay_the_programs),
        cmocka_unit_test(a_socket_at_its_number_gets_nothing),
        cmocka_unit_test(a_forked_childs_files_stay_its_own),
        cmocka_unit_test(a_child_that_closes_leaves_its_parents_connection),
        cmocka_unit_test(none_of_its_own_stands_on_the_first_three),
        cmocka_unit_test(a_process_with_few_descriptors_is_served),
        cmocka_unit_test(a_lost_one_is_ENOTCONN_while_nobody_answers),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
