/* `exec`: runs a command against a heap of its own, which vanishes with it.
 *
 *   arenactl --+-- guard --+-- arenad       guard: a session of its own; waits for the end of a
 * pipe that arenactl alone |           |                holds open, so it learns of arenactl's
 * death whatever the signal, and then |           directory        ends arenad and removes the
 * directory
 *              +-- COMMAND                  gets SIGTERM if arenactl dies first
 *
 * arenactl makes the directory and the listening socket in it and hands that to arenad, as a
 * service manager would: so the socket is there before arenad is, a connection waits in its queue,
 * and nothing has to be asked again and again. Signals that are sent to arenactl are forwarded;
 * those of the terminal's keys reach the command by themselves. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/ctl/ctl.h"
#include "client/link/environ.h"
#include "shm/layout.h"

enum { NOT_FOUND = 127, NOT_EXECUTABLE = 126 };

struct private_heap {
    char daemon[PATH_MAX], directory[90], socket[100];
    int listen_fd;
    int alive_fd; /* the pipe's writing end: open as long as this process lives */
    pid_t guard;
    sigset_t mask; /* of signals, as this program was given it; what is ignored stays so, as nohup
                      wants it */
};

static const int forwarded[] = {SIGTERM, SIGHUP,  SIGINT,  SIGQUIT, SIGUSR1,
                                SIGUSR2, SIGALRM, SIGCONT, SIGWINCH};
enum { FORWARDED_COUNT = sizeof forwarded / sizeof forwarded[0] };

static int failed(const char *what, const char *path)
{
    fprintf(stderr, "arenactl: exec: cannot %s %s: %s\n", what, clean(path, false),
            strerror(errno));
    return CTL_UNREACHABLE;
}

/* ---- where arenad is ------------------------------------------------------------------------- */

static bool is_program(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode) && access(path, X_OK) == 0;
}

/* Beside arenactl, in the sbin beside its bin, in PATH, in the places that a user's PATH may lack.
 */
static int find_daemon(char *ret, size_t capacity)
{
    static const char *const beside[] = {"%s/arenad", "%s/../sbin/arenad"};
    const char *path = environ_get("PATH");
    char self[PATH_MAX], list[8192], *save = NULL;
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n > 0) {
        self[n] = 0;
        const char *dir = dirname(self);
        for (int i = 0; i < 2; i++)
            if (snprintf(ret, capacity, i ? beside[1] : beside[0], dir) < (int)capacity &&
                is_program(ret))
                return 0;
    }
    snprintf(list, sizeof list, "%s:/usr/local/sbin:/usr/sbin:/sbin", path ? path : "");
    for (const char *dir = strtok_r(list, ":", &save); dir; dir = strtok_r(NULL, ":", &save))
        if (snprintf(ret, capacity, "%s/arenad", dir) < (int)capacity && is_program(ret))
            return 0;
    fprintf(stderr, "arenactl: exec: no arenad beside arenactl, in ../sbin, in PATH, in /usr/sbin; "
                    "install it, or set PATH\n");
    return CTL_UNREACHABLE;
}

/* ---- directory and socket -------------------------------------------------------------------- */

