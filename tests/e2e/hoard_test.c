/* Goal: what a process keeps without using it comes back when it is needed, and is little where nobody can be asked for it;
 * and giving back waits for nobody. Method: small heaps in which others sleep, or work and never ask for memory; a daemon
 * that is stopped, before which no free, trim or publication may stand still (a call that waited for it would wait for
 * ever). What is refused must be truly in use: the bounds are those of client/alloc/keep.h. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { MIB = 1 << 20 };

static struct daemon d;

static int teardown(void **state)
{
    (void)state;
    if (d.pid)
        daemon_clean(&d);
    memset(&d, 0, sizeof d);
    return 0;
}

static arena_t *open_patient(int timeout_ms)
{
    arena_t *a;
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = timeout_ms;
    assert_int_equal(arena_open(&a, d.socket, &options), 0);
    return a;
}

/* Allocates until it is refused, then frees all: bytes that it got. */
static uint64_t can_have(arena_t *a, size_t size)
{
    struct node {
        struct node *next;
    } *list = NULL, *p;
    uint64_t bytes = 0;
    while ((p = arena_alloc(a, size)) != NULL) {
        p->next = list;
        list = p;
        bytes += size;
    }
    while ((p = list) != NULL) {
        list = p->next;
        arena_free(a, p);
    }
    return bytes;
}

/* ---- one message under way ---------------------------------------------------------------------------------------- */

enum { CONSUMERS_MAX = 12 };

struct line {
    int to[CONSUMERS_MAX][2], back[2];
};

static int consume(struct line *line, unsigned self)
{
    arena_ref_t ref;
    arena_t *a = open_heap(&d);
    for (unsigned i = 0; i < CONSUMERS_MAX; i++)
        close(line->to[i][1]);
    while (read(line->to[self][0], &ref, sizeof ref) == sizeof ref) {
        arena_free(a, arena_ptr(a, ref));
        if (write(line->back[1], "", 1) != 1)
            return 1;
    }
    return 0;
}

enum kind { SMALL, LARGE, MIXED, KINDS };

static size_t size_of(enum kind kind, uint64_t r)
{
    if (kind == MIXED)
        kind = r >> 40 & 1 ? SMALL : LARGE;
    return kind == SMALL ? 8 + r % 32000 : 33000 + (r >> 8 & 15 ? r % 600000 : r % (8 * MIB));
}

static void pass_messages(unsigned consumers, enum kind kind, unsigned count)
{
    struct line line;
    pid_t pids[CONSUMERS_MAX];
    char byte;
    for (unsigned i = 0; i < CONSUMERS_MAX; i++)
        assert_int_equal(pipe(line.to[i]), 0);
    assert_int_equal(pipe(line.back), 0);
    fflush(NULL);
    for (unsigned i = 0; i < consumers; i++)
        if ((pids[i] = fork()) == 0)
            _exit(consume(&line, i));
    arena_t *a = open_heap(&d);
    uint64_t seed = seed_get();
    for (unsigned n = 0; n < count; n++) {
        size_t size = size_of(kind, rnd(&seed));
        char *p = arena_alloc(a, size);
        if (!p)
            fail_msg("message %u of kind %d, %zu bytes, to %u consumers: %s (%s)", n, kind, size, consumers, strerror(errno),
                     arena_reason());
        p[0] = p[size - 1] = 1;
        assert_int_equal(arena_publish(a, p), 0);
        arena_ref_t ref = arena_ref(a, p);
        assert_int_equal(write(line.to[rnd(&seed) % consumers][1], &ref, sizeof ref), sizeof ref);
        assert_int_equal(read(line.back[0], &byte, 1), 1);
    }
    for (unsigned i = 0; i < CONSUMERS_MAX; i++)
        close(line.to[i][0]), close(line.to[i][1]);
    for (unsigned i = 0; i < consumers; i++)
        assert_int_equal(reap(pids[i]), 0);
    close(line.back[0]), close(line.back[1]);
    arena_close(a);
}

