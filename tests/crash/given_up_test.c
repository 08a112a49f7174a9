/* Goal: whatever becomes of the daemon while a call waits for it, what the call says and what is true afterwards agree: what
 * was given up has no effect later, what was done is told to be done, and nothing is lost or held by two.
 * Method: a table. Each request of a client's, by the call that makes it, meets each fault: the daemon stands still before it
 * has read it; the same with its socket full; the answer is lost; the daemon is killed before it has read it; it is killed
 * when it has done it. Then the daemon goes on, other calls reach it, and the truth is looked at. A relay (relay.h) tells when
 * a request is on its way, and keeps answers. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/packet.h"
#include "tests/crash/relay.h"

static struct daemon d;
static struct relay_board board;
static char relay_path[120];
static arena_t *a;

enum { PATIENCE_MS = 250 };

static void open_at(const char *path, int timeout_ms)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = timeout_ms;
    while (arena_open(&a, path, &options) != 0) /* on a busy machine it may not have answered by then */
        ;
}

/* Until it is not refused for the daemon's silence. */
#define UNTIL_ANSWERED(rc, call)                                                                                         \
    do                                                                                                                   \
        (rc) = (call);                                                                                                   \
    while ((rc) == -ENOTCONN || (rc) == -EINPROGRESS)

static void *alloc_surely(size_t size, unsigned flags)
{
    void *p;
    while (!(p = arena_alloc_flags(a, size, flags)))
        assert_int_equal(errno, ENOTCONN);
    return p;
}

static arena_ref_t root_now(void)
{
    arena_ref_t ref = 0;
    int rc = arena_root_get(a, "r", &ref);
    assert_true(rc == 0 || rc == -ENOENT);
    return ref;
}

/* ---- the requests ----------------------------------------------------------------------------------------------------------- */

static char *object;
static arena_ref_t before, after; /* of the root */
static struct arena_gc_stats stats = {.size = sizeof stats};
static size_t object_size;

static void fill(size_t size)
{
    object_size = size;
    memset(object, 'o', size);
}

static void nothing(void) {}

static void make_shared(void) { object = alloc_surely(100, ARENA_SHARED); }
static void make_root(void)
{
    int rc;
    make_shared();
    UNTIL_ANSWERED(rc, arena_root_set(a, "r", arena_ref(a, object)));
    assert_int_equal(rc, 0);
}
static int set_root(void) { return arena_root_set(a, "r", after = arena_ref(a, object)); }
static int create_root(void) { return arena_root_cas(a, "r", before = 0, after = arena_ref(a, object)); }
static int remove_root(void) { return arena_root_set(a, "r", after = 0); }
static int remove_root_if(void) { return arena_root_cas(a, "r", before = arena_ref(a, object), after = 0); }
static void root_agrees(int rc)
{
    int gone = 0;
    assert_true(root_now() == (rc == 0 ? after : before));
    if (root_now())
        UNTIL_ANSWERED(gone, arena_root_set(a, "r", 0));
    assert_int_equal(gone, 0);
    arena_free(a, object);
}

static void begin(void)
{
    int rc;
    UNTIL_ANSWERED(rc, arena_tx_begin(a));
    assert_int_equal(rc, 0);
    object = alloc_surely(100, 0);
}
static int commit_root(void) { return arena_tx_commit(a, "r", before = 0, after = arena_ref(a, object)); }
static int commit(void) { return arena_tx_commit(a, NULL, 0, 0); }
static void commit_agrees(int rc)
{
    if (rc < 0) {
        assert_int_equal(arena_claim(a, object), -EBUSY);
        assert_int_equal(arena_tx_abort(a), 0); /* nothing is in doubt */
    } else {
        assert_int_equal(arena_tx_abort(a), -EINVAL);
        assert_int_equal(arena_claim(a, object), 0);
        arena_publish(a, object);
    }
}
static void commit_root_agrees(int rc)
{
    assert_true(root_now() == (rc == 0 ? after : before));
    commit_agrees(rc);
    if (rc < 0)
        return;
    UNTIL_ANSWERED(rc, arena_root_set(a, "r", 0));
    assert_int_equal(rc, 0);
    arena_free(a, object);
}
static void committed_is_freed(int rc)
{
    commit_agrees(rc);
    if (rc == 0)
        arena_free(a, object);
}

