/* client/alloc/mcache.h: who switches the fast paths off, and a thread that is about to switch its own on.
 *
 * Goal: whatever their order, a heap that is of the past, or whose allocations are watched, is served by no fast path.
 * Method: two threads that go through the same mcaches many times; each stores one word and loads the other's, which
 * without a full fence between the two a processor does in the other order now and then.
 */
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include <cmocka.h>

#include "client/alloc/mcache.h"
#include "client/link/hooks.h"

enum { HEAPS = 128, ROUNDS = 8000 };

static struct arena *heaps; /* HEAPS of them, of each of which little is touched */
static struct mcache mcaches[HEAPS];
static uint32_t begun, ended; /* rounds. sync: atomic */

/* In place of thread.c's: each heap has one mcache. */
static void expire(struct arena *a) { store_relaxed(&mcaches[a - heaps].expect, NO_WORD); }

static void await(const uint32_t *counter, uint32_t value)
{
    for (unsigned looks = 0; load_acquire(counter) < value; looks++)
        if (looks > 1000)
            sched_yield(); /* the other one may have no processor */
}

static void *other(void *set)
{
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        await(&begun, round);
        for (uint32_t i = 0; i < HEAPS; i++)
            ((void (*)(struct arena *))set)(&heaps[i]);
        store_release(&ended, round);
    }
    return NULL;
}

/* In a round each mcache's fast path was off for a reason of its own thread's, which ends now. Both threads go through
 * all of them, with nothing between them that would order what they do. */
static uint64_t mcaches_left_on(void (*set)(struct arena *))
{
    pthread_t thread;
    uint64_t wrong = 0;
    begun = ended = 0;
    assert_int_equal(pthread_create(&thread, NULL, other, (void *)set), 0);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        for (uint32_t i = 0; i < HEAPS; i++) {
            heaps[i].conn.stale = heaps[i].watched = false;
            mcaches[i].expect = NO_WORD;
        }
        store_release(&begun, round);
        for (volatile unsigned pause = round % 200; pause; pause--) /* until the other one has noticed */
            ;
        for (uint32_t i = 0; i < HEAPS; i++)
            mcache_expect(&mcaches[i]);
        await(&ended, round);
        for (uint32_t i = 0; i < HEAPS; i++)
            wrong += mcaches[i].expect != NO_WORD;
    }
    pthread_join(thread, NULL);
    return wrong;
}

static int setup(void **state)
{
    (void)state;
    heaps = mmap(NULL, HEAPS * sizeof *heaps, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                 -1, 0);
    for (uint32_t i = 0; heaps != MAP_FAILED && i < HEAPS; i++) {
        mcaches[i].arena = &heaps[i];
        mcaches[i].cached = WORD_CACHED(7);
    }
    return heaps == MAP_FAILED;
}

static void become_stale(struct arena *a)
{
    hooks.stale = expire;
    conn_set_stale(a);
}

static void a_heap_of_the_past_is_served_by_no_fast_path(void **state)
{
    (void)state;
    assert_int_equal(mcaches_left_on(become_stale), 0);
}

static void be_watched(struct arena *a)
{
    store_relaxed(&a->watched, true);
    fence_seq_cst(); /* [EX1] as client/debug/profile.c does */
    expire(a);
}

static void a_watched_allocation_takes_no_fast_path(void **state)
{
    (void)state;
    assert_int_equal(mcaches_left_on(be_watched), 0);
}

static void the_fast_path_comes_back_where_nothing_is_against_it(void **state)
{
    (void)state;
    heaps->conn.stale = heaps->watched = false;
    mcaches->expect = NO_WORD;
    mcache_expect(mcaches);
    assert_int_equal(mcaches->expect, WORD_CACHED(7));
    heaps->watched = true;
    mcache_expect(mcaches);
    assert_int_equal(mcaches->expect, NO_WORD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_heap_of_the_past_is_served_by_no_fast_path),
        cmocka_unit_test(a_watched_allocation_takes_no_fast_path),
        cmocka_unit_test(the_fast_path_comes_back_where_nothing_is_against_it),
    };
    return cmocka_run_group_tests_name("client/expect", tests, setup, NULL);
}
