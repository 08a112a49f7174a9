/* Goal: a daemon may be told to stop at any moment of its start, and its keeper at any moment: it ends, and leaves neither
 * a socket nor a process behind. Method: SIGTERM after a random number of turns of a loop, again and again, from the
 * moment when its program has begun. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static char dir[96], socket_file[120];
static uint64_t seed;

static int setup(void **state)
{
    (void)state;
    temp_dir(dir, sizeof dir, "start");
    snprintf(socket_file, sizeof socket_file, "%s/s", dir);
    seed = seed_get();
    return 0;
}

static int teardown(void **state)
{
    char out[64];
    (void)state;
    return run(out, sizeof out, "rm -rf '%s'", dir);
}

/* Runs arenad; what it starts is this process's to wait for (a daemon in the background has no parent otherwise). The
 * descriptor that is returned is at its end when arenad and all that it started are gone. */
static pid_t start(const char *option, int *ret_alive)
{
    int alive[2];
    char path[256];
    assert_int_equal(pipe(alive), 0);
    fcntl(alive[0], F_SETFD, FD_CLOEXEC);
    snprintf(path, sizeof path, "%s/arenad", programs_dir());
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        int null = open("/dev/null", O_RDWR);
        dup2(null, 2);
        prctl(PR_SET_PDEATHSIG, SIGTERM);
        execl(path, "arenad", "--socket", socket_file, "--max", "16M", option, (char *)NULL);
        _exit(127);
    }
    close(alive[1]);
    *ret_alive = alive[0];
    return pid;
}

/* Whether the process runs another program than this one. */
static bool has_begun(pid_t pid)
{
    char path[64], mine[256], its[256];
    snprintf(path, sizeof path, "/proc/%d/exe", (int)pid);
    ssize_t n = readlink("/proc/self/exe", mine, sizeof mine), m = readlink(path, its, sizeof its);
    return m < 0 || n != m || memcmp(mine, its, (size_t)n) != 0;
}

static void stop_at_random(const char *option, int times)
{
    for (int i = 0; i < times; i++) {
        int alive;
        char byte;
        pid_t pid = start(option, &alive);
        while (!has_begun(pid))
            ;
        for (volatile uint64_t turns = rnd(&seed) % (i % 2 ? 100000 : 3000000); turns; turns--)
            ;
        kill(pid, SIGTERM);
        int status = reap(pid);
        if (strcmp(option, "--foreground") != 0 && status == 0) /* it had begun to serve, its launcher was gone: a fresh stop */
            assert_int_equal(run((char[64]){0}, 64, "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null | "
                                 "grep -q '^arenad --socket %s ' && kill ${p#/proc/}; done; true", socket_file), 0);
        /* before main()'s first line nothing is held, and nothing is there: 143; a launcher whose daemon was stopped: 1 */
        if (status != 0 && status != 128 + SIGTERM && status != 1)
            fail_msg("status %d of %s", status, option);
        assert_int_equal(read(alive, &byte, 1), 0);
        close(alive);
        assert_int_equal(access(socket_file, F_OK), -1);
        assert_int_equal(errno, ENOENT);
    }
}

static void a_daemon_that_is_stopped_while_it_starts_leaves_nothing(void **state)
{
    (void)state;
    stop_at_random("--foreground", 40);
}

static void so_does_one_that_goes_to_the_background(void **state)
{
    (void)state;
    stop_at_random("--keeper", 30);
}

/* The daemon is killed and its keeper told to stop at about the same time: whoever is last removes the socket. */
static void a_keeper_that_is_stopped_while_its_daemon_dies_leaves_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        struct daemon d;
        daemon_start(&d, "16M", NULL);
        pid_t serving = daemon_serving(&d);
        assert_int_not_equal(serving, d.pid);
        kill(serving, SIGKILL);
        for (volatile uint64_t turns = rnd(&seed) % (i % 2 ? 100000 : 3000000); turns; turns--)
            ;
        kill(d.pid, SIGTERM);
        int status = reap(d.pid);
        assert_in_range(status, 0, 1);
        assert_int_equal(access(d.socket, F_OK), -1);
        d.pid = 0;
        daemon_clean(&d);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_that_is_stopped_while_it_starts_leaves_nothing),
        cmocka_unit_test(so_does_one_that_goes_to_the_background),
        cmocka_unit_test(a_keeper_that_is_stopped_while_its_daemon_dies_leaves_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
