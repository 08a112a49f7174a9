/* Goal: the table of arena.h holds: what each call does in a reader, once the heap is stale, and in a forked child.
 * Method: each row is a function that makes the call and returns its error; each column is a process in that state. What a
 * parent owns is in `rows` too: the child must not get it. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;

/* What the calls are made with, and what the error handler was last told. */
static struct {
    arena_t *a;
    void *own, *shared; /* the process's, or its parent's; published, and a root leads to it */
    int told;
} with;

static void note(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)p, (void)message;
    with.told = error;
}

static int of_pointer(const void *p) { return p ? 0 : errno; }

static int call_ref(void) { return arena_ref(with.a, with.shared) ? 0 : errno; }
static int call_ptr(void) { return of_pointer(arena_ptr(with.a, arena_ref(with.a, with.shared))); }
static int call_usable_size(void) { return arena_usable_size(with.a, with.shared) >= 100 ? 0 : -1; }
static int call_root_get(void)
{
    arena_ref_t ref;
    return arena_root_get(with.a, "root", &ref);
}
static int call_root_wait(void)
{
    arena_ref_t ref;
    return arena_root_wait(with.a, "root", 0, 0, &ref);
}
static int call_root_set(void) { return arena_root_set(with.a, "other", arena_ref(with.a, with.shared)); }
static int call_root_cas(void)
{
    arena_ref_t ref = arena_ref(with.a, with.shared);
    return arena_root_cas(with.a, "root", ref, ref);
}
static int call_stats(void)
{
    struct arena_stats stats = {.size = sizeof stats};
    return arena_stats(with.a, &stats);
}
static int call_alloc(void) { return of_pointer(arena_alloc(with.a, 100)); }
static int call_alloc_large(void) { return of_pointer(arena_alloc(with.a, 100000)); }
static int call_aligned(void) { return of_pointer(arena_aligned_alloc(with.a, 4096, 100)); }
static int call_calloc(void) { return of_pointer(arena_calloc(with.a, 10, 10)); }
static int call_batch(void)
{
    void *objects[4];
    return arena_alloc_batch(with.a, 100, objects, 4) == 4 ? 0 : errno;
}
static int call_realloc(void) { return of_pointer(arena_realloc(with.a, with.own, 5000)); }
static int call_free(void)
{
    arena_free(with.a, with.own);
    return 0;
}
static int call_publish(void) { return arena_publish(with.a, with.own); }
static int call_claim(void) { return arena_claim(with.a, with.own); }
static int call_tx_begin(void) { return arena_tx_begin(with.a); }
static int call_tx_commit(void) { return arena_tx_commit(with.a, NULL, 0, 0); }
static int call_tx_abort(void) { return arena_tx_abort(with.a); }
static int call_buf(void)
{
    arena_buf_t b;
    return arena_buf_init(&b, with.a, 100);
}
static int call_vec(void)
{
    arena_vec_t v;
    return arena_vec_init(&v, with.a, 8, 100, 0);
}
static int call_stack(void) { return of_pointer(arena_stack(with.a)); }
static int call_pin(void) { return arena_pin(with.a, with.shared); }
static int call_unpin(void) { return arena_unpin(with.a, with.shared); }
static int call_safepoint(void) { return arena_safepoint(with.a, ARENA_SAFEPOINT); }
static int call_runs(void) { return arena_safepoint(with.a, ARENA_RUNS); }
static int call_pins(void) { return arena_safepoint(with.a, ARENA_PINS); }
static int call_gc(void) { return arena_gc(with.a, ARENA_GC_SAFEPOINT | ARENA_GC_DRY_RUN, NULL); }
static int call_trim(void) { return arena_trim(with.a); }
static int call_close(void) { return arena_close(with.a); }

