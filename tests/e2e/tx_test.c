/* Goal: a transaction's commit publishes its own objects, its abort frees them, and neither touches another object, whatever was
 * freed, moved, published or given back meanwhile, by this thread or by others; its log is in proportion to what lives.
 *
 * Method: one daemon a test, a handler that counts bad frees. What became of an object is asked through arena_publish and
 * arena_claim, and counted a second way by the daemon's census. Places are used again at once, so a stale note shows. */
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "client/heap.h"
#include "shm/ticket.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;
static _Atomic int errors;
static char last_message[256];

static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)error, (void)p;
    errors++;
    snprintf(last_message, sizeof last_message, "%s", message);
}

static int setup(void **state)
{
    daemon_setup(state, &d, "256M", &a);
    arena_on_error(a, on_error, NULL);
    errors = 0;
    return 0;
}

static void begin(void) { assert_int_equal(arena_tx_begin(a), 0); }
static void commit(void) { assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0); }
static void abort_it(void) { assert_int_equal(arena_tx_abort(a), 0); }

enum standing { FREE, MINE, SHARED };

/* As its own process sees it; a SHARED one is claimed and published again. */
static enum standing standing_of(void *p)
{
    int rc = arena_claim(a, p);
    if (rc == -EBUSY)
        return MINE;
    if (rc == 0) {
        assert_int_equal(arena_publish(a, p), 0);
        return SHARED;
    }
    assert_int_equal(rc, -EINVAL);
    return FREE;
}

static void run_thread(void *(*fn)(void *), void *argument)
{
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, fn, argument), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* ---- what it has, whatever became of it ---------------------------------------------------------------------------------------- */

static const size_t sizes[] = {1, 3, 12, 16, 64, 500, 5000, 32768, 40000, 300000};
enum { SIZES = sizeof sizes / sizeof sizes[0], EACH = 30 };

static void *frees(void *p)
{
    arena_free(a, p);
    return NULL;
}

/* Allocates of each size, and frees, moves and publishes some: what is left in `own` is the transaction's. */
static uint32_t do_all(void **own, void **published, uint32_t *ret_published)
{
    uint32_t n = 0, out = 0;
    for (int i = 0; i < EACH; i++)
        for (int s = 0; s < SIZES; s++) {
            char *p = arena_alloc_flags(a, sizes[s], i % 3 ? 0 : ARENA_NOSCAN);
            assert_non_null(p);
            memset(p, i, sizes[s]);
            if (i % 7 == 1)
                arena_free(a, p);
            else if (i % 7 == 2)
                run_thread(frees, p);
            else if (i % 7 == 3) {
                assert_int_equal(arena_publish(a, p), 0);
                published[out++] = p;
            } else if (i % 7 == 4) {
                own[n] = arena_realloc(a, p, sizes[s] * 3);
                assert_non_null(own[n]);
                assert_int_equal(*(char *)own[n], i);
                n++;
            } else
                own[n++] = p;
            if (i % 10 == 0 && s == SIZES - 1)
                arena_trim(a);
        }
    *ret_published = out;
    return n;
}

