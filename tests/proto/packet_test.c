/* proto/packet: packets over a socket, with file descriptors beside them.
 *
 * Goal: a packet arrives whole or not at all, and no descriptor that a stranger sends stays open
 * unless it was asked for. Method: both ends of a socket pair; open descriptors are counted before
 * and after each test.
 */
#include "tests/shm/fixture.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "proto/msg.h"
#include "proto/packet.h"

static int ends[2];
static int open_before;

static int open_descriptors(void)
{
    int count = 0;
    DIR *dir = opendir("/proc/self/fd");
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count;
}

static int setup(void **state)
{
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends), 0);
    open_before = open_descriptors();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    assert_int_equal(open_descriptors(), open_before);
    close(ends[0]);
    close(ends[1]);
    return 0;
}

/* Sends `count` descriptors in one packet of four bytes, more than packet_send() would. */
static void send_many(int count)
{
    enum { MOST = 64 };
    int fds[MOST];
    char control[CMSG_SPACE(sizeof fds)] = {0};
    struct iovec iov = {.iov_base = (char[]){"four"}, .iov_len = 4};
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control};
    assert_true(count <= MOST);
    for (int i = 0; i < count; i++)
        fds[i] = STDIN_FILENO;
    msg.msg_controllen = CMSG_SPACE((size_t)count * sizeof(int));
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN((size_t)count * sizeof(int));
    memcpy(CMSG_DATA(c), fds, (size_t)count * sizeof(int));
    assert_int_equal(sendmsg(ends[0], &msg, MSG_NOSIGNAL), 4);
}

static void packets_arrive_one_by_one_and_whole(void **state)
{
    uint8_t buf[MSG_MAX], big[MSG_MAX];
    (void)state;
    memset(big, 7, sizeof big);
    assert_int_equal(packet_send(ends[0], "one", 3, NULL, 0, 0), 0);
    assert_int_equal(packet_send(ends[0], "second", 6, NULL, 0, 0), 0);
    assert_int_equal(packet_send(ends[0], big, sizeof big, NULL, 0, 0), 0);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, 0), 3);
    assert_memory_equal(buf, "one", 3);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, 0), 6);
    assert_memory_equal(buf, "second", 6);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, 0), MSG_MAX);
    assert_memory_equal(buf, big, sizeof big);
}

static void descriptors_travel_and_are_close_on_exec(void **state)
{
    int out[2], in[PACKET_FDS_MAX], count = -1;
    uint8_t buf[16];
    struct stat a, b;
    (void)state;
    assert_int_equal(pipe2(out, O_CLOEXEC), 0);
    int sending[PACKET_FDS_MAX] = {out[0], out[1], out[0], out[1]};
    assert_int_equal(packet_send(ends[0], "x", 1, sending, PACKET_FDS_MAX, 0), 0);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, in, PACKET_FDS_MAX, &count, 0), 1);
    assert_int_equal(count, PACKET_FDS_MAX);
    for (int i = 0; i < count; i++) {
        assert_int_equal(fstat(sending[i], &a), 0);
        assert_int_equal(fstat(in[i], &b), 0);
        assert_true(a.st_ino == b.st_ino);
        assert_true(fcntl(in[i], F_GETFD) & FD_CLOEXEC);
        close(in[i]);
    }
    close(out[0]);
    close(out[1]);
}

static void a_packet_without_descriptors_says_so(void **state)
{
    int in[PACKET_FDS_MAX], count = -1;
    uint8_t buf[16];
    (void)state;
    assert_int_equal(packet_send(ends[0], "x", 1, NULL, 0, 0), 0);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, in, PACKET_FDS_MAX, &count, 0), 1);
    assert_int_equal(count, 0);
}

/* qemu's recvmsg() has more room than the program gave, and leaves open what is beyond it. */
static void skip_under_an_emulator(void)
{
    if (getenv("TEST_RUNNER")) {
        print_message("skipped: an emulator has descriptors of its own\n");
        skip();
    }
}

static void more_descriptors_than_were_asked_for_are_closed_and_refused(void **state)
{
    int in[PACKET_FDS_MAX], count = -1;
    uint8_t buf[16];
    (void)state;
    skip_under_an_emulator();
    for (int sent = 1; sent <= 64; sent++)
        for (int asked = 0; asked <= PACKET_FDS_MAX; asked++) {
            send_many(sent);
            ssize_t got = packet_receive(ends[1], buf, sizeof buf, in, asked, &count, 0);
            if (sent <= asked) {
                assert_int_equal(got, 4);
                assert_int_equal(count, sent);
            } else {
                assert_int_equal(got, -EMSGSIZE);
                assert_int_equal(count, 0);
            }
            while (count > 0)
                close(in[--count]);
            assert_int_equal(open_descriptors(), open_before);
        }
}

