/* Goal: the daemon does its part of the protocol with a service manager: readiness, status, watchdog, stopping, reload, a
 * listening socket that is handed over, the descriptor store. Method: this test is the service manager: a datagram socket
 * in NOTIFY_SOCKET, descriptors from number 3 on. */
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static char dir[96];
static int notify_fd, stored[8], stored_count;
static char stored_names[8][16];

static int bind_in_dir(const char *name, int type)
{
    char path[108];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return bind_socket(path, type);
}

static int setup(void **state)
{
    (void)state;
    temp_dir(dir, sizeof dir, "service");
    notify_fd = bind_in_dir("notify", SOCK_DGRAM);
    stored_count = 0;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close(notify_fd);
    for (int i = 0; i < stored_count; i++)
        close(stored[i]);
    return temp_dir_remove(dir);
}

static void store(const char *text, int fd)
{
    const char *name = strstr(text, "FDNAME=");
    if (!strstr(text, "FDSTORE=1") || !name) { /* BARRIER=1: closing it answers */
        close(fd);
        return;
    }
    snprintf(stored_names[stored_count], sizeof stored_names[0], "%.*s", (int)strcspn(name + 7, "\n"), name + 7);
    stored[stored_count++] = fd;
}

/* Receives notices until one holds `what`; descriptors are stored as a manager does. */
static void await_notice(const char *what)
{
    for (;;) {
        char text[4096], control[256];
        struct iovec iov = {text, sizeof text - 1};
        struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t n = recvmsg(notify_fd, &msg, MSG_CMSG_CLOEXEC);
        assert_true(n >= 0);
        text[n] = 0;
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        if (c && c->cmsg_type == SCM_RIGHTS) {
            int fd;
            memcpy(&fd, CMSG_DATA(c), sizeof fd);
            store(text, fd);
        }
        if (strstr(text, what))
            return;
    }
}

static bool own_pid_namespace; /* of the daemon; its parent there waits for it */

static void enter_pid_namespace(void)
{
    if (unshare(CLONE_NEWPID) < 0)
        _exit(126);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        return;
    }
    _exit(reap(pid));
}

/* Starts the daemon as a manager would: descriptors from 3 on, with names. */
static pid_t start_service(int listen_fd, const char *watchdog_us)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid)
        return pid;
    if (own_pid_namespace)
        enter_pid_namespace();
    char names[128] = "listen", count[16], self[16], path[128];
    int fds[9] = {fcntl(listen_fd, F_DUPFD, 100)};
    for (int i = 0; i < stored_count; i++) {
        fds[i + 1] = fcntl(stored[i], F_DUPFD, 100);
        strcat(strcat(names, ":"), stored_names[i]);
    }
    for (int i = 0; i <= stored_count; i++)
        dup2(fds[i], 3 + i);
    for (int fd = 4 + stored_count; fd < 256; fd++)
        close(fd);
    snprintf(path, sizeof path, "%s/notify", dir);
    snprintf(count, sizeof count, "%d", stored_count + 1);
    snprintf(self, sizeof self, "%d", (int)getpid());
    setenv("NOTIFY_SOCKET", path, 1);
    setenv("LISTEN_FDS", count, 1);
    setenv("LISTEN_PID", self, 1);
    setenv("LISTEN_FDNAMES", names, 1);
    if (watchdog_us)
        setenv("WATCHDOG_USEC", watchdog_us, 1);
    snprintf(path, sizeof path, "%s/log", dir);
    dup2(open(path, O_WRONLY | O_CREAT | O_APPEND, 0600), 2);
    prctl(PR_SET_PDEATHSIG, SIGTERM); /* nothing stays behind when the test fails */
    snprintf(path, sizeof path, "%s/arenad", programs_dir());
    char conf[128];
    snprintf(conf, sizeof conf, "%s/conf", dir);
    if (access(conf, F_OK) == 0)
        execl(path, "arenad", "--foreground", "--config", conf, (char *)NULL);
    execl(path, "arenad", "--foreground", "--max", "64M", (char *)NULL);
    _exit(127);
}

static void it_says_ready_status_watchdog_reload_and_stopping(void **state)
{
    (void)state;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    pid_t pid = start_service(listen_fd, "200000");
    await_notice("READY=1");
    await_notice("STATUS=");
    await_notice("WATCHDOG=1");
    kill(pid, SIGHUP);
    await_notice("RELOADING=1");
    await_notice("READY=1");
    kill(pid, SIGTERM);
    await_notice("STOPPING=1");
    assert_int_equal(reap(pid), 0);
    close(listen_fd);
}

