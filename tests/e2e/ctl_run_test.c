/* Goal: what arenactl runs in the foreground leaves nothing behind: `exec` passes on exit status
 * and signals, and its heap goes with it however it ends; `top` gives the terminal back as it was,
 * whoever ends it. Method: commands with known ends, in a temporary directory of the test's own
 * that must be empty afterwards; a pseudo-terminal for top. */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include "tests/e2e/ctl_answers.h"

/* ---- exec ------------------------------------------------------------------------------------ */

static char dir[100], program[300];

static int setup(void **state)
{
    (void)state;
    temp_dir(dir, sizeof dir, "run");
    setenv("XDG_RUNTIME_DIR", dir, 1);
    unsetenv("ARENA_SOCKET");
    char *real = realpath(programs_dir(), NULL);
    assert_non_null(real);
    snprintf(program, sizeof program, "%s/arenactl", real);
    free(real);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(dir); /* fails if anything is left in it */
}

static int exec_line(const char *line)
{
    return run(out, sizeof out, "%s exec --max 32M -- %s", program, line);
}

static void exec_gives_a_heap_and_passes_the_status_on(void **state)
{
    (void)state;
    assert_int_equal(exec_line("true"), 0);
    assert_int_equal(exec_line("sh -c 'exit 77'"), 77);
    assert_int_equal(exec_line("sh -c 'kill -9 $$'"), 128 + SIGKILL);
    assert_int_equal(exec_line("sh -c 'kill -TERM $$'"), 128 + SIGTERM);
    assert_int_equal(exec_line("/nowhere"), 127);
    assert_line("cannot run /nowhere: No such file or directory");
    assert_int_equal(exec_line(dir), 126);
    assert_line("Permission denied");
    assert_int_equal(run(out, sizeof out, "%s exec --max 32M %s stat --json", program, program),
                     0); /* without -- */
    assert_non_null(strstr(out, "\"heap_max\":\t33554432"));
    assert_int_equal(exec_line("sh -c 'echo $ARENA_SOCKET; test -S $ARENA_SOCKET'"), 0);
    assert_int_equal(strncmp(out, dir, strlen(dir)), 0);
    char line[700];
    snprintf(line, sizeof line, "sh -c '%s check && %s roots --json'", program, program);
    assert_int_equal(exec_line(line), 0);
    assert_non_null(strstr(out, "ok: every invariant holds"));
    /* a heap within a heap's command is another one, and both are gone afterwards */
    snprintf(line, sizeof line,
             "sh -c 'echo $ARENA_SOCKET; %s exec -- sh -c \"echo \\$ARENA_SOCKET\"'", program);
    assert_int_equal(exec_line(line), 0);
    char *second = strchr(out, '\n') + 1;
    assert_int_equal(strncmp(second, dir, strlen(dir)), 0);
    assert_int_not_equal(strncmp(out, second, strcspn(second, "\n")), 0);
}

/* Starts `arenactl exec -- sh -c script`; the reading end of what it prints. */
static pid_t exec_start(const char *script, int *ret_fd)
{
    int fds[2];
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        dup2(fds[1], 1);
        signal(SIGINT, SIG_DFL); /* whoever runs this may ignore them, and sh would then too */
        signal(SIGHUP, SIG_DFL);
        execl(program, "arenactl", "exec", "--max", "32M", "--", "sh", "-c", script, (char *)NULL);
        _exit(99);
    }
    close(fds[1]);
    *ret_fd = fds[0];
    return pid;
}

/* Reads until the text has been printed, or, NULL, until nobody holds the pipe any more. */
static void read_until(int fd, const char *text)
{
    size_t n = 0;
    ssize_t got;
    out[0] = 0;
    while (n + 1 < sizeof out && (got = read(fd, out + n, 1)) > 0) {
        out[n += (size_t)got] = 0;
        if (text && strstr(out, text))
            return;
    }
    if (text)
        fail_msg("'%s' is not printed: %s", text, out);
}

static void signals_reach_the_command_of_exec(void **state)
{
    static const struct {
        int signum;
        const char *name;
    } signals[] = {{SIGTERM, "TERM"}, {SIGINT, "INT"}, {SIGHUP, "HUP"}, {SIGUSR1, "USR1"}};
    (void)state;
    for (int i = 0; i < 4; i++) {
        char script[200];
        int fd;
        snprintf(script, sizeof script,
                 "trap 'echo got %s; exit 9' %s; echo up; while :; do :; done", signals[i].name,
                 signals[i].name);
        pid_t pid = exec_start(script, &fd);
        read_until(fd, "up\n");
        kill(pid, signals[i].signum);
        read_until(fd, "got ");
        assert_int_equal(reap(pid), 9);
        close(fd);
    }
}

