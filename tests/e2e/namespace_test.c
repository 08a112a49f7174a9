/* Goal: a daemon and its clients may each live in namespaces of their own; a death is known, a restart is survived, and what
 * cannot be told is not taken for dead. Method: daemon and clients enter namespaces, or are refused a system call, before
 * they begin; a client holds objects that bear its mark, is asked whether they still do, and is killed. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { OBJECTS = 100, BYTES = 200 };

static struct daemon d;

static int setup(void **state)
{
    daemon_prepare = NULL;
    return daemon_setup(state, &d, NULL, NULL);
}

static int teardown(void **state)
{
    daemon_prepare = NULL;
    return daemon_teardown(state);
}

/* ---- namespaces ---------------------------------------------------------------------------------------------------------------- */

static void write_text(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        _exit(90);
    close(fd);
}

static pid_t inner;

static void pass_on(int signum) { kill(inner, signum); }

/* Its parent waits for it, passes on what it is told, and ends as it does. */
static void become_first_process(void)
{
    inner = fork();
    if (inner == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return;
    }
    signal(SIGTERM, pass_on);
    signal(SIGHUP, pass_on);
    int status;
    while (waitpid(inner, &status, 0) < 0)
        if (errno != EINTR)
            _exit(91);
    _exit(WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status));
}

static void enter(int flags)
{
    char map[64];
    unsigned uid = geteuid(), gid = getegid();
    if (flags && unshare(flags) < 0)
        _exit(92);
    if (flags & CLONE_NEWUSER) {
        write_text("/proc/self/setgroups", "deny");
        snprintf(map, sizeof map, "0 %u 1", uid);
        write_text("/proc/self/uid_map", map);
        snprintf(map, sizeof map, "0 %u 1", gid);
        write_text("/proc/self/gid_map", map);
    }
    if (flags & CLONE_NEWPID)
        become_first_process();
    if (flags & CLONE_NEWNS) {
        if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
            _exit(93);
        if (access("/dev/shm", F_OK) == 0 && mount("none", "/dev/shm", "tmpfs", MS_RDONLY, "size=4k") < 0)
            _exit(94);
        if (flags & CLONE_NEWPID) /* else the numbers in /proc are another namespace's */
            (void)!mount("none", "/proc", "proc", 0, NULL);
    }
}

/* No: it is not allowed, or "/" is no mount point, as after a chroot, and what is mounted below would be seen outside. */
static bool may_enter(int flags)
{
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(flags) < 0)
            _exit(1);
        _exit(flags & CLONE_NEWNS && mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 ? 2 : 0);
    }
    int status = reap(pid);
    if (status)
        print_message("skipped: %s\n", status == 1 ? "the namespaces may not be made here" : "/ is no mount point here");
    return status == 0;
}

static int daemon_flags, client_flags;

static void daemon_enters(void) { enter(daemon_flags); }

/* ---- a client -------------------------------------------------------------------------------------------------------------------- */

struct client {
    pid_t pid;
    int ask[2], answer[2];
};

static void fill(unsigned char **p, arena_t *a, unsigned char mark)
{
    for (int i = 0; i < OBJECTS; i++)
        if ((p[i] = arena_alloc(a, BYTES)) != NULL)
            memset(p[i], mark, BYTES);
        else
            _exit(10);
}

static int holds(void *argument)
{
    struct client *c = argument;
    struct arena_options options = ARENA_OPTIONS_INIT;
    unsigned char *p[OBJECTS], mark = (unsigned char)getpid();
    arena_t *a;
    char byte = 'r';
    enter(client_flags);
    options.timeout_ms = 10000;
    if (arena_open(&a, d.socket, &options) != 0) {
        fprintf(stderr, "open: %s\n", arena_reason());
        return 11;
    }
    fill(p, a, mark);
    while (write(c->answer[1], &byte, 1) == 1 && read(c->ask[0], &byte, 1) == 1) {
        byte = 'y';
        for (int i = 0; i < OBJECTS; i++)
            for (int k = 0; k < BYTES; k++)
                byte = p[i][k] == mark ? byte : 'n'; /* somebody else has it */
        arena_free(a, arena_alloc(a, 100000)); /* that needs the daemon */
        if (!arena_alloc(a, 100000))
            byte = 'm';
    }
    return 0;
}

