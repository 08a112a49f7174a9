/* Goal: whatever still leads into a popped frame is found and reported with the call sites, in each
 * of the ways in which an object escapes in Go's list; and nothing else is. Method: this program
 * runs with ARENA_DEBUG=escape and a handler that collects; each case is a function whose name must
 * be in the report. Linked with -rdynamic, so that the names are there. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/e2e/harness.h"

#include <uthash.h>

/* named in the program's dynamic symbols, and not inlined */
#define CASE __attribute__((noinline, visibility("default")))
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

static struct daemon d;
static arena_t *a;
static arena_stack_t *s;
static int reports;
static char last[2048];
static const void *last_place;

static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context;
    assert_int_equal(error, EFAULT);
    reports++;
    last_place = p;
    snprintf(last, sizeof last, "%s", message);
}

static int setup(void **state)
{
    setenv("ARENA_DEBUG", "escape", 1);
    daemon_setup(state, &d, "64M", &a);
    arena_on_error(a, on_error, NULL);
    s = arena_stack(a);
    return 0;
}

/* One report, of a value of that kind at that place, that names all three places of the program. */
static void expect_report(const void *place, const char *kind, const char *holder,
                          const char *made_in, const char *popped_in)
{
    char text[200];
    if (reports != 1)
        fail_msg("%d reports, the last: %s", reports, last);
    assert_ptr_equal(last_place, place);
    snprintf(text, sizeof text, "holds a %s to an object of a popped frame", kind);
    assert_non_null(strstr(last, text));
    assert_non_null(strstr(last, holder));
    snprintf(text, sizeof text, "popped frame, allocated at %s+", made_in);
    if (!strstr(last, text))
        fail_msg("no '%s' in: %s", text, last);
    snprintf(text, sizeof text, "popped at %s+", popped_in);
    if (!strstr(last, text))
        fail_msg("no '%s' in: %s", text, last);
    reports = 0;
}

struct pair {
    void *first, *second;
};

/* ---- Go's list ------------------------------------------------------------------------------ */

CASE struct pair *make_target(void)
{
    return arena_alloc(a, sizeof(struct pair));
}

CASE void store_through_pointer(struct pair *target)
{
    arena_frame_t f = arena_frame_push(s);
    target->second = arena_frame_alloc(s, 32);
    arena_frame_pop(s, f);
}

static void through_a_pointer(void **state)
{
    (void)state;
    struct pair *target = make_target();
    store_through_pointer(target);
    expect_report(&target->second, "pointer", "a heap object at", "store_through_pointer",
                  "store_through_pointer");
    arena_free(a, target);
}

CASE void store_in_slice(arena_vec_t *v)
{
    arena_frame_t f = arena_frame_push(s);
    for (int i = 0; i < 3; i++) {
        void *p = i == 1 ? arena_frame_alloc(s, 100) : NULL;
        arena_vec_push(v, &p);
    }
    arena_frame_pop(s, f);
}

static void in_a_slice(void **state)
{
    (void)state;
    arena_vec_t v;
    arena_vec_init(&v, a, sizeof(void *), 10, 0);
    store_in_slice(&v);
    expect_report(arena_vec_at(&v, 1), "pointer", "a heap object at", "store_in_slice",
                  "store_in_slice");
    arena_vec_fini(&v);
}

struct entry {
    int key;
    void *value;
    UT_hash_handle hh;
};

#undef uthash_malloc
#undef uthash_free
#define uthash_malloc(size)    arena_alloc(a, size)
#define uthash_free(ptr, size) arena_free(a, ptr)

CASE void store_in_map(struct entry *e)
{
    arena_frame_t f = arena_frame_push(s);
    e->value = arena_frame_alloc(s, 40);
    arena_frame_pop(s, f);
}

static void in_a_map(void **state)
{
    (void)state;
    struct entry *map = NULL, *found;
    for (int key = 0; key < 50; key++) {
        struct entry *e = arena_alloc(a, sizeof *e);
        e->key = key;
        e->value = NULL;
        HASH_ADD_INT(map, key, e);
    }
    int key = 33;
    HASH_FIND_INT(map, &key, found);
    store_in_map(found);
    expect_report(&found->value, "pointer", "a heap object at", "store_in_map", "store_in_map");
    struct entry *e, *next;
    HASH_ITER(hh, map, e, next)
    {
        HASH_DEL(map, e);
        arena_free(a, e);
    }
}

/* A ring of references that other processes read: published, and holding no pointers. */
struct ring {
    uint64_t head, tail;
    arena_ref_t slots[16];
};

CASE void send_over_ring(struct ring *ring)
{
    arena_frame_t f = arena_frame_push(s);
    char *message = arena_frame_alloc(s, 64);
    ring->slots[ring->head++ % 16] = arena_ref(a, message + 8); /* into the middle */
    arena_frame_pop(s, f);
}

static void over_a_ring(void **state)
{
    (void)state;
    struct ring *ring =
        arena_alloc_flags(a, sizeof *ring, ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED);
    send_over_ring(ring);
    expect_report(&ring->slots[0], "reference", "a published object at", "send_over_ring",
                  "send_over_ring");
    arena_free(a, ring);
}

/* A closure: a function and what it captured. */
struct closure {
    int (*function)(void *context);
    void *context;
    arena_handle_t counter;
};

CASE int call_back(void *context)
{
    return context != NULL;
}

