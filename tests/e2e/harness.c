#include "tests/e2e/harness.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

const char *programs_dir(void)
{
    const char *dir = getenv("ARENA_BUILD");
    return dir ? dir : "build";
}

/* Dies with the test: a test that failed leaves no process behind. */
static void die_with_parent(int signum, pid_t parent)
{
    prctl(PR_SET_PDEATHSIG, signum);
    if (getppid() != parent)
        _exit(127);
}

static void print_log(const struct daemon *d)
{
    char out[8192];
    run(out, sizeof out, "tail -n 20 '%s'", d->log);
    fprintf(stderr, "%s", out);
}

void (*daemon_prepare)(void);

static void exec_daemon(struct daemon *d, const char *max, va_list args, int ready_fd, pid_t parent)
{
    char path[256], number[16];
    const char *argv[32] = {path, "--foreground", "--socket", d->socket, "--max", max, "--ready-fd", number};
    int argc = 8, log = open(d->log, O_WRONLY | O_CREAT | O_APPEND, 0600), null = open("/dev/null", O_RDWR);
    snprintf(path, sizeof path, "%s/arenad", programs_dir());
    snprintf(number, sizeof number, "%d", ready_fd);
    while (argc < 31 && (argv[argc] = va_arg(args, const char *)) != NULL)
        argc++;
    dup2(null, 0);
    dup2(null, 1);
    dup2(log, 2);
    setpgid(0, 0);
    die_with_parent(SIGTERM, parent); /* a keeper passes it on */
    if (daemon_prepare)
        daemon_prepare();
    execv(path, (char *const *)(uintptr_t)argv);
    _exit(127);
}

static void launch(struct daemon *d, const char *max, va_list args)
{
    int ready[2];
    char byte;
    pid_t parent = getpid();
    assert_int_equal(pipe(ready), 0);
    fcntl(ready[0], F_SETFD, FD_CLOEXEC);
    fflush(NULL);
    d->pid = fork();
    if (d->pid == 0)
        exec_daemon(d, max, args, ready[1], parent);
    close(ready[1]);
    ssize_t got = read(ready[0], &byte, 1); /* no signal handlers in tests: no EINTR */
    close(ready[0]);
    if (got == 1)
        return;
    int status = reap(d->pid);
    d->pid = 0;
    print_log(d);
    fail_msg("arenad ended with status %d", status);
}

void temp_dir(char *out, size_t capacity, const char *name)
{
    const char *tmp = getenv("TMPDIR");
    snprintf(out, capacity, "%s/arena-%s-XXXXXX", tmp && *tmp ? tmp : "/tmp", name);
    assert_non_null(mkdtemp(out));
}

int temp_dir_remove(const char *dir)
{
    char out[256];
    int status = run(out, sizeof out, "rm -rf '%s'", dir);
    if (status)
        fprintf(stderr, "cannot remove %s: %s\n", dir, out);
    return status;
}

void *shared_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    assert_true(p != MAP_FAILED);
    return p;
}

void pause_us(unsigned us)
{
    struct timespec pause = {.tv_sec = us / 1000000, .tv_nsec = us % 1000000 * 1000L};
    nanosleep(&pause, NULL);
}

#ifdef __SANITIZE_THREAD__
void __sanitizer_symbolize_pc(void *pc, const char *format, char *out, size_t capacity);

static void name_a_place(void)
{
    char place[256];
    __sanitizer_symbolize_pc(__builtin_return_address(0), "%f", place, sizeof place);
}
#else
static void name_a_place(void) {}
#endif

int thread_cancel(pthread_t thread)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, name_a_place);
    return pthread_cancel(thread);
}

