/* Goal: pins, and what is kept for a collection, are notes about an object and never about what comes to its place; what is born
 * published in a process that pins is pinned; what changes hands while a collection runs is freed once, and nothing in use is
 * taken. Method: one process that has declared ARENA_PINS, so that collections run at any moment of it; whether an object is there
 * is asked through arena_publish. For the moments of a collection another process has a heap of small objects at a safepoint, and
 * collections are asked for by processes beside it, one after the other. */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "shm/layout.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;
static _Atomic int errors, last_error;
static char last_message[1024];

static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)p;
    last_error = error;
    errors++;
    snprintf(last_message, sizeof last_message, "%s", message);
}

static int setup(void **state)
{
    daemon_setup(state, &d, "1G", &a);
    arena_on_error(a, on_error, NULL);
    errors = 0;
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0);
    return 0;
}

static uint64_t collect(void)
{
    struct arena_gc_stats stats = {.size = sizeof stats};
    int rc = arena_gc(a, 0, &stats);
    if (rc < 0)
        fail_msg("arena_gc: %s (%s %llu)", strerror(-rc), stats.blocker_command, (unsigned long long)stats.blocker_pid);
    return stats.objects;
}

static bool is_there(void *p)
{
    int rc = arena_publish(a, p);
    assert_true(rc == 0 || rc == -EINVAL);
    return rc == 0;
}

static void *published(size_t size)
{
    void *p = memset(arena_alloc(a, size), 0, size);
    assert_int_equal(arena_publish(a, p), 0);
    return p;
}

static const size_t sizes[] = {3, 16, 64, 5000, 32768, 200000};
enum { SIZES = sizeof sizes / sizeof sizes[0] };

/* ---- a pin goes with its object --------------------------------------------------------------------------------------------------- */

static void pins_of_what_is_freed_are_gone(void **state)
{
    (void)state;
    for (int s = 0; s < SIZES; s++)
        for (int n = 0; n < 12; n++) {
            bool unpins = n & 1, twice = n & 2;
            void *p = arena_alloc(a, sizes[s]);
            assert_int_equal(arena_pin(a, p), 0);
            if (twice)
                assert_int_equal(arena_pin(a, (char *)p + 1), 0);
            if (n >= 4 && n < 8)
                assert_int_equal(arena_publish(a, p), 0);
            arena_free(a, p);
            if (n >= 8)
                arena_trim(a);
            if (unpins) { /* as it may, and need not */
                assert_int_equal(arena_unpin(a, p), 0);
                if (twice)
                    assert_int_equal(arena_unpin(a, p), 0);
                assert_int_equal(arena_unpin(a, p), -EINVAL);
            }
            void *q[8]; /* whatever comes to that place is pinned by nobody */
            for (int i = 0; i < 8; i++)
                q[i] = published(sizes[s]);
            assert_int_equal(collect(), 8);
            for (int i = 0; i < 8; i++)
                q[i] = published(sizes[s]);
            assert_int_equal(arena_pin(a, q[7]), 0); /* and its own pins count as ever */
            assert_int_equal(collect(), 7);
            assert_int_equal(arena_unpin(a, q[7]), 0);
            assert_int_equal(arena_unpin(a, q[7]), -EINVAL);
            assert_int_equal(collect(), 1);
        }
    assert_int_equal(errors, 0);
    assert_int_equal(check_of(&d), 0);
}

static void *unpins(void *p)
{
    return (void *)(intptr_t)arena_unpin(a, p);
}

static void a_late_unpin_takes_no_pin_of_another_thread(void **state)
{
    void *rc;
    pthread_t thread;
    (void)state;
    void *p = published(64);
    assert_int_equal(arena_pin(a, p), 0);
    arena_free(a, p);
    void *q = arena_alloc(a, 64);
    assert_ptr_equal(p, q);
    assert_int_equal(arena_publish(a, q), 0);
    assert_int_equal(pthread_create(&thread, NULL, unpins, p), 0); /* it has freed nothing, and nothing is pinned */
    pthread_join(thread, &rc);
    assert_int_equal((intptr_t)rc, -EINVAL);
    assert_int_equal(arena_unpin(a, p), 0); /* this one has */
    assert_int_equal(arena_unpin(a, p), -EINVAL);
    assert_int_equal(collect(), 1);
}

