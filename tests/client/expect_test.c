/* client/client.h: who switches the fast paths off, and a thread that is about to switch its own on.
 *
 * Goal: whatever their order, a heap that is of the past, or whose allocations are watched, is served by no fast path.
 * Method: two threads that meet many times; each stores one word and loads the other's, which without a full fence between
 * the two a processor does in the other order now and then.
 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/client.h"

enum { ROUNDS = 600000 };

static struct arena *a;
static struct mcache mc;
static uint32_t begun, ended; /* rounds. sync: atomic */

/* In place of thread.c's: this mcache is the only one. */
void mcaches_expire(struct arena *of)
{
    (void)of;
    store_relaxed(&mc.expect, NO_WORD);
}

static void await(const uint32_t *counter, uint32_t value)
{
    while (load_acquire(counter) < value)
        ;
}

static void *other(void *set)
{
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        await(&begun, round);
        for (volatile unsigned pause = round % 24; pause; pause--)
            ;
        ((void (*)(void))set)();
        store_release(&ended, round);
    }
    return NULL;
}

/* A round: the fast path was off for this thread's own reason, which ends now. */
static uint32_t rounds_that_left_it_on(void (*set)(void))
{
    pthread_t thread;
    uint32_t wrong = 0;
    begun = ended = 0;
    a = calloc(1, sizeof *a);
    assert_non_null(a);
    mc.arena = a;
    mc.cached = WORD_CACHED(7);
    assert_int_equal(pthread_create(&thread, NULL, other, (void *)set), 0);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        a->conn.stale = a->watched = false;
        mc.tx = (void *)a;
        mcache_expect(&mc);
        mc.tx = NULL;
        store_release(&begun, round);
        for (volatile unsigned pause = round / 24 % 400; pause; pause--)
            ;
        mcache_expect(&mc);
        await(&ended, round);
        wrong += load_relaxed(&mc.expect) != NO_WORD;
    }
    pthread_join(thread, NULL);
    free(a);
    return wrong;
}

static void become_stale(void) { heap_set_stale(a); }

static void a_heap_of_the_past_is_served_by_no_fast_path(void **state)
{
    (void)state;
    assert_int_equal(rounds_that_left_it_on(become_stale), 0);
}

static void be_watched(void)
{
    store_relaxed(&a->watched, true);
    fence_seq_cst(); /* [EX1] as client/profile.c does */
    mcaches_expire(a);
}

static void a_watched_allocation_takes_no_fast_path(void **state)
{
    (void)state;
    assert_int_equal(rounds_that_left_it_on(be_watched), 0);
}

static void the_fast_path_comes_back_where_nothing_is_against_it(void **state)
{
    (void)state;
    a = calloc(1, sizeof *a);
    assert_non_null(a);
    mc.arena = a;
    mc.cached = WORD_CACHED(7);
    mc.expect = NO_WORD;
    mcache_expect(&mc);
    assert_int_equal(mc.expect, WORD_CACHED(7));
    a->watched = true;
    mcache_expect(&mc);
    assert_int_equal(mc.expect, NO_WORD);
    free(a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_heap_of_the_past_is_served_by_no_fast_path),
        cmocka_unit_test(a_watched_allocation_takes_no_fast_path),
        cmocka_unit_test(the_fast_path_comes_back_where_nothing_is_against_it),
    };
    return cmocka_run_group_tests_name("client/expect", tests, NULL, NULL);
}
