/* Goal: pidfds that one daemon keeps are its successors', those of the dead do not pile up. Method: processes that take turns
 * at one queue, as daemons of one keeper do. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/os/kept.h"

enum { MANY = 3000 };

static pid_t sleeper(void)
{
    pid_t parent = getpid(), pid = fork();
    if (pid == 0)
        while (getppid() == parent)
            sleep(1);
    return pid;
}

static int pidfd_of(pid_t pid) { return (int)syscall(SYS_pidfd_open, pid, 0); }

/* In a process of its own, as each daemon is. */
static int daemon_does(int (*fn)(const pid_t *), const pid_t *pids)
{
    int status;
    pid_t pid = fork();
    if (pid == 0)
        _exit(fn(pids));
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Each by a number of its own, in place of an inode. */
static int adds_many(const pid_t *pids)
{
    int fds[2] = {pidfd_of(pids[0]), pidfd_of(pids[1])};
    for (uint64_t i = 1; i <= MANY; i++)
        kept_add(i, fds[i % 2]);
    return 0;
}

static int is_dead(int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return poll(&p, 1, 0) == 1;
}

static int finds_all(const pid_t *pids)
{
    (void)pids;
    for (uint64_t i = 1; i <= MANY; i++) {
        int fd = kept_take(i);
        if (fd < 0 || is_dead(fd))
            return 1;
        kept_add(i, fd); /* for the next one */
        close(fd);
        if (kept_take(i) >= 0)
            return 2;
    }
    if (kept_take(MANY + 1) >= 0 || kept_take(0) >= 0)
        return 3;
    kept_drop_rest();
    return 0;
}

/* What was kept of pids[1], who is dead, is there as a dead one, or is not there. */
static int finds_the_living(const pid_t *pids)
{
    (void)pids;
    for (uint64_t i = 1; i <= MANY; i++) {
        int fd = kept_take(i);
        if (i % 2 == 0 && (fd < 0 || is_dead(fd)))
            return 1;
        if (i % 2 == 1 && fd >= 0 && !is_dead(fd))
            return 2;
    }
    return 0;
}

static void successors_have_what_was_kept(void **state)
{
    pid_t pids[2];
    int status;
    struct rlimit limit;
    (void)state;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < 2 * MANY + 100)
        skip();
    assert_false(kept_is_on());
    kept_add(1, 0); /* nothing is kept where no keeper is */
    assert_int_equal(kept_open(), 0);
    assert_true(kept_is_on());
    for (int i = 0; i < 2; i++)
        assert_true((pids[i] = sleeper()) > 0);
    assert_int_equal(daemon_does(adds_many, pids), 0);
    assert_int_equal(daemon_does(finds_all, pids), 0);
    assert_int_equal(daemon_does(finds_all, pids), 0);
    kill(pids[1], SIGKILL);
    waitpid(pids[1], &status, 0);
    assert_int_equal(daemon_does(finds_the_living, pids), 0);
    kill(pids[0], SIGKILL);
    waitpid(pids[0], &status, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(successors_have_what_was_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
