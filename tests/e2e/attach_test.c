/* Goal: processes come, share, fork, wait for one another and go; several heaps; a heap that is not at its address; a
 * daemon that is wrong, gone or replaced. Method: private daemons, forked clients, figures from arenactl. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;

static int setup(void **state)
{
    return daemon_setup(state, &d, "256M", NULL);
}

static void a_second_open_shares_the_mapping_and_is_counted(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d), *b = open_heap(&d);
    assert_ptr_equal(a, b);
    assert_int_equal(stat_of(&d, "clients"), 1);
    assert_int_equal(arena_close(b), 0);
    void *p = arena_alloc(a, 10);
    assert_non_null(p);
    assert_int_equal(arena_close(a), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_used", 0);
}

static int child_of_fork(void *argument)
{
    arena_t *a = argument;
    arena_ref_t ref;
    char *p = arena_alloc(a, 100);
    if (!p || arena_root_get(a, "parent", &ref) != 0 || strcmp(arena_ptr(a, ref), "from the parent") != 0)
        return 1;
    strcpy(p, "from the child");
    if (arena_publish(a, p) != 0 || arena_root_set(a, "child", arena_ref(a, p)) != 0)
        return 2;
    arena_alloc(a, 100); /* dies with the child */
    return stat_of(&d, "clients") == 2 ? 0 : 3;
}

static void a_forked_child_is_a_client_of_its_own(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    arena_ref_t ref;
    char *p = arena_alloc(a, 100), *own = arena_alloc(a, 100);
    strcpy(p, "from the parent");
    strcpy(own, "own");
    assert_int_equal(arena_publish(a, p), 0);
    assert_int_equal(arena_root_set(a, "parent", arena_ref(a, p)), 0);
    assert_int_equal(reap(spawn(child_of_fork, a)), 0);
    assert_int_equal(arena_root_wait(a, "child", 0, -1, &ref), 0);
    assert_string_equal((char *)arena_ptr(a, ref), "from the child");
    assert_string_equal(own, "own");
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", 1);
    arena_free(a, arena_ptr(a, ref));
    arena_free(a, p);
    arena_free(a, own);
    assert_int_equal(arena_root_set(a, "parent", 0), 0);
    assert_int_equal(arena_root_set(a, "child", 0), 0);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
}

static int opens_and_leaves(void *argument)
{
    arena_t *a;
    int rc = arena_open(&a, d.socket, NULL);
    if (rc != 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    for (int i = 0; i < 50; i++)
        if (!arena_alloc(a, (size_t)i * 100)) {
            perror("arena_alloc");
            return 2;
        }
    if (argument)
        raise(SIGKILL);
    return arena_close(a) == 0 ? 0 : 3;
}

enum { LITTLE_THREADS = 100, THREAD_ADDRESSES = 32 << 20, ADDRESSES_LEFT = 1 << 30 };

static pthread_barrier_t all_have_tried;

struct thread_of {
    arena_t *a;
    void *published;
};

static void *allocates_or_is_told(void *argument)
{
    struct thread_of *t = argument;
    void *p = arena_alloc(t->a, 100);
    int error = errno;
    pthread_barrier_wait(&all_have_tried); /* nobody's place is another's before */
    arena_free(t->a, t->published); /* also without a place */
    arena_free(t->a, p);
    return (void *)(intptr_t)(p ? 0 : error);
}

static uint64_t address_space(void) /* bytes */
{
    unsigned long long pages = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu", &pages) != 1)
        pages = 0;
    if (f)
        fclose(f);
    return pages * 4096;
}

/* As under `ulimit -v`, or valgrind. 0: every thread allocated, or was refused by EAGAIN; all could free. */
static int has_little_address_space(void *argument)
{
    pthread_t threads[LITTLE_THREADS];
    const arena_ref_t *published = argument;
    struct thread_of of[LITTLE_THREADS];
    pthread_attr_t attr;
    int served = 0;
    arena_t *a = open_heap(&d); /* without any caches yet */
    for (int i = 0; i < LITTLE_THREADS; i++)
        of[i] = (struct thread_of){a, arena_ptr(a, published[i])};
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 128 << 10);
    pthread_barrier_init(&all_have_tried, NULL, LITTLE_THREADS);
    struct rlimit limit = {.rlim_cur = address_space() + ADDRESSES_LEFT, .rlim_max = RLIM_INFINITY};
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        return 1;
    for (int i = 0; i < LITTLE_THREADS; i++)
        if (pthread_create(&threads[i], &attr, allocates_or_is_told, &of[i]) != 0)
            return 2;
    for (int i = 0; i < LITTLE_THREADS; i++) {
        void *error;
        pthread_join(threads[i], &error);
        if (error && (intptr_t)error != EAGAIN)
            return 3;
        served += !error;
    }
    return served >= ADDRESSES_LEFT / THREAD_ADDRESSES / 4 && served < LITTLE_THREADS && arena_alloc(a, 100) ? 0 : 4;
}

