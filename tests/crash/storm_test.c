/* Goal: whatever hostile users do, the daemon lives, serves, accounts and keeps its limits, and other users go on.
 * Method: for half a minute, or MINUTES, processes of three users flood with messages of every kind, flip words, leave
 * replies unread, take all that the limits give, and a fourth is refused over and over; they are killed and replaced,
 * and so is the daemon.
 *   1. Flips in what they have leased and found FREE, and in hints: honest clients lose no byte, neither of what they
 *      hold nor of what a root of theirs leads to.
 *   2. Flips anywhere in the state region and in the heap, also where no memory is: what honest clients hold may be
 *      lost (SECURITY.md), but their calls return.
 * The slowest call of the honest ones is printed. As root; otherwise all are one user.
 *
 *     make storm MINUTES=10 [SEED=...] */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "proto/packet.h"
#include "shm/span.h"
#include "shm/state.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

enum { USER = 50000, HONEST = 50003, REFUSED = 50009, HOSTILE = 10, GOOD = 2 };
#define LIMIT_BYTES (32ULL << 20)

static struct daemon d;
static uint64_t seed;
enum { TYPES = MSG_JOB(1, 8) }; /* more than a type is */
struct board {
    _Atomic uint64_t steps[GOOD], slowest_ns[GOOD], roots[GOOD], packets, flips, refused, stop;
    _Atomic uint64_t sent[TYPES]; /* packets by type: every one comes in its turn */
};
static struct board *board;
static bool anywhere;
static uint8_t heap_id[16]; /* as the last WELCOME said */

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void become(uid_t uid)
{
    if (geteuid() == 0 && (setgid(uid) < 0 || setuid(uid) < 0))
        _exit(90);
}

/* ---- the honest ones --------------------------------------------------------------------------------------------- */

static void ignore(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)error, (void)p, (void)message;
}

/* One that went wrong ends its process with a status of its own; beside flips anywhere its calls need only return. */
static void wants(bool well, int status)
{
    if (!well && !anywhere)
        _exit(status);
}

static void timed(int me, uint64_t from)
{
    uint64_t took = now_ns() - from;
    if (took > atomic_load(&board->slowest_ns[me]))
        atomic_store(&board->slowest_ns[me], took);
}

static void write_pattern(uint64_t *p, uint64_t count, uint64_t pattern)
{
    for (uint64_t k = 0; k < count; k++)
        p[k] = pattern;
}

static bool has_pattern(const uint64_t *p, uint64_t count, uint64_t pattern)
{
    for (uint64_t k = 0; k < count; k++)
        if (p[k] != pattern)
            return false;
    return true;
}

/* What the root leads to is as it was left; then it leads to another object, and the old one is free. */
static void turn_root(arena_t *a, int me, uint64_t *pattern, uint64_t *s)
{
    enum { COUNT = 40 };
    char name[16];
    arena_ref_t old = 0;
    snprintf(name, sizeof name, "honest%d", me);
    uint64_t from = now_ns();
    int rc = arena_root_get(a, name, &old);
    timed(me, from);
    wants(rc == (*pattern ? 0 : -ENOENT), 4);
    uint64_t *was = rc == 0 ? arena_ptr(a, old) : NULL, *p = arena_alloc(a, COUNT * 8);
    wants(!was || has_pattern(was, COUNT, *pattern), 5);
    wants(p != NULL, 6);
    if (!p)
        return;
    write_pattern(p, COUNT, *pattern = rnd(s) | 1);
    from = now_ns();
    rc = arena_publish(a, p);
    if (rc == 0)
        rc = arena_root_set(a, name, arena_ref(a, p));
    timed(me, from);
    wants(rc == 0, 7);
    if (was && rc == 0)
        arena_free(a, was);
    atomic_fetch_add(&board->roots[me], 1);
}

