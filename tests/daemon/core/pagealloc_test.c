/* daemon/pagealloc: the set of free page numbers.
 *
 * Goal: whatever was freed and taken, each question has the answer that a plain array of booleans
 * gives, and the summaries are what the bits say. Method: random operations beside such a model,
 * for counts around each node boundary, with densities from nearly empty to nearly full; then
 * edges, 2^32 - 1 units, and corruptions that the check must see. The seed is printed; SEED
 * replays it.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/core/pagealloc.h"
#include "tests/random.h"

/* ThreadSanitizer finds nothing in one thread, and takes minutes. */
#ifdef __SANITIZE_THREAD__
enum { LESS = 10 };
#else
enum { LESS = 1 };
#endif

static uint64_t seed;

static uint64_t below(uint64_t n)
{
    return random_below(&seed, n);
}

/* ---- the model ---------------------------------------------------------------------------- */

static uint8_t *model; /* 1: free */

static uint64_t model_run(uint64_t count, uint64_t from) /* free pages in a row from `from` on */
{
    uint64_t n = 0;
    while (from + n < count && model[from + n])
        n++;
    return n;
}

static uint64_t model_find(uint64_t count, uint64_t want, uint64_t align)
{
    for (uint64_t at = 0; at + want <= count; at += align)
        if (model_run(count, at) >= want)
            return at;
    return PAGEALLOC_NONE;
}

static uint64_t model_prev(uint64_t before, uint64_t limit, uint64_t *ret_first)
{
    while (before > 0 && !model[before - 1])
        before--;
    uint64_t n = 0;
    while (before - n > 0 && n < limit && model[before - n - 1])
        n++;
    *ret_first = before - n;
    return n;
}

static void compare_walks(const struct pagealloc *p)
{
    uint64_t from = below(p->count), limit = 1 + below(p->count), first = 77, model_first = from;
    while (model_first < p->count && !model[model_first])
        model_first++;
    uint64_t run = model_run(p->count, model_first);
    assert_int_equal(pagealloc_next_free(p, from), model_first);
    assert_int_equal(pagealloc_next_run(p, from, limit, &first), run < limit ? run : limit);
    if (run)
        assert_int_equal(first, model_first);
    assert_int_equal(pagealloc_next_taken(p, from), from + model_run(p->count, from));
    uint64_t before = below(p->count + 1), length = model_prev(before, limit, &model_first);
    assert_int_equal(pagealloc_prev_run(p, before, limit, &first), length);
    if (length)
        assert_int_equal(first, model_first);
    uint64_t count = 1 + below(p->count - from), free = 0;
    for (uint64_t i = 0; i < count; i++)
        free += model[from + i];
    assert_int_equal(pagealloc_all_free(p, from, count), free == count);
    assert_int_equal(pagealloc_any_free(p, from, count), free != 0);
}

static void compare_finds(const struct pagealloc *p)
{
    uint64_t want = below(4) ? 1 + below(p->count < 40 ? p->count : 40) : 1 + below(p->count);
    uint64_t align = 1ULL << below(below(2) ? 3 : 10);
    assert_int_equal(pagealloc_find(p, want, 1), model_find(p->count, want, 1));
    assert_int_equal(pagealloc_find(p, want, align), model_find(p->count, want, align));
}

/* Frees or takes a run at a random place, as long as the model allows, at most `most`. */
static void change(struct pagealloc *p, uint64_t most, int keep_percent)
{
    uint64_t at = below(p->count), n = 1, want = 1 + below(most);
    bool free = model[at];
    while (n < want && at + n < p->count && model[at + n] == free)
        n++;
    if (below(100) < (uint64_t)keep_percent && free)
        return;
    if (free)
        pagealloc_take(p, at, n);
    else
        pagealloc_free(p, at, n);
    memset(model + at, !free, n);
}