static void exec_killed_takes_command_and_heap_with_it(void **state)
{
    int fd;
    (void)state;
    pid_t pid = exec_start("trap 'echo told; exit 0' TERM; echo up; while :; do :; done", &fd);
    read_until(fd, "up\n");
    kill(pid, SIGKILL);
    assert_int_equal(reap(pid), 128 + SIGKILL);
    read_until(fd, "told"); /* the command got SIGTERM */
    read_until(fd, NULL);
    close(fd);
    while (rmdir(dir) < 0) { /* the guard removes socket and directory */
        assert_int_equal(errno, ENOTEMPTY);
        pause_us(2000);
    }
    mkdir(dir, 0700);
}

static void exec_says_what_it_lacks(void **state)
{
    (void)state;
    int status = run(
        out, sizeof out,
        "{ cp %s %s/alone && PATH=/nowhere %s/alone exec -- true; s=$?; rm %s/alone; exit $s; }",
        program, dir, dir, dir);
    if (access("/usr/sbin/arenad", X_OK) != 0 && access("/usr/local/sbin/arenad", X_OK) != 0) {
        assert_int_equal(status, 3);
        assert_line("no arenad beside arenactl");
    }
}

/* ---- top ------------------------------------------------------------------------------------- */

struct terminal {
    int fd;
    pid_t pid;
    struct termios before;
    int slave;
    size_t n; /* bytes in `out` */
};

static bool has_terminfo(void)
{
    return access("/lib/terminfo/x/xterm", R_OK) == 0 ||
           access("/usr/share/terminfo/x/xterm", R_OK) == 0 ||
           access("/etc/terminfo/x/xterm", R_OK) == 0;
}

static void top_start(struct terminal *t, const struct daemon *d, int rows, int columns_count)
{
    struct winsize size = {.ws_row = (unsigned short)rows, .ws_col = (unsigned short)columns_count};
    assert_int_equal(openpty(&t->fd, &t->slave, NULL, NULL, &size), 0);
    assert_int_equal(tcgetattr(t->slave, &t->before), 0);
    t->pid = fork();
    if (t->pid == 0) {
        setsid();
        ioctl(t->slave, TIOCSCTTY, 0);
        for (int fd = 0; fd < 3; fd++)
            dup2(t->slave, fd);
        close(t->fd);
        close(t->slave);
        setenv("TERM", "xterm", 1);
        execl(program, "arenactl", "--socket", d->socket, "top", "--interval", "0.1", (char *)NULL);
        _exit(99);
    }
    t->n = 0;
    out[0] = 0;
}

/* Reads what is on its way to the terminal until `text` comes; NULL: until it has ended. Its
 * status, or -1. */
static int top_read(struct terminal *t, const char *text)
{
    int status;
    for (;;) {
        struct pollfd poll_fd = {t->fd, POLLIN, 0};
        bool ended = waitpid(t->pid, &status, WNOHANG) == t->pid;
        if (!ended)
            kill(t->pid, SIGWINCH); /* paints the whole screen again: texts come in one piece */
        while (poll(&poll_fd, 1, ended ? 0 : 50) > 0 && (poll_fd.revents & POLLIN)) {
            ssize_t got = read(t->fd, out + t->n, sizeof out - 1 - t->n);
            if (got <= 0)
                break;
            out[t->n += (size_t)got] = 0;
        }
        if (ended) {
            if (text)
                fail_msg("top ended with %x before '%s': %s", status, text, out);
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
        }
        const char *at = text ? strstr(out, text) : NULL;
        if (at) { /* looks on behind it */
            t->n = 0;
            out[0] = 0;
            return -1;
        }
    }
}

/* What was written from the last change to the first screen on. */
static const char *last_leave(void)
{
    const char *last = NULL;
    for (const char *at = out; (at = strstr(at, "\033[?1049l")) != NULL; at++)
        last = at;
    assert_non_null(last);
    return last;
}

