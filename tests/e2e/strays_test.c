/* Goal: memory that the daemon did not back goes again, from the heap, the state words and the map, whoever made it and how;
 * what it did back stays, also while somebody makes more all the time; the log names whom it suspects, once. And a core dump
 * has nothing of the heap. Method: pages are read, written and populated where no object is, through the mappings that a client
 * has; the figures are the file system's. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { MIB = 1 << 20, HEAP_MIB = 512 };

static struct daemon d;
static char out[1 << 16];

/* A mapping of this process: of memfd:arena-NAME, the first. */
struct region {
    uint8_t *at;
    uint64_t bytes;
    bool dumped, writable;
};

static struct region region_of(const char *name)
{
    struct region r = {NULL, 0, true, false};
    char line[512], what[64];
    bool mine = false;
    FILE *f = fopen("/proc/self/smaps", "re");
    assert_non_null(f);
    snprintf(what, sizeof what, "arena-%s", name);
    while (fgets(line, sizeof line, f)) {
        unsigned long long from, to;
        char mode[8];
        if (sscanf(line, "%llx-%llx %7s", &from, &to, mode) == 3) {
            mine = !r.at && strstr(line, what);
            if (mine)
                r = (struct region){(uint8_t *)(uintptr_t)from, to - from, true, mode[1] == 'w'};
        } else if (r.at && mine && strncmp(line, "VmFlags:", 8) == 0) {
            r.dumped = !strstr(line, " dd");
            break;
        }
    }
    fclose(f);
    assert_non_null(r.at);
    return r;
}

static int teardown(void **state)
{
    (void)state;
    daemon_clean(&d);
    return 0;
}

static bool core_is_dumped(const char *debug)
{
    if (debug)
        setenv("ARENA_DEBUG", debug, 1);
    else
        unsetenv("ARENA_DEBUG");
    arena_t *a = open_heap(&d);
    bool dumped = region_of("heap").dumped;
    assert_int_equal(region_of("map").dumped, dumped);
    assert_int_equal(region_of("state").dumped, dumped);
    assert_int_equal(arena_close(a), 0);
    unsetenv("ARENA_DEBUG");
    return dumped;
}

static void a_core_dump_has_nothing_of_the_heap_unless_it_is_asked_for(void **state)
{
    (void)state;
    daemon_start(&d, "64M", NULL);
    assert_false(core_is_dumped(NULL));
    assert_true(core_is_dumped("core"));
    assert_true(core_is_dumped("stack,core"));
}

/* Waits until all three regions hold no more than `most` MiB together. */
static void await_backed(uint64_t most)
{
    uint64_t now;
    do {
        now = stat_of(&d, "heap_backed") + stat_of(&d, "state_backed") + stat_of(&d, "map_backed");
        pause_us(10000);
    } while (now > most * MIB);
}

static int lines_of_log(const char *what)
{
    assert_in_range(run(out, sizeof out, "grep -c '%s' %s", what, d.log), 0, 1);
    return atoi(out);
}

static uint64_t sum; /* what is read must be read */

/* Each page of a mapping, from `from` on: read, or written where it may be. */
static void touch(struct region r, uint64_t from, bool write)
{
    for (uint64_t at = from; at < r.bytes; at += 4096)
        if (write && r.writable)
            r.at[at] = 1;
        else
            sum += r.at[at];
}

enum { KEPT = 400 };

static void fill(arena_t *a, unsigned char *kept[KEPT])
{
    for (int i = 0; i < KEPT; i++) {
        size_t bytes = i % 4 ? (size_t)(i * 37 % 3000 + 1) : 100000;
        kept[i] = arena_alloc(a, bytes);
        assert_non_null(kept[i]);
        memset(kept[i], i, bytes);
    }
}

static void verify(unsigned char *kept[KEPT])
{
    for (int i = 0; i < KEPT; i++) {
        size_t bytes = i % 4 ? (size_t)(i * 37 % 3000 + 1) : 100000;
        for (size_t at = 0; at < bytes; at++)
            assert_int_equal(kept[i][at], i & 255);
    }
}

static void what_a_reader_has_walked_over_goes_again(void **state)
{
    unsigned char *kept[KEPT];
    char size[16];
    (void)state;
    snprintf(size, sizeof size, "%dM", HEAP_MIB);
    daemon_start(&d, size, NULL);
    arena_t *a = open_heap(&d), *reader = NULL;
    fill(a, kept);
    await_backed(32);
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.flags = ARENA_READ_ONLY;
    assert_int_equal(arena_open(&reader, d.socket, &options), 0);
    for (int round = 0; round < 3; round++) {
        touch(region_of("heap"), 0, false);
        touch(region_of("map"), 0, false);
        touch(region_of("state"), 0, false);
        await_backed(32);
        verify(kept);
    }
    assert_int_equal(lines_of_log("event=stray"), 1);
    char who[64];
    snprintf(who, sizeof who, "event=stray .*suspect=client pid=%d ", (int)getpid());
    assert_int_equal(lines_of_log(who), 1);
    assert_int_equal(check_of(&d), 0);
    assert_int_equal(arena_close(reader), 0);
    assert_int_equal(arena_close(a), 0);
}

