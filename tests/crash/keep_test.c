/* Goal: after the daemon's death the heap is the one that it was, or it is said to be another, or it is not served at all.
 * Never a mixture. Method: the map of a heap is changed while no daemon serves it, as a crash, a reused pid, another boot
 * or another version would have it; then a daemon starts over it. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/msg.h"
#include "shm/layout.h"
#include "shm/span.h"
#include "shm/tag.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static char dir[80];

static int setup(void **state)
{
    temp_dir(dir, sizeof dir, "keep");
    return daemon_setup(state, &d, NULL, NULL);
}

static int teardown(void **state)
{
    daemon_teardown(state);
    return temp_dir_remove(dir);
}

/* The map of a heap behind a descriptor, to be changed. */
static void view_map(int fd, struct heap *ret)
{
    struct stat st;
    struct geometry g;
    const char *why = "";
    assert_int_equal(fstat(fd, &st), 0);
    void *map = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_ptr_not_equal(map, MAP_FAILED);
    if (heap_check_header(map, (uint64_t)st.st_size, UINT64_MAX, &g, &why) < 0)
        fail_msg("%s", why);
    heap_view(ret, &g, NULL, map, NULL);
}

static void view_file(struct heap *ret)
{
    char path[128];
    snprintf(path, sizeof path, "%s/map", dir);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    view_map(fd, ret);
    close(fd);
}

static uint64_t first_span(const struct heap *h)
{
    struct span_info span;
    uint64_t page = 1;
    while (page < h->page_count && !span_at(h, page, &span))
        page++;
    assert_true(page < h->page_count);
    return page;
}

/* ---- another heap --------------------------------------------------------------------------------------------------------- */

static struct {
    arena_t *a;
    _Atomic int go;
    int stale;
} other;

static void *other_thread(void *argument)
{
    (void)argument;
    arena_free(other.a, arena_alloc(other.a, 40)); /* its magazine is full of free objects of the old heap */
    atomic_store(&other.go, 1);
    while (atomic_load(&other.go) != 2)
        sched_yield();
    errno = 0;
    other.stale = !arena_alloc(other.a, 40) && errno == ESTALE;
    return NULL;
}

static void every_call_of_every_thread_says_estale(void **state)
{
    (void)state;
    struct arena_stats stats = {.size = sizeof stats};
    pthread_t thread;
    arena_ref_t ref;
    daemon_start(&d, "64M", NULL);
    arena_t *a = other.a = open_heap(&d);
    char *p = arena_alloc_flags(a, 100, ARENA_SHARED), *q = arena_alloc(a, 100);
    assert_int_equal(arena_tx_begin(a), 0);
    assert_non_null(arena_alloc(a, 100));
    assert_int_equal(arena_root_set(a, "old", arena_ref(a, p)), 0);
    pthread_create(&thread, NULL, other_thread, NULL);
    while (atomic_load(&other.go) != 1)
        sched_yield();
    assert_int_equal(daemon_stop(&d), 0);
    daemon_again(&d, "64M", NULL);
    assert_int_equal(arena_root_set(a, "new", arena_ref(a, p)), -ESTALE); /* the first call that learns of it */
    atomic_store(&other.go, 2);
    pthread_join(thread, NULL);
    assert_true(other.stale);
    for (int i = 0; i < 3; i++) {
        errno = 0;
        assert_null(arena_alloc(a, i == 2 ? 100000 : 100));
        assert_int_equal(errno, ESTALE);
    }
    assert_null(arena_alloc_flags(a, 10, ARENA_NOSCAN));
    assert_null(arena_aligned_alloc(a, 4096, 100));
    assert_int_equal(arena_root_get(a, "old", &ref), -ESTALE);
    assert_int_equal(arena_root_wait(a, "old", 0, -1, &ref), -ESTALE);
    assert_int_equal(arena_root_cas(a, "old", 0, 1), -ESTALE);
    assert_int_equal(arena_publish(a, q), -ESTALE);
    assert_int_equal(arena_claim(a, p), -ESTALE);
    assert_int_equal(arena_tx_begin(a), -ESTALE);
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), -ESTALE);
    assert_int_equal(arena_tx_abort(a), -ESTALE);
    assert_int_equal(arena_tx_abort(a), -ESTALE); /* without one too */
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), -ESTALE);
    assert_int_equal(arena_tx_begin(a), -ESTALE);
    assert_null(arena_realloc(a, q, 90));
    assert_int_equal(errno, ESTALE);
    assert_int_equal(arena_pin(a, q), -ESTALE);
    assert_int_equal(arena_unpin(a, q), -ESTALE);
    assert_int_equal(arena_safepoint(a, ARENA_SAFEPOINT), -ESTALE);
    assert_int_equal(arena_gc(a, 0, NULL), -ESTALE);
    assert_int_equal(arena_stats(a, &stats), -ESTALE);
    assert_int_equal(arena_trim(a), -ESTALE);
    assert_int_equal(arena_safepoint(a, ARENA_PINS), -ESTALE);
    arena_free(a, q); /* what may be left to clean up still can be */
    arena_t *b = open_heap(&d); /* and the new heap is another one */
    assert_ptr_not_equal(a, b);
    assert_int_equal(arena_root_get(b, "old", &ref), -ENOENT);
    assert_non_null(arena_alloc(b, 100));
    arena_close(a);
    assert_non_null(arena_alloc(b, 100));
    arena_close(b);
    assert_int_equal(check_of(&d), 0);
}

