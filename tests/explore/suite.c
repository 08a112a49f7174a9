#include "tests/explore/suite.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include <cmocka.h>

static const struct suite *suite;

static void run_scenario(void **state)
{
    struct ex_scenario bounded = *(const struct ex_scenario *)*state, *scenario = &bounded;
    if (!getenv("EXPLORE"))
        bounded.most_states = 200000; /* where it is larger: what depth first comes to */
    struct timespec from, to;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &from);
    struct ex_result r = ex_run(scenario, NULL, true);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &to);
    printf("%-42s %s %9llu states %10llu transitions %6llu ends, at most %3u steps, %.1f s%s\n",
           scenario->name,
           scenario->order == EX_SC    ? "sc  "
           : scenario->order == EX_TSO ? "tso "
                                       : "weak",
           (unsigned long long)r.states, (unsigned long long)r.transitions,
           (unsigned long long)r.finals, r.depth,
           (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9,
           r.complete ? "" : " (not all)");
    if (r.violation[0])
        fail_msg("%s", r.violation);
    assert_true(r.finals > 0);
}

static void each_misplaced_store_is_found(void **state)
{
    unsigned missed = 0;
    (void)state;
    for (unsigned i = 0; i < suite->mutant_count; i++) {
        struct ex_scenario scenario = suite->scenarios[suite->mutants[i].scenario];
        struct ex_mutant mutant = suite->mutants[i].mutant;
        struct ex_result r;
        scenario.most_states = 500000;
        scenario.kills = mutant.no_kills ? 0 : scenario.kills;
        do /* where the code between changes, a store must be moved further to pass the same one */
            r = ex_run(&scenario, &mutant, getenv("VERBOSE") != NULL);
        while (!r.violation[0] && mutant.delay && mutant.delay++ < suite->mutants[i].mutant.delay + 4);
        printf("%-62s %s after %llu states: %s\n", mutant.what,
               r.violation[0] ? "found" : "NOT FOUND", (unsigned long long)r.states, r.violation);
        fflush(stdout);
        missed += !r.violation[0];
    }
    assert_int_equal(missed, 0);
}

int suite_main(const struct suite *s)
{
    enum { TESTS_MAX = 100 };
    static struct CMUnitTest tests[TESTS_MAX];
    const char *which = getenv("EXPLORE"), *only = getenv("ONLY");
    unsigned n = 0;
    suite = s;
    if (!ex_supported()) {
        printf("skipped: the explorer switches stacks by hand, on x86-64 only\n");
        return 77;
    }
    for (unsigned i = 0; i < s->scenario_count && n < TESTS_MAX - 1; i++)
        if (!only || strstr(s->scenarios[i].name, only))
            tests[n++] = (struct CMUnitTest){s->scenarios[i].name, run_scenario, NULL, NULL,
                                             (void *)(uintptr_t)&s->scenarios[i]};
    for (unsigned i = 0; which && strcmp(which, "all") == 0 && i < s->larger_count && n < TESTS_MAX - 1; i++)
        if (!only || strstr(s->larger[i].name, only))
            tests[n++] = (struct CMUnitTest){s->larger[i].name, run_scenario, NULL, NULL,
                                             (void *)(uintptr_t)&s->larger[i]};
    if (!only || strstr("each_misplaced_store_is_found", only))
        tests[n++] = (struct CMUnitTest)cmocka_unit_test(each_misplaced_store_is_found);
    return _cmocka_run_group_tests(s->name, tests, n, NULL, NULL);
}