static char answer_of(struct client *c)
{
    char byte = 0;
    struct pollfd p = {.fd = c->answer[0], .events = POLLIN};
    while (poll(&p, 1, 100) == 0)
        if (waitpid(c->pid, NULL, WNOHANG) == c->pid)
            fail_msg("the client has ended");
    return read(c->answer[0], &byte, 1) == 1 ? byte : 0;
}

static void client_start(struct client *c)
{
    assert_int_equal(pipe2(c->ask, O_CLOEXEC), 0); /* no daemon inherits them */
    assert_int_equal(pipe2(c->answer, O_CLOEXEC), 0);
    c->pid = spawn(holds, c);
    assert_int_equal(answer_of(c), 'r');
}

static void client_goes_on(struct client *c)
{
    assert_int_equal(write(c->ask[1], "?", 1), 1);
    assert_int_equal(answer_of(c), 'y');
}

static void client_kill(struct client *c)
{
    kill(c->pid, SIGKILL);
    reap(c->pid);
    for (int i = 0; i < 2; i++) {
        close(c->ask[i]);
        close(c->answer[i]);
    }
}

/* ---- the daemon -------------------------------------------------------------------------------------------------------------------- */

static pid_t child_of(pid_t pid)
{
    struct daemon of = {.pid = pid};
    return daemon_serving(&of);
}

static pid_t keeper(void) { return daemon_flags & CLONE_NEWPID ? child_of(d.pid) : d.pid; }

/* Killed; the keeper starts another, when `between` has been done. */
static void daemon_restarts(void (*between)(void *), void *argument)
{
    pid_t of = keeper(), serving = child_of(of);
    uint64_t epoch = stat_of(&d, "epoch");
    assert_int_not_equal(serving, of);
    kill(of, SIGSTOP);
    kill(serving, SIGKILL);
    if (between)
        between(argument);
    kill(of, SIGCONT);
    stat_await(&d, "epoch", epoch + 1);
}

static void kill_client(void *argument) { client_kill(argument); }

static bool log_has(const char *text)
{
    char out[64];
    return run(out, sizeof out, "grep -c -e '%s' %s", text, d.log) == 0;
}

static unsigned log_count(const char *text)
{
    char out[64];
    run(out, sizeof out, "grep -c -e '%s' %s", text, d.log);
    return (unsigned)atoi(out);
}

/* ---- namespaces, tests --------------------------------------------------------------------------------------------------------------- */

static void lives_dies_and_comes_back(int of_daemon, int of_client)
{
    struct client c, other;
    daemon_flags = of_daemon;
    client_flags = of_client;
    daemon_prepare = daemon_enters;
    daemon_start(&d, "64M", NULL);
    client_start(&c);
    client_start(&other);
    assert_int_equal(stat_of(&d, "clients"), 2);
    client_kill(&other); /* while the daemon runs */
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", OBJECTS);
    daemon_restarts(NULL, NULL);
    assert_int_equal(stat_of(&d, "clients"), 1); /* it has said nothing yet, and is not dead */
    client_goes_on(&c);
    assert_int_equal(stat_of(&d, "clients"), 1);
    daemon_restarts(kill_client, &c); /* while none runs */
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
    assert_false(log_has("event=untold"));
    daemon_clean(&d);
    memset(&d, 0, sizeof d);
}

static void pid_namespaces_of_daemon_client_and_both(void **state)
{
    (void)state;
    if (!may_enter(CLONE_NEWPID | CLONE_NEWNS))
        skip();
    lives_dies_and_comes_back(0, CLONE_NEWPID | CLONE_NEWNS);
    lives_dies_and_comes_back(CLONE_NEWPID | CLONE_NEWNS, 0);
    lives_dies_and_comes_back(CLONE_NEWPID | CLONE_NEWNS, CLONE_NEWPID | CLONE_NEWNS); /* beside one another */
    lives_dies_and_comes_back(CLONE_NEWPID, 0); /* /proc has the numbers of another namespace */
}

