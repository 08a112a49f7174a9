/* Goal: whoever dies, whenever: no state word bears a dead tag, what it owned is free, what it published is whole, others
 * work on. Method: processes killed with SIGKILL at a moment that a counter in shared memory chooses at random, while
 * others allocate; afterwards check, figures, and a walk over what the roots reach. Both ways to a pidfd. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static uint64_t seed;

struct board {
    _Atomic uint64_t steps;          /* the victim's, counted in each of its steps */
    _Atomic uint64_t stop;
    _Atomic uint64_t published_count;
    _Atomic uint64_t published[4096]; /* references; the upper half of each word's object says what it holds */
};
static struct board *board;

static int setup(void **state)
{
    (void)state;
    board = shared_memory(sizeof *board);
    seed = seed_get();
    return 0;
}

static size_t size_of(uint64_t *s) { return rnd(s) % 100 ? 16 + rnd(s) % 900 : 16 + rnd(s) % 200000; }

/* Allocates, frees, publishes, claims, at random, for ever. */
static void churn(arena_t *a, uint64_t *s, bool victim)
{
    enum { SLOTS = 300 };
    void *slots[SLOTS] = {NULL};
    for (;;) {
        size_t i = rnd(s) % SLOTS, size = size_of(s);
        arena_free(a, slots[i]);
        slots[i] = arena_alloc(a, size);
        if (!slots[i])
            _exit(7);
        memset(slots[i], 0x77, 16);
        if (rnd(s) % 64 == 0) {
            arena_publish(a, slots[i]);
            if (rnd(s) % 2 && arena_claim(a, slots[i]) != 0)
                _exit(6);
        }
        if (rnd(s) % 2048 == 0)
            arena_trim(a);
        if (victim && rnd(s) % 256 == 0 && atomic_load(&board->published_count) < 4096) {
            uint64_t *p = arena_alloc(a, 64); /* what must stay */
            p[0] = 0x1234567800000000ULL | (p[1] = rnd(s) & 0xffffffff);
            arena_publish(a, p);
            board->published[atomic_load(&board->published_count)] = arena_ref(a, p);
            atomic_fetch_add(&board->published_count, 1);
        }
        if (victim)
            atomic_fetch_add(&board->steps, 1);
        else if (atomic_load(&board->stop))
            break;
    }
    for (int i = 0; i < SLOTS; i++)
        arena_free(a, slots[i]);
}

