/* Goal: whatever way a child is made, and whatever its parent's threads were in the middle of, it uses nothing of its parent's:
 * it is a client of its own from its first slow path on, or closes, replaces itself or ends without a trace.
 *
 * Method: the parent's objects hold their own address; what a child wrote into them, or was given of them, is seen. Children by
 * fork, _Fork, clone and vfork; handlers of the program's before the library's; threads in the middle of everything. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { OBJECTS = 300, STRESS_THREADS = 4, STRESS_FORKS = 60 };

static struct daemon d;

static int setup(void **state) { return daemon_setup(state, &d, "256M", NULL); }
static int teardown(void **state) { return daemon_teardown(state); }

/* ---- ways to make a child --------------------------------------------------------------------------------------------------- */

static pid_t by_fork(void) { return fork(); }
static pid_t by_fork_without_handlers(void) { return _Fork(); }
static pid_t by_clone(void) { return (pid_t)syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL); }

static const struct way {
    const char *name;
    pid_t (*make)(void);
} ways[] = {{"fork", by_fork}, {"_Fork", by_fork_without_handlers}, {"clone", by_clone}};
enum { WAYS = sizeof ways / sizeof *ways };

/* The exit status of a child that runs fn; over 128: a signal. */
static int child(const struct way *way, int (*fn)(arena_t *), arena_t *a)
{
    int status;
    pid_t pid = way->make();
    assert_true(pid >= 0);
    if (pid == 0)
        _exit(fn(a));
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* ---- objects that know themselves --------------------------------------------------------------------------------------------- */

static uint64_t *objects[OBJECTS];

static uint64_t *object_make(arena_t *a, size_t size)
{
    uint64_t *p = arena_alloc(a, size);
    for (size_t i = 0; p && i < size / 8; i++)
        p[i] = (uint64_t)(uintptr_t)p + i + (uint64_t)getpid();
    return p;
}

static bool object_holds(const uint64_t *p, size_t size)
{
    for (size_t i = 0; i < size / 8; i++)
        if (p[i] != (uint64_t)(uintptr_t)p + i + (uint64_t)getpid())
            return false;
    return true;
}

static size_t size_of(int i) { return 16 + (size_t)(i * 37 % 600) / 8 * 8; }

static void objects_make(arena_t *a)
{
    for (int i = 0; i < OBJECTS; i++)
        assert_non_null(objects[i] = object_make(a, size_of(i)));
    for (int i = 0; i < OBJECTS; i += 2) { /* magazines with something in them */
        arena_free(a, objects[i]);
        objects[i] = NULL;
    }
}

static void objects_check_and_free(arena_t *a)
{
    for (int i = 0; i < OBJECTS; i++)
        if (objects[i]) {
            assert_true(object_holds(objects[i], size_of(i)));
            arena_free(a, objects[i]);
            objects[i] = NULL;
        }
}

/* 0: a child has objects of its own, none of which was its parent's. */
static int uses_the_heap(arena_t *a)
{
    uint64_t *mine[OBJECTS];
    for (int i = 0; i < OBJECTS; i++) {
        if ((mine[i] = object_make(a, size_of(i))) == NULL)
            return 1;
        for (int k = 0; k < OBJECTS; k++)
            if (objects[k] && (char *)mine[i] < (char *)objects[k] + size_of(k) &&
                (char *)objects[k] < (char *)mine[i] + size_of(i))
                return 2;
    }
    for (int i = 0; i < OBJECTS; i++)
        if (!object_holds(mine[i], size_of(i)))
            return 3;
    for (int i = 0; i < OBJECTS; i += 3)
        arena_free(a, mine[i]);
    return 0;
}

static int refused; /* bad frees */
static void on_bad_free(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)error, (void)p, (void)message;
    refused++;
}

static int frees_its_parents(arena_t *a)
{
    refused = 0;
    arena_on_error(a, on_bad_free, NULL);
    arena_free(a, objects[1]);
    return refused == 1 && arena_publish(a, objects[1]) == -EBUSY ? 0 : 1;
}

