/* Goal: the page entries of a huge object cost no turn more than a turn's work, and whoever dies meanwhile - its client, the
 * daemon - no page is lost and none is in two spans.
 *
 * Method: the core is driven without a loop, over a heap of which a large object has several turns' worth of entries. A
 * request is tried again until it is granted, as the loop does; the client, or the daemon, ends after each number of turns. */
#include <errno.h>

#include "tests/daemon/fixture.h"
#include "tests/shm/fixture.h"

enum { PAGES = 16 * TURN_ENTRIES, LARGE = 3 * TURN_ENTRIES + 5, MORE = 2 * TURN_ENTRIES + 3, STEPS = 40 };

static struct fixture f;
static struct core core;
static struct later later = {.allowance = PAGES};
static struct client *client;
static uint64_t most; /* entries of a turn */

static void begin(void)
{
    char why[256];
    struct backing backing = later_backing(&later);
    struct limits limits = {.uid_bytes = 12ULL * TURN_ENTRIES << PAGE_SHIFT};
    assert_int_equal(core_start(&core, &f.h, &backing, &limits, 1000000000, why), 0);
}

static void turn(void)
{
    core_turn(&core);
    most = core.turn.entries > most ? core.turn.entries : most;
    turn_end(&core);
}

static void settle(void)
{
    do
        while (later.count)
            later_answer(&core, later_take(&later, 0), 0);
    while (core_turn(&core) || later.count);
    turn_end(&core);
}

/* Tries until it is no -EAGAIN, at most so many turns: its result. */
static int large(uint32_t pages, uint32_t turns, uint32_t *ret_first)
{
    bool fresh;
    int rc;
    while ((rc = mcentral_cache_large(&core, client, CLASS_LARGE, pages, 1, ret_first, &fresh)) == -EAGAIN && turns--) {
        while (later.count)
            later_answer(&core, later_take(&later, 0), 0);
        turn();
    }
    turn_end(&core);
    return rc;
}

static int extend(uint32_t first, uint32_t pages, uint32_t turns)
{
    int rc;
    while ((rc = mcentral_extend(&core, client, 0, first, pages)) == -EAGAIN && turns--) {
        while (later.count)
            later_answer(&core, later_take(&later, 0), 0);
        turn();
    }
    turn_end(&core);
    return rc;
}

/* Every page is free or in the span that its entry says, and so many are in spans. */
static void all_is_whole(uint64_t pages)
{
    struct span_info span;
    uint64_t in_spans = 0;
    assert_int_equal(core.clearing, 0);
    assert_null(core.cutting_first);
    assert_int_equal(core.mheap.clearing_pages, 0);
    assert_null(mheap_check(&core.mheap, 0, core.mheap.top));
    for (uint64_t page = 1; page < core.mheap.top; page++) {
        if (!span_at(&f.h, page, &span)) {
            assert_true(pagealloc_all_free(&core.mheap.free, page, 1));
            continue;
        }
        assert_null(mcentral_check(&core, page));
        for (uint32_t i = 0; i < span.page_count; i++)
            assert_int_equal(f.h.pages[page + i], page_entry_make(span.span_class, f.h.spans[page].unit, i));
        in_spans += span.page_count;
        page += span.page_count - 1;
    }
    assert_int_equal(in_spans, pages);
    assert_int_equal(core.mheap.used_pages, pages);
    assert_int_equal(account_of(&core, 1000)->charged_pages, pages);
    assert_int_equal(account_of(&core, 1000)->cutting_pages, 0);
    assert_int_equal(core.mheap.units_used, pages ? 1 : 0);
}

static int setup(void **state)
{
    (void)state;
    fixture_init(&f, (uint64_t)PAGES << PAGE_SHIFT, 16);
    later.count = 0;
    most = 0;
    begin();
    core.mheap.reserve_pages = PAGES;
    client = attach(&core, 1, 1000);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_stop(&core);
    fixture_fini(&f);
    return 0;
}

static void no_turn_writes_more_than_its_share(void **state)
{
    uint32_t first, second;
    (void)state;
    assert_int_equal(large(LARGE, UINT32_MAX, &first), 1);
    all_is_whole(LARGE);
    assert_int_equal(extend(first, LARGE + MORE, UINT32_MAX), 0);
    all_is_whole(LARGE + MORE);
    assert_int_equal(extend(first, 7, UINT32_MAX), 0); /* what it grew by, and more, goes back */
    assert_int_equal(large(PAGES - 64, 0, &second), -EDQUOT);
    settle();
    all_is_whole(7);
    assert_int_equal(extend(first, LARGE, UINT32_MAX), 0);
    assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    assert_in_range(core.turn.entries, 0, TURN_ENTRIES);
    settle();
    all_is_whole(0);
    assert_in_range(most, 0, TURN_ENTRIES);
    assert_in_range(core.turn_most.entries, 0, TURN_ENTRIES);
}