static void an_abort_takes_the_pins_of_what_it_frees(void **state)
{
    (void)state;
    for (int s = 0; s < SIZES; s++) {
        assert_int_equal(arena_tx_begin(a), 0);
        void *p = arena_alloc(a, sizes[s]);
        assert_int_equal(arena_pin(a, p), 0);
        assert_int_equal(arena_tx_abort(a), 0);
        void *q = published(sizes[s]);
        assert_ptr_equal(p, q);
        assert_int_equal(collect(), 1);
    }
}

static int frees(void *p)
{
    arena_t *b = open_heap(&d);
    arena_free(b, p);
    return arena_trim(b) != 0 || arena_close(b) != 0;
}

static void a_pin_of_what_another_process_has_freed_is_found_by_its_address(void **state)
{
    (void)state;
    for (int s = 0; s < SIZES; s++)
        for (size_t inside = 0; inside < 3; inside += 2) {
            void *p = published(sizes[s]);
            assert_int_equal(arena_pin(a, (char *)p + inside), 0);
            arena_trim(a);
            assert_int_equal(reap(spawn(frees, p)), 0);
            stat_await(&d, "clients", 1);
            assert_int_equal(arena_unpin(a, (char *)p + inside), 0);
            assert_int_equal(arena_unpin(a, p), -EINVAL);
            void *q = published(sizes[s]);
            assert_int_equal(collect(), 1);
            assert_false(is_there(q));
        }
    assert_int_equal(check_of(&d), 0);
}

static void realloc_takes_the_pins_along(void **state)
{
    (void)state;
    for (int own = 0; own < 2; own++)
        for (int in_tx = 0; in_tx < 2; in_tx++)
            for (int s = 0; s < SIZES - 1; s++) {
                char *p = own ? arena_alloc(a, sizes[s]) : published(sizes[s]);
                p[0] = 'p';
                assert_int_equal(arena_pin(a, p), 0);
                assert_int_equal(arena_pin(a, p), 0);
                if (in_tx)
                    assert_int_equal(arena_tx_begin(a), 0);
                char *q = arena_realloc(a, p, sizes[s + 1] * 2);
                assert_non_null(q);
                assert_ptr_not_equal(p, q);
                if (in_tx)
                    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0);
                assert_int_equal(arena_unpin(a, p), -EINVAL);
                if (own)
                    assert_int_equal(arena_publish(a, q), 0);
                assert_int_equal(collect(), 0);
                assert_int_equal(arena_unpin(a, q), 0);
                assert_int_equal(collect(), 0);
                assert_int_equal(q[0], 'p');
                assert_int_equal(arena_unpin(a, q + 1), 0);
                assert_int_equal(arena_unpin(a, q), -EINVAL);
                assert_int_equal(collect(), 1);
            }
    assert_int_equal(errors, 0);
    assert_int_equal(stat_of(&d, "objects_shared"), 0);
}

/* ---- born pinned -------------------------------------------------------------------------------------------------------------------- */

static void *born(int how, size_t size, unsigned noscan)
{
    void *p = NULL;
    if (how == 0)
        return arena_alloc_flags(a, size, ARENA_SHARED | noscan);
    if (how == 1) {
        assert_int_equal(arena_tx_begin(a), 0);
        p = arena_alloc_flags(a, size, ARENA_SHARED | ARENA_ZERO | noscan);
        assert_int_equal(arena_tx_abort(a), 0);
    } else if (how == 2) {
        arena_stack_t *s = arena_stack(a);
        arena_frame_t f = arena_frame_push(s);
        void *frame = memset(arena_frame_alloc(s, size), 0, size);
        p = arena_escape(s, frame, size, ARENA_SHARED | noscan);
        memset(frame, 0, size);
        arena_frame_pop(s, f);
    } else if (how == 3) /* what is not pinned, and a lock of the program's keeps; then it moves */
        p = arena_realloc(a, published(size / 4 ? size / 4 : 1), size * 3 + 100);
    return p;
}