static void little_address_space_is_for_fewer_threads(void **state)
{
    (void)state;
    arena_ref_t published[LITTLE_THREADS];
    arena_t *a = open_heap(&d);
    for (int i = 0; i < LITTLE_THREADS; i++)
        published[i] = arena_ref(a, arena_alloc_flags(a, 300, ARENA_SHARED));
    arena_close(a); /* its addresses are not for a child */
    assert_int_equal(reap(spawn(has_little_address_space, published)), 0);
    stat_await(&d, "clients", 0);
    assert_int_equal(stat_of(&d, "objects_shared"), 0);
    assert_int_equal(check_of(&d), 0);
}

/* 0: opens that fail behind the daemon's welcome leave no client there while this process lives. */
static int cannot_map_the_heap(void *argument)
{
    struct rlimit limit, small;
    arena_t *a;
    (void)argument;
    getrlimit(RLIMIT_AS, &limit);
    small = limit;
    small.rlim_cur = address_space() + (64 << 20); /* the heap is of 256 MiB */
    for (int i = 0; i < 20; i++) {
        setrlimit(RLIMIT_AS, &small);
        int rc = arena_open(&a, d.socket, NULL);
        setrlimit(RLIMIT_AS, &limit);
        if (rc != -ENOMEM)
            return 1;
    }
    stat_await(&d, "clients", 0);
    return 0;
}

static void an_open_that_fails_leaves_no_client_behind(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(cannot_map_the_heap, NULL)), 0);
}

/* A child that does not use the heap and closes it keeps all of its own memory. */
static int closes_what_it_inherited(void *argument)
{
    enum { PIECES = 200, PIECE = 1 << 20 };
    char *pieces[PIECES];
    for (int i = 0; i < PIECES; i++) { /* some of them where the parent has its caches */
        pieces[i] = mmap(NULL, PIECE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pieces[i] == MAP_FAILED)
            return 1;
        pieces[i][0] = (char)i;
    }
    arena_close(argument);
    for (int i = 0; i < PIECES; i++)
        if (pieces[i][0] != (char)i)
            return 2;
    return 0;
}

static void a_child_that_closes_keeps_its_memory(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    assert_non_null(arena_alloc(a, 100));
    assert_int_equal(reap(spawn(closes_what_it_inherited, a)), 0);
    assert_int_equal(stat_of(&d, "objects_owned"), 1);
    arena_close(a);
    stat_await(&d, "clients", 0);
}

static int forks_once_more(void *argument)
{
    arena_t *a = argument;
    static int generation;
    static uint64_t first;
    if (!arena_alloc(a, 100))
        return errno;
    first = first ? first : address_space();
    if (++generation < 10)
        return reap(spawn(forks_once_more, a));
    return address_space() - first < 10ULL * 4 * THREAD_ADDRESSES ? 0 : 1;
}

