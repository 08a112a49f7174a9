/* shm/span: records and page entries, and what object_find() makes of any offset.
 *
 * Goal: a span that was written reads back whole, each damage is noticed by span_check(), and every
 * byte of a span leads to its object and nothing else does. Method: spans of every class side by
 * side and every offset in them; then a good record with one field damaged at a time.
 */
#include "tests/shm/fixture.h"

#include "shm/span.h"

enum { HEAP_BYTES = 16 << 20 };

/* Writes a span of each class, one behind the other from page 3 on; where each begins. */
static void write_all_classes(struct fixture *f, uint64_t *ret_first)
{
    uint64_t page = 3;
    uint32_t unit = 1;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        ret_first[c] = page;
        span_write(&f->h, page, class_table[c].pages, c, unit, 0, 0, 0);
        page += class_table[c].pages;
        unit += span_units(class_table[c].objects);
    }
    assert_true(page < f->g.page_count && unit < f->g.unit_count);
}

static void each_offset_of_each_span_leads_to_its_object(void **state)
{
    struct fixture f;
    uint64_t first[SPAN_CLASS_COUNT];
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    write_all_classes(&f, first);
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        const struct class_info *info = &class_table[c];
        uint64_t start = first[c] << PAGE_SHIFT, bytes = (uint64_t)info->pages << PAGE_SHIFT;
        struct span_info span = {0};
        assert_true(span_at(&f.h, first[c], &span));
        for (uint64_t at = 0; at < bytes; at++) {
            struct object o;
            uint64_t index = at / info->size;
            int found = object_find(&f.h, start + at, &o);
            assert_int_equal(found, index < info->objects); /* not in the waste at the span's end */
            if (!found)
                continue;
            assert_true(o.first == first[c] && o.index == index && o.size == info->size &&
                        o.span_class == c);
            assert_true(o.offset == start + index * info->size && o.remainder == at % info->size);
            assert_ptr_equal(o.word, span.words + index);
        }
    }
    fixture_fini(&f);
}

static void no_two_spans_share_a_state_word(void **state)
{
    struct fixture f;
    uint64_t first[SPAN_CLASS_COUNT];
    uint16_t *end;
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    write_all_classes(&f, first);
    end = f.h.words;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        struct span_info span = {0};
        assert_true(span_at(&f.h, first[c], &span));
        assert_true(span.words >= end);
        end = span.words + span.objects;
    }
    fixture_fini(&f);
}

static void a_large_object_is_found_from_its_first_to_its_last_byte(void **state)
{
    struct fixture f;
    struct object o;
    uint64_t start = 10 << PAGE_SHIFT;
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    span_write(&f.h, 10, 100, CLASS_LARGE + 1, 7, 5, 5, 1000);
    for (uint64_t page = 0; page < 100; page++) {
        assert_true(object_find(&f.h, start + page * PAGE_SIZE + 17, &o));
        assert_true(o.first == 10 && o.index == 0 && o.offset == start &&
                    o.size == 100 * PAGE_SIZE);
        assert_int_equal(o.remainder, page * PAGE_SIZE + 17);
        assert_ptr_equal(o.word, f.h.words + 7 * UNIT_WORDS);
    }
    assert_false(object_find(&f.h, start - 1, &o));
    assert_true(object_find(&f.h, start + 100 * PAGE_SIZE - 1, &o));
    assert_false(object_find(&f.h, start + 100 * PAGE_SIZE, &o));
    fixture_fini(&f);
}

static void offsets_outside_of_every_span_lead_nowhere(void **state)
{
    struct fixture f;
    struct object o;
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    f.h.pages[4] = PAGE_WARM;
    assert_false(object_find(&f.h, 0, &o));
    assert_false(object_find(&f.h, 4 << PAGE_SHIFT, &o));
    assert_false(object_find(&f.h, HEAP_BYTES - 1, &o));
    assert_false(object_find(&f.h, HEAP_BYTES, &o));
    assert_false(object_find(&f.h, UINT64_MAX, &o));
    fixture_fini(&f);
}

/* The map is read-only for clients, but a reader must not run away with an entry that makes no
 * sense. */
static void entries_that_point_out_of_the_regions_lead_nowhere(void **state)
{
    struct fixture f;
    struct object o;
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    f.h.pages[2] = page_entry_make(10, 1, 3); /* the span would begin before page 0 */
    assert_false(object_find(&f.h, 2 << PAGE_SHIFT, &o));
    f.h.pages[2] = page_entry_make(10, (uint32_t)f.g.unit_count, 0);
    assert_false(object_find(&f.h, 2 << PAGE_SHIFT, &o));
    f.h.pages[2] = page_entry_make(10, UINT32_MAX, 0);
    assert_false(object_find(&f.h, 2 << PAGE_SHIFT, &o));
    f.h.pages[2] = page_entry_make(SPAN_CLASS_COUNT, 1, 0);
    assert_false(object_find(&f.h, 2 << PAGE_SHIFT, &o));
    f.h.pages[2] = page_entry_make(1, 1, 0);
    assert_false(object_find(&f.h, 2 << PAGE_SHIFT, &o));
    f.h.pages[2000] = page_entry_make(10, 1, 1999); /* an index beyond the span's objects */
    assert_false(object_find(&f.h, 2000 << PAGE_SHIFT, &o));
    fixture_fini(&f);
}