static void where_no_more_may_be_opened_it_is_emfile_and_what_came_is_closed(void **state)
{
    int in[PACKET_FDS_MAX], count = -1, next = dup(STDIN_FILENO);
    uint8_t buf[16];
    struct rlimit before;
    (void)state;
    close(next);
    skip_under_an_emulator();
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &before), 0);
    for (int room = 0; room <= PACKET_FDS_MAX; room++)
        for (int sent = 1; sent <= PACKET_FDS_MAX; sent++) {
            struct rlimit few = {(rlim_t)(next + room), before.rlim_max};
            send_many(sent);
            assert_int_equal(setrlimit(RLIMIT_NOFILE, &few), 0);
            ssize_t got =
                packet_receive(ends[1], buf, sizeof buf, in, PACKET_FDS_MAX, &count, 0);
            assert_int_equal(setrlimit(RLIMIT_NOFILE, &before), 0);
            assert_int_equal(got, sent <= room ? 4 : -EMFILE);
            assert_int_equal(count, sent <= room ? sent : 0);
            while (count > 0)
                close(in[--count]);
            assert_int_equal(open_descriptors(), open_before);
        }
}

static void a_packet_longer_than_the_buffer_is_refused_and_its_descriptors_closed(void **state)
{
    int in[PACKET_FDS_MAX], sending[1] = {STDIN_FILENO}, count = -1;
    uint8_t buf[8];
    (void)state;
    assert_int_equal(packet_send(ends[0], "nine byte", 9, sending, 1, 0), 0);
    assert_int_equal(packet_send(ends[0], "next", 4, NULL, 0, 0), 0);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, in, PACKET_FDS_MAX, &count, 0),
                     -EMSGSIZE);
    assert_int_equal(count, 0);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, in, PACKET_FDS_MAX, &count, 0), 4);
}

static void a_sender_is_refused_more_descriptors_than_a_packet_may_have(void **state)
{
    int sending[PACKET_FDS_MAX + 1] = {0};
    uint8_t buf[8];
    (void)state;
    assert_int_equal(packet_send(ends[0], "x", 1, sending, PACKET_FDS_MAX + 1, 0), -EINVAL);
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT),
                     -EAGAIN);
}

static void without_waiting_an_empty_socket_and_a_full_one_say_eagain(void **state)
{
    uint8_t buf[1024] = {0};
    int rc = 0, sent = 0;
    (void)state;
    assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT),
                     -EAGAIN);
    while (sent < 1 << 20 &&
           (rc = packet_send(ends[0], buf, sizeof buf, NULL, 0, MSG_DONTWAIT)) == 0)
        sent++;
    assert_int_equal(rc, -EAGAIN);
    for (; sent > 0; sent--)
        assert_int_equal(packet_receive(ends[1], buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT),
                         sizeof buf);
}

static void a_peer_that_is_gone_is_an_end_or_epipe_and_no_signal(void **state)
{
    int other[2];
    uint8_t buf[8];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, other), 0);
    assert_int_equal(packet_send(other[1], "last", 4, NULL, 0, 0), 0);
    close(other[1]);
    assert_int_equal(packet_receive(other[0], buf, sizeof buf, NULL, 0, NULL, 0), 4);
    assert_int_equal(packet_receive(other[0], buf, sizeof buf, NULL, 0, NULL, 0), 0);
    assert_int_equal(packet_send(other[0], "x", 1, NULL, 0, 0), -EPIPE);
    close(other[0]);
    assert_int_equal(packet_send(-1, "x", 1, NULL, 0, 0), -EBADF);
    assert_int_equal(packet_receive(-1, buf, sizeof buf, NULL, 0, NULL, 0), -EBADF);
}

static void what_a_peer_said_before_it_closed_is_read_although_it_read_nothing(void **state)
{
    int other[2];
    uint8_t buf[8];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, other), 0);
    assert_int_equal(packet_send(other[0], "hello", 5, NULL, 0, 0), 0);
    assert_int_equal(packet_send(other[1], "no", 2, NULL, 0, 0), 0);
    close(other[1]); /* with "hello" unread: the kernel says ECONNRESET first */
    assert_int_equal(packet_receive(other[0], buf, sizeof buf, NULL, 0, NULL, 0), 2);
    assert_int_equal(packet_receive(other[0], buf, sizeof buf, NULL, 0, NULL, 0), 0);
    close(other[0]);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(packets_arrive_one_by_one_and_whole),
        TEST(descriptors_travel_and_are_close_on_exec),
        TEST(a_packet_without_descriptors_says_so),
        TEST(more_descriptors_than_were_asked_for_are_closed_and_refused),
        TEST(where_no_more_may_be_opened_it_is_emfile_and_what_came_is_closed),
        TEST(a_packet_longer_than_the_buffer_is_refused_and_its_descriptors_closed),
        TEST(a_sender_is_refused_more_descriptors_than_a_packet_may_have),
        TEST(without_waiting_an_empty_socket_and_a_full_one_say_eagain),
        TEST(a_peer_that_is_gone_is_an_end_or_epipe_and_no_signal),
        TEST(what_a_peer_said_before_it_closed_is_read_although_it_read_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
