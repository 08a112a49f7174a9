/* client/alloc/keep.c: the bounds of what a process keeps.
 *
 * Goal: the table in keep.h is what the functions say, for each size of heap and number of clients; clients that come and go
 * change it at once; all bounds together leave a small heap's greater part to others. Method: a header and an account, no heap.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "client/alloc/keep.h"

#define MIB (1ULL << 20)
#define GIB (1ULL << 30)

static struct map_header header;

static struct keep keep_of(uint64_t heap_bytes, uint32_t clients)
{
    struct keep k;
    header.clients = clients;
    keep_init(&k, heap_bytes, &header, header.shortages);
    return k;
}

static void each_bound_is_that_of_the_table(void **state)
{
    static const struct {
        uint64_t heap;
        uint32_t clients, threads;
        uint64_t thread, most, free, full, large;
    } rows[] = {
        {64 * MIB, 1, 1, MIB, MIB, MIB, MIB, MIB}, /* of one client as of four */
        {64 * MIB, 4, 1, MIB, MIB, MIB, MIB, MIB},
        {64 * MIB, 4, 4, MIB / 4, MIB, MIB, MIB, MIB},
        {64 * MIB, 8, 0, MIB / 2, MIB / 2, MIB / 2, MIB / 2, MIB / 2}, /* nobody has an mcache yet */
        {1 * MIB, 64, 1, 1024, 1024, 1024, 1024, 1024},
        {512 * MIB, 4, 1, 3 * MIB, 8 * MIB, 3 * MIB, 8 * MIB, 8 * MIB},
        {1 * GIB - 4 * MIB, 4, 2, 3 * MIB, 16 * MIB - 64 * 1024, 3 * MIB, 16 * MIB - 64 * 1024, 16 * MIB - 64 * 1024},
        {1 * GIB, 4, 1, 3 * MIB, 256 * MIB, 3 * MIB, 32 * MIB, 32 * MIB},
        {1 * GIB, 4, 1024, MIB / 8, 256 * MIB, 3 * MIB, 32 * MIB, 32 * MIB},
        {1 * GIB, 64, 1, 3 * MIB, 16 * MIB, 3 * MIB, 16 * MIB, 16 * MIB},
        {64 * GIB, 1, 1, 3 * MIB, 256 * MIB, 3 * MIB, 32 * MIB, 32 * MIB},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct keep k = keep_of(rows[i].heap, rows[i].clients);
        assert_int_equal(keep_most(&k), rows[i].most);
        assert_int_equal(keep_thread_budget(&k, rows[i].threads), rows[i].thread);
        assert_int_equal(keep_free_least(&k), rows[i].free);
        assert_int_equal(keep_full_least(&k), rows[i].full);
        assert_int_equal(keep_large_least(&k), rows[i].large);
        assert_int_equal(keep_is_small(&k), rows[i].heap < GIB);
    }
}

static void a_limit_that_has_grown_is_cut_when_clients_come(void **state)
{
    (void)state;
    struct keep k = keep_of(8 * GIB, 4);
    assert_int_equal(k.free_limit, 3 * MIB);
    assert_int_equal(k.full_limit, 32 * MIB);
    assert_int_equal(keep_now(&k, 200 * MIB), 200 * MIB);
    header.clients = 128;
    assert_int_equal(keep_now(&k, 200 * MIB), 64 * MIB);
    header.clients = 1;
    assert_int_equal(keep_now(&k, 200 * MIB), 200 * MIB);
}

/* Magazines, free, full, large and a lease ahead: five kinds, of a quarter more than four. */
static void clients_of_a_small_heap_leave_the_greater_part(void **state)
{
    (void)state;
    for (uint64_t heap = MIB; heap < GIB; heap *= 2)
        for (uint32_t clients = 4; clients <= 4096; clients *= 2) {
            struct keep k = keep_of(heap, clients);
            uint64_t all = keep_thread_budget(&k, 1) + keep_free_least(&k) + 2 * keep_most(&k) + keep_most(&k) / 4;
            assert_true(all * clients <= heap * 17 / 64);
        }
}

static void what_was_short_before_is_not_short_now(void **state)
{
    (void)state;
    header.shortages = 41;
    struct keep k = keep_of(GIB, 1);
    assert_int_equal(k.shortage_seen, 41);
    header.shortages = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_bound_is_that_of_the_table),
        cmocka_unit_test(a_limit_that_has_grown_is_cut_when_clients_come),
        cmocka_unit_test(clients_of_a_small_heap_leave_the_greater_part),
        cmocka_unit_test(what_was_short_before_is_not_short_now),
    };
    return cmocka_run_group_tests_name("client/keep", tests, NULL, NULL);
}
