/* Goal: a fork, an exec or a close in the middle of something that is not this process's alone - a collection, a commit, a
 * daemon that stands still, a call that reports an error - harms nobody: neither who goes on, nor the child, nor the heap.
 *
 * Method: children by fork, _Fork and clone at each of these moments; they and their parent tell one another by counters in
 * shared memory where they are. A program that execs itself is this one again. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "shm/layout.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;

static struct board {
    _Atomic uint64_t ready, stop, asked, child, parent;
} *board;

static int setup(void **state)
{
    board = shared_memory(sizeof *board);
    return daemon_setup(state, &d, "1G", &a);
}
static int teardown(void **state) { return daemon_teardown(state); }

static pid_t by_fork(void) { return fork(); }
static pid_t by_fork_without_handlers(void) { return _Fork(); }
static pid_t by_clone(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); }

static pid_t (*const ways[])(void) = {by_fork, by_fork_without_handlers, by_clone};
enum { WAYS = sizeof ways / sizeof *ways };

static pid_t child(int way, int (*fn)(arena_t *), arena_t *heap)
{
    pid_t pid = ways[way % WAYS]();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn(heap));
    return pid;
}

static bool collects(void)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    int rc = arena_gc(a, ARENA_GC_SAFEPOINT, &stats);
    assert_true(rc == 0 || rc == -EBUSY);
    return rc == 0;
}

/* ---- a collection that runs ------------------------------------------------------------------------------------------------- */

static int has_many(void *unused)
{
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *b = open_heap(&d);
    int rc = hold_a_list(b, 2000000 / LESS);
    if (rc != 0)
        return rc;
    board->ready = 1;
    for (;;)
        pause();
}

/* Again and again, at a safepoint of its own; refused while a child that has declared nothing is there. */
static int asks(void *unused)
{
    (void)unused;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *b = open_heap(&d);
    while (!board->stop) {
        int rc = arena_gc(b, ARENA_GC_SAFEPOINT, NULL);
        if (rc != 0 && rc != -EBUSY)
            return 1;
        if (rc == 0)
            board->asked++;
        else
            pause_us(1000);
    }
    return arena_close(b) != 0;
}

static const struct map_header *map_of_heap(void)
{
    char line[512];
    void *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (!found && maps && fgets(line, sizeof line, maps))
        if (strstr(line, "arena-map"))
            sscanf(line, "%p", &found);
    if (maps)
        fclose(maps);
    assert_non_null(found);
    return found;
}

enum { PINNED = 50 };
static uint64_t *pinned[PINNED];

static bool pinned_are_whole(void)
{
    for (uint64_t i = 0; i < PINNED; i++)
        for (uint64_t k = 0; k < 8; k++)
            if (pinned[i] && pinned[i][k] != (i << 8 | k))
                return false;
    return true;
}

static int only_closes(arena_t *heap) { return pinned_are_whole() ? arena_close(heap) != 0 : 1; }
static int only_ends(arena_t *heap) { return (void)heap, !pinned_are_whole(); }

static int works(arena_t *heap)
{
    for (int i = 0; i < 300; i++) {
        void *p = arena_alloc(heap, 64 + (size_t)i);
        if (!p)
            return 2;
        memset(p, 0xee, 64);
        if (i % 2)
            arena_free(heap, p);
    }
    return pinned_are_whole() ? 0 : 3;
}

static int works_and_closes(arena_t *heap) { return works(heap) || arena_close(heap) != 0; }

static int pins_as_well(arena_t *heap)
{
    if (arena_unpin(heap, pinned[0]) != -EINVAL) /* its parent's is not its own */
        return 4;
    if (arena_safepoint(heap, ARENA_PINS) != 0 || works(heap) || arena_pin(heap, pinned[1]) != 0)
        return 5;
    return pinned_are_whole() ? 0 : 6; /* and its pins end with it */
}

static int rests_and_works(arena_t *heap)
{
    if (arena_safepoint(heap, ARENA_SAFEPOINT) != 0 || arena_safepoint(heap, ARENA_RUNS) != 0)
        return 7;
    return works(heap);
}