static void a_childs_childs_child_has_as_many_addresses(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    assert_int_equal(reap(spawn(forks_once_more, a)), 0);
    arena_close(a);
    stat_await(&d, "clients", 0);
}

static void two_thousand_clients_leave_nothing_behind(void **state)
{
    (void)state;
    int fds = daemon_fd_count(&d);
    for (int i = 0; i < 2000 / LESS; i++)
        assert_int_equal(reap(spawn(opens_and_leaves, i % 2 ? (void *)1 : NULL)), i % 2 ? 128 + SIGKILL : 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "spans", 0);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    assert_int_equal(stat_of(&d, "transactions"), 0);
    for (int tries = 0; daemon_fd_count(&d) > fds && tries < 1000; tries++)
        stat_of(&d, "clients"); /* a descriptor is closed by the turn of the loop after its last event: so were perhaps
                                   some of those that were there before */
    assert_in_range(daemon_fd_count(&d), 0, fds);
    assert_int_equal(check_of(&d), 0);
}

static void several_heaps_are_open_at_once_each_at_its_own_address(void **state)
{
    (void)state;
    struct daemon other;
    daemon_start(&other, "256M", "--name", "other", NULL);
    arena_t *a = open_heap(&d), *b = open_heap(&other);
    char *p = arena_alloc(a, 100), *q = arena_alloc(b, 100);
    assert_int_equal(arena_same_address(a), 1);
    assert_int_equal(arena_same_address(b), 1);
    strcpy(p, "one");
    strcpy(q, "other");
    assert_int_equal(arena_ref(a, q), 0);
    assert_int_equal(arena_ref(b, p), 0);
    assert_string_equal(p, "one");
    arena_free(a, p);
    arena_free(b, q);
    arena_close(b);
    arena_close(a);
    daemon_clean(&other);
}

static int maps_elsewhere(void *argument)
{
    arena_t *a;
    arena_ref_t ref;
    (void)argument;
    if (mmap((void *)0x550000000000, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
        return 1;
    if (arena_open(&a, d.socket, NULL) != 0 || arena_same_address(a) != 0)
        return 2;
    if (arena_root_get(a, "elsewhere", &ref) != 0 || strcmp(arena_ptr(a, ref), "by reference") != 0)
        return 3;
    char *p = arena_alloc(a, 100);
    arena_free(a, p);
    arena_free(a, arena_ptr(a, ref)); /* and it frees what another process had at another address */
    return arena_root_set(a, "elsewhere", 0) == 0 && arena_close(a) == 0 ? 0 : 4;
}

static int leaves_a_root(void *argument)
{
    arena_t *a = open_heap(&d);
    char *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    (void)argument;
    strcpy(p, "by reference");
    return arena_root_set(a, "elsewhere", arena_ref(a, p)) == 0 ? 0 : 1;
}

static void references_work_where_the_address_is_taken(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(leaves_a_root, NULL)), 0);
    assert_int_equal(reap(spawn(maps_elsewhere, NULL)), 0);
    stat_await(&d, "objects_used", 0);
}

