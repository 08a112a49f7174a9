#include "daemon/keeper.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/log.h"

static volatile sig_atomic_t daemon_pid, stopping;

static void forward(int signum)
{
    int saved = errno;
    stopping |= signum != SIGHUP;
    if (daemon_pid > 0)
        kill(daemon_pid, signum);
    errno = saved;
}

static void forward_signals(void)
{
    struct sigaction action = {.sa_handler = forward};
    sigemptyset(&action.sa_mask);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

static void default_signals(const sigset_t *mask)
{
    signal(SIGTERM, SIG_DFL);
    signal(SIGINT, SIG_DFL);
    signal(SIGHUP, SIG_DFL);
    sigprocmask(SIG_SETMASK, mask, NULL);
}

int keeper_run(const struct regions *regions, int listen_fd)
{
    enum { FAST_NS = 1000000000, PAUSE_MAX_S = 5 };
    int fast = 0;
    (void)regions, (void)listen_fd; /* open here for as long as this process lives: that is its work */
    forward_signals();
    for (;;) {
        struct timespec from, to;
        sigset_t all, before;
        int status;
        clock_gettime(CLOCK_MONOTONIC, &from);
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, &before); /* no signal is lost between the fork and the store of the pid */
        pid_t pid = fork();
        if (pid < 0) {
            int rc = -errno;
            sigprocmask(SIG_SETMASK, &before, NULL);
            return rc;
        }
        if (pid == 0) {
            default_signals(&before);
            return 0;
        }
        daemon_pid = pid;
        sigprocmask(SIG_SETMASK, &before, NULL);
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
        daemon_pid = 0;
        if (WIFEXITED(status) || stopping)
            exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
        clock_gettime(CLOCK_MONOTONIC, &to);
        int64_t ns = (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec;
        fast = ns < FAST_NS ? fast + 1 : 0;
        log_event(LOG_LEVEL_WARNING, "restart", "pid=%d signal=%d kept=regions", (int)pid, WTERMSIG(status));
        /* never given up: that would lose the heap. One that crashes by itself at once is started ever more slowly */
        if (fast > 3 && WTERMSIG(status) != SIGKILL)
            sleep((unsigned)(fast - 3 < PAUSE_MAX_S ? fast - 3 : PAUSE_MAX_S));
    }
}