static void all_that_it_has_left_is_published_or_freed(void **state)
{
    static void *own[SIZES * EACH], *published[SIZES * EACH];
    uint32_t out;
    (void)state;
    for (int round = 0; round < 6; round++) {
        bool commits = round % 2;
        begin();
        uint32_t n = do_all(own, published, &out);
        if (commits)
            commit();
        else
            abort_it();
        assert_int_equal(stat_of(&d, "objects_owned"), 0);
        assert_int_equal(stat_of(&d, "objects_shared"), out + (commits ? n : 0));
        for (uint32_t i = 0; i < out; i++) {
            assert_int_equal(standing_of(published[i]), SHARED);
            arena_free(a, published[i]);
        }
        for (uint32_t i = 0; commits && i < n; i++) {
            assert_int_equal(standing_of(own[i]), SHARED);
            arena_free(a, own[i]);
        }
        assert_int_equal(stat_of(&d, "objects_used"), 0);
    }
    assert_int_equal(errors, 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- stale notes ----------------------------------------------------------------------------------------------------------------- */

/* Another process's published objects come to the places that a transaction has named and given back. */
static int publishes(void *argument)
{
    int *pipes = argument;
    char c;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    arena_t *b = open_heap(&d);
    void *mine[8];
    if (read(pipes[0], &c, 1) != 1)
        return 1;
    for (int i = 0; i < 8; i++) {
        mine[i] = arena_alloc(b, 200000);
        if (!mine[i] || arena_publish(b, mine[i]) != 0)
            return 2;
    }
    if (write(pipes[3], "p", 1) != 1 || read(pipes[0], &c, 1) != 1)
        return 3;
    for (int i = 0; i < 8; i++)
        if (arena_claim(b, mine[i]) != 0)
            return 10 + i;
    return arena_close(b) != 0;
}

static void notes_of_spans_that_went_back_are_of_nobody(void **state)
{
    int pipes[4];
    char c;
    (void)state;
    for (int commits = 0; commits < 2; commits++) {
        void *gone[8], *now[16];
        assert_int_equal(pipe(pipes), 0);
        assert_int_equal(pipe(pipes + 2), 0);
        pid_t pid = spawn(publishes, pipes);
        begin();
        for (int i = 0; i < 8; i++)
            gone[i] = arena_alloc(a, 200000);
        for (int i = 0; i < 8; i++)
            arena_free(a, gone[i]);
        assert_int_equal(arena_trim(a), 0);
        stat_await(&d, "objects_cached", 0);
        assert_int_equal(write(pipes[1], "g", 1), 1);
        assert_int_equal(read(pipes[2], &c, 1), 1);
        for (int i = 0; i < 16; i++) /* these take the state words that the others had */
            now[i] = arena_alloc(a, 200000);
        if (commits)
            commit();
        else
            abort_it();
        assert_int_equal(write(pipes[1], "g", 1), 1);
        assert_int_equal(reap(pid), 0);
        for (int i = 0; i < 16; i++) {
            if (commits)
                assert_int_equal(standing_of(now[i]), SHARED);
            if (commits)
                arena_free(a, now[i]);
        }
        for (int i = 0; i < 4; i++)
            close(pipes[i]);
        stat_await(&d, "clients", 1);
        arena_trim(a);
        stat_await(&d, "objects_used", 0);
    }
    assert_int_equal(errors, 0);
}

/* Transactions of this thread allocate, free, trim and abort; threads beside it look after objects of their own. */
static _Atomic int stop, overwritten;

static size_t some_size(uint64_t *s)
{
    uint64_t k = rnd(s) % 10;
    return k < 5 ? rnd(s) % 1000 : k < 8 ? rnd(s) % 33000 : rnd(s) % 400000;
}

static void *keeps_its_own(void *argument)
{
    enum { N = 100 };
    struct {
        unsigned char *p, v;
        size_t n;
    } o[N] = {{0}};
    uint64_t s = (uint64_t)(uintptr_t)argument;
    while (!stop) {
        unsigned i = rnd(&s) % N;
        if (!o[i].p) {
            o[i].n = some_size(&s);
            o[i].v = (unsigned char)rnd(&s);
            if ((o[i].p = arena_alloc(a, o[i].n)) != NULL)
                memset(o[i].p, o[i].v, o[i].n);
            continue;
        }
        for (size_t k = 0; k < o[i].n; k++)
            overwritten += o[i].p[k] != o[i].v;
        arena_free(a, o[i].p);
        o[i].p = NULL;
    }
    for (int i = 0; i < N; i++)
        arena_free(a, o[i].p);
    return NULL;
}

static void aborts_touch_no_object_of_another_thread(void **state)
{
    pthread_t threads[2];
    uint64_t s = seed_get();
    (void)state;
    stop = overwritten = 0;
    for (uint64_t i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, keeps_its_own, (void *)(uintptr_t)(s + i)), 0);
    for (int n = 0; n < 60 && !errors && !overwritten; n++) {
        void *o[100] = {0};
        begin();
        for (int k = 0; k < 400; k++) {
            unsigned i = rnd(&s) % 100;
            if (o[i]) {
                arena_free(a, o[i]);
                o[i] = NULL;
            } else
                o[i] = arena_alloc(a, some_size(&s));
            if (rnd(&s) % 100 == 0)
                arena_trim(a);
        }
        abort_it();
    }
    stop = 1;
    for (int i = 0; i < 2; i++)
        pthread_join(threads[i], NULL);
    if (errors)
        fail_msg("%s", last_message);
    assert_int_equal(overwritten, 0);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- the log's size --------------------------------------------------------------------------------------------------------------- */

static size_t private_bytes(void)
{
    struct mallinfo2 m = mallinfo2();
    return m.uordblks + m.hblkhd;
}

static pthread_barrier_t barrier;
static void *handed[64];

static void *frees_what_is_handed(void *count)
{
    for (uint64_t n = (uint64_t)(uintptr_t)count; n; n--) {
        pthread_barrier_wait(&barrier);
        for (int i = 0; i < 64; i++)
            arena_free(a, handed[i]);
        pthread_barrier_wait(&barrier);
    }
    return NULL;
}

static void its_log_is_in_proportion_to_what_lives(void **state)
{
    enum { MANY = 20000000 / LESS, FEW = 200000 / LESS, ROOM = 512 << 10 };
    void *keep[1000];
    (void)state;
    begin();
    for (int i = 0; i < 1000; i++)
        keep[i] = arena_alloc(a, 64);
    size_t before = private_bytes();
    for (int i = 0; i < MANY; i++) /* one place, again and again */
        arena_free(a, arena_alloc(a, 64));
    assert_true(private_bytes() - before < ROOM || private_bytes() < before);
    for (int i = 0; i < FEW; i++) { /* many places */
        void *p = keep[i % 1000];
        keep[i % 1000] = arena_alloc(a, 16 + (size_t)i % 3000);
        arena_free(a, p);
    }
    for (int i = 0; i < FEW; i++) { /* other ways to be no object of it any more */
        void *p = arena_alloc(a, 64);
        assert_int_equal(arena_publish(a, p), 0);
        arena_free(a, p);
        p = arena_realloc(a, arena_alloc(a, 64), 1000);
        arena_free(a, p);
        p = arena_alloc_flags(a, 64, ARENA_SHARED);
        arena_free(a, p);
    }
    assert_true(private_bytes() - before < ROOM || private_bytes() < before);
    pthread_t thread; /* another thread frees */
    pthread_barrier_init(&barrier, NULL, 2);
    assert_int_equal(pthread_create(&thread, NULL, frees_what_is_handed, (void *)(uintptr_t)(FEW / 64)), 0);
    for (int n = 0; n < FEW / 64; n++) {
        for (int i = 0; i < 64; i++)
            handed[i] = arena_alloc(a, 64);
        pthread_barrier_wait(&barrier);
        pthread_barrier_wait(&barrier);
    }
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&barrier);
    assert_true(private_bytes() - before < ROOM || private_bytes() < before);
    commit();
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(standing_of(keep[i]), SHARED);
        arena_free(a, keep[i]);
    }
    assert_int_equal(errors, 0);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
}