static void the_descriptor_store_brings_the_heap_back_after_kill_9(void **state)
{
    char path[128];
    arena_t *a;
    arena_ref_t ref;
    (void)state;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    pid_t pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    assert_int_equal(stored_count, 3); /* heap, map, state: before it was ready */
    snprintf(path, sizeof path, "%s/s", dir);
    assert_int_equal(arena_open(&a, path, NULL), 0);
    char *p = arena_alloc(a, 100), *own = arena_alloc(a, 100);
    strcpy(p, "kept");
    strcpy(own, "own");
    assert_int_equal(arena_publish(a, p), 0);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, p)), 0);
    for (int i = 0; i < 5; i++) {
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
        pid = start_service(listen_fd, NULL);
        if (!arena_alloc(a, 50000))
            fail_msg("%s", strerror(errno)); /* waits in the socket's queue, then resumes */
        assert_int_equal(arena_root_get(a, "kept", &ref), 0);
        assert_string_equal((char *)arena_ptr(a, ref), "kept");
        assert_string_equal(own, "own");
        await_notice("READY=1");
    }
    struct arena_stats stats = {.size = sizeof stats};
    assert_int_equal(arena_stats(a, &stats), 0);
    assert_int_equal(stats.epoch, 6);
    assert_int_equal(stats.objects_owned, 6);
    arena_close(a);
    kill(pid, SIGTERM);
    await_notice("STOPPING=1");
    assert_int_equal(reap(pid), 0);
    close(listen_fd);
}

/* A client that waits at a manager's socket for a daemon that does not come to serve. */
static int opens_in_vain(void *argument)
{
    char path[128];
    arena_t *a;
    snprintf(path, sizeof path, "%s/s", dir);
    int rc = arena_open(&a, path, NULL);
    if (rc != -ECONNREFUSED || !strstr(arena_reason(), argument)) {
        fprintf(stderr, "%d: %s\n", rc, arena_reason());
        return 1;
    }
    return 0;
}

static void write_config(const char *text)
{
    char path[128];
    snprintf(path, sizeof path, "%s/conf", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void who_meets_a_daemon_that_cannot_start_is_told_so_and_nothing_starts_it_again(void **state)
{
    static char says[] = "the daemon cannot start: ", line[] = "conf:2: max = lots is not a size";
    (void)state;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    write_config("\nmax = lots\n");
    for (int i = 0; i < 3; i++) {
        pid_t client = spawn(opens_in_vain, i ? line : says);
        pid_t pid = start_service(listen_fd, NULL); /* as the manager does when somebody connects */
        int status = reap(pid);
        assert_int_equal(status, 2); /* RestartPreventExitStatus= of the unit */
        int more = 0; /* it may have come after that one had looked: the next */
        while (waitpid(client, &status, WNOHANG) == 0) {
            assert_true(more++ < 1000);
            assert_int_equal(reap(start_service(listen_fd, NULL)), 2);
        }
        assert_int_equal(status, 0);
    }
    close(listen_fd);
}

static void a_heap_that_the_manager_keeps_is_not_lost_by_a_wrong_file(void **state)
{
    static char line[] = "conf:1: maximum = 1 unknown key";
    arena_t *a;
    arena_ref_t ref;
    char path[128];
    (void)state;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    snprintf(path, sizeof path, "%s/s", dir);
    write_config("max = 64M\n");
    pid_t pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    assert_int_equal(arena_open(&a, path, NULL), 0);
    void *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, p)), 0);
    write_config("maximum = 1\n");
    kill(pid, SIGKILL);
    reap(pid);
    pid = start_service(listen_fd, NULL); /* by the manager, with the heap: this one waits a while, and refuses */
    pid_t client = spawn(opens_in_vain, line);
    assert_int_equal(reap(client), 0);
    kill(pid, SIGTERM);
    assert_int_equal(reap(pid), 1); /* and not 2: it is to be started again */
    write_config("max = 64M\n");
    pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    while (arena_root_get(a, "kept", &ref) == -ENOTCONN)
        continue;
    assert_true(ref == arena_ref(a, p));
    arena_close(a);
    kill(pid, SIGTERM);
    assert_int_equal(reap(pid), 0);
    close(listen_fd);
}

static int holds(void *argument)
{
    int *fd = argument;
    char path[128];
    arena_t *a;
    snprintf(path, sizeof path, "%s/s", dir);
    if (arena_open(&a, path, NULL) != 0)
        return 1;
    for (int i = 0; i < 50; i++)
        arena_alloc(a, 100);
    if (write(fd[1], "x", 1) == 1)
        pause();
    return 0;
}