static void make_small(void)
{
    object = alloc_surely(1 << 20, 0);
    fill(1 << 20);
}
static void make_large(void)
{
    object = alloc_surely(4 << 20, 0);
    fill(1 << 20); /* what is kept */
}
static int resize(size_t size)
{
    char *moved = arena_realloc(a, object, size);
    if (!moved)
        return -errno;
    object = moved;
    return 0;
}
static int extend(void) { return resize(2 << 20); }
static int cut(void) { return resize(1 << 20); }
/* What it says to be the object's is nobody else's. */
static void object_is_its_own(int rc)
{
    enum { OTHERS = 40 };
    char *others[OTHERS];
    (void)rc;
    size_t usable = arena_usable_size(a, object);
    assert_true(usable >= object_size);
    memset(object + object_size, 'u', usable - object_size);
    for (int i = 0; i < OTHERS; i++) {
        size_t size = i % 2 ? 100000 : 1 << 20;
        others[i] = alloc_surely(size, 0);
        assert_true(others[i] + size <= object || others[i] >= object + usable);
        memset(others[i], 'a' + i % 10, size);
    }
    for (size_t i = 0; i < usable; i++)
        assert_int_equal(object[i], i < object_size ? 'o' : 'u');
    for (int i = 0; i < OTHERS; i++) {
        for (size_t k = 0; k < (i % 2 ? 100000 : 1 << 20); k += 4096)
            assert_int_equal(others[i][k], 'a' + i % 10);
        arena_free(a, others[i]);
    }
    arena_free(a, object);
}

static int enter(void) { return arena_safepoint(a, ARENA_SAFEPOINT); }
static void collection_agrees(int rc)
{
    char out[400];
    int left;
    assert_int_equal(arenactl(&d, out, sizeof out, "gc --dry-run"), rc == 0 ? 0 : 1);
    UNTIL_ANSWERED(left, arena_safepoint(a, ARENA_RUNS));
    assert_int_equal(left, 0);
}

static void make_room_for_pins(void)
{
    make_shared();
    arena_free(a, alloc_surely(8192, 0)); /* a table needs no refill */
}
static int pin(void) { return arena_pin(a, object); }
static void pin_agrees(int rc)
{
    assert_int_equal(arena_unpin(a, object), rc == 0 ? 0 : -EINVAL);
    UNTIL_ANSWERED(rc, arena_pin(a, object)); /* a table that was told of and not answered is used again */
    assert_int_equal(rc, 0);
    assert_int_equal(arena_unpin(a, object), 0);
    arena_free(a, object);
}

static int refill(void)
{
    object = arena_alloc(a, 3000);
    return object ? 0 : -errno;
}
static int large(void)
{
    object = arena_alloc(a, 300000);
    return object ? 0 : -errno;
}
static void memory_is_there(int rc)
{
    if (rc < 0)
        object = alloc_surely(3000, 0);
    arena_free(a, object);
}

static int take_tags(void) { return arena_tx_begin(a); }
static void tags_are_there(int rc)
{
    if (rc < 0)
        UNTIL_ANSWERED(rc, arena_tx_begin(a));
    assert_int_equal(rc, 0);
    assert_int_equal(arena_tx_abort(a), 0);
    assert_int_equal(stat_of(&d, "transactions"), 16); /* as many as one request brings: what was lost is free again */
}

static void lose_an_object(void)
{
    int rc;
    make_shared();
    UNTIL_ANSWERED(rc, arena_safepoint(a, ARENA_SAFEPOINT));
    assert_int_equal(rc, 0);
}
static int collect(void) { return arena_gc(a, 0, &stats); }
static void collected_agrees(int rc)
{
    int left;
    UNTIL_ANSWERED(left, arena_safepoint(a, ARENA_RUNS));
    assert_int_equal(left, 0);
    assert_int_equal(stat_of(&d, "objects_shared"), rc != 0);
    if (rc != 0)
        arena_free(a, object);
}

static int ask_figures(void)
{
    struct arena_stats figures = {.size = sizeof figures};
    return arena_stats(a, &figures);
}
static void nothing_is_to_agree(int rc) { (void)rc; }

