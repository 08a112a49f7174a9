/* Pidfds kept over a restart of the daemon.
 *
 * A process of another pid namespace has no pid here, and where pidfd_open is refused no pid helps: a daemon that is started
 * again could not see such a client die. So its pidfd is sent into a socket pair that the keeper has too, and lies there:
 *
 *     daemon --kept_add--> [ inodes + pidfds | inodes + pidfds | ... ] --kept_take--> its successor
 *                            held by the kernel while the keeper, or the store, holds both ends
 *
 * The keeper does nothing for it. Under a service manager both ends are in its store instead. When the queue is full, or
 * half of it may be dead, the living ones are put behind it, and what was before them is taken out. die: in the middle of
 * that some pidfds are lost: clients that cannot be told after a restart, and no more than that. */
#include "daemon/os/kept.h"

#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

enum { BATCH = 64 }; /* pidfds of one packet; the kernel takes up to 253 */

struct kept {
    uint64_t inode;
    int fd;
};

static int in_fd = -1, out_fd = -1; /* into the queue, and out of it */
static uint32_t packets, pidfds;    /* in the queue */
static struct kept *found;          /* read from it at the start */
static uint32_t found_count;
static bool found_all, managed;

int kept_open(void)
{
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0)
        return -errno;
    in_fd = fds[0];
    out_fd = fds[1];
    return 0;
}

bool kept_is_on(void) { return managed || in_fd >= 0; }

void kept_by_manager(void) { managed = true; }

void kept_adopt(int fd)
{
    if (in_fd < 0)
        in_fd = fd;
    else if (out_fd < 0)
        out_fd = fd;
    else
        close(fd);
}

/* With one end alone nothing can be kept: both are made anew. */
static bool open_in_store(void)
{
    if (in_fd >= 0)
        close(in_fd);
    in_fd = -1;
    if (kept_open() < 0)
        return false;
    sd_notify(0, "FDSTOREREMOVE=1\nFDNAME=" KEPT_NAME);
    sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDNAME=" KEPT_NAME "\nFDPOLL=0", &in_fd, 1);
    sd_pid_notify_with_fds(0, 0, "FDSTORE=1\nFDNAME=" KEPT_NAME "\nFDPOLL=0", &out_fd, 1);
    return true;
}

static int put(const struct kept *k, uint32_t count)
{
    uint64_t inodes[BATCH];
    char control[CMSG_SPACE(BATCH * sizeof(int))] = {0};
    struct iovec iov = {inodes, count * sizeof *inodes};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control,
                       .msg_controllen = CMSG_SPACE(count * sizeof(int))};
    struct cmsghdr *cmsg = CMSG_FIRSTHDR(&h);
    cmsg->cmsg_level = SOL_SOCKET;
    cmsg->cmsg_type = SCM_RIGHTS;
    cmsg->cmsg_len = CMSG_LEN(count * sizeof(int));
    for (uint32_t i = 0; i < count; i++) {
        inodes[i] = k[i].inode;
        memcpy(CMSG_DATA(cmsg) + i * sizeof(int), &k[i].fd, sizeof(int));
    }
    if (sendmsg(in_fd, &h, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
        return -errno;
    packets++;
    pidfds += count;
    return 0;
}

/* One packet out of the queue: how many it held, 0: none is there. */
static uint32_t get(int fd, struct kept k[BATCH])
{
    uint64_t inodes[BATCH];
    char control[CMSG_SPACE(BATCH * sizeof(int))];
    struct iovec iov = {inodes, sizeof inodes};
    struct msghdr h = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t got = recvmsg(fd, &h, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    struct cmsghdr *cmsg = got > 0 ? CMSG_FIRSTHDR(&h) : NULL;
    uint32_t count = 0;
    if (cmsg && cmsg->cmsg_level == SOL_SOCKET && cmsg->cmsg_type == SCM_RIGHTS)
        count = (uint32_t)((cmsg->cmsg_len - CMSG_LEN(0)) / sizeof(int));
    for (uint32_t i = 0; i < count; i++) {
        k[i].inode = inodes[i];
        memcpy(&k[i].fd, CMSG_DATA(cmsg) + i * sizeof(int), sizeof(int));
    }
    return got > 0 && !count ? 0 : count; /* without its descriptors, as none was free, a packet is worth nothing */
}

static bool is_alive(int pidfd)
{
    struct pollfd p = {.fd = pidfd, .events = POLLIN};
    return poll(&p, 1, 0) == 0;
}

static void put_and_close(const struct kept *k, uint32_t *count)
{
    put(k, *count); /* if there is no room any more: clients that cannot be told after a restart */
    while (*count)
        close(k[--*count].fd);
}

/* Once around: the dead are left out, packets are filled up. */
static void compact(void)
{
    struct kept k[BATCH], full[BATCH];
    uint32_t count = 0, before = packets;
    packets = pidfds = 0;
    while (before--)
        for (uint32_t i = 0, n = get(out_fd, k); i < n; i++) {
            if (!is_alive(k[i].fd)) {
                close(k[i].fd);
                continue;
            }
            full[count++] = k[i];
            if (count == BATCH)
                put_and_close(full, &count);
        }
    if (count)
        put_and_close(full, &count);
}

void kept_add(uint64_t inode, int pidfd)
{
    const struct kept k = {inode, pidfd};
    if (!kept_is_on() || !inode || (out_fd < 0 && !open_in_store()))
        return;
    if (packets >= BATCH && packets * 2 > pidfds) /* mostly of one pidfd each */
        compact();
    if (put(&k, 1) == -EAGAIN) {
        compact();
        put(&k, 1);
    }
}

/* All that was kept for this daemon; what is taken out of the queue is put back by who watches it. */
static void find_in(int fd)
{
    struct kept k[BATCH];
    uint32_t n;
    while (fd >= 0 && (n = get(fd, k)) > 0) {
        struct kept *more = realloc(found, (found_count + n) * sizeof *more);
        if (more)
            found = more;
        for (uint32_t i = 0; i < n; i++)
            if (more)
                found[found_count++] = k[i];
            else
                close(k[i].fd);
    }
}

int kept_take(uint64_t inode)
{
    if (!found_all) { /* of a store's two ends either one may have been the one that was written to */
        found_all = true;
        find_in(out_fd);
        find_in(in_fd);
    }
    for (uint32_t i = 0; inode && i < found_count; i++)
        if (found[i].inode == inode) {
            int fd = found[i].fd;
            found[i] = found[--found_count];
            return fd;
        }
    return -1;
}

void kept_drop_rest(void)
{
    while (found_count)
        close(found[--found_count].fd);
    free(found);
    found = NULL;
}
