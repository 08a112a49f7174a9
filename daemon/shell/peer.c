/* Who is at the other end, and a descriptor by which its death is known.
 *
 * SO_PEERPIDFD (Linux 6.5) names the process that connected, whatever happened to its pid since, and also when its pid
 * namespace is not seen from here and SO_PEERCRED says pid 0. Before, pidfd_open on the pid of SO_PEERCRED might get a
 * process that was given the pid after the peer died; the start time in /proc, read before and after and compared with the
 * socket still being open, tells.
 *
 * What names a process over a restart of the daemon:
 *   1. The inode of its pidfd (pidfs, Linux 6.9). None is used twice until the machine is started again.
 *   2. Else its pid and its start time. A pid means something only in the namespace that it was read in.
 *
 * Cannot tell is not dead. A process is dead if its pidfd says so; or if its pid, read in the daemon's own namespace, is
 * nobody's (ESRCH) or surely another's: an inode or a start time that was read, and differs. A system call that is refused,
 * descriptors that are used up, a /proc that is hidden or not mounted say nothing. */
#include "daemon/shell/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77
#endif
#ifndef PIDFD_GET_PID_NAMESPACE
#define PIDFD_GET_PID_NAMESPACE _IO(0xFF, 5)
#endif

/* A file of /proc as text: its length, or a negative errno. */
static ssize_t read_text(const char *path, char *text, size_t capacity)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -errno;
    ssize_t n = read(fd, text, capacity - 1);
    int error = errno;
    close(fd);
    if (n < 0)
        return -error;
    text[n] = 0;
    return n;
}

/* Are the numbers in /proc those of this process's pid namespace? It may be the mount of another one: then this process
 * has a number there, and one of its own besides. */
static bool proc_is_ours(void)
{
    static int known; /* 1: yes, -1: no; 0: not looked, or not to be read now */
    char text[4096];
    if (known)
        return known > 0;
    if (read_text("/proc/self/status", text, sizeof text) <= 0)
        return false;
    const char *line = strstr(text, "\nNSpid:");
    if (!line) /* before Linux 4.1, or without namespaces */
        return true;
    char *end;
    long pid = strtol(line + strlen("\nNSpid:"), &end, 10);
    known = pid == (long)getpid() && *end == '\n' ? 1 : -1;
    return known > 0;
}

/* Start times are shown less the offset of a time namespace; then they say nothing over a restart. */
static bool start_times_are_shifted(void)
{
    static int known; /* 1: yes, -1: no */
    char text[256];
    if (!known) {
        long long seconds = 0, ns = 0;
        const char *line = read_text("/proc/self/timens_offsets", text, sizeof text) > 0 ? strstr(text, "boottime") : NULL;
        known = line && sscanf(line, "boottime %lld %lld", &seconds, &ns) == 2 && (seconds || ns) ? 1 : -1;
    }
    return known > 0;
}

/* Field 22 of /proc/PID/stat: clock ticks after boot, the lower 32 bits; 0: could not be read. *ret_error says why. */
static uint32_t start_time_of(uint32_t pid, int *ret_error)
{
    char path[64], text[1024];
    *ret_error = 0;
    if (!pid || !proc_is_ours() || start_times_are_shifted())
        return 0;
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    ssize_t n = read_text(path, text, sizeof text);
    if (n <= 0) {
        *ret_error = (int)-n;
        return 0;
    }
    const char *p = strrchr(text, ')'); /* the command may hold anything */
    unsigned long long value = 0;
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p && sscanf(p, " %llu", &value) == 1 ? (uint32_t)value : 0;
}

/* In pidfs; 0: this kernel has none, and the number would be that of all pidfds. */
static uint64_t inode_of(int pidfd)
{
    enum { PIDFS = 0x50494446 };
    struct statfs fs;
    struct stat st;
    bool is_pidfs = fstatfs(pidfd, &fs) == 0 && (uint32_t)fs.f_type == (uint32_t)PIDFS;
    return is_pidfs && fstat(pidfd, &st) == 0 ? (uint64_t)st.st_ino : 0;
}

static int open_pidfd(uint32_t pid)
{
    int fd = pid ? (int)syscall(SYS_pidfd_open, pid, 0) : -1;
    return fd >= 0 ? fd : pid ? -errno : -ESRCH;
}

uint64_t peer_pid_namespace(void)
{
    struct stat st;
    if (stat("/proc/self/ns/pid", &st) == 0)
        return (uint64_t)st.st_ino;
    int pidfd = open_pidfd((uint32_t)getpid()); /* Linux 6.11 tells without /proc */
    int fd = pidfd >= 0 ? ioctl(pidfd, PIDFD_GET_PID_NAMESPACE, 0) : -1;
    uint64_t inode = fd >= 0 && fstat(fd, &st) == 0 ? (uint64_t)st.st_ino : 0;
    if (fd >= 0)
        close(fd);
    if (pidfd >= 0)
        close(pidfd);
    return inode;
}