static void one_message_under_way_never_meets_a_full_heap(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    static const unsigned consumers[] = {1, 3, CONSUMERS_MAX};
    for (unsigned i = 0; i < sizeof consumers / sizeof consumers[0]; i++)
        for (enum kind kind = 0; kind < KINDS; kind++)
            pass_messages(consumers[i], kind, 1000 / LESS);
    stat_await(&d, "spans", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- ten processes in 1 MiB ---------------------------------------------------------------------------------------- */

enum { TEN = 10, FEW = 6, ROUNDS = 300 };

struct ten {
    _Atomic uint64_t turn;  /* whose it is, if they take turns */
    _Atomic uint64_t refused;
    bool turns;
};
struct one_of_ten {
    struct ten *ten;
    unsigned self;
};

static int allocate_a_few(void *argument)
{
    const struct one_of_ten *one = argument;
    struct ten *ten = one->ten;
    unsigned self = one->self;
    uint64_t seed = 0x9e3779b97f4a7c15 * (self + 1);
    arena_t *a = open_heap(&d);
    for (unsigned round = 0; round < ROUNDS / LESS + 1; round++) {
        while (ten->turns && atomic_load(&ten->turn) % TEN != self)
            pause_us(50);
        void *p[FEW];
        for (unsigned i = 0; i < FEW; i++) {
            p[i] = arena_alloc(a, 16 << rnd(&seed) % 7); /* 16 bytes to 1 KiB */
            if (!p[i]) {
                fprintf(stderr, "process %u, round %u: %s\n", self, round, arena_reason());
                atomic_fetch_add(&ten->refused, 1);
            }
        }
        for (unsigned i = 0; i < FEW; i++)
            arena_free(a, p[i]);
        if (ten->turns)
            atomic_fetch_add(&ten->turn, 1);
    }
    arena_close(a);
    return 0;
}

static void ten_processes(bool turns)
{
    pid_t pids[TEN];
    struct ten *ten = shared_memory(sizeof *ten);
    daemon_start(&d, "1M", NULL);
    ten->turns = turns;
    for (unsigned i = 0; i < TEN; i++) {
        struct one_of_ten one = {ten, i};
        pids[i] = spawn(allocate_a_few, &one);
    }
    for (unsigned i = 0; i < TEN; i++)
        assert_int_equal(reap(pids[i]), 0);
    assert_int_equal(atomic_load(&ten->refused), 0);
    assert_int_equal(check_of(&d), 0);
}

static void ten_processes_share_a_heap_of_1_mib(void **state)
{
    (void)state;
    ten_processes(false);
}

static void ten_processes_of_which_nine_sleep_share_a_heap_of_1_mib(void **state)
{
    (void)state;
    ten_processes(true);
}

/* A message of each of some sizes, of which a span holds one or few: what another process frees them in is soon leased by a
 * sender that leases in other classes since, and sleeps. */
static int send_of_each_size(void *argument)
{
    const int *fds = argument;
    arena_t *a = open_heap(&d);
    for (size_t size = 4096; size <= 32768; size += 4096) {
        void *p = arena_alloc(a, size);
        arena_ref_t ref = arena_ref(a, p);
        if (!p || arena_publish(a, p) || write(fds[1], &ref, sizeof ref) != sizeof ref)
            return 1;
    }
    close(fds[1]);
    pause();
    return 0;
}

static void a_sender_that_sleeps_keeps_no_more_than_is_written_down(void **state)
{
    enum { SPAN_MOST = 40 << 10, KEPT_MOST = MIB / (4 * 4) /* few clients count as four */ };
    int fds[2];
    arena_ref_t ref;
    (void)state;
    daemon_start(&d, "1M", NULL);
    assert_int_equal(pipe(fds), 0);
    pid_t pid = spawn(send_of_each_size, fds);
    close(fds[1]);
    arena_t *a = open_heap(&d);
    while (read(fds[0], &ref, sizeof ref) == sizeof ref)
        arena_free(a, arena_ptr(a, ref));
    close(fds[0]);
    arena_trim(a); /* its own */
    assert_true(stat_of(&d, "bytes_leased") <= KEPT_MOST + SPAN_MOST); /* the last span may be more than is kept */
    kill(pid, SIGKILL);
    reap(pid);
    arena_close(a);
}

/* ---- threads of one process ----------------------------------------------------------------------------------------- */

static arena_t *heap;
static pthread_barrier_t filled;
static atomic_bool stop;

static void fill_magazines(size_t size, size_t bytes)
{
    size_t count = bytes / size, n = 0;
    void **p = malloc(count * sizeof *p);
    for (; n < count && (p[n] = arena_alloc(heap, size)) != NULL; n++)
        ;
    while (n)
        arena_free(heap, p[--n]);
    free(p);
}

static void *hoard_and_work(void *argument)
{
    size_t size = 32 + 16 * (uintptr_t)argument;
    void *p[50];
    for (int twice = 0; twice < 2; twice++)
        fill_magazines(size, 3 * MIB);
    pthread_barrier_wait(&filled);
    while (!atomic_load(&stop)) {
        for (int i = 0; i < 50; i++)
            p[i] = arena_alloc(heap, size);
        for (int i = 0; i < 50; i++)
            arena_free(heap, p[i]);
        pause_us(100);
    }
    return NULL;
}

static void *hoard_and_sleep(void *unused)
{
    (void)unused;
    for (size_t size = 64; size <= 2048; size *= 2)
        fill_magazines(size, 512 << 10);
    pthread_barrier_wait(&filled);
    while (!atomic_load(&stop))
        pause_us(10000);
    return NULL;
}

enum { THREADS_MAX = 24 };
static pthread_t threads[THREADS_MAX];

static void threads_begin(unsigned count, void *(*fn)(void *))
{
    atomic_store(&stop, false);
    pthread_barrier_init(&filled, NULL, count + 1);
    for (uintptr_t i = 0; i < count; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fn, (void *)i), 0);
    pthread_barrier_wait(&filled);
}

static void threads_end(unsigned count)
{
    atomic_store(&stop, true);
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

static void what_threads_hoard_that_work_is_had_by_one_that_needs_it(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    heap = open_heap(&d);
    threads_begin(24, hoard_and_work);
    uint64_t got = can_have(heap, 30000);
    if (got < 54 * MIB) /* of 64; spans of three objects waste some, and the 24 use some */
        fail_msg("it got %llu KiB", (unsigned long long)got >> 10);
    threads_end(24);
    arena_close(heap);
}

static int has_nearly_all(void *argument)
{
    size_t size = *(size_t *)argument;
    arena_t *a = open_heap(&d);
    uint64_t got = can_have(a, size);
    if (got < 26 * MIB)
        fprintf(stderr, "it got %llu KiB in objects of %zu\n", (unsigned long long)got >> 10, size);
    return got < 26 * MIB;
}

/* A limit is reached, and not the heap's end: nobody else is asked, and its own threads have what is missing. */
static void what_threads_hoard_that_work_is_had_by_one_that_meets_a_limit(void **state)
{
    (void)state;
    daemon_start(&d, "1G", "--limit-client-bytes", "96M", NULL);
    heap = open_heap(&d);
    threads_begin(24, hoard_and_work); /* 3 MiB each may be kept of such a heap */
    uint64_t got = can_have(heap, 30000);
    if (got < 80 * MIB)
        fail_msg("it got %llu KiB", (unsigned long long)got >> 10);
    threads_end(24);
    arena_close(heap);
}

static void idle_threads_leave_nearly_all_of_a_small_heap_to_others(void **state)
{
    static const size_t sizes[] = {64, 1000, 4000, 100000};
    (void)state;
    daemon_start(&d, "32M", NULL);
    heap = open_heap(&d);
    threads_begin(12, hoard_and_sleep);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        size_t size = sizes[i];
        assert_int_equal(reap(spawn(has_nearly_all, &size)), 0);
        uint64_t got = can_have(heap, size);
        if (got < 26 * MIB)
            fail_msg("another thread got %llu KiB in objects of %zu", (unsigned long long)got >> 10, size);
        arena_trim(heap);
    }
    threads_end(12);
    arena_close(heap);
}

static _Atomic uint64_t naps, refusals;

/* In place of the C library's, for the library too. */
__attribute__((visibility("default"))) int nanosleep(const struct timespec *time, struct timespec *left)
{
    atomic_fetch_add(&naps, 1);
    return (int)syscall(SYS_nanosleep, time, left);
}

/* Fills the heap beside others, and gives half of what it has back when it is refused. */
static void *fill_and_be_refused(void *unused)
{
    enum { TIMES = 15, ONES = 4096 };
    static __thread void *p[ONES];
    unsigned n = 0;
    (void)unused;
    pthread_barrier_wait(&filled);
    for (int times = 0; times < TIMES;) {
        if (n < ONES && (p[n] = arena_alloc(heap, 200 + n * 37 % 3000)) != NULL) {
            n++;
            continue;
        }
        times++;
        atomic_fetch_add(&refusals, 1);
        for (unsigned half = n / 2; n > half;)
            arena_free(heap, p[--n]);
    }
    while (n)
        arena_free(heap, p[--n]);
    return NULL;
}

/* Threads that are refused together ask one another. Each waits, with a look each half a millisecond, until those that work have
 * answered; where no other client is to be asked the daemon refuses each at once. A pause there is a hundred looks of the others. */
static void threads_that_meet_a_full_heap_together_are_refused_soon(void **state)
{
    enum { THREADS = 6, LOOKS_FEW = 50 };
    (void)state;
    daemon_start(&d, "16M", NULL);
    heap = open_heap(&d);
    threads_begin(THREADS, fill_and_be_refused);
    atomic_store(&naps, 0);
    threads_end(THREADS);
    assert_true(atomic_load(&naps) < LOOKS_FEW * atomic_load(&refusals));
    arena_close(heap);
    assert_int_equal(check_of(&d), 0);
}

/* ---- who only frees ------------------------------------------------------------------------------------------------- */

enum { HELD = 600 };

struct freeing {
    arena_ref_t refs[HELD];
    _Atomic uint64_t freed, wanted;
};

/* It allocates nothing, and frees when it is told to. */
static int free_when_told(void *argument)
{
    struct freeing *f = argument;
    arena_t *a = open_heap(&d);
    for (unsigned n = 0; n < HELD; n++) {
        while (atomic_load(&f->wanted) <= n)
            pause_us(20);
        arena_free(a, arena_ptr(a, f->refs[n]));
        atomic_fetch_add(&f->freed, 1);
    }
    return 0;
}

/* A heap that one process has filled and another frees, object by object: whatever was freed can be had again at once. */
static void what_another_process_frees_can_be_had_at_once(void **state)
{
    (void)state;
    static const size_t sizes[] = {100000, 60000, 30000};
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        struct freeing *f = shared_memory(sizeof *f);
        daemon_start(&d, "64M", NULL);
        arena_t *a = open_heap(&d);
        pid_t pid = spawn(free_when_told, f);
        for (unsigned n = 0; n < HELD; n++) {
            void *p = arena_alloc_flags(a, sizes[k], ARENA_SHARED);
            assert_non_null(p);
            f->refs[n] = arena_ref(a, p);
        }
        while (arena_alloc(a, sizes[k])) /* and the rest of it */
            ;
        /* an idle client may keep a 64th of the heap of each kind: what is freed beyond that is there */
        unsigned bound = (unsigned)(2 * MIB / sizes[k]), had = 0;
        for (unsigned n = 0; n < HELD / 4; n++) {
            atomic_fetch_add(&f->wanted, 1);
            while (atomic_load(&f->freed) <= n)
                pause_us(20);
            had += arena_alloc(a, sizes[k]) != NULL;
            if (had + bound < n)
                fail_msg("%u objects of %zu were freed, %u could be had", n + 1, sizes[k], had);
        }
        kill(pid, SIGKILL);
        reap(pid);
        arena_close(a);
        daemon_clean(&d);
    }
    memset(&d, 0, sizeof d);
}