/* fresh: from there on all is free at the start; count: nothing is. */
static void run_against_model(uint64_t count, uint64_t fresh, int rounds)
{
    struct pagealloc p;
    uint64_t free_count = 0;
    assert_int_equal(pagealloc_init(&p, count), 0);
    model = calloc(count, 1);
    assert_non_null(model);
    pagealloc_free_rest(&p, fresh);
    memset(model + fresh, 1, count - fresh);
    assert_null(pagealloc_check(&p));
    for (int i = 0; i < rounds; i++) {
        bool long_runs = i / 100 % 3 == 2;
        change(&p, long_runs ? count : 1 + below(70), i / 500 % 2 ? 80 : 0);
        if (i % 4 == 0)
            compare_walks(&p);
        if (i % 8 == 0)
            compare_finds(&p);
        if (i % 64 == 0)
            assert_null(pagealloc_check(&p));
    }
    for (uint64_t i = 0; i < count; i++)
        free_count += model[i];
    assert_int_equal(p.free_count, free_count);
    assert_null(pagealloc_check(&p));
    pagealloc_fini(&p);
    free(model);
}

static void random_operations_give_what_a_plain_array_gives(void **state)
{
    static const uint64_t counts[] = {1,    2,    63,   64,   65,   511,   512,   513,
                                      1000, 4095, 4096, 4097, 5000, 32768, 33000, 40961};
    (void)state;
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++)
        run_against_model(counts[i], counts[i], (counts[i] < 5000 ? 40000 : 6000) / LESS);
}

/* Few rounds a set: what is fresh goes soon where anything may be taken. */
static void the_same_where_most_was_never_used(void **state)
{
    static const uint64_t counts[] = {1, 64, 513, 4097, 33000, 40961, 100000};
    (void)state;
    for (int i = 0; i < 400 / LESS; i++) {
        uint64_t count = counts[i % (int)(sizeof counts / sizeof counts[0])];
        run_against_model(count, below(3) ? below(count) : 0, below(4) ? 24 : 300);
    }
}

/* ---- searches ----------------------------------------------------------------------------- */

static void neighbours_that_are_freed_in_any_order_are_one_run(void **state)
{
    static const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2},
                                     {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    (void)state;
    for (int o = 0; o < 6; o++) {
        struct pagealloc p;
        assert_int_equal(pagealloc_init(&p, 10000), 0);
        for (int i = 0; i < 3; i++) /* the run crosses two chunks and a node */
            pagealloc_free(&p, 3000 + 1000 * (uint64_t)orders[o][i], 1000);
        assert_int_equal(pagealloc_find(&p, 3000, 1), 3000);
        assert_int_equal(pagealloc_find(&p, 3001, 1), PAGEALLOC_NONE);
        pagealloc_fini(&p);
    }
}

static void the_lowest_run_that_is_long_enough_is_found(void **state)
{
    struct pagealloc p;
    (void)state;
    assert_int_equal(pagealloc_init(&p, 1 << 20), 0);
    for (uint64_t at = 0; at + 8 < 1 << 20; at += 8)
        pagealloc_free(&p, at + 1, 1 + at / 8 % 3); /* runs of 1, 2, 3 in turn */
    pagealloc_free(&p, 800003, 3);                  /* behind the two at 800001 */
    assert_int_equal(pagealloc_find(&p, 1, 1), 1);
    assert_int_equal(pagealloc_find(&p, 2, 1), 9);
    assert_int_equal(pagealloc_find(&p, 3, 1), 17);
    assert_int_equal(pagealloc_find(&p, 4, 1), 800001);
    assert_int_equal(pagealloc_find(&p, 5, 1), 800001);
    assert_int_equal(pagealloc_find(&p, 6, 1), PAGEALLOC_NONE);
    pagealloc_fini(&p);
}

static void an_aligned_run_is_found_where_only_a_part_of_a_run_is_aligned(void **state)
{
    struct pagealloc p;
    (void)state;
    assert_int_equal(pagealloc_init(&p, 100000), 0);
    pagealloc_free(&p, 255, 256);  /* holds no aligned 256 */
    pagealloc_free(&p, 1000, 280); /* 1024..1279: just one */
    pagealloc_free(&p, 4096, 256);
    assert_int_equal(pagealloc_find(&p, 256, 1), 255);
    assert_int_equal(pagealloc_find(&p, 256, 256), 1024);
    assert_int_equal(pagealloc_find(&p, 255, 256), 256);
    assert_int_equal(pagealloc_find(&p, 257, 256), PAGEALLOC_NONE);
    pagealloc_take(&p, 1279, 1);
    assert_int_equal(pagealloc_find(&p, 256, 256), 4096);
    pagealloc_fini(&p);
}