static void mount_and_ipc_namespaces_where_dev_shm_is_of_no_use(void **state)
{
    enum { FLAGS = CLONE_NEWNS | CLONE_NEWIPC };
    (void)state;
    if (!may_enter(FLAGS))
        skip();
    lives_dies_and_comes_back(FLAGS, 0);
    lives_dies_and_comes_back(0, FLAGS);
    lives_dies_and_comes_back(FLAGS, FLAGS);
}

static void user_namespaces_that_map_the_user(void **state)
{
    enum { ALL = CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNS | CLONE_NEWIPC };
    (void)state;
    if (!may_enter(ALL))
        skip();
    lives_dies_and_comes_back(CLONE_NEWUSER, 0);
    lives_dies_and_comes_back(0, CLONE_NEWUSER);
    lives_dies_and_comes_back(CLONE_NEWUSER, CLONE_NEWUSER);
    lives_dies_and_comes_back(ALL, 0);
    lives_dies_and_comes_back(ALL, ALL);
}

/* ---- users that are not mapped --------------------------------------------------------------------------------------------------------- */

static int opens_as_other(void *argument)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    if (setgroups(0, NULL) < 0 || setgid(23456) < 0 || setuid(12345) < 0)
        return 20;
    int rc = arena_open(&a, d.socket, &options);
    if (rc == -EACCES && !strstr(arena_reason(), argument))
        fprintf(stderr, "reason: %s\n", arena_reason());
    return rc == 0 ? 0 : rc != -EACCES ? 21 : strstr(arena_reason(), argument) ? 1 : 22;
}

static void users_that_have_no_number_are_refused_or_admitted_by_choice(void **state)
{
    static const struct {
        int flags;
        const char *users;
        int status;
    } cases[] = {
        {CLONE_NEWUSER, "", 1},        {CLONE_NEWUSER, "12345", 1}, /* that number is nobody's there */
        {CLONE_NEWUSER, "65534", 0},   {CLONE_NEWUSER, "*", 0},
        {0, "12345", 0},
    };
    (void)state;
    if (geteuid() != 0 || !may_enter(CLONE_NEWUSER))
        skip();
    daemon_prepare = daemon_enters;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        daemon_flags = cases[i].flags;
        daemon_start(&d, "16M", "--socket-mode", "0666", "--allow-users", cases[i].users, NULL);
        assert_int_equal(chmod(d.dir, 0755), 0);
        assert_int_equal(reap(spawn(opens_as_other, "no number in the daemon")), cases[i].status);
        assert_int_equal(log_has("event=refuse .*no number in the daemon"), cases[i].status);
        daemon_clean(&d);
        memset(&d, 0, sizeof d);
    }
}

/* A daemon whose own user has no number: everybody without one has the same, and is not the daemon's user for that. */
static void nobodys_daemon(void)
{
    if (setgroups(0, NULL) < 0 || setgid(23456) < 0 || setuid(23456) < 0 || unshare(CLONE_NEWUSER) < 0)
        _exit(94);
}

static void the_number_of_all_without_one_is_not_the_daemons_own_user(void **state)
{
    (void)state;
    if (geteuid() != 0 || !may_enter(CLONE_NEWUSER))
        skip();
    char dir[128];
    temp_dir(dir, sizeof dir, "open");
    assert_int_equal(chmod(dir, 01777), 0);
    daemon_prepare = nobodys_daemon;
    char socket[160];
    snprintf(socket, sizeof socket, "%s/s", dir);
    daemon_start(&d, "16M", "--socket", socket, "--socket-mode", "0666", NULL);
    strcpy(d.socket, socket);
    assert_int_equal(reap(spawn(opens_as_other, "no number in the daemon")), 1);
    daemon_clean(&d);
    memset(&d, 0, sizeof d);
    temp_dir_remove(dir);
}

/* ---- what cannot be told ---------------------------------------------------------------------------------------------------------------- */

static int refused_with;

static void refuse_pidfd_open(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pidfd_open, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)refused_with),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) < 0)
        _exit(95);
}

static uint64_t untold(void)
{
    char out[16384];
    assert_int_equal(arenactl(&d, out, sizeof out, "clients --json"), 0);
    uint64_t count = 0;
    for (const char *at = out; (at = strstr(at, "\"untold\":")) != NULL; at++) {
        const char *value = strchr(at + strlen("\"untold\":"), '"');
        count += value[1] != '"';
    }
    return count;
}