static int only_closes(arena_t *a) { return arena_close(a) == 0 ? 0 : 1; }

static int closes_after_use(arena_t *a) { return uses_the_heap(a) || arena_close(a) ? 1 : 0; }

static int opens_again(arena_t *a)
{
    arena_t *b;
    if (arena_open(&b, d.socket, NULL) != 0 || a != b || uses_the_heap(b) || arena_close(b) != 0)
        return 1;
    return uses_the_heap(a) || arena_close(a) ? 2 : 0;
}

static void *thread_uses_the_heap(void *a) { return (void *)(intptr_t)uses_the_heap(a); }

/* Its first slow paths are those of several threads at once; the one that forked comes last. */
static int uses_it_from_new_threads(arena_t *a)
{
    pthread_t threads[6];
    void *result;
    int rc = 0;
    for (int i = 0; i < 6; i++)
        if (pthread_create(&threads[i], NULL, thread_uses_the_heap, a) != 0)
            return 10;
    for (int i = 0; i < 6; i++) {
        pthread_join(threads[i], &result);
        rc |= (int)(intptr_t)result;
    }
    return rc ? rc : uses_the_heap(a);
}

static const struct way *way_now;

static int has_a_child_that_uses_it(arena_t *a)
{
    int rc = child(way_now, uses_the_heap, a);
    return rc ? rc : uses_the_heap(a);
}

static int every_function_is_refused_or_served(arena_t *a)
{
    arena_ref_t ref;
    struct arena_stats stats = {.size = sizeof stats};
    arena_tx_abort(a); /* its parent's is not its own */
    arena_stack_t *s = arena_stack(a);
    if (!s || arena_tx_begin(a) != 0 || !arena_alloc(a, 64) || arena_tx_abort(a) != 0)
        return 1;
    arena_frame_t f = arena_frame_push(s);
    uint64_t *frame = arena_frame_alloc(s, 256);
    if (!frame)
        return 2;
    memset(frame, 0xee, 256);
    arena_frame_pop(s, f);
    if (arena_root_set(a, "none", 0) != -ENOENT || arena_root_get(a, "none", &ref) != -ENOENT || arena_stats(a, &stats) != 0)
        return 3;
    void *p = arena_alloc(a, 50000), *q = arena_realloc(a, arena_alloc(a, 100), 3000);
    if (!p || !q || arena_pin(a, p) != 0 || arena_unpin(a, p) != 0)
        return 4;
    arena_free(a, p);
    return arena_trim(a) == 0 && arena_safepoint(a, ARENA_SAFEPOINT) == 0 && arena_safepoint(a, ARENA_RUNS) == 0 ? 0 : 5;
}

static int only_ends(arena_t *a)
{
    (void)a;
    return 0;
}

