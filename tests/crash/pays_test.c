/* Goal: who allocates pays. What one user filled is charged to that user while an object of it lives, and no other user is
 * brought nearer to a limit, or beyond it, by whatever the first one does; each limit of a user is kept, and its refusal
 * names its key. Method: raw clients of two users, who fill spans with SHARED objects but for a few, let them go, die, and
 * outlive a daemon; the figures of each user. As root; without other users the limits are those of one. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "proto/packet.h"
#include "shm/span.h"
#include "shm/state.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

enum { ANN = 50000, BOB = 50001, CLASS = 20, SPANS_MAX = 4096 };

static struct daemon d;
static struct raw ann, bob;

static int setup(void **state)
{
    if (getuid() == 0 && seteuid(0) < 0) /* where the test before ended */
        return -1;
    memset(&ann, 0, sizeof ann);
    memset(&bob, 0, sizeof bob);
    return daemon_setup(state, &d, NULL, NULL);
}

static int teardown(void **state) { return daemon_teardown(state); }

static bool is_root(void)
{
    if (geteuid() == 0)
        return true;
    print_message("skipped: not root, and so there is no other user\n");
    return false;
}

/* As whom it connects is whose client it is. */
static void open_as(struct raw *r, uid_t uid)
{
    assert_true(geteuid() != 0 || seteuid(uid) == 0);
    raw_open(r, d.socket);
    assert_true(getuid() != 0 || seteuid(0) == 0);
    raw_close_fds(r);
}

/* Its process lives on, so that the end of the connection alone would leave the client away. */
static void leave(struct raw *r)
{
    assert_int_equal(raw_send(r->fd, 9, MSG(bye)), 0);
    assert_int_equal(raw_receive(r), MSG_OK);
    raw_close(r);
}

/* A figure of one user; 0 also for a user that the daemon does not know. */
static uint64_t user_figure(uid_t uid, const char *name)
{
    static char out[65536];
    char key[64];
    assert_int_equal(arenactl(&d, out, sizeof out, "limits --json"), 0);
    for (char *at = out; (at = strstr(at, "\"uid\"")) != NULL; at++) {
        if (strtoul(at + strcspn(at, ":") + 1, NULL, 10) != uid)
            continue;
        snprintf(key, sizeof key, "\"%s\"", name);
        at = strstr(at, key);
        assert_non_null(at);
        return strtoull(at + strcspn(at, ":") + 1, NULL, 10);
    }
    return 0;
}

static void user_await(uid_t uid, const char *name, uint64_t value)
{
    while (user_figure(uid, name) != value)
        ;
}

/* LEASE: how many spans, now in m.grant.list; 0: refused, and m is the ERROR. */
static uint32_t lease(struct raw *r, unsigned span_class, uint32_t pages)
{
    assert_int_equal(raw_send(r->fd, 3, MSG(lease, .epoch = r->epoch, .span_class = span_class, .pages = pages)), 0);
    return raw_receive(r) == MSG_GRANT ? m.grant.list_count : 0;
}

static void release(struct raw *r, const uint32_t *list, uint32_t count)
{
    assert_int_equal(raw_send(r->fd, 0, MSG(release, .epoch = r->epoch, .list = list, .list_count = count)), 0);
    assert_int_equal(raw_send(r->fd, 4, MSG(info, .what = INFO_LIMITS)), 0); /* and waits until that was done */
    assert_int_equal(raw_receive(r), MSG_ROWS);
}

static void fill_words(struct raw *r, uint32_t first, uint16_t word, uint32_t but)
{
    struct span_info span = {.objects = 0};
    assert_true(span_at(&r->h, first, &span));
    for (uint32_t i = 0; i < span.objects; i++)
        store_release(&span.words[i], i < but ? WORD_FREE : word);
}

static uint32_t filled[SPANS_MAX], filled_count;

/* Fills spans of a class until it is refused or has `most`, all objects SHARED but `but` of each, and lets them go. */
static void fill(struct raw *r, uint32_t most, uint32_t but)
{
    uint32_t got;
    filled_count = 0;
    while (filled_count < most && (got = lease(r, CLASS, 1)) != 0)
        for (uint32_t i = 0; i < got && filled_count < SPANS_MAX; i++) {
            fill_words(r, m.grant.list[i], WORD_SHARED, 0);
            filled[filled_count++] = m.grant.list[i];
        }
    for (uint32_t i = 0; i < filled_count; i++)
        fill_words(r, filled[i], WORD_SHARED, but);
    for (uint32_t i = 0; i < filled_count; i += 512)
        release(r, filled + i, filled_count - i < 512 ? filled_count - i : 512);
}