void daemon_start(struct daemon *d, const char *max, ...)
{
    va_list args;
    memset(d, 0, sizeof *d);
    temp_dir(d->dir, sizeof d->dir, "test");
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

/* A test that failed while the daemon stood still has not let it go on. */
static void let_go_on(const struct daemon *d)
{
    pid_t serving = d->pid > 0 ? daemon_serving(d) : 0;
    if (serving > 0)
        kill(serving, SIGCONT);
}

int daemon_stop(struct daemon *d)
{
    if (d->pid <= 0)
        return -1;
    let_go_on(d);
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
    if (d->pid > 0)
        daemon_stop(d);
    temp_dir_remove(d->dir);
}

int daemon_setup(void **state, struct daemon *d, const char *max, arena_t **heap)
{
    if (max)
        daemon_start(d, max, NULL);
    else
        memset(d, 0, sizeof *d);
    d->heap = heap;
    if (heap)
        *heap = open_heap(d);
    *state = d;
    return 0;
}

int daemon_teardown(void **state)
{
    struct daemon *d = *state;
    let_go_on(d); /* a heap may wait for it for ever */
    if (d->heap)
        arena_close(*d->heap);
    if (d->dir[0])
        daemon_clean(d);
    return 0;
}

pid_t daemon_serving(const struct daemon *d)
{
    char path[64];
    long child = 0;
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

struct map_header *daemon_map(const struct daemon *d)
{
    char path[64], link[64];
    struct stat st;
    int fd = -1;
    for (int i = 3; i < 1024 && fd < 0; i++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)daemon_serving(d), i);
        ssize_t n = readlink(path, link, sizeof link - 1);
        link[n < 0 ? 0 : n] = 0;
        if (strstr(link, "memfd:arena-map"))
            fd = open(path, O_RDWR | O_CLOEXEC);
    }
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    assert_true(map != MAP_FAILED);
    return map;
}

int arenactl(const struct daemon *d, char *out, size_t capacity, const char *format, ...)
{
    char command[1024];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    return run(out, capacity, "%s/arenactl --socket '%s' %s", programs_dir(), d->socket, command);
}

uint64_t figure_of(const struct daemon *d, const char *command, const char *name)
{
    static char out[16384];
    char key[64];
    int status = arenactl(d, out, sizeof out, "%s --json", command);
    if (status != 0) {
        print_log(d);
        fail_msg("arenactl %s: status %d: %s", command, status, out);
    }
    snprintf(key, sizeof key, "\"%s\":", name);
    const char *at = strstr(out, key);
    if (!at)
        fail_msg("no %s in: %s", name, out);
    return strtoull(at + strlen(key), NULL, 10);
}

uint64_t stat_of(const struct daemon *d, const char *name)
{
    return figure_of(d, "stat", name);
}

void stat_await(const struct daemon *d, const char *name, uint64_t value)
{
    uint64_t now;
    for (unsigned tries = 0; (now = stat_of(d, name)) != value; tries++) {
        if (tries > 5000) {
            print_log(d);
            fail_msg("%s stays %llu, should become %llu", name, (unsigned long long)now, (unsigned long long)value);
        }
        pause_us(tries < 100 ? 1000 : 20000);
    }
}

void await_counter(_Atomic uint64_t *counter, uint64_t until, pid_t pid)
{
    while (atomic_load(counter) < until) {
        siginfo_t info = {.si_pid = 0};
        if (waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pid)
            fail_msg("the process that should count to %llu ended at %llu: status %d", (unsigned long long)until,
                     (unsigned long long)atomic_load(counter), info.si_status);
        pause_us(50);
    }
}

int check_of(const struct daemon *d)
{
    static char out[16384];
    int status = arenactl(d, out, sizeof out, "check");
    if (status) {
        fprintf(stderr, "check: %s\n", out);
        print_log(d);
    }
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

int bind_socket(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type, 0);
    assert_true(strlen(path) < sizeof address.sun_path);
    strcpy(address.sun_path, path);
    unlink(path);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    if (type == SOCK_SEQPACKET)
        assert_int_equal(listen(fd, 16), 0);
    return fd;
}

pid_t spawn(int (*fn)(void *argument), void *argument)
{
    fflush(NULL);
    pid_t parent = getpid(), pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        die_with_parent(SIGKILL, parent);
        setenv("CMOCKA_TEST_ABORT", "1", 1); /* a failed assertion ends the child; it would run the other tests again */
        _exit(fn(argument));
    }
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