static void what_is_born_published_is_pinned_once(void **state)
{
    (void)state;
    for (int how = 0; how < 4; how++)
        for (int s = 0; s < SIZES; s++)
            for (unsigned noscan = 0; noscan <= ARENA_NOSCAN; noscan += ARENA_NOSCAN) {
                void *p = born(how, sizes[s], noscan);
                assert_non_null(p);
                assert_int_equal(collect(), 0);
                assert_true(is_there(p));
                assert_int_equal(arena_unpin(a, p), 0);
                assert_int_equal(arena_unpin(a, p), -EINVAL);
                assert_int_equal(collect(), 1);
                assert_false(is_there(p));
            }
    assert_int_equal(arena_safepoint(a, ARENA_RUNS), 0); /* and a process that does not pin gets no pins */
    void *p = arena_alloc_flags(a, 64, ARENA_SHARED);
    assert_int_equal(arena_unpin(a, p), -EINVAL);
}

/* ---- while collections run ---------------------------------------------------------------------------------------------------------- */

static struct board {
    _Atomic uint64_t ready, stop, asked;
} *board;

static int has_many(void *count)
{
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *b = open_heap(&d);
    int rc = hold_a_list(b, (uint64_t)(uintptr_t)count);
    if (rc != 0)
        return rc;
    board->ready = 1;
    for (;;)
        pause();
}

/* Asks again and again, at a safepoint of its own. */
static int asks(void *argument)
{
    (void)argument;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *b = open_heap(&d);
    while (!board->stop) {
        struct arena_gc_stats stats = {.size = sizeof stats};
        int rc = arena_gc(b, ARENA_GC_SAFEPOINT, &stats);
        if (rc != 0) {
            fprintf(stderr, "arena_gc: %d\n", rc);
            return 1;
        }
        board->asked++;
    }
    return arena_close(b) != 0;
}

static pid_t pids[2];

static void collections_begin(void)
{
    board = shared_memory(sizeof *board);
    pids[0] = spawn(has_many, (void *)(uintptr_t)(3000000 / LESS));
    await_counter(&board->ready, 1, pids[0]);
    pids[1] = spawn(asks, NULL);
}

static void collections_end(void)
{
    board->stop = 1;
    assert_int_equal(reap(pids[1]), 0);
    kill(pids[0], SIGKILL);
    reap(pids[0]);
    stat_await(&d, "clients", 1);
    munmap(board, sizeof *board);
}

/* As in daemon/passes/gc.c (P): a node is pinned while it is in no list. Here a commit's root leads to it at once. */
struct node {
    arena_ref_t next, pad[3];
};

static void lists_committed_while_collections_run_lose_nothing(void **state)
{
    enum { LISTS = 400 };
    static void *keep[LISTS];
    char name[30];
    (void)state;
    void *low = arena_alloc(a, 4000);
    collections_begin();
    arena_free(a, low);
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < LISTS; i++) { /* heads and tails on both sides of one another */
            assert_int_equal(arena_tx_begin(a), 0);
            struct node *tail = arena_alloc(a, i % 2 ? 64 : 4000), *head = arena_alloc(a, i % 2 ? 4000 : 64);
            struct node *large = i % 16 ? NULL : arena_alloc(a, 100000);
            memset(head, 0, sizeof *head);
            head->next = arena_ref(a, tail);
            head->pad[0] = arena_ref(a, large);
            memset(tail, 0, sizeof *tail);
            if (large)
                memset(large, 0, 100000);
            snprintf(name, sizeof name, "r%d", i);
            int rc = arena_tx_commit(a, name, 0, arena_ref(a, head));
            if (rc != 0)
                fail_msg("commit %d: %s", i, strerror(-rc));
            keep[i] = head;
            if (i % 20 == 0)
                pause_us(500);
        }
        uint64_t seen = board->asked;
        await_counter(&board->asked, seen + 2, pids[1]);
        for (int i = 0; i < LISTS; i++) {
            struct node *head = keep[i], *tail = arena_ptr(a, head->next), *large = arena_ptr(a, head->pad[0]);
            snprintf(name, sizeof name, "r%d", i);
            assert_int_equal(arena_claim(a, tail), 0);
            if (large)
                assert_int_equal(arena_claim(a, large), 0);
            assert_int_equal(arena_pin(a, head), 0);
            assert_int_equal(arena_root_set(a, name, 0), 0);
            arena_free(a, tail);
            arena_free(a, large);
            arena_free(a, head);
        }
    }
    collections_end();
    assert_int_equal(errors, 0);
    assert_int_equal(collect(), 0);
    stat_await(&d, "objects_shared", 0);
    assert_int_equal(check_of(&d), 0);
}