static void a_child_made_in_any_way_uses_nothing_of_its_parents(void **state)
{
    static const struct {
        const char *name;
        int (*fn)(arena_t *);
    } children[] = {{"uses", uses_the_heap}, {"frees", frees_its_parents}, {"closes", only_closes}, {"ends", only_ends},
                    {"uses and closes", closes_after_use}, {"opens again", opens_again}, {"threads", uses_it_from_new_threads},
                    {"grandchild", has_a_child_that_uses_it}, {"everything", every_function_is_refused_or_served}};
    (void)state;
    arena_t *a = open_heap(&d);
    objects_make(a);
    arena_stack_t *s = arena_stack(a);
    arena_frame_t frame = arena_frame_push(s);
    uint64_t *in_frame = arena_frame_alloc(s, 200);
    memset(in_frame, 0x5a, 200);
    assert_int_equal(arena_tx_begin(a), 0);
    uint64_t *in_tx = object_make(a, 800);
    for (int w = 0; w < WAYS; w++)
        for (size_t i = 0; i < sizeof children / sizeof *children; i++) {
            way_now = &ways[w];
            int rc = child(way_now, children[i].fn, a);
            if (rc)
                print_error("%s by %s: %d\n", children[i].name, ways[w].name, rc);
            assert_int_equal(rc, 0);
        }
    assert_true(object_holds(in_tx, 800));
    assert_int_equal(arena_tx_abort(a), 0);
    for (int i = 0; i < 25; i++)
        assert_int_equal(in_frame[i], 0x5a5a5a5a5a5a5a5a);
    arena_frame_pop(s, frame);
    objects_check_and_free(a);
    stat_await(&d, "clients", 1);
    assert_int_equal(arena_close(a), 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- handlers of the program's ------------------------------------------------------------------------------------------------- */

static arena_t *in_handlers;
static int handler_failed;

static void uses_a_little(void)
{
    if (!in_handlers)
        return;
    uint64_t *p[40];
    for (int i = 0; i < 40; i++)
        p[i] = object_make(in_handlers, 64);
    for (int i = 0; i < 40; i++) {
        handler_failed |= !p[i] || !object_holds(p[i], 64);
        arena_free(in_handlers, p[i]);
    }
}

/* Before the library's, which come with its constructor: this program's are of a higher priority. */
__attribute__((constructor(101))) static void register_early(void)
{
    pthread_atfork(uses_a_little, uses_a_little, uses_a_little);
}

static void handlers_may_use_the_heap_before_ours_and_after(void **state)
{
    (void)state;
    pthread_atfork(uses_a_little, uses_a_little, uses_a_little);
    arena_t *a = open_heap(&d);
    objects_make(a);
    in_handlers = a;
    for (int i = 0; i < 5; i++)
        assert_int_equal(child(&ways[0], uses_the_heap, a), 0);
    assert_int_equal(child(&ways[0], has_a_child_that_uses_it, a), 0);
    in_handlers = NULL;
    assert_int_equal(handler_failed, 0);
    objects_check_and_free(a);
    arena_close(a);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- threads in the middle of everything ---------------------------------------------------------------------------------------- */

static int over; /* sync: atomic */

static void *is_in_the_middle(void *argument)
{
    arena_t *a = argument, *b;
    void *kept[64] = {NULL};
    unsigned seed = (unsigned)(uintptr_t)&seed;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED)) {
        for (int i = 0; i < 64; i++) {
            arena_free(a, kept[i]);
            kept[i] = arena_alloc(a, (size_t)rand_r(&seed) % (i % 16 ? 700 : 60000));
        }
        switch (rand_r(&seed) % 5) {
        case 0:
            if (arena_open(&b, d.socket, NULL) == 0)
                arena_close(b);
            break;
        case 1:
            if (arena_tx_begin(a) == 0) {
                void *p = arena_alloc(a, 100);
                if (arena_tx_commit(a, NULL, 0, 0) == 0)
                    arena_free(a, p);
                else
                    arena_tx_abort(a);
            }
            break;
        case 2:
            arena_trim(a);
            break;
        case 3:
            arena_pin(a, kept[3]);
            arena_unpin(a, kept[3]);
            break;
        default:
            arena_root_set(a, "nobody's", 0);
        }
    }
    for (int i = 0; i < 64; i++)
        arena_free(a, kept[i]);
    return NULL;
}

static void *comes_and_goes(void *argument)
{
    pthread_t thread;
    while (!__atomic_load_n(&over, __ATOMIC_RELAXED))
        if (pthread_create(&thread, NULL, thread_uses_the_heap, argument) == 0)
            pthread_join(thread, NULL);
    return NULL;
}

static void a_fork_may_find_other_threads_anywhere_in_the_library(void **state)
{
    static int (*const children[])(arena_t *) = {uses_the_heap, only_closes, only_ends, closes_after_use, opens_again,
                                                 uses_it_from_new_threads, every_function_is_refused_or_served};
    (void)state;
    arena_t *a = open_heap(&d);
    pthread_t threads[STRESS_THREADS + 1];
    objects_make(a);
    over = 0;
    for (int i = 0; i < STRESS_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, is_in_the_middle, a), 0);
    assert_int_equal(pthread_create(&threads[STRESS_THREADS], NULL, comes_and_goes, a), 0);
    for (int i = 0; i < STRESS_FORKS; i++) {
        int rc = child(&ways[0], children[(size_t)i % (sizeof children / sizeof *children)], a);
        if (rc)
            print_error("child %d: %d\n", i, rc);
        assert_int_equal(rc, 0);
    }
    __atomic_store_n(&over, 1, __ATOMIC_RELAXED);
    for (int i = 0; i <= STRESS_THREADS; i++)
        pthread_join(threads[i], NULL);
    objects_check_and_free(a);
    stat_await(&d, "clients", 1);
    assert_int_equal(arena_close(a), 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- exec ------------------------------------------------------------------------------------------------------------------------ */

/* This program again, as `fork_test execs SOCKET LEFT`. */
static int execs(const char *socket, int left)
{
    arena_t *a;
    char number[16];
    struct arena_stats stats = {.size = sizeof stats};
    if (arena_open(&a, socket, NULL) != 0)
        return 1;
    for (int i = 0; i < 1000; i++)
        if (!arena_alloc(a, 100))
            return 2;
    if (arena_stats(a, &stats) != 0 || stats.clients != 1)
        return 3;
    if (left == 0)
        return arena_close(a) == 0 ? 0 : 4;
    snprintf(number, sizeof number, "%d", left - 1);
    execl("/proc/self/exe", "fork_test", "execs", socket, number, (char *)NULL);
    return 5;
}

static void a_program_that_execs_itself_leaves_nothing_behind(void **state)
{
    (void)state;
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", "fork_test", "execs", d.socket, "50", (char *)NULL);
        _exit(9);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

static void a_vfork_and_exec_leaves_the_parent_as_it_was(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    objects_make(a);
    for (int i = 0; i < 20; i++) {
        int status;
        pid_t pid = vfork();
        if (pid == 0) {
            execl("/bin/true", "true", (char *)NULL);
            _exit(127);
        }
        assert_int_equal(waitpid(pid, &status, 0), pid);
        assert_int_equal(status, 0);
        arena_free(a, arena_alloc(a, 100));
    }
    assert_int_equal(stat_of(&d, "clients"), 1);
    objects_check_and_free(a);
    arena_close(a);
}

/* ---- the child's stack -------------------------------------------------------------------------------------------------------------- */

static int has_small_frames_at_a_safepoint(arena_t *a)
{
    arena_stack_t *s = arena_stack(a);
    char *p = arena_alloc(a, 64);
    strcpy(p, "in use");
    arena_publish(a, p);
    arena_frame_t f = arena_frame_push(s);
    void **frame = arena_frame_alloc_small(s, sizeof *frame);
    *frame = p;
    arena_handle_t handle = arena_frame_ref(s, frame);
    if (arena_gc(a, ARENA_GC_SAFEPOINT, NULL) != 0)
        return 1;
    frame = arena_frame_ptr(s, handle);
    if (!frame || *frame != p || arena_ref(a, frame) == 0)
        return 2;
    int rc = arena_claim(a, p) == 0 && strcmp(p, "in use") == 0 ? 0 : 3;
    arena_frame_pop(s, f);
    return rc;
}

static void what_only_a_childs_small_frames_lead_to_is_kept(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    assert_non_null(arena_stack(a));
    assert_int_equal(arena_safepoint(a, ARENA_SAFEPOINT), 0);
    for (int w = 0; w < WAYS; w++)
        assert_int_equal(child(&ways[w], has_small_frames_at_a_safepoint, a), 0);
    arena_close(a);
}

static arena_stack_t *inherited;
static arena_frame_t outer; /* its parent's */
static void *parents;       /* in it */
static arena_handle_t parents_handle;

static int writes(char *p, size_t size) { return p ? (memset(p, 0xee, size), 0) : 1; }

static int goes_on_with_frames(arena_t *a)
{
    (void)a;
    arena_frame_t f = arena_frame_push(inherited);
    if (writes(arena_frame_alloc(inherited, 300), 300))
        return 1;
    arena_frame_pop(inherited, f);
    f = arena_frame_push(inherited);
    if (writes(arena_frame_alloc(inherited, 5000), 5000))
        return 2;
    arena_frame_pop(inherited, f);
    return 0;
}

static int goes_on_with_small_frames(arena_t *a)
{
    arena_frame_t f[4];
    for (int i = 0; i < 4; i++) {
        f[i] = arena_frame_push(inherited);
        if (writes(arena_frame_alloc_small(inherited, 128), 128))
            return 1;
    }
    for (int i = 4; i-- > 0;)
        arena_frame_pop(inherited, f[i]);
    return goes_on_with_frames(a);
}

static int goes_on_with_pops(arena_t *a)
{
    arena_frame_pop(inherited, outer);
    arena_frame_pop(inherited, 16);
    return goes_on_with_small_frames(a);
}

static int goes_on_with_old_pointers(arena_t *a)
{
    if (arena_frame_ptr(inherited, parents_handle) || arena_escape(inherited, parents, 64, 0) ||
        arena_escape_handle(inherited, parents_handle, 64, 0))
        return 10;
    return goes_on_with_small_frames(a);
}

static int goes_on_with_new_pointers(arena_t *a)
{
    arena_frame_t f = arena_frame_push(inherited);
    char *p = arena_frame_alloc_small(inherited, 64);
    strcpy(p, "mine");
    arena_handle_t handle = arena_frame_ref(inherited, p);
    char *copy = arena_escape(inherited, p, 64, 0);
    if (arena_frame_ptr(inherited, handle) != p || !copy || strcmp(copy, "mine") != 0 || (char *)arena_frame_alloc(inherited, 64) == p)
        return 10;
    p = arena_frame_ptr(inherited, handle);
    if (!p || strcmp(p, "mine") != 0)
        return 11;
    arena_frame_pop(inherited, f);
    return arena_frame_ptr(inherited, handle) ? 12 : goes_on_with_small_frames(a);
}

static int goes_on_after_the_heap(arena_t *a) { return uses_the_heap(a) || goes_on_with_small_frames(a); }
static int goes_on_shrinking(arena_t *a)
{
    return arena_stack_shrink(inherited) || arena_stack_size(inherited) || goes_on_with_small_frames(a);
}
static int goes_on_collecting(arena_t *a) { return arena_gc(a, ARENA_GC_DRY_RUN, NULL) == -EBUSY ? goes_on_with_small_frames(a) : 10; }

static int goes_on_beside_threads(arena_t *a)
{
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, thread_uses_the_heap, a) != 0)
        return 20;
    int rc = 0;
    for (int i = 0; i < 100 && rc == 0; i++)
        rc = goes_on_with_small_frames(a);
    pthread_join(thread, &result);
    return rc ? rc : (int)(intptr_t)result;
}

static int has_a_child_that_goes_on(arena_t *a)
{
    int rc = child(way_now, goes_on_with_small_frames, a);
    arena_frame_t f = arena_frame_push(inherited);
    char *p = arena_frame_alloc_small(inherited, 64);
    strcpy(p, "the child's");
    rc = rc ? rc : child(way_now, goes_on_with_pops, a);
    rc = rc ? rc : child(way_now, goes_on_with_new_pointers, a);
    if (rc == 0 && strcmp(p, "the child's") != 0)
        rc = 30;
    arena_frame_pop(inherited, f);
    return rc ? rc : goes_on_with_frames(a);
}

/* The parent's are in shared memory: compared byte by byte, with what is free above them. */
static void a_child_that_goes_on_with_the_stack_it_has_writes_into_no_frame_of_its_parents(void **state)
{
    static int (*const children[])(arena_t *) = {goes_on_with_frames, goes_on_with_small_frames, goes_on_with_pops, goes_on_with_old_pointers,
                                                 goes_on_with_new_pointers, goes_on_after_the_heap, goes_on_shrinking, goes_on_collecting,
                                                 goes_on_beside_threads, has_a_child_that_goes_on, closes_after_use};
    (void)state;
    arena_t *a = open_heap(&d);
    inherited = arena_stack(a);
    outer = arena_frame_push(inherited);
    for (int round = 0; round < 2; round++) { /* with room above its frames, and at the edge */
        parents = arena_frame_alloc(inherited, round ? inherited->limit - inherited->top : 200);
        parents_handle = arena_frame_ref(inherited, parents);
        size_t size = arena_stack_size(inherited), top = arena_frame_push(inherited);
        char *before = malloc(size);
        memset(inherited->base, 0x5a, size);
        memset(before, 0x5a, size);
        for (int w = 0; w < WAYS; w++)
            for (size_t i = 0; i < sizeof children / sizeof *children; i++) {
                way_now = &ways[w];
                int rc = child(way_now, children[i], a);
                if (rc)
                    print_error("child %zu by %s: %d\n", i, ways[w].name, rc);
                assert_int_equal(rc, 0);
                assert_memory_equal(inherited->base, before, size);
                assert_int_equal(arena_frame_push(inherited), top);
            }
        free(before);
    }
    arena_frame_pop(inherited, outer);
    arena_close(a);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

static void *collects_at_a_safepoint(void *a)
{
    return (void *)(intptr_t)arena_gc(a, ARENA_GC_SAFEPOINT, NULL);
}

static sem_t declared, changed;

/* Between the two the thread whose frames they are goes on with what is its own. */
static void *lets_the_other_go_on(void *a)
{
    int rc = arena_safepoint(a, ARENA_SAFEPOINT);
    sem_post(&declared);
    while (sem_wait(&changed) != 0)
        ;
    rc = rc ? rc : arena_gc(a, 0, NULL);
    return (void *)(intptr_t)(rc ? rc : arena_safepoint(a, ARENA_RUNS));
}

static void *declares_in_turn(void *a)
{
    int rc = arena_safepoint(a, ARENA_SAFEPOINT);
    rc = rc ? rc : arena_safepoint(a, ARENA_SAFEPOINT);
    rc = rc ? rc : arena_safepoint(a, ARENA_PINS);
    rc = rc ? rc : arena_safepoint(a, ARENA_SAFEPOINT);
    rc = rc ? rc : arena_gc(a, 0, NULL);
    return (void *)(intptr_t)(rc ? rc : arena_safepoint(a, ARENA_RUNS));
}

static int in_another_thread(void *(*fn)(void *), arena_t *a)
{
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, fn, a) != 0 || pthread_join(thread, &result) != 0)
        return -1;
    return (int)(intptr_t)result;
}