static void nothing_is_found_in_an_empty_set_or_for_zero_or_too_many_pages(void **state)
{
    struct pagealloc p;
    uint64_t first = 5;
    (void)state;
    assert_int_equal(pagealloc_init(&p, 513), 0);
    assert_int_equal(pagealloc_find(&p, 1, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_next_run(&p, 0, 10, &first), 0);
    assert_int_equal(pagealloc_prev_run(&p, 513, 10, &first), 0);
    assert_int_equal(first, 5);
    assert_int_equal(pagealloc_next_free(&p, 0), 513);
    pagealloc_free(&p, 0, 513);
    assert_int_equal(pagealloc_find(&p, 0, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_find(&p, 514, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_find(&p, UINT64_MAX, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_find(&p, 513, 1), 0);
    assert_int_equal(pagealloc_next_taken(&p, 0), 513);
    assert_false(pagealloc_all_free(&p, 512, 2));
    assert_false(pagealloc_all_free(&p, 1, UINT64_MAX));
    pagealloc_fini(&p);
    pagealloc_fini(&p); /* also of a zeroed one */
}

static void as_many_units_as_a_terabyte_has_are_no_trouble(void **state)
{
    struct pagealloc p;
    uint64_t first, most = UINT32_MAX;
    (void)state;
    assert_int_equal(pagealloc_init(&p, most), 0);
    pagealloc_free(&p, most - 1, 1);
    pagealloc_free(&p, (1ULL << 31) - 3, 6);
    assert_int_equal(pagealloc_find(&p, 1, 1), (1ULL << 31) - 3);
    assert_int_equal(pagealloc_find(&p, 3, 4), 1ULL << 31);
    assert_int_equal(pagealloc_find(&p, 7, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_next_run(&p, 0, most, &first), 6);
    assert_int_equal(first, (1ULL << 31) - 3);
    assert_int_equal(pagealloc_prev_run(&p, most, most, &first), 1);
    assert_int_equal(first, most - 1);
    assert_int_equal(pagealloc_prev_run(&p, most - 1, most, &first), 6);
    pagealloc_take(&p, (1ULL << 31) - 3, 6);
    assert_int_equal(pagealloc_find(&p, 1, 1), most - 1);
    assert_int_equal(p.free_count, 1);
    pagealloc_fini(&p);
}

static uint64_t resident_bytes(void)
{
    unsigned long long size, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%llu %llu", &size, &resident), 2);
    fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void what_was_never_used_costs_nothing(void **state)
{
    struct pagealloc p;
    uint64_t first, most = UINT32_MAX, before = resident_bytes();
    (void)state;
    assert_int_equal(pagealloc_init(&p, most), 0);
    pagealloc_free_rest(&p, 1);
    for (uint64_t at = 1; at < 100001; at += 10) {
        assert_int_equal(pagealloc_find(&p, 10, 1), at);
        pagealloc_take(&p, at, 10);
    }
    pagealloc_free(&p, 51, 20);
    assert_int_equal(pagealloc_find(&p, 21, 4), 100004);
    assert_int_equal(pagealloc_find(&p, 20, 4), 100004);
    assert_int_equal(pagealloc_find(&p, 17, 4), 52);
    assert_int_equal(pagealloc_find(&p, 1 << 20, 1 << 20), 1 << 20);
    assert_int_equal(pagealloc_find(&p, most - 100001, 1), 100001);
    assert_int_equal(pagealloc_find(&p, most - 100000, 1), PAGEALLOC_NONE);
    assert_int_equal(pagealloc_longest(&p), most - 100001);
    assert_int_equal(pagealloc_prev_run(&p, most, most, &first), most - 100001);
    assert_int_equal(first, 100001);
    assert_int_equal(p.free_count, most - 1 - 100000 + 20);
    assert_null(pagealloc_check(&p));
#if !defined __SANITIZE_ADDRESS__ && !defined __SANITIZE_THREAD__ /* they have memory of their own */
    assert_in_range(resident_bytes() - before, 0, 1 << 20);
#endif
    pagealloc_fini(&p);
}

/* ---- what must be noticed ----------------------------------------------------------------- */

static void the_check_notices_each_kind_of_corruption(void **state)
{
    struct pagealloc p;
    (void)state;
    assert_int_equal(pagealloc_init(&p, 100001), 0);
    pagealloc_free(&p, 0, 100001); /* all of it was used once: nothing is passed over */
    pagealloc_take(&p, 0, 100001);
    pagealloc_free(&p, 700, 9000);
    assert_null(pagealloc_check(&p));
    for (unsigned level = 0; level < p.levels; level++) {
        struct summary *s = &p.level[level][p.nodes[level] > 1 ? 1 : 0], was = *s;
        s->start ^= 1;
        assert_non_null(pagealloc_check(&p));
        *s = was;
        s->max++;
        assert_non_null(pagealloc_check(&p));
        *s = was;
        s->end++;
        assert_non_null(pagealloc_check(&p));
        *s = was;
    }
    assert_null(pagealloc_check(&p));
    p.free_count++;
    assert_non_null(pagealloc_check(&p));
    p.free_count--;
    p.bits[0] ^= 1; /* in a chunk with free pages, and in one without */
    assert_non_null(pagealloc_check(&p));
    p.bits[0] ^= 1;
    p.bits[50000 / 64] ^= 1ULL << 50000 % 64;
    assert_non_null(pagealloc_check(&p));
    p.bits[50000 / 64] ^= 1ULL << 50000 % 64;
    p.bits[100001 / 64] ^= 1ULL << 100001 % 64; /* beyond the last page */
    assert_non_null(pagealloc_check(&p));
    p.bits[100001 / 64] ^= 1ULL << 100001 % 64;
    assert_null(pagealloc_check(&p));
    pagealloc_fini(&p);
}

enum wrong { FREE_TWICE, TAKE_TWICE, BEYOND_THE_END, NOTHING, WRAPS_AROUND };

/* 1 if the wrong call ends the process. */
static int aborts(enum wrong wrong)
{
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        struct pagealloc p;
        if (!freopen("/dev/null", "w", stderr) || pagealloc_init(&p, 1000) < 0)
            _exit(1);
        pagealloc_free(&p, 100, 100);
        switch (wrong) {
        case FREE_TWICE:
            pagealloc_free(&p, 90, 11);
            break;
        case TAKE_TWICE:
            pagealloc_take(&p, 199, 2);
            break;
        case BEYOND_THE_END:
            pagealloc_free(&p, 999, 2);
            break;
        case NOTHING:
            pagealloc_free(&p, 5, 0);
            break;
        case WRAPS_AROUND:
            pagealloc_free(&p, 999, UINT64_MAX - 5);
            break;
        }
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

static void a_call_that_contradicts_the_set_ends_the_process(void **state)
{
    (void)state;
    assert_true(aborts(FREE_TWICE));
    assert_true(aborts(TAKE_TWICE));
    assert_true(aborts(BEYOND_THE_END));
    assert_true(aborts(NOTHING));
    assert_true(aborts(WRAPS_AROUND));
}

int main(void)
{
    seed = seed_get();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(random_operations_give_what_a_plain_array_gives),
        cmocka_unit_test(the_same_where_most_was_never_used),
        cmocka_unit_test(what_was_never_used_costs_nothing),
        cmocka_unit_test(neighbours_that_are_freed_in_any_order_are_one_run),
        cmocka_unit_test(the_lowest_run_that_is_long_enough_is_found),
        cmocka_unit_test(an_aligned_run_is_found_where_only_a_part_of_a_run_is_aligned),
        cmocka_unit_test(nothing_is_found_in_an_empty_set_or_for_zero_or_too_many_pages),
        cmocka_unit_test(as_many_units_as_a_terabyte_has_are_no_trouble),
        cmocka_unit_test(the_check_notices_each_kind_of_corruption),
        cmocka_unit_test(a_call_that_contradicts_the_set_ends_the_process),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
