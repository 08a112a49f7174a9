/* shm/check: what a daemon that starts refuses, and what arenactl inspect tells.
 *
 * Goal: a sound heap has no findings; each damage of the map is found where it is, as a fault or as suspicious; what a death has
 * cut short is finished. Method: a heap with a client, a transaction, a root and three spans; one thing damaged at a time.
 */
#include "tests/shm/fixture.h"

#include <errno.h>

#include "shm/check.h"
#include "shm/root.h"
#include "shm/span.h"
#include "shm/tag.h"

enum { CLIENT = 1, TX = 2, SMALL = 20, ROOT_PAGE = 1, LARGE_PAGE = 2, LAST_PAGE = 5, TOP = 8 };

static struct fixture f;
static struct finding first_found; /* and how many there were */
static unsigned faults, doubts;

static void note(void *context, const struct finding *finding)
{
    (void)context;
    if (faults + doubts == 0)
        first_found = *finding;
    ++*(finding->suspicious ? &doubts : &faults);
}

static void make(void)
{
    fixture_init(&f, 1 << 20, 64);
    struct map_header *header = f.h.header;
    header->tag_top = 3;
    header->top = TOP;
    tag_write(&f.h, CLIENT, &(struct tag){.state = TAG_CLIENT, .pid = 7});
    tag_write(&f.h, TX, &(struct tag){.state = TAG_TX, .owner = CLIENT});
    span_write(&f.h, ROOT_PAGE, class_table[SMALL].pages, SMALL, 1, CLIENT, CLIENT, 0);
    span_write(&f.h, LARGE_PAGE, 3, CLASS_LARGE, 50, 0, 0, 0);
    span_write(&f.h, LAST_PAGE, class_table[SMALL].pages, SMALL, 60, 0, 0, 0);
    f.h.words[1 * UNIT_WORDS] = WORD_SHARED;
    f.h.words[1 * UNIT_WORDS + 1] = WORD_OWNED(TX);
    f.h.words[1 * UNIT_WORDS + 2] = WORD_CACHED(CLIENT);
    root_write(&f.h, 0, "x", ROOT_PAGE << PAGE_SHIFT, 0);
}

/* Looks at all; then the heap is made anew. */
static void look(unsigned want_faults, unsigned want_doubts)
{
    uint8_t *units = calloc(1, f.h.unit_count / 8 + 1);
    faults = doubts = 0;
    check_heap(&f.h, units, note, NULL);
    free(units);
    if (faults != want_faults || doubts != want_doubts)
        fail_msg("%u faults and %u doubts, should be %u and %u; the first: %s", faults, doubts, want_faults, want_doubts,
                 faults + doubts ? first_found.text : "-");
    fixture_fini(&f);
    make();
}

static void finds(enum check_place place, uint64_t number, bool suspicious, const char *text)
{
    look(!suspicious, suspicious);
    assert_string_equal(first_found.text, text);
    assert_int_equal(first_found.place, place);
    assert_int_equal(first_found.number, number);
}

static void a_sound_heap_has_nothing_to_tell(void **state)
{
    (void)state;
    look(0, 0);
    assert_null(check_counts(&f.h));
    faults = doubts = 0;
    check_unfinished(&f.h, note, NULL);
    assert_int_equal(faults + doubts, 0);
}

static void each_damage_is_found_where_it_is(void **state)
{
    (void)state;
    f.h.header->tag_top = TAG_COUNT + 1;
    assert_string_equal(check_counts(&f.h), "the header says that more tags were used than there are");
    f.h.header->tag_top = 3;
    f.h.header->top = f.h.page_count + 1;
    assert_string_equal(check_counts(&f.h), "the header says that more pages were used than there are");
    f.h.header->top = TOP;

    f.h.tags[TX].state = TAG_STATE_COUNT;
    finds(CHECK_TAG, TX, false, "a tag in a state that there is not");
    f.h.tags[TX].owner = 0;
    finds(CHECK_TAG, TX, true, "a transaction of nobody");
    f.h.roots[0].ref = f.h.heap_bytes;
    look(1, 1); /* and it leads to nothing */
    assert_string_equal(first_found.text, "refers beyond the heap");
    f.h.spans[LARGE_PAGE].page_count = 0;
    look(1, 1); /* and its entries are nobody's */
    assert_int_equal(first_found.number, LARGE_PAGE);
    f.h.spans[LAST_PAGE].unit = 1;
    for (unsigned i = 0; i < class_table[SMALL].pages; i++)
        f.h.pages[LAST_PAGE + i] = page_entry_make(SMALL, 1, i);
    finds(CHECK_PAGE, LAST_PAGE, false, "two spans share state words");
    f.h.spans[LARGE_PAGE].lessee = 3;
    finds(CHECK_PAGE, LARGE_PAGE, true, "a span leased to a tag without a client");
}

static void what_is_held_by_nobody_is_suspicious(void **state)
{
    (void)state;
    f.h.words[60 * UNIT_WORDS] = WORD_OWNED(77);
    f.h.words[60 * UNIT_WORDS + 1] = WORD_CACHED(TX); /* magazines are clients' */
    finds(CHECK_PAGE, LAST_PAGE, true, "the first of the objects that are held by a tag of nobody");
    f.h.words[1 * UNIT_WORDS] = WORD_FREE;
    finds(CHECK_ROOT, 0, true, "a root that leads to an object that is not published");
    f.h.words[1 * UNIT_WORDS] = WORD_OWNED(TX);
    f.h.tags[TX].state = TAG_TX_COMMITTED;
    look(0, 0);
    f.h.pages[TOP - 1] = page_entry_make(SMALL, 90, 0);
    look(0, 1);
    assert_int_equal(first_found.number, TOP - 1);
    f.h.spans[TOP - 1].span_class = 1;
    look(0, 1);
    assert_int_equal(first_found.number, TOP - 1);
}

static void what_was_cut_short_is_told_and_finished(void **state)
{
    uint64_t ref;
    (void)state;
    f.h.header->redo = (struct redo){.valid = 1, .tag = TX, .root_slot = 1, .root_ref = ROOT_PAGE << PAGE_SHIFT, .root_name = "y"};
    f.h.header->collecting = 5;
    f.h.roots[0].ref = 0;
    faults = doubts = 0;
    check_unfinished(&f.h, note, NULL);
    assert_int_equal(faults, 0);
    assert_int_equal(doubts, 3);
    check_repair(&f.h);
    assert_int_equal(f.h.header->redo.valid, 0);
    assert_int_equal(tag_state(&f.h, TX), TAG_TX_COMMITTED);
    assert_int_equal(root_lookup(&f.h, "y", &ref), 0);
    assert_int_equal(root_lookup(&f.h, "x", &ref), -ENOENT);
    look(0, 0);

    f.h.header->redo = (struct redo){.valid = 1, .root_slot = f.h.root_slots, .root_name = "y"}; /* no slot */
    check_repair(&f.h);
    assert_int_equal(root_lookup(&f.h, "y", &ref), -ENOENT);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_sound_heap_has_nothing_to_tell),
        cmocka_unit_test(each_damage_is_found_where_it_is),
        cmocka_unit_test(what_is_held_by_nobody_is_suspicious),
        cmocka_unit_test(what_was_cut_short_is_told_and_finished),
    };
    make();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
