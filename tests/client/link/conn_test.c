/* client/link/conn.c and socket.c: one request, one reply, and what is lost.
 *
 * Goal: a call takes the reply that is its own and no other; a daemon's refusal is passed on with its words; what was asked
 * ahead is kept until it is asked for; a descriptor that is another file's by now is left alone. Method: the other end of a
 * socket pair is the test's, which answers before it is asked: ids are counted up.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/heap.h"
#include "proto/packet.h"

enum { CLASS = SPAN_CLASS(7, 0) };

static struct arena *a;
static int peer;
static struct msg m; /* what was heard last */

static int setup(void **state)
{
    int fds[2];
    (void)state;
    a = calloc(1, sizeof *a);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return 1;
    conn_init(&a->conn, fds[0]);
    returns_init(a);
    peer = fds[1];
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    conn_forget(&a->conn);
    if (peer >= 0)
        close(peer);
    free(a);
    return 0;
}

static void answer(struct msg reply, uint32_t id)
{
    static uint8_t packet[MSG_MAX];
    reply.id = id;
    int bytes = msg_encode(&reply, packet, sizeof packet);
    assert_true(bytes > 0);
    assert_true(packet_send(peer, packet, (size_t)bytes, NULL, 0, MSG_DONTWAIT) >= 0);
}

/* What the client has sent next: in `m`. */
static void hear(uint32_t type)
{
    static uint8_t packet[MSG_MAX];
    static struct msg_space space;
    char why[MSG_TEXT_MAX + 1];
    ssize_t got = packet_receive(peer, packet, sizeof packet, NULL, 0, NULL, MSG_DONTWAIT);
    assert_true(got > 0);
    assert_int_equal(msg_decode(&m, &space, packet, (size_t)got, why), 0);
    assert_int_equal(m.type, type);
}

static void answer_grant(uint32_t id, uint32_t first)
{
    answer(MSG(grant, .span_class = CLASS, .list = &first, .list_count = 1), id);
}

static int lease(void) { return conn_call(a, MSG(lease, .span_class = CLASS, .pages = 1)); }

static void a_call_takes_the_reply_that_is_its_own(void **state)
{
    (void)state;
    answer_grant(77, 5); /* of one that was given up long ago */
    answer_grant(1, 6);
    conn_lock(a);
    assert_int_equal(lease(), 0);
    assert_int_equal(a->conn.in.grant.list[0], 6);
    conn_unlock(a);
    hear(MSG_LEASE);
    assert_int_equal(m.id, 1);
    assert_int_equal(m.lease.span_class, CLASS);
}

static void a_refusal_is_passed_on_with_its_words(void **state)
{
    (void)state;
    answer(MSG(error, .error = EDQUOT, .text = "a limit: client"), 1);
    conn_lock(a);
    assert_int_equal(lease(), -EDQUOT);
    conn_unlock(a);
    assert_string_equal(arena_reason(), "a limit: client");
}

static void what_was_asked_ahead_is_kept_for_its_class(void **state)
{
    (void)state;
    conn_lock(a);
    struct msg ahead = MSG(lease, .span_class = CLASS, .pages = 1, .flags = LEASE_AHEAD);
    assert_int_equal(conn_ask_ahead(a, ahead), 0); /* 1 */
    assert_int_equal(conn_ask_ahead(a, ahead), -EALREADY);
    assert_false(conn_ahead_arrived(a));
    answer_grant(1, 9);
    answer_grant(2, 8);
    assert_int_equal(lease(), 0); /* 2: the other one came before */
    assert_int_equal(a->conn.in.grant.list[0], 8);
    assert_true(conn_ahead_arrived(a));
    assert_int_equal(conn_ahead(a, CLASS + 2), -ENOENT);
    assert_int_equal(conn_ahead(a, CLASS), 0);
    assert_int_equal(a->conn.ahead.list[0], 9);
    assert_int_equal(conn_ahead(a, CLASS), -ENOENT);
    conn_unlock(a);
}

static void what_waits_is_told_when_the_lock_is_left(void **state)
{
    struct lease leases[8] = {{0}};
    (void)state;
    a->leases = leases;
    leases[3].span_class = CLASS;
    leases[3].list = LEASE_CURRENT;
    conn_lock(a);
    assert_true(returns_put(a, 3));
    conn_kick(a); /* somebody holds the lock: left to him */
    conn_unlock(a);
    hear(MSG_RELEASE);
    assert_int_equal(m.release.list_count, 1);
    assert_int_equal(m.release.list[0], 3);
    assert_false(returns_pending(&a->returns));
}

/* The daemon reads nothing: nobody waits for it, and it stays to be told. */
static void a_full_socket_makes_nobody_wait(void **state)
{
    struct lease leases[8] = {{0}};
    char filler[1024] = {0};
    (void)state;
    a->leases = leases;
    leases[3].span_class = CLASS;
    leases[3].list = LEASE_CURRENT;
    while (send(a->conn.fd, filler, sizeof filler, MSG_DONTWAIT) > 0)
        ;
    assert_true(returns_put(a, 3));
    conn_kick(a);
    assert_true(returns_pending(&a->returns));
    while (recv(peer, filler, sizeof filler, MSG_DONTWAIT) > 0)
        ;
    conn_kick(a);
    assert_false(returns_pending(&a->returns));
    hear(MSG_RELEASE);
}

/* A program may close what it does not know, and open a file of its own: the number is the file's. */
static void a_descriptor_that_is_another_files_is_left_alone(void **state)
{
    (void)state;
    int number = a->conn.fd, null = open("/dev/null", O_RDWR | O_CLOEXEC);
    assert_true(null >= 0);
    assert_int_equal(dup2(null, number), number);
    close(null);
    conn_lock(a);
    assert_int_equal(lease(), -ENOTCONN); /* it has no heap to come back to */
    assert_int_equal(a->conn.fd, -1);
    conn_unlock(a);
    assert_true(fcntl(number, F_GETFD) >= 0);
    close(number);
}

static void a_daemon_that_hangs_up_is_a_lost_one(void **state)
{
    (void)state;
    close(peer);
    peer = -1;
    conn_lock(a);
    assert_int_equal(lease(), -ENOTCONN);
    assert_int_equal(a->conn.fd, -1);
    conn_unlock(a);
}

static void a_heap_of_the_past_is_not_asked_for_anything(void **state)
{
    (void)state;
    a->conn.stale = true;
    conn_lock(a);
    assert_int_equal(lease(), -ESTALE);
    conn_unlock(a);
    assert_int_equal(recv(peer, &m, 1, MSG_DONTWAIT), -1);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_call_takes_the_reply_that_is_its_own),
        TEST(a_refusal_is_passed_on_with_its_words),
        TEST(what_was_asked_ahead_is_kept_for_its_class),
        TEST(what_waits_is_told_when_the_lock_is_left),
        TEST(a_full_socket_makes_nobody_wait),
        TEST(a_descriptor_that_is_another_files_is_left_alone),
        TEST(a_daemon_that_hangs_up_is_a_lost_one),
        TEST(a_heap_of_the_past_is_not_asked_for_anything),
    };
    return cmocka_run_group_tests_name("client/conn", tests, NULL, NULL);
}