/* ---- who works on --------------------------------------------------------------------------------------------------- */

/* It has freed as much as it keeps of small and of large objects, and works with one large object. */
static int hoard_and_go_on(void *argument)
{
    enum { ONES = 100 };
    static void *large[ONES];
    _Atomic uint64_t *ready = argument;
    arena_t *a = heap = open_heap(&d);
    for (size_t size = 64; size <= 2048; size *= 2)
        fill_magazines(size, 8 * MIB);
    for (int i = 0; i < ONES; i++)
        large[i] = arena_alloc(a, 100000);
    for (int i = 0; i < ONES; i++)
        arena_free(a, large[i]);
    while (atomic_fetch_add(ready, 1) < UINT64_MAX)
        arena_free(a, arena_alloc(a, 100000));
    return 0;
}

static void another_process_is_asked(uint64_t all)
{
    _Atomic uint64_t *ready = shared_memory(sizeof *ready);
    pid_t pid = spawn(hoard_and_go_on, (void *)(uintptr_t)ready);
    await_counter(ready, 1, pid);
    arena_t *a = open_heap(&d);
    uint64_t got = can_have(a, 32768);
    if (got + 2 * MIB < all)
        fail_msg("it got %llu of %llu KiB", (unsigned long long)got >> 10, (unsigned long long)all >> 10);
    kill(pid, SIGKILL);
    reap(pid);
    arena_close(a);
    munmap((void *)(uintptr_t)ready, sizeof *ready);
}

