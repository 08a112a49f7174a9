/* shm/heap: the geometry of the regions, and what is refused of a header that came from outside.
 *
 * Goal: the parts of a region never overlap or reach beyond it, for any size; and a header of which
 * any one field is wrong is refused with a reason. Method: many sizes; then each field of a good
 * header set to wrong values in turn.
 */
#include "tests/shm/fixture.h"

#include <errno.h>

#include "shm/sizeclass.h"

static void check_geometry(uint64_t heap_max, uint32_t root_slots)
{
    struct geometry g;
    assert_int_equal(geometry_init(&g, heap_max, root_slots), 0);
    assert_true(g.heap_bytes >= heap_max && g.heap_bytes - heap_max < HEAP_MIN &&
                g.heap_bytes % HEAP_MIN == 0);
    assert_int_equal(g.page_count, g.heap_bytes / PAGE_SIZE);
    assert_true(g.tags_at >= sizeof(struct map_header));
    assert_true(g.gens_at >= g.tags_at + TAG_COUNT * sizeof(struct tag));
    assert_true(g.roots_at >= g.gens_at + ROOT_GENS * sizeof(uint32_t) +
                                  (root_slots + ROOT_BLOCK - 1) / ROOT_BLOCK / 8);
    assert_true(g.buckets_at >= g.roots_at + (uint64_t)root_slots * sizeof(struct root));
    assert_true(g.pages_at >= g.buckets_at + (uint64_t)root_slots * sizeof(struct root_bucket));
    assert_true(g.spans_at >= g.pages_at + g.page_count * sizeof(uint64_t));
    assert_true(g.map_bytes >= g.spans_at + g.page_count * sizeof(struct span));
    assert_true(g.words_at >= g.page_count);
    assert_true(g.state_bytes >= g.words_at + g.unit_count * UNIT_BYTES);
    assert_true(g.map_bytes % 4096 == 0 && g.state_bytes % 4096 == 0 && g.words_at % 4096 == 0);
    assert_true(g.unit_count <= UINT32_MAX); /* a page entry has 32 bits for it */
    /* a word an object, for every class from 8 bytes on: a heap full of them runs out of neither */
    for (unsigned c = 4; c < SPAN_CLASS_COUNT && heap_max <= HEAP_MAX / 2; c += 2)
        assert_true(g.page_count / class_table[c].pages *
                        ((class_table[c].objects + UNIT_WORDS - 1u) / UNIT_WORDS) <=
                    g.unit_count);
}

static void the_parts_of_the_regions_do_not_overlap_at_any_size(void **state)
{
    static const uint32_t slots[] = {1, 2, 63, 64, 65, 4096, ROOT_SLOTS_MAX};
    (void)state;
    for (size_t i = 0; i < sizeof slots / sizeof slots[0]; i++) {
        check_geometry(HEAP_MIN, slots[i]);
        check_geometry(HEAP_MIN + 1, slots[i]);
        check_geometry(64 << 20, slots[i]);
        check_geometry((5ULL << 30) + 12345, slots[i]);
        check_geometry(HEAP_MAX - 1, slots[i]);
        check_geometry(HEAP_MAX, slots[i]);
    }
}

static void sizes_out_of_range_are_refused(void **state)
{
    struct geometry g;
    (void)state;
    assert_int_equal(geometry_init(&g, HEAP_MIN - 1, 64), -EINVAL);
    assert_int_equal(geometry_init(&g, 0, 64), -EINVAL);
    assert_int_equal(geometry_init(&g, HEAP_MAX + 1, 64), -EINVAL);
    assert_int_equal(geometry_init(&g, UINT64_MAX, 64), -EINVAL);
    assert_int_equal(geometry_init(&g, HEAP_MIN, 0), -EINVAL);
    assert_int_equal(geometry_init(&g, HEAP_MIN, ROOT_SLOTS_MAX + 1), -EINVAL);
}

static void the_shared_structures_have_the_sizes_that_other_builds_expect(void **state)
{
    (void)state; /* a change here is a new LAYOUT_VERSION, also in the HELLOs of
                    tests/fuzz/corpus/core */
    assert_int_equal(LAYOUT_VERSION, 3);
    assert_int_equal(sizeof(struct map_header), 400); /* in a page of its own: what comes at its end moves nothing */
    assert_int_equal(sizeof(struct redo), 96);
    assert_int_equal(sizeof(struct tag), 72);
    assert_int_equal(sizeof(struct root), 88);
    assert_int_equal(sizeof(struct root_bucket), 8);
    assert_int_equal(offsetof(struct map_header, root_key), 296);
    assert_int_equal(sizeof(struct span), 24);
    assert_int_equal(offsetof(struct map_header, heap_id), 16);
    assert_int_equal(offsetof(struct map_header, epoch), 136);
}

