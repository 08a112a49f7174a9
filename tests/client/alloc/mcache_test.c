/* client/alloc/mcache.c: magazines, their capacities and their budget.
 *
 * Goal: a magazine holds what its capacity says and gives its oldest entries back; capacities grow while they are used, within
 * the thread's budget; a thread that only frees keeps little; nothing is lost or there twice. Method: the class's leases are
 * the test's: it gives objects that have numbers, and notes which come back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "client/alloc/mcache.h"

enum { CLASS = SPAN_CLASS(7, 0), BIG = SPAN_CLASS(69, 0), OBJECTS = 1 << 16, TAG = 7 }; /* 64 bytes; 32 KiB */

static struct arena *a;
static struct map_header header;
static struct mcache *mc;
static uint16_t words[OBJECTS];
static uint32_t given;              /* objects 1 to `given` have been given */
static uint32_t wanted;             /* by the last refill */
static uint32_t back[OBJECTS], back_count, back_batches;
static int refuse;

static struct arena_slot slot_of(uint32_t number) { return (struct arena_slot){(void *)(uintptr_t)number, &words[number]}; }
static uint32_t number_of(struct arena_slot s) { return (uint32_t)(uintptr_t)s.object; }

int lease_refill(struct arena *heap, unsigned span_class, struct arena_slot *out, uint32_t want)
{
    (void)heap, (void)span_class;
    wanted = want;
    if (refuse)
        return refuse;
    for (uint32_t i = 0; i < want; i++)
        out[i] = slot_of(++given);
    return (int)want;
}

void lease_flush(struct arena *heap, unsigned span_class, const struct arena_slot *slots, uint32_t count)
{
    (void)heap, (void)span_class;
    back_batches++;
    for (uint32_t i = 0; i < count; i++)
        back[back_count++] = number_of(slots[i]);
}

static int setup(void **state)
{
    (void)state;
    a = calloc(1, sizeof *a);
    a->tag = TAG;
    a->mcache_count = 1;
    header.clients = 1;
    keep_init(&a->keep, 1ULL << 30, &header, 0);
    mc = mmap(NULL, MCACHE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    mcache_init(mc, a, 0);
    given = back_count = back_batches = wanted = 0;
    refuse = 0;
    return mc == MAP_FAILED;
}

static int teardown(void **state)
{
    (void)state;
    munmap(mc, MCACHE_BYTES);
    free(a);
    return 0;
}

static uint32_t count(unsigned c) { return (uint32_t)(mc->magazines[c].top - mc->bases[c]); }
static uint32_t capacity(unsigned c) { return (uint32_t)(mc->magazines[c].limit - mc->bases[c]); }

/* As alloc.c does with what the fast path leaves to it. */
static uint32_t pop(unsigned c)
{
    struct arena_magazine *m = &mc->magazines[c];
    if (m->top == mc->bases[c] && mcache_refill(mc, c) < 0)
        return 0;
    return number_of(*--m->top);
}

static void push(unsigned c, uint32_t number)
{
    struct arena_slot s = slot_of(number);
    mcache_push(mc, c, s.object, s.word);
}

static void a_refill_fills_half_and_the_newest_comes_first(void **state)
{
    (void)state;
    uint32_t newest = pop(CLASS);
    assert_int_equal(newest, wanted);
    assert_int_equal(wanted, capacity(CLASS) / 2);
    assert_int_equal(count(CLASS), wanted - 1);
    push(CLASS, 4711);
    assert_int_equal(pop(CLASS), 4711);
}

static void a_magazine_that_runs_empty_again_and_again_doubles(void **state)
{
    (void)state;
    pop(CLASS);
    for (uint32_t before = capacity(CLASS), n = 0; n < 8; n++, before = capacity(CLASS)) {
        while (count(CLASS))
            pop(CLASS);
        pop(CLASS);
        assert_true(capacity(CLASS) == before * 2 || capacity(CLASS) == MAGAZINE_SLOTS);
    }
    assert_true(mc->budget_used <= keep_thread_budget(&a->keep, 1));
}

static void a_full_magazine_gives_its_oldest_back(void **state)
{
    (void)state;
    pop(CLASS);
    uint32_t number = 1000;
    while (!back_count)
        push(CLASS, number++);
    assert_int_equal(back[0], 1); /* it was given first, and lay lowest */
    for (uint32_t i = 1; i < back_count; i++)
        assert_true(back[i] > back[i - 1]);
    assert_int_equal(pop(CLASS), number - 1);
}

static void a_thread_that_only_frees_keeps_little(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 10000; n++) {
        push(CLASS, n);
        assert_true(count(CLASS) <= 2 * FREES_ONLY_SLOTS);
    }
    assert_int_equal(back_count + count(CLASS), 10000);
}

static void all_comes_back_once(void **state)
{
    static uint8_t seen[OBJECTS];
    (void)state;
    for (unsigned n = 0; n < 3000; n++)
        pop(n % 3 ? CLASS : CLASS + 2);
    back_count = 0;
    uint32_t has = count(CLASS) + count(CLASS + 2);
    mcache_flush_all(mc);
    assert_int_equal(back_count, has);
    memset(seen, 0, sizeof seen);
    for (uint32_t i = 0; i < back_count; i++)
        assert_int_equal(seen[back[i]]++, 0);
    assert_int_equal(capacity(CLASS), 0);
    assert_int_equal(mc->budget_used, 0);
}

/* 1 MiB, four clients: a thread may keep 16 KiB in all. */
static void what_is_over_the_budget_comes_and_goes_one_by_one(void **state)
{
    (void)state;
    keep_init(&a->keep, 1 << 20, &header, 0);
    for (uint32_t n = 1; n <= 4; n++) {
        assert_int_equal(pop(BIG), n);
        assert_int_equal(wanted, 1);
    }
    for (uint32_t n = 1; n <= 4; n++)
        push(BIG, n);
    assert_int_equal(back_count, 4);
    assert_int_equal(mc->budget_used, 0);
}

static void many_classes_share_the_budget(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 400; round++)
        for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
            if (given > OBJECTS - 4096)
                given = 0;
            if (back_count > OBJECTS - 20000)
                back_count = 0;
            if (!class_table[c].size)
                continue;
            pop(c);
            assert_true(mc->budget_used <= keep_thread_budget(&a->keep, 1));
        }
}

static void a_refusal_is_passed_on_and_leaves_it_empty(void **state)
{
    (void)state;
    refuse = -ENOMEM;
    assert_int_equal(mcache_refill(mc, CLASS), -ENOMEM);
    assert_int_equal(count(CLASS), 0);
    refuse = 0;
    uint32_t newest = pop(CLASS);
    assert_int_equal(newest, given);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_refill_fills_half_and_the_newest_comes_first),
        TEST(a_magazine_that_runs_empty_again_and_again_doubles),
        TEST(a_full_magazine_gives_its_oldest_back),
        TEST(a_thread_that_only_frees_keeps_little),
        TEST(all_comes_back_once),
        TEST(what_is_over_the_budget_comes_and_goes_one_by_one),
        TEST(many_classes_share_the_budget),
        TEST(a_refusal_is_passed_on_and_leaves_it_empty),
    };
    return cmocka_run_group_tests_name("client/mcache", tests, NULL, NULL);
}