/* What is moved while a collection runs is freed after it, once, by whichever call comes next; whoever frees it is told. */
static void what_is_moved_while_collections_run_is_freed_once(void **state)
{
    static unsigned char *o[200];
    uint64_t s = seed_get();
    size_t n[200];
    int double_frees = 0, moves = 0;
    (void)state;
    collections_begin();
    while (board->asked < 6) {
        unsigned i = rnd(&s) % 200;
        if (!o[i]) {
            n[i] = 1 + rnd(&s) % 3000;
            o[i] = memset(arena_alloc(a, n[i]), (int)i, n[i]);
            continue;
        }
        for (size_t k = 0; k < n[i]; k++)
            if (o[i][k] != (unsigned char)i)
                fail_msg("object %u of %zu bytes was overwritten at %zu", i, n[i], k);
        bool in_tx = rnd(&s) % 4 == 0;
        if (rnd(&s) % 8 == 0) {
            arena_free(a, o[i]);
            o[i] = NULL;
            continue;
        }
        if (in_tx)
            assert_int_equal(arena_tx_begin(a), 0);
        size_t more = n[i] * 2 > 20000 ? 1 + rnd(&s) % 50 : n[i] * 2 + 600;
        unsigned char *was = o[i], *extra = in_tx ? arena_realloc(a, arena_alloc(a, 64), 4000) : NULL;
        o[i] = arena_realloc(a, was, more);
        assert_non_null(o[i]);
        n[i] = more;
        memset(o[i], (int)i, n[i]);
        if (o[i] != was && rnd(&s) % 4 == 0) { /* its place is free, or waits: a double free either way, and nothing is done */
            int before = errors;
            moves++;
            arena_free(a, was);
            assert_int_equal(errors, before + 1);
            assert_int_equal(last_error, EALREADY);
            assert_non_null(strstr(last_message, "arena_free"));
            assert_int_equal(arena_claim(a, was), -EINVAL);
            assert_int_equal(arena_publish(a, was), -EINVAL);
            assert_int_equal(arena_pin(a, was), -EINVAL);
            double_frees++;
        }
        if (in_tx && rnd(&s) % 2)
            assert_int_equal(arena_tx_abort(a), 0);
        else if (in_tx) {
            arena_free(a, extra);
            assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0);
        }
    }
    collections_end();
    assert_true(moves > 0);
    for (int i = 0; i < 200; i++)
        arena_free(a, o[i]);
    assert_int_equal(errors, double_frees);
    arena_free(a, arena_alloc(a, 100000)); /* the next slow path */
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

static void *region(const char *name);

/* The places of what was moved are not used again before the end of the collection: it may have them still to read. */
static void what_is_moved_keeps_its_place_until_the_end(void **state)
{
    (void)state;
    const struct map_header *map = region("arena-map");
    assert_non_null(map);
    collections_begin();
    for (int met = 0; met < 3;) {
        uint64_t *p = arena_alloc(a, 64), *q[8];
        arena_vec_t v;
        p[0] = 4711;
        assert_int_equal(arena_vec_init(&v, a, 64, 1, 0), 0);
        void *item = v.items;
        uint32_t serial = __atomic_load_n(&map->collecting, __ATOMIC_ACQUIRE);
        p = arena_realloc(a, p, 4000); /* q would be had at the first one's place */
        assert_int_equal(p[0], 4711);
        assert_int_equal(arena_vec_reserve(&v, 100), 0);
        for (int i = 0; i < 8; i++)
            q[i] = arena_alloc(a, 64);
        if (serial && __atomic_load_n(&map->collecting, __ATOMIC_ACQUIRE) == serial) {
            for (int i = 0; i < 8; i++)
                assert_true((void *)q[i] != item);
            met++;
            uint64_t seen = board->asked; /* the next time another one */
            await_counter(&board->asked, seen + 1, pids[1]);
        }
        for (int i = 0; i < 8; i++)
            arena_free(a, q[i]);
        arena_vec_fini(&v);
        arena_free(a, p);
    }
    collections_end();
    assert_int_equal(errors, 0);
    arena_free(a, arena_alloc(a, 100000));
    stat_await(&d, "objects_used", 0);
}