/* A client that does not know yet that its heap is of the past asks for a collection, and one of the new heap's has an object
 * that nothing leads to. */
static void a_collection_of_a_heap_that_is_gone_does_not_collect_the_next(void **state)
{
    (void)state;
    struct arena_gc_stats stats = {.size = sizeof stats};
    daemon_start(&d, "16M", NULL);
    arena_t *a = open_heap(&d);
    daemon_stop(&d);
    daemon_again(&d, "16M", NULL);
    arena_t *b = open_heap(&d);
    char *p = arena_alloc_flags(b, 100, ARENA_SHARED);
    assert_int_equal(arena_safepoint(b, ARENA_SAFEPOINT), 0); /* it might be collected */
    assert_int_equal(arena_gc(a, 0, &stats), -ESTALE);
    assert_int_equal(stats.objects, 0);
    assert_null(arena_alloc(a, 100)); /* it has learned of it */
    assert_int_equal(errno, ESTALE);
    assert_int_equal(arena_safepoint(b, ARENA_RUNS), 0);
    assert_int_equal(arena_claim(b, p), 0); /* it is there */
    assert_int_equal(arena_gc(b, ARENA_GC_SAFEPOINT, &stats), 0);
    arena_close(a);
    arena_close(b);
}

static int waits_for_a_root(void *argument)
{
    int *fd = argument;
    arena_ref_t ref;
    arena_t *a = open_heap(&d);
    if (write(fd[1], "x", 1) != 1)
        return 1;
    return -arena_root_wait(a, "never", 0, -1, &ref);
}

static void a_wait_for_a_root_of_a_heap_that_is_gone_ends(void **state)
{
    int fd[2];
    char byte;
    (void)state;
    daemon_start(&d, "16M", NULL);
    assert_int_equal(pipe(fd), 0);
    pid_t pid = spawn(waits_for_a_root, fd);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    daemon_stop(&d);
    daemon_again(&d, "16M", NULL);
    assert_int_equal(reap(pid), ESTALE);
}

/* ---- a heap that cannot be trusted ------------------------------------------------------------------------------------------ */

static void spoil(struct heap *h) { h->spans[first_span(h)].page_count = 77; }

/* A descriptor of the map that a process holds. */
static int map_of(pid_t pid)
{
    char path[64], target[128];
    for (int i = 0; i < 1024; i++) {
        snprintf(path, sizeof path, "/proc/%d/fd/%d", (int)pid, i);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n > 0 ? n : 0] = 0;
        int fd = n > 0 && strstr(target, "memfd:arena-map") ? open(path, O_RDWR | O_CLOEXEC) : -1;
        if (fd >= 0)
            return fd;
    }
    return -1;
}