static uint64_t owned(arena_t *a)
{
    struct arena_stats stats = {.size = sizeof stats};
    return arena_stats(a, &stats) == 0 ? stats.objects_owned : 0;
}

static int has_small_frames_at_anothers_safepoint(arena_t *a)
{
    void *(*const others[])(void *) = {collects_at_a_safepoint, declares_in_turn};
    uint64_t before = owned(a);
    for (int i = 0; i < 2; i++) {
        char *p = arena_alloc(a, 64);
        strcpy(p, "in use");
        arena_publish(a, p);
        arena_frame_t f = arena_frame_push(inherited);
        void **frame = arena_frame_alloc_small(inherited, sizeof *frame);
        *frame = p;
        int rc = in_another_thread(others[i], a);
        if (rc != 0)
            return 1;
        if (*frame != p || arena_ref(a, frame) != 0) /* where it was */
            return 2;
        if (strcmp(p, "in use") != 0 || arena_claim(a, p) != 0)
            return 3;
        if (arena_publish(a, p) != 0)
            return 4;
        arena_frame_pop(inherited, f); /* now nothing leads there */
        struct arena_gc_stats stats = {.size = sizeof stats};
        if (arena_gc(a, ARENA_GC_SAFEPOINT, &stats) != 0 || stats.objects == 0 || arena_claim(a, p) == 0)
            return 5;
        if (owned(a) != before) /* the copy has gone */
            return 6;
    }
    return 0;
}

