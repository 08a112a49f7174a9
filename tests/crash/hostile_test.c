/* Goal: whatever a client sends and writes, the daemon neither crashes nor stalls nor leases a span twice, and the others'
 * data are what they were. Method: raw clients that speak the protocol themselves, while bystanders allocate, free and
 * compare what they wrote. What a turn of the loop may do is asserted by the daemon itself (turn_end() in daemon/core/core.c):
 * a crash would be seen here as another process that serves. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "proto/msg.h"
#include "proto/packet.h"
#include "shm/layout.h"
#include "shm/span.h"
#include "shm/state.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static uint64_t seed;
static pid_t serving;

struct board {
    _Atomic uint64_t steps, stop;
};
static struct board *board;

/* ---- bystanders -------------------------------------------------------------------------------------------------------------- */

/* Fills objects with a pattern of its own, and finds it there whenever it looks. */
static int bystander(void *argument)
{
    enum { SLOTS = 100 };
    uint64_t s = seed + 1 + (uint64_t)(uintptr_t)argument;
    struct {
        uint64_t *p, size, pattern;
    } slots[SLOTS] = {{NULL, 0, 0}};
    arena_t *a = open_heap(&d);
    while (!atomic_load(&board->stop)) {
        size_t i = rnd(&s) % SLOTS;
        if (slots[i].p) {
            for (uint64_t k = 0; k < slots[i].size / 8; k++)
                if (slots[i].p[k] != slots[i].pattern)
                    return 2;
            arena_free(a, slots[i].p);
        }
        slots[i].size = 8 + rnd(&s) % (rnd(&s) % 50 ? 2000 : 100000) / 8 * 8;
        slots[i].pattern = rnd(&s);
        if (!(slots[i].p = arena_alloc(a, slots[i].size)))
            return 3;
        for (uint64_t k = 0; k < slots[i].size / 8; k++)
            slots[i].p[k] = slots[i].pattern;
        if (rnd(&s) % 500 == 0)
            arena_trim(a);
        atomic_fetch_add(&board->steps, 1);
    }
    return arena_close(a) == 0 ? 0 : 4;
}

static pid_t others[2];

static void start(const char *max, const char *key, const char *value, bool with_others)
{
    daemon_start(&d, max, key, value, NULL);
    serving = daemon_serving(&d);
    memset(board, 0, sizeof *board);
    for (int i = 0; i < 2; i++)
        others[i] = with_others ? spawn(bystander, (void *)(intptr_t)i) : 0;
}