static void the_page_entry_holds_its_three_numbers_at_their_limits(void **state)
{
    static const uint32_t units[] = {0, 1, UINT32_MAX};
    static const uint32_t indices[] = {0, 1, HEAP_MAX_SPAN};
    (void)state;
    for (unsigned c = 0; c < 256; c++)
        for (int u = 0; u < 3; u++)
            for (int i = 0; i < 3; i++) {
                uint64_t entry = page_entry_make(c, units[u], indices[i]);
                assert_int_equal(page_entry_class(entry), c);
                assert_int_equal(page_entry_unit(entry), units[u]);
                assert_int_equal(page_entry_index(entry), indices[i]);
            }
    assert_int_equal(page_entry_class(PAGE_COLD), 0);
    assert_int_equal(page_entry_class(PAGE_WARM), 0);
    assert_true(PAGE_COLD != PAGE_WARM);
}

/* ---- headers ------------------------------------------------------------------------------ */

static int check(const struct fixture *f, const struct map_header *header, const char **ret_why)
{
    struct geometry g;
    *ret_why = NULL;
    return heap_check_header(header, f->g.map_bytes, f->g.state_bytes, &g, ret_why);
}

static void a_formatted_header_is_accepted_with_its_geometry(void **state)
{
    struct fixture f;
    struct geometry g;
    const char *why = NULL;
    (void)state;
    fixture_init(&f, 100 << 20, 128);
    assert_int_equal(heap_check_header(f.h.header, f.g.map_bytes, f.g.state_bytes, &g, &why), 0);
    assert_memory_equal(&g, &f.g, sizeof g);
    assert_int_equal(
        heap_check_header(f.h.header, f.g.map_bytes + 4096, f.g.state_bytes + 1, &g, &why), 0);
    assert_null(why);
    fixture_fini(&f);
}

/* Every value that one flipped bit of the field makes, 0, and all ones. */
static void refuse_field(const struct fixture *f, size_t at, size_t bytes)
{
    const char *why;
    for (size_t bit = 0; bit < bytes * 8 + 2; bit++) {
        struct map_header wrong = *f->h.header;
        uint8_t *field = (uint8_t *)&wrong + at;
        if (bit < bytes * 8)
            field[bit / 8] ^= (uint8_t)(1u << bit % 8);
        else
            memset(field, bit == bytes * 8 ? 0 : 0xff, bytes);
        if (memcmp(&wrong, f->h.header, sizeof wrong) == 0)
            continue;
        if (check(f, &wrong, &why) != -EPROTO || !why)
            fail_msg("offset %zu: variant %zu was accepted", at, bit);
    }
}

#define REFUSE(field) refuse_field(&f, offsetof(struct map_header, field), sizeof f.h.header->field)

static void a_header_with_any_wrong_field_is_refused(void **state)
{
    struct fixture f;
    const char *why;
    (void)state;
    fixture_init(&f, 100 << 20, 128);
    REFUSE(magic);
    REFUSE(version);
    REFUSE(page_shift);
    REFUSE(heap_max);
    REFUSE(map_bytes);
    REFUSE(state_bytes);
    REFUSE(page_count);
    REFUSE(unit_count);
    REFUSE(class_digest);
    for (uint32_t slots = 0; slots <= 4096;
         slots += 256) { /* a few more or fewer need no other geometry */
        f.h.header->root_slots = slots;
        assert_int_equal(check(&f, f.h.header, &why), -EPROTO);
    }
    f.h.header->root_slots = 128;
    assert_int_equal(check(&f, f.h.header, &why), 0);
    f.h.header->heap_max--; /* would be rounded up to the same geometry */
    assert_int_equal(check(&f, f.h.header, &why), -EPROTO);
    fixture_fini(&f);
}

static void regions_shorter_than_the_header_says_are_refused(void **state)
{
    struct fixture f;
    struct geometry g;
    const char *why = NULL;
    (void)state;
    fixture_init(&f, 100 << 20, 128);
    assert_int_equal(heap_check_header(f.h.header, f.g.map_bytes - 1, f.g.state_bytes, &g, &why),
                     -EPROTO);
    assert_non_null(why);
    why = NULL;
    assert_int_equal(heap_check_header(f.h.header, f.g.map_bytes, f.g.state_bytes - 1, &g, &why),
                     -EPROTO);
    assert_non_null(why);
    assert_int_equal(
        heap_check_header(f.h.header, sizeof(struct map_header) - 1, f.g.state_bytes, &g, &why),
        -EPROTO);
    assert_int_equal(heap_check_header(f.h.header, 0, 0, &g, &why), -EPROTO);
    fixture_fini(&f);
}

static void regions_of_zeroes_are_nobodys_heap(void **state)
{
    struct map_header header = {0};
    struct geometry g;
    const char *why = NULL;
    (void)state;
    assert_int_equal(heap_check_header(&header, UINT64_MAX, UINT64_MAX, &g, &why), -EPROTO);
    assert_non_null(strstr(why, "magic"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_parts_of_the_regions_do_not_overlap_at_any_size),
        cmocka_unit_test(sizes_out_of_range_are_refused),
        cmocka_unit_test(the_shared_structures_have_the_sizes_that_other_builds_expect),
        cmocka_unit_test(the_page_entry_holds_its_three_numbers_at_their_limits),
        cmocka_unit_test(a_formatted_header_is_accepted_with_its_geometry),
        cmocka_unit_test(a_header_with_any_wrong_field_is_refused),
        cmocka_unit_test(regions_shorter_than_the_header_says_are_refused),
        cmocka_unit_test(regions_of_zeroes_are_nobodys_heap),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
