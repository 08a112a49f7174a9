#include "daemon/os/keeper.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "daemon/os/log.h"
#include "daemon/os/signals.h"

enum { FAST_NS = 1000000000, PAUSE_MAX_S = 5 };

/* The keeper takes its signals one by one, so none falls between two looks: they stay held but for sigwaitinfo(). */
struct keeper {
    sigset_t waited; /* SIGCHLD and those that are passed on */
    bool stopping;
    const struct listener *listener;
    const struct pid_file *pid_file;
};

static void pass_on(struct keeper *k, pid_t pid, int signum)
{
    k->stopping |= signum != SIGHUP;
    if (pid > 0)
        kill(pid, signum);
}

/* Passes signals on until the daemon has ended: its status. */
static int watch(struct keeper *k, pid_t pid)
{
    for (;;) {
        int status, signum = sigwaitinfo(&k->waited, NULL);
        if (signum > 0 && signum != SIGCHLD)
            pass_on(k, pid, signum);
        pid_t ended;
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0) /* orphans too, as pid 1 */
            if (ended == pid)
                return status;
        if (ended < 0 && errno == ECHILD)
            return 0;
    }
}

static void pause_for(struct keeper *k, int seconds)
{
    struct timespec left = {.tv_sec = seconds};
    int signum = 0;
    while (!k->stopping && ((signum = sigtimedwait(&k->waited, NULL, &left)) > 0 || errno == EINTR))
        if (signum > 0 && signum != SIGCHLD)
            pass_on(k, 0, signum);
}

static void end(const struct keeper *k, int status)
{
    if (!WIFEXITED(status)) { /* killed while it was to stop: it could not do it itself */
        listen_remove(k->listener);
        pid_file_remove(k->pid_file);
    }
    log_event(LOG_LEVEL_INFO, "keeper", "result=ends because=\"%s\" status=%d",
              k->stopping ? "it was to stop" : "the daemon has ended by itself", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
    exit(WIFEXITED(status) ? WEXITSTATUS(status) : 1);
}

static int64_t monotonic_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

int keeper_run(const struct listener *listener, const struct pid_file *pid_file, bool background)
{
    struct keeper k = {.listener = listener, .pid_file = pid_file};
    sigset_t child;
    int fast = 0;
    signal(SIGCHLD, SIG_DFL); /* ignored, as some are started, no child could be waited for */
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    signals_set(&k.waited);
    sigaddset(&k.waited, SIGCHLD);
    sigprocmask(SIG_BLOCK, &k.waited, NULL);
    for (;;) {
        int64_t from = monotonic_ns();
        pid_t pid = fork();
        if (pid <= 0) { /* the daemon; or no child is to be had, and this process serves itself */
            int rc = pid < 0 ? -errno : 0;
            sigprocmask(SIG_UNBLOCK, &child, NULL);
            return rc;
        }
        if (background)
            log_detach(); /* who started it may wait for the end of its output */
        background = false;
        int status = watch(&k, pid);
        if (WIFEXITED(status) || k.stopping)
            end(&k, status);
        fast = monotonic_ns() - from < FAST_NS ? fast + 1 : 0;
        log_event(LOG_LEVEL_WARNING, "restart", "pid=%d signal=%d kept=regions", (int)pid, WTERMSIG(status));
        /* never given up: that would lose the heap. One that crashes by itself at once is started ever more slowly */
        if (fast > 3 && WTERMSIG(status) != SIGKILL)
            pause_for(&k, fast - 3 < PAUSE_MAX_S ? fast - 3 : PAUSE_MAX_S);
        if (k.stopping)
            end(&k, status);
    }
}
