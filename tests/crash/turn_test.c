/* Goal: whatever waits for the daemon, one turn of its loop does no more than its bounds, which daemon/core/core.h has, and so a
 * bystander gets on. Method: raw clients fill the sockets while the daemon is stopped, more than a turn may do; what the
 * longest turn did is read from `arenactl limits`. turn_end() asserts the same bounds: that the daemon is still the same
 * process says that it holds them, the figures say that they were reached. */
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/core/core.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static pid_t serving, other;

struct board {
    _Atomic uint64_t steps, stop;
};
static struct board *board;

/* ---- the bystander -------------------------------------------------------------------------------------------------------------- */

/* What it uses it has: it gets on while the heap is full too. */
static int bystander(void *argument)
{
    enum { SLOTS = 64, WORDS = 16 };
    uint64_t *slots[SLOTS] = {NULL}, step = 0;
    arena_t *a = open_heap(&d);
    (void)argument;
    while (!atomic_load(&board->stop)) {
        uint64_t i = step++ % SLOTS;
        for (int k = 0; slots[i] && k < WORDS; k++)
            if (slots[i][k] != i)
                return 2;
        arena_free(a, slots[i]);
        if (!(slots[i] = arena_alloc(a, WORDS * sizeof *slots[i])))
            return 3;
        for (int k = 0; k < WORDS; k++)
            slots[i][k] = i;
        atomic_fetch_add(&board->steps, 1);
    }
    return arena_close(a) == 0 ? 0 : 4;
}

/* It makes a thousand more steps. */
static void others_get_on(void) { await_counter(&board->steps, atomic_load(&board->steps) + 1000, other); }

/* ---- the daemon --------------------------------------------------------------------------------------------------------------------- */

static void start(const char *max, const char *key, const char *value)
{
    daemon_start(&d, max, key, value, "--return-after", "100000000", NULL);
    serving = daemon_serving(&d);
    memset(board, 0, sizeof *board);
    other = spawn(bystander, NULL);
    others_get_on();
}

static int setup(void **state)
{
    (void)state;
    memset(&d, 0, sizeof d);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (!d.dir[0])
        return 0;
    if (serving > 0)
        kill(serving, SIGCONT);
    daemon_clean(&d);
    return 0;
}

/* All is as it was: the same daemon, a whole heap, a bystander that ends when it is told to. */
static void all_is_well(void)
{
    others_get_on();
    atomic_store(&board->stop, 1);
    assert_int_equal(reap(other), 0);
    assert_int_equal(daemon_serving(&d), serving);
    assert_int_equal(check_of(&d), 0);
}

static void stop_daemon(void)
{
    char path[64], line[256] = "";
    assert_int_equal(kill(serving, SIGSTOP), 0);
    snprintf(path, sizeof path, "/proc/%d/stat", (int)serving);
    for (;;) {
        FILE *f = fopen(path, "re");
        assert_non_null(f);
        const char *at = fgets(line, sizeof line, f) ? strrchr(line, ')') : NULL;
        fclose(f);
        assert_non_null(at);
        if (at[2] == 'T')
            return;
        sched_yield();
    }
}

static void continue_daemon(void) { assert_int_equal(kill(serving, SIGCONT), 0); }

/* The most that a turn has done of something. */
static uint64_t most_of(const char *what)
{
    char out[4096], key[64];
    if (daemon_serving(&d) != serving)
        fail_msg("the daemon has crashed");
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s limits --json", programs_dir(), d.socket), 0);
    snprintf(key, sizeof key, "\"turn_%s_most\":", what);
    const char *at = strstr(out, key);
    assert_non_null(at);
    return strtoull(at + strlen(key), NULL, 10);
}

/* ---- clients ------------------------------------------------------------------------------------------------------------------------ */

/* The class with the most objects a span. */
static unsigned crowded_class(void)
{
    unsigned best = 2;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++)
        if (class_table[c].objects > class_table[best].objects)
            best = c;
    assert_int_equal(class_table[best].objects, SPAN_WORDS_MAX);
    return best;
}

static void ask_spans(struct raw *r, uint32_t type, unsigned span_class, uint32_t pages, unsigned flags)
{
    struct raw_values v = {.epoch = r->epoch, .span_class = span_class, .pages = pages, .align = 1, .flags = flags};
    assert_int_equal(raw_send(r->fd, 5, raw_message(type, &v)), 0);
}