static void roots_are_set_swapped_removed_and_refused(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    arena_ref_t ref = 7, p = arena_ref(a, arena_alloc_flags(a, 50, ARENA_SHARED)), q = arena_ref(a, arena_alloc_flags(a, 50, ARENA_SHARED));
    char *own = arena_alloc(a, 50), name[100];
    assert_int_equal(arena_root_get(a, "r", &ref), -ENOENT);
    assert_int_equal(ref, 7);
    assert_int_equal(arena_root_set(a, "r", 0), -ENOENT);
    assert_int_equal(arena_root_cas(a, "r", p, q), -EAGAIN);
    assert_int_equal(arena_root_cas(a, "r", 0, p), 0);
    assert_int_equal(arena_root_cas(a, "r", 0, q), -EAGAIN);
    assert_int_equal(arena_root_cas(a, "r", p, q), 0);
    assert_int_equal(arena_root_get(a, "r", &ref), 0);
    assert_int_equal(ref, q);
    assert_int_equal(arena_root_wait(a, "r", q, 0, &ref), -ETIMEDOUT);
    assert_int_equal(arena_root_wait(a, "r", p, 0, &ref), 0);
    assert_int_equal(arena_root_set(a, "r", arena_ref(a, own)), -EINVAL);
    assert_int_equal(arena_root_set(a, "r", p + 1), -EINVAL);
    assert_int_equal(arena_root_set(a, "r", 1ULL << 50), -EINVAL);
    assert_int_equal(arena_root_set(a, "", p), -EINVAL);
    assert_int_equal(arena_root_set(a, NULL, p), -EINVAL);
    assert_int_equal(arena_root_set(a, "tab\there", p), -EINVAL);
    memset(name, 'n', sizeof name);
    name[64] = 0;
    assert_int_equal(arena_root_set(a, name, p), -EINVAL);
    name[63] = 0;
    assert_int_equal(arena_root_set(a, name, p), 0);
    assert_int_equal(arena_root_get(a, name, &ref), 0);
    assert_int_equal(arena_root_set(a, name, 0), 0);
    arena_free(a, arena_ptr(a, p));
    assert_int_equal(arena_root_set(a, "r", p), -EINVAL); /* freed */
    assert_int_equal(arena_root_set(a, "r", 0), 0);
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "many-%d", i);
        assert_int_equal(arena_root_set(a, name, q), 0);
    }
    assert_int_equal(stat_of(&d, "roots"), 3000);
    for (int i = 0; i < 3000; i++) {
        snprintf(name, sizeof name, "many-%d", i);
        assert_int_equal(arena_root_get(a, name, &ref), 0);
        assert_int_equal(arena_root_set(a, name, 0), 0);
        assert_int_equal(arena_root_get(a, name, &ref), -ENOENT);
    }
    assert_int_equal(stat_of(&d, "roots"), 0);
    assert_int_equal(check_of(&d), 0);
    arena_free(a, arena_ptr(a, q));
    arena_close(a);
}

static int sets_root_when_told(void *argument)
{
    int *go = argument;
    char byte;
    if (read(go[0], &byte, 1) != 1)
        return 1;
    arena_t *a = open_heap(&d);
    char *p = arena_alloc_flags(a, 20, ARENA_SHARED);
    return arena_root_set(a, "awaited", arena_ref(a, p)) == 0 ? 0 : 2;
}

static void a_wait_for_a_root_ends_when_it_appears(void **state)
{
    (void)state;
    int go[2];
    arena_ref_t ref = 0;
    assert_int_equal(pipe(go), 0);
    pid_t pid = spawn(sets_root_when_told, go);
    arena_t *a = open_heap(&d);
    assert_int_equal(arena_root_wait(a, "awaited", 0, 1, &ref), -ETIMEDOUT);
    assert_int_equal(write(go[1], "x", 1), 1);
    assert_int_equal(arena_root_wait(a, "awaited", 0, -1, &ref), 0);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(arena_root_set(a, "awaited", 0), 0);
    arena_free(a, arena_ptr(a, ref));
    arena_close(a);
}