static void buffers_and_stacks_that_grow_meanwhile_keep_what_they_hold(void **state)
{
    (void)state;
    collections_begin();
    while (board->asked < 4) {
        arena_vec_t v;
        arena_stack_t *s = arena_stack(a);
        arena_frame_t f = arena_frame_push(s);
        assert_int_equal(arena_vec_init(&v, a, sizeof(void *), 4, 0), 0);
        for (uint64_t i = 0; i < 500; i++) { /* what only they lead to is pinned by no other */
            void *p = arena_alloc_flags(a, 64, ARENA_SHARED);
            assert_int_equal(arena_vec_push(&v, &p), 0);
            assert_int_equal(arena_unpin(a, p), 0);
            arena_frame_alloc(s, 100);
        }
        for (size_t i = 0; i < v.count; i++)
            arena_free(a, *(void **)arena_vec_at(&v, i));
        arena_vec_fini(&v);
        arena_frame_pop(s, f);
        arena_stack_shrink(s);
    }
    collections_end();
    if (errors)
        fail_msg("%s", last_message);
    arena_free(a, arena_alloc(a, 100000));
    stat_await(&d, "objects_shared", 0); /* own ones are the stack, and tables of pins, as many as a collection kept */
}

/* ---- one that stands still ------------------------------------------------------------------------------------------------------------ */

/* Where a region of the daemon's is mapped here. */
static void *region(const char *name)
{
    char line[512], *found = NULL;
    FILE *maps = fopen("/proc/self/maps", "r");
    assert_non_null(maps);
    while (!found && fgets(line, sizeof line, maps))
        if (strstr(line, name))
            found = (char *)(uintptr_t)strtoull(line, NULL, 16);
    fclose(maps);
    return found;
}

static void a_collection_is_refused_by_a_client_that_stands_still_in_a_turning(void **state)
{
    struct geometry g;
    struct arena_gc_stats stats = {.size = sizeof stats};
    (void)state;
    struct map_header *map = region("arena-map");
    uint8_t *bytes = region("arena-state");
    assert_true(map != NULL && bytes != NULL);
    assert_int_equal(geometry_init(&g, map->heap_max, map->root_slots), 0);
    unsigned tag = 0; /* this process's */
    const struct tag *tags = (const struct tag *)(const void *)((uint8_t *)map + g.tags_at);
    for (unsigned i = 1; i < map->tag_top; i++)
        if (tags[i].state == TAG_CLIENT && tags[i].pid == (uint32_t)getpid())
            tag = i;
    assert_int_not_equal(tag, 0);
    uint32_t *turning = (uint32_t *)(void *)(bytes + g.turning_at) + tag;
    void *p = published(64);
    *turning = 1;
    assert_int_equal(arena_gc(a, 0, &stats), -EBUSY);
    assert_int_equal(stats.blockers, 1);
    assert_int_equal(stats.blocker_pid, getpid());
    assert_true(is_there(p));
    *turning = 0;
    assert_int_equal(collect(), 1);
}

/* ---- a forked child's frames ----------------------------------------------------------------------------------------------------------- */