static void a_keeper_keeps_a_heap_that_cannot_be_trusted_and_does_not_serve_it(void **state)
{
    (void)state;
    struct heap map;
    char out[1024];
    arena_t *a, *b;
    struct arena_options options = ARENA_OPTIONS_INIT;
    daemon_start(&d, "16M", NULL);
    assert_int_equal(arena_open(&a, d.socket, &options), 0);
    assert_non_null(arena_alloc(a, 100));
    pid_t serving = daemon_serving(&d);
    assert_int_not_equal(serving, d.pid);
    int fd = map_of(d.pid);
    assert_true(fd >= 0);
    view_map(fd, &map);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, arena_alloc_flags(a, 9, ARENA_SHARED))), 0);
    uint32_t was = map.spans[first_span(&map)].page_count;
    spoil(&map);
    kill(serving, SIGKILL);
    int rc;
    while ((rc = arena_open(&b, d.socket, &options)) == -ECONNRESET || rc == -EPIPE || rc == -ECONNREFUSED)
        ;
    assert_int_equal(rc, -EUCLEAN);
    assert_non_null(strstr(arena_reason(), "cannot be trusted"));
    assert_non_null(strstr(arena_reason(), "page count is not the size class's"));
    assert_int_equal(arena_root_set(a, "x", 0), -ENOTCONN);
    assert_int_not_equal(arenactl(&d, out, sizeof out, "stat"), 0);
    assert_int_equal(waitpid(d.pid, NULL, WNOHANG), 0); /* the keeper lives, and starts none again and again */
    pid_t refusing = daemon_serving(&d);
    for (int i = 0; i < 20; i++)
        assert_int_equal(arena_open(&b, d.socket, &options), -EUCLEAN);
    assert_int_equal(daemon_serving(&d), refusing);
    map.spans[first_span(&map)].page_count = was; /* put right by hand: then it is the heap that it was */
    kill(refusing, SIGKILL);
    while (arena_root_set(a, "x", 0) != -ENOENT)
        ;
    assert_non_null(arena_alloc(a, 100000));
    assert_int_equal(check_of(&d), 0);
    arena_close(a);
    spoil(&map); /* and again; then it is told to stop */
    kill(daemon_serving(&d), SIGKILL);
    while ((rc = arena_open(&b, d.socket, &options)) != -EUCLEAN)
        assert_true(rc == -ECONNRESET || rc == -EPIPE || rc == -ECONNREFUSED);
    daemon_stop(&d);
    assert_int_equal(access(d.socket, F_OK), -1);
    close(fd);
}

static void spoiled_files_are_named_kept_and_not_served(void **state)
{
    static const struct {
        const char *says;
        int what;
    } cases[] = {
        {"page count is not the size class's", 0}, {"more tags were used than there are", 1},
        {"more pages were used than there are", 2}, {"a tag in a state that there is not", 3},
        {"another layout version", 4}, {"wrong magic", 5}, {"another size class table", 6},
        {"refers beyond the heap", 7}, {"state words out of range", 8}, {"shorter than their header says", 9},
    };
    (void)state;
    daemon_start(&d, "16M", "--backing", dir, NULL);
    arena_t *a = open_heap(&d);
    arena_ref_t ref;
    char *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    strcpy(p, "kept");
    assert_int_equal(arena_root_set(a, "r", arena_ref(a, p)), 0);
    arena_close(a);
    daemon_stop(&d);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct heap h;
        char out[2048], path[128];
        view_file(&h);
        uint64_t span = first_span(&h), slot = 0;
        while (!h.roots[slot].ref)
            slot++;
        struct map_header header = *h.header;
        struct span record = h.spans[span];
        struct root root = h.roots[slot];
        switch (cases[i].what) {
        case 0: spoil(&h); break;
        case 1: h.header->tag_top = TAG_COUNT + 1; break;
        case 2: h.header->top = h.page_count + 1; break;
        case 3: h.tags[1].state = TAG_STATE_COUNT; h.header->tag_top = 2; break;
        case 4: h.header->version--; break;
        case 5: h.header->magic++; break;
        case 6: h.header->class_digest++; break;
        case 7: h.roots[slot].ref = h.heap_bytes; break;
        case 8: h.spans[span].unit = (uint32_t)h.unit_count; break;
        default: h.header->state_bytes++; break;
        }
        int status = run(out, sizeof out, "timeout 60 %s/arenad --foreground --socket %s --max 16M --backing %s",
                         programs_dir(), d.socket, dir);
        if (status != 1 || !strstr(out, cases[i].says))
            fail_msg("case %zu: exit status %d, it said: %s", i, status, out);
        snprintf(path, sizeof path, "%s/heap", dir);
        assert_int_equal(access(path, F_OK), 0);
        *h.header = header; /* nothing was changed meanwhile: put right, it is the heap that it was */
        h.spans[span] = record;
        h.roots[slot] = root;
        if (cases[i].what == 3)
            h.tags[1].state = TAG_FREE;
        munmap(h.header, header.map_bytes);
    }
    daemon_again(&d, "16M", "--backing", dir, NULL);
    a = open_heap(&d);
    assert_int_equal(arena_root_get(a, "r", &ref), 0);
    assert_string_equal(arena_ptr(a, ref), "kept");
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
}