static void a_refused_pidfd_open_kills_nobody(void **state)
{
    static const int errors[] = {EPERM, ENOSYS, EACCES, EMFILE, ENOENT};
    char dir[128], out[8192];
    (void)state;
    daemon_flags = client_flags = 0;
    for (size_t i = 0; i < sizeof errors / sizeof errors[0]; i++) {
        struct client c;
        refused_with = errors[i];
        temp_dir(dir, sizeof dir, "backing");
        daemon_start(&d, "64M", "--backing", dir, NULL);
        client_start(&c);
        daemon_kill(&d); /* no keeper that has its pidfd */
        daemon_prepare = refuse_pidfd_open;
        daemon_again(&d, "64M", "--backing", dir, NULL);
        assert_int_equal(stat_of(&d, "clients"), 1);
        assert_int_equal(stat_of(&d, "objects_owned"), OBJECTS);
        assert_int_equal(untold(), 1);
        assert_int_equal(arenactl(&d, out, sizeof out, "clients"), 0);
        assert_non_null(strstr(out, " untold "));
        assert_non_null(strstr(out, "cannot be told (pidfd_open: "));
        for (uint64_t ticks = 0; ticks < 3; ticks++) /* time for looks */
            stat_of(&d, "clients");
        assert_int_equal(log_count("event=untold"), 1);
        client_goes_on(&c);
        assert_int_equal(untold(), 0);
        daemon_kill(&d);
        daemon_again(&d, "64M", "--backing", dir, NULL);
        assert_int_equal(untold(), 1);
        client_kill(&c); /* that its pid is nobody's any more can be told */
        stat_await(&d, "clients", 0);
        stat_await(&d, "objects_owned", 0);
        assert_int_equal(check_of(&d), 0);
        daemon_clean(&d);
        memset(&d, 0, sizeof d);
        daemon_prepare = NULL;
        temp_dir_remove(dir);
    }
}

static int few_descriptors;

static void limit_descriptors(void)
{
    struct rlimit limit = {(rlim_t)few_descriptors, (rlim_t)few_descriptors};
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        _exit(96);
}

static void used_up_descriptors_kill_nobody(void **state)
{
    enum { CLIENTS = 24, GONE = 18 };
    struct client c[CLIENTS];
    char dir[128];
    (void)state;
    daemon_flags = client_flags = 0;
    temp_dir(dir, sizeof dir, "backing");
    daemon_start(&d, "64M", "--backing", dir, NULL);
    for (int i = 0; i < CLIENTS; i++)
        client_start(&c[i]);
    int used = daemon_fd_count(&d) - 2 * CLIENTS;
    daemon_kill(&d);
    few_descriptors = used + CLIENTS / 2 + 4;
    daemon_prepare = limit_descriptors;
    daemon_again(&d, "64M", "--backing", dir, NULL);
    assert_true(log_has("event=untold .*pidfd_open: Too many open files"));
    assert_false(log_has("event=death"));
    for (int i = 0; i < GONE; i++) /* those whose pidfds it has, and some that it could not tell */
        client_kill(&c[i]);
    while (log_count("event=death") < GONE)
        pause_us(1000);
    while (untold() != 0) /* there is room for the others at a later look */
        pause_us(1000);
    assert_int_equal(stat_of(&d, "clients"), CLIENTS - GONE);
    for (int i = GONE; i < CLIENTS; i++)
        client_goes_on(&c[i]);
    for (int i = GONE; i < CLIENTS; i++)
        client_kill(&c[i]);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    daemon_clean(&d);
    memset(&d, 0, sizeof d);
    temp_dir_remove(dir);
}

/* In the mount namespace of a process: nothing is in /proc any more. */
static int hides_proc(void *argument)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/ns/mnt", *(pid_t *)argument);
    int fd = open(path, O_RDONLY);
    return fd < 0 || setns(fd, CLONE_NEWNS) < 0 || mount("none", "/proc", "tmpfs", 0, NULL) < 0;
}