static int honest(void *argument)
{
    enum { SLOTS = 200 };
    int me = (int)(intptr_t)argument;
    uint64_t s = seed + 77 + (uint64_t)me, root_pattern = 0;
    struct {
        uint64_t *p, count, pattern;
    } slots[SLOTS] = {{NULL, 0, 0}};
    become(HONEST);
    const struct arena_options options = {.size = sizeof options, .timeout_ms = -1}; /* however busy the machine is */
    arena_t *a = NULL;
    if (arena_open(&a, d.socket, &options) < 0)
        return 1;
    if (anywhere)
        arena_on_error(a, ignore, NULL);
    while (!atomic_load(&board->stop)) {
        size_t i = rnd(&s) % SLOTS;
        wants(!slots[i].p || has_pattern(slots[i].p, slots[i].count, slots[i].pattern), 2);
        slots[i].count = 1 + rnd(&s) % (rnd(&s) % 50 ? 250 : 12500);
        slots[i].pattern = rnd(&s);
        uint64_t from = now_ns();
        arena_free(a, slots[i].p);
        slots[i].p = arena_alloc(a, slots[i].count * 8);
        timed(me, from);
        wants(slots[i].p != NULL, 3);
        if (slots[i].p)
            write_pattern(slots[i].p, slots[i].count, slots[i].pattern);
        from = now_ns();
        if (rnd(&s) % 500 == 0)
            arena_trim(a);
        timed(me, from);
        if (rnd(&s) % 200 == 0)
            turn_root(a, me, &root_pattern, &s);
        atomic_fetch_add(&board->steps[me], 1);
    }
    if (!anywhere)
        arena_close(a);
    return 0;
}

/* ---- the others -------------------------------------------------------------------------------------------------- */