/* The others get on: they make `more` steps. */
static void await_steps(uint64_t more)
{
    uint64_t until = atomic_load(&board->steps) + more;
    while (atomic_load(&board->steps) < until)
        for (int i = 0; i < 2; i++) {
            siginfo_t info = {.si_pid = 0};
            if (waitid(P_PID, (id_t)others[i], &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid)
                fail_msg("bystander %d has ended", i);
        }
}

static void others_are_well(void)
{
    await_steps(200);
    atomic_store(&board->stop, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(reap(others[i]), 0);
}

static void daemon_is_the_same(void) { assert_int_equal(daemon_serving(&d), serving); }

/* ---- packets ------------------------------------------------------------------------------------------------------------------------ */

/* A message of a client with fields at random, most of them plausible. */
static struct msg random_message(uint32_t type, uint64_t *s)
{
    static uint32_t list[MSG_LIST_MAX];
    static char name[MSG_NAME_MAX + 1];
    uint32_t count = (uint32_t)rnd(s) % 8 ? (uint32_t)rnd(s) % 20 : (uint32_t)rnd(s) % MSG_LIST_MAX;
    for (uint32_t i = 0; i < count; i++)
        list[i] = (uint32_t)rnd(s) % (rnd(s) % 8 ? 9000 : UINT32_MAX);
    snprintf(name, sizeof name, "%.*s", (int)(rnd(s) % 60), "abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyzabcdefghijklmnop");
    const struct raw_values v = {
        .epoch = rnd(s) % 3 ? 1 : (uint32_t)rnd(s),
        .version_min = PROTO_VERSION,
        .version = PROTO_VERSION,
        .layout = LAYOUT_VERSION,
        .flags = (uint32_t)rnd(s) % 5,
        .tag = (uint32_t)rnd(s) % (rnd(s) % 2 ? 32 : 32768),
        .span_class = 2 + (uint32_t)rnd(s) % (rnd(s) % 2 ? 130 : 254),
        .pages = 1 + (uint32_t)rnd(s) % (rnd(s) % 4 ? 64 : 16777215),
        .align = 1u << rnd(s) % 9,
        .first = (uint32_t)rnd(s) % 9000,
        .count = 1 + (uint32_t)rnd(s) % MSG_TAGS_MAX,
        .list = list,
        .list_count = count,
        .name = name,
        .mode = (uint32_t)rnd(s) % 8,
        .expected = rnd(s) % 2 ? 0 : rnd(s),
        .desired = rnd(s) % 3 ? rnd(s) % (64 << 20) : rnd(s),
        .what = (uint32_t)rnd(s) % 32,
        .cursor = rnd(s) % 2 ? 0 : rnd(s),
        .gc_mode = rnd(s) % 4,
        .table = rnd(s) % 4,
        .serial = rnd(s) % 4,
    };
    return raw_message(type, &v);
}

static void send_some(int fd, uint64_t *s)
{
    static const uint32_t types[] = {MSG_HELLO, MSG_RESUME, MSG_LEASE, MSG_LEASE, MSG_LARGE, MSG_RELEASE, MSG_EXTEND, MSG_TX_TAGS,
                                    MSG_TX_COMMIT, MSG_ROOT, MSG_ROOT, MSG_INFO, MSG_TRIM, MSG_PING, MSG_SAFEPOINT, MSG_PINS,
                                     MSG_TRIMMED, MSG_BYE, MSG_WELCOME};
    uint8_t junk[256];
    if (rnd(s) % 4 == 0) {
        for (size_t i = 0; i < sizeof junk; i++)
            junk[i] = (uint8_t)rnd(s);
        packet_send(fd, junk, 1 + rnd(s) % sizeof junk, NULL, 0, MSG_DONTWAIT);
        return;
    }
    struct msg message = random_message(types[rnd(s) % (sizeof types / sizeof types[0])], s);
    message.id = (uint32_t)rnd(s) % 4;
    int bytes = msg_encode(&message, packet, sizeof packet);
    if (bytes <= 0)
        return;
    if (rnd(s) % 4 == 0)
        for (int n = 0; n < 3; n++)
            packet[rnd(s) % (size_t)bytes] = (uint8_t)rnd(s);
    packet_send(fd, packet, (size_t)bytes, &fd, rnd(s) % 16 == 0, MSG_DONTWAIT);
}

static void garbage_packets_hurt_nobody_else(void **state)
{
    (void)state;
    uint64_t s = seed;
    start("64M", "--trim-timeout", "10", true);
    for (int i = 0; i < 300; i++) {
        struct raw r = {.fd = raw_connect(d.socket)};
        if (i % 3) {
            raw_send(r.fd, 1, call_hello(0, 0));
        }
        for (uint64_t n = rnd(&s) % 30; n; n--) {
            send_some(r.fd, &s);
            ssize_t got = packet_receive(r.fd, packet, sizeof packet, r.fds, 4, &r.fd_count, MSG_DONTWAIT);
            for (int k = 0; got > 0 && k < r.fd_count; k++)
                close(r.fds[k]);
            if (got == 0)
                break;
        }
        close(r.fd);
    }
    others_are_well();
    daemon_is_the_same();
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
}

/* ---- words, hints, magazines ---------------------------------------------------------------------------------------------------------- */

static int flipper(void *argument)
{
    bool everything = argument != NULL;
    uint64_t s = seed ^ 0x5555;
    struct raw r;
    raw_open(&r, d.socket);
    for (int round = 0; round < 40; round++) {
        raw_send(r.fd, 5, MSG(lease, .epoch = r.epoch, .span_class = 2 + (uint32_t)rnd(&s) % 100, .pages = 8));
        if (raw_receive(&r) != MSG_GRANT)
            continue;
        for (uint32_t i = 0; i < m.grant.list_count; i++) {
            struct span_info span;
            if (!span_at(&r.h, m.grant.list[i], &span))
                return 1; /* leased, and not in the map */
            for (uint32_t k = 0; k < span.objects; k++) /* what is FREE is its own to take; the rest are others' objects */
                if (everything || load_relaxed(&span.words[k]) == WORD_FREE)
                    span.words[k] = (uint16_t)rnd(&s);
        }
        for (int n = 0; n < 3000; n++)
            r.h.hints[rnd(&s) % r.g.page_count] = (uint8_t)rnd(&s);
        for (int n = 0; everything && n < 3000; n++)
            ((uint8_t *)r.h.words)[rnd(&s) % (r.g.unit_count * UNIT_BYTES / 64)] ^= (uint8_t)(1u << rnd(&s) % 8);
        if (rnd(&s) % 2) /* given back as they are now */
            raw_send(r.fd, 0, MSG(release, .epoch = r.epoch, .list = m.grant.list, .list_count = m.grant.list_count));
    }
    return 0;
}

static void flips_in_what_is_leased_leave_the_others_intact(void **state)
{
    (void)state;
    start("256M", "--trim-timeout", "10", true);
    for (int i = 0; i < 5; i++)
        assert_int_equal(reap(spawn(flipper, NULL)), 0);
    others_are_well();
    daemon_is_the_same();
    stat_of(&d, "objects_used");
    daemon_clean(&d);
}

static int reckless(void *argument) /* works in a heap whose words are being overwritten: anything may fail, by return */
{
    uint64_t s = seed + (uint64_t)(uintptr_t)argument;
    void *slots[100] = {NULL};
    arena_t *a = open_heap(&d);
    signal(SIGABRT, SIG_DFL);
    while (!atomic_load(&board->stop)) {
        size_t i = rnd(&s) % 100;
        arena_free(a, slots[i]);
        slots[i] = arena_alloc(a, rnd(&s) % 3000);
        atomic_fetch_add(&board->steps, 1);
    }
    return 0;
}

static void ignore_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)error, (void)p, (void)message;
}

