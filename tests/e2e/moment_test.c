/* Goal: what a process does is right also at moments that are too short to be met: a daemon that stops in the middle of one commit,
 * a snapshot that outlasts a thousand, a collection that begins in the middle of a realloc.
 *
 * Method: the test plays the daemon. It writes into the map what the daemon would have written by then (daemon_map()), while
 * that stands still or has nothing to do, and goes on when the call in question has come to where it should be. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "client/heap.h"
#include "shm/ticket.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;
static struct map_header *map; /* the daemon's */
static int errors, last_error;

static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)p, (void)message;
    last_error = error;
    errors++;
}

static int setup(void **state)
{
    daemon_setup(state, &d, "256M", &a);
    arena_on_error(a, on_error, NULL);
    errors = 0;
    map = daemon_map(&d);
    return 0;
}

static int teardown(void **state)
{
    munmap(map, map->map_bytes);
    return daemon_teardown(state);
}

static bool is_published(void *p) { return arena_publish(a, p) == 0; }

/* As a daemon does that begins a collection, that has taken its snapshot, and that ends it. */
static void snapshot_begins(uint32_t serial)
{
    store_release(&map->collecting, serial); /* [GC1] */
    fence_seq_cst();
}
static void snapshot_ends(uint32_t serial) { store_release(&map->snapped, serial); }
static void collection_ends(void) { store_release(&map->collecting, 0); }

/* ---- a snapshot that outlasts a thousand commits ---------------------------------------------------------------------------- */

static atomic_bool begun;

static void *begins(void *ret)
{
    *(int *)ret = arena_tx_begin(a);
    atomic_store(&begun, true);
    if (*(int *)ret == 0)
        arena_tx_abort(a);
    return NULL;
}

/* Their words are not turned before its end, so their tags are taken. The next one waits for it. */
static void a_begin_waits_for_the_end_of_a_snapshot_that_holds_all_tags(void **state)
{
    enum { SERIAL = 4711, LOOKS = 20 /* round trips */ };
    static void *objects[TX_TAGS_MAX];
    pthread_t thread;
    int rc = 1;
    (void)state;
    snapshot_begins(SERIAL);
    for (int i = 0; i < TX_TAGS_MAX; i++) {
        assert_int_equal(arena_tx_begin(a), 0);
        assert_non_null(objects[i] = arena_alloc(a, 64));
        assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0);
    }
    uint64_t before = load_relaxed(&map->round_trips);
    atomic_store(&begun, false);
    assert_int_equal(pthread_create(&thread, NULL, begins, &rc), 0);
    while (!atomic_load(&begun) && load_relaxed(&map->round_trips) - before < LOOKS)
        pause_us(100);
    snapshot_ends(SERIAL);
    collection_ends();
    pthread_join(thread, NULL);
    assert_int_equal(rc, 0);
    for (int i = 0; i < TX_TAGS_MAX; i++)
        arena_free(a, objects[i]);
    assert_int_equal(errors, 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- a collection that begins in the middle of a realloc -------------------------------------------------------------------- */

enum { MOVED = 8192, OTHERS = 64, MARKS = 815 };
static uint8_t *trap; /* an unreadable page; NULL: none */
static int declares;  /* a mode */

static void *declare_mode(void *ret)
{
    *(int *)ret = arena_safepoint(a, declares);
    return NULL;
}

/* In the middle of the copy, another thread declares the process, and a collection begins. */
static void on_fault(int signum, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;
    pthread_t thread;
    int rc = 1;
    (void)context;
    if (!trap || at < trap || at >= trap + 4096) {
        signal(signum, SIG_DFL); /* comes again, and ends the test */
        return;
    }
    mprotect(trap, 4096, PROT_READ | PROT_WRITE);
    trap = NULL;
    if (pthread_create(&thread, NULL, declare_mode, &rc) != 0 || pthread_join(thread, NULL) != 0 || rc != 0)
        abort();
    snapshot_begins(MARKS);
    snapshot_ends(MARKS);
}

static void what_was_looked_at_before_a_collection_is_not_freed_in_it(void **state)
{
    static uint8_t *others[OTHERS];
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    (void)state;
    assert_int_equal(sigaction(SIGSEGV, &action, NULL), 0);
    for (declares = ARENA_SAFEPOINT; declares <= ARENA_PINS; declares++) {
        uint8_t *p = memset(arena_alloc(a, MOVED), 'p', MOVED);
        assert_int_equal((uintptr_t)p % 4096, 0);
        trap = p;
        assert_int_equal(mprotect(trap, 4096, PROT_NONE), 0);
        uint8_t *q = arena_realloc(a, p, 2 * MOVED);
        assert_null(trap);
        assert_true(q && q != p && q[0] == 'p' && q[MOVED - 1] == 'p');
        for (int i = 0; i < OTHERS; i++)
            assert_true((others[i] = arena_alloc(a, MOVED)) != p);
        arena_free(a, p); /* it is gone for its owner */
        assert_int_equal(errors, 1);
        assert_int_equal(last_error, EALREADY);
        collection_ends();
        assert_int_equal(arena_safepoint(a, ARENA_RUNS), 0);
        arena_free(a, q);
        for (int i = 0; i < OTHERS; i++)
            arena_free(a, others[i]);
        stat_await(&d, "objects_used", 0);
        assert_int_equal(errors, 1);
        errors = 0;
    }
    signal(SIGSEGV, SIG_DFL);
    assert_int_equal(check_of(&d), 0);
}

/* ---- a daemon that dies in the middle of a commit ---------------------------------------------------------------------------- */

/* The daemon takes the commit of this thread up, does it, and dies before it has said so. */
static void *commit_in_doubt(void)
{
    struct arena_options o = ARENA_OPTIONS_INIT;
    o.timeout_ms = 300;
    arena_close(a);
    while (arena_open(&a, d.socket, &o) != 0)
        ;
    int rc;
    while ((rc = arena_tx_begin(a)) == -ENOTCONN)
        ;
    assert_int_equal(rc, 0);
    void *p;
    while (!(p = arena_alloc(a, 64)))
        assert_int_equal(errno, ENOTCONN);
    pid_t serving = daemon_serving(&d);
    struct object object;
    assert_true(object_find(&a->heap, arena_ref(a, p), &object));
    unsigned tag = word_tag(*object.word);
    struct tag *at = (struct tag *)(void *)((uint8_t *)map + ((uint8_t *)&a->heap.tags[tag] - (uint8_t *)a->heap.header));
    assert_true(tag_is_of(&a->heap, tag, TAG_TX, a->tag));
    kill(serving, SIGSTOP);
    a->heap.tickets[a->tag] = TICKET_TAKEN(a->conn.next_id + 1);
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), -EINPROGRESS);
    store_release(&at->state, TAG_TX_COMMITTED);
    kill(serving, SIGKILL);
    return p;
}