static bool was_filled(uint32_t first)
{
    for (uint32_t i = 0; i < filled_count; i++)
        if (filled[i] == first)
            return true;
    return false;
}

/* Ann's spans are nearly full; Bob leases of the same class. He gets none of them, and pays for his own. */
static void bob_gets_his_own(uint64_t anns)
{
    const uint64_t span_bytes = (uint64_t)class_table[CLASS].pages << PAGE_SHIFT;
    uint64_t bobs = 0;
    for (int i = 0; i < 20; i++) {
        uint32_t got = lease(&bob, CLASS, class_table[CLASS].pages);
        assert_true(got > 0);
        for (uint32_t k = 0; k < got; k++)
            assert_false(was_filled(m.grant.list[k]));
        bobs += got;
    }
    assert_int_equal(user_figure(ANN, "spans_charged"), anns);
    assert_int_equal(user_figure(ANN, "bytes_charged"), anns * span_bytes);
    assert_int_equal(user_figure(BOB, "spans_charged"), bobs);
    assert_int_equal(user_figure(BOB, "bytes_charged"), bobs * span_bytes);
}

static void what_one_user_filled_is_never_another_s_to_pay(void **state)
{
    (void)state;
    if (!is_root())
        return;
    for (uint32_t but = 1; but <= 3; but += 2) { /* one free object, or some */
        daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", "--limit-user-spans", "1000", NULL);
        assert_int_equal(chmod(d.dir, 0755), 0);
        open_as(&ann, ANN);
        open_as(&bob, BOB);
        fill(&ann, 1000, but);
        assert_int_equal(filled_count, 1000);
        assert_int_equal(lease(&ann, CLASS + 1, 1), 0); /* at the end of it, though none is leased */
        assert_int_equal(m.error.error, EDQUOT);
        assert_non_null(strstr(m.error.text, "limit-user-spans is reached: 1000 of 1000"));
        bob_gets_his_own(1000);
        assert_true(lease(&ann, CLASS, 1) > 0); /* but what is free in her own is hers, and counts once */
        assert_true(was_filled(m.grant.list[0]));
        assert_int_equal(user_figure(ANN, "spans_charged"), 1000);
        leave(&ann);
        leave(&bob);
        daemon_teardown(state);
        daemon_setup(state, &d, NULL, NULL);
    }
}

static void nor_when_she_is_gone_and_after_a_restart(void **state)
{
    (void)state;
    if (!is_root())
        return;
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    open_as(&ann, ANN);
    fill(&ann, 300, 2);
    leave(&ann);
    user_await(ANN, "clients", 0);
    open_as(&bob, BOB);
    bob_gets_his_own(filled_count);
    leave(&bob);
    user_await(BOB, "spans_charged", 0);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGKILL);
    while (daemon_serving(&d) == serving)
        ;
    while (user_figure(ANN, "spans_charged") != filled_count)
        ;
    open_as(&bob, BOB);
    bob_gets_his_own(filled_count);
    open_as(&ann, ANN); /* another client of hers is served from them */
    assert_true(lease(&ann, CLASS, 1) > 0);
    assert_true(was_filled(m.grant.list[0]));
    leave(&ann);
    leave(&bob);
}

static void what_is_freed_by_anybody_is_nobody_s_any_more(void **state)
{
    (void)state;
    if (!is_root())
        return;
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    open_as(&ann, ANN);
    open_as(&bob, BOB);
    fill(&ann, 300, 1);
    for (uint32_t i = 0; i < filled_count; i++) { /* as he may, once he has claimed them */
        fill_words(&bob, filled[i], WORD_FREE, 0);
        hint_set(&bob.h.hints[filled[i]]);
    }
    assert_int_equal(raw_send(bob.fd, 5, MSG(trim)), 0);
    user_await(ANN, "spans_charged", 0);
    assert_int_equal(user_figure(ANN, "bytes_charged"), 0);
    assert_int_equal(user_figure(BOB, "spans_charged"), 0);
    leave(&ann);
    leave(&bob);
}

