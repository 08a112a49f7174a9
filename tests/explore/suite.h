/* What the explorer's test programs share: each scenario is a test, and each mutant must be found. */
#ifndef TESTS_EXPLORE_SUITE_H
#define TESTS_EXPLORE_SUITE_H

#include "tests/explore/world.h"

#define SCENARIO(name_, setup_, final_, ...)                                                       \
    {                                                                                              \
        .name = name_, .setup = setup_, .final = final_, .invariant = world_invariant,             \
        .killed = world_killed, __VA_ARGS__                                                        \
    }

struct suite_mutant {
    unsigned scenario; /* its place in `scenarios` */
    struct ex_mutant mutant;
};

struct suite {
    const char *name;
    const struct ex_scenario *scenarios; /* `make test`: each of them to its end, or to a bound */
    unsigned scenario_count;
    const struct ex_scenario *larger; /* EXPLORE=all */
    unsigned larger_count;
    const struct suite_mutant *mutants;
    unsigned mutant_count;
};

int suite_main(const struct suite *s); /* for main() to return */

#endif