static void a_hidden_proc_kills_nobody(void **state)
{
    struct client c;
    (void)state;
    if (!may_enter(CLONE_NEWNS))
        skip();
    daemon_flags = CLONE_NEWNS;
    client_flags = 0;
    daemon_prepare = daemon_enters;
    daemon_start(&d, "64M", NULL);
    client_start(&c);
    pid_t of = d.pid;
    assert_int_equal(reap(spawn(hides_proc, &of)), 0);
    for (int i = 0; i < 2; i++) { /* known by the pidfd alone; then so is the pid namespace, and no boot id */
        daemon_restarts(NULL, NULL);
        assert_int_equal(stat_of(&d, "clients"), 1);
        assert_int_equal(stat_of(&d, "objects_owned"), OBJECTS);
    }
    client_goes_on(&c);
    struct client newcomer;
    client_start(&newcomer);
    client_kill(&newcomer);
    stat_await(&d, "clients", 1);
    daemon_restarts(kill_client, &c);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
    memset(&d, 0, sizeof d);
}

/* The pids in the table are another namespace's: they are nobody's here, and say nothing. */
static void a_daemon_that_moves_to_another_pid_namespace_takes_nobody_for_dead(void **state)
{
    struct client c;
    char dir[128];
    (void)state;
    if (!may_enter(CLONE_NEWPID | CLONE_NEWNS))
        skip();
    client_flags = 0;
    temp_dir(dir, sizeof dir, "backing");
    daemon_start(&d, "64M", "--backing", dir, NULL);
    client_start(&c);
    daemon_kill(&d);
    daemon_flags = CLONE_NEWPID | CLONE_NEWNS;
    daemon_prepare = daemon_enters;
    for (int i = 0; i < 2; i++) { /* and a second time it has not learned them */
        daemon_again(&d, "64M", "--backing", dir, NULL);
        assert_int_equal(stat_of(&d, "clients"), 1);
        assert_int_equal(stat_of(&d, "objects_owned"), OBJECTS);
        assert_int_equal(untold(), 1);
        assert_int_equal(daemon_stop(&d), 0);
    }
    daemon_again(&d, "64M", "--backing", dir, NULL);
    client_goes_on(&c);
    assert_int_equal(untold(), 0);
    client_kill(&c);
    stat_await(&d, "clients", 0);
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
    memset(&d, 0, sizeof d);
    temp_dir_remove(dir);
}

/* Where SO_PEERPIDFD is not to be had, who is not seen is refused in words. */
static void without_peer_pidfds_a_shared_pid_namespace_is_asked_for(void **state)
{
    char out[1024];
    (void)state;
    if (!may_enter(CLONE_NEWPID | CLONE_NEWNS))
        skip();
    daemon_flags = CLONE_NEWPID | CLONE_NEWNS;
    daemon_prepare = daemon_enters;
    daemon_start(&d, "16M", "--pidfd-fallback", NULL);
    assert_int_not_equal(arenactl(&d, out, sizeof out, "stat"), 0);
    assert_non_null(strstr(out, "a pid namespace that both share"));
    assert_true(log_has("event=refuse .*a pid namespace that both share"));
}

int main(void)
{
    unsetenv("TMPDIR"); /* where another user can go */
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pid_namespaces_of_daemon_client_and_both, setup, teardown),
        cmocka_unit_test_setup_teardown(mount_and_ipc_namespaces_where_dev_shm_is_of_no_use, setup, teardown),
        cmocka_unit_test_setup_teardown(user_namespaces_that_map_the_user, setup, teardown),
        cmocka_unit_test_setup_teardown(users_that_have_no_number_are_refused_or_admitted_by_choice, setup, teardown),
        cmocka_unit_test_setup_teardown(the_number_of_all_without_one_is_not_the_daemons_own_user, setup, teardown),
        cmocka_unit_test_setup_teardown(a_refused_pidfd_open_kills_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(used_up_descriptors_kill_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(a_hidden_proc_kills_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(a_daemon_that_moves_to_another_pid_namespace_takes_nobody_for_dead, setup, teardown),
        cmocka_unit_test_setup_teardown(without_peer_pidfds_a_shared_pid_namespace_is_asked_for, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