static int commits_the_same(void) { return arena_tx_commit(a, NULL, 0, 0); }
static int commits_another(void) { return arena_tx_commit(a, "second", 0, 0); }
static int aborts(void) { return arena_tx_abort(a); }

static void a_commit_in_doubt_that_was_done_is_told(void **state)
{
    static const struct {
        int (*call)(void);
        int says;
        bool allocates; /* before it */
    } ways[] = {{commits_the_same, 0, false},          {commits_the_same, 0, true},   {commits_another, -EALREADY, false},
                {commits_another, -EALREADY, true},    {aborts, -EALREADY, false},    {aborts, -EALREADY, true}};
    (void)state;
    for (unsigned i = 0; i < sizeof ways / sizeof ways[0]; i++) {
        arena_ref_t ref;
        int rc;
        void *p = commit_in_doubt(), *q = NULL;
        for (errno = ENOTCONN; ways[i].allocates && !q && errno == ENOTCONN;)
            q = arena_alloc(a, 64);
        assert_null(q); /* it would be published at once */
        assert_true(!ways[i].allocates || errno == EALREADY);
        while ((rc = ways[i].call()) == -ENOTCONN)
            ;
        assert_int_equal(rc, ways[i].says);
        assert_int_equal(arena_root_get(a, "second", &ref), -ENOENT); /* the other one was not done */
        assert_int_equal(arena_tx_abort(a), -EINVAL);                 /* it is over */
        assert_int_equal(arena_claim(a, p), 0);
        arena_free(a, p);
        while ((rc = arena_tx_begin(a)) == -ENOTCONN) /* and the tag is in order */
            ;
        assert_int_equal(rc, 0);
        assert_int_equal(arena_tx_abort(a), 0);
        assert_int_equal(errors, 0);
        assert_int_equal(check_of(&d), 0);
    }
    stat_await(&d, "objects_used", 0);
}

static void *commits_and_ends(void *ret)
{
    *(void **)ret = commit_in_doubt();
    return NULL;
}

static void a_thread_that_ends_with_such_a_commit_has_published(void **state)
{
    pthread_t thread;
    void *p = NULL;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, commits_and_ends, &p), 0);
    pthread_join(thread, NULL);
    int rc;
    while ((rc = arena_tx_begin(a)) == -ENOTCONN) /* the connection is made anew, and then it is settled */
        ;
    assert_int_equal(rc, 0);
    assert_int_equal(arena_tx_abort(a), 0);
    assert_true(is_published(p));
    arena_free(a, p);
    assert_int_equal(errors, 0);
    stat_await(&d, "objects_used", 0);
    assert_int_equal(check_of(&d), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(a_begin_waits_for_the_end_of_a_snapshot_that_holds_all_tags),
        TEST(what_was_looked_at_before_a_collection_is_not_freed_in_it),
        TEST(a_commit_in_doubt_that_was_done_is_told),
        TEST(a_thread_that_ends_with_such_a_commit_has_published),
#undef TEST
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