/* As raw_connect(), but a daemon that is away or refuses fails nothing. */
static bool comes(struct raw *r, uint32_t flags, bool maps)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval patience = {.tv_sec = 1};
    const char *why;
    memset(r, 0, sizeof *r);
    r->fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, d.socket, sizeof address.sun_path - 1);
    setsockopt(r->fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(r->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (connect(r->fd, (struct sockaddr *)&address, sizeof address) < 0 || raw_send(r->fd, 1, call_hello(flags, 0)) < 0 ||
        raw_receive(r) != MSG_WELCOME) {
        raw_close_fds(r);
        close(r->fd);
        return false;
    }
    r->tag = m.welcome.tag;
    r->epoch = m.welcome.epoch;
    if (m.welcome.heap_id_bytes == sizeof heap_id)
        memcpy(heap_id, m.welcome.heap_id, sizeof heap_id);
    if (maps) {
        void *map = mmap(NULL, m.welcome.map_bytes, PROT_READ, MAP_SHARED, r->fds[1], 0);
        void *state = mmap(NULL, m.welcome.state_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fds[2], 0);
        void *heap = mmap(NULL, m.welcome.heap_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fds[0], 0);
        if (map == MAP_FAILED || state == MAP_FAILED || heap == MAP_FAILED ||
            heap_check_header(map, m.welcome.map_bytes, m.welcome.state_bytes, &r->g, &why) < 0)
            _exit(91);
        heap_view(&r->h, &r->g, heap, map, state);
    }
    raw_close_fds(r);
    return true;
}

static struct msg any_message(uint32_t type, const struct raw *r, uint64_t *s)
{
    static uint8_t noise[2000];
    static uint32_t list[20];
    static char name[16];
    bool again = rnd(s) % 2;
    uint32_t count = (uint32_t)rnd(s) % 20;
    for (uint32_t i = 0; i < count; i++)
        list[i] = (uint32_t)rnd(s) % 32768;
    for (size_t i = 0; i < sizeof noise; i++)
        noise[i] = (uint8_t)(i * *s >> 20);
    snprintf(name, sizeof name, "n%u", (unsigned)rnd(s) % 5000);
    const struct raw_values v = {
        .version_min = PROTO_VERSION,
        .version = PROTO_VERSION,
        .layout = LAYOUT_VERSION,
        .flags = (uint32_t)rnd(s) % 5,
        .image = (uint32_t)rnd(s) % 3, .copy = (uint32_t)rnd(s) % 3,
        .epoch = rnd(s) % 4 ? r->epoch : (uint32_t)rnd(s),
        .tag = rnd(s) % 2 ? r->tag : (uint32_t)rnd(s) % 32768,
        .heap_id = heap_id,
        .heap_id_bytes = again ? sizeof heap_id : 0,
        .span_class = 2 + (uint32_t)rnd(s) % (rnd(s) % 2 ? 130 : 254),
        .pages = 1 + (uint32_t)rnd(s) % (rnd(s) % 4 ? 64 : 16777215),
        .align = 1u << rnd(s) % 9,
        .first = (uint32_t)rnd(s) % 32768,
        .count = 1 + (uint32_t)rnd(s) % MSG_TAGS_MAX,
        .list = list,
        .list_count = count,
        .name = name,
        .mode = (uint32_t)rnd(s) % 4,
        .expected = rnd(s) % 2 ? 0 : rnd(s) % (256 << 20),
        .desired = rnd(s) % 3 ? rnd(s) % (256 << 20) : rnd(s),
        .what = (uint32_t)rnd(s) % 12,
        .cursor = rnd(s) % 2 ? 0 : rnd(s),
        .gc_mode = rnd(s) % 3,
        .table = rnd(s) % 3,
        .serial = rnd(s) % 3,
        .error = 1,
        .body = noise,
        .body_bytes = (uint32_t)(rnd(s) % sizeof noise),
    };
    return raw_message(type, &v);
}

/* Any of the table, the daemon's own too. Those that end a connection are rarer: what is behind them is not read. */
static uint32_t any_type(uint64_t *s)
{
#define TYPE(NAME, name, number, sender, reply, fields) MSG_##NAME,
    static const uint32_t types[] = {MSG_TABLE(TYPE)};
#undef TYPE
    for (;;) {
        uint32_t type = types[rnd(s) % (sizeof types / sizeof types[0])];
        bool ends = type == MSG_HELLO || type == MSG_RESUME || type == MSG_BYE || !msg_from_client(type);
        if (!ends || rnd(s) % 30 == 0)
            return type;
    }
}

/* Mostly a message, now and then with a byte wrong, nothing in it, or a descriptor. -EPIPE: the daemon hung up. */
static int send_any(uint64_t *s, struct raw *r)
{
    uint32_t type = any_type(s), odd = (uint32_t)rnd(s) % 200;
    struct msg message = any_message(type, r, s);
    message.id = (uint32_t)rnd(s) % 4;
    int bytes = msg_encode(&message, packet, sizeof packet);
    if (bytes < 0)
        return 0;
    if (odd < 2)
        packet[rnd(s) % (size_t)bytes] = (uint8_t)rnd(s);
    else if (odd == 3)
        bytes = 0;
    atomic_fetch_add(&board->packets, 1);
    atomic_fetch_add(&board->sent[type], 1);
    return packet_send(r->fd, packet, (size_t)bytes, &r->fd, odd == 4, MSG_DONTWAIT);
}

/* Reads what comes, or does not. */
static void flood(uint64_t *s, struct raw *r)
{
    bool deaf = rnd(s) % 4 == 0;
    for (int n = 0; n < 200; n++) {
        if (send_any(s, r) == -EPIPE)
            return;
        while (!deaf && rnd(s) % 4 &&
               packet_receive(r->fd, packet, sizeof packet, r->fds, 4, &r->fd_count, MSG_DONTWAIT) > 0)
            raw_close_fds(r); /* of another HELLO */
    }
}

/* The whole of what a client can write: the lower words, which are in use, more often; the rest of the state region by
 * its bytes, the tables before the words among them; the heap, also pages without memory. */
static void flip_anywhere(uint64_t *s, struct raw *r)
{
    uint8_t *state = r->h.hints, *tables_end = (uint8_t *)r->h.words;
    for (int n = 0; n < 2000; n++)
        r->h.words[rnd(s) % (r->g.unit_count * UNIT_WORDS / 64)] ^= (uint16_t)(1u << rnd(s) % 16);
    for (int n = 0; n < 50; n++) {
        r->h.tickets[rnd(s) % 256] = rnd(s);
        r->h.hazards[rnd(s) % HAZARD_COUNT] = rnd(s) % 2 ? 0 : (uint32_t)rnd(s);
        r->h.turning[rnd(s) % 256] = (uint32_t)rnd(s);
        state[rnd(s) % (uint64_t)(tables_end - state)] = (uint8_t)rnd(s);
        state[rnd(s) % r->g.state_bytes] = (uint8_t)rnd(s);
    }
    for (int n = 0; n < 20; n++)
        r->h.base[rnd(s) % (rnd(s) % 2 ? r->g.heap_bytes / 16 : r->g.heap_bytes)] ^= (uint8_t)rnd(s);
}

static void flip(uint64_t *s, struct raw *r)
{
    const struct msg lease = MSG(lease, .epoch = r->epoch, .pages = 8, .span_class = 2 + (uint32_t)rnd(s) % 100);
    if (raw_send(r->fd, 5, lease) < 0 || raw_receive(r) != MSG_GRANT)
        return;
    for (uint32_t i = 0; i < m.grant.list_count; i++) {
        struct span_info span;
        if (!span_at(&r->h, m.grant.list[i], &span))
            continue;
        for (uint32_t k = 0; k < span.objects; k++)
            if (load_relaxed(&span.words[k]) == WORD_FREE)
                store_relaxed(&span.words[k], rnd(s) % 3 ? WORD_SHARED : (uint16_t)WORD_OWNED(r->tag));
    }
    for (int n = 0; n < 2000; n++)
        r->h.hints[rnd(s) % r->g.page_count] = (uint8_t)rnd(s);
    if (anywhere)
        flip_anywhere(s, r);
    atomic_fetch_add(&board->flips, 1);
    if (rnd(s) % 2)
        raw_send(r->fd, 0, MSG(release, .epoch = r->epoch, .list = m.grant.list, .list_count = m.grant.list_count));
}

static int hostile(void *argument) /* until it is killed */
{
    unsigned nth = (unsigned)(uintptr_t)argument, role = nth / 3 % 5;
    uint64_t s = seed * 131 + nth;
    struct raw r;
    become(role == 4 ? REFUSED : USER + nth % 3);
    signal(SIGPIPE, SIG_IGN);
    while (!atomic_load(&board->stop)) {
        if (!comes(&r, role == 2 ? HELLO_MONITOR : 0, role == 1)) {
            if (role == 4)
                atomic_fetch_add(&board->refused, 1);
            pause_us(2000);
            continue;
        }
        if (role == 1)
            for (int n = 0; n < 50; n++)
                flip(&s, &r);
        else if (role == 2) { /* asks, and never reads */
            for (int n = 0; n < 300; n++) {
                struct msg message = MSG(info, .what = 1 + (uint32_t)rnd(&s) % INFO_USERS);
                message.id = 1;
                int bytes = msg_encode(&message, packet, sizeof packet);
                if (packet_send(r.fd, packet, (size_t)bytes, NULL, 0, MSG_DONTWAIT) < 0)
                    pause_us(1000);
            }
        } else
            flood(&s, &r);
        if (r.h.base)
            munmap(r.h.base, r.g.heap_bytes);
        raw_close(&r);
    }
    return 0;
}

/* ---- the storm --------------------------------------------------------------------------------------------------- */

static void limits_hold(void)
{
    static char out[65536];
    if (arenactl(&d, out, sizeof out, "limits --json") != 0)
        return; /* between two daemons */
    for (char *at = strstr(out, "\"users\""); at && (at = strstr(at, "\"bytes_charged\"")) != NULL; at++)
        assert_true(strtoull(at + strcspn(at, ":") + 1, NULL, 10) <= LIMIT_BYTES);
}

/* The flood goes on until each has come. */
static void every_message_was_sent(void)
{
#define SENT(NAME, name, number, sender, reply, fields)                                                                             \
    while (atomic_load(&board->sent[number]) == 0)                                                                     \
        pause_us(1000);
    MSG_TABLE(SENT)
#undef SENT
}

static void print_storm(uint64_t seconds, uint64_t kills, uint64_t restarts)
{
    uint64_t slowest = board->slowest_ns[0] > board->slowest_ns[1] ? board->slowest_ns[0] : board->slowest_ns[1];
    print_message("storm, flips %s: %llu s, %llu kills, %llu restarts, %llu packets, %llu flips, %llu refused; "
                  "honest: %llu steps, %llu roots, slowest call %.1f ms\n",
                  anywhere ? "anywhere" : "in what is leased", (unsigned long long)seconds, (unsigned long long)kills,
                  (unsigned long long)restarts, (unsigned long long)board->packets, (unsigned long long)board->flips,
                  (unsigned long long)board->refused, (unsigned long long)(board->steps[0] + board->steps[1]),
                  (unsigned long long)(board->roots[0] + board->roots[1]), (double)slowest / 1e6);
}

/* The daemon dies. 1: it did. */
static unsigned restart(uint64_t steps[GOOD])
{
    pid_t serving = daemon_serving(&d);
    for (int i = 0; i < GOOD; i++)
        steps[i] = atomic_load(&board->steps[i]);
    return serving > 0 && serving != d.pid && kill(serving, SIGKILL) == 0;
}

/* The honest ones have gone on since: a busy machine has no daemon that only starts. */
static bool went_on(const uint64_t steps[GOOD])
{
    for (int i = 0; i < GOOD; i++)
        if (atomic_load(&board->steps[i]) < steps[i] + 20)
            return false;
    return true;
}

static void storm(uint64_t seconds)
{
    pid_t good[GOOD], bad[HOSTILE];
    uint64_t until = now_ns() + seconds * 1000000000, s = seed, kills = 0, restarts = 0, next = 0, before[GOOD] = {0};
    memset(board, 0, sizeof *board);
    daemon_start(&d, "256M", "--socket-mode", "0666", "--limit-user-bytes", "32M", "--limit-user-roots", "500",
                 "--limit-user-clients", "100", "--trim-timeout", "10", "--log-level", "error", "--allow-users",
                 geteuid() == 0 ? "50000, 50001, 50002, 50003" : "*", NULL);
    assert_int_equal(chmod(d.dir, 0755), 0);
    for (int i = 0; i < GOOD; i++)
        good[i] = spawn(honest, (void *)(intptr_t)i);
    for (int i = 0; i < HOSTILE; i++)
        bad[i] = spawn(hostile, (void *)(uintptr_t)next++);
    for (uint64_t due = now_ns(); now_ns() < until;) {
        pause_us(50000);
        int i = (int)(rnd(&s) % HOSTILE);
        kill(bad[i], SIGKILL);
        assert_int_equal(reap(bad[i]), 128 + SIGKILL);
        bad[i] = spawn(hostile, (void *)(uintptr_t)next++);
        kills++;
        if (now_ns() >= due && went_on(before)) {
            due = now_ns() + (1 + rnd(&s) % 4) * 1000000000;
            restarts += restart(before);
        }
        limits_hold();
    }
    restarts += restart(before);
    for (int i = 0; i < GOOD; i++) /* they go on while it blows */
        await_counter(&board->steps[i], before[i] + 20, good[i]);
    every_message_was_sent();
    for (int i = 0; i < HOSTILE; i++) {
        kill(bad[i], SIGKILL);
        reap(bad[i]);
    }
    atomic_store(&board->stop, 1);
    for (int i = 0; i < GOOD; i++)
        assert_int_equal(reap(good[i]), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "transactions", 0); /* what the dead held comes back */
    char out[8192];
    int fault = arenactl(&d, out, sizeof out, "check"); /* with flips anywhere it may find faults; it must answer */
    if (fault != 0 && !(anywhere && fault == 1))
        fail_msg("check: %d: %s", fault, out);
    print_storm(seconds, kills, restarts);
    daemon_clean(&d);
}

static uint64_t half_of_it(void)
{
    const char *minutes = getenv("MINUTES");
    return minutes && *minutes ? strtoull(minutes, NULL, 10) * 30 : 15;
}

static void honest_clients_lose_nothing_beside_floods_and_flips_in_leased_words(void **state)
{
    (void)state;
    anywhere = false;
    storm(half_of_it());
}

static void flips_anywhere_stop_neither_the_daemon_nor_a_call(void **state)
{
    (void)state;
    anywhere = true;
    storm(half_of_it());
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(honest_clients_lose_nothing_beside_floods_and_flips_in_leased_words),
        cmocka_unit_test(flips_anywhere_stop_neither_the_daemon_nor_a_call),
    };
    unsetenv("TMPDIR"); /* where another user can go */
    if (geteuid() != 0)
        print_message("not root: all are one user\n");
    seed = seed_get();
    board = shared_memory(sizeof *board);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
