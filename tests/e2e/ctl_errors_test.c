/* Goal: whatever is wrong - the line that was typed, no daemon, one that goes away, refuses or
 * talks nonsense - arenactl says what, where and what to do on one line, and ends with the
 * documented status. Method: wrong lines; daemons that were stopped or killed; processes that
 * listen and answer as no arenad does. */
#include <errno.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/msg.h"
#include "tests/e2e/ctl_answers.h"

/* ---- no daemon, or a strange one ------------------------------------------------------------- */

static const char *const asking[] = {"stat", "clients", "classes", "spans", "roots", "check",
                                     "trim", "map",     "limits",  "why",   "top",   "metrics"};
enum { ASKING = sizeof asking / sizeof asking[0] };

static void without_a_daemon_every_command_says_so_and_ends_with_3(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", NULL);
    daemon_stop(&d);
    for (int i = 0; i < ASKING; i++) {
        assert_int_equal(ctl(&d, asking[i]), 3);
        assert_line("start arenad, or name its socket by --socket PATH or ARENA_SOCKET");
    }
    daemon_start(&d, "64M", "--keeper=no", NULL); /* a socket whose daemon was killed */
    daemon_kill(&d);
    assert_int_equal(ctl(&d, "stat --json"), 3);
    assert_line("Connection refused");
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %0120d stat", programs_dir(), 1),
                     3);
    assert_line("at most 107 bytes");
    daemon_clean(&d);
}

enum manner { SILENT, REFUSES, NONSENSE, NO_ROWS, MANNERS };
static int fake_manner;

static void answer(int fd, const struct msg *in)
{
    static uint8_t packet[MSG_MAX];
    struct msg reply = MSG(ok);
    if (fake_manner == REFUSES)
        reply = MSG(error, .error = EPROTONOSUPPORT, .text = "layout 0 is spoken\n\033[2Jhere");
    else if (in->type == MSG_INFO)
        reply = MSG(rows, .body = (const uint8_t *)(fake_manner == NO_ROWS ? "\x90" : "\x01"), .body_bytes = 1);
    reply.id = in->id;
    int bytes = msg_encode(&reply, packet, sizeof packet);
    if (bytes > 0 && write(fd, packet, (size_t)bytes) != bytes)
        _exit(1);
}

/* A daemon of its own kind: one connection after the other. */
static int fake_daemon(void *argument)
{
    static struct msg in;
    static struct msg_space space;
    static uint8_t packet[MSG_MAX];
    static char why[MSG_TEXT_MAX + 1];
    int listen_fd = *(int *)argument, fd;
    while ((fd = accept(listen_fd, NULL, NULL)) >= 0) {
        ssize_t n;
        while ((n = read(fd, packet, sizeof packet)) > 0 && fake_manner != SILENT)
            if (msg_decode(&in, &space, packet, (size_t)n, why) == 0)
                answer(fd, &in);
        close(fd);
    }
    return 0;
}

static void a_daemon_that_is_none_of_ours_gets_one_line(void **state)
{
    static const char *const lines[] = {[SILENT] = "closed the connection",
                                        [REFUSES] = "the daemon refused: layout 0",
                                        [NONSENSE] = "are both of one version?",
                                        [NO_ROWS] = "the daemon answered nothing"};
    struct daemon d = {0};
    (void)state;
    temp_dir(d.dir, sizeof d.dir, "ctl");
    snprintf(d.socket, sizeof d.socket, "%s/s", d.dir);
    for (fake_manner = 0; fake_manner < MANNERS; fake_manner++) {
        int fd = bind_socket(d.socket, SOCK_SEQPACKET);
        pid_t pid = spawn(fake_daemon, &fd);
        close(fd);
        assert_int_equal(ctl(&d, "stat"), 3);
        assert_line(lines[fake_manner]);
        kill(pid, SIGKILL);
        reap(pid);
    }
    daemon_clean(&d);
}

static void a_daemon_that_stands_still_gets_one_line(void **state)
{
    struct daemon d;
    char text[4096] = "";
    (void)state;
    daemon_start(&d, "64M", "--keeper=no", NULL);
    kill(d.pid, SIGSTOP);
    assert_int_equal(run(out, sizeof out,
                         "bash -c '%s/arenactl --socket %s metrics --output %s/m 2>/dev/null & "
                         "%s/arenactl --socket %s stat; rc=$?; wait $! && exit 9; exit $rc'",
                         programs_dir(), d.socket, d.dir, programs_dir(), d.socket),
                     3);
    assert_line("the daemon has not answered for 10 seconds");
    kill(d.pid, SIGCONT);
    assert_int_equal(ctl(&d, "stat"), 0);
    run(text, sizeof text, "cat %s/m", d.dir);
    assert_non_null(strstr(text, "\"} 0\n"));
    daemon_stop(&d);
    daemon_clean(&d);
}

static void wrong_lines_get_one_line_and_status_2(void **state)
{
    static const struct {
        const char *line, *says;
    } wrong[] = {
        {"", "a command is wanted; see arenactl --help"},
        {"frobnicate", "frobnicate is not a command; see arenactl --help"},
        {"stat --nonsense", "--nonsense is not an option; see arenactl stat --help"},
        {"stat --svg x", "--svg is not an option of stat; see arenactl stat --help"},
        {"map --svg", "--svg needs a value; see arenactl map --help"},
        {"map --svg ''", "--svg needs a value that is not empty"},
        {"--socket", "--socket needs a value; see arenactl --help"},
        {"stat more", "more is too much: stat takes no argument; see arenactl stat --help"},
        {"top --count none", "--count none is not a number from 1"},
        {"top --count 0", "--count 0 is not a number from 1"},
        {"top --count -3", "--count -3 is not a number from 1"},
        {"top --interval 0", "--interval 0 is not seconds from 0.1 to 86400"},
        {"top --interval 1s", "--interval 1s is not seconds from 0.1 to 86400"},
        {"exec --max 5Q -- true", "--max 5Q is not a size such as 512M or 8G"},
        {"exec --max 5K -- true", "--max 5K must be from 1M to 1T"},
        {"exec", "a command is wanted: arenactl exec -- COMMAND"},
        {"$'x\\e[2J\\n'", "x?[2J? is not a command"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int status =
            run(out, sizeof out, "bash -c \"%s/arenactl %s\"", programs_dir(), wrong[i].line);
        if (status != 2)
            fail_msg("arenactl %s: %d: %s", wrong[i].line, status, out);
        assert_line(wrong[i].says);
    }
    assert_int_equal(run(out, sizeof out, "%s/arenactl --help", programs_dir()), 0);
    assert_non_null(strstr(out, "Exit status: 0 done, 1 a check found a fault, 2 wrong usage, 3 "));
    for (int i = 0; i < ASKING; i++) {
        char name[64];
        snprintf(name, sizeof name, "\n  %s ", asking[i]);
        assert_int_equal(run(out, sizeof out, "%s/arenactl --help", programs_dir()), 0);
        assert_non_null(strstr(out, name));
        assert_int_equal(run(out, sizeof out, "%s/arenactl %s --help", programs_dir(), asking[i]),
                         0);
        snprintf(name, sizeof name, "usage: arenactl [--socket PATH] %s", asking[i]);
        assert_int_equal(strncmp(out, name, strlen(name)), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(without_a_daemon_every_command_says_so_and_ends_with_3),
        cmocka_unit_test(a_daemon_that_is_none_of_ours_gets_one_line),
        cmocka_unit_test(a_daemon_that_stands_still_gets_one_line),
        cmocka_unit_test(wrong_lines_get_one_line_and_status_2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