/* Ann has all of the heap, half of each span is free. That half is hers, and of what she frees wholly anybody is served. */
static void in_a_full_heap_free_places_are_their_user_s_and_free_spans_anybody_s(void **state)
{
    const unsigned classes[] = {CLASS, CLASS + 1};
    char said[80];
    (void)state;
    if (!is_root())
        return;
    daemon_start(&d, "16M", "--socket-mode", "0666", "--allow-users", "*", "--return-after", "100000000", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    open_as(&ann, ANN);
    open_as(&bob, BOB);
    fill(&ann, SPANS_MAX, class_table[CLASS].objects / 2);
    assert_int_equal(user_figure(ANN, "spans_charged"), filled_count);
    snprintf(said, sizeof said, "; what is free in %u spans of this size is other users'", filled_count);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(lease(&bob, classes[i], 1), 0);
        assert_int_equal(m.error.error, ENOMEM);
        assert_non_null(strstr(m.error.text, "the heap is full: "));
        assert_int_equal(strstr(m.error.text, said) != NULL, classes[i] == CLASS);
    }
    assert_int_equal(user_figure(BOB, "spans_charged"), 0);
    for (uint32_t i = filled_count / 2; i < filled_count; i++) {
        fill_words(&ann, filled[i], WORD_FREE, 0);
        hint_set(&ann.h.hints[filled[i]]);
    }
    for (int i = 0; i < 2; i++) {
        uint32_t bobs = lease(&bob, classes[i], 1);
        assert_true(bobs > 0);
        assert_true(i == 1 || was_filled(m.grant.list[0]));
    }
    user_await(ANN, "spans_charged", filled_count / 2);
    assert_true(user_figure(BOB, "spans_charged") >= 2);
    assert_true(lease(&ann, CLASS, 1) > 0); /* while there is some, her own places come first */
    assert_true(was_filled(m.grant.list[0]));
    assert_int_equal(user_figure(ANN, "spans_charged"), filled_count / 2);
    leave(&ann);
    leave(&bob);
}

/* Takes tags for transactions until it is refused: their number; the text says which limit it was. */
static uint32_t take_tags(struct raw *r, const char *limit)
{
    uint32_t got = 0;
    for (;;) {
        assert_int_equal(raw_send(r->fd, 3, MSG(tx_tags, .count = MSG_TAGS_MAX)), 0);
        if (raw_receive(r) != MSG_TAGS)
            break;
        got += m.tags.list_count;
    }
    assert_int_equal(m.type, MSG_ERROR);
    assert_int_equal(m.error.error, EDQUOT);
    if (!strstr(m.error.text, limit))
        fail_msg("should name %s, says: %s", limit, m.error.text);
    return got;
}

static void tags_for_transactions_are_limited_by_client_user_and_in_all(void **state)
{
    (void)state;
    struct raw more;
    if (!is_root())
        return;
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", "--limit-client-transactions", "300", "--limit-user-transactions", "500",
                 "--limit-transactions", "700", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    open_as(&ann, ANN);
    open_as(&more, ANN);
    open_as(&bob, BOB);
    assert_int_equal(take_tags(&ann, "limit-client-transactions is reached: 300 of 300"), 300);
    assert_int_equal(take_tags(&more, "limit-user-transactions is reached: 500 of 500"), 200);
    assert_int_equal(take_tags(&bob, "limit-transactions is reached: 700 of 700"), 200);
    assert_int_equal(user_figure(ANN, "transactions"), 500);
    assert_int_equal(user_figure(BOB, "transactions"), 200);
    pid_t serving = daemon_serving(&d);
    leave(&ann);
    user_await(ANN, "transactions", 200); /* freed by the pass, and hers again */
    assert_int_equal(take_tags(&more, "limit-client-transactions"), 100);
    leave(&more);
    leave(&bob);
    user_await(ANN, "transactions", 0);
    user_await(BOB, "transactions", 0);
    open_as(&ann, ANN);
    assert_int_equal(take_tags(&ann, "limit-client-transactions"), 300);
    kill(serving, SIGKILL); /* what a new daemon finds is counted as before */
    while (daemon_serving(&d) == serving)
        ;
    user_await(ANN, "transactions", 300);
    raw_close(&ann);
}

