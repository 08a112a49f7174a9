/* Goal: a reader, above all one of another user, gets no writable mapping of anything. Method: a child that has become
 * another user opens the heap with ARENA_READ_ONLY and tries: mmap and mprotect of every descriptor that it was given,
 * reopening through /proc, the store itself. Skipped where this process cannot become another user. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/call.h"
#include "proto/msg.h"
#include "proto/packet.h"
#include "shm/layout.h"
#include "tests/e2e/harness.h"

enum { NOBODY = 65534 };

static struct daemon d;
static bool other_user;

static struct arena_options read_only(void)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.flags = ARENA_READ_ONLY;
    return options;
}

static void become_other(void)
{
    if (other_user && (setgid(NOBODY) < 0 || setuid(NOBODY) < 0))
        _exit(100);
}

/* ---- the library's reader ------------------------------------------------------------------------------------------------------ */

/* No line of this process's maps that belongs to the heap is writable. */
static int writable_maps(void)
{
    char line[1024], perms[8];
    int count = 0;
    FILE *f = fopen("/proc/self/maps", "re");
    while (f && fgets(line, sizeof line, f))
        if (strstr(line, "memfd:arena") && sscanf(line, "%*s %7s", perms) == 1)
            count += perms[1] == 'w';
    if (f)
        fclose(f);
    return f ? count : 99;
}

static int library_reader(void *argument)
{
    struct arena_options options = read_only();
    struct arena_stats stats = {.size = sizeof stats};
    arena_t *a;
    arena_ref_t ref;
    (void)argument;
    become_other();
    int rc = arena_open(&a, d.socket, &options);
    if (rc < 0)
        return 10;
    if (writable_maps() != 0)
        return 1;
    if (arena_root_get(a, "r", &ref) != 0 || strcmp(arena_ptr(a, ref), "to be read") != 0)
        return 2;
    char *p = arena_ptr(a, ref);
    for (uintptr_t page = 0; page < 4; page++) /* the heap's mapping is not to be made writable */
        if (mprotect((void *)(((uintptr_t)p & ~4095UL) + page * 4096), 4096, PROT_READ | PROT_WRITE) == 0 || errno != EACCES)
            return 3;
    if (arena_alloc(a, 10) || errno != EACCES || arena_calloc(a, 1, 10) || arena_alloc_flags(a, 50000, ARENA_ZERO))
        return 4;
    if (arena_root_set(a, "r", 0) != -EACCES || arena_root_cas(a, "r", ref, 0) != -EACCES || arena_tx_begin(a) >= 0 ||
        arena_publish(a, p) != -EACCES || arena_claim(a, p) != -EACCES || arena_gc(a, 0, NULL) != -EACCES ||
        arena_gc(a, ARENA_GC_DRY_RUN, NULL) != -EACCES)
        return 5;
    if (arena_stats(a, &stats) != 0 || stats.roots != 1 || arena_root_wait(a, "r", ref, 0, &ref) != -ETIMEDOUT)
        return 6;
    pid_t pid = fork();
    if (pid == 0) { /* the store itself is a SIGSEGV; a sanitizer's handler would report it */
        signal(SIGSEGV, SIG_DFL);
        *(volatile char *)p = 'x';
        _exit(0);
    }
    int status;
    if (waitpid(pid, &status, 0) != pid || !WIFSIGNALED(status) || WTERMSIG(status) != SIGSEGV)
        return 7;
    return arena_close(a) == 0 ? 0 : 8;
}

/* ---- a reader that is not the library's ------------------------------------------------------------------------------------------ */

static struct msg m;
static struct msg_space space;
static uint8_t packet[MSG_MAX];

/* Connects, says HELLO with `flags`: how many descriptors came, or -1. */
static int hello(int *ret_socket, uint32_t flags, int fds[4])
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    char why[MSG_TEXT_MAX + 1];
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), count = 0;
    strncpy(address.sun_path, d.socket, sizeof address.sun_path - 1);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -1;
    m = call_hello(flags, 0);
    m.id = 1;
    int bytes = msg_encode(&m, packet, sizeof packet);
    if (bytes < 0 || packet_send(fd, packet, (size_t)bytes, NULL, 0, 0) < 0)
        return -1;
    ssize_t got = packet_receive(fd, packet, sizeof packet, fds, 4, &count, 0);
    if (got <= 0 || msg_decode(&m, &space, packet, (size_t)got, why) < 0 || m.type != MSG_WELCOME)
        return -1;
    *ret_socket = fd;
    return count;
}

/* 0: this descriptor lets nobody of another user write. */
static int try_to_write(int fd, bool reopen_too)
{
    char path[64], byte = 'x';
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (p != MAP_FAILED || errno != EACCES)
        return 20;
    p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED || mprotect(p, 4096, PROT_READ | PROT_WRITE) == 0 || errno != EACCES)
        return 21;
    if (write(fd, &byte, 1) >= 0 || pwrite(fd, &byte, 1, 0) >= 0 || ftruncate(fd, 0) == 0)
        return 22;
    if (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096) == 0)
        return 23;
    if (fcntl(fd, F_SETFL, O_RDWR) == 0 && (fcntl(fd, F_GETFL) & O_ACCMODE) != O_RDONLY)
        return 24;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (int flags = O_WRONLY; reopen_too && flags <= O_RDWR; flags++)
        if (open(path, flags) >= 0 || open(path, flags | O_TRUNC) >= 0)
            return 25;
    if (reopen_too && fchmod(fd, 0666) == 0)
        return 26;
    return 0;
}