static void what_another_process_hoards_that_works_is_had_by_one_that_needs_it(void **state)
{
    (void)state;
    daemon_start(&d, "256M", NULL);
    another_process_is_asked(256 * MIB);
}

static void what_another_process_hoards_that_works_is_had_by_one_of_its_user_at_a_limit(void **state)
{
    (void)state;
    daemon_start(&d, "256M", "--limit-user-bytes", "96M", NULL);
    another_process_is_asked(96 * MIB);
}

/* ---- a daemon that stands still --------------------------------------------------------------------------------------- */

static void stand_still(int signal_number)
{
    char out[200];
    pid_t pid = daemon_serving(&d);
    assert_int_equal(kill(pid, signal_number), 0);
    while (signal_number == SIGSTOP && run(out, sizeof out, "grep -q '^State:.T' /proc/%d/status", (int)pid) != 0)
        ;
}

static atomic_bool waits, waited;
static size_t waits_for;

static void *wait_for_the_daemon(void *unused)
{
    (void)unused;
    atomic_store(&waits, true);
    void *p = arena_alloc(heap, waits_for); /* a class that has nothing, or a large object */
    atomic_store(&waited, true);
    return p;
}

enum { OWN = 200 };

/* While another thread waits for a daemon that stands still, in the same class or with a large object, this one frees,
 * publishes, trims, and allocates from what is cached. */