/* Leases `count` spans, by as many grants as it takes. */
static void lease(struct raw *r, unsigned span_class, uint32_t *spans, uint32_t count)
{
    for (uint32_t got = 0; got < count;) {
        ask_spans(r, MSG_LEASE, span_class, (count - got) * class_table[span_class].pages, 0);
        assert_int_equal(raw_receive(r), MSG_GRANT);
        assert_in_range(m.grant.list_count, 1, count - got);
        memcpy(spans + got, m.grant.list, m.grant.list_count * sizeof *spans);
        got += m.grant.list_count;
    }
}

static void give_back(struct raw *r, const uint32_t *spans, uint32_t count)
{
    assert_int_equal(raw_send(r->fd, 0, MSG(release, .epoch = r->epoch, .list = spans, .list_count = count)), 0);
}

/* All that it sent has been handled when this is answered. */
static void await_answer(struct raw *r)
{
    assert_int_equal(raw_send(r->fd, 9, MSG(info, .what = INFO_LIMITS)), 0);
    assert_int_equal(raw_receive(r), MSG_ROWS);
}

/* Pages with memory behind them that nobody has. */
static void make_free_pages(uint32_t pages)
{
    struct raw r;
    raw_greet(&r, d.socket);
    ask_spans(&r, MSG_LARGE, CLASS_LARGE, pages, 0);
    assert_int_equal(raw_receive(&r), MSG_GRANT);
    uint32_t span = m.grant.list[0];
    give_back(&r, &span, 1);
    await_answer(&r);
    raw_close(&r);
}

/* ---- tests ---------------------------------------------------------------------------------------------------------------------------- */

static void a_turn_reads_so_many_packets_and_no_more(void **state)
{
    enum { CLIENTS = TURN_PACKETS + 44 };
    static struct raw r[CLIENTS];
    (void)state;
    start("16M", "--hello-timeout", "100000000");
    for (int i = 0; i < CLIENTS; i++) {
        raw_greet(&r[i], d.socket);
        raw_close_fds(&r[i]);
    }
    assert_in_range(most_of("packets"), 1, TURN_PACKETS - 1);
    stop_daemon();
    for (int i = 0; i < CLIENTS; i++)
        give_back(&r[i], NULL, 0);
    others_get_on();
    continue_daemon();
    for (int i = 0; i < CLIENTS; i++)
        await_answer(&r[i]);
    assert_int_equal(most_of("packets"), TURN_PACKETS);
    all_is_well();
    for (int i = 0; i < CLIENTS; i++)
        raw_close(&r[i]);
}

/* How many connections this user has, as rows of INFO_USERS say. */
static unsigned connections_told(void)
{
    const uint8_t *at = memmem(m.rows.body, m.rows.body_bytes, "connections", 11);
    assert_non_null(at);
    at += 11;
    return at[0] < 0x80 ? at[0] : at[0] == 0xcc ? at[1] : (unsigned)at[1] << 8 | at[2];
}

/* Who has waited is answered before most of those that came with it were even taken. */
static void newcomers_are_taken_a_few_at_a_time(void **state)
{
    enum { NEWCOMERS = 500 };
    static int fds[NEWCOMERS];
    struct raw r;
    (void)state;
    start("16M", "--hello-timeout", "100000000");
    raw_greet(&r, d.socket);
    stop_daemon();
    for (int i = 0; i < NEWCOMERS; i++)
        fds[i] = raw_connect(d.socket);
    assert_int_equal(raw_send(r.fd, 9, MSG(info, .what = INFO_USERS)), 0);
    continue_daemon();
    assert_int_equal(raw_receive(&r), MSG_ROWS);
    assert_in_range(connections_told(), 2, NEWCOMERS / 2);
    all_is_well();
    for (int i = 0; i < NEWCOMERS; i++)
        close(fds[i]);
    raw_close(&r);
}

/* So many packets with the most words would be more than a turn may cost. */
enum { HEAVY_WORDS = RETURN_SPANS_TURN * SPAN_WORDS_MAX, HEAVY_CLIENTS = (TURN_WORDS + PACKET_WORDS) / HEAVY_WORDS + 2 };

