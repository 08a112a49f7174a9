/* Goal: a daemon may be told to stop at any moment of its start, and its keeper at any moment: it ends, and leaves neither
 * a socket nor a process behind. Method: SIGTERM after a random number of turns of a loop, again and again, from the
 * moment when its program has begun. And what it does with the standard streams that it is started with. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
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
    (void)state;
    return temp_dir_remove(dir);
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

/* SIGTERM to every process whose command line names this test's socket. */
static void stop_what_serves(void)
{
    DIR *proc = opendir("/proc");
    struct dirent *entry;
    assert_non_null(proc);
    while ((entry = readdir(proc)) != NULL) {
        char path[300], line[400] = "";
        snprintf(path, sizeof path, "/proc/%s/cmdline", entry->d_name);
        int fd = isdigit((unsigned char)entry->d_name[0]) ? open(path, O_RDONLY) : -1;
        ssize_t n = fd < 0 ? -1 : read(fd, line, sizeof line - 1);
        if (fd >= 0)
            close(fd);
        if (n > 0 && memmem(line, (size_t)n, socket_file, strlen(socket_file)))
            kill(atoi(entry->d_name), SIGTERM);
    }
    closedir(proc);
}

static void stop_at_random(const char *option, int times)
{
    for (int i = 0; i < times; i++) {
        int alive;
        char byte;
        pid_t pid = start(option, &alive);
        while (!has_begun(pid))
            sched_yield();
        for (volatile uint64_t turns = rnd(&seed) % (i % 2 ? 100000 : 3000000); turns; turns--)
            ;
        kill(pid, SIGTERM);
        int status = reap(pid);
        if (strcmp(option, "--foreground") != 0 && status == 0)
            stop_what_serves(); /* its launcher was gone when the signal came */
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
    stop_at_random("--foreground", 30);
}

static void so_does_one_that_goes_to_the_background(void **state)
{
    (void)state;
    stop_at_random("--keeper", 20);
}

/* The daemon is killed and its keeper told to stop at about the same time: whoever is last removes the socket. */
static void a_keeper_that_is_stopped_while_its_daemon_dies_leaves_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 12; i++) {
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

/* In the background, by a command line of a shell. What it starts has the descriptor `alive`: its end is theirs. */
static void serves_in_the_background(const char *redirection)
{
    char said[4096], out[4096], lock[140], byte;
    int alive[2];
    assert_int_equal(pipe(alive), 0);
    fcntl(alive[0], F_SETFD, FD_CLOEXEC);
    int status = run(said, sizeof said, "( %s/arenad --socket %s --max 16M %s )", programs_dir(), socket_file, redirection);
    close(alive[1]);
    int served = run(out, sizeof out, "%s/arenactl --socket %s check", programs_dir(), socket_file);
    stop_what_serves();
    assert_int_equal(read(alive[0], &byte, 1), 0);
    close(alive[0]);
    snprintf(lock, sizeof lock, "%s.lock", socket_file);
    int fd = open(lock, O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0); /* a process that ends closes one after the other */
    close(fd);
    if (status != 0)
        fail_msg("status %d: %s", status, said);
    if (served != 0)
        fail_msg("it does not serve: %s", out);
}

static void without_standard_streams_it_serves_all_the_same(void **state)
{
    (void)state;
    serves_in_the_background("<&- >&- 2>&-");
    serves_in_the_background("<&- >&- 2>&- --keeper=no");
    serves_in_the_background("<&- 2>/dev/null");
}

/* x=$(arenad ...) in a script: run() reads to the end of the output, which comes when nobody has it open. */
static void in_the_background_nobody_keeps_the_output_of_who_started_it(void **state)
{
    (void)state;
    serves_in_the_background("--keeper=no");
    serves_in_the_background("--keeper");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_that_is_stopped_while_it_starts_leaves_nothing),
        cmocka_unit_test(so_does_one_that_goes_to_the_background),
        cmocka_unit_test(a_keeper_that_is_stopped_while_its_daemon_dies_leaves_nothing),
        cmocka_unit_test(without_standard_streams_it_serves_all_the_same),
        cmocka_unit_test(in_the_background_nobody_keeps_the_output_of_who_started_it),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