static void a_thread_that_waits_for_the_daemon_holds_nobody_up(void **state)
{
    static const size_t waits_of[] = {256, 100000};
    static void *small[OWN], *large[OWN], *more[OWN];
    (void)state;
    for (int k = 0; k < 2; k++) {
        pthread_t thread;
        void *got;
        daemon_start(&d, "256M", NULL);
        heap = open_patient(-1);
        for (int i = 0; i < OWN; i++) {
            assert_non_null(small[i] = arena_alloc(heap, 64));
            assert_non_null(large[i] = arena_alloc(heap, 40000));
        }
        while (stat_of(&d, "clients") != 1)
            ;
        waits_for = waits_of[k];
        atomic_store(&waits, false);
        atomic_store(&waited, false);
        stand_still(SIGSTOP);
        assert_int_equal(pthread_create(&thread, NULL, wait_for_the_daemon, NULL), 0);
        while (!atomic_load(&waits))
            ;
        pause_us(20000); /* it is likely to wait by now; if it does not, less is tried */
        for (int i = 0; i < OWN; i++) {
            assert_int_equal(arena_publish(heap, small[i]), 0);
            if (i % 2)
                assert_int_equal(arena_publish(heap, large[i]), 0);
            arena_free(heap, large[i]);
        }
        for (int i = 0; i < OWN; i++)
            arena_free(heap, small[i]);
        for (int i = 0; i < OWN / 2; i++)
            assert_non_null(more[i] = arena_alloc(heap, 64));
        for (int i = 0; i < OWN / 2; i++)
            arena_free(heap, more[i]);
        assert_int_equal(arena_trim(heap), 0);
        assert_false(atomic_load(&waited));
        stand_still(SIGCONT);
        pthread_join(thread, &got);
        assert_non_null(got);
        arena_free(heap, got);
        assert_int_equal(arena_trim(heap), 0);
        stat_await(&d, "spans", 0);
        assert_int_equal(check_of(&d), 0);
        arena_close(heap);
        daemon_clean(&d);
    }
    memset(&d, 0, sizeof d);
}