static int child_of_a_stack(void *argument)
{
    arena_stack_t *s = arena_stack(a); /* the parent's, empty here */
    int mode = (int)(intptr_t)argument, rc;
    struct {
        void *p, *pad;
    } *frame;
    char *p = memset(arena_alloc(a, 64), 0, 64);
    arena_frame_t f = arena_frame_push(s);
    frame = arena_frame_alloc_small(s, sizeof *frame);
    frame->p = p;
    arena_handle_t h = arena_frame_ref(s, frame);
    if (arena_publish(a, p) != 0)
        return 1;
    rc = arena_safepoint(a, mode);
    if (rc != 0)
        return 2;
    if (arena_gc(a, 0, NULL) != 0)
        return 3;
    if (arena_safepoint(a, ARENA_RUNS) != 0)
        return 4;
    frame = arena_frame_ptr(s, h);
    if (!frame || frame->p != p || arena_claim(a, p) != 0)
        return 5;
    arena_frame_pop(s, f);
    return 0;
}

static void a_forked_childs_frames_are_roots(void **state)
{
    (void)state;
    arena_stack_t *s = arena_stack(a);
    arena_frame_t f = arena_frame_push(s);
    assert_non_null(arena_frame_alloc(s, 100));
    arena_frame_pop(s, f);
    assert_int_equal(reap(spawn(child_of_a_stack, (void *)ARENA_SAFEPOINT)), 0);
    assert_int_equal(reap(spawn(child_of_a_stack, (void *)ARENA_PINS)), 0);
}

/* ---- ARENA_DEBUG=pins -------------------------------------------------------------------------------------------------------------------- */

static void uses_of_what_is_not_pinned_are_named(void **state)
{
    static const char *const calls[] = {"arena_ref", "arena_claim", "arena_publish", "arena_realloc", "arena_free"};
    (void)state;
    arena_close(a);
    setenv("ARENA_DEBUG", "pins", 1);
    a = open_heap(&d);
    unsetenv("ARENA_DEBUG");
    arena_on_error(a, on_error, NULL);
    void *own = arena_alloc(a, 64), *p = arena_alloc_flags(a, 64, ARENA_SHARED);
    arena_ref(a, p); /* nothing is declared */
    assert_int_equal(errors, 0);
    assert_int_equal(arena_safepoint(a, ARENA_PINS), 0);
    for (int i = 0; i < 5; i++) {
        if (i == 0)
            arena_ref(a, p);
        else if (i == 1)
            assert_int_equal(arena_claim(a, p), 0);
        else if (i == 2)
            assert_int_equal(arena_publish(a, p), 0);
        else if (i == 3) {
            p = arena_realloc(a, p, 5000);
            assert_int_equal(arena_unpin(a, p), 0);
        } else
            arena_free(a, p);
        assert_int_equal(errors, i + 1);
        assert_int_equal(last_error, ENOLCK);
        assert_non_null(strstr(last_message, calls[i]));
        assert_non_null(strstr(last_message, "pins_test")); /* where */
    }
    errors = 0;
    arena_ref(a, own); /* an own one needs no pin */
    arena_free(a, own);
    p = arena_alloc_flags(a, 64, ARENA_SHARED);
    arena_ref(a, p);
    assert_int_equal(arena_claim(a, p), 0);
    assert_int_equal(arena_publish(a, p), 0);
    arena_free(a, p);
    assert_int_equal(errors, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, daemon_teardown)
        TEST(pins_of_what_is_freed_are_gone),
        TEST(a_late_unpin_takes_no_pin_of_another_thread),
        TEST(an_abort_takes_the_pins_of_what_it_frees),
        TEST(a_pin_of_what_another_process_has_freed_is_found_by_its_address),
        TEST(realloc_takes_the_pins_along),
        TEST(what_is_born_published_is_pinned_once),
        TEST(lists_committed_while_collections_run_lose_nothing),
        TEST(what_is_moved_while_collections_run_is_freed_once),
        TEST(what_is_moved_keeps_its_place_until_the_end),
        TEST(buffers_and_stacks_that_grow_meanwhile_keep_what_they_hold),
        TEST(a_collection_is_refused_by_a_client_that_stands_still_in_a_turning),
        TEST(a_forked_childs_frames_are_roots),
        TEST(uses_of_what_is_not_pinned_are_named),
#undef TEST
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
