/* Goal: every figure means what its name says. Method: a population of objects of which this test keeps count itself, held
 * by two processes and a transaction; then each figure of stat is compared with that count, and with sums over the rows of
 * classes, spans and clients, which are other ways to the same words. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { OWNED = 700, SHARED = 300, IN_TRANSACTION = 40, OTHERS = 111 };

static struct daemon d;
static char out[4 << 20];

static int setup(void **state)
{
    return daemon_setup(state, &d, "256M", NULL);
}

/* The sum of a numeric field over all rows that a command prints, times another field if it is given. */
static uint64_t sum_of(const char *command, const char *field, const char *times)
{
    char key[64], key_times[64];
    uint64_t sum = 0;
    assert_int_equal(arenactl(&d, out, sizeof out, "%s --json", command), 0);
    snprintf(key, sizeof key, "\"%s\":", field);
    snprintf(key_times, sizeof key_times, "\"%s\":", times ? times : "");
    for (char *row = strchr(out, '{'); row; row = strchr(row + 1, '{')) {
        char *end = strchr(row, '}'), *at = strstr(row, key), *factor = times ? strstr(row, key_times) : NULL;
        assert_true(end && at && at < end);
        sum += strtoull(at + strlen(key), NULL, 10) * (factor ? strtoull(factor + strlen(key_times), NULL, 10) : 1);
    }
    return sum;
}

static uint64_t row_count(const char *command)
{
    uint64_t rows = 0;
    assert_int_equal(arenactl(&d, out, sizeof out, "%s --json", command), 0);
    for (char *row = strchr(out, '{'); row; row = strchr(row + 1, '{'))
        rows++;
    return rows;
}

struct figure_pair {
    const char *what;
    uint64_t left, right;
};

/* Two ways to each figure. Each row of `spans` is looked at as a whole: its words are owned, shared, cached or free. The
 * first pair that differs, or NULL. */
static const char *disagreement(void)
{
    uint64_t used = stat_of(&d, "objects_used"), cached = stat_of(&d, "objects_cached");
    const struct figure_pair pairs[] = {
        {"spans", stat_of(&d, "spans"), row_count("spans")},
        {"heap_in_use, spans", sum_of("spans", "pages", NULL) * 8192, stat_of(&d, "heap_in_use")},
        {"objects_owned, spans", sum_of("spans", "owned", NULL), stat_of(&d, "objects_owned")},
        {"objects_shared, spans", sum_of("spans", "shared", NULL), stat_of(&d, "objects_shared")},
        {"objects_cached, spans", sum_of("spans", "cached", NULL), cached},
        {"all words", sum_of("spans", "free", NULL) + used + cached, sum_of("spans", "objects", NULL)},
        {"bytes_used", sum_of("spans", "size", "owned") + sum_of("spans", "size", "shared"), stat_of(&d, "bytes_used")},
        {"bytes_cached", sum_of("spans", "size", "cached"), stat_of(&d, "bytes_cached")},
        {"objects_owned, classes", sum_of("classes", "owned", NULL), stat_of(&d, "objects_owned")},
        {"objects_shared, classes", sum_of("classes", "shared", NULL), stat_of(&d, "objects_shared")},
        {"objects_cached, classes", sum_of("classes", "cached", NULL), stat_of(&d, "objects_cached")},
        {"spans, classes", sum_of("classes", "spans", NULL), stat_of(&d, "spans")},
        {"spans_leased", sum_of("classes", "leased", NULL), stat_of(&d, "spans_leased")},
        {"heap_in_use, classes", sum_of("classes", "bytes", NULL), stat_of(&d, "heap_in_use")},
        {"clients", row_count("clients"), stat_of(&d, "clients")},
        {"objects_owned, clients", sum_of("clients", "objects_owned", NULL), stat_of(&d, "objects_owned")},
        {"objects_cached, clients", sum_of("clients", "objects_cached", NULL), stat_of(&d, "objects_cached")},
        {"bytes_leased, clients", sum_of("clients", "bytes_leased", NULL), stat_of(&d, "bytes_leased")},
        {"roots", row_count("roots"), stat_of(&d, "roots")},
        /* page 0 is nobody's: reference 0 is null */
        {"pages", stat_of(&d, "pages_free") * 8192 + stat_of(&d, "heap_in_use") + 8192, stat_of(&d, "heap_max")},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof pairs[0]; i++)
        if (pairs[i].left != pairs[i].right)
            return pairs[i].what;
    return NULL;
}

/* Between two questions the sweep may give back a span; when it has nothing left to do, all must agree. */
static void compare_with_rows(void)
{
    const char *what = NULL;
    for (int tries = 0; tries < 100 && (what = disagreement()) != NULL; tries++) {
        pause_us(20000);
    }
    if (what)
        fail_msg("two ways to %s differ", what);
    assert_int_equal(check_of(&d), 0);
}