static int reckless_with_handler(void *argument)
{
    arena_t *a = open_heap(&d);
    arena_on_error(a, ignore_error, NULL);
    return reckless(argument);
}

static void flips_anywhere_do_not_stop_the_daemon(void **state)
{
    (void)state;
    start("64M", "--trim-timeout", "10", false);
    pid_t pids[2] = {spawn(reckless_with_handler, (void *)1), spawn(reckless_with_handler, (void *)2)};
    for (int i = 0; i < 5; i++)
        assert_int_equal(reap(spawn(flipper, (void *)1)), 0);
    atomic_store(&board->stop, 1);
    for (int i = 0; i < 2; i++)
        assert_int_equal(reap(pids[i]), 0);
    stat_await(&d, "clients", 0);
    daemon_is_the_same();
    int fault = run((char *)packet, sizeof packet, "%s/arenactl --socket %s check", getenv("ARENA_BUILD") ? getenv("ARENA_BUILD") : "build",
                    d.socket); /* it may say what is broken; it must answer */
    assert_true(fault == 0 || fault == 1);
    arena_t *a = open_heap(&d);
    assert_non_null(arena_alloc(a, 100));
    arena_close(a);
    daemon_clean(&d);
}

/* ---- leases ------------------------------------------------------------------------------------------------------------------------------ */

enum { PAGES = 8192 };

