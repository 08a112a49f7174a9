/* Goal: nobody is served twice while another that stands in line waits; who was quiet waits for no flood. Method: random
 * arrivals and services against a count for each pair; then a flood beside one that asks now and then. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/os/ready.h"
#include "tests/random.h"

enum { COUNT = 12 };

static struct ready_line line;
static struct ready all[COUNT];
static unsigned served[COUNT][COUNT]; /* [x][y]: how often y was served since x stands there */

static int setup(void **state)
{
    (void)state;
    ready_init(&line);
    memset(all, 0, sizeof all);
    memset(served, 0, sizeof served);
    return 0;
}

static void add(unsigned x)
{
    if (!all[x].list)
        memset(served[x], 0, sizeof served[x]);
    ready_add(&line, &all[x]);
}

static int serve(void)
{
    struct ready *r = ready_take(&line);
    if (!r)
        return -1;
    unsigned y = (unsigned)(r - all);
    for (unsigned x = 0; x < COUNT; x++)
        if (all[x].list && ++served[x][y] > 1)
            fail_msg("%u was served twice while %u waited", y, x);
    return (int)y;
}

static void nobody_is_served_twice_while_another_waits(void **state)
{
    uint64_t seed = seed_get();
    unsigned services = 0;
    (void)state;
    for (int step = 0; step < 300000; step++) {
        unsigned floods = 1 + (unsigned)(step / 10000) % COUNT; /* so many are there again at once */
        uint64_t what = rnd(&seed) % 10;
        if (what < 4)
            add((unsigned)(rnd(&seed) % COUNT));
        else if (what < 5)
            ready_remove(&all[rnd(&seed) % COUNT]);
        else {
            int y = serve();
            services += y >= 0;
            if (y >= 0 && (unsigned)y < floods)
                add((unsigned)y);
        }
    }
    assert_in_range(services, 100000, 300000);
    while (serve() >= 0)
        ;
    for (unsigned x = 0; x < COUNT; x++)
        assert_null(all[x].list); /* all were served */
}

static void who_was_quiet_waits_for_no_flood(void **state)
{
    (void)state;
    for (unsigned x = 1; x < COUNT; x++)
        add(x);
    for (int n = 0; n < 100; n++) {
        for (int k = 0; k < 3 * COUNT; k++) { /* the floods, round and round */
            int y = serve();
            assert_in_range(y, 1, COUNT - 1);
            add((unsigned)y);
        }
        add(0);
        assert_int_equal(serve(), 0);
    }
}

static void floods_are_served_in_turn(void **state)
{
    unsigned count[COUNT] = {0};
    (void)state;
    for (unsigned x = 0; x < COUNT; x++)
        add(x);
    for (int k = 0; k < 100 * COUNT; k++) {
        int y = serve();
        count[y]++;
        add((unsigned)y);
    }
    for (unsigned x = 0; x < COUNT; x++)
        assert_int_equal(count[x], 100);
}

static void who_is_removed_is_not_served_and_may_come_back(void **state)
{
    (void)state;
    for (unsigned x = 0; x < 3; x++)
        add(x);
    add(1); /* stands there already */
    ready_remove(&all[1]);
    ready_remove(&all[1]);
    assert_int_equal(serve(), 0);
    assert_int_equal(serve(), 2);
    assert_int_equal(serve(), -1);
    add(1);
    assert_int_equal(serve(), 1);
    assert_int_equal(serve(), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nobody_is_served_twice_while_another_waits, setup),
        cmocka_unit_test_setup(who_was_quiet_waits_for_no_flood, setup),
        cmocka_unit_test_setup(floods_are_served_in_turn, setup),
        cmocka_unit_test_setup(who_is_removed_is_not_served_and_may_come_back, setup),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