static void a_turn_reads_the_words_of_one_heavy_packet(void **state)
{
    static uint32_t spans[HEAVY_CLIENTS][RETURN_SPANS_TURN];
    struct raw r[HEAVY_CLIENTS];
    unsigned crowded = crowded_class();
    (void)state;
    start("256M", "--reserve", "0");
    for (int i = 0; i < HEAVY_CLIENTS; i++) {
        raw_greet(&r[i], d.socket);
        lease(&r[i], crowded, spans[i], RETURN_SPANS_TURN);
    }
    assert_in_range(most_of("words"), 1, HEAVY_WORDS - 1); /* they were cleared by growth's steps */
    stop_daemon();
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        give_back(&r[i], spans[i], RETURN_SPANS_TURN);
    others_get_on();
    continue_daemon();
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        await_answer(&r[i]);
    assert_in_range(most_of("words"), HEAVY_WORDS, TURN_WORDS + PACKET_WORDS);
    all_is_well();
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        raw_close(&r[i]);
}

static void a_turn_clears_and_backs_the_words_of_one_heavy_grant(void **state)
{
    enum { GRANT_WORDS = LEASE_SPANS_MAX * SPAN_WORDS_MAX };
    struct raw r[HEAVY_CLIENTS];
    unsigned crowded = crowded_class();
    (void)state;
    start("256M", "--reserve", "128M");
    make_free_pages((HEAVY_CLIENTS + 1) * LEASE_SPANS_MAX);
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        raw_greet(&r[i], d.socket);
    assert_in_range(most_of("backed"), 1, TURN_BACKED); /* the bystander's */
    stop_daemon();
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        ask_spans(&r[i], MSG_LEASE, crowded, LEASE_SPANS_MAX * class_table[crowded].pages, 0);
    others_get_on();
    continue_daemon();
    for (int i = 0; i < HEAVY_CLIENTS; i++) {
        assert_int_equal(raw_receive(&r[i]), MSG_GRANT);
        assert_int_equal(m.grant.list_count, LEASE_SPANS_MAX);
    }
    assert_in_range(most_of("words"), GRANT_WORDS, TURN_WORDS + PACKET_WORDS);
    assert_in_range(most_of("backed"), PACKET_BACKED - 2 * BACKED_STEP, TURN_BACKED + PACKET_BACKED);
    all_is_well();
    for (int i = 0; i < HEAVY_CLIENTS; i++)
        raw_close(&r[i]);
}

/* What a daemon before it had backed is no work of the turn with the first packet. */
static void a_turn_behind_a_restart_backs_no_more(void **state)
{
    static uint32_t spans[LEASE_SPANS_MAX];
    struct raw r;
    unsigned crowded = crowded_class();
    (void)state;
    start("256M", "--reserve", "0");
    raw_greet(&r, d.socket);
    for (uint32_t done = 0; done < TURN_BACKED + PACKET_BACKED; done += LEASE_SPANS_MAX * SPAN_WORDS_MAX * 2)
        lease(&r, crowded, spans, LEASE_SPANS_MAX);
    kill(serving, SIGKILL);
    arena_t *a = open_heap(&d); /* waits for the one that follows */
    serving = daemon_serving(&d);
    assert_non_null(arena_alloc(a, 20000));
    assert_in_range(most_of("backed"), 0, 2 * BACKED_STEP);
    assert_int_equal(arena_close(a), 0);
    all_is_well();
    raw_close(&r);
}

static void a_turn_writes_the_page_entries_of_few_large_spans(void **state)
{
    enum { CLIENTS = 4, PAGES = TURN_ENTRIES / 2 };
    struct raw r[CLIENTS];
    uint32_t spans[CLIENTS];
    (void)state;
    start("256M", "--reserve", "256M");
    for (int i = 0; i < CLIENTS; i++) {
        raw_greet(&r[i], d.socket);
        ask_spans(&r[i], MSG_LARGE, CLASS_LARGE, PAGES, 0);
        assert_int_equal(raw_receive(&r[i]), MSG_GRANT);
        spans[i] = m.grant.list[0];
    }
    assert_in_range(most_of("entries"), PAGES, TURN_ENTRIES - 1);
    stop_daemon();
    for (int i = 0; i < CLIENTS; i++)
        give_back(&r[i], &spans[i], 1);
    others_get_on();
    continue_daemon();
    for (int i = 0; i < CLIENTS; i++)
        await_answer(&r[i]);
    assert_in_range(most_of("entries"), TURN_ENTRIES, TURN_ENTRIES + PACKET_ENTRIES);
    all_is_well();
    for (int i = 0; i < CLIENTS; i++)
        raw_close(&r[i]);
}