/* Two clients that lease, give back what is theirs and what is not, lie when they resume: no span is both's at a time. */
static void no_span_is_leased_to_two_live_clients(void **state)
{
    (void)state;
    static uint8_t holds[2][PAGES];
    static uint32_t grant[MSG_LIST_MAX];
    uint64_t s = seed;
    struct raw r[2];
    int go[2], ready[2];
    (void)go, (void)ready;
    start("64M", "--trim-timeout", "1", false);
    memset(holds, 0, sizeof holds);
    for (int i = 0; i < 2; i++)
        raw_open(&r[i], d.socket);
    for (int round = 0; round < 3000; round++) {
        int me = (int)(rnd(&s) % 2);
        struct raw *c = &r[me];
        if (rnd(&s) % 5 < 3) { /* something more */
            bool large = rnd(&s) % 4 == 0;
            const struct raw_values v = {.epoch = c->epoch, .align = 1, .pages = 1 + (uint32_t)rnd(&s) % 40,
                                         .span_class = large ? CLASS_LARGE : 2 + (uint32_t)rnd(&s) % 60};
            assert_int_equal(raw_send(c->fd, 7, raw_message(large ? MSG_LARGE : MSG_LEASE, &v)), 0);
            uint32_t type = raw_receive(c);
            assert_true(type == MSG_GRANT || (type == MSG_ERROR && (m.error.error == ENOMEM || m.error.error == EINVAL)));
            for (uint32_t i = 0; type == MSG_GRANT && i < m.grant.list_count; i++) {
                assert_true(m.grant.list[i] < PAGES);
                assert_int_equal(holds[!me][m.grant.list[i]], 0);
                assert_int_equal(holds[me][m.grant.list[i]], 0);
                assert_int_equal(load_acquire(&c->h.spans[m.grant.list[i]].lessee), c->tag);
                holds[me][m.grant.list[i]] = 1;
            }
        } else if (rnd(&s) % 4) { /* give back a few of its own */
            uint32_t count = 0, most = 1 + (uint32_t)rnd(&s) % 8;
            for (uint32_t page = (uint32_t)rnd(&s) % PAGES, n = 0; n < PAGES && count < most; n++, page = (page + 1) % PAGES)
                if (holds[me][page]) {
                    holds[me][page] = 0;
                    grant[count++] = page;
                }
            assert_int_equal(raw_send(c->fd, 0, MSG(release, .epoch = c->epoch, .list = grant, .list_count = count)), 0);
        } else { /* or one of the other's; it is cut off for that, comes back and claims to hold everything */
            uint32_t page = (uint32_t)rnd(&s) % PAGES;
            if (holds[me][page])
                continue;
            raw_send(c->fd, 0, MSG(release, .epoch = c->epoch, .list = &page, .list_count = 1));
            while (raw_receive(c))
                ;
            close(c->fd);
            c->fd = raw_connect(d.socket);
            assert_int_equal(raw_send(c->fd, 1, raw_hello_again(0, c->h.header->heap_id, c->tag)), 0);
            assert_int_equal(raw_receive(c), MSG_WELCOME);
            bool lie = rnd(&s) % 2;
            for (uint32_t from = 0; from < PAGES; from += MSG_LIST_MAX) {
                uint32_t count = 0;
                for (page = from; page < from + MSG_LIST_MAX; page++)
                    if (lie || holds[me][page])
                        grant[count++] = page;
                assert_int_equal(raw_send(c->fd, 2, MSG(resume, .flags = from + MSG_LIST_MAX == PAGES ? RESUME_LAST : 0,
                                                        .list = grant, .list_count = count)), 0);
                assert_int_equal(raw_receive(c), MSG_OK);
            }
        }
    }
    daemon_is_the_same();
    assert_int_equal(check_of(&d), 0);
    for (int i = 0; i < 2; i++)
        raw_close(&r[i]);
    daemon_clean(&d);
}

/* ---- resources ---------------------------------------------------------------------------------------------------------------------------- */

