/* Goal: a line of the log never blocks, whoever reads or does not, and what was lost is counted; a user that is refused again
 * and again fills no log; no byte of a name harms a terminal; in the background lines go where they are to go. Method: standard
 * error is a pipe or a socket of the test's own that nobody reads; a log in a child process that has gone to the background. The
 * clock by which lines of a user are too many is the test's own, and stands still unless it is moved on. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/os/log.h"

static int saved;
static uint64_t clock_ms = 1000000;
static char text[1 << 21];

static uint64_t test_clock(void) { return clock_ms; }

static void begin(int fd)
{
    fflush(stderr);
    saved = dup(2);
    dup2(fd, 2);
}

static void end(void)
{
    dup2(saved, 2);
    close(saved);
}

/* All that is there to read now. */
static char *read_now(int fd)
{
    size_t n = 0;
    ssize_t got;
    fcntl(fd, F_SETFL, O_NONBLOCK);
    while ((got = read(fd, text + n, sizeof text - 1 - n)) > 0)
        n += (size_t)got;
    text[n] = 0;
    return text;
}

static unsigned count_of(const char *what)
{
    unsigned n = 0;
    for (const char *at = text; (at = strstr(at, what)) != NULL; at += strlen(what))
        n++;
    return n;
}

/* 5000 lines are more than a pipe or a socket holds; each is whole, or lost and counted. */
static void lose_and_count(int reader, int writer)
{
    unsigned long long lost;
    begin(writer);
    for (int i = 0; i < 5000; i++)
        log_event(LOG_LEVEL_INFO, "flood", "number=%d of=5000 text=\"the quick brown fox jumps over the lazy dog\"", i);
    read_now(reader);
    end();
    unsigned first = count_of("event=flood");
    assert_true(first > 0 && first < 5000);
    assert_int_equal(count_of("lazy dog\"\n"), first);
    begin(writer);
    log_event(LOG_LEVEL_INFO, "after", "x=1");
    log_tick();
    read_now(reader);
    end();
    const char *said = strstr(text, "event=log lost=");
    assert_non_null(said);
    assert_int_equal(sscanf(said, "event=log lost=%llu", &lost), 1);
    assert_int_equal(first + lost, 5000);
    assert_int_equal(count_of("lines lost"), 1);
    assert_int_equal(count_of("event=after x=1\n"), 1);
    close(reader);
    close(writer);
}

static void a_reader_that_does_not_read_costs_lines_and_they_are_counted(void **state)
{
    int fds[2];
    (void)state;
    assert_int_equal(pipe(fds), 0);
    lose_and_count(fds[0], fds[1]);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    lose_and_count(fds[0], fds[1]);
}

static void a_reader_that_has_gone_costs_nothing(void **state)
{
    int fds[2];
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    assert_int_equal(pipe(fds), 0);
    close(fds[0]);
    begin(fds[1]);
    for (int i = 0; i < 100; i++)
        log_event(LOG_LEVEL_INFO, "gone", "i=%d", i);
    end();
    close(fds[1]);
    assert_int_equal(pipe(fds), 0);
    begin(fds[1]);
    log_tick();
    read_now(fds[0]);
    end();
    assert_non_null(strstr(text, "lost=100 "));
    close(fds[0]);
    close(fds[1]);
}

static void a_refused_user_has_ten_lines_and_one_a_second_and_others_have_theirs(void **state)
{
    int fds[2];
    (void)state;
    assert_int_equal(pipe(fds), 0);
    begin(fds[1]);
    for (int i = 0; i < 5000; i++)
        log_event(LOG_LEVEL_WARNING, "refuse", "pid=%d uid=%u why=\"user not allowed\"", i, 4000 + i % 2);
    log_event(LOG_LEVEL_WARNING, "refuse", "pid=1 uid=40001 why=\"user not allowed\"");
    log_event(LOG_LEVEL_INFO, "attach", "tag=1 pid=1 uid=4001");
    for (int user = 0; user < 200; user++) /* nor do many users make room for one another's floods */
        log_event(LOG_LEVEL_WARNING, "refuse", "pid=1 uid=%d", 10000 + user);
    read_now(fds[0]);
    end();
    assert_int_equal(count_of("uid=4000 "), 10);
    assert_int_equal(count_of("uid=4001 why"), 10);
    assert_int_equal(count_of("uid=40001"), 1);
    assert_int_equal(count_of("event=attach tag=1 pid=1 uid=4001"), 1);
    assert_int_equal(count_of("uid=10"), 200);
    close(fds[0]);
    close(fds[1]);
}

static void a_user_has_its_lines_again_as_time_goes_by_and_no_more_than_at_first(void **state)
{
    const struct {
        const char *event;
        uint64_t ms;
        unsigned lines; /* of 2,000, once it had all that it may have at first */
    } cases[] = {{"refuse", 999, 0},    {"refuse", 1, 1},     {"cut", 3500, 3},      {"cut", 500, 1},
                 {"cut", 3600000, 10},  {"refuse", 0, 0},     {"attach", 0, 1000},   {"attach", 19, 0},
                 {"attach", 1, 1},      {"attach", 2000, 100}, {"attach", 3600000, 1000}};
    int fds[2];
    (void)state;
    assert_int_equal(pipe(fds), 0);
    begin(fds[1]);
    for (int i = 0; i < 2000; i++)
        log_event(LOG_LEVEL_WARNING, "refuse", "uid=5000");
    end();
    read_now(fds[0]);
    assert_int_equal(count_of("event=refuse"), 10);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        clock_ms += cases[i].ms;
        begin(fds[1]);
        for (int n = 0; n < 2000; n++)
            log_event(LOG_LEVEL_WARNING, cases[i].event, "uid=5000");
        end();
        read_now(fds[0]);
        assert_int_equal(count_of("uid=5000"), cases[i].lines);
    }
    close(fds[0]);
    close(fds[1]);
}