struct peer {
    int told[2], stop[2];
};

static int holds_some(void *argument)
{
    struct peer *peer = argument;
    arena_t *a = open_heap(&d);
    char byte = 0;
    for (int i = 0; i < OTHERS; i++)
        if (!arena_alloc(a, 64))
            return 1;
    close(peer->stop[1]);
    return write(peer->told[1], "x", 1) == 1 && read(peer->stop[0], &byte, 1) == 0 ? 0 : 2; /* and dies with them */
}

static size_t size_at(int i) { return i % 100 == 99 ? 33000 + (size_t)i * 100 : (size_t)(i * 37 % 3000); }

static void every_figure_is_what_was_counted(void **state)
{
    static void *owned[OWNED], *shared[SHARED];
    struct arena_stats stats = {.size = sizeof stats};
    struct peer peer;
    char byte, name[32];
    uint64_t bytes = 0;
    (void)state;
    assert_int_equal(pipe(peer.told), 0);
    assert_int_equal(pipe(peer.stop), 0);
    pid_t pid = spawn(holds_some, &peer);
    assert_int_equal(read(peer.told[0], &byte, 1), 1);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < OWNED; i++)
        bytes += arena_usable_size(a, owned[i] = arena_alloc_flags(a, size_at(i), i % 3 ? 0 : ARENA_NOSCAN));
    for (int i = 0; i < SHARED; i++) {
        bytes += arena_usable_size(a, shared[i] = arena_alloc_flags(a, size_at(i + 50), ARENA_SHARED));
        snprintf(name, sizeof name, "root %d", i);
        if (i % 10 == 0)
            assert_int_equal(arena_root_set(a, name, arena_ref(a, shared[i])), 0);
    }
    assert_int_equal(arena_tx_begin(a), 0);
    for (int i = 0; i < IN_TRANSACTION; i++)
        bytes += arena_usable_size(a, arena_alloc(a, 100));
    assert_int_equal(stat_of(&d, "objects_owned"), OWNED + IN_TRANSACTION + OTHERS);
    assert_int_equal(stat_of(&d, "objects_shared"), SHARED);
    assert_int_equal(stat_of(&d, "objects_used"), OWNED + SHARED + IN_TRANSACTION + OTHERS);
    assert_int_equal(stat_of(&d, "bytes_used"), bytes + OTHERS * 64);
    assert_int_equal(stat_of(&d, "clients"), 2);
    assert_int_equal(stat_of(&d, "roots"), SHARED / 10);
    assert_int_equal(stat_of(&d, "heap_max"), 256 << 20);
    assert_int_equal(stat_of(&d, "epoch"), 1);
    compare_with_rows();
    /* what a program is told is what the command prints */
    assert_int_equal(arena_stats(a, &stats), 0);
    assert_int_equal(stats.objects_used, stat_of(&d, "objects_used"));
    assert_int_equal(stats.bytes_used, stat_of(&d, "bytes_used"));
    assert_int_equal(stats.pages_free * 8192 + stats.heap_in_use + 8192, stats.heap_max);
    assert_int_equal(stats.objects_owned + stats.objects_shared, stats.objects_used);
    assert_true(stats.heap_id != 0 && stats.refills > 0 && stats.round_trips > 0);
    /* a commit makes them shared; half is freed */
    assert_int_equal(arena_tx_commit(a, NULL, 0, 0), 0);
    assert_int_equal(stat_of(&d, "objects_shared"), SHARED + IN_TRANSACTION);
    for (int i = 0; i < OWNED; i += 2)
        arena_free(a, owned[i]);
    assert_int_equal(stat_of(&d, "objects_owned"), OWNED / 2 + OTHERS);
    compare_with_rows();
    assert_int_equal(arena_trim(a), 0);
    compare_with_rows();
    /* the other one dies */
    uint64_t reclaimed = stat_of(&d, "reclaimed_objects"), clients = stat_of(&d, "reclaimed_clients");
    close(peer.stop[1]);
    assert_int_equal(reap(pid), 0);
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", OWNED / 2);
    assert_int_equal(stat_of(&d, "reclaimed_objects"), reclaimed + OTHERS);
    assert_int_equal(stat_of(&d, "reclaimed_clients"), clients + 1);
    compare_with_rows();
    arena_close(a);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_shared", SHARED + IN_TRANSACTION);
    stat_await(&d, "spans_leased", 0);
    stat_await(&d, "transactions", 0);
    compare_with_rows();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_figure_is_what_was_counted),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