/* ---- who is who after a restart ----------------------------------------------------------------------------------------------- */

static int owner(void *argument)
{
    int *fd = argument;
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 50; i++)
        arena_alloc(a, 100);
    if (write(fd[1], "x", 1) == 1)
        pause();
    return 0;
}

static void a_reused_pid_and_another_boot_are_not_mistaken(void **state)
{
    (void)state;
    for (int other_boot = 0; other_boot < 2; other_boot++) {
        int fd[2];
        char byte;
        struct heap h;
        if (other_boot)
            daemon_again(&d, "16M", "--backing", dir, NULL);
        else
            daemon_start(&d, "16M", "--backing", dir, NULL);
        assert_int_equal(pipe(fd), 0);
        pid_t pid = spawn(owner, fd);
        assert_int_equal(read(fd[0], &byte, 1), 1);
        assert_int_equal(stat_of(&d, "objects_owned"), 50);
        daemon_kill(&d);
        daemon_again(&d, "16M", "--backing", dir, NULL); /* it lives: it is known again, though it says nothing */
        assert_int_equal(stat_of(&d, "objects_owned"), 50);
        assert_int_equal(stat_of(&d, "clients"), 1);
        daemon_kill(&d);
        view_file(&h);
        unsigned tag = 1;
        while (h.tags[tag].state != TAG_CLIENT || h.tags[tag].pid != (uint32_t)pid)
            tag++;
        if (other_boot) /* as if the machine had been started anew, and this pid and start time were another's */
            h.header->boot_id[0] ^= 1;
        else /* as if the client had died, and its pid had gone to the process that has it now */
            h.tags[tag].start_time--;
        munmap(h.header, h.header->map_bytes);
        daemon_again(&d, "16M", "--backing", dir, NULL);
        stat_await(&d, "clients", 0);
        stat_await(&d, "objects_owned", 0);
        assert_int_equal(check_of(&d), 0);
        kill(pid, SIGKILL);
        reap(pid);
        daemon_stop(&d);
        close(fd[0]);
        close(fd[1]);
    }
}

/* ---- versions --------------------------------------------------------------------------------------------------------------------- */