/* The terminal is in its first state, and its first screen. */
static void top_check_left(struct terminal *t)
{
    struct termios after;
    assert_int_equal(tcgetattr(t->slave, &after), 0);
    assert_int_equal(after.c_lflag, t->before.c_lflag);
    assert_int_equal(after.c_iflag, t->before.c_iflag);
    assert_int_equal(after.c_oflag, t->before.c_oflag);
    assert_null(strstr(last_leave(), "\033[?1049h"));
    close(t->fd);
    close(t->slave);
}

static void top_shows_resizes_and_quits(void **state)
{
    struct daemon d;
    struct terminal t;
    (void)state;
    if (!has_terminfo()) {
        print_message("skipped: no terminfo entry for xterm\n");
        skip();
    }
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    arena_alloc(a, 5000);
    const int sizes[][2] = {{24, 80}, {5, 20}, {1, 1}, {60, 200}};
    for (int i = 0; i < 4; i++) {
        top_start(&t, &d, sizes[i][0], sizes[i][1]);
        top_read(&t, i == 2 ? "\033[?1049h" : i == 1 ? "arena" : "COMMAND");
        struct winsize size = {.ws_row = 30, .ws_col = 120};
        assert_int_equal(ioctl(t.slave, TIOCSWINSZ, &size), 0);
        kill(t.pid, SIGWINCH);
        top_read(&t, "refills"); /* the line of keys, at its new place */
        assert_int_equal(write(t.fd, "o", 1), 1);
        assert_int_equal(write(t.fd, "q", 1), 1);
        assert_int_equal(top_read(&t, NULL), 0);
        top_check_left(&t);
    }
    top_start(&t, &d, 24, 80);
    top_read(&t, "COMMAND");
    kill(t.pid, SIGTERM);
    assert_int_equal(top_read(&t, NULL), 0);
    top_check_left(&t);
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);
}

static void top_survives_a_daemon_that_is_stopped_or_gone(void **state)
{
    struct daemon d;
    struct terminal t;
    (void)state;
    if (!has_terminfo()) {
        print_message("skipped: no terminfo entry for xterm\n");
        skip();
    }
    daemon_start(&d, "64M", NULL);
    top_start(&t, &d, 24, 300);
    top_read(&t, "COMMAND");
    kill(daemon_serving(&d), SIGKILL); /* its keeper starts another: top goes on */
    t.n = 0;
    stat_await(&d, "epoch", 2);
    arena_t *a = open_heap(&d);
    top_read(&t, "ctl_run");
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    assert_int_equal(write(t.fd, "q", 1), 1); /* it waits for a reply, and hears the key */
    assert_int_equal(top_read(&t, NULL), 0);
    top_check_left(&t);
    kill(serving, SIGCONT);

    top_start(&t, &d, 24, 300);
    top_read(&t, "ctl_run");
    arena_close(a);
    daemon_stop(&d);
    assert_int_equal(top_read(&t, NULL), 3);
    assert_non_null(strstr(
        last_leave(), "arenactl: no daemon at ")); /* said on the first screen, where it stays */
    top_check_left(&t);
    daemon_clean(&d);
}

static void top_is_plain_text_elsewhere(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", NULL);
    assert_int_equal(ctl(&d, "top"), 0);
    assert_true(is_plain(out));
    assert_non_null(strstr(out, "\n    PID USER "));
    assert_int_equal(ctl(&d, "top --count 2 --interval 0.1"), 0);
    assert_true(is_plain(out));
    char *first = strstr(out, "arena default "),
         *second = first ? strstr(first + 1, "arena default ") : NULL;
    assert_non_null(second);
    assert_null(strstr(second + 1, "arena default "));
    assert_non_null(strstr(out, "refills/s - "));
    assert_non_null(strstr(second, "refills/s 0 ")); /* a rate needs two looks */
    daemon_stop(&d);
    daemon_clean(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(exec_gives_a_heap_and_passes_the_status_on, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(signals_reach_the_command_of_exec, setup, teardown),
        cmocka_unit_test_setup_teardown(exec_killed_takes_command_and_heap_with_it, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(exec_says_what_it_lacks, setup, teardown),
        cmocka_unit_test_setup_teardown(top_shows_resizes_and_quits, setup, teardown),
        cmocka_unit_test_setup_teardown(top_survives_a_daemon_that_is_stopped_or_gone, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(top_is_plain_text_elsewhere, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
