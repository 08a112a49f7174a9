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
#include <sys/stat.h>
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
 * descriptor that is returned is at its end when arenad in the foreground and all that it started are gone. */
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

/* Waits for the end of whoever holds the lock of the socket; the daemon in the background keeps nothing else that it was
 * started with. */
static void await_end(void)
{
    char lock[140];
    snprintf(lock, sizeof lock, "%s.lock", socket_file);
    int fd = open(lock, O_RDWR | O_CLOEXEC);
    if (fd < 0) {
        assert_int_equal(errno, ENOENT); /* it has not come so far */
        return;
    }
    assert_int_equal(flock(fd, LOCK_EX), 0); /* a process that ends closes one descriptor after the other */
    close(fd);
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
        await_end();
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

/* In the background, by a command line of a shell. */
static void serves_in_the_background(const char *redirection)
{
    char said[4096], out[4096], byte;
    int alive[2];
    assert_int_equal(pipe(alive), 0);
    fcntl(alive[0], F_SETFD, FD_CLOEXEC);
    int status = run(said, sizeof said, "( %s/arenad --socket %s --max 16M %s )", programs_dir(), socket_file, redirection);
    close(alive[1]);
    int served = run(out, sizeof out, "%s/arenactl --socket %s check", programs_dir(), socket_file);
    assert_int_equal(read(alive[0], &byte, 1), 0); /* it serves, and has closed what it inherited */
    close(alive[0]);
    stop_what_serves();
    await_end();
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

/* ---- by hand, and as pid 1 ---------------------------------------------------------------------------------------------------- */

static char out[16384];

/* Also one that nobody has waited for yet. */
static bool has_ended(int pid)
{
    return kill(pid, 0) < 0 || run(out, sizeof out, "grep -q ') Z ' /proc/%d/stat", pid) == 0;
}

static void in_the_background_it_leaves_the_directory_and_what_it_inherited(void **state)
{
    char log[140], pid_file[140];
    (void)state;
    snprintf(log, sizeof log, "%s/log", dir);
    snprintf(pid_file, sizeof pid_file, "%s/pid", dir);
    for (int keeper = 0; keeper < 2; keeper++) {
        /* relative paths are those of the directory that it was started in */
        assert_int_equal(run(out, sizeof out, "A=$(realpath %s/arenad); cd %s && exec 7>held 9>held && $A --socket s --max 16M "
                             "--pid-file pid --log-file log --keeper=%s", programs_dir(), dir, keeper ? "yes" : "no"), 0);
        assert_int_equal(run(out, sizeof out, "cat %s", pid_file), 0);
        int pid = atoi(out);
        assert_true(pid > 1 && kill(pid, 0) == 0);
        assert_int_equal(run(out, sizeof out, "readlink /proc/%d/cwd", pid), 0);
        assert_string_equal(out, "/\n");
        assert_int_equal(run(out, sizeof out, "ls -l /proc/%d/fd | grep -c held", pid), 1);
        assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s stat", programs_dir(), socket_file), 0);
        char says[64];
        snprintf(says, sizeof says, keeper ? "kept by %d\n" : " %d\n", pid);
        assert_non_null(strstr(out, says));
        assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s stop", programs_dir(), socket_file), 0);
        assert_string_equal(out, "");
        assert_true(has_ended(pid));
        assert_int_equal(access(socket_file, F_OK), -1);
        assert_int_equal(access(pid_file, F_OK), -1);
        assert_int_equal(line_count(log, "event=serve "), 1);
        assert_int_equal(line_count(log, "event=stop "), 1);
        assert_int_equal(line_count(log, "event=keeper result=ends"), keeper);
        unlink(log);
    }
}

static void a_pid_file_replaces_no_link_and_no_device(void **state)
{
    char victim[140], pid_file[140];
    struct stat st;
    (void)state;
    snprintf(victim, sizeof victim, "%s/victim", dir);
    snprintf(pid_file, sizeof pid_file, "%s/pid", dir);
    assert_int_equal(symlink(victim, pid_file), 0);
    assert_int_equal(run(out, sizeof out, "%s/arenad --socket %s --max 16M --pid-file %s", programs_dir(), socket_file, pid_file), 1);
    assert_non_null(strstr(out, "cannot write the pid file"));
    assert_int_equal(access(victim, F_OK), -1);
    await_end();
    assert_int_equal(access(socket_file, F_OK), -1);
    unlink(pid_file);
    assert_int_equal(run(out, sizeof out, "%s/arenad --socket %s --max 16M --pid-file /dev/null", programs_dir(), socket_file), 1);
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    await_end();
    /* one that another has put there since is left alone */
    assert_int_equal(run(out, sizeof out, "%s/arenad --socket %s --max 16M --pid-file %s", programs_dir(), socket_file, pid_file), 0);
    assert_int_equal(run(out, sizeof out, "echo 1 >%s.new && mv %s.new %s && %s/arenactl --socket %s stop", pid_file, pid_file, pid_file,
                         programs_dir(), socket_file), 0);
    assert_int_equal(access(pid_file, F_OK), 0);
    unlink(pid_file);
}

static void without_its_keeper_it_goes_on_says_so_and_ends_in_good_order(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "16M", NULL);
    pid_t serving = daemon_serving(&d);
    arena_t *a = open_heap(&d);
    kill(d.pid, SIGKILL);
    reap(d.pid);
    d.pid = 0;
    while (line_count(d.log, "event=keeper .*result=gone") == 0)
        pause_us(5000);
    assert_non_null(arena_alloc(a, 100000));
    assert_int_equal(stat_of(&d, "keeper_pid"), 0);
    assert_int_equal(stat_of(&d, "pid"), serving);
    arena_close(a);
    assert_int_equal(arenactl(&d, out, sizeof out, "stop"), 0);
    assert_true(has_ended(serving));
    assert_int_equal(access(d.socket, F_OK), -1);
    daemon_clean(&d);
}

/* unshare(1) makes it the first of a pid namespace; nsenter(1) brings a process whose child is left to it. */
static void as_pid_1_it_waits_for_whoever_is_left_to_it(void **state)
{
    (void)state;
    if (run(out, sizeof out, "unshare -pf --mount-proc true") != 0) {
        print_message("skipped: no pid namespace can be made: %s", out);
        skip();
    }
    static const char script[] = /* arenad, socket, arenactl, keeper */
        "unshare -pf --mount-proc $1 --foreground --socket $2 --max 16M --keeper=$4 2>/dev/null & u=$!\n"
        "until $3 --socket $2 stat >/dev/null 2>&1; do sleep .05; kill -0 $u || exit 9; done\n"
        "read -r k _ </proc/$u/task/$u/children\n"
        "for i in 1 2 3 4 5; do nsenter -t $k -p -m sh -c 'sh -c \"sleep .1 & exit\"'; done\n"
        "left() { for p in $(cat /proc/$k/task/$k/children); do grep -sE ' .(sleep|sh). ' /proc/$p/stat; done; }\n"
        "while [ -n \"$(left)\" ]; do sleep .05; done\n"
        "kill -TERM $k; wait $u; echo ended $?\n";
    char path[140];
    snprintf(path, sizeof path, "%s/script", dir);
    FILE *f = fopen(path, "w");
    fputs(script, f);
    fclose(f);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(run(out, sizeof out, "bash %s %s/arenad %s %s/arenactl %s", path, programs_dir(), socket_file, programs_dir(),
                             i ? "yes" : "no"), 0);
        if (!strstr(out, "ended 0"))
            fail_msg("%s", out);
        assert_int_equal(access(socket_file, F_OK), -1);
    }
    unlink(path);
}