static const struct request {
    const char *name;
    uint32_t type;
    void (*prepare)(void);
    int (*make)(void);      /* 0, or a negative errno */
    void (*agrees)(int rc); /* with what is true, after the daemon has gone on; and all is freed */
    bool always; /* it succeeds also where the request is not done */
} requests[] = {
    {"a root is set", MSG_ROOT, make_shared, set_root, root_agrees, false},
    {"a root is created", MSG_ROOT, make_shared, create_root, root_agrees, false},
    {"a root is removed", MSG_ROOT, make_root, remove_root, root_agrees, false},
    {"a root is removed by compare and set", MSG_ROOT, make_root, remove_root_if, root_agrees, false},
    {"a commit with a root", MSG_TX_COMMIT, begin, commit_root, commit_root_agrees, false},
    {"a commit without", MSG_TX_COMMIT, begin, commit, committed_is_freed, false},
    {"an extension", MSG_EXTEND, make_small, extend, object_is_its_own, false},
    {"a cut", MSG_EXTEND, make_large, cut, object_is_its_own, true},
    {"a safepoint", MSG_SAFEPOINT, nothing, enter, collection_agrees, false},
    {"the first pin", MSG_PINS, make_room_for_pins, pin, pin_agrees, false},
    {"a refill", MSG_LEASE, nothing, refill, memory_is_there, false},
    {"a large object", MSG_LARGE, nothing, large, memory_is_there, false},
    {"tags for transactions", MSG_TX_TAGS, nothing, take_tags, tags_are_there, false},
    {"a collection", MSG_GC, lose_an_object, collect, collected_agrees, false},
    {"figures", MSG_INFO, nothing, ask_figures, nothing_is_to_agree, false},
};
enum { REQUESTS = sizeof requests / sizeof requests[0] };

/* ---- the faults ----------------------------------------------------------------------------------------------------------------- */

static pid_t serving;

static void prepare(const struct request *r, const char *path, int timeout_ms)
{
    memset(&board, 0, sizeof board);
    relay_lose(0, RELAY_PASS);
    object = NULL;
    before = after = 0;
    open_at(path, timeout_ms);
    r->prepare();
    before = root_now();
    serving = daemon_serving(&d);
}

/* What was said is true now, when other calls have reached the daemon, and at the end nothing is left. */
static void look_at_the_truth(const struct request *r, int rc)
{
    int settled;
    UNTIL_ANSWERED(settled, ask_figures());
    assert_int_equal(settled, 0);
    r->agrees(rc);
    arena_close(a);
    a = NULL;
    stat_await(&d, "clients", 0);
    stat_await(&d, "spans_leased", 0);
    stat_await(&d, "transactions", 0);
    stat_await(&d, "objects_used", 0);
    stat_await(&d, "objects_cached", 0);
    assert_int_equal(check_of(&d), 0);
}

static void what_the_daemon_had_not_read_is_not_done(void **state)
{
    (void)state;
    for (int i = 0; i < REQUESTS; i++) {
        const struct request *r = &requests[i];
        prepare(r, d.socket, PATIENCE_MS);
        kill(serving, SIGSTOP);
        int rc = r->make();
        kill(serving, SIGCONT);
        if (rc != (r->always ? 0 : -ENOTCONN))
            fail_msg("%s: the daemon stood still, and the answer is %d", r->name, rc);
        look_at_the_truth(r, rc);
    }
}

/* The library's connection, found as a debugger would: this process's only one to the daemon. */
static int find_connection(void)
{
    for (int fd = 3; fd < 1024; fd++) {
        struct sockaddr_un peer = {0};
        socklen_t length = sizeof peer - 1;
        if (getpeername(fd, (struct sockaddr *)&peer, &length) == 0 && strcmp(peer.sun_path, d.socket) == 0)
            return fd;
    }
    fail_msg("there is no connection");
    return -1;
}

/* The daemon stands still. */
static void fill_socket(void)
{
    const struct msg m = MSG(ping); /* without a reply, and changes nothing */
    uint8_t packet[64];
    int bytes = msg_encode(&m, packet, sizeof packet);
    while (packet_send(find_connection(), packet, (size_t)bytes, NULL, 0, MSG_DONTWAIT) == 0)
        ;
}

static void what_the_socket_did_not_take_is_not_done(void **state)
{
    (void)state;
    for (int i = 0; i < REQUESTS; i++) {
        const struct request *r = &requests[i];
        if (r->type == MSG_GC) /* by a connection of its own */
            continue;
        prepare(r, d.socket, PATIENCE_MS);
        kill(serving, SIGSTOP);
        fill_socket();
        int rc = r->make();
        kill(serving, SIGCONT);
        if (rc != (r->always ? 0 : -ENOTCONN))
            fail_msg("%s: the socket was full, and the answer is %d", r->name, rc);
        look_at_the_truth(r, rc);
    }
}

static void what_is_done_and_not_answered_is_told_by_the_map(void **state)
{
    unsigned told = 0;
    (void)state;
    for (int i = 0; i < REQUESTS; i++) {
        const struct request *r = &requests[i];
        if (r->type == MSG_GC) /* done, it is not to be told from the next one */
            continue;
        prepare(r, relay_path, PATIENCE_MS);
        relay_lose(r->type, RELAY_SILENT);
        int rc = r->make();
        if (rc != 0 && rc != -ENOTCONN) /* the latter where the machine is slow, and where there is no ticket */
            fail_msg("%s: the answer was lost, and it is %d", r->name, rc);
        told += rc == 0;
        look_at_the_truth(r, rc);
    }
    assert_true(told > 0);
}

