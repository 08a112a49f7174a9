/* Goal: time alone takes nothing from anybody. A client that says nothing for an hour, as a stopped one does, keeps its
 * leases, its objects and its tag, and hinders nobody; a clock that jumps, forwards or back, neither refuses memory that is
 * there nor grants what is not.
 *
 * Method: the core is driven without a loop, with the time passed in; an hour is 3,600 calls. */
#include <errno.h>

#include "tests/daemon/fixture.h"
#include "tests/shm/fixture.h"

enum { HEAP = 16 << 20 };
#define SECOND 1000000000ULL

static struct fixture f;
static struct core core;
static struct later later = {.allowance = HEAP >> PAGE_SHIFT};
static bool refuse;

static void answer_all(void)
{
    while (later.count) {
        struct asked asked = later_take(&later, later.count - 1);
        later_answer(&core, asked, asked.grow && refuse ? -ENOMEM : 0);
    }
}

static int setup(void **state)
{
    char why[256];
    struct backing backing = later_backing(&later);
    struct limits limits = {0};
    (void)state;
    fixture_init(&f, HEAP, 64);
    later.count = 0;
    refuse = false;
    assert_int_equal(core_start(&core, &f.h, &backing, &limits, SECOND, why), 0);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_stop(&core);
    fixture_fini(&f);
    return 0;
}

static int lease(struct client *client, unsigned span_class, uint32_t *ret_first)
{
    bool fresh;
    int n;
    for (int tries = 0; (n = mcentral_cache_span(&core, client, span_class, 1, ret_first, 1, &fresh)) == -EAGAIN && tries < 1000;
         tries++)
        answer_all();
    return n;
}

/* What the server does in a tick, and the turns that follow. */
static void tick(void)
{
    mheap_tick(&core.mheap);
    mheap_scavenge(&core.mheap, 2, 64, false);
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    sweep_cycle(&core);
    while (core_turn(&core))
        ;
    answer_all();
}

static void a_client_that_says_nothing_for_an_hour_keeps_what_it_has(void **state)
{
    struct client *stopped = attach(&core, 1, 1), *other = attach(&core, 1, 1);
    struct span_info span = {0};
    uint32_t first, its;
    (void)state;
    assert_int_equal(lease(stopped, 20, &first), 1);
    assert_true(span_at(&f.h, first, &span));
    span.words[0] = WORD_OWNED(stopped->tag);
    span.words[1] = WORD_CACHED(stopped->tag);
    span.words[2] = WORD_SHARED;
    uint16_t tag = stopped->tag;
    for (int second = 0; second < 3600; second++) {
        core.now_ns += SECOND;
        assert_int_equal(lease(other, 2 + (unsigned)second % 100, &its), 1); /* nobody is hindered */
        assert_int_not_equal(its, first);
        assert_int_equal(mcentral_uncache_span(&core, other, its), 0);
        tick();
    }
    assert_ptr_equal(core.clients[tag], stopped);
    assert_int_equal(tag_state(&f.h, tag), TAG_CLIENT);
    assert_int_equal(f.h.spans[first].lessee, tag);
    assert_int_equal(span.words[0], WORD_OWNED(tag));
    assert_int_equal(span.words[1], WORD_CACHED(tag));
    assert_int_equal(span.words[2], WORD_SHARED);
    assert_int_equal(core.heap.header->reclaimed_clients, 0);
}

static void a_clock_that_jumps_refuses_no_memory_that_is_there(void **state)
{
    static const int64_t jumps[] = {1, -7, 3600, -3600, 86400 * 365, -86400 * 365, 0};
    struct client *client = attach(&core, 1, 1);
    uint32_t first;
    (void)state;
    core.now_ns = 86400 * 366 * SECOND;
    for (size_t i = 0; i < sizeof jumps / sizeof jumps[0]; i++) {
        refuse = true; /* memory is short for a moment */
        for (int k = 0; k < 200; k++)
            if (lease(client, 40, &first) < 0)
                break;
        refuse = false;
        core.now_ns += (uint64_t)(jumps[i] * (int64_t)SECOND);
        tick();
        core.now_ns += SECOND; /* the time after which a refusal is looked at again */
        assert_int_equal(lease(client, 40, &first), 1);
    }
}

/* After a growth that failed others are refused unasked, for a while: but not when the system has been given something since. */
static void what_was_given_back_may_be_had_again_at_once(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t leased[2048], count = 0;
    (void)state;
    refuse = false;
    while (count < 2047 && lease(client, 40, &leased[count]) == 1)
        refuse = ++count >= 100;
    assert_in_range(count, 100, 2046);
    assert_int_equal(lease(client, 40, &leased[count]), -ENOMEM);
    refuse = false;
    for (uint32_t i = 0; i < count; i++)
        assert_int_equal(mcentral_uncache_span(&core, client, leased[i]), 0);
    while (mheap_scavenge(&core.mheap, 0, 4096, true))
        answer_all();
    assert_int_equal(core.mheap.warm.free_count, GROW_SMALL); /* as it has just grown */
    mheap_tick(&core.mheap);
    while (mheap_scavenge(&core.mheap, 0, 4096, true))
        answer_all();
    assert_int_equal(core.mheap.warm.free_count, 0);
    assert_int_equal(lease(client, 40, &leased[0]), 1); /* no time has passed */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_client_that_says_nothing_for_an_hour_keeps_what_it_has, setup, teardown),
        cmocka_unit_test_setup_teardown(a_clock_that_jumps_refuses_no_memory_that_is_there, setup, teardown),
        cmocka_unit_test_setup_teardown(what_was_given_back_may_be_had_again_at_once, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