enum { READER, STALE, CHILD, COLUMNS };
struct cell {
    int result, told; /* what it returns or leaves in errno, and what the error handler is told; 0: nothing */
};
static const struct row {
    const char *name;
    int (*call)(void);
    struct cell cells[COLUMNS];
} rows[] = {
    /*                                     reader           stale heap   forked child */
    {"arena_ref", call_ref,               {{0, 0},          {0, 0},       {0, 0}}},
    {"arena_ptr", call_ptr,               {{0, 0},          {0, 0},       {0, 0}}},
    {"arena_usable_size", call_usable_size, {{0, 0},        {0, 0},       {0, 0}}},
    {"arena_root_get", call_root_get,     {{0, 0},          {-ESTALE, 0}, {0, 0}}},
    {"arena_root_wait", call_root_wait,   {{0, 0},          {-ESTALE, 0}, {0, 0}}},
    {"arena_stats", call_stats,           {{0, 0},          {-ESTALE, 0}, {0, 0}}},
    {"arena_root_set", call_root_set,     {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_root_cas", call_root_cas,     {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_alloc", call_alloc,           {{EACCES, 0},     {ESTALE, 0},  {0, 0}}},
    {"arena_alloc, large", call_alloc_large, {{EACCES, 0},  {ESTALE, 0},  {0, 0}}},
    {"arena_aligned_alloc", call_aligned, {{EACCES, 0},     {ESTALE, 0},  {0, 0}}},
    {"arena_calloc", call_calloc,         {{EACCES, 0},     {ESTALE, 0},  {0, 0}}},
    {"arena_alloc_batch", call_batch,     {{EACCES, 0},     {ESTALE, 0},  {0, 0}}},
    {"arena_realloc", call_realloc,       {{EACCES, 0},     {ESTALE, 0},  {EINVAL, EPERM}}},
    {"arena_free", call_free,             {{0, EACCES},     {0, 0},       {0, EPERM}}},
    {"arena_publish", call_publish,       {{-EACCES, 0},    {-ESTALE, 0}, {-EBUSY, 0}}},
    {"arena_claim", call_claim,           {{-EACCES, 0},    {-ESTALE, 0}, {-EBUSY, 0}}},
    {"arena_tx_begin", call_tx_begin,     {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_tx_abort", call_tx_abort,       {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_tx_commit", call_tx_commit,   {{-EACCES, 0},    {-ESTALE, 0}, {-EINVAL, 0}}},
    {"arena_buf_init", call_buf,          {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_vec_init", call_vec,          {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_stack", call_stack,           {{EACCES, 0},     {ESTALE, 0},  {0, 0}}},
    {"arena_pin", call_pin,               {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_unpin", call_unpin,           {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_safepoint, PINS", call_pins,  {{-EACCES, 0},    {-ESTALE, 0}, {0, 0}}},
    {"arena_safepoint, SAFEPOINT", call_safepoint, {{0, 0}, {-ESTALE, 0}, {0, 0}}},
    {"arena_safepoint, RUNS", call_runs,  {{0, 0},          {-ESTALE, 0}, {0, 0}}},
    {"arena_gc", call_gc,                 {{-EACCES, 0},    {-ESTALE, 0}, {-EBUSY, 0}}},
    {"arena_trim", call_trim,             {{0, 0},          {-ESTALE, 0}, {0, 0}}},
    {"arena_close", call_close,           {{0, 0},          {0, 0},       {0, 0}}},
};

/* Makes all calls of a column, in the table's order: 0, or how many cells are otherwise. */
static int walk(int column)
{
    int wrong = 0;
    arena_on_error(with.a, note, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        const struct cell *cell = &rows[i].cells[column];
        errno = with.told = 0;
        int result = rows[i].call();
        if (result == cell->result && with.told == cell->told)
            continue;
        fprintf(stderr, "%s: %d, handler %d; should be %d, handler %d\n", rows[i].name, result, with.told, cell->result, cell->told);
        wrong++;
    }
    return wrong;
}

static void prepare(void)
{
    with.own = arena_alloc(with.a, 100);
    with.shared = arena_alloc(with.a, 100);
    assert_non_null(with.own);
    assert_int_equal(arena_publish(with.a, with.shared), 0);
    assert_int_equal(arena_root_set(with.a, "root", arena_ref(with.a, with.shared)), 0);
}

static int read_all(void *argument)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_ref_t own = arena_ref(with.a, with.own), shared = arena_ref(with.a, with.shared);
    (void)argument;
    options.flags = ARENA_READ_ONLY;
    if (arena_open(&with.a, d.socket, &options) < 0)
        return 100;
    with.own = arena_ptr(with.a, own);
    with.shared = arena_ptr(with.a, shared);
    return walk(READER);
}

static int inherit_all(void *argument)
{
    (void)argument;
    return walk(CHILD);
}

static int setup(void **state) { return daemon_setup(state, &d, "64M", &with.a); }

static void a_reader_may_what_the_table_says(void **state)
{
    (void)state;
    prepare();
    assert_int_equal(reap(spawn(read_all, NULL)), 0);
}

static void a_forked_child_may_what_the_table_says(void **state)
{
    (void)state;
    prepare();
    assert_int_equal(reap(spawn(inherit_all, NULL)), 0);
}

static void once_the_heap_is_stale_calls_do_what_the_table_says(void **state)
{
    (void)state;
    prepare();
    daemon_kill(&d);
    daemon_again(&d, "64M", "--keeper=no", NULL); /* of another heap */
    assert_int_equal(arena_root_set(with.a, "x", 0), -ESTALE);
    assert_int_equal(walk(STALE), 0);
    with.a = NULL;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_reader_may_what_the_table_says, setup, daemon_teardown),
        cmocka_unit_test_setup_teardown(a_forked_child_may_what_the_table_says, setup, daemon_teardown),
        cmocka_unit_test_setup_teardown(once_the_heap_is_stale_calls_do_what_the_table_says, setup, daemon_teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