static void who_never_reads_is_not_read_from(void **state)
{
    (void)state;
    struct raw r;
    uint64_t sent = 0;
    start("64M", "--trim-timeout", "10", true);
    raw_open(&r, d.socket);
    struct msg message = MSG(info, .what = INFO_CLIENTS);
    message.id = 3;
    int bytes = msg_encode(&message, packet, sizeof packet), rc, refused = 0;
    while (refused < 200) { /* until the socket has been full for long: what was taken from it meanwhile is little */
        rc = packet_send(r.fd, packet, (size_t)bytes, NULL, 0, MSG_DONTWAIT);
        assert_true(rc == 0 || rc == -EAGAIN);
        if (rc == 0)
            sent++;
        else {
            refused++;
            await_steps(20);
        }
        assert_true(sent < 100000);
    }
    stat_of(&d, "clients"); /* others are answered */
    others_are_well();
    daemon_is_the_same();
    raw_close(&r);
    daemon_clean(&d);
}

static void who_says_nothing_is_cut_off(void **state)
{
    (void)state;
    struct raw r;
    start("16M", "--hello-timeout", "100", false);
    r.fd = raw_connect(d.socket);
    assert_int_equal(raw_receive(&r), 0); /* it waits until the daemon hangs up */
    close(r.fd);
    daemon_clean(&d);
}

static void a_daemon_without_descriptors_says_so_and_serves_the_rest(void **state)
{
    (void)state;
    struct raw r;
    int fds[200], count = 0;
    char out[64];
    bool told = false;
    struct rlimit limit = {60, 60};
    start("64M", "--hello-timeout", "100000000", true);
    await_steps(100);
    assert_int_equal(prlimit(serving, RLIMIT_NOFILE, &limit, NULL), 0);
    for (; count < 200 && !told; count++) {
        r.fd = fds[count] = raw_connect(d.socket);
        ssize_t got = 1;
        raw_send(r.fd, 1, call_hello(HELLO_MONITOR, 0));
        got = raw_receive(&r);
        told = got == MSG_ERROR && m.error.error == EMFILE;
        assert_true(told || got == MSG_OK);
    }
    assert_true(told);
    assert_int_equal(run(out, sizeof out, "grep -c 'event=refuse .*no file descriptor left' %s", d.log), 0);
    await_steps(500);
    int left = daemon_fd_count(&d) - (count - 1); /* the last one was refused */
    while (count > 0)
        close(fds[--count]);
    while (daemon_fd_count(&d) > left) /* until it has seen that they are gone, it takes no other */
        assert_int_equal(daemon_serving(&d), serving);
    stat_await(&d, "clients", 2);
    others_are_well();
    daemon_is_the_same();
    daemon_clean(&d);
}

static int takes_it_all(void *argument)
{
    int *fd = argument;
    struct raw r;
    uint64_t got = 0;
    raw_open(&r, d.socket);
    for (unsigned c = 4; c < 60;) {
        raw_send(r.fd, 5, MSG(lease, .epoch = r.epoch, .span_class = c, .pages = 1024));
        if (raw_receive(&r) == MSG_GRANT)
            got += m.grant.list_count;
        else
            c += 2;
    }
    if (got == 0 || write(fd[1], "x", 1) != 1)
        return 1;
    pause();
    return 0;
}

static void a_client_that_takes_all_memory_gives_it_back_by_its_death(void **state)
{
    (void)state;
    int fd[2];
    char byte;
    start("16M", "--trim-timeout", "1", false);
    arena_t *a = open_heap(&d);
    void *p = arena_alloc(a, 100);
    assert_non_null(p);
    assert_int_equal(pipe(fd), 0);
    pid_t pid = spawn(takes_it_all, fd);
    assert_int_equal(read(fd[0], &byte, 1), 1);
    errno = 0;
    assert_null(arena_alloc(a, 20000));
    assert_int_equal(errno, ENOMEM);
    arena_free(a, p);
    kill(pid, SIGKILL);
    reap(pid);
    while (!(p = arena_alloc(a, 20000))) /* until its death is noticed */
        assert_int_equal(errno, ENOMEM);
    arena_close(a);
    stat_await(&d, "spans", 0);
    assert_int_equal(check_of(&d), 0);
    daemon_clean(&d);
}