/* A small request finds room while a huge one is under way, and others' huge ones get on as well. */
static void others_are_served_meanwhile(void **state)
{
    struct client *other = attach(&core, 2, 1001);
    uint32_t first, small[LEASE_SPANS_MAX], huge = 0, turns = 0;
    bool fresh;
    (void)state;
    assert_int_equal(large(LARGE, UINT32_MAX, &first), 1); /* memory is behind the pages from here on */
    assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    settle();
    assert_int_equal(large(LARGE, 0, &first), -EAGAIN);
    assert_true(mcentral_cache_span(&core, other, 20, 1, small, LEASE_SPANS_MAX, &fresh) > 0);
    while (mcentral_cache_large(&core, other, CLASS_LARGE, TURN_ENTRIES + 1, 1, &huge, &fresh) == -EAGAIN) {
        while (later.count)
            later_answer(&core, later_take(&later, 0), 0);
        turn();
        assert_in_range(turns++, 0, 1000);
    }
    assert_true(huge != 0);
    assert_int_equal(large(LARGE, UINT32_MAX, &first), 1);
    settle();
    assert_null(mcentral_check(&core, huge));
    assert_null(mcentral_check(&core, first));
}

/* The limit counts what is being granted. */
static void a_limit_counts_what_is_under_way(void **state)
{
    struct client *other = attach(&core, 2, 1000);
    uint32_t first;
    bool fresh;
    (void)state;
    while (large(7 * TURN_ENTRIES, 0, &first) == -EAGAIN && !client->cutting.pages) {
        later_answer(&core, later_take(&later, 0), 0);
        turn();
    }
    assert_int_equal(mcentral_cache_large(&core, other, CLASS_LARGE, 6 * TURN_ENTRIES, 1, &first, &fresh), -EDQUOT);
    assert_string_equal(core.refusal.limit, "limit-user-bytes");
    assert_int_equal(large(7 * TURN_ENTRIES, UINT32_MAX, &first), 1);
    all_is_whole(7 * TURN_ENTRIES);
}

enum phase { GRANT, GROW, SHRINK, GIVE_BACK, PHASES };

/* Begins something huge and lets so many turns go by: pages that are the client's. */
static uint64_t begin_phase(enum phase phase, uint32_t turns)
{
    uint32_t first;
    if (phase == GRANT) {
        int rc = large(LARGE, turns, &first);
        return rc == 1 ? LARGE : 0;
    }
    assert_int_equal(large(LARGE, UINT32_MAX, &first), 1);
    if (phase == GROW)
        return extend(first, LARGE + MORE, turns) == 0 ? LARGE + MORE : LARGE;
    if (phase == SHRINK)
        assert_int_equal(extend(first, 9, 0), 0);
    else
        assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    while (turns--)
        turn();
    return phase == SHRINK ? 9 : 0;
}

static void a_client_that_dies_meanwhile_leaves_nothing(void **state)
{
    for (enum phase phase = 0; phase < PHASES; phase++)
        for (uint32_t turns = 0; turns < STEPS; turns++) {
            begin_phase(phase, turns);
            client_die(&core, client);
            settle();
            all_is_whole(0);
            teardown(state);
            setup(state);
        }
}

static void a_request_that_is_given_up_leaves_what_there_was(void **state)
{
    for (uint32_t turns = 0; turns < STEPS; turns++) {
        uint64_t has = begin_phase(GROW, turns);
        mcentral_give_up(&core, client); /* it hangs up, and lives */
        settle();
        all_is_whole(has);
        teardown(state);
        setup(state);
    }
}

static void a_daemon_that_dies_meanwhile_leaves_what_was_granted(void **state)
{
    for (enum phase phase = 0; phase < PHASES; phase++)
        for (uint32_t turns = 0; turns < STEPS; turns++) {
            uint64_t has = begin_phase(phase, turns);
            later.count = 0;
            core_stop(&core);
            begin();
            client = core.clients[1];
            settle();
            all_is_whole(has);
            client_die(&core, client);
            settle();
            all_is_whole(0);
            teardown(state);
            setup(state);
        }
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(no_turn_writes_more_than_its_share),
        TEST(others_are_served_meanwhile),
        TEST(a_limit_counts_what_is_under_way),
        TEST(a_client_that_dies_meanwhile_leaves_nothing),
        TEST(a_request_that_is_given_up_leaves_what_there_was),
        TEST(a_daemon_that_dies_meanwhile_leaves_what_was_granted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