static void transactions_appear_whole_or_not_at_all(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    arena_ref_t ref;
    stat_await(&d, "objects_used", 0);
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), -EINVAL);
    assert_int_equal(arena_tx_abort(a), -EINVAL);
    for (int round = 0; round < 200; round++) {
        assert_int_equal(arena_tx_begin(a), 0);
        assert_int_equal(arena_tx_begin(a), -EALREADY);
        arena_ref_t head = 0;
        for (int i = 0; i < 100; i++) {
            arena_ref_t *node = arena_alloc(a, i == 50 ? 100000 : 16 + (size_t)i);
            node[0] = head;
            head = arena_ref(a, node);
            if (i % 10 == 9)
                arena_free(a, arena_alloc(a, 24)); /* freed within it */
        }
        assert_int_equal(arena_root_get(a, "list", &ref), -ENOENT);
        if (round % 3 == 0) {
            assert_int_equal(arena_tx_abort(a), 0);
            assert_int_equal(stat_of(&d, "objects_used"), 0);
            continue;
        }
        assert_int_equal(arena_tx_commit(a, "list", 4711, head), -EAGAIN); /* still open */
        assert_int_equal(arena_tx_commit(a, "list", 0, head), 0);
        assert_int_equal(arena_root_get(a, "list", &ref), 0);
        assert_int_equal(ref, head);
        assert_int_equal(stat_of(&d, "objects_shared"), 100);
        assert_int_equal(arena_root_set(a, "list", 0), 0);
        while (head) {
            arena_ref_t *node = arena_ptr(a, head);
            head = node[0];
            arena_free(a, node);
        }
    }
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
}

static void a_reader_reads_and_writes_nothing(void **state)
{
    (void)state;
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a = open_heap(&d), *r;
    arena_ref_t ref;
    char *p = arena_alloc_flags(a, 20, ARENA_SHARED);
    strcpy(p, "read me");
    assert_int_equal(arena_root_set(a, "readable", arena_ref(a, p)), 0);
    options.flags = ARENA_READ_ONLY;
    assert_int_equal(arena_open(&r, d.socket, &options), 0);
    assert_ptr_not_equal(a, r);
    assert_int_equal(arena_root_get(r, "readable", &ref), 0);
    assert_string_equal((char *)arena_ptr(r, ref), "read me");
    errno = 0;
    assert_null(arena_alloc(r, 10));
    assert_int_equal(errno, EACCES);
    assert_int_equal(arena_root_set(r, "readable", 0), -EACCES);
    arena_close(r);
    assert_int_equal(arena_root_set(a, "readable", 0), 0);
    arena_free(a, p);
    arena_close(a);
    options.flags = 77;
    assert_int_equal(arena_open(&r, d.socket, &options), -EINVAL);
    assert_int_equal(arena_open(&r, "/nowhere/at/all", NULL), -ENOENT);
}

static struct daemon gone;

/* 0: it is told so, and is no client of the heap that is there now. */
static int child_of_the_past(void *argument)
{
    for (int i = 0; i < 20; i++)
        if (arena_alloc(argument, 100) || (errno != ESTALE && errno != ENOTCONN))
            return 1;
    return stat_of(&gone, "clients") == 0 ? 0 : 2;
}

struct freed {
    arena_t *a;
    void *p;
};

static void *frees_it(void *argument)
{
    struct freed *f = argument;
    arena_free(f->a, f->p);
    return NULL;
}