static int raw_reader(void *argument)
{
    int fd, fds[4];
    (void)argument;
    become_other();
    if (hello(&fd, HELLO_READ_ONLY, fds) != 3)
        return 10;
    for (int i = 0; i < 3; i++) {
        int rc = try_to_write(fds[i], other_user);
        if (rc)
            return rc;
    }
    /* and what a writer would be given is not given for the asking */
    const struct msg asked[] = {MSG(lease, .epoch = 1, .span_class = 20, .pages = 1),
                                MSG(large, .epoch = 1, .span_class = CLASS_LARGE, .pages = 1, .align = 1), MSG(root, .name = "r"),
                                MSG(tx_tags, .count = 1), MSG(ping), MSG(pins), MSG(trimmed)};
    char why[MSG_TEXT_MAX + 1];
    for (size_t i = 0; i < sizeof asked / sizeof asked[0]; i++) {
        m = asked[i];
        m.id = 5;
        int bytes = msg_encode(&m, packet, sizeof packet);
        if (bytes < 0 || packet_send(fd, packet, (size_t)bytes, NULL, 0, 0) < 0)
            return 11;
        ssize_t got = packet_receive(fd, packet, sizeof packet, NULL, 0, NULL, 0);
        if (got <= 0 || msg_decode(&m, &space, packet, (size_t)got, why) < 0 || m.type != MSG_ERROR || m.error.error != EPERM)
            return 12;
    }
    close(fd);
    return 0;
}

/* A client that may write has the map read-only all the same. */
static int writer_and_the_map(void *argument)
{
    int fd, fds[4];
    (void)argument;
    become_other();
    if (hello(&fd, 0, fds) != 3)
        return 10;
    return try_to_write(fds[1], other_user);
}

static int who_is_not_allowed(void *argument)
{
    struct arena_options options = read_only();
    arena_t *a;
    (void)argument;
    become_other();
    int rc = arena_open(&a, d.socket, &options);
    return rc != -EACCES ? 10 : strstr(arena_reason(), "not allowed") ? 0 : 11;
}

static void in_other_process(int (*fn)(void *)) { assert_int_equal(reap(spawn(fn, NULL)), 0); }

static int leaves_a_text(void *argument)
{
    arena_t *a = open_heap(&d);
    char *p = arena_alloc_flags(a, 50, ARENA_SHARED);
    (void)argument;
    strcpy(p, "to be read");
    return arena_root_set(a, "r", arena_ref(a, p)) == 0 && arena_close(a) == 0 ? 0 : 1;
}

/* This process never opens the heap: a child would have its mapping. */
static void a_reader_of_another_user_cannot_write_by_any_way(void **state)
{
    (void)state;
    in_other_process(leaves_a_text);
    in_other_process(library_reader);
    in_other_process(raw_reader);
    in_other_process(writer_and_the_map);
    in_other_process(library_reader); /* what was to be read is what it was */
    stat_await(&d, "clients", 0);
    assert_int_equal(check_of(&d), 0);
}

static void who_is_not_on_the_list_is_told_so(void **state)
{
    (void)state;
    struct daemon first = d;
    if (!other_user)
        skip();
    daemon_start(&d, "16M", "--socket-mode", "0666", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    in_other_process(who_is_not_allowed);
    daemon_clean(&d);
    d = first;
}

struct denied {
    _Atomic uint64_t opened, killed;
};

/* Opened by one who may, who then becomes another: a connection that is lost is not to be had again. */
static int becomes_other(void *argument)
{
    struct denied *denied = argument;
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    options.timeout_ms = -1; /* it says so nevertheless */
    if (arena_open(&a, d.socket, &options) != 0)
        return 1;
    become_other();
    denied->opened++;
    while (!denied->killed)
        pause_us(100);
    if (arena_root_set(a, "r", 0) != -ENOTCONN)
        return 2;
    return strstr(arena_reason(), "this user may not open") ? 0 : 3;
}

static void who_may_not_connect_again_is_told_why(void **state)
{
    (void)state;
    struct daemon first = d;
    if (!other_user)
        skip();
    daemon_start(&d, "16M", "--socket-mode", "0600", "--keeper=no", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    struct denied *denied = shared_memory(sizeof *denied);
    pid_t pid = spawn(becomes_other, denied);
    await_counter(&denied->opened, 1, pid);
    daemon_kill(&d);
    denied->killed++;
    assert_int_equal(reap(pid), 0);
    munmap(denied, sizeof *denied);
    daemon_clean(&d);
    d = first;
}

static int setup(void **state)
{
    *state = &d;
    other_user = geteuid() == 0;
    if (other_user) { /* root without the right to become another, as in some containers? */
        pid_t pid = fork();
        if (pid == 0)
            _exit(setgid(NOBODY) == 0 && setuid(NOBODY) == 0 ? 0 : 1);
        other_user = reap(pid) == 0;
    }
    if (!other_user)
        printf("skipped: not root, so the reader is of the same user and may reopen what it was given\n");
    unsetenv("TMPDIR"); /* where the other user can go */
    daemon_start(&d, "64M", "--socket-mode", "0666", "--allow-users", "*", NULL);
    return chmod(d.dir, 0755);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_reader_of_another_user_cannot_write_by_any_way),
        cmocka_unit_test(who_may_not_connect_again_is_told_why),
        cmocka_unit_test(who_is_not_on_the_list_is_told_so),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