static void one_user_cannot_take_all_tags_by_default(void **state)
{
    (void)state;
    struct raw r[10];
    uint32_t got = 0;
    if (!is_root())
        return;
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    for (int i = 0; i < 10; i++) {
        open_as(&r[i], ANN);
        got += take_tags(&r[i], i < 8 ? "limit-client-transactions" : "limit-user-transactions is reached: 8192 of 8192");
    }
    assert_int_equal(got, 8192);
    open_as(&bob, BOB);
    assert_int_equal(take_tags(&bob, "limit-client-transactions is reached: 1024 of 1024"), 1024);
    for (int i = 0; i < 10; i++)
        leave(&r[i]);
    leave(&bob);
}

static void connections_of_a_user_have_a_limit_of_their_own(void **state)
{
    (void)state;
    int fds[6];
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", "--limit-user-connections", "5", "--limit-user-clients", "100", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    if (geteuid() == 0)
        assert_int_equal(seteuid(ANN), 0);
    for (int i = 0; i < 6; i++)
        fds[i] = raw_connect(d.socket);
    if (getuid() == 0)
        assert_int_equal(seteuid(0), 0);
    struct raw last = {.fd = fds[5]};
    assert_int_equal(raw_receive(&last), MSG_ERROR);
    assert_int_equal(m.error.error, EDQUOT);
    assert_non_null(strstr(m.error.text, "limit-user-connections is reached"));
    if (geteuid() == 0) { /* another's are not fewer for that */
        assert_int_equal(user_figure(ANN, "connections"), 5);
        open_as(&bob, BOB);
        leave(&bob);
    }
    for (int i = 0; i < 6; i++)
        close(fds[i]);
}

/* The daemon's answer to a newcomer of that user: 0, or the error, and m.error.text is why. */
static unsigned greeting(struct raw *r, uid_t uid)
{
    assert_true(geteuid() != 0 || seteuid(uid) == 0);
    r->fd = raw_connect(d.socket);
    assert_true(getuid() != 0 || seteuid(0) == 0);
    raw_send(r->fd, 1, call_hello(HELLO_MONITOR, 0)); /* who is refused has been told already */
    return raw_receive(r) == MSG_ERROR ? m.error.error : 0;
}

static void connections_of_all_have_a_limit_and_the_last_are_for_who_has_none(void **state)
{
    enum { ALL = 20 };
    struct raw r[ALL + 1];
    int n = 0;
    (void)state;
    if (!is_root())
        return;
    memset(r, 0, sizeof r);
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", "--limit-connections", "20", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    while (n < ALL && greeting(&r[n], ANN) == 0)
        n++;
    assert_int_equal(n, ALL / 2);
    assert_int_equal(m.error.error, EDQUOT);
    assert_non_null(strstr(m.error.text, "limit-connections is reached: there are 10 connections"));
    close(r[n].fd);
    for (; n < ALL - 2; n++) /* each of them has one */
        assert_int_equal(greeting(&r[n], BOB + (uid_t)n), 0);
    close(r[ALL - 3].fd); /* whoever has one has no second */
    while (user_figure(BOB + ALL - 3, "connections") != 0)
        ;
    assert_int_equal(greeting(&r[ALL], BOB + ALL - 4), EDQUOT);
    close(r[ALL].fd);
    assert_int_equal(greeting(&r[ALL - 3], BOB), 0);
    assert_int_equal(greeting(&r[ALL - 2], 0), 0);
    for (n = 0; n < ALL - 1; n++)
        close(r[n].fd);
    while (user_figure(ANN, "connections") != 0)
        ;
    assert_int_equal(greeting(&r[0], ANN), 0);
    close(r[0].fd);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    unsetenv("TMPDIR"); /* where another user can go */
    const struct CMUnitTest tests[] = {
        TEST(what_one_user_filled_is_never_another_s_to_pay),
        TEST(nor_when_she_is_gone_and_after_a_restart),
        TEST(what_is_freed_by_anybody_is_nobody_s_any_more),
        TEST(in_a_full_heap_free_places_are_their_user_s_and_free_spans_anybody_s),
        TEST(tags_for_transactions_are_limited_by_client_user_and_in_all),
        TEST(one_user_cannot_take_all_tags_by_default),
        TEST(connections_of_a_user_have_a_limit_of_their_own),
        TEST(connections_of_all_have_a_limit_and_the_last_are_for_who_has_none),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