/* Frames that were there at the safepoint are kept, wherever they move meanwhile; those that come after it need not be: what they
 * lead to is an own object, which is a root by itself. */
static int has_frames_that_change_at_anothers_safepoint(arena_t *a)
{
    uint64_t before = owned(a);
    pthread_t thread;
    void *rc;
    char *p = arena_alloc(a, 64), *own;
    strcpy(p, "in use");
    arena_publish(a, p);
    arena_frame_t f = arena_frame_push(inherited);
    void **frame = arena_frame_alloc_small(inherited, sizeof *frame);
    arena_handle_t handle = arena_frame_ref(inherited, frame);
    *frame = p;
    if (sem_init(&declared, 0, 0) || sem_init(&changed, 0, 0) || pthread_create(&thread, NULL, lets_the_other_go_on, a))
        return 1;
    while (sem_wait(&declared) != 0)
        ;
    arena_frame_t g = arena_frame_push(inherited);
    void **small = arena_frame_alloc_small(inherited, sizeof *small);
    *small = own = arena_alloc(a, 64);
    strcpy(own, "own");
    arena_frame_pop(inherited, g);
    void **large = arena_frame_alloc(inherited, 20000); /* the stack comes to the heap, and all frames with it */
    if (!large)
        return 2;
    *large = own;
    sem_post(&changed);
    pthread_join(thread, &rc);
    if (rc)
        return 3;
    if (strcmp(own, "own") != 0 || *large != own)
        return 4;
    frame = arena_frame_ptr(inherited, handle);
    if (*frame != p || strcmp(p, "in use") != 0 || arena_claim(a, p) != 0)
        return 5;
    arena_free(a, p);
    arena_free(a, own);
    arena_frame_pop(inherited, f);
    return owned(a) == before + 1 ? 0 : 6; /* the stack; the copy has gone */
}