static void a_process_that_pins_may_fork_while_a_collection_runs(void **state)
{
    static int (*const children[])(arena_t *) = {only_closes, only_ends, works, works_and_closes, pins_as_well, rests_and_works};
    enum { CHILDREN = sizeof children / sizeof *children };
    const struct map_header *map = map_of_heap();
    (void)state;
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0);
    for (uint64_t i = 0; i < PINNED; i++) {
        assert_non_null(pinned[i] = arena_alloc_flags(a, 64, ARENA_SHARED));
        for (uint64_t k = 0; k < 8; k++)
            pinned[i][k] = i << 8 | k;
    }
    pid_t many = spawn(has_many, NULL);
    await_counter(&board->ready, 1, many);
    pid_t asking = spawn(asks, NULL);
    for (int met = 0; met < CHILDREN * WAYS;) {
        uint32_t serial = __atomic_load_n(&map->collecting, __ATOMIC_ACQUIRE);
        if (!serial)
            continue;
        pid_t pid = child(met / CHILDREN, children[met % CHILDREN], a);
        bool met_it = __atomic_load_n(&map->collecting, __ATOMIC_ACQUIRE) == serial;
        for (int i = 0; i < 100; i++) { /* the parent goes on meanwhile */
            void *p = arena_alloc_flags(a, 64, ARENA_SHARED);
            assert_non_null(p);
            arena_free(a, p);
        }
        int rc = reap(pid);
        if (rc)
            print_error("child %d: %d\n", met % CHILDREN, rc);
        assert_int_equal(rc, 0);
        assert_true(pinned_are_whole());
        met += met_it;
    }
    uint64_t seen = board->asked;
    await_counter(&board->asked, seen + 2, asking);
    assert_true(pinned_are_whole());
    board->stop = 1;
    assert_int_equal(reap(asking), 0);
    kill(many, SIGKILL);
    reap(many);
    for (int i = 0; i < PINNED; i++) { /* pinned once, by nobody but this process */
        assert_int_equal(arena_claim(a, pinned[i]), 0);
        assert_int_equal(arena_unpin(a, pinned[i]), 0);
        assert_int_equal(arena_unpin(a, pinned[i]), -EINVAL);
        arena_free(a, pinned[i]);
        pinned[i] = NULL;
    }
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_shared", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- exec ------------------------------------------------------------------------------------------------------------------- */

static _Atomic uint64_t commits;

/* Every one makes the root lead to a new list of two; who finds the old one frees it. */
static void *commits_lists(void *heap)
{
    arena_ref_t old = 0;
    for (;;) {
        if (arena_tx_begin(heap) != 0)
            return "begin";
        arena_ref_t *first = arena_alloc(heap, 64), *second = arena_alloc(heap, 64);
        if (!first || !second)
            return "alloc";
        memset(first, 0, 64);
        *second = arena_ref(heap, first);
        commits++;
        if (arena_tx_commit(heap, "list", old, arena_ref(heap, second)) != 0)
            return "commit";
        if (old) {
            arena_ref_t *gone = arena_ptr(heap, old);
            arena_free(heap, arena_ptr(heap, *gone));
            arena_free(heap, gone);
        }
        old = arena_ref(heap, second);
    }
}

/* As `fork_seams_test SOCKET WHAT LEFT`: leaves a transaction open (open) or is in the middle of commits (commits), and execs. */
static int execs(const char *socket, const char *what, int left)
{
    arena_t *heap;
    arena_ref_t list = 0;
    struct arena_stats stats = {.size = sizeof stats};
    char number[16];
    pthread_t thread;
    if (arena_open(&heap, socket, NULL) != 0)
        return 1;
    if (arena_stats(heap, &stats) != 0 || stats.clients != 1)
        return 2;
    int rc = arena_root_get(heap, "list", &list);
    if (rc == 0) { /* whole, and nobody's but the root's */
        arena_ref_t *second = arena_ptr(heap, list);
        void *first = arena_ptr(heap, *second);
        if (arena_root_set(heap, "list", 0) != 0 || arena_claim(heap, second) != 0 || arena_claim(heap, first) != 0)
            return 3;
        arena_free(heap, first);
        arena_free(heap, second);
    } else if (rc != -ENOENT)
        return 4;
    if (left == 0)
        return arena_close(heap) != 0;
    if (strcmp(what, "open") == 0) {
        if (arena_tx_begin(heap) != 0)
            return 5;
        for (int i = 0; i < 1000; i++)
            if (!arena_alloc(heap, 100))
                return 6;
    } else {
        if (pthread_create(&thread, NULL, commits_lists, heap) != 0)
            return 7;
        while (commits < (uint64_t)left)
            ;
    }
    snprintf(number, sizeof number, "%d", left - 1);
    execl("/proc/self/exe", "fork_seams_test", socket, what, number, (char *)NULL);
    return 8;
}

