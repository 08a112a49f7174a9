#include "tests/e2e/harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *build_dir(void)
{
    const char *dir = getenv("ARENA_BUILD");
    return dir ? dir : "build";
}

static bool is_served(const struct daemon *d)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, d->socket, sizeof address.sun_path - 1);
    bool ok = connect(fd, (struct sockaddr *)&address, sizeof address) == 0;
    close(fd);
    return ok;
}

static void launch(struct daemon *d, const char *max, va_list args)
{
    char path[256];
    const char *argv[32] = {path, "--foreground", "--socket", d->socket, "--max", max};
    int argc = 6;
    snprintf(path, sizeof path, "%s/arenad", build_dir());
    while (argc < 31 && (argv[argc] = va_arg(args, const char *)) != NULL)
        argc++;
    d->pid = fork();
    if (d->pid == 0) {
        int log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600);
        dup2(log, 2);
        setpgid(0, 0);
        execv(path, (char *const *)(uintptr_t)argv);
        _exit(127);
    }
    while (!is_served(d)) {
        struct timespec pause = {.tv_nsec = 2000000};
        int status;
        if (waitpid(d->pid, &status, WNOHANG) == d->pid) {
            d->pid = 0;
            fail_msg("arenad ended with status %x; see %s", status, d->log);
        }
        nanosleep(&pause, NULL); /* between two questions */
    }
}

void daemon_start(struct daemon *d, const char *max, ...)
{
    const char *tmp = getenv("TMPDIR");
    va_list args;
    memset(d, 0, sizeof *d);
    snprintf(d->dir, sizeof d->dir, "%s/arena-test-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(d->dir));
    snprintf(d->socket, sizeof d->socket, "%s/s", d->dir);
    snprintf(d->log, sizeof d->log, "%s/log", d->dir);
    va_start(args, max);
    launch(d, max, args);
    va_end(args);
}

void daemon_again(struct daemon *d, const char *max, ...)
{
    va_list args;
    va_start(args, max);
    launch(d, max, args);
    va_end(args);
}

int daemon_stop(struct daemon *d)
{
    if (d->pid <= 0)
        return -1;
    kill(d->pid, SIGTERM);
    int status = reap(d->pid);
    d->pid = 0;
    return status;
}

void daemon_kill(struct daemon *d)
{
    pid_t serving = daemon_serving(d);
    if (d->pid <= 0)
        return;
    kill(d->pid, SIGKILL); /* the keeper first, so that it starts no other */
    if (serving > 0 && serving != d->pid)
        kill(serving, SIGKILL);
    reap(d->pid);
    d->pid = 0;
}

void daemon_clean(struct daemon *d)
{
    char command[300];
    if (d->pid > 0)
        daemon_stop(d);
    snprintf(command, sizeof command, "rm -rf '%s'", d->dir);
    if (system(command) != 0)
        fprintf(stderr, "cannot remove %s\n", d->dir);
}

pid_t daemon_serving(const struct daemon *d)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char path[64];
    long child = 0;
    (void)address;
    snprintf(path, sizeof path, "/proc/%d/task/%d/children", (int)d->pid, (int)d->pid);
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    if (fscanf(f, "%ld", &child) != 1)
        child = 0;
    fclose(f);
    return child ? (pid_t)child : d->pid;
}

int daemon_fd_count(const struct daemon *d)
{
    char path[64];
    int count = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)daemon_serving(d));
    DIR *dir = opendir(path);
    assert_non_null(dir);
    while (readdir(dir))
        count++;
    closedir(dir);
    return count - 2;
}

int run(char *out, size_t capacity, const char *format, ...)
{
    char command[2048];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command - 8, format, args);
    va_end(args);
    strcat(command, " 2>&1");
    FILE *f = popen(command, "re");
    assert_non_null(f);
    size_t n = fread(out, 1, capacity - 1, f);
    out[n] = 0;
    while (!feof(f) && !ferror(f) && fgetc(f) != EOF)
        ;
    int status = pclose(f);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

uint64_t stat_of(const struct daemon *d, const char *name)
{
    static char out[16384];
    char key[64];
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s stat --json", build_dir(), d->socket), 0);
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(out, key);
    if (!at)
        fail_msg("no %s in: %s", name, out);
    return strtoull(at + strlen(key), NULL, 10);
}

void stat_await(const struct daemon *d, const char *name, uint64_t value)
{
    uint64_t now;
    for (unsigned tries = 0; (now = stat_of(d, name)) != value; tries++)
        if (tries > 3000)
            fail_msg("%s stays %llu, should become %llu", name, (unsigned long long)now, (unsigned long long)value);
}

int check_of(const struct daemon *d)
{
    static char out[16384];
    int status = run(out, sizeof out, "%s/arenactl --socket %s check", build_dir(), d->socket);
    if (status)
        fprintf(stderr, "check: %s\n", out);
    return status;
}

arena_t *open_heap(const struct daemon *d)
{
    arena_t *a = NULL;
    int rc = arena_open(&a, d->socket, NULL);
    if (rc < 0)
        fail_msg("arena_open: %s", strerror(-rc));
    return a;
}

pid_t spawn(int (*fn)(void *argument), void *argument)
{
    fflush(NULL);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn(argument));
    return pid;
}

int reap(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, 0) < 0)
        if (errno != EINTR)
            return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

uint64_t seed_get(void)
{
    const char *text = getenv("SEED");
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)ts.tv_nsec * 2654435761u + (uint64_t)ts.tv_sec;
    seed |= 1;
    fprintf(stderr, "SEED=%llu\n", (unsigned long long)seed);
    return seed;
}

uint64_t rnd(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state * 2685821657736338717ULL >> 11;
}
