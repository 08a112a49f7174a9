/* Goal: a move of a root, or a commit, whose answer is lost takes effect once, and its client is told what became of it,
 * whatever others have done since.
 * Method: a client reaches the daemon through a relay, a thread of its own process (so that it has its pid). The relay hands
 * one request over, keeps its answer to itself, and says so. Then the daemon is killed with SIGKILL, another client moves
 * the root on, and only then the first one's connection breaks. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "tests/crash/relay.h"

static struct daemon d;
static struct board {
    struct relay_board relay;
    _Atomic uint64_t from, to;      /* references, of the client's */
} *board;

static arena_t *open_by_relay(int timeout_ms)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    char path[120];
    arena_t *a;
    options.timeout_ms = timeout_ms;
    relay_start(&d, &board->relay, path, sizeof path);
    assert_int_equal(arena_open(&a, path, &options), 0);
    return a;
}

/* ---- clients --------------------------------------------------------------------------------------------------------------- */

struct request {
    const char *name;
    enum { SET, CAS, REMOVE, CAS_REMOVE, COMMIT } what;
    bool was_there; /* the root led to an object before */
};

static arena_ref_t shared_ref(arena_t *a)
{
    return arena_ref(a, arena_alloc_flags(a, 100, ARENA_SHARED));
}

/* Its exit status is what its request was answered with. */
static int mover(void *argument)
{
    const struct request *r = argument;
    arena_t *a = open_by_relay(-1);
    arena_ref_t from = r->was_there ? shared_ref(a) : 0, to = shared_ref(a);
    if (from)
        assert_int_equal(arena_root_set(a, "q", from), 0);
    if (r->what == COMMIT) {
        assert_int_equal(arena_tx_begin(a), 0);
        to = arena_ref(a, arena_alloc(a, 100));
    }
    atomic_store(&board->from, from);
    atomic_store(&board->to, to);
    relay_lose(r->what == COMMIT ? MSG_TX_COMMIT : MSG_ROOT, RELAY_CUT);
    switch (r->what) {
    case SET: return -arena_root_set(a, "q", to);
    case CAS: return -arena_root_cas(a, "q", from, to);
    case REMOVE: return -arena_root_set(a, "q", 0);
    case CAS_REMOVE: return -arena_root_cas(a, "q", from, 0);
    case COMMIT: return -arena_tx_commit(a, "q", from, to);
    }
    return 1;
}

static void kill_daemon(void)
{
    pid_t serving = daemon_serving(&d);
    assert_int_not_equal(serving, d.pid);
    kill(serving, SIGKILL);
    while (daemon_serving(&d) == serving || daemon_serving(&d) == d.pid)
        pause_us(1000);
}

static void a_request_that_was_done_is_reported_as_done(void **state)
{
    static const struct request requests[] = {
        {"set of a new root", SET, false},           {"set", SET, true},
        {"compare and set of a new root", CAS, false}, {"compare and set", CAS, true},
        {"removal", REMOVE, true},                   {"removal by compare and set", CAS_REMOVE, true},
        {"commit with a new root", COMMIT, false},   {"commit", COMMIT, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof requests / sizeof requests[0]; i++) {
        const struct request *r = &requests[i];
        bool removes = r->what == REMOVE || r->what == CAS_REMOVE;
        arena_ref_t now = 0, mine;
        memset(board, 0, sizeof *board);
        pid_t pid = spawn(mover, (void *)(uintptr_t)r);
        await_counter(&board->relay.answered, 1, pid);
        arena_t *b = open_heap(&d);
        mine = shared_ref(b);
        assert_int_equal(arena_root_get(b, "q", &now), removes ? -ENOENT : 0);
        assert_int_equal(now, removes ? 0 : atomic_load(&board->to));
        kill_daemon();
        assert_int_equal(arena_root_cas(b, "q", now, mine), 0);
        atomic_store(&board->relay.cut, 1);
        int status = reap(pid);
        if (status)
            fail_msg("%s: it was done, and is answered: %s", r->name, strerror(status));
        assert_int_equal(arena_root_get(b, "q", &now), 0);
        if (now != mine)
            fail_msg("%s: it was done a second time, over what another client has made of it", r->name);
        assert_int_equal(arena_root_set(b, "q", 0), 0);
        assert_int_equal(check_of(&d), 0);
        arena_close(b);
    }
}

/* Nothing of it was done: so it may be done now. */
static int mover_of_nothing(void *unused)
{
    (void)unused;
    arena_t *a = open_by_relay(-1);
    arena_ref_t from = shared_ref(a), to = shared_ref(a);
    atomic_store(&board->from, from);
    atomic_store(&board->to, to);
    relay_lose(MSG_ROOT, RELAY_CUT);
    return -arena_root_cas(a, "q", from, to);
}

static void a_request_that_was_refused_is_decided_anew(void **state)
{
    arena_ref_t now = 0;
    (void)state;
    memset(board, 0, sizeof *board);
    pid_t pid = spawn(mover_of_nothing, NULL);
    await_counter(&board->relay.answered, 1, pid);
    arena_t *b = open_heap(&d);
    assert_int_equal(arena_root_get(b, "q", &now), -ENOENT);
    kill_daemon();
    assert_int_equal(arena_root_set(b, "q", atomic_load(&board->from)), 0);
    atomic_store(&board->relay.cut, 1);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(arena_root_get(b, "q", &now), 0);
    assert_int_equal(now, atomic_load(&board->to));
    assert_int_equal(arena_root_set(b, "q", 0), 0);
    arena_close(b);
}

/* A request whose answer does not come, but was done, is answered by the map; the next one is not taken for it. */
static int mover_without_patience(void *unused)
{
    (void)unused;
    arena_t *a = open_by_relay(100);
    arena_ref_t first = shared_ref(a), second = shared_ref(a), now = 0;
    relay_lose(MSG_ROOT, RELAY_SILENT);
    int rc, told = arena_root_set(a, "q", first);
    assert_true(told == 0 || told == -ENOTCONN); /* where the machine is slow it was given up before the daemon had it */
    while ((rc = arena_root_set(a, "other", second)) == -ENOTCONN) /* where the machine is slow */
        ;
    assert_int_equal(rc, 0);
    assert_int_equal(arena_root_get(a, "other", &now), 0);
    assert_int_equal(now, second);
    assert_int_equal(arena_root_get(a, "q", &now), told == 0 ? 0 : -ENOENT);
    assert_true(told < 0 || now == first);
    return 0;
}

static void a_request_whose_answer_does_not_come_is_told_to_be_done(void **state)
{
    (void)state;
    memset(board, 0, sizeof *board);
    assert_int_equal(reap(spawn(mover_without_patience, NULL)), 0);
    assert_int_equal(check_of(&d), 0);
}

static int setup(void **state)
{
    board = shared_memory(sizeof *board);
    return daemon_setup(state, &d, "64M", NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_that_was_done_is_reported_as_done),
        cmocka_unit_test(a_request_that_was_refused_is_decided_anew),
        cmocka_unit_test(a_request_whose_answer_does_not_come_is_told_to_be_done),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