static void other_versions_are_refused_in_words(void **state)
{
    static const struct {
        uint32_t version_min, version, layout;
    } cases[] = {
        {PROTO_VERSION_MIN - 1, PROTO_VERSION_MIN - 1, LAYOUT_VERSION},
        {PROTO_VERSION + 1, PROTO_VERSION + 7, LAYOUT_VERSION},
        {PROTO_VERSION, PROTO_VERSION, LAYOUT_VERSION - 1},
        {PROTO_VERSION, PROTO_VERSION, LAYOUT_VERSION + 1},
    };
    (void)state;
    daemon_start(&d, "16M", NULL);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct raw r = {.fd = raw_connect(d.socket)};
        struct msg hello = call_hello(0, 0);
        hello.hello.version_min = cases[i].version_min;
        hello.hello.version = cases[i].version;
        hello.hello.layout = cases[i].layout;
        assert_int_equal(raw_send(r.fd, 9, hello), 0);
        assert_int_equal(raw_receive(&r), MSG_ERROR);
        assert_int_equal(m.id, 9);
        assert_int_equal(m.error.error, EPROTONOSUPPORT);
        assert_non_null(strstr(m.error.text, "use the library that came with it"));
        close(r.fd);
    }
    /* a client that speaks several, this one among them, is served */
    assert_int_equal(stat_of(&d, "clients"), 0);
}

/* ---- readers, and changes that are repeated ------------------------------------------------------------------------------------ */

static void a_reader_resumes_too(void **state)
{
    (void)state;
    struct arena_options options = ARENA_OPTIONS_INIT;
    struct arena_stats stats = {.size = sizeof stats};
    arena_t *r;
    options.flags = ARENA_READ_ONLY;
    daemon_start(&d, "16M", NULL);
    assert_int_equal(arena_open(&r, d.socket, &options), 0);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGKILL);
    assert_int_equal(arena_stats(r, &stats), 0);
    assert_int_equal(stats.clients, 1);
    assert_int_equal(stats.epoch, 2);
    arena_close(r);
    stat_await(&d, "clients", 0);
}

struct counting {
    _Atomic uint64_t steps, stop;
};
static struct counting *counting;

/* Moves a root from one object to the next by compare-and-swap, a thousand times: each must happen exactly once. */
static int swapper(void *argument)
{
    enum { OBJECTS = 8 };
    arena_t *a = open_heap(&d);
    arena_ref_t objects[OBJECTS], now = 0;
    (void)argument;
    for (int i = 0; i < OBJECTS; i++)
        objects[i] = arena_ref(a, arena_alloc_flags(a, 50, ARENA_SHARED));
    for (uint64_t i = 0; !atomic_load(&counting->stop); i++) {
        arena_ref_t next = i % 7 == 6 ? 0 : objects[i % OBJECTS];
        int rc = arena_root_cas(a, "moved", now, next);
        if (rc != 0) {
            fprintf(stderr, "swap %llu: %s\n", (unsigned long long)i, strerror(-rc));
            return 1;
        }
        now = next;
        atomic_fetch_add(&counting->steps, 1);
    }
    return 0;
}

static void swaps_of_a_root_happen_once_each_though_the_daemon_is_killed(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    counting = shared_memory(sizeof *counting);
    daemon_start(&d, "16M", NULL);
    pid_t pid = spawn(swapper, NULL);
    for (int i = 0; i < 30; i++) {
        uint64_t until = atomic_load(&counting->steps) + 1 + rnd(&seed) % 50;
        while (atomic_load(&counting->steps) < until)
            assert_int_equal(waitpid(pid, NULL, WNOHANG), 0);
        pid_t serving = daemon_serving(&d);
        kill(serving, SIGKILL);
        while (daemon_serving(&d) == serving || daemon_serving(&d) == d.pid)
            ;
    }
    atomic_store(&counting->stop, 1);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(check_of(&d), 0);
    munmap(counting, sizeof *counting);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(every_call_of_every_thread_says_estale),
        TEST(a_collection_of_a_heap_that_is_gone_does_not_collect_the_next),
        TEST(a_wait_for_a_root_of_a_heap_that_is_gone_ends),
        TEST(a_keeper_keeps_a_heap_that_cannot_be_trusted_and_does_not_serve_it),
        TEST(spoiled_files_are_named_kept_and_not_served),
        TEST(a_reused_pid_and_another_boot_are_not_mistaken),
        TEST(other_versions_are_refused_in_words),
        TEST(a_reader_resumes_too),
        TEST(swaps_of_a_root_happen_once_each_though_the_daemon_is_killed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