CASE struct closure *make_closure(void)
{
    struct closure *c = arena_alloc(a, sizeof *c);
    arena_frame_t f = arena_frame_push(s);
    c->function = call_back;
    c->context = NULL;
    c->counter = arena_frame_ref(s, arena_frame_alloc(s, 16)); /* by a handle */
    arena_frame_pop(s, f);
    return c;
}

static void in_a_closure(void **state)
{
    (void)state;
    struct closure *c = make_closure();
    expect_report(&c->counter, "handle", "a heap object at", "make_closure", "make_closure");
    assert_non_null(strstr(last, "allocated at make_closure+")); /* the holder too */
    arena_free(a, c);
}

/* ---- outer frames, roots -------------------------------------------------------------------- */

CASE void *inner_frame(void)
{
    arena_frame_t f = arena_frame_push(s);
    void *p = arena_frame_alloc(s, 24);
    arena_frame_pop(s, f); /* nothing holds it yet */
    return p;
}

CASE void fill_outer(struct pair *outer)
{
    arena_frame_t f = arena_frame_push(s);
    outer->first = arena_frame_alloc(s, 24);
    arena_frame_pop(s, f);
}

static void in_an_outer_frame(void **state)
{
    (void)state;
    arena_frame_t f = arena_frame_push(s);
    struct pair *outer = arena_frame_alloc(s, sizeof *outer);
    fill_outer(outer);
    expect_report(&outer->first, "pointer", "an outer frame at", "fill_outer", "fill_outer");
    outer->first = NULL;
    inner_frame();
    assert_int_equal(reports, 0);
    arena_frame_pop(s, f);
    assert_int_equal(reports, 0);
}

static void a_root_is_refused(void **state)
{
    (void)state;
    arena_frame_t f = arena_frame_push(s);
    void *p = arena_frame_alloc(s, 32);
    assert_int_equal(arena_root_set(a, "frame", arena_ref(a, p)), -EINVAL);
    assert_int_equal(arena_root_cas(a, "frame", 0, arena_ref(a, p)), -EINVAL);
    arena_frame_pop(s, f);
    assert_int_equal(reports, 0);
}

/* ---- what is right is not reported ---------------------------------------------------------- */

static void what_escapes_properly_is_not_reported(void **state)
{
    (void)state;
    arena_frame_t f = arena_frame_push(s);
    struct pair *outer = arena_frame_alloc(s, sizeof *outer), *heap = arena_alloc(a, sizeof *heap);
    for (int i = 0; i < 50; i++) {
        arena_frame_t g = arena_frame_push(s);
        char *p = arena_frame_alloc(s, 50);
        snprintf(p, 50, "number %d", i);
        struct pair *inner = arena_frame_alloc(s, sizeof *inner);
        inner->first = outer; /* inward is fine */
        inner->second = p;
        heap->first = p;
        heap->first = arena_escape(s, p, 50, ARENA_NOSCAN);
        outer->second = heap->first;
        arena_frame_pop(s, g);
        assert_string_not_equal(heap->first, "");
        arena_free(a, heap->first);
    }
    arena_free(a, heap);
    struct pair *freed = arena_alloc(a, sizeof *freed); /* what a free object holds is nobody's */
    freed->first = outer;
    arena_free(a, freed);
    arena_frame_pop(s, f);
    assert_int_equal(reports, 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- threads -------------------------------------------------------------------------------- */

static void count(void *context, int error, const void *p, const char *message)
{
    (void)p;
    (void)message;
    if (error == EFAULT)
        __atomic_fetch_add((int *)context, 1, __ATOMIC_RELAXED);
}

/* The objects are its own; every other thread's pops look at them meanwhile. */
static void *leaks_in_its_own(void *argument)
{
    arena_stack_t *mine = arena_stack(a);
    pthread_barrier_wait(argument); /* no stack is where that of one that has ended was */
    for (int i = 0; i < 20; i++) {
        struct pair *target = arena_alloc(a, sizeof *target);
        for (int k = 0; k < 3; k++) {
            arena_frame_t f = arena_frame_push(mine);
            target->second = arena_frame_alloc(mine, 32);
            arena_frame_pop(mine, f);
            target->second = NULL;
        }
        arena_free(a, target);
    }
    return NULL;
}

static void threads_find_each_what_leads_into_their_frames(void **state)
{
    (void)state;
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    pthread_barrier_t all;
    int found = 0;
    pthread_barrier_init(&all, NULL, THREADS);
    arena_on_error(a, count, &found);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, leaks_in_its_own, &all), 0);
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    arena_on_error(a, on_error, NULL);
    pthread_barrier_destroy(&all);
    assert_true(found >= THREADS); /* what was told lately is not told again */
    assert_int_equal(check_of(&d), 0);
}

static int without_a_handler(void *argument)
{
    (void)argument;
    arena_t *mine = NULL;
    arena_close(a);
    if (arena_open(&mine, d.socket, NULL) < 0)
        return 1;
    a = mine;
    s = arena_stack(a);
    store_through_pointer(make_target());
    return 0;
}

static void without_a_handler_it_aborts(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(without_a_handler, NULL)), 128 + SIGABRT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(through_a_pointer),
        cmocka_unit_test(in_a_slice),
        cmocka_unit_test(in_a_map),
        cmocka_unit_test(over_a_ring),
        cmocka_unit_test(in_a_closure),
        cmocka_unit_test(in_an_outer_frame),
        cmocka_unit_test(a_root_is_refused),
        cmocka_unit_test(what_escapes_properly_is_not_reported),
        cmocka_unit_test(threads_find_each_what_leads_into_their_frames),
        cmocka_unit_test(without_a_handler_it_aborts),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