static void exec_program(const char *what, const char *left)
{
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "fork_seams_test", d.socket, what, left, (char *)NULL);
        _exit(9);
    }
    assert_int_equal(reap(pid), 0);
    a = open_heap(&d);
    stat_await(&d, "transactions", 0);
    /* a list that a commit took away, and whose program went before it could free it, is the collector's */
    assert_true(collects());
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

static void an_exec_with_an_open_transaction_leaves_nothing(void **state)
{
    (void)state;
    arena_close(a);
    exec_program("open", "20");
}

static void an_exec_in_the_middle_of_commits_leaves_each_done_or_not(void **state)
{
    (void)state;
    arena_close(a);
    exec_program("commits", "60");
}

/* Its commit lies in the socket of a daemon that stands still when the program is replaced. */
static int is_in_doubt_and_execs(void *unused)
{
    (void)unused;
    struct arena_options patient = ARENA_OPTIONS_INIT;
    patient.timeout_ms = 100;
    arena_t *heap;
    if (arena_open(&heap, d.socket, &patient) != 0 || arena_tx_begin(heap) != 0)
        return 1;
    arena_ref_t *p = arena_alloc(heap, 64);
    board->child = 1;
    while (!board->parent)
        ;
    int rc = arena_tx_commit(heap, "list", 0, arena_ref(heap, p));
    if (rc != -ENOTCONN && rc != -EINPROGRESS)
        return 2;
    board->child = 2;
    execl("/proc/self/exe", "fork_seams_test", d.socket, "open", "0", (char *)NULL);
    return 3;
}

static void an_exec_after_a_commit_that_nobody_answered_leaves_nothing(void **state)
{
    (void)state;
    arena_close(a);
    for (int round = 0; round < 5; round++) {
        board->child = board->parent = 0;
        pid_t pid = spawn(is_in_doubt_and_execs, NULL), serving = daemon_serving(&d);
        await_counter(&board->child, 1, pid);
        kill(serving, SIGSTOP);
        board->parent = 1;
        await_counter(&board->child, 2, pid);
        kill(serving, SIGCONT);
        assert_int_equal(reap(pid), 0);
        stat_await(&d, "transactions", 0);
        stat_await(&d, "objects_used", 0);
    }
    assert_int_equal(check_of(&d), 0);
    a = open_heap(&d);
}

/* ---- a reader ---------------------------------------------------------------------------------------------------------------- */

static uint64_t *published;

static int reads(arena_t *reader)
{
    struct arena_stats stats = {.size = sizeof stats};
    arena_ref_t ref;
    errno = 0;
    if (published[0] != 4711 || arena_root_get(reader, "kept", &ref) != 0 || *(uint64_t *)arena_ptr(reader, ref) != 4711)
        return 1;
    if (arena_alloc(reader, 64) || errno != EACCES || arena_tx_begin(reader) != -EACCES || arena_root_set(reader, "x", 0) != -EACCES)
        return 2;
    return arena_stats(reader, &stats) == 0 && stats.clients == 3 ? 0 : 3; /* the writer and two readers */
}

static void tells(uint64_t where)
{
    board->child = where;
    while (board->parent < where)
        pause_us(200);
}

static int rests_reads_and_closes(arena_t *reader)
{
    tells(1); /* nothing called yet: no client */
    if (arena_safepoint(reader, ARENA_PINS) != -EACCES || arena_safepoint(reader, ARENA_SAFEPOINT) != 0)
        return 10;
    tells(2);
    if (arena_safepoint(reader, ARENA_RUNS) != 0)
        return 11;
    int rc = reads(reader);
    tells(3);
    if (rc || arena_close(reader) != 0)
        return rc ? rc : 12;
    tells(4);
    return 0;
}

static void a_reader_may_fork_and_its_child_is_a_reader_of_its_own(void **state)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *reader;
    (void)state;
    published = arena_alloc(a, 64);
    *published = 4711;
    arena_publish(a, published);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, published)), 0);
    options.flags = ARENA_READ_ONLY;
    assert_int_equal(arena_open(&reader, d.socket, &options), 0);
    assert_false(collects());
    assert_int_equal(arena_safepoint(reader, ARENA_SAFEPOINT), 0);
    for (int way = 0; way < WAYS; way++) {
        static const bool counts[] = {false, false, false, true, false};
        board->child = board->parent = 0;
        pid_t pid = child(way, rests_reads_and_closes, reader);
        for (uint64_t where = 1; where <= 4; where++) {
            await_counter(&board->child, where, pid);
            assert_int_equal(collects(), !counts[where]);
            board->parent = where;
        }
        assert_int_equal(reap(pid), 0);
    }
    assert_int_equal(arena_safepoint(reader, ARENA_RUNS), 0);
    assert_false(collects());
    assert_int_equal(published[0], 4711);
    assert_int_equal(arena_close(reader), 0);
    assert_true(collects());
    assert_int_equal(arena_root_set(a, "kept", 0), 0);
    assert_int_equal(arena_claim(a, published), 0);
    arena_free(a, published);
    stat_await(&d, "clients", 1);
    assert_int_equal(check_of(&d), 0);
}