/* Places by name alone meet by chance; two daemons by hand, with sockets side by side, have two. */
static void each_daemon_by_hand_has_a_base_of_its_own(void **state)
{
    enum { DAEMONS = 12 };
    static const char *const sizes[] = {"64M", "32G", "300G"};
    (void)state;
    for (int size = 0; size < 3; size++) {
        unsigned long long bases[DAEMONS];
        for (int i = 0; i < DAEMONS; i++) { /* the first two have no name */
            char name[32] = "";
            if (i > 1)
                snprintf(name, sizeof name, "--name heap%d", i);
            assert_int_equal(run(out, sizeof out, "%s/arenad --socket %s/s%d --max %s --log-file %s/log%d %s", programs_dir(), dir, i,
                                 sizes[size], dir, i, name), 0);
            assert_int_equal(run(out, sizeof out, "sed -n 's/.*event=serve .*base=\\([0-9a-fx]*\\).*/\\1/p' %s/log%d", dir, i), 0);
            bases[i] = strtoull(out, NULL, 16);
            assert_true(bases[i] != 0);
        }
        assert_true(bases[0] == (size < 2 ? 0x550000000000ULL : bases[0]));
        unsigned long long apart = size == 0 ? 64ULL << 20 : size == 1 ? 32ULL << 30 : 300ULL << 30;
        for (int i = 0; i < DAEMONS; i++)
            for (int j = 0; j < i && (size != 1 || i < 10); j++) /* of 32G there are ten places, which sanitizers leave free */
                if (bases[i] < bases[j] + apart && bases[j] < bases[i] + apart)
                    fail_msg("%s: daemons %d and %d at %llx and %llx", sizes[size], i, j, bases[i], bases[j]);
        for (int i = 0; i < DAEMONS; i++)
            assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s/s%d stop; rm %s/log%d", programs_dir(), dir, i, dir, i), 0);
    }
}