int conf_make(char ret_path[64])
{
    strcpy(ret_path, "/tmp/arena-conf-XXXXXX");
    int fd = mkstemp(ret_path);
    close(fd);
    return fd < 0;
}

void conf_write(const char *path, const char *text)
{
    FILE *f = fopen(path, "we");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

int hold_a_list(arena_t *a, uint64_t count)
{
    void **head = NULL;
    for (uint64_t i = 0; i < count; i++) {
        void **n = arena_alloc(a, 64);
        if (!n)
            return 1;
        *n = head;
        head = n;
    }
    return arena_safepoint(a, ARENA_SAFEPOINT) == 0 ? 0 : 2;
}

int line_count(const char *path, const char *pattern)
{
    char out[64];
    assert_in_range(run(out, sizeof out, "grep -c -- '%s' %s", pattern, path), 0, 1);
    return atoi(out);
}

/* ---- memory cgroups ------------------------------------------------------------------------------------------------------------ */

/* A directory in which memory cgroups can be made: where the controller is mounted, or a mount of our own. */
static bool find_memory_cgroup(char *out, size_t capacity, bool *ret_v2, bool *ret_mounted)
{
    char probe[600];
    *ret_mounted = false;
    *ret_v2 = false;
    if (run(out, capacity, "awk '$3 == \"cgroup\" && $4 ~ /memory/ { print $2; exit }' /proc/mounts | tr -d '\\n'") == 0 && out[0])
        return true;
    *ret_v2 = true;
    if (run(out, capacity, "awk '$3 == \"cgroup2\" { print $2; exit }' /proc/mounts | tr -d '\\n'") == 0 && out[0] &&
        run(probe, sizeof probe, "grep -q memory %s/cgroup.subtree_control", out) == 0)
        return true;
    *ret_v2 = false;
    snprintf(out, capacity, "/tmp/arena-cgroup-%d", (int)getpid());
    *ret_mounted = mkdir(out, 0755) == 0 && mount("arena-test", out, "cgroup", 0, "memory") == 0;
    if (!*ret_mounted)
        rmdir(out);
    return *ret_mounted;
}

/* The group that this process is in, below the same controller. */
static bool own_memory_cgroup(const char *where, bool v2, char *out, size_t capacity)
{
    char path[256];
    const char *line = v2 ? "$1 == \"0\"" : "$2 ~ /(^|,)memory(,|$)/";
    if (run(path, sizeof path, "awk -F: '%s { print $3; exit }' /proc/self/cgroup | tr -d '\\n'", line) != 0 || !path[0])
        return false;
    snprintf(out, capacity, "%s%s", where, path);
    return access(out, W_OK) == 0;
}

bool memory_cgroup_make(struct memory_cgroup *group, const char *limit)
{
    char out[256];
    bool v2;
    if (!find_memory_cgroup(group->where, sizeof group->where, &v2, &group->mounted))
        return false;
    snprintf(group->dir, sizeof group->dir, "%.255s/arena-test-%d", group->where, (int)getpid());
    if (own_memory_cgroup(group->where, v2, group->from, sizeof group->from) && mkdir(group->dir, 0755) == 0 &&
        run(out, sizeof out, "echo %s > %s/%s", limit, group->dir, v2 ? "memory.max" : "memory.limit_in_bytes") == 0)
        return true;
    memory_cgroup_remove(group);
    return false;
}

void memory_cgroup_enter(const struct memory_cgroup *group, pid_t pid)
{
    char out[256];
    assert_int_equal(run(out, sizeof out, "echo %d > %s/cgroup.procs", (int)pid, group->dir), 0);
}

void memory_cgroup_leave(const struct memory_cgroup *group, pid_t pid)
{
    char out[256];
    assert_int_equal(run(out, sizeof out, "echo %d > %s/cgroup.procs", (int)pid, group->from), 0);
}

void memory_cgroup_remove(const struct memory_cgroup *group)
{
    rmdir(group->dir);
    if (group->mounted) {
        umount(group->where);
        rmdir(group->where);
    }
}