/* ---- a daemon that stands still ------------------------------------------------------------------------------------------------ */

static int is_told_and_tries_again(arena_t *heap)
{
    errno = 0;
    if (arena_alloc(heap, 64) || errno != ENOTCONN || arena_tx_begin(heap) != -ENOTCONN || arena_trim(heap) != -ENOTCONN)
        return 20;
    if (arena_safepoint(heap, ARENA_SAFEPOINT) != -ENOTCONN)
        return 21;
    tells(1);
    void *p;
    while (!(p = arena_alloc(heap, 64)))
        if (errno != ENOTCONN)
            return 22;
    memset(p, 0xee, 64);
    return works(heap);
}

static int is_told_and_closes(arena_t *heap)
{
    if (arena_alloc(heap, 64) || errno != ENOTCONN || arena_close(heap) != 0)
        return 23;
    tells(1);
    return 0;
}

static int closes_at_once(arena_t *heap)
{
    if (arena_close(heap) != 0)
        return 24;
    tells(1);
    return 0;
}

static int has_the_small_frames_it_needs(arena_t *heap)
{
    arena_stack_t *s = arena_stack(heap);
    if (s) {
        arena_frame_t f = arena_frame_push(s);
        memset(arena_frame_alloc_small(s, 128), 0xee, 128);
        if (arena_frame_alloc(s, 5000) || errno != ENOTCONN)
            return 25;
        arena_frame_pop(s, f);
    }
    tells(1);
    return s ? 0 : 26;
}

static void *everybodys; /* published */
static int told;

static void is_told(void *context, int error, const void *p, const char *message)
{
    (void)context;
    told += error == ENOTCONN && p == everybodys && strstr(message, "arena_free") && strstr(message, "client");
}

/* What it frees stays: by a handler, and without one, with which it lives on. */
static int is_told_that_nothing_is_freed(arena_t *heap)
{
    arena_on_error(heap, is_told, NULL);
    arena_free(heap, NULL);
    arena_free(heap, everybodys);
    if (told != 1)
        return 27;
    arena_on_error(heap, NULL, NULL);
    arena_free(heap, everybodys);
    if (arena_close(heap) != 0)
        return 28;
    tells(1);
    return 0;
}