/* ---- what is not its own ---------------------------------------------------------------------------------------------------------- */

static void realloc_keeps_the_standing(void **state)
{
    (void)state;
    for (int commits = 0; commits < 2; commits++) {
        void *before = arena_alloc(a, 64), *shared = arena_alloc_flags(a, 64, ARENA_SHARED), *large = arena_alloc(a, 50000);
        void *tiny = arena_alloc_flags(a, 3, ARENA_NOSCAN);
        begin();
        void *own = arena_realloc(a, arena_alloc(a, 64), 5000);
        before = arena_realloc(a, before, 5000);
        shared = arena_realloc(a, shared, 5000);
        large = arena_realloc(a, large, 50);
        tiny = arena_realloc(a, tiny, 300);
        assert_int_equal(standing_of(shared), SHARED);
        if (commits)
            commit();
        else
            abort_it();
        assert_int_equal(standing_of(before), MINE);
        assert_int_equal(standing_of(large), MINE);
        assert_int_equal(standing_of(tiny), MINE);
        assert_int_equal(standing_of(shared), SHARED);
        if (commits) {
            assert_int_equal(standing_of(own), SHARED);
            arena_free(a, own);
        }
        arena_free(a, before);
        arena_free(a, shared);
        arena_free(a, large);
        arena_free(a, tiny);
        assert_int_equal(stat_of(&d, "objects_used"), 0);
    }
    assert_int_equal(errors, 0);
}

static void *moved;

static void *moves(void *p)
{
    return moved = arena_realloc(a, p, 5000);
}

static void what_another_thread_moves_stays_its_own(void **state)
{
    (void)state;
    for (int commits = 0; commits < 2; commits++) {
        begin();
        void *p = arena_alloc(a, 64);
        strcpy(p, "moved");
        run_thread(moves, p);
        assert_non_null(moved);
        assert_string_equal(moved, "moved");
        if (commits)
            commit();
        else
            abort_it();
        assert_int_equal(stat_of(&d, "objects_owned"), 0);
        assert_int_equal(stat_of(&d, "objects_shared"), commits);
        if (commits)
            arena_free(a, moved);
    }
    assert_int_equal(errors, 0);
}