static void a_daemon_that_went_away_is_enotconn_and_another_heap_is_estale(void **state)
{
    (void)state;
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a;
    void *p;
    daemon_start(&gone, "64M", NULL);
    options.timeout_ms = 200;
    assert_int_equal(arena_open(&a, gone.socket, &options), 0);
    struct freed own = {a, NULL};
    while (!(own.p = arena_alloc(a, 100))) /* on a busy machine it may not have answered by then */
        assert_int_equal(errno, ENOTCONN);
    assert_int_equal(daemon_stop(&gone), 0);
    struct stat st;
    assert_int_equal(stat(gone.socket, &st), -1); /* it removed its socket */
    errno = 0;
    while ((p = arena_alloc(a, 100)) != NULL) /* caches go on, then the next slow path fails */
        ;
    assert_int_equal(errno, ENOTCONN);
    errno = 0;
    assert_null(arena_alloc(a, 50000));
    assert_int_equal(errno, ENOTCONN);
    assert_int_equal(arena_root_set(a, "x", 0), -ENOTCONN);
    daemon_again(&gone, "64M", NULL); /* a new heap */
    do {
        assert_null(arena_alloc(a, 50000));
    } while (errno == ENOTCONN); /* again a busy machine */
    assert_int_equal(errno, ESTALE);
    assert_int_equal(arena_root_set(a, "x", 0), -ESTALE);
    pthread_t thread; /* a new one: it has no mcache, and gets none */
    assert_int_equal(pthread_create(&thread, NULL, frees_it, &own), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(reap(spawn(child_of_the_past, a)), 0);
    arena_close(a);
    daemon_clean(&gone);
}

/* A listener that takes connections and drops them, a few times, and goes. */
static int drops_a_few(void *argument)
{
    int listen_fd = *(int *)argument;
    for (int i = 0; i < 3; i++) {
        int fd = accept(listen_fd, NULL, NULL);
        if (fd < 0)
            return 1;
        close(fd);
    }
    return 0;
}

static void an_open_that_loses_its_connection_tries_again(void **state)
{
    (void)state;
    struct daemon late;
    struct arena_options options = ARENA_OPTIONS_INIT;
    char path[108];
    arena_t *a;
    daemon_start(&late, "64M", NULL);
    snprintf(path, sizeof path, "%s/first", late.dir);
    int fd = bind_socket(path, SOCK_SEQPACKET);
    pid_t pid = spawn(drops_a_few, &fd);
    close(fd);
    /* when the listener is gone nobody is there: that is said, at once */
    int rc = arena_open(&a, path, NULL);
    assert_true(rc == -ECONNREFUSED);
    assert_int_equal(reap(pid), 0);
    fd = bind_socket(path, SOCK_SEQPACKET); /* it never answers: not longer than timeout_ms */
    options.timeout_ms = 100;
    assert_int_equal(arena_open(&a, path, &options), -ENOTCONN);
    close(fd);
    daemon_clean(&late);
}

/* ---- threads that are cancelled ------------------------------------------------------------------------------------------------ */

enum { CANCELLED = 4 };
struct cancelled {
    arena_t *a;
    pthread_t thread;
    void *large; /* no call is a cancellation point: so it is known */
    _Atomic uint64_t calls;
};

static void *calls_until_cancelled(void *argument)
{
    struct cancelled *t = argument;
    struct arena_stats stats = {.size = sizeof stats};
    arena_t *a = t->a;
    char name[32];
    snprintf(name, sizeof name, "of %p", argument);
    for (unsigned i = 0;; i++) {
        t->large = arena_alloc(a, 40 << 20); /* more than is cached: a round trip, and one to let it go */
        arena_free(a, t->large);
        t->large = NULL;
        arena_stats(a, &stats);
        arena_gc(a, ARENA_GC_DRY_RUN, NULL);
        if (arena_tx_begin(a) == 0 && arena_alloc(a, 100) && i % 2)
            arena_tx_commit(a, NULL, 0, 0);
        else
            arena_tx_abort(a);
        arena_root_cas(a, name, 0, 0);
        arena_tx_begin(a); /* open where it may be cancelled: aborted by the thread's end */
        arena_alloc(a, 100);
        t->calls++;
        pthread_testcancel();
        arena_tx_abort(a);
    }
    return NULL;
}

/* A thread's own choice is as it was. */
static void *calls_and_is_not_to_be_cancelled(void *a)
{
    struct arena_stats stats = {.size = sizeof stats};
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
    thread_cancel(pthread_self());
    int rc = arena_stats(a, &stats);
    pthread_testcancel();
    return rc == 0 ? a : NULL;
}

static void a_cancelled_thread_leaves_no_lock_behind(void **state)
{
    struct cancelled threads[CANCELLED];
    struct arena_stats stats = {.size = sizeof stats};
    uint64_t s = seed_get();
    void *result;
    (void)state;
    arena_t *a = open_heap(&d);
    for (int round = 0; round < 60 / LESS + 1; round++) {
        for (int i = 0; i < CANCELLED; i++) {
            threads[i] = (struct cancelled){.a = a};
            assert_int_equal(pthread_create(&threads[i].thread, NULL, calls_until_cancelled, &threads[i]), 0);
        }
        for (int i = 0; i < CANCELLED; i++) {
            pause_us((unsigned)(random_next(&s) % 500));
            assert_int_equal(thread_cancel(threads[i].thread), 0);
        }
        for (int i = 0; i < CANCELLED; i++) {
            assert_int_equal(pthread_join(threads[i].thread, &result), 0);
            assert_ptr_equal(result, PTHREAD_CANCELED);
            assert_null(threads[i].large);
        }
        void *p = arena_alloc(a, 40 << 20);
        assert_non_null(p);
        arena_free(a, p);
        assert_int_equal(arena_stats(a, &stats), 0);
        assert_int_equal(arena_tx_begin(a), 0);
        assert_int_equal(arena_tx_abort(a), 0);
    }
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, calls_and_is_not_to_be_cancelled, a), 0);
    assert_int_equal(pthread_join(thread, &result), 0);
    assert_ptr_equal(result, a);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
    stat_await(&d, "objects_owned", 0);
}

