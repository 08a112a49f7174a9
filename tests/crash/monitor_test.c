/* Goal: what the daemon holds for others is bounded, whatever they ask for and leave unread, and an empty heap costs little
 * however large it may become. Method: hundreds of raw monitors and clients; the daemon's private memory in /proc. */
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "daemon/shell/info.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;

static int setup(void **state)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return daemon_setup(state, &d, NULL, NULL);
}

static uint64_t memory_of_daemon(const char *field)
{
    char path[64], line[256];
    unsigned long long kib = 0;
    snprintf(path, sizeof path, "/proc/%d/status", (int)daemon_serving(&d));
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    while (fgets(line, sizeof line, f))
        if (strncmp(line, field, strlen(field)) == 0)
            sscanf(line + strlen(field), ": %llu", &kib);
    fclose(f);
    assert_int_not_equal(kib, 0);
    return kib << 10;
}

/* A sanitizer has memory of its own. */
static void is_at_most(uint64_t bytes, uint64_t most)
{
    if (LESS == 1)
        assert_in_range(bytes, 0, most);
}

static void monitor(struct raw *r)
{
    memset(r, 0, sizeof *r);
    r->fd = raw_connect(d.socket);
    assert_int_equal(raw_send(r->fd, 1, call_hello(HELLO_MONITOR, 0)), 0);
    assert_int_equal(raw_receive(r), MSG_OK);
}

static void ask(struct raw *r, unsigned what)
{
    assert_int_equal(raw_send(r->fd, 2, MSG(info, .what = what)), 0);
}

static unsigned log_count(const char *text)
{
    char out[64];
    run(out, sizeof out, "grep -c -e '%s' %s", text, d.log);
    return (unsigned)atoi(out);
}

/* So many spans that their rows fill replies. */
static void make_spans(struct raw *r, uint32_t spans)
{
    raw_greet(r, d.socket);
    raw_close_fds(r);
    for (uint32_t got = 0; got < spans; got += m.grant.list_count) {
        assert_int_equal(raw_send(r->fd, 5, MSG(lease, .epoch = r->epoch, .span_class = 3, .pages = spans - got)), 0);
        assert_int_equal(raw_receive(r), MSG_GRANT);
    }
}

/* Large replies that lie unread, of connections that are not cut off yet. */
static unsigned unread_now(const struct raw *r, int count)
{
    static struct pollfd p[2000];
    unsigned unread = 0;
    for (int i = 0; i < count; i++)
        p[i] = (struct pollfd){.fd = r[i].fd, .events = POLLIN};
    assert_true(poll(p, (nfds_t)count, 0) >= 0);
    for (int i = 0; i < count; i++)
        unread += i % 3 && (p[i].revents & (POLLIN | POLLHUP)) == POLLIN;
    return unread;
}

static unsigned cut_off(const struct raw *r, int count)
{
    unsigned cut = 0;
    for (int i = 0; i < count; i++) {
        struct pollfd p = {.fd = r[i].fd};
        cut += poll(&p, 1, 0) == 1 && (p.revents & POLLHUP);
    }
    return cut;
}

static void monitors_that_do_not_read_hold_so_much_and_are_cut_off(void **state)
{
    enum { MONITORS = 1500, SPANS = 1000 };
    static struct raw r[MONITORS];
    struct raw holder, honest;
    (void)state;
    daemon_start(&d, "64M", "--hello-timeout", "500", NULL);
    make_spans(&holder, SPANS);
    uint64_t before = memory_of_daemon("RssAnon");
    for (int i = 0; i < MONITORS; i++) {
        monitor(&r[i]);
        ask(&r[i], i % 3 ? INFO_SPANS : INFO_CLIENTS);
    }
    monitor(&honest); /* as all others, but that it reads */
    for (int i = 0; i < 3; i++) {
        ask(&honest, INFO_SPANS);
        assert_int_equal(raw_receive(&honest), MSG_ROWS);
        assert_true(m.rows.body_bytes > INFO_REPLY / 2);
        assert_in_range(unread_now(r, MONITORS), 0, INFO_UNREAD_ALL / (INFO_REPLY / 2));
    }
    is_at_most(memory_of_daemon("VmHWM"), before + INFO_UNREAD_ALL + (24 << 20));
    while (cut_off(r, MONITORS) < INFO_UNREAD_ALL / INFO_REPLY) {
        ask(&honest, INFO_LIMITS);
        assert_int_equal(raw_receive(&honest), MSG_ROWS);
    }
    assert_true(log_count("event=cut .*does not read what it asked for") > 0);
    for (int i = 0; i < MONITORS; i++)
        close(r[i].fd);
    stat_await(&d, "clients", 1);
    is_at_most(memory_of_daemon("VmHWM"), before + INFO_UNREAD_ALL + (24 << 20));
    assert_int_equal(check_of(&d), 0);
}