static atomic_bool flushed;

/* Until it has one. Where the other thread takes longer than the patience lasts, less is tried. */
static void *wait_in_vain(void *unused)
{
    (void)unused;
    for (;;) {
        bool last = atomic_load(&flushed);
        atomic_store(&waits, true);
        void *p = arena_alloc(heap, 256);
        if (p || last)
            return p;
    }
}

/* A thread that waits for a lease is served by what another flushes of its class once its patience is over. An object of each
 * four stays: a span that is free as a whole is the daemon's, which stands still. */
static void what_is_flushed_serves_who_has_waited_in_vain(void **state)
{
    enum { ONES = 16384 };
    static void *p[ONES];
    pthread_t thread;
    void *got;
    (void)state;
    daemon_start(&d, "256M", NULL);
    heap = open_patient(700);
    for (int i = 0; i < ONES; i++)
        assert_non_null(p[i] = arena_alloc(heap, 256));
    atomic_store(&waits, false);
    atomic_store(&flushed, false);
    stand_still(SIGSTOP);
    assert_int_equal(pthread_create(&thread, NULL, wait_in_vain, NULL), 0);
    while (!atomic_load(&waits))
        ;
    for (int i = 0; i < ONES; i++)
        if (i % 4)
            arena_free(heap, p[i]);
    atomic_store(&flushed, true);
    pthread_join(thread, &got);
    assert_non_null(got);
    stand_still(SIGCONT);
    arena_close(heap);
    assert_int_equal(check_of(&d), 0);
}