static void restart(void)
{
    kill(serving, SIGKILL);
    while (daemon_serving(&d) == serving || daemon_serving(&d) == d.pid)
        pause_us(1000);
}

static void *kill_when_passed(void *unused)
{
    (void)unused;
    while (!atomic_load(&board.passed))
        pause_us(1000);
    restart();
    return NULL;
}

static void *kill_when_answered(void *unused)
{
    (void)unused;
    while (!atomic_load(&board.answered))
        pause_us(1000);
    restart();
    atomic_store(&board.cut, 1);
    return NULL;
}

static void meets_a_kill(bool answered)
{
    for (int i = 0; i < REQUESTS; i++) {
        const struct request *r = &requests[i];
        pthread_t killer;
        if (r->type == MSG_GC) /* it is not said again */
            continue;
        prepare(r, relay_path, -1);
        relay_lose(r->type, answered ? RELAY_CUT : RELAY_PASS);
        if (!answered)
            kill(serving, SIGSTOP);
        assert_int_equal(pthread_create(&killer, NULL, answered ? kill_when_answered : kill_when_passed, NULL), 0);
        int rc = r->make();
        pthread_join(killer, NULL);
        if (rc != 0)
            fail_msg("%s: the daemon was killed and came back, and the answer is %d", r->name, rc);
        look_at_the_truth(r, rc);
    }
}

static void what_a_killed_daemon_had_not_read_is_said_again(void **state)
{
    (void)state;
    meets_a_kill(false);
}

static void what_a_killed_daemon_had_done_is_done_once(void **state)
{
    (void)state;
    meets_a_kill(true);
}

/* A close that nobody answers is meant all the same. */
static void a_goodbye_that_was_given_up_is_said_when_the_daemon_goes_on(void **state)
{
    (void)state;
    prepare(&requests[0], d.socket, PATIENCE_MS);
    kill(serving, SIGSTOP);
    assert_int_equal(arena_close(a), 0);
    a = NULL;
    kill(serving, SIGCONT);
    stat_await(&d, "clients", 0);
    stat_await(&d, "spans_leased", 0);
    assert_int_equal(check_of(&d), 0);
}

/* The same where there is no room for it, and the daemon goes on or is killed. */
static void a_goodbye_that_the_socket_did_not_take_is_meant(void **state)
{
    (void)state;
    for (int killed = 0; killed < 2; killed++) {
        prepare(&requests[0], d.socket, PATIENCE_MS);
        kill(serving, SIGSTOP);
        fill_socket();
        assert_int_equal(arena_close(a), 0);
        a = NULL;
        if (killed)
            restart();
        kill(serving, SIGCONT);
        stat_await(&d, "clients", 0);
        stat_await(&d, "spans_leased", 0);
        stat_await(&d, "objects_owned", 0);
        assert_int_equal(check_of(&d), 0);
    }
}

/* An open that nobody answers leaves no client behind, though this process lives on. */
static void an_open_that_was_given_up_makes_no_client(void **state)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    (void)state;
    options.timeout_ms = PATIENCE_MS;
    serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    assert_int_equal(arena_open(&a, d.socket, &options), -ENOTCONN);
    kill(serving, SIGCONT);
    stat_await(&d, "clients", 0);
    assert_int_equal(check_of(&d), 0);
}

static int setup(void **state)
{
    int rc = daemon_setup(state, &d, "256M", NULL);
    relay_start(&d, &board, relay_path, sizeof relay_path);
    return rc;
}

/* One that a failure has left standing still would never end. */
static int go_on(void **state)
{
    (void)state;
    if (serving)
        kill(serving, SIGCONT);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(what_the_daemon_had_not_read_is_not_done, go_on),
        cmocka_unit_test_teardown(what_the_socket_did_not_take_is_not_done, go_on),
        cmocka_unit_test_teardown(what_is_done_and_not_answered_is_told_by_the_map, go_on),
        cmocka_unit_test_teardown(what_a_killed_daemon_had_not_read_is_said_again, go_on),
        cmocka_unit_test_teardown(what_a_killed_daemon_had_done_is_done_once, go_on),
        cmocka_unit_test_teardown(a_goodbye_that_was_given_up_is_said_when_the_daemon_goes_on, go_on),
        cmocka_unit_test_teardown(a_goodbye_that_the_socket_did_not_take_is_meant, go_on),
        cmocka_unit_test_teardown(an_open_that_was_given_up_makes_no_client, go_on),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