static void a_refused_reload_is_told_to_whoever_asked_for_it(void **state)
{
    struct daemon d;
    char conf[140];
    (void)state;
    snprintf(conf, sizeof conf, "%s/conf", dir);
    assert_int_equal(run(out, sizeof out, "printf 'limit-clients = 5\n' >%s", conf), 0);
    daemon_start(&d, "16M", "--config", conf, NULL);
    assert_int_equal(figure_of(&d, "limits", "clients"), 5);
    assert_int_equal(run(out, sizeof out, "printf '\nlimit-clients = 9\n' >%s", conf), 0);
    assert_int_equal(arenactl(&d, out, sizeof out, "reload"), 0);
    assert_string_equal(out, "");
    assert_int_equal(figure_of(&d, "limits", "clients"), 9);
    assert_int_equal(run(out, sizeof out, "printf 'limit-clients = 7\nreserve = 17M\n' >%s", conf), 0);
    assert_int_equal(arenactl(&d, out, sizeof out, "reload"), 1);
    assert_non_null(strstr(out, "conf:2: reserve = 17825792 is more than max: 16777216"));
    assert_int_equal(figure_of(&d, "limits", "clients"), 9);
    assert_int_equal(line_count(d.log, "event=reload result=refused error=.*conf:2: reserve"), 1);
    assert_int_equal(run(out, sizeof out, "printf 'limit-clients = 7\n' >%s", conf), 0);
    assert_int_equal(arenactl(&d, out, sizeof out, "reload"), 0);
    assert_int_equal(figure_of(&d, "limits", "clients"), 7);
    daemon_stop(&d);
    daemon_clean(&d);
    unlink(conf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_daemon_that_is_stopped_while_it_starts_leaves_nothing),
        cmocka_unit_test(so_does_one_that_goes_to_the_background),
        cmocka_unit_test(a_keeper_that_is_stopped_while_its_daemon_dies_leaves_nothing),
        cmocka_unit_test(without_standard_streams_it_serves_all_the_same),
        cmocka_unit_test(in_the_background_nobody_keeps_the_output_of_who_started_it),
        cmocka_unit_test(in_the_background_it_leaves_the_directory_and_what_it_inherited),
        cmocka_unit_test(a_pid_file_replaces_no_link_and_no_device),
        cmocka_unit_test(without_its_keeper_it_goes_on_says_so_and_ends_in_good_order),
        cmocka_unit_test(as_pid_1_it_waits_for_whoever_is_left_to_it),
        cmocka_unit_test(each_daemon_by_hand_has_a_base_of_its_own),
        cmocka_unit_test(a_refused_reload_is_told_to_whoever_asked_for_it),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