static int make_socket(struct private_heap *heap)
{
    const char *places[] = {environ_get("XDG_RUNTIME_DIR"), environ_get("TMPDIR"), "/tmp"};
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    bool made = false;
    for (int i = 0; i < 3 && !made; i++)
        made = places[i] && places[i][0] == '/' &&
               snprintf(heap->directory, sizeof heap->directory, "%s/arena-exec-XXXXXX",
                        places[i]) < (int)sizeof heap->directory &&
               mkdtemp(heap->directory);
    if (!made)
        return failed("make a directory in", places[2]);
    snprintf(heap->socket, sizeof heap->socket, "%s/sock", heap->directory);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", heap->socket);
    heap->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    if (heap->listen_fd < 0 ||
        bind(heap->listen_fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(heap->listen_fd, 4096) < 0) {
        int rc = failed("listen on", heap->socket);
        unlink(heap->socket);
        rmdir(heap->directory);
        return rc;
    }
    return 0;
}

/* ---- the guard ------------------------------------------------------------------------------- */

/* Becomes arenad, which ends with the process that started it. */
static void run_daemon(const struct private_heap *heap, uint64_t max_bytes, pid_t parent)
{
    char max[32], self[16];
    sigprocmask(SIG_SETMASK, &heap->mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    int null = open("/dev/null", O_RDWR);
    if (null < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0)
        _exit(1);
    if (heap->listen_fd == 3)
        fcntl(3, F_SETFD, 0);
    else if (dup2(heap->listen_fd, 3) < 0)
        _exit(1);
    snprintf(self, sizeof self, "%d", (int)getpid());
    setenv("LISTEN_FDS", "1", 1);
    setenv("LISTEN_PID", self, 1);
    unsetenv("LISTEN_FDNAMES");
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    snprintf(max, sizeof max, "%llu", (unsigned long long)max_bytes);
    execl(heap->daemon, "arenad", "--foreground", "--keeper=no", "--name", "exec", "--config",
          "/dev/null", "--socket", heap->socket, "--log-level", "warning",
          max_bytes == UINT64_MAX ? NULL : "--max", max, (char *)NULL);
    fprintf(stderr, "arenactl: exec: cannot run %s: %s\n", clean(heap->daemon, false),
            strerror(errno));
    _exit(1);
}

static void run_guard(const struct private_heap *heap, int alive_fd, uint64_t max_bytes)
{
    char byte;
    ssize_t n;
    setsid(); /* the terminal's keys are not for this one */
    pid_t self = getpid(), daemon = fork();
    if (daemon == 0)
        run_daemon(heap, max_bytes, self);
    close(heap->listen_fd);
    int null = open("/dev/null",
                    O_RDWR); /* whoever reads what the command writes does not wait for this one */
    for (int fd = 0; null >= 0 && fd < 3; fd++)
        dup2(null, fd);
    do
        n = read(alive_fd, &byte, 1);
    while (n > 0 || (n < 0 && errno == EINTR));
    if (daemon > 0) {
        kill(daemon, SIGTERM);
        kill(daemon, SIGCONT);
        while (waitpid(daemon, NULL, 0) < 0 && errno == EINTR)
            ;
    }
    unlink(heap->socket);
    rmdir(heap->directory);
    _exit(0);
}

static int start_guard(struct private_heap *heap, uint64_t max_bytes)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0 || (heap->guard = fork()) < 0) {
        int rc = failed("start", heap->daemon);
        unlink(heap->socket);
        rmdir(heap->directory);
        return rc;
    }
    if (heap->guard == 0) {
        close(fds[1]);
        run_guard(heap, fds[0], max_bytes);
    }
    close(fds[0]);
    close(heap->listen_fd);
    heap->alive_fd = fds[1];
    return 0;
}

static void end_guard(struct private_heap *heap)
{
    close(heap->alive_fd);
    while (waitpid(heap->guard, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* ---- the command ----------------------------------------------------------------------------- */

static void run_command(const struct private_heap *heap, char **argv, pid_t parent)
{
    sigprocmask(SIG_SETMASK, &heap->mask, NULL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(1);
    setenv("ARENA_SOCKET", heap->socket, 1);
    execvp(argv[0], argv);
    int error = errno;
    fprintf(stderr, "arenactl: exec: cannot run %s: %s\n", clean(argv[0], false), strerror(error));
    _exit(error == ENOENT || error == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE);
}

/* Waits for the command, and passes on what comes meanwhile: its exit status, or 128 + the signal
 * that ended it. */
static int wait_command(pid_t pid, const sigset_t *waited)
{
    int status;
    for (;;) {
        siginfo_t info;
        int signum = sigwaitinfo(waited, &info);
        if (signum > 0 && signum != SIGCHLD &&
            info.si_code <= 0) /* sent by a process, not by a key */
            kill(pid, signum);
        if (waitpid(pid, &status, WNOHANG) == pid)
            return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

int cmd_exec(struct ctl *ctl)
{
    struct private_heap heap = {.listen_fd = -1};
    sigset_t waited;
    if (!ctl->rest_count) {
        fprintf(stderr,
                "arenactl: exec: a command is wanted: arenactl exec -- COMMAND [ARGUMENT...]\n");
        return CTL_USAGE;
    }
    if (ctl->max_bytes != UINT64_MAX && (ctl->max_bytes < HEAP_MIN || ctl->max_bytes > HEAP_MAX)) {
        fprintf(stderr, "arenactl: exec: --max %s must be from 1M to 1T\n", human(ctl->max_bytes));
        return CTL_USAGE;
    }
    sigemptyset(&waited);
    sigaddset(&waited, SIGCHLD);
    for (int i = 0; i < FORWARDED_COUNT; i++)
        sigaddset(&waited, forwarded[i]);
    sigprocmask(SIG_BLOCK, &waited, &heap.mask);
    signal(SIGCHLD, SIG_DFL);
    int rc = find_daemon(heap.daemon, sizeof heap.daemon);
    if (rc == 0)
        rc = make_socket(&heap);
    if (rc == 0)
        rc = start_guard(&heap, ctl->max_bytes);
    if (rc != 0)
        return rc;
    ctl->socket = heap.socket;
    rc = ctl_connect(
        ctl); /* it is answered when arenad serves, and reset if it does not come to that */
    ctl_disconnect(ctl);
    if (rc == 0) {
        pid_t self = getpid(), pid = fork();
        if (pid == 0)
            run_command(&heap, ctl->rest, self);
        rc = pid < 0 ? failed("start", ctl->rest[0]) : wait_command(pid, &waited);
    }
    end_guard(&heap);
    return rc;
}
