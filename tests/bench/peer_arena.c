/* arena: a private arenad for each run, in a directory of its own, of the build that the worker is of. */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/daemon.h"
#include "tests/bench/peer.h"

const bool peer_is_shared = true, peer_only_passes = false, peer_is_arena = true;

enum { DAEMONS_MAX = 2 };
static struct bench_daemon daemons[DAEMONS_MAX];
static unsigned daemon_count;
static pid_t owner;

static void stop_all(void)
{
    if (getpid() != owner)
        return;
    for (unsigned i = 0; i < daemon_count; i++)
        bench_daemon_stop(&daemons[i]);
}

/* The folder of this program's build: arenad stands in the one above. */
static void daemon_path(char *out, size_t capacity)
{
    char self[400];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    self[n > 0 ? n : 0] = 0;
    for (int up = 0; up < 2 && strrchr(self, '/'); up++)
        *strrchr(self, '/') = 0;
    snprintf(out, capacity, "%s/arenad", self);
}

static bool is_served(struct bench_daemon *d)
{
    arena_t *a;
    if (arena_open(&a, d->socket, NULL) < 0)
        return false;
    arena_close(a);
    return true;
}

int bench_daemon_start(struct bench_daemon *d, const char *max)
{
    char path[420], log[120];
    const char *tmp = getenv("TMPDIR");
    pid_t parent = getpid();
    snprintf(d->dir, sizeof d->dir, "%s/arena-bench-XXXXXX", tmp ? tmp : "/tmp");
    if (!mkdtemp(d->dir))
        return errno;
    snprintf(d->socket, sizeof d->socket, "%s/s", d->dir);
    snprintf(log, sizeof log, "%s/log", d->dir);
    daemon_path(path, sizeof path);
    d->pid = fork();
    if (d->pid == 0) {
        int fd = open(log, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        dup2(fd, 2);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        execl(path, path, "--foreground", "--keeper=no", "--socket", d->socket, "--max", max, (char *)NULL);
        _exit(127);
    }
    while (!is_served(d)) {
        struct timespec pause = {.tv_nsec = 1000000};
        if (waitpid(d->pid, NULL, WNOHANG) == d->pid) {
            fprintf(stderr, "%s --max %s ended; see %s\n", path, max, log);
            return ECONNREFUSED;
        }
        nanosleep(&pause, NULL);
    }
    return 0;
}

void bench_daemon_stop(struct bench_daemon *d)
{
    char log[120];
    if (d->pid > 0) {
        kill(d->pid, SIGTERM);
        waitpid(d->pid, NULL, 0);
        d->pid = 0;
    }
    snprintf(log, sizeof log, "%s/log", d->dir);
    unlink(log);
    unlink(d->socket);
    rmdir(d->dir);
}

int peer_setup(unsigned heaps, const char *max)
{
    Dl_info info;
    void *(*volatile function)(arena_t *, size_t) = arena_alloc;
    if (!dladdr((void *)(uintptr_t)function, &info) || !strstr(info.dli_fname, "libarena.so")) {
        fprintf(stderr, "arena_alloc is not of libarena.so\n");
        return ENOENT;
    }
    owner = getpid();
    atexit(stop_all);
    while (daemon_count < heaps && daemon_count < DAEMONS_MAX) {
        int rc = bench_daemon_start(&daemons[daemon_count++], max);
        if (rc)
            return rc;
    }
    return 0;
}

struct bench_daemon *peer_daemon(unsigned heap) { return &daemons[heap]; }

/* One open a process; threads share it. */
peer_t peer_enter(unsigned heap)
{
    arena_t *a = NULL;
    int rc = arena_open(&a, daemons[heap].socket, NULL);
    if (rc < 0)
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
    else if (!arena_same_address(a))
        fprintf(stderr, "the heap is not at its address\n");
    return a;
}

void peer_trim(peer_t h) { arena_trim(h); }

uint64_t peer_shared_bytes(peer_t h)
{
    struct arena_stats s = {.size = sizeof s};
    return arena_stats(h, &s) < 0 ? 0 : s.heap_backed + s.map_backed + s.state_backed;
}
