/* arena: a private arenad for each run, in a directory of its own, of the build that the worker is
 * of. */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "shm/layout.h"
#include "tests/bench/daemon.h"
#include "tests/bench/peer.h"
#include "tests/bench/rows.h"

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
        execl(path, path, "--foreground", "--keeper=no", "--socket", d->socket, "--max", max,
              (char *)NULL);
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

struct bench_daemon *peer_daemon(unsigned heap)
{
    return &daemons[heap];
}

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

void peer_trim(peer_t h)
{
    arena_trim(h);
}

/* ---- what the kernel and the map say ---- */

/* Bytes behind the memfds named arena-NAME... that the daemon has open, each once. */
uint64_t peer_region_bytes(const char *name)
{
    char dir[40], path[320], target[64], wanted[40];
    int wanted_length = snprintf(wanted, sizeof wanted, "/memfd:arena-%s", name);
    ino_t seen[16];
    unsigned count = 0;
    uint64_t bytes = 0;
    snprintf(dir, sizeof dir, "/proc/%d/fd", (int)daemons[0].pid);
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d)) != NULL;) {
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        if (strncmp(target, wanted, (size_t)wanted_length) != 0 || stat(path, &st) < 0)
            continue;
        unsigned i = 0;
        while (i < count && seen[i] != st.st_ino)
            i++;
        if (i == count && count < 16) {
            seen[count++] = st.st_ino;
            bytes += (uint64_t)st.st_blocks * 512;
        }
    }
    if (d)
        closedir(d);
    return bytes;
}

uint64_t peer_shared_bytes(peer_t h)
{
    (void)h;
    return peer_region_bytes("") + rollup_bytes(daemons[0].pid, "Pss_Anon");
}

const struct map_header *peer_map(unsigned heap)
{
    static const struct map_header *maps[DAEMONS_MAX];
    char dir[40], path[320], target[64];
    snprintf(dir, sizeof dir, "/proc/%d/fd", (int)daemons[heap].pid);
    DIR *d = opendir(dir);
    for (struct dirent *e; d && !maps[heap] && (e = readdir(d)) != NULL;) {
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        if (strncmp(target, "/memfd:arena-map", 16) != 0)
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        struct stat st;
        if (fd >= 0 && fstat(fd, &st) == 0) {
            void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
            maps[heap] = p == MAP_FAILED ? NULL : p;
        }
        if (fd >= 0)
            close(fd);
    }
    if (d)
        closedir(d);
    if (!maps[heap]) {
        fprintf(stderr, "cannot map the daemon's map\n");
        _Exit(1);
    }
    return maps[heap];
}

uint64_t peer_round_trips(peer_t h)
{
    (void)h;
    return load_relaxed(&peer_map(0)->round_trips);
}

uint64_t peer_daemon_ns(void)
{
    uint64_t ns = 0;
    for (unsigned i = 0; i < daemon_count; i++) {
        clockid_t clock;
        struct timespec ts;
        if (clock_getcpuclockid(daemons[i].pid, &clock) == 0 && clock_gettime(clock, &ts) == 0)
            ns += (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
    }
    return ns;
}

/* ---- idle clients ---- */

int peer_crowd(unsigned count)
{
    int ready[2];
    if (pipe(ready) < 0)
        return errno;
    for (unsigned i = 0; i < count; i++) {
        pid_t parent = getpid();
        char byte = 0;
        if (fork() == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            peer_t h = peer_enter(0);
            if (h && arena_alloc(h, 64))
                byte = 1;
            if (write(ready[1], &byte, 1) == 1)
                pause();
            _exit(0);
        }
        if (read(ready[0], &byte, 1) != 1 || byte != 1)
            return ECONNREFUSED;
    }
    close(ready[0]);
    close(ready[1]);
    return 0;
}