/* From its first byte on all that the daemon has is charged to the cgroup: heap, sockets, replies. */
static void in_a_small_cgroup_it_outlives_four_thousand_monitors_that_do_not_read(void **state)
{
    enum { MONITORS = 4000, SPANS = 1000, DEPTH = 3 };
    static struct raw r[MONITORS];
    struct memory_cgroup group;
    struct raw holder, honest;
    (void)state;
    if (LESS != 1) {
        print_message("skipped: a sanitizer has memory of its own\n");
        return;
    }
    if (!memory_cgroup_make(&group, "256M")) {
        print_message("skipped: no memory cgroup can be made: needs root, and a memory controller\n");
        return;
    }
    memory_cgroup_enter(&group, getpid());
    daemon_start(&d, "64M", "--limit-clients", "0", "--hello-timeout", "3000", NULL);
    memory_cgroup_leave(&group, getpid());
    pid_t serving = daemon_serving(&d);
    make_spans(&holder, SPANS);
    for (int i = 0; i < MONITORS; i++) {
        monitor(&r[i]);
        for (int n = 0; n < DEPTH; n++) { /* as many as the socket takes, and nobody reads */
            struct msg message = MSG(info, .what = i % 3 ? INFO_SPANS : INFO_CLIENTS);
            message.id = (uint32_t)n + 2;
            int bytes = msg_encode(&message, packet, sizeof packet);
            assert_true(bytes > 0);
            send(r[i].fd, packet, (size_t)bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        }
    }
    monitor(&honest);
    for (int i = 0; i < 10; i++) {
        ask(&honest, INFO_SPANS);
        assert_int_equal(raw_receive(&honest), MSG_ROWS);
        assert_true(m.rows.body_bytes > INFO_REPLY / 2);
    }
    is_at_most(memory_of_daemon("VmHWM"), 128 << 20);
    assert_int_equal(daemon_serving(&d), serving);
    assert_int_equal(stat_of(&d, "epoch"), 1);
    for (int i = 0; i < MONITORS; i++)
        close(r[i].fd);
    assert_int_equal(check_of(&d), 0);
    close(honest.fd);
    daemon_clean(&d);
    d.dir[0] = 0;
    memory_cgroup_remove(&group);
}

static void monitors_that_read_are_all_answered(void **state)
{
    enum { MONITORS = 600, SPANS = 1000, ROUNDS = 3 };
    static struct raw r[MONITORS];
    struct raw holder;
    (void)state;
    daemon_start(&d, "64M", NULL);
    make_spans(&holder, SPANS);
    for (int i = 0; i < MONITORS; i++)
        monitor(&r[i]);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < MONITORS; i++)
            ask(&r[i], round ? INFO_STATS + (unsigned)(i % 8) : INFO_SPANS);
        for (int i = 0; i < MONITORS; i++)
            assert_int_equal(raw_receive(&r[i]), MSG_ROWS);
    }
    assert_int_equal(log_count("event=cut"), 0);
    for (int i = 0; i < MONITORS; i++)
        close(r[i].fd);
}