static void a_child_of_a_time_when_the_daemon_stands_still_is_told_so(void **state)
{
    static int (*const children[])(arena_t *) = {is_told_and_tries_again, is_told_and_closes, closes_at_once,
                                                 has_the_small_frames_it_needs, is_told_that_nothing_is_freed};
    enum { CHILDREN = sizeof children / sizeof *children };
    struct arena_options options = ARENA_OPTIONS_INIT;
    void *cached[8];
    (void)state;
    arena_close(a);
    options.timeout_ms = 300;
    while (arena_open(&a, d.socket, &options) == -ENOTCONN)
        ;
    char *frame = arena_frame_alloc(arena_stack(a), 128);
    memset(frame, 0x5a, 128);
    for (int i = 0; i < 8; i++)
        while (!(cached[i] = arena_alloc(a, 64)))
            assert_int_equal(errno, ENOTCONN);
    while (!(everybodys = arena_alloc_flags(a, 64, ARENA_SHARED)))
        assert_int_equal(errno, ENOTCONN);
    for (int i = 0; i < CHILDREN * WAYS; i++) {
        pid_t serving = daemon_serving(&d);
        board->child = board->parent = 0;
        for (int k = 0; k < 8; k++)
            arena_free(a, cached[k]);
        kill(serving, SIGSTOP);
        pid_t pid = child(i / CHILDREN, children[i % CHILDREN], a);
        for (int round = 0; round < 100; round++) {
            for (int k = 0; k < 8; k++) {
                assert_non_null(cached[k] = arena_alloc(a, 64));
                memset(cached[k], k, 64);
            }
            for (int k = 0; k < 8; k++) {
                assert_int_equal(*(char *)cached[k], k);
                if (round < 99)
                    arena_free(a, cached[k]);
            }
        }
        await_counter(&board->child, 1, pid);
        kill(serving, SIGCONT);
        board->parent = 1;
        int rc = reap(pid);
        if (rc)
            print_error("child %d: %d\n", i % CHILDREN, rc);
        assert_int_equal(rc, 0);
        for (int k = 0; k < 128; k++)
            assert_int_equal(frame[k], 0x5a);
        stat_await(&d, "clients", 1);
        assert_int_equal(arena_publish(a, everybodys), 0); /* it is there */
    }
    arena_free(a, everybodys);
    arena_close(a);
    a = open_heap(&d);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- an error handler that closes ------------------------------------------------------------------------------------------------ */

static _Atomic int handled, close_rc;

static void closes_the_heap(void *heap, int error, const void *p, const char *message)
{
    (void)error, (void)p, (void)message;
    if (handled++ == 0)
        close_rc = arena_close(heap);
}

static void by_free(arena_t *heap, void *p) { arena_free(heap, p); }
static void by_realloc(arena_t *heap, void *p)
{
    void *moved = arena_realloc(heap, p, 5000);
    close_rc |= moved != NULL || errno != EINVAL;
}
static void by_realloc_to_nothing(arena_t *heap, void *p) { (void)!arena_realloc(heap, p, 0); }
static void by_buffer(arena_t *heap, void *p)
{
    arena_buf_t b;
    arena_buf_init(&b, heap, 0);
    b.data = p;
    arena_buf_fini(&b);
}
static void by_batch(arena_t *heap, void *p)
{
    void *objects[] = {p, arena_alloc(heap, 500), p};
    arena_free_batch(heap, objects, 3);
}

static int closes_in_its_handler(void *argument)
{
    static void (*const calls[])(arena_t *, void *) = {by_free, by_realloc, by_realloc_to_nothing, by_buffer, by_batch};
    int i = (int)(intptr_t)argument;
    bool goes_on = calls[i] == by_batch;
    arena_close(a); /* so that the handler's is the last */
    arena_t *heap = open_heap(&d);
    void *p = arena_alloc(heap, 64);
    arena_free(heap, p);
    arena_on_error(heap, closes_the_heap, heap);
    calls[i](heap, p);
    if (handled != (goes_on ? 2 : 1) || close_rc != (goes_on ? -EBUSY : 0))
        return 1;
    if (goes_on && arena_close(heap) != 0)
        return 2;
    heap = open_heap(&d); /* another one, perhaps in the same memory */
    return works(heap) || arena_close(heap) != 0 ? 3 : 0;
}

/* ARENA_DEBUG=escape: the pop that is reported goes on. */
static int closes_in_a_pop(void *unused)
{
    (void)unused;
    setenv("ARENA_DEBUG", "escape", 1);
    arena_close(a);
    arena_t *heap = open_heap(&d);
    void **object = arena_alloc(heap, 64);
    arena_stack_t *s = arena_stack(heap);
    arena_frame_t f = arena_frame_push(s);
    memset(object, 0, 64);
    object[0] = object[1] = arena_frame_alloc(s, 64);
    arena_on_error(heap, closes_the_heap, heap);
    arena_frame_pop(s, f);
    if (!handled || close_rc != -EBUSY)
        return 1;
    return arena_close(heap) != 0 ? 2 : 0;
}

static void an_error_handler_may_close_the_heap_where_the_call_does_not_go_on(void **state)
{
    (void)state;
    for (intptr_t i = 0; i < 5; i++) {
        int rc = reap(spawn(closes_in_its_handler, (void *)i));
        if (rc)
            print_error("call %d: %d\n", (int)i, rc);
        assert_int_equal(rc, 0);
    }
    assert_int_equal(reap(spawn(closes_in_a_pop, NULL)), 0);
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_process_that_pins_may_fork_while_a_collection_runs, setup, teardown),
        cmocka_unit_test_setup_teardown(an_exec_with_an_open_transaction_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(an_exec_in_the_middle_of_commits_leaves_each_done_or_not, setup, teardown),
        cmocka_unit_test_setup_teardown(an_exec_after_a_commit_that_nobody_answered_leaves_nothing, setup, teardown),
        cmocka_unit_test_setup_teardown(a_reader_may_fork_and_its_child_is_a_reader_of_its_own, setup, teardown),
        cmocka_unit_test_setup_teardown(a_child_of_a_time_when_the_daemon_stands_still_is_told_so, setup, teardown),
        cmocka_unit_test_setup_teardown(an_error_handler_may_close_the_heap_where_the_call_does_not_go_on, setup, teardown),
    };
    if (argc == 4)
        return execs(argv[1], argv[2], atoi(argv[3]));
    return cmocka_run_group_tests(tests, NULL, NULL);
}