static void buffers_vectors_and_stacks_stay_the_processs(void **state)
{
    (void)state;
    for (int commits = 0; commits < 2; commits++) {
        arena_buf_t b, c;
        arena_vec_t v;
        arena_stack_t *s = arena_stack(a);
        arena_frame_t f = arena_frame_push(s);
        assert_int_equal(arena_buf_init(&b, a, 10), 0);
        assert_int_equal(arena_vec_init(&v, a, 8, 4, 0), 0);
        begin();
        assert_int_equal(arena_buf_init(&c, a, 0), 0);
        for (uint64_t i = 0; i < 20000; i++) {
            assert_int_equal(arena_buf_puts(i % 2 ? &b : &c, "some text "), 0);
            assert_int_equal(arena_vec_push(&v, &i), 0);
        }
        char *frame = arena_frame_alloc(s, 100000);
        assert_non_null(frame);
        if (commits)
            commit();
        else
            abort_it();
        assert_int_equal(stat_of(&d, "objects_shared"), 0);
        void *filler[100]; /* what was freed would be had again */
        for (int i = 0; i < 100; i++)
            filler[i] = memset(arena_alloc(a, (size_t)10000 * (1 + (unsigned)i % 20)), 'F', 10000);
        assert_int_equal(b.length, 100000);
        assert_int_equal(memcmp(b.data, "some text some text ", 20), 0);
        assert_int_equal(memcmp(c.data + 99990, "some text ", 11), 0);
        for (uint64_t i = 0; i < v.count; i++)
            assert_int_equal(*(uint64_t *)arena_vec_at(&v, i), i);
        for (int i = 0; i < 100; i++)
            arena_free(a, filler[i]);
        arena_frame_pop(s, f);
        arena_buf_fini(&b);
        arena_buf_fini(&c);
        arena_vec_fini(&v);
        assert_int_equal(arena_stack_shrink(s), 0);
        assert_int_equal(stat_of(&d, "objects_used"), 1); /* the stack */
    }
    assert_int_equal(errors, 0);
}

static void what_is_detached_in_a_transaction_is_its_own(void **state)
{
    (void)state;
    for (int n = 0; n < 8; n++) {
        bool commits = n & 1, inside = n & 2, big = n & 4;
        arena_buf_t b;
        arena_vec_t v;
        assert_int_equal(arena_buf_init(&b, a, 10), 0);
        assert_int_equal(arena_vec_init(&v, a, 8, 4, 0), 0);
        begin();
        for (uint64_t i = 0; i < (big ? 20000u : 20u); i++) {
            assert_int_equal(arena_buf_puts(&b, "some text "), 0);
            assert_int_equal(arena_vec_push(&v, &i), 0);
        }
        char *text = NULL;
        uint64_t *items = NULL;
        if (inside) {
            assert_non_null(text = arena_buf_detach(&b, NULL));
            assert_non_null(items = arena_vec_detach(&v, NULL));
        }
        if (commits)
            commit();
        else
            abort_it();
        if (!inside) {
            assert_non_null(text = arena_buf_detach(&b, NULL));
            assert_non_null(items = arena_vec_detach(&v, NULL));
        }
        enum standing expected = !inside ? MINE : commits ? SHARED : FREE;
        assert_int_equal(standing_of(text), expected);
        assert_int_equal(standing_of(items), expected);
        if (expected != FREE) {
            assert_int_equal(memcmp(text, "some text ", 10), 0);
            assert_int_equal(items[19], 19);
            arena_free(a, text);
            arena_free(a, items);
        }
        arena_buf_fini(&b);
        arena_vec_fini(&v);
        assert_int_equal(stat_of(&d, "objects_used"), 0);
    }
    assert_int_equal(errors, 0);
}

static void what_changes_hands_inside_is_not_undone(void **state)
{
    (void)state;
    void *before = arena_alloc(a, 64), *shared = arena_alloc_flags(a, 64, ARENA_SHARED), *free_too = arena_alloc_flags(a, 64, ARENA_SHARED);
    begin();
    void *born = arena_alloc_flags(a, 64, ARENA_SHARED), *born_large = arena_alloc_flags(a, 100000, ARENA_SHARED);
    void *published = arena_alloc(a, 64);
    assert_int_equal(arena_publish(a, published), 0);
    assert_int_equal(arena_claim(a, shared), 0);
    arena_free(a, before);
    arena_free(a, free_too);
    abort_it();
    assert_int_equal(standing_of(born), SHARED);
    assert_int_equal(standing_of(born_large), SHARED);
    assert_int_equal(standing_of(published), SHARED);
    assert_int_equal(standing_of(shared), MINE);
    assert_int_equal(stat_of(&d, "objects_used"), 4);
    assert_int_equal(errors, 0);
}