static void what_only_small_frames_of_another_thread_lead_to_is_kept(void **state)
{
    (void)state;
    arena_t *a = open_heap(&d);
    inherited = arena_stack(a);
    assert_int_equal(arena_safepoint(a, ARENA_SAFEPOINT), 0);
    for (int w = 0; w < 2 * WAYS; w++) {
        int rc = child(&ways[w % WAYS], w < WAYS ? has_small_frames_at_anothers_safepoint : has_frames_that_change_at_anothers_safepoint, a);
        if (rc)
            print_error("by %s: %d\n", ways[w % WAYS].name, rc);
        assert_int_equal(rc, 0);
    }
    arena_close(a);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_made_in_any_way_uses_nothing_of_its_parents),
        cmocka_unit_test(handlers_may_use_the_heap_before_ours_and_after),
        cmocka_unit_test(a_fork_may_find_other_threads_anywhere_in_the_library),
        cmocka_unit_test(a_program_that_execs_itself_leaves_nothing_behind),
        cmocka_unit_test(a_vfork_and_exec_leaves_the_parent_as_it_was),
        cmocka_unit_test(what_only_a_childs_small_frames_lead_to_is_kept),
        cmocka_unit_test(a_child_that_goes_on_with_the_stack_it_has_writes_into_no_frame_of_its_parents),
        cmocka_unit_test(what_only_small_frames_of_another_thread_lead_to_is_kept),
    };
    if (argc == 4 && strcmp(argv[1], "execs") == 0)
        return execs(argv[2], atoi(argv[3]));
    return cmocka_run_group_tests(tests, setup, teardown);
}