static void so_does_what_was_written_and_what_was_locked(void **state)
{
    unsigned char *kept[KEPT];
    (void)state;
    daemon_start(&d, "256M", "--return-after", "50", NULL);
    arena_t *a = open_heap(&d);
    fill(a, kept);
    struct region heap = region_of("heap"), words = region_of("state");
    touch(heap, 64 * MIB, true);
    touch(words, words.bytes / 2, true);
    await_backed(32);
    assert_int_equal(madvise(heap.at, heap.bytes, MADV_POPULATE_READ), 0); /* as mlockall() does it */
    await_backed(32);
    verify(kept);
    assert_int_equal(arenactl(&d, out, sizeof out, "trim"), 0);
    verify(kept);
    for (int i = 0; i < KEPT; i++)
        arena_free(a, kept[i]);
    assert_int_equal(arena_close(a), 0);
    assert_int_equal(check_of(&d), 0);
}

/* Holes inside spans too: one object of many lives, and the pages between are returned. */
static void pages_that_were_returned_inside_spans_are_cleared_too(void **state)
{
    enum { MANY = 4000 };
    static unsigned char *p[MANY];
    (void)state;
    daemon_start(&d, "256M", "--return-after", "50", "--reserve", "0", NULL);
    arena_t *a = open_heap(&d);
    for (int i = 0; i < MANY; i++) {
        p[i] = arena_alloc(a, 13000); /* a class of two objects in a few pages */
        assert_non_null(p[i]);
        memset(p[i], i, 13000);
    }
    for (int i = 0; i < MANY; i++)
        if (i % 2)
            arena_free(a, p[i]);
    assert_int_equal(arena_trim(a), 0);
    uint64_t before, now;
    do { /* until it has given back what it can */
        before = stat_of(&d, "heap_backed");
        assert_int_equal(arenactl(&d, out, sizeof out, "trim"), 0);
        pause_us(200000);
    } while ((now = stat_of(&d, "heap_backed")) != before);
    touch(region_of("heap"), 0, false);
    await_backed((now + stat_of(&d, "state_backed") + stat_of(&d, "map_backed")) / MIB + 3);
    for (int i = 0; i < MANY; i += 2)
        for (int at = 0; at < 13000; at++)
            assert_int_equal(p[i][at], i & 255);
    assert_int_equal(arena_close(a), 0);
    assert_int_equal(check_of(&d), 0);
}

static _Atomic bool *stop;

/* A client that makes memory as fast as it can, everywhere. */
static int touches_on_and_on(void *argument)
{
    (void)argument;
    arena_t *a = open_heap(&d);
    struct region heap = region_of("heap"), words = region_of("state"), map = region_of("map");
    arena_alloc(a, 100);
    for (uint64_t seed = 1; !atomic_load(stop);) {
        sum += ((volatile uint8_t *)heap.at)[rnd(&seed) % heap.bytes];
        sum += ((volatile uint8_t *)words.at)[rnd(&seed) % words.bytes];
        sum += ((volatile uint8_t *)map.at)[rnd(&seed) % map.bytes];
    }
    return 0;
}

static void clients_lose_nothing_while_one_makes_memory_all_the_time(void **state)
{
    unsigned char *kept[KEPT];
    (void)state;
    stop = shared_memory(4096);
    daemon_start(&d, "256M", "--return-after", "50", NULL);
    arena_t *a = open_heap(&d);
    pid_t pid = spawn(touches_on_and_on, NULL);
    for (int round = 0; round < 60 / LESS + 2; round++) {
        fill(a, kept);
        verify(kept);
        for (int i = 0; i < KEPT; i++)
            arena_free(a, kept[i]);
        if (round % 4 == 0)
            arena_trim(a);
        pause_us(10000);
    }
    atomic_store(stop, true);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(arena_close(a), 0);
    await_backed(32);
    assert_int_equal(check_of(&d), 0);
}

#define TEST(function) cmocka_unit_test_teardown(function, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_core_dump_has_nothing_of_the_heap_unless_it_is_asked_for),
        TEST(what_a_reader_has_walked_over_goes_again),
        TEST(so_does_what_was_written_and_what_was_locked),
        TEST(pages_that_were_returned_inside_spans_are_cleared_too),
        TEST(clients_lose_nothing_while_one_makes_memory_all_the_time),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
