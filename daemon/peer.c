/* Who is at the other end, and a descriptor by which its death is known.
 *
 * SO_PEERPIDFD (Linux 6.5) names the process that connected, whatever happened to its pid since. Before, pidfd_open on
 * the pid of SO_PEERCRED might get a process that was given the pid after the peer died; the start time in /proc, read
 * before and after and compared with the socket still being open, tells. Pid and start time together name a process
 * across a restart of the daemon too. */
#include "daemon/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif

/* Field 22 of /proc/PID/stat: clock ticks after boot; 0: no such process. */
static uint64_t start_time_of(uint32_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0)
        return 0;
    text[n] = 0;
    const char *p = strrchr(text, ')'); /* the command may hold anything */
    unsigned long long value = 0;
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p && sscanf(p, " %llu", &value) == 1 ? value : 0;
}

int peer_pidfd(uint32_t pid, uint64_t start_time)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return -errno;
    if (start_time_of(pid) != start_time) { /* another process has the pid now */
        close(fd);
        return -ESRCH;
    }
    return fd;
}

void peer_command(uint32_t pid, char command[16])
{
    char path[64];
    memset(command, 0, 16);
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    ssize_t n = read(fd, command, 15);
    close(fd);
    if (n > 0 && command[n - 1] == '\n')
        command[n - 1] = 0;
}

int peer_identify(int fd, bool fallback, uint32_t *ret_pid, uint32_t *ret_uid, uint32_t *ret_gid, int *ret_pidfd,
                  uint64_t *ret_start_time)
{
    struct ucred cred;
    socklen_t length = sizeof cred;
    int pidfd = -1;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0)
        return -errno;
    if (cred.pid <= 0) /* of a pid namespace that we cannot see into */
        return -ESRCH;
    length = sizeof pidfd;
    if (!fallback && getsockopt(fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) < 0)
        pidfd = -1;
    errno = 0;
    uint64_t start_time = start_time_of((uint32_t)cred.pid);
    bool no_descriptor = !start_time && (errno == EMFILE || errno == ENFILE);
    if (pidfd >= 0)
        fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    else
        pidfd = peer_pidfd((uint32_t)cred.pid, start_time);
    if (pidfd < 0 || !start_time) {
        if (pidfd >= 0)
            close(pidfd);
        return no_descriptor || pidfd == -EMFILE || pidfd == -ENFILE ? -EMFILE : -ESRCH;
    }
    *ret_pid = (uint32_t)cred.pid;
    *ret_uid = cred.uid;
    *ret_gid = cred.gid;
    *ret_pidfd = pidfd;
    *ret_start_time = start_time;
    return 0;
}