static int forks_and_dies(void *argument)
{
    int *fd = argument;
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 500; i++)
        arena_alloc(a, 100);
    if (fork() == 0) { /* has the connection, the mapping, and never calls anything; ends when the test does */
        char byte;
        close(fd[1]);
        if (write(fd[3], "x", 1) == 1 && read(fd[0], &byte, 1) == 0)
            _exit(0);
    }
    char byte;
    return read(fd[2], &byte, 1) == 1 ? 0 : 1;
}

static void a_child_that_holds_the_connection_does_not_hide_a_death(void **state)
{
    (void)state;
    int fd[4];
    start("16M", "--trim-timeout", "1", false);
    assert_int_equal(pipe(fd), 0);
    assert_int_equal(pipe(fd + 2), 0);
    pid_t pid = spawn(forks_and_dies, fd);
    assert_int_equal(reap(pid), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_used", 0);
    stat_await(&d, "spans", 0);
    close(fd[1]);
    daemon_clean(&d);
}

/* ---- files ------------------------------------------------------------------------------------------------------------------------------------ */

static void files_that_a_client_cuts_off_are_made_whole(void **state)
{
    (void)state;
    char dir[] = "/tmp/arena-hostile-XXXXXX", path[64], out[512];
    struct stat st;
    struct raw r;
    assert_non_null(mkdtemp(dir));
    start("16M", "--backing", dir, false);
    raw_open(&r, d.socket);
    for (int round = 0; round < 6; round++) {
        raw_send(r.fd, 5, MSG(lease, .epoch = r.epoch, .span_class = 10 + 2 * (uint32_t)round, .pages = 16));
        assert_int_equal(raw_receive(&r), MSG_GRANT);
        for (int i = 0; i < 3; i++) {
            if (fstat(r.fds[i], &st) < 0 || i == 1 || st.st_size == 0)
                continue;
            if (round % 2)
                assert_int_equal(fallocate(r.fds[i], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, st.st_size), 0);
            else
                assert_int_equal(ftruncate(r.fds[i], round ? 5000 : 0), 0);
        }
        assert_int_not_equal(ftruncate(r.fds[1], 0), 0); /* the map it may only read */
        /* all that it has, as it is now */
        raw_send(r.fd, 0, MSG(release, .epoch = r.epoch, .list = m.grant.list, .list_count = m.grant.list_count));
        stat_of(&d, "spans");
        for (int i = 0; i < 3; i += 2)
            do /* by a tick of the daemon's */
                assert_int_equal(fstat(r.fds[i], &st), 0);
            while ((uint64_t)st.st_size < (i ? r.g.state_bytes : r.g.heap_bytes));
    }
    daemon_is_the_same();
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s check", getenv("ARENA_BUILD") ? getenv("ARENA_BUILD") : "build",
                         d.socket), 1);
    assert_non_null(strstr(out, "cut off"));
    raw_close(&r);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 1000; i++) {
        char *p = arena_alloc(a, 3000);
        assert_non_null(p);
        memset(p, 1, 3000);
    }
    arena_close(a);
    daemon_clean(&d);
    snprintf(path, sizeof path, "rm -rf %s", dir);
    assert_int_equal(system(path), 0);
}

static int setup(void **state)
{
    (void)state;
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    seed = seed_get();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(garbage_packets_hurt_nobody_else),
        cmocka_unit_test(flips_in_what_is_leased_leave_the_others_intact),
        cmocka_unit_test(flips_anywhere_do_not_stop_the_daemon),
        cmocka_unit_test(no_span_is_leased_to_two_live_clients),
        cmocka_unit_test(who_never_reads_is_not_read_from),
        cmocka_unit_test(who_says_nothing_is_cut_off),
        cmocka_unit_test(a_daemon_without_descriptors_says_so_and_serves_the_rest),
        cmocka_unit_test(a_client_that_takes_all_memory_gives_it_back_by_its_death),
        cmocka_unit_test(a_child_that_holds_the_connection_does_not_hide_a_death),
        cmocka_unit_test(files_that_a_client_cuts_off_are_made_whole),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