void peer_boot_id(char boot_id[32])
{
    char text[64] = "";
    uint32_t digits = 0;
    memset(boot_id, 0, 32);
    if (read_text("/proc/sys/kernel/random/boot_id", text, sizeof text) < 36)
        return;
    for (const char *p = text; *p && digits < 32; p++)
        if (*p != '-')
            boot_id[digits++] = *p;
}

void peer_command(uint32_t pid, char command[16])
{
    char path[64], text[64];
    memset(command, 0, 16);
    snprintf(path, sizeof path, "/proc/%u/comm", pid);
    if (!pid || !proc_is_ours() || read_text(path, text, sizeof text) <= 0)
        return;
    text[strcspn(text, "\n")] = 0;
    memcpy(command, text, strnlen(text, 15));
}

/* A living process has the pid that the table has. Is it the one that is meant? */
static enum peer_verdict compare(const struct tag *t, bool pid_is_ours, int pidfd, char why[PEER_WHY])
{
    int error;
    uint64_t inode = inode_of(pidfd);
    uint32_t start_time = start_time_of(t->pid, &error);
    bool known = (t->inode && inode) || (t->start_time && start_time);
    bool other = (t->inode && inode && t->inode != inode) || (t->start_time && start_time && t->start_time != start_time);
    if (known && !other)
        return PEER_ALIVE;
    if (other && pid_is_ours)
        return PEER_DEAD;
    if (other)
        snprintf(why, PEER_WHY, "its pid is of another pid namespace");
    else
        snprintf(why, PEER_WHY, "its start time is not to be read: %s", error ? strerror(error) : "not in this /proc");
    return PEER_UNTOLD;
}

enum peer_verdict peer_look(const struct tag *t, bool pid_is_ours, int *ret_pidfd, char why[PEER_WHY])
{
    int fd = open_pidfd(t->pid), error;
    if (fd >= 0) {
        enum peer_verdict verdict = compare(t, pid_is_ours, fd, why);
        if (verdict == PEER_ALIVE)
            *ret_pidfd = fd;
        else
            close(fd);
        return verdict;
    }
    if (!t->pid || !pid_is_ours) {
        snprintf(why, PEER_WHY, "its pid is of another pid namespace");
        return PEER_UNTOLD;
    }
    if (kill((pid_t)t->pid, 0) < 0 && errno == ESRCH)
        return PEER_DEAD;
    uint32_t start_time = start_time_of(t->pid, &error);
    if (t->start_time && start_time && start_time != t->start_time)
        return PEER_DEAD;
    snprintf(why, PEER_WHY, "pidfd_open: %s", strerror(-fd));
    return PEER_UNTOLD;
}

bool peer_is_client(const struct connection *c, const struct client *client)
{
    const struct tag *t = &c->server->core.heap.tags[client->tag];
    const struct tag peer = {.pid = c->pid, .start_time = c->start_time, .inode = c->inode};
    /* a pid whose process is watched and lives is nobody else's */
    return tag_same_process(t, &peer) || (!(t->inode && c->inode) && client->watch && c->pid && c->pid == client->pid);
}

bool peer_opens_again(const struct tag *t)
{
    int fd = open_pidfd(t->pid);
    bool is_it = fd >= 0 && inode_of(fd) == t->inode;
    if (fd >= 0)
        close(fd);
    return is_it;
}

int peer_identify(struct connection *c, bool fallback, const char **ret_why)
{
    struct ucred cred;
    socklen_t length = sizeof cred;
    int pidfd = -1, error = 0, before, after;
    *ret_why = "the peer's process is not to be seen";
    if (getsockopt(c->fd, SOL_SOCKET, SO_PEERCRED, &cred, &length) < 0)
        return -errno;
    c->pid = cred.pid > 0 ? (uint32_t)cred.pid : 0;
    c->uid = cred.uid;
    c->gid = cred.gid;
    c->start_time = start_time_of(c->pid, &before);
    length = sizeof pidfd;
    if (fallback || getsockopt(c->fd, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &length) < 0) {
        error = fallback ? ENOPROTOOPT : errno;
        pidfd = -1;
    }
    if (error == EMFILE || error == ENFILE)
        return -EMFILE;
    if (pidfd < 0 && !c->pid) {
        *ret_why = "its pid namespace is not seen from the daemon's: that needs Linux 6.5, or a pid namespace that both "
                   "share";
        return -ESRCH;
    }
    if (pidfd < 0) {
        pidfd = open_pidfd(c->pid);
        if (pidfd == -EMFILE || pidfd == -ENFILE || before == EMFILE || before == ENFILE) {
            if (pidfd >= 0)
                close(pidfd);
            return -EMFILE;
        }
        if (pidfd >= 0 && (!c->start_time || start_time_of(c->pid, &after) != c->start_time)) {
            close(pidfd);
            pidfd = -1;
        }
        if (pidfd < 0)
            return -ESRCH;
    } else
        fcntl(pidfd, F_SETFD, FD_CLOEXEC);
    c->pidfd = pidfd;
    c->inode = inode_of(pidfd);
    return 0;
}