/* Clients of another pid namespace: the daemon that follows could not open their pidfds. */
static void the_descriptor_store_has_the_pidfds_that_no_pid_leads_to(void **state)
{
    struct daemon of = {0};
    int fd[2];
    char byte;
    (void)state;
    pid_t probe = fork();
    if (probe == 0)
        _exit(unshare(CLONE_NEWPID) < 0);
    if (reap(probe) != 0)
        skip();
    own_pid_namespace = true;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    assert_int_equal(pipe2(fd, O_CLOEXEC), 0);
    of.pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    assert_int_equal(stored_count, 3);
    pid_t pids[2] = {spawn(holds, fd), spawn(holds, fd)};
    for (int i = 0; i < 2; i++)
        assert_int_equal(read(fd[0], &byte, 1), 1);
    snprintf(of.socket, sizeof of.socket, "%s/s", dir);
    for (int i = 0; i < 2; i++) {
        while (stored_count < 5) /* both ends of the queue */
            await_notice("FDSTORE=1");
        assert_int_equal(stat_of(&of, "objects_owned"), 100 - 50 * i);
        assert_int_equal(kill(daemon_serving(&of), SIGKILL), 0);
        assert_int_equal(reap(of.pid), 128 + SIGKILL);
        kill(pids[i], SIGKILL); /* while none runs */
        reap(pids[i]);
        of.pid = start_service(listen_fd, NULL);
        await_notice("READY=1");
        stat_await(&of, "clients", (uint64_t)(1 - i));
        stat_await(&of, "objects_owned", (uint64_t)(50 - 50 * i));
    }
    kill(daemon_serving(&of), SIGTERM);
    await_notice("STOPPING=1");
    assert_int_equal(reap(of.pid), 0);
    own_pid_namespace = false;
    close(listen_fd);
}

static void await_line(const char *pattern)
{
    char path[128];
    snprintf(path, sizeof path, "%s/log", dir);
    while (line_count(path, pattern) == 0)
        pause_us(5000);
}

/* The file is there and the daemon behind it answers: by a new connection. */
static void opens(void)
{
    char path[128];
    arena_t *a;
    snprintf(path, sizeof path, "%s/s", dir);
    assert_int_equal(arena_open(&a, path, NULL), 0);
    assert_non_null(arena_alloc(a, 100));
    assert_int_equal(arena_close(a), 0);
}

static void a_manager_s_socket_that_was_removed_is_made_again_as_it_was(void **state)
{
    char path[128], log[128];
    struct stat st;
    (void)state;
    int listen_fd = bind_in_dir("s", SOCK_SEQPACKET);
    snprintf(path, sizeof path, "%s/s", dir);
    snprintf(log, sizeof log, "%s/log", dir);
    assert_int_equal(chmod(path, 0640), 0);
    pid_t pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    opens();
    assert_int_equal(unlink(path), 0);
    await_line("event=socket .*made again");
    opens();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    kill(pid, SIGKILL); /* the next one has the manager's again, and finds a dead one in its place */
    assert_int_equal(reap(pid), 128 + SIGKILL);
    pid = start_service(listen_fd, NULL);
    while (line_count(log, "event=socket .*made again") < 2)
        pause_us(5000);
    opens();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    kill(pid, SIGTERM);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(access(path, F_OK), -1); /* its own, and no manager's */
    close(listen_fd);
}

static void a_manager_s_socket_that_cannot_be_made_is_told_with_what_to_do(void **state)
{
    char path[128], away[128], below[128];
    (void)state;
    snprintf(path, sizeof path, "%s/d", dir);
    snprintf(away, sizeof away, "%s/away", dir);
    snprintf(below, sizeof below, "%s/d/s", dir);
    assert_int_equal(mkdir(path, 0700), 0);
    int listen_fd = bind_in_dir("d/s", SOCK_SEQPACKET);
    pid_t pid = start_service(listen_fd, NULL);
    await_notice("READY=1");
    await_notice("STATUS=");
    assert_int_equal(rename(path, away), 0); /* and what stands there is no directory */
    close(open(path, O_WRONLY | O_CREAT, 0600));
    await_line("event=socket .*cannot .* only the manager can make it again: stop the service");
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rename(away, path), 0);
    kill(pid, SIGTERM);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(access(below, F_OK), 0); /* the manager's own is left to it */
    close(listen_fd);
    assert_int_equal(unlink(below), 0);
    assert_int_equal(rmdir(path), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_says_ready_status_watchdog_reload_and_stopping, setup, teardown),
        cmocka_unit_test_setup_teardown(the_descriptor_store_brings_the_heap_back_after_kill_9, setup, teardown),
        cmocka_unit_test_setup_teardown(who_meets_a_daemon_that_cannot_start_is_told_so_and_nothing_starts_it_again, setup, teardown),
        cmocka_unit_test_setup_teardown(a_heap_that_the_manager_keeps_is_not_lost_by_a_wrong_file, setup, teardown),
        cmocka_unit_test_setup_teardown(the_descriptor_store_has_the_pidfds_that_no_pid_leads_to, setup, teardown),
        cmocka_unit_test_setup_teardown(a_manager_s_socket_that_was_removed_is_made_again_as_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(a_manager_s_socket_that_cannot_be_made_is_told_with_what_to_do, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