/* ---- two threads, and their ends -------------------------------------------------------------------------------------------------- */

static void *leaves_it_open(void *argument)
{
    (void)argument;
    if (arena_tx_begin(a) != 0)
        return "begin";
    for (int s = 0; s < SIZES; s++)
        arena_alloc(a, sizes[s]);
    return NULL;
}

static _Atomic int inside;

static void *is_cancelled(void *argument)
{
    leaves_it_open(argument);
    inside = 1;
    for (;;)
        pause();
    return NULL;
}

static void a_thread_that_ends_aborts_its_own(void **state)
{
    pthread_t thread;
    (void)state;
    begin();
    void *mine = arena_alloc(a, 64);
    run_thread(leaves_it_open, NULL);
    assert_int_equal(pthread_create(&thread, NULL, is_cancelled, NULL), 0);
    while (!inside)
        pause_us(100);
    thread_cancel(thread);
    pthread_join(thread, NULL);
    assert_int_equal(stat_of(&d, "objects_owned"), 1);
    commit();
    assert_int_equal(standing_of(mine), SHARED);
    assert_int_equal(stat_of(&d, "objects_used"), 1);
    assert_int_equal(errors, 0);
}

/* ---- commits in doubt -------------------------------------------------------------------------------------------------------------- */

static arena_t *open_impatient(void)
{
    struct arena_options o = ARENA_OPTIONS_INIT;
    o.timeout_ms = 300;
    arena_close(a);
    assert_int_equal(arena_open(&a, d.socket, &o), 0);
    arena_on_error(a, on_error, NULL);
    return a;
}

static bool has_root(const char *name)
{
    arena_ref_t ref;
    return arena_root_get(a, name, &ref) == 0;
}

/* A commit that nobody answers, with root "first"; then the daemon goes on. */
static void *commit_in_doubt(bool *ret_done_or_not)
{
    open_impatient();
    begin();
    void *p = arena_alloc(a, 64);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    int rc = arena_tx_commit(a, "first", 0, arena_ref(a, p));
    assert_true(rc == -ENOTCONN || rc == -EINPROGRESS);
    kill(serving, SIGCONT);
    *ret_done_or_not = rc == -EINPROGRESS;
    return p;
}

static void another_commit_after_one_in_doubt_says_which_was_done(void **state)
{
    bool doubt;
    (void)state;
    void *p = commit_in_doubt(&doubt), *q;
    while (!(q = arena_alloc(a, 64)) && errno == ENOTCONN)
        ;
    if (!q) { /* it was done */
        assert_int_equal(errno, EALREADY);
        q = p;
    }
    int rc = arena_tx_commit(a, "second", 0, arena_ref(a, q));
    while (rc == -ENOTCONN)
        rc = arena_tx_commit(a, "second", 0, arena_ref(a, q));
    assert_true(rc == 0 || rc == -EALREADY);
    assert_int_equal(has_root("first"), rc == -EALREADY);
    assert_int_equal(has_root("second"), rc == 0);
    assert_int_equal(standing_of(p), SHARED); /* both are of the one transaction */
    assert_int_equal(standing_of(q), SHARED);
    assert_int_equal(arena_tx_abort(a), -EINVAL); /* and it is over */
}