static void a_span_that_was_cleared_is_none_and_its_pages_are_free(void **state)
{
    struct fixture f;
    struct span_info span = {0};
    unsigned c = SPAN_CLASS(12, 1);
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    assert_true(class_table[c].pages >= 2);
    span_write(&f.h, 5, class_table[c].pages, c, 1, 3, 3, 1000);
    assert_true(span_at(&f.h, 5, &span));
    assert_true(span.first == 5 && span.span_class == c && span.objects == class_table[c].objects);
    assert_true(span.size == class_table[c].size && span.page_count == class_table[c].pages);
    assert_false(span_at(&f.h, 6, &span));
    assert_false(span_at(&f.h, f.g.page_count, &span));
    assert_false(span_at(&f.h, UINT64_MAX, &span));
    f.h.spans[5].returned = 2; /* the second page has no memory any more */
    span_clear(&f.h, 5);
    assert_false(span_at(&f.h, 5, &span));
    assert_int_equal(f.h.pages[5], PAGE_WARM);
    assert_int_equal(f.h.pages[6], PAGE_COLD);
    span_write(&f.h, 5, class_table[c].pages, c, 1, 0, 0, 0);
    assert_int_equal(f.h.spans[5].returned, 0);
    assert_null(span_check(&f.h, 5));
    fixture_fini(&f);
}

static void only_free_words_are_counted(void **state)
{
    struct fixture f;
    struct span_info span = {0};
    unsigned c = SPAN_CLASS(7, 0);
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    span_write(&f.h, 5, class_table[c].pages, c, 1, 0, 0, 0);
    assert_true(span_at(&f.h, 5, &span));
    assert_int_equal(span_count_free(&span), span.objects);
    span.words[0] = WORD_SHARED;
    span.words[1] = WORD_CACHED(1);
    span.words[2] = WORD_OWNED(32767);
    span.words[span.objects - 1] = WORD_OWNED(1);
    span.words[span.objects] = WORD_SHARED; /* not one of its words */
    assert_int_equal(span_count_free(&span), span.objects - 4);
    fixture_fini(&f);
}

static void the_check_notices_each_damage_of_a_record(void **state)
{
    struct fixture f;
    unsigned c = SPAN_CLASS(12, 0);
    (void)state;
    fixture_init(&f, HEAP_BYTES, 64);
    span_write(&f.h, 5, class_table[c].pages, c, 9, 3, 3, 1000);
    span_write(&f.h, 100, 40, CLASS_LARGE, 300, 0, 0, 0);
    struct span *small = &f.h.spans[5], *large = &f.h.spans[100], good = *small,
                good_large = *large;
#define DAMAGE(span, was, field, value)                                                            \
    do {                                                                                           \
        assert_null(span_check(&f.h, (uint64_t)((span)-f.h.spans)));                               \
        (span)->field = (value);                                                                   \
        assert_non_null(span_check(&f.h, (uint64_t)((span)-f.h.spans)));                           \
        *(span) = (was);                                                                           \
    } while (0)
    DAMAGE(small, good, span_class, 0);
    DAMAGE(small, good, span_class, SPAN_CLASS_COUNT);
    DAMAGE(small, good, span_class, (uint8_t)(c ^ 1));
    DAMAGE(small, good, page_count, 0);
    DAMAGE(small, good, page_count, good.page_count + 1);
    DAMAGE(small, good, page_count, UINT32_MAX);
    DAMAGE(small, good, unit, 0);
    DAMAGE(small, good, unit, good.unit + 1);
    DAMAGE(small, good, unit, UINT32_MAX);
    DAMAGE(small, good, lessee, TAG_COUNT);
    DAMAGE(small, good, charged, TAG_COUNT);
    DAMAGE(large, good_large, page_count, 41);
    DAMAGE(large, good_large, page_count, (uint32_t)f.g.page_count);
    for (uint64_t page = 0; page < 2; page++) {
        uint64_t *entry = &f.h.pages[5 + page], was = *entry;
        *entry ^= 1ULL << 40;
        assert_non_null(span_check(&f.h, 5));
        *entry = was ^ 1ULL << 8;
        assert_non_null(span_check(&f.h, 5));
        *entry = PAGE_WARM;
        assert_non_null(span_check(&f.h, 5));
        *entry = was;
    }
    static const uint64_t looked_at[] = {0, 7, 32,
                                         39}; /* of a large span's: its first and last eight */
    for (int i = 0; i < 4; i++) {
        uint64_t *entry = &f.h.pages[100 + looked_at[i]], was = *entry;
        *entry = PAGE_COLD;
        assert_non_null(span_check(&f.h, 100));
        *entry = was;
    }
    assert_null(span_check(&f.h, 100));
    fixture_fini(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_offset_of_each_span_leads_to_its_object),
        cmocka_unit_test(no_two_spans_share_a_state_word),
        cmocka_unit_test(a_large_object_is_found_from_its_first_to_its_last_byte),
        cmocka_unit_test(offsets_outside_of_every_span_lead_nowhere),
        cmocka_unit_test(entries_that_point_out_of_the_regions_lead_nowhere),
        cmocka_unit_test(a_span_that_was_cleared_is_none_and_its_pages_are_free),
        cmocka_unit_test(only_free_words_are_counted),
        cmocka_unit_test(the_check_notices_each_damage_of_a_record),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