static void clients_that_come_back_need_no_memory_by_the_size_of_the_heap(void **state)
{
    enum { CLIENTS = 300 };
    static struct raw r[CLIENTS];
    static uint32_t list[MSG_LIST_MAX]; /* spread over all of the heap: none is its own */
    uint8_t id[16];
    (void)state;
    for (uint32_t k = 0; k < MSG_LIST_MAX; k++)
        list[k] = (uint32_t)((64ULL << 30 >> PAGE_SHIFT) / MSG_LIST_MAX * k);
    daemon_start(&d, "64G", NULL);
    for (int i = 0; i < CLIENTS; i++) {
        raw_greet(&r[i], d.socket);
        memcpy(id, m.welcome.heap_id, sizeof id);
        raw_close_fds(&r[i]);
        close(r[i].fd);
    }
    uint64_t before = memory_of_daemon("RssAnon"), shared = memory_of_daemon("VmRSS") - before;
    for (int i = 0; i < CLIENTS; i++) {
        r[i].fd = raw_connect(d.socket);
        assert_int_equal(raw_send(r[i].fd, 1, raw_hello_again(0, id, r[i].tag)), 0);
        assert_int_equal(raw_receive(&r[i]), MSG_WELCOME);
        assert_int_equal(raw_send(r[i].fd, 2, MSG(resume, .list = list, .list_count = MSG_LIST_MAX)), 0);
        assert_int_equal(raw_receive(&r[i]), MSG_OK);
    }
    is_at_most(memory_of_daemon("RssAnon"), before + (4 << 20));
    is_at_most(memory_of_daemon("VmRSS") - memory_of_daemon("RssAnon"), shared + (4 << 20));
    for (int i = 0; i < CLIENTS; i++) {
        assert_int_equal(raw_send(r[i].fd, 3, MSG(resume, .flags = RESUME_LAST)), 0);
    }
    for (int i = 0; i < CLIENTS; i++) {
        assert_int_equal(raw_receive(&r[i]), MSG_OK);
        close(r[i].fd);
    }
    assert_int_equal(check_of(&d), 0);
}

static void come_back(struct raw *r, uint8_t *id)
{
    close(r->fd);
    r->fd = raw_connect(d.socket);
    assert_int_equal(raw_send(r->fd, 1, raw_hello_again(0, id, r->tag)), 0);
    assert_int_equal(raw_receive(r), MSG_WELCOME);
}

static void resume(struct raw *r, const uint32_t *spans, uint32_t count, uint32_t flags)
{
    assert_int_equal(raw_send(r->fd, 2, MSG(resume, .flags = flags, .list = spans, .list_count = count)), 0);
    assert_int_equal(raw_receive(r), MSG_OK);
}

static void a_list_that_was_begun_and_given_up_does_not_count(void **state)
{
    struct raw r;
    uint32_t spans[2];
    uint8_t id[16];
    (void)state;
    daemon_start(&d, "64M", NULL);
    raw_greet(&r, d.socket);
    memcpy(id, m.welcome.heap_id, sizeof id);
    raw_close_fds(&r);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(raw_send(r.fd, 5, MSG(lease, .epoch = r.epoch, .span_class = 3, .pages = 1)), 0);
        assert_int_equal(raw_receive(&r), MSG_GRANT);
        assert_int_equal(m.grant.list_count, 1);
        spans[i] = m.grant.list[0];
    }
    come_back(&r, id);
    resume(&r, spans, 2, 0);
    come_back(&r, id);
    resume(&r, spans, 1, RESUME_LAST);
    assert_int_equal(stat_of(&d, "spans_leased"), 1);
    close(r.fd);
    assert_int_equal(check_of(&d), 0);
}

/* What was used, and no more: also after all that can be asked for was. */
static void an_empty_heap_of_a_terabyte_costs_little(void **state)
{
    static const char *const commands[] = {"stat", "clients", "classes", "spans",  "roots",
                                           "map",  "check",   "limits",  "why", "trim"};
    char out[65536];
    (void)state;
    daemon_start(&d, "1T", NULL);
    is_at_most(memory_of_daemon("VmRSS"), 10 << 20);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        assert_int_equal(arenactl(&d, out, sizeof out, "%s", commands[i]), 0);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 1000; i++)
        assert_non_null(arena_alloc(a, 1000));
    assert_int_equal(arena_close(a), 0);
    kill(daemon_serving(&d), SIGKILL); /* and its successor's */
    stat_await(&d, "epoch", 2);
    assert_int_equal(check_of(&d), 0);
    is_at_most(memory_of_daemon("RssAnon"), 10 << 20);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, daemon_teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(monitors_that_do_not_read_hold_so_much_and_are_cut_off),
        TEST(in_a_small_cgroup_it_outlives_four_thousand_monitors_that_do_not_read),
        TEST(monitors_that_read_are_all_answered),
        TEST(clients_that_come_back_need_no_memory_by_the_size_of_the_heap),
        TEST(a_list_that_was_begun_and_given_up_does_not_count),
        TEST(an_empty_heap_of_a_terabyte_costs_little),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