/* ---- descriptors and directories ------------------------------------------------------------------------------------------------- */

static int opens_without_descriptors(void *argument)
{
    struct rlimit before, few;
    int next = dup(0), rc = 0;
    arena_t *a;
    (void)argument;
    close(next);
    getrlimit(RLIMIT_NOFILE, &before);
    for (int more = 0; more < 4 && rc == 0; more++) { /* of the socket and three that come */
        few = (struct rlimit){(rlim_t)(next + more), before.rlim_max};
        setrlimit(RLIMIT_NOFILE, &few);
        rc = arena_open(&a, d.socket, NULL) == -EMFILE ? 0 : more + 1;
        setrlimit(RLIMIT_NOFILE, &before);
        int again = dup(0);
        rc = rc == 0 && again != next ? 10 + more : rc;
        close(again);
    }
    return rc;
}

static void without_descriptors_an_open_says_emfile(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(opens_without_descriptors, NULL)), 0);
}

static int opens_by_a_relative_path(void *argument)
{
    arena_t *a;
    (void)argument;
    if (chdir(d.dir) < 0 || arena_open(&a, strrchr(d.socket, '/') + 1, NULL) != 0 || chdir("/") < 0)
        return 1;
    int rc = arena_gc(a, ARENA_GC_SAFEPOINT, NULL);
    return rc == 0 ? 0 : 2;
}

static void a_relative_path_holds_after_a_chdir(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(opens_by_a_relative_path, NULL)), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_cancelled_thread_leaves_no_lock_behind),
        cmocka_unit_test(without_descriptors_an_open_says_emfile),
        cmocka_unit_test(a_relative_path_holds_after_a_chdir),
        cmocka_unit_test(a_second_open_shares_the_mapping_and_is_counted),
        cmocka_unit_test(a_forked_child_is_a_client_of_its_own),
        cmocka_unit_test(little_address_space_is_for_fewer_threads),
        cmocka_unit_test(a_childs_childs_child_has_as_many_addresses),
        cmocka_unit_test(an_open_that_fails_leaves_no_client_behind),
        cmocka_unit_test(a_child_that_closes_keeps_its_memory),
        cmocka_unit_test(two_thousand_clients_leave_nothing_behind),
        cmocka_unit_test(several_heaps_are_open_at_once_each_at_its_own_address),
        cmocka_unit_test(references_work_where_the_address_is_taken),
        cmocka_unit_test(roots_are_set_swapped_removed_and_refused),
        cmocka_unit_test(a_wait_for_a_root_ends_when_it_appears),
        cmocka_unit_test(transactions_appear_whole_or_not_at_all),
        cmocka_unit_test(a_reader_reads_and_writes_nothing),
        cmocka_unit_test(a_daemon_that_went_away_is_enotconn_and_another_heap_is_estale),
        cmocka_unit_test(an_open_that_loses_its_connection_tries_again),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