static int victim(void *argument)
{
    uint64_t s = seed ^ (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15ULL;
    arena_t *a = open_heap(&d);
    churn(a, &s, true);
    return 0;
}

static int bystander(void *argument)
{
    uint64_t s = seed + 17 + (uint64_t)(uintptr_t)argument;
    arena_t *a = open_heap(&d);
    churn(a, &s, false);
    return arena_close(a) == 0 ? 0 : 1;
}

static void kill_victims(int kills)
{
    memset(board, 0, sizeof *board);
    pid_t others[2] = {spawn(bystander, (void *)1), spawn(bystander, (void *)2)};
    for (int i = 0; i < kills; i++) {
        uint64_t until = rnd(&seed) % 3000;
        atomic_store(&board->steps, 0);
        pid_t pid = spawn(victim, (void *)(uintptr_t)(i + 1));
        await_counter(&board->steps, until, pid);
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
        if (i % 50 == 0)
            assert_int_equal(check_of(&d), 0);
    }
    stat_await(&d, "clients", 2);
    assert_int_equal(check_of(&d), 0);
    atomic_store(&board->stop, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(reap(others[i]), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_cached", 0);
    arena_t *a = open_heap(&d);
    uint64_t count = atomic_load(&board->published_count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t *p = arena_ptr(a, board->published[i]);
        assert_int_equal(p[0], 0x1234567800000000ULL | p[1]);
        arena_free(a, p);
    }
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
}

static void three_hundred_kills_leave_the_heap_exact(void **state)
{
    (void)state;
    daemon_start(&d, "512M", NULL);
    kill_victims(300);
    daemon_clean(&d);
}

static void the_same_without_peer_pidfds(void **state)
{
    (void)state;
    daemon_start(&d, "512M", "--pidfd-fallback", NULL);
    kill_victims(60);
    daemon_clean(&d);
}

/* ---- transactions -------------------------------------------------------------------------------------------------------- */

struct node {
    arena_ref_t next;
    uint64_t number, count;
};

/* Builds a list of 50 to 550 nodes in a transaction and commits it with a root, again and again. */
static int builder(void *argument)
{
    uint64_t s = seed ^ (uint64_t)(uintptr_t)argument * 0x9e3779b97f4a7c15ULL;
    arena_t *a = open_heap(&d);
    for (uint64_t list = 0;; list++) {
        uint64_t count = 50 + rnd(&s) % 500;
        arena_ref_t head = 0;
        char name[64];
        if (arena_tx_begin(a) != 0)
            return 1;
        for (uint64_t i = 0; i < count; i++) {
            struct node *node = arena_alloc(a, sizeof *node + rnd(&s) % 200);
            *node = (struct node){head, i, count};
            head = arena_ref(a, node);
            atomic_fetch_add(&board->steps, 1);
        }
        snprintf(name, sizeof name, "%d-%llu", (int)getpid(), (unsigned long long)list);
        if (arena_tx_commit(a, name, 0, head) != 0)
            return 2;
        atomic_fetch_add(&board->steps, 1);
    }
}

/* Walks every root's list: how many nodes; each list must be whole. */
static uint64_t walk_roots(arena_t *a)
{
    static char out[4 << 20];
    uint64_t nodes = 0;
    assert_int_equal(arenactl(&d, out, sizeof out, "roots"), 0);
    char *save = NULL;
    for (char *line = strtok_r(out, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        char name[64];
        arena_ref_t ref;
        if (sscanf(line, "%63s", name) != 1 || strcmp(name, "NAME") == 0)
            continue;
        assert_int_equal(arena_root_get(a, name, &ref), 0);
        struct node *node = arena_ptr(a, ref);
        uint64_t count = node->count, seen = 0;
        for (; node; node = arena_ptr(a, node->next), seen++) {
            assert_int_equal(node->number, count - 1 - seen);
            assert_int_equal(node->count, count);
        }
        assert_int_equal(seen, count);
        nodes += seen;
    }
    return nodes;
}

static void killed_transactions_appear_whole_or_not_at_all(void **state)
{
    (void)state;
    daemon_start(&d, "512M", NULL);
    for (int i = 0; i < 200; i++) {
        uint64_t until = rnd(&seed) % 4000;
        atomic_store(&board->steps, 0);
        pid_t pid = spawn(builder, (void *)(uintptr_t)(i + 1));
        await_counter(&board->steps, until, pid);
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
    }
    stat_await(&d, "clients", 0);
    stat_await(&d, "transactions", 0);
    arena_t *a = open_heap(&d);
    uint64_t nodes = walk_roots(a);
    assert_true(nodes > 0);
    assert_int_equal(stat_of(&d, "objects_used"), nodes); /* what is in the heap is what the roots reach */
    assert_int_equal(stat_of(&d, "objects_shared"), nodes);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
}

static int stopped_owner(void *argument)
{
    arena_t *a = open_heap(&d);
    int *fd = argument;
    for (int i = 0; i < 1000; i++)
        arena_alloc(a, 100);
    if (write(fd[1], "x", 1) != 1)
        return 1;
    raise(SIGSTOP);
    return 0;
}

static void a_stopped_client_is_never_reclaimed(void **state)
{
    int fd[2];
    char byte;
    (void)state;
    daemon_start(&d, "64M", NULL);
    assert_int_equal(pipe(fd), 0);
    pid_t pid = spawn(stopped_owner, fd);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 100000; i++)
        arena_free(a, arena_alloc(a, 100 + i % 1000));
    assert_int_equal(stat_of(&d, "objects_owned"), 1000);
    while (arena_alloc(a, 5000)) /* a full heap asks it to trim, and does not wait for it for ever */
        ;
    assert_int_equal(errno, ENOMEM);
    kill(pid, SIGKILL);
    reap(pid);
    arena_close(a);
    stat_await(&d, "objects_used", 0);
    daemon_clean(&d);
}

static int opens_patiently(void *argument)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    options.timeout_ms = *(int *)argument;
    return -arena_open(&a, d.socket, &options);
}

/* A number of /proc/PID/FILE behind `before`; fails when the process has ended. */
static long proc_number(pid_t pid, const char *file, const char *before)
{
    char path[64], text[4096];
    siginfo_t info = {.si_pid = 0};
    assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOHANG | WNOWAIT), 0);
    assert_int_equal(info.si_pid, 0);
    snprintf(path, sizeof path, "/proc/%d/%s", (int)pid, file);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    char *at = strstr(text, before);
    return at ? strtol(at + strlen(before), NULL, 10) : -1;
}

/* timeout_ms is what a process has waited, not what passed while it was stopped. */
static void a_client_that_was_stopped_has_not_waited(void **state)
{
    struct timespec from, now;
    int timeout_ms = 3000;
    (void)state;
    daemon_start(&d, "64M", NULL);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    pid_t pid = spawn(opens_patiently, &timeout_ms);
    while (proc_number(pid, "syscall", "") != SYS_recvmsg)
        ;
    kill(pid, SIGSTOP);
    clock_gettime(CLOCK_MONOTONIC, &from);
    do {
        pause_us(100000);
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while (now.tv_sec * 1000 + now.tv_nsec / 1000000 < from.tv_sec * 1000 + from.tv_nsec / 1000000 + timeout_ms);
    long looks = proc_number(pid, "status", "\nvoluntary_ctxt_switches:");
    kill(pid, SIGCONT);
    while (proc_number(pid, "status", "\nvoluntary_ctxt_switches:") < looks + 2) /* it has looked at the time, and waits again */
        ;
    kill(serving, SIGCONT);
    assert_int_equal(reap(pid), 0);
    daemon_clean(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_hundred_kills_leave_the_heap_exact),
        cmocka_unit_test(the_same_without_peer_pidfds),
        cmocka_unit_test(killed_transactions_appear_whole_or_not_at_all),
        cmocka_unit_test(a_stopped_client_is_never_reclaimed),
        cmocka_unit_test(a_client_that_was_stopped_has_not_waited),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