/* More is let go than a socket takes: it is told when the daemon reads again. */
static void what_a_full_socket_does_not_take_is_told_later(void **state)
{
    enum { LARGE_ONES = 4000, SMALL_ONES = 200000 };
    static void *large[LARGE_ONES], *small[SMALL_ONES];
    (void)state;
    daemon_start(&d, "1G", NULL);
    arena_t *a = open_patient(-1);
    for (int i = 0; i < LARGE_ONES; i++)
        assert_non_null(large[i] = arena_alloc(a, 40000));
    for (int i = 0; i < SMALL_ONES; i++)
        assert_non_null(small[i] = arena_alloc(a, 64));
    stand_still(SIGSTOP);
    for (int i = 0; i < LARGE_ONES; i++) /* each one a message */
        assert_int_equal(arena_publish(a, large[i]), 0);
    for (int i = 0; i < SMALL_ONES; i++)
        arena_free(a, small[i]);
    for (int i = 0; i < LARGE_ONES; i++)
        arena_free(a, large[i]);
    assert_int_equal(arena_trim(a), 0);
    stand_still(SIGCONT);
    while (stat_of(&d, "spans")) /* by any call that finds room */
        assert_int_equal(arena_trim(a), 0);
    assert_int_equal(stat_of(&d, "epoch"), 1);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

/* What was let go while the daemon was away is taken back when the client has resumed, and what it holds is not. */
static void what_was_let_go_while_the_daemon_was_away_is_taken_back(void **state)
{
    enum { ONES = 1000 };
    static void *large[ONES], *small[ONES];
    (void)state;
    daemon_start(&d, "256M", NULL);
    arena_t *a = open_patient(-1);
    for (int i = 0; i < ONES; i++) {
        assert_non_null(large[i] = arena_alloc(a, 40000));
        assert_non_null(small[i] = arena_alloc(a, 4000));
        memset(small[i], i, 4000);
    }
    kill(daemon_serving(&d), SIGKILL);
    for (int i = 0; i < ONES; i++) {
        assert_int_equal(arena_publish(a, large[i]), 0);
        if (i % 2)
            arena_free(a, small[i]);
    }
    for (int i = 0; i < ONES; i++)
        arena_free(a, large[i]);
    assert_int_equal(arena_trim(a), 0);
    assert_non_null(arena_alloc(a, 200000)); /* reaches it */
    for (int i = 0; i < ONES; i += 2) {
        for (int k = 0; k < 4000; k++)
            assert_int_equal(((uint8_t *)small[i])[k], (uint8_t)i);
        arena_free(a, small[i]);
    }
    assert_int_equal(arena_trim(a), 0);
    stat_await(&d, "spans", 1);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

/* ---- what cannot be had ------------------------------------------------------------------------------------------------ */

static int open_and_sleep(void *unused)
{
    (void)unused;
    arena_t *a = open_heap(&d);
    arena_free(a, arena_alloc(a, 64));
    return pause();
}

/* It fails, again and again, whatever sleeps beside it: the test ends. */
static void what_is_in_use_cannot_be_had_and_says_so(void **state)
{
    (void)state;
    daemon_start(&d, "16M", NULL);
    pid_t pid = spawn(open_and_sleep, NULL);
    while (stat_of(&d, "spans") == 0)
        ;
    heap = open_heap(&d);
    threads_begin(4, hoard_and_sleep);
    while (arena_alloc(heap, 1000))
        ;
    for (int i = 0; i < 200; i++) {
        assert_null(arena_alloc(heap, 1000 + i % 2 * 90000));
        assert_int_equal(errno, ENOMEM);
    }
    threads_end(4);
    kill(pid, SIGKILL);
    reap(pid);
    arena_close(heap);
}

#define TEST(f) cmocka_unit_test_teardown(f, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(one_message_under_way_never_meets_a_full_heap),
        TEST(ten_processes_share_a_heap_of_1_mib),
        TEST(ten_processes_of_which_nine_sleep_share_a_heap_of_1_mib),
        TEST(a_sender_that_sleeps_keeps_no_more_than_is_written_down),
        TEST(what_threads_hoard_that_work_is_had_by_one_that_needs_it),
        TEST(what_threads_hoard_that_work_is_had_by_one_that_meets_a_limit),
        TEST(idle_threads_leave_nearly_all_of_a_small_heap_to_others),
        TEST(threads_that_meet_a_full_heap_together_are_refused_soon),
        TEST(what_another_process_frees_can_be_had_at_once),
        TEST(what_another_process_hoards_that_works_is_had_by_one_that_needs_it),
        TEST(what_another_process_hoards_that_works_is_had_by_one_of_its_user_at_a_limit),
        TEST(a_thread_that_waits_for_the_daemon_holds_nobody_up),
        TEST(what_is_flushed_serves_who_has_waited_in_vain),
        TEST(what_a_full_socket_does_not_take_is_told_later),
        TEST(what_was_let_go_while_the_daemon_was_away_is_taken_back),
        TEST(what_is_in_use_cannot_be_had_and_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