/* Granted, grown, cut back and given back, each with more entries than a turn may write; while others are served. */
static void an_object_of_many_turns_is_written_by_turns(void **state)
{
    enum { PAGES = 3 * TURN_ENTRIES, MORE = 2 * TURN_ENTRIES };
    struct raw r;
    (void)state;
    start("1G", "--reserve", "1G");
    raw_greet(&r, d.socket);
    for (int round = 0; round < 3; round++) {
        ask_spans(&r, MSG_LARGE, CLASS_LARGE, PAGES, 0);
        assert_int_equal(raw_receive(&r), MSG_GRANT);
        uint32_t span = m.grant.list[0];
        for (int grow = 1; grow >= 0; grow--) {
            assert_int_equal(raw_send(r.fd, 5, MSG(extend, .epoch = r.epoch, .first = span, .pages = grow ? PAGES + MORE : 1)), 0);
            assert_int_equal(raw_receive(&r), MSG_OK);
            assert_int_equal(m.ok.value, grow ? PAGES + MORE : 1);
        }
        give_back(&r, &span, 1);
    }
    ask_spans(&r, MSG_LARGE, CLASS_LARGE, PAGES + MORE, 0); /* and its client goes while it is under way, or has it */
    others_get_on();
    raw_close(&r);
    raw_greet(&r, d.socket);
    ask_spans(&r, MSG_LARGE, CLASS_LARGE, PAGES, 0);
    assert_int_equal(raw_receive(&r), MSG_GRANT);
    assert_in_range(most_of("entries"), 1, TURN_ENTRIES + PACKET_ENTRIES);
    all_is_well();
    raw_close(&r);
}

static void a_turn_tries_so_many_waiting_requests_and_no_more(void **state)
{
    enum { CLIENTS = TURN_RETRIES + 16, PAGES = 2048 };
    static struct raw r[CLIENTS];
    static uint32_t spans[PAGES];
    struct raw holder;
    unsigned page_class = SPAN_CLASS(size_class_of(PAGE_SIZE, 0), 0);
    uint32_t count = 0;
    (void)state;
    start("16M", "--trim-timeout", "100000000");
    raw_greet(&holder, d.socket);
    for (;;) { /* all that there is; ahead of need, so that it need not wait for a trim itself */
        ask_spans(&holder, MSG_LEASE, page_class, LEASE_SPANS_MAX, LEASE_AHEAD);
        if (raw_receive(&holder) != MSG_GRANT)
            break;
        assert_true(count + m.grant.list_count <= PAGES);
        memcpy(spans + count, m.grant.list, m.grant.list_count * sizeof *spans);
        count += m.grant.list_count;
    }
    assert_int_equal(m.type, MSG_ERROR);
    for (int i = 0; i < CLIENTS; i++) {
        raw_greet(&r[i], d.socket);
        raw_close_fds(&r[i]);
        ask_spans(&r[i], MSG_LEASE, page_class, 1, 0);
    }
    while (most_of("retries") < TURN_RETRIES) /* as they wait, the clock tries them */
        ;
    others_get_on();
    for (uint32_t from = 0; from < count; from += RETURN_SPANS_MAX)
        give_back(&holder, spans + from, count - from < RETURN_SPANS_MAX ? count - from : RETURN_SPANS_MAX);
    for (int i = 0; i < CLIENTS; i++)
        assert_int_equal(raw_receive(&r[i]), MSG_GRANT);
    assert_int_equal(most_of("retries"), TURN_RETRIES);
    all_is_well();
    for (int i = 0; i < CLIENTS; i++)
        raw_close(&r[i]);
    raw_close(&holder);
}

static int open_board(void **state)
{
    (void)state;
    board = mmap(NULL, sizeof *board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    return board == MAP_FAILED;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_turn_reads_so_many_packets_and_no_more),
        TEST(newcomers_are_taken_a_few_at_a_time),
        TEST(a_turn_reads_the_words_of_one_heavy_packet),
        TEST(a_turn_clears_and_backs_the_words_of_one_heavy_grant),
        TEST(a_turn_behind_a_restart_backs_no_more),
        TEST(a_turn_writes_the_page_entries_of_few_large_spans),
        TEST(an_object_of_many_turns_is_written_by_turns),
        TEST(a_turn_tries_so_many_waiting_requests_and_no_more),
    };
    return cmocka_run_group_tests(tests, open_board, NULL);
}
