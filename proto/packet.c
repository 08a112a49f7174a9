#include "proto/packet.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

int packet_send(int socket, const void *bytes, size_t count, const int *fds, int fd_count, int flags)
{
    struct iovec iov = {.iov_base = (void *)(uintptr_t)bytes, .iov_len = count};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE(PACKET_FDS_MAX * sizeof(int))];
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
    if (fd_count > PACKET_FDS_MAX)
        return -EINVAL;
    if (fd_count > 0) {
        memset(control, 0, sizeof control);
        msg.msg_control = control;
        msg.msg_controllen = CMSG_SPACE((size_t)fd_count * sizeof(int));
        struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
        c->cmsg_level = SOL_SOCKET;
        c->cmsg_type = SCM_RIGHTS;
        c->cmsg_len = CMSG_LEN((size_t)fd_count * sizeof(int));
        memcpy(CMSG_DATA(c), fds, (size_t)fd_count * sizeof(int));
    }
    for (;;) {
        ssize_t sent = sendmsg(socket, &msg, flags | MSG_NOSIGNAL);
        if (sent >= 0)
            return (size_t)sent == count ? 0 : -EIO;
        if (errno != EINTR)
            return errno == EWOULDBLOCK ? -EAGAIN : -errno;
    }
}

struct held {
    int fd;
    ino_t inode;
};

/* Descriptors that arrive take the lowest numbers. Where a program has closed 0, 1 or 2, what it prints meanwhile would go to
 * them: so these are held by something that takes no data. Returns how many. */
static int hold_low(struct held held[3])
{
    int count = 0;
    struct stat st;
    while (count < 3) {
        int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
        if (fd < 0 || fd > 2 || fstat(fd, &st) < 0) {
            if (fd >= 0)
                close(fd);
            break;
        }
        held[count++] = (struct held){fd, st.st_ino};
    }
    return count;
}

static void let_go_low(const struct held *held, int count)
{
    struct stat st;
    for (int i = 0; i < count; i++)
        if (fstat(held[i].fd, &st) == 0 && st.st_ino == held[i].inode) /* else the program's own by now */
            close(held[i].fd);
}

ssize_t packet_receive(int socket, void *buf, size_t capacity, int *ret_fds, int fd_max, int *ret_fd_count, int flags)
{
    struct iovec iov = {.iov_base = buf, .iov_len = capacity};
    _Alignas(struct cmsghdr) char control[CMSG_SPACE((PACKET_FDS_MAX + 1) * sizeof(int))]; /* one more than may be: too many is seen */
    struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got;
    bool reset = false;
    struct held held[3];
    int held_count = fd_max ? hold_low(held) : 0;
    for (;;) {
        got = recvmsg(socket, &msg, flags | MSG_CMSG_CLOEXEC);
        if (got >= 0 || (errno != EINTR && (errno != ECONNRESET || reset)))
            break;
        /* the peer closed with something of ours unread. That is told once, before what it said last: a refusal, say */
        reset = reset || errno == ECONNRESET;
    }
    int error = errno;
    let_go_low(held, held_count);
    if (got < 0)
        return error == EWOULDBLOCK ? -EAGAIN : -error;
    int count = 0, too_many = 0;
    for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
        if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
            continue;
        int n = (int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (int i = 0; i < n; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(c) + (size_t)i * sizeof fd, sizeof fd);
            if (count < fd_max)
                ret_fds[count++] = fd;
            else {
                close(fd);
                too_many = 1;
            }
        }
    }
    bool too_long = too_many || (msg.msg_flags & MSG_TRUNC);
    if (too_long || (msg.msg_flags & MSG_CTRUNC)) { /* cut off although there was room: this process may open no more */
        while (count > 0)
            close(ret_fds[--count]);
        got = too_long ? -EMSGSIZE : -EMFILE;
    }
    if (ret_fd_count)
        *ret_fd_count = count;
    return got;
}
