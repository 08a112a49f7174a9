/* stop, reload: the daemon's process is signalled, as it says that it is called, and waited for. Its pid means something here
 * only in its own pid namespace. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

static int cannot(const struct ctl *ctl, const char *why)
{
    char buf[256];
    fprintf(stderr, "arenactl: %s: the daemon at %s: %s\n", ctl->command->name, clean(ctl_socket(ctl, buf, sizeof buf), false), why);
    return CTL_FAULT;
}

static bool is_of_our_namespace(const cJSON *row)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 && row_number(row, "pid_namespace") == (uint64_t)st.st_ino;
}

/* A pidfd of the process that `row` names `pid`, which is the same still when the daemon is asked again; or -1 after one line. */
static int process_of(struct ctl *ctl, const cJSON *row, uint64_t pid, int *ret_rc)
{
    *ret_rc = CTL_FAULT;
    if (!is_of_our_namespace(row)) {
        *ret_rc = cannot(ctl, "its process is of another pid namespace: signal it there");
        return -1;
    }
    int fd = (int)syscall(SYS_pidfd_open, (pid_t)pid, 0);
    if (fd < 0) {
        *ret_rc = cannot(ctl, strerror(errno));
        return -1;
    }
    cJSON *again = ctl_row(ctl, INFO_STATS);
    bool same = again && row_number(again, "pid") == row_number(row, "pid");
    if (!again)
        *ret_rc = CTL_UNREACHABLE;
    else if (!same)
        *ret_rc = cannot(ctl, "it has just been started again: once more");
    cJSON_Delete(again);
    if (same)
        return fd;
    close(fd);
    return -1;
}

static int send_signal(struct ctl *ctl, int fd, int signum)
{
    if (syscall(SYS_pidfd_send_signal, fd, signum, NULL, 0) == 0)
        return 0;
    return cannot(ctl, errno == EPERM ? "this user may not signal it" : strerror(errno));
}

int cmd_stop(struct ctl *ctl)
{
    int rc;
    cJSON *row = ctl_row(ctl, INFO_STATS);
    if (!row)
        return CTL_UNREACHABLE;
    if (row_number(row, "managed")) {
        cJSON_Delete(row);
        return cannot(ctl, "a service manager runs it, and would start it again: stop its unit, as in systemctl stop arenad@NAME");
    }
    uint64_t keeper = row_number(row, "keeper_pid");
    int fd = process_of(ctl, row, keeper ? keeper : row_number(row, "pid"), &rc);
    cJSON_Delete(row);
    if (fd < 0)
        return rc;
    ctl_disconnect(ctl);
    rc = send_signal(ctl, fd, SIGTERM);
    struct pollfd ended = {.fd = fd, .events = POLLIN};
    while (rc == 0 && poll(&ended, 1, -1) < 0 && errno == EINTR)
        continue;
    close(fd);
    return rc;
}

/* Looks until the daemon has read its file: 0, or CTL_FAULT after one line that says why it has refused it. */
static int await_reload(struct ctl *ctl, uint64_t taken, uint64_t refused)
{
    for (;;) {
        cJSON *row = ctl_row(ctl, INFO_STATS);
        if (!row)
            return CTL_UNREACHABLE;
        int rc = row_number(row, "reloads_refused") != refused ? cannot(ctl, clean(row_text(row, "reload_error"), false))
                 : row_number(row, "reloads") != taken         ? CTL_OK
                                                               : -1;
        cJSON_Delete(row);
        if (rc >= 0)
            return rc;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
}

int cmd_reload(struct ctl *ctl)
{
    int rc;
    cJSON *row = ctl_row(ctl, INFO_STATS);
    if (!row)
        return CTL_UNREACHABLE;
    uint64_t taken = row_number(row, "reloads"), refused = row_number(row, "reloads_refused");
    int fd = process_of(ctl, row, row_number(row, "pid"), &rc);
    cJSON_Delete(row);
    if (fd < 0)
        return rc;
    rc = send_signal(ctl, fd, SIGHUP);
    close(fd);
    return rc ? rc : await_reload(ctl, taken, refused);
}