static void what_was_left_out_is_told_when_there_is_room_again(void **state)
{
    int fds[2];
    unsigned long long left_out = 0;
    (void)state;
    assert_int_equal(pipe(fds), 0);
    begin(fds[1]);
    for (int i = 0; i < 1000; i++)
        log_event(LOG_LEVEL_WARNING, "cut", "pid=%d uid=7 why=\"x\"", i);
    log_tick(); /* too early */
    clock_ms += 999;
    log_tick();
    read_now(fds[0]);
    assert_int_equal(count_of("event=cut"), 10);
    assert_int_equal(count_of("uid=7 left_out="), 0);
    clock_ms++;
    log_tick();
    log_tick(); /* once */
    end();
    read_now(fds[0]);
    const char *said = strstr(text, "uid=7 left_out=");
    assert_non_null(said);
    assert_int_equal(sscanf(said, "uid=7 left_out=%llu", &left_out), 1);
    assert_int_equal(left_out, 990);
    assert_int_equal(count_of("uid=7 left_out="), 1);
    close(fds[0]);
    close(fds[1]);
}

static void no_byte_of_a_name_harms_a_terminal(void **state)
{
    int fds[2];
    char quoted[256];
    (void)state;
    assert_int_equal(pipe(fds), 0);
    begin(fds[1]);
    log_event(LOG_LEVEL_INFO, "attach", "command=\"%s\"",
              log_quote(quoted, sizeof quoted, "a\"b\\c\x1b[2J\n\xc2\x9b\xe2\x80\xae\xe2\x81\xa6\xd8\x9c\x9b\xc3\xa9"));
    log_event(LOG_LEVEL_INFO, "raw", "text=\"%s\"", "not quoted\x1b[2J\n\xe2\x80\xae");
    read_now(fds[0]);
    end();
    assert_string_equal(text, "arenad: event=attach command=\"a\\\"b\\\\c\\x1b[2J\\x0a\\xc2\\x9b\\xe2\\x80\\xae\\xe2\\x81\\xa6\\xd8\\x9c\\x9b\xc3\xa9\"\n"
                              "arenad: event=raw text=\"not quoted\\x1b[2J\\x0a\\xe2\\x80\\xae\"\n");
    for (size_t capacity = 1; capacity < 60; capacity++)
        assert_true(strlen(log_quote(quoted, capacity, "a\"b\\c\x1b[2J\n\xc2\x9b\xe2\x80\xae")) < capacity);
    close(fds[0]);
    close(fds[1]);
}

/* ---- in the background ------------------------------------------------------------------------------------------------------- */

static void a_log_file_is_written_and_opened_again_and_no_link_is_followed(void **state)
{
    char dir[] = "/tmp/arena-log-XXXXXX", path[64], other[64], victim[64];
    struct stat st;
    (void)state;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/log", dir);
    snprintf(other, sizeof other, "%s/log.1", dir);
    snprintf(victim, sizeof victim, "%s/victim", dir);
    pid_t pid = fork();
    if (pid == 0) {
        if (log_set_file(path) < 0)
            _exit(2);
        log_detach();
        log_event(LOG_LEVEL_INFO, "one", "x=1");
        rename(path, other);
        log_event(LOG_LEVEL_INFO, "two", "x=2");
        log_reopen();
        log_event(LOG_LEVEL_INFO, "three", "x=3");
        _exit(symlink(victim, "/nowhere/x") == 0);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_int_equal(status, 0);
    FILE *f = fopen(other, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    fclose(f);
    assert_true(strstr(text, "event=one x=1\n") && strstr(text, "event=two x=2\n") && !strstr(text, "three"));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0137, 0);
    unlink(path);
    assert_int_equal(symlink(victim, path), 0);
    assert_int_equal(log_set_file(path), -ELOOP);
    assert_int_equal(stat(victim, &st), -1);
    unlink(path);
    unlink(other);
    rmdir(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_that_does_not_read_costs_lines_and_they_are_counted),
        cmocka_unit_test(a_reader_that_has_gone_costs_nothing),
        cmocka_unit_test(a_refused_user_has_ten_lines_and_one_a_second_and_others_have_theirs),
        cmocka_unit_test(a_user_has_its_lines_again_as_time_goes_by_and_no_more_than_at_first),
        cmocka_unit_test(what_was_left_out_is_told_when_there_is_room_again),
        cmocka_unit_test(no_byte_of_a_name_harms_a_terminal),
        cmocka_unit_test(a_log_file_is_written_and_opened_again_and_no_link_is_followed),
    };
    log_set_clock(test_clock);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
