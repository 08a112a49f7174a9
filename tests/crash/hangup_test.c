/* Goal: what came by a connection that has hung up is not done, but for a goodbye; and what a client that comes back does not
 * list is free.
 * Method: raw clients, which send and hang up while the daemon stands still, or come back with lists of their own. What came of
 * it is looked up in the map. */
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shm/tag.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static struct heap h; /* map and state, of a client that stays */
static struct raw watcher;

static void stop(void) { kill(daemon_serving(&d), SIGSTOP); }

/* Until it has seen all that was there when it went on. */
static void go_on(void)
{
    kill(daemon_serving(&d), SIGCONT);
    for (int i = 0; i < 3; i++)
        stat_of(&d, "clients");
}

static uint32_t mode_of(unsigned tag) { return load_relaxed(&h.tags[tag].gc_mode); }

static void say_mode(int fd, uint64_t value)
{
    assert_int_equal(raw_send(fd, 5, MSG(safepoint, .gc_mode = value)), 0);
}

static void a_request_of_who_hung_up_is_not_done(void **state)
{
    struct raw r;
    (void)state;
    raw_greet(&r, d.socket);
    stop();
    say_mode(r.fd, GC_SAFEPOINT);
    raw_close(&r);
    go_on();
    assert_int_equal(mode_of(r.tag), GC_RUNS);
    assert_int_equal(stat_of(&d, "clients"), 2); /* its process lives */
}

static void a_goodbye_of_who_hung_up_is_meant(void **state)
{
    struct raw r;
    (void)state;
    raw_greet(&r, d.socket);
    stop();
    say_mode(r.fd, GC_SAFEPOINT);
    assert_int_equal(raw_send(r.fd, 6, MSG(bye)), 0);
    raw_close(&r);
    kill(daemon_serving(&d), SIGCONT);
    stat_await(&d, "clients", 1);
}

static void a_new_client_that_hung_up_is_not_made(void **state)
{
    uint64_t before = stat_of(&d, "reclaimed_clients");
    (void)state;
    stop();
    int fd = raw_connect(d.socket);
    assert_int_equal(raw_send(fd, 1, call_hello(0, 0)), 0);
    close(fd);
    go_on();
    assert_int_equal(stat_of(&d, "clients"), 1);
    assert_int_equal(stat_of(&d, "reclaimed_clients"), before);
}

static void a_new_client_that_left_its_welcome_unread_is_gone(void **state)
{
    struct raw r;
    (void)state;
    int fd = raw_connect(d.socket);
    assert_int_equal(raw_send(fd, 1, call_hello(0, 0)), 0);
    stat_await(&d, "clients", 2);
    close(fd);
    stat_await(&d, "clients", 1);
    raw_greet(&r, d.socket); /* one that has read it may come back */
    raw_close(&r);
    go_on();
    assert_int_equal(stat_of(&d, "clients"), 2);
}

static void a_collection_that_nobody_waits_for_is_not_begun(void **state)
{
    struct raw r = {.fd = raw_connect(d.socket)};
    uint32_t before = load_relaxed(&h.header->collections);
    (void)state;
    say_mode(watcher.fd, GC_SAFEPOINT); /* nobody is in the way */
    assert_int_equal(raw_receive(&watcher), MSG_OK);
    assert_int_equal(raw_send(r.fd, 1, call_hello(HELLO_MONITOR, 0)), 0);
    assert_int_equal(raw_receive(&r), MSG_OK);
    stop();
    assert_int_equal(raw_send(r.fd, 2, MSG(gc)), 0);
    close(r.fd);
    go_on();
    assert_int_equal(load_relaxed(&h.header->collections), before);
    r.fd = raw_connect(d.socket);
    assert_int_equal(raw_send(r.fd, 1, call_hello(HELLO_MONITOR, 0)), 0);
    assert_int_equal(raw_receive(&r), MSG_OK);
    assert_int_equal(raw_send(r.fd, 2, MSG(gc)), 0);
    assert_int_equal(raw_receive(&r), MSG_ROWS);
    assert_int_equal(load_relaxed(&h.header->collections), before + 1);
    close(r.fd);
}

static void come_back(struct raw *r, uint32_t flags)
{
    memset(r->fds, 0, sizeof r->fds);
    r->fd = raw_connect(d.socket);
    assert_int_equal(raw_send(r->fd, 11, raw_hello_again(flags, h.header->heap_id, r->tag)), 0);
    assert_int_equal(raw_receive(r), MSG_WELCOME);
    assert_int_equal(m.welcome.flags, WELCOME_RESUMED);
}

static void resume_last(struct raw *r)
{
    assert_int_equal(raw_send(r->fd, 12, MSG(resume, .flags = RESUME_LAST)), 0);
    assert_int_equal(raw_receive(r), MSG_OK);
}

