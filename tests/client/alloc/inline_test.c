/* Goal: what arena_inline.h compiles into programs reads the map as shm/ writes it.
 * Method: a span of each class over plain memory; every offset in it, and pages that are no span's. And an mcache of zeros, as
 * a fork leaves it: nothing is done in it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define ARENA_INLINE_INSIDE
#include "client/arena_inline.h"
#include "shm/sizeclass.h"
#include "shm/state.h"

enum { PAGES = 16, SPAN_AT = 3, UNIT = 5 };

static unsigned char *const base = (unsigned char *)0x550000000000;
static uint64_t pages[PAGES];
static uint16_t words[(UNIT + 2048) * UNIT_WORDS];
static struct arena_inline_mcache mc;
static uint8_t classes[SIZE_CLASS_EIGHTS];
static const struct arena_inline_heap heap = {base, PAGES * PAGE_SIZE, pages, words, classes, 0};

static void span_make(unsigned span_class)
{
    for (unsigned i = 0; i < PAGES; i++)
        pages[i] = i % 2 ? PAGE_COLD : PAGE_WARM;
    for (unsigned i = 0; i < class_table[span_class].pages; i++)
        pages[SPAN_AT + i] = page_entry_make(span_class, UNIT, i);
}

static int setup(void **state)
{
    (void)state;
    size_class_by_eights(classes);
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        mc.magazines[c].magic = class_table[c].magic;
        mc.magazines[c].objects = class_table[c].objects;
    }
    return 0;
}

static void a_word_is_found_where_an_object_begins_and_nowhere_else(void **state)
{
    (void)state;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        const struct class_info *info = &class_table[c];
        uint64_t wrong = 0;
        span_make(c);
        for (uint64_t at = 0; at < PAGES * PAGE_SIZE + 100; at++) {
            struct arena_magazine *m = NULL;
            uint16_t *word = NULL;
            uint64_t offset = at - SPAN_AT * PAGE_SIZE;
            bool begins = at >= SPAN_AT * PAGE_SIZE && offset % info->size == 0 && offset / info->size < info->objects;
            int found = arena_inline_word(&heap, &mc, at, &word, &m);
            wrong += found != begins;
            wrong += found && (m != &mc.magazines[c] || word != words + UNIT * UNIT_WORDS + offset / info->size);
        }
        assert_int_equal(wrong, 0);
    }
}

static void a_large_object_is_not_for_the_fast_path(void **state)
{
    (void)state;
    struct arena_magazine *m;
    uint16_t *word;
    pages[SPAN_AT] = page_entry_make(CLASS_LARGE, UNIT, 0);
    assert_int_equal(arena_inline_word(&heap, &mc, SPAN_AT * PAGE_SIZE, &word, &m), 0);
}

/* What a fork's child finds in the place of its parent's mcache. */
static void in_an_mcache_of_zeros_every_fast_path_fails(void **state)
{
    static struct arena_inline_mcache zeros;
    uint64_t done = 0;
    (void)state;
    memset(words, 0, sizeof words); /* FREE: equal to what stands where `expect` and `own` were */
    for (uint16_t word = 0; word <= 1; word++) {
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            words[i] = word;
        for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
            span_make(c);
            for (uint64_t at = 0; at < PAGES * PAGE_SIZE; at++)
                done += (uint64_t)arena_inline_push(&heap, &zeros, base + at);
        }
        for (size_t size = 0; size <= SMALL_MAX; size++) {
            void *p;
            done += (uint64_t)arena_inline_pop(&zeros, arena_inline_magazine_of(&heap, &zeros, size), zeros.owned, &p);
        }
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            done += words[i] != word;
    }
    assert_int_equal(done, 0);
}

/* Every word, by the fast path and by shm/state.h's door for the same transition: both change it, to the same, or neither. */
static void a_pop_changes_the_words_that_word_alloc_changes(void **state)
{
    static const uint16_t to[] = {WORD_OWNED(5), WORD_OWNED(6), WORD_SHARED}; /* T3, T4, T5 */
    struct arena_magazine *m = &mc.magazines[SPAN_CLASS(1, 0)];
    uint64_t wrong = 0;
    (void)state;
    mc.expect = mc.cached = WORD_CACHED(5);
    for (unsigned t = 0; t < 3; t++)
        for (unsigned word = 0; word <= UINT16_MAX; word++) {
            uint16_t here = (uint16_t)word, there = here;
            struct arena_slot slots[] = {{base, &here}};
            void *p;
            m->top = slots + 1;
            wrong += arena_inline_pop(&mc, m, to[t], &p) != word_alloc(&there, mc.cached, to[t]) || here != there;
        }
    m->top = NULL;
    assert_int_equal(wrong, 0);
}

static void a_push_changes_the_words_that_word_free_changes(void **state)
{
    const unsigned c = SPAN_CLASS(2, 0);
    struct arena_magazine *m = &mc.magazines[c];
    uint64_t wrong = 0;
    (void)state;
    span_make(c);
    mc.own = WORD_OWNED(5);
    mc.cached = WORD_CACHED(5);
    for (unsigned word = 0; word <= UINT16_MAX; word++) {
        struct arena_slot slots[1];
        uint16_t *here = &words[UNIT * UNIT_WORDS], there = (uint16_t)word;
        int mine = word == WORD_OWNED(5), freed = mine;
        m->top = slots;
        m->limit = slots + 1;
        *here = there;
        if (mine)
            word_free(&there, mc.cached); /* T6 */
        else if (word == WORD_SHARED)
            freed = word_free_swap(&there, WORD_SHARED, mc.cached); /* T11 */
        wrong += arena_inline_push(&heap, &mc, base + SPAN_AT * PAGE_SIZE) != freed || *here != there;
    }
    m->top = m->limit = NULL;
    assert_int_equal(wrong, 0);
}

static void each_size_has_its_classs_magazine(void **state)
{
    (void)state;
    for (size_t size = 0; size <= SMALL_MAX; size++)
        assert_ptr_equal(arena_inline_magazine_of(&heap, &mc, size),
                         &mc.magazines[SPAN_CLASS(size_class_of((uint32_t)size, 0), 0)]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_word_is_found_where_an_object_begins_and_nowhere_else),
        cmocka_unit_test(a_large_object_is_not_for_the_fast_path),
        cmocka_unit_test(in_an_mcache_of_zeros_every_fast_path_fails),
        cmocka_unit_test(a_pop_changes_the_words_that_word_alloc_changes),
        cmocka_unit_test(a_push_changes_the_words_that_word_free_changes),
        cmocka_unit_test(each_size_has_its_classs_magazine),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