/* The daemon has taken the request up, as far as the map tells, and stands still. It has read nothing: so it was not done. */
static void while_a_commit_is_in_doubt_nothing_new_is_of_its_transaction(void **state)
{
    pid_t serving = daemon_serving(&d);
    (void)state;
    open_impatient();
    void *other = arena_alloc(a, 64);
    begin();
    void *p = arena_alloc(a, 64);
    kill(serving, SIGSTOP);
    a->heap.tickets[a->tag] = TICKET_TAKEN(a->conn.next_id + 1);
    assert_int_equal(arena_tx_commit(a, "first", 0, arena_ref(a, p)), -EINPROGRESS);
    for (int i = 0; i < 2; i++) {
        assert_null(arena_alloc(a, i ? 100000 : 64));
        assert_int_equal(errno, ENOTCONN);
    }
    assert_null(arena_realloc(a, p, 4000));
    assert_int_equal(errno, ENOTCONN);
    arena_free(a, other); /* what is not of it may be freed */
    kill(serving, SIGCONT);
    void *q = NULL, *large = NULL;
    while (!q || !large) {
        q = q ? q : arena_alloc(a, 64);
        large = large ? large : arena_alloc(a, 100000);
        assert_true((q && large) || errno == ENOTCONN);
    }
    assert_false(has_root("first"));
    int rc;
    while ((rc = arena_tx_commit(a, "first", 0, arena_ref(a, p))) == -ENOTCONN)
        ;
    assert_int_equal(rc, 0);
    assert_int_equal(standing_of(p), SHARED);
    assert_int_equal(standing_of(q), SHARED);
    assert_int_equal(standing_of(large), SHARED);
    assert_int_equal(check_of(&d), 0);
}

static void the_same_commit_after_one_in_doubt_is_done_once(void **state)
{
    bool doubt;
    (void)state;
    void *p = commit_in_doubt(&doubt);
    int rc = arena_tx_commit(a, "first", 0, arena_ref(a, p));
    while (rc == -ENOTCONN)
        rc = arena_tx_commit(a, "first", 0, arena_ref(a, p));
    assert_int_equal(rc, 0);
    assert_true(has_root("first"));
    assert_int_equal(standing_of(p), SHARED);
}

static void an_abort_after_one_in_doubt_aborts_or_says_that_it_was_done(void **state)
{
    bool doubt;
    (void)state;
    void *p = commit_in_doubt(&doubt);
    int rc = arena_tx_abort(a);
    while (rc == -ENOTCONN)
        rc = arena_tx_abort(a);
    assert_true(rc == 0 || rc == -EALREADY);
    assert_int_equal(has_root("first"), rc == -EALREADY);
    assert_int_equal(standing_of(p), rc == 0 ? FREE : SHARED);
    begin(); /* the tag is in order */
    arena_alloc(a, 64);
    abort_it();
    assert_int_equal(check_of(&d), 0);
}

static void *commits_and_ends(void *argument)
{
    (void)argument;
    if (arena_tx_begin(a) == 0)
        arena_tx_commit(a, "first", 0, arena_ref(a, arena_alloc(a, 64)));
    return NULL;
}

static void a_thread_that_ends_in_doubt_leaves_nothing(void **state)
{
    (void)state;
    open_impatient();
    pid_t serving = daemon_serving(&d);
    void *big[3]; /* tags and objects at hand, so that it comes to the commit */
    begin();
    for (int i = 0; i < 3; i++)
        big[i] = arena_alloc(a, 64);
    abort_it();
    (void)big;
    kill(serving, SIGSTOP);
    run_thread(commits_and_ends, NULL);
    kill(serving, SIGCONT);
    begin(); /* the connection is made anew, and then it is settled */
    commit();
    arena_free(a, arena_alloc(a, 100000));
    for (int i = 0; i < 100; i++)
        arena_free(a, arena_alloc_flags(a, 64 * (size_t)i, 0));
    uint64_t left = has_root("first");
    stat_await(&d, "objects_used", left);
    assert_int_equal(stat_of(&d, "objects_owned"), 0);
    assert_int_equal(errors, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, daemon_teardown)
        TEST(all_that_it_has_left_is_published_or_freed),
        TEST(notes_of_spans_that_went_back_are_of_nobody),
        TEST(aborts_touch_no_object_of_another_thread),
        TEST(its_log_is_in_proportion_to_what_lives),
        TEST(realloc_keeps_the_standing),
        TEST(what_another_thread_moves_stays_its_own),
        TEST(buffers_vectors_and_stacks_stay_the_processs),
        TEST(what_is_detached_in_a_transaction_is_its_own),
        TEST(what_changes_hands_inside_is_not_undone),
        TEST(a_thread_that_ends_aborts_its_own),
        TEST(another_commit_after_one_in_doubt_says_which_was_done),
        TEST(while_a_commit_is_in_doubt_nothing_new_is_of_its_transaction),
        TEST(the_same_commit_after_one_in_doubt_is_done_once),
        TEST(an_abort_after_one_in_doubt_aborts_or_says_that_it_was_done),
        TEST(a_thread_that_ends_in_doubt_leaves_nothing),
#undef TEST
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