static void a_readers_word_goes_with_its_connection(void **state)
{
    struct raw r = {.fd = raw_connect(d.socket)};
    (void)state;
    assert_int_equal(raw_send(r.fd, 1, call_hello(HELLO_READ_ONLY, 0)), 0);
    assert_int_equal(raw_receive(&r), MSG_WELCOME);
    r.tag = m.welcome.tag;
    raw_close_fds(&r);
    say_mode(r.fd, GC_SAFEPOINT);
    assert_int_equal(raw_receive(&r), MSG_OK);
    assert_int_equal(mode_of(r.tag), GC_SAFEPOINT);
    close(r.fd);
    go_on();
    assert_int_equal(mode_of(r.tag), GC_RUNS);
    come_back(&r, HELLO_READ_ONLY);
    resume_last(&r);
    assert_int_equal(mode_of(r.tag), GC_RUNS);
    close(r.fd);
}

/* That of a client that has tickets stays: it may only be away, as a whole daemon may. */
static void a_writers_word_stays(void **state)
{
    struct raw r;
    (void)state;
    raw_greet(&r, d.socket);
    say_mode(r.fd, GC_SAFEPOINT);
    assert_int_equal(raw_receive(&r), MSG_OK);
    raw_close(&r);
    go_on();
    assert_int_equal(mode_of(r.tag), GC_SAFEPOINT);
    come_back(&r, 0);
    resume_last(&r);
    assert_int_equal(mode_of(r.tag), GC_SAFEPOINT);
    close(r.fd);
}

static void take_tags(struct raw *r, uint32_t tags[8])
{
    raw_greet(r, d.socket);
    assert_int_equal(raw_send(r->fd, 2, MSG(tx_tags, .count = 8)), 0);
    assert_int_equal(raw_receive(r), MSG_TAGS);
    assert_int_equal(m.tags.list_count, 8);
    memcpy(tags, m.tags.list, 8 * sizeof *tags);
    raw_close(r);
}

static void tags_that_a_resume_does_not_list_are_free(void **state)
{
    struct raw r;
    uint32_t tags[8];
    (void)state;
    take_tags(&r, tags);
    come_back(&r, 0);
    assert_int_equal(raw_send(r.fd, 12, MSG(resume, .flags = RESUME_TAGS, .list = tags, .list_count = 3)), 0);
    assert_int_equal(raw_receive(&r), MSG_OK);
    resume_last(&r);
    stat_await(&d, "transactions", 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(tag_state(&h, tags[i]), TAG_TX);
    assert_int_equal(raw_send(r.fd, 13, MSG(tx_commit, .tag = tags[0])), 0); /* a listed one is as good as ever */
    assert_int_equal(raw_receive(&r), MSG_OK);
    assert_int_equal(raw_send(r.fd, 14, MSG(tx_commit, .tag = tags[7])), 0); /* and one that was not is not its own */
    assert_int_equal(raw_receive(&r), MSG_ERROR);
    close(r.fd);
}

static void who_lists_no_tags_keeps_them(void **state)
{
    struct raw r;
    uint32_t tags[8];
    (void)state;
    take_tags(&r, tags);
    come_back(&r, 0);
    resume_last(&r);
    assert_int_equal(stat_of(&d, "transactions"), 8);
    close(r.fd);
    come_back(&r, 0); /* an empty list is one */
    assert_int_equal(raw_send(r.fd, 12, MSG(resume, .flags = RESUME_TAGS)), 0);
    assert_int_equal(raw_receive(&r), MSG_OK);
    resume_last(&r);
    stat_await(&d, "transactions", 0);
    close(r.fd);
}

/* A client that never takes a ticket back is served as ever, whatever ids it uses; and a new one is not taken for the one that
 * had its tag before. */
static void tickets_of_a_tag_begin_anew(void **state)
{
    (void)state;
    for (int i = 0; i < 600; i++) { /* tags go round */
        struct raw r;
        raw_greet(&r, d.socket);
        uint64_t ticket = load_acquire(&h.tickets[r.tag]);
        assert_int_equal(ticket, 0);
        say_mode(r.fd, GC_SAFEPOINT);
        assert_int_equal(raw_receive(&r), MSG_OK);
        assert_int_equal(load_acquire(&h.tags[r.tag].done), 5);
        store_release(&h.tickets[r.tag], (uint64_t)5 << 2 | 1); /* id 5 is taken back: too late, and of no use to the next */
        assert_int_equal(raw_send(r.fd, 6, MSG(bye)), 0);
        assert_int_equal(raw_receive(&r), MSG_OK);
        raw_close(&r);
    }
}

static int setup(void **state)
{
    int rc = daemon_setup(state, &d, "64M", NULL);
    raw_open(&watcher, d.socket);
    h = watcher.h;
    return rc;
}

static int teardown(void **state)
{
    kill(daemon_serving(&d), SIGCONT);
    raw_close(&watcher);
    return daemon_teardown(state);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_request_of_who_hung_up_is_not_done),
        TEST(a_goodbye_of_who_hung_up_is_meant),
        TEST(a_new_client_that_hung_up_is_not_made),
        TEST(a_new_client_that_left_its_welcome_unread_is_gone),
        TEST(a_collection_that_nobody_waits_for_is_not_begun),
        TEST(a_readers_word_goes_with_its_connection),
        TEST(a_writers_word_stays),
        TEST(tags_that_a_resume_does_not_list_are_free),
        TEST(who_lists_no_tags_keeps_them),
        TEST(tickets_of_a_tag_begin_anew),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
