/* shm/sizeclass: which class serves a request, and an object's index from its offset.
 *
 * Goal: every answer is right, for every input. Method: exhaustion: every request size, every
 * offset in a span of every class, every alignment. That the committed table is what its generator
 * writes is tests/scripts/sizeclass_table.sh.
 */
#include "tests/shm/fixture.h"

#include "shm/sizeclass.h"

static uint32_t size_of(unsigned size_class, unsigned noscan)
{
    return class_table[SPAN_CLASS(size_class, noscan)].size;
}

static void classes_grow_and_scan_and_noscan_are_alike(void **state)
{
    (void)state;
    for (unsigned c = 1; c < SIZE_CLASS_COUNT; c++) {
        const struct class_info *scan = &class_table[SPAN_CLASS(c, 0)],
                                *noscan = &class_table[SPAN_CLASS(c, 1)];
        assert_memory_equal(scan, noscan, sizeof *scan);
        assert_true(scan->size > size_of(c - 1, 0));
        assert_true(scan->size < 16 || scan->size % 16 == 0);
        assert_int_equal(scan->objects, scan->pages * PAGE_SIZE / scan->size);
        assert_true(scan->pages <= 16); /* struct span.returned has a bit a page */
        assert_true(CLASS_VALID(SPAN_CLASS(c, 0)) && CLASS_VALID(SPAN_CLASS(c, 1)));
    }
    assert_int_equal(size_of(SIZE_CLASS_COUNT - 1, 0), SMALL_MAX);
}

static void classes_that_do_not_exist_have_no_size(void **state)
{
    (void)state;
    for (unsigned c = 0; c < 256; c++)
        assert_int_equal(class_table[c].size != 0, c >= 2 && c < SPAN_CLASS_COUNT);
    assert_false(CLASS_VALID(0) || CLASS_VALID(1) || CLASS_VALID(SPAN_CLASS_COUNT) ||
                 CLASS_VALID(CLASS_LARGE - 1));
    assert_true(CLASS_VALID(CLASS_LARGE) && CLASS_VALID(CLASS_LARGE + 1) &&
                CLASS_IS_LARGE(CLASS_LARGE));
}

static void every_power_of_two_has_a_class(void **state)
{
    (void)state;
    for (uint32_t size = 8; size <= SMALL_MAX; size *= 2)
        assert_int_equal(size_of(size_class_of(size, 0), 0), size);
}

/* the smallest class that `size` fits into; 4 and 12 are for noscan objects only */
static unsigned smallest(uint32_t size, unsigned noscan)
{
    unsigned c = 1;
    while (size_of(c, noscan) < size || (!noscan && size_of(c, 0) < 16 && size_of(c, 0) != 8))
        c++;
    return c;
}

static void each_size_gets_the_smallest_class_that_holds_it(void **state)
{
    (void)state;
    for (uint32_t size = 0; size <= SMALL_MAX; size++) {
        assert_int_equal(size_class_of(size, 0), smallest(size, 0));
        assert_int_equal(size_class_of(size, 1), smallest(size, 1));
    }
}

static void the_index_is_exact_for_each_offset_of_each_class(void **state)
{
    (void)state;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        const struct class_info *info = &class_table[c];
        uint32_t bytes = info->pages * (uint32_t)PAGE_SIZE, wrong = 0;
        for (uint32_t offset = 0; offset < bytes; offset++)
            wrong += class_index(info, offset) != offset / info->size;
        assert_int_equal(wrong, 0);
    }
}

static void an_aligned_class_has_its_objects_at_multiples_of_the_alignment(void **state)
{
    (void)state;
    for (unsigned noscan = 0; noscan < 2; noscan++)
        for (uint32_t align = 1; align <= PAGE_SIZE; align *= 2)
            for (uint32_t size = 0; size <= SMALL_MAX; size++) {
                unsigned c = size_class_aligned(size, align, noscan),
                         first = size_class_of(size ? size : 1, noscan);
                assert_true(c != 0 && c < SIZE_CLASS_COUNT); /* 32 KiB is a multiple of them all */
                assert_true(size_of(c, noscan) >= size && size_of(c, noscan) % align == 0);
                for (unsigned lower = first; lower < c; lower++)
                    assert_true(size_of(lower, noscan) % align != 0);
            }
    assert_int_equal(size_class_aligned(SMALL_MAX, SMALL_MAX * 2, 0), 0);
}

static void large_objects_waste_at_most_an_eighth(void **state)
{
    uint64_t size = SMALL_MAX + 1;
    uint32_t last = 0;
    (void)state;
    while (size >> PAGE_SHIFT < HEAP_MAX_SPAN) {
        uint32_t pages = large_pages(size);
        uint64_t least = (size + PAGE_SIZE - 1) >> PAGE_SHIFT;
        assert_true(pages >= least && pages <= HEAP_MAX_SPAN);
        assert_true((pages - least) * 8 <= pages);
        assert_true(pages >= last);
        assert_int_equal(large_pages((uint64_t)pages << PAGE_SHIFT),
                         pages); /* what was freed serves the same again */
        last = pages;
        size += size < 4 << 20 ? 1024 : size / 1021;
    }
}

static void large_sizes_at_the_limits_are_served_or_refused(void **state)
{
    uint64_t most = (uint64_t)HEAP_MAX_SPAN << PAGE_SHIFT;
    (void)state;
    assert_int_equal(large_pages(0), 1);
    assert_int_equal(large_pages(1), 1);
    assert_int_equal(large_pages(PAGE_SIZE + 1), 2);
    assert_int_equal(large_pages(most), HEAP_MAX_SPAN);
    assert_int_equal(large_pages(most + 1), 0);
    assert_int_equal(large_pages(UINT64_MAX - PAGE_SIZE), 0);
    assert_int_equal(large_pages(UINT64_MAX - PAGE_SIZE + 1), 0);
    assert_int_equal(large_pages(UINT64_MAX - 1), 0);
    assert_int_equal(large_pages(UINT64_MAX), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(classes_grow_and_scan_and_noscan_are_alike),
        cmocka_unit_test(classes_that_do_not_exist_have_no_size),
        cmocka_unit_test(every_power_of_two_has_a_class),
        cmocka_unit_test(each_size_gets_the_smallest_class_that_holds_it),
        cmocka_unit_test(the_index_is_exact_for_each_offset_of_each_class),
        cmocka_unit_test(an_aligned_class_has_its_objects_at_multiples_of_the_alignment),
        cmocka_unit_test(large_objects_waste_at_most_an_eighth),
        cmocka_unit_test(large_sizes_at_the_limits_are_served_or_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
