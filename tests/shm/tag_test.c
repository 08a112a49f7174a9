/* shm/tag: the table that says who is meant by the number in a state word.
 *
 * Goal: an entry reads back as it was written, the states that make a transaction's words count as
 * SHARED are exactly two, and each damage is noticed. Method: all states in turn.
 */
#include <pthread.h>

#include "tests/shm/fixture.h"

#include "shm/state.h"
#include "shm/tag.h"

static void an_entry_reads_back_as_it_was_written(void **state)
{
    struct fixture f;
    struct tag tag = {.state = TAG_CLIENT,
                      .owner = 0,
                      .read_only = 1,
                      .pid = 4000000,
                      .uid = UINT32_MAX,
                      .done = 7,
                      .image = 3,
                      .copy = 4,
                      .start_time = UINT32_MAX - 1,
                      .since_s = 99,
                      .inode = UINT64_MAX - 1,
                      .command = "fifteen letters"};
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    tag_write(&f.h, TAG_COUNT - 1, &tag);
    assert_memory_equal(&f.h.tags[TAG_COUNT - 1], &tag, sizeof tag);
    assert_int_equal(tag_state(&f.h, TAG_COUNT - 1), TAG_CLIENT);
    assert_int_equal(f.h.tags[TAG_COUNT - 2].state, TAG_FREE);
    fixture_fini(&f);
}

static void words_of_a_committed_transaction_count_as_shared_and_no_others(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    for (int s = 0; s < TAG_STATE_COUNT; s++) {
        tag_set_state(&f.h, 9, (enum tag_state)s);
        assert_int_equal(tag_is_committed(&f.h, 9),
                         s == TAG_TX_COMMITTED || s == TAG_TX_PUBLISHING);
    }
    fixture_fini(&f);
}

static void the_check_notices_states_and_owners_that_cannot_be(void **state)
{
    struct fixture f;
    struct tag client = {.state = TAG_CLIENT}, tx = {.state = TAG_TX, .owner = 5};
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    assert_null(tag_check(&f.h, 5));
    tag_write(&f.h, 5, &client);
    tag_write(&f.h, 6, &tx);
    assert_null(tag_check(&f.h, 5));
    assert_null(tag_check(&f.h, 6));
    tag_set_state(&f.h, 6, TAG_STATE_COUNT);
    assert_non_null(tag_check(&f.h, 6));
    tag_set_state(&f.h, 6, TAG_TX_COMMITTED);
    assert_null(tag_check(&f.h, 6));
    static const uint16_t nobody[] = {0, TAG_COUNT, UINT16_MAX, 6, 7};
    for (int i = 0; i < 5; i++) {
        f.h.tags[6].owner = nobody[i];
        assert_non_null(tag_check(&f.h, 6));
    }
    f.h.tags[6].owner = 5;
    assert_null(tag_check(&f.h, 6));
    tag_set_state(
        &f.h, 5,
        TAG_CLIENT_DYING); /* valid becomes invalid: its client died, it should be dying too */
    assert_non_null(tag_check(&f.h, 6));
    tag_set_state(&f.h, 6, TAG_TX_DYING);
    assert_null(tag_check(&f.h, 6));
    fixture_fini(&f);
}

static void a_word_tells_its_tag_and_whether_it_is_owned_or_cached(void **state)
{
    (void)state;
    assert_int_equal(word_tag(WORD_FREE), 0);
    assert_int_equal(word_tag(WORD_SHARED), 0);
    assert_false(word_is_owned(WORD_FREE) || word_is_owned(WORD_SHARED));
    assert_false(word_is_cached(WORD_FREE) || word_is_cached(WORD_SHARED));
    for (unsigned tag = 1; tag < TAG_COUNT; tag++) {
        assert_int_equal(word_tag(WORD_CACHED(tag)), tag);
        assert_int_equal(word_tag(WORD_OWNED(tag)), tag);
        assert_true(word_is_owned(WORD_OWNED(tag)) && !word_is_cached(WORD_OWNED(tag)));
        assert_true(word_is_cached(WORD_CACHED(tag)) && !word_is_owned(WORD_CACHED(tag)));
    }
}

static void a_tag_is_somebodys_only_in_the_state_that_was_asked_for(void **state)
{
    struct fixture f;
    struct tag tx = {.state = TAG_TX, .owner = 5}, client = {.state = TAG_CLIENT};
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    assert_false(tag_is_of(&f.h, 6, TAG_TX, 5));
    tag_write(&f.h, 5, &client);
    tag_write(&f.h, 6, &tx);
    assert_true(tag_is_of(&f.h, 6, TAG_TX, 5));
    assert_false(tag_is_of(&f.h, 6, TAG_TX, 4));
    assert_false(tag_is_of(&f.h, 6, TAG_TX_COMMITTED, 5));
    assert_int_equal(tag_client(&f.h, 6), 5);
    assert_int_equal(tag_client(&f.h, 5), 5);
    tag_set_state(&f.h, 6, TAG_TX_COMMITTED);
    assert_false(tag_is_of(&f.h, 6, TAG_TX, 5));
    tag_set_state(&f.h, 6, TAG_FREE);
    assert_false(tag_is_of(&f.h, 6, TAG_TX, 5));
    fixture_fini(&f);
}

/* ---- one life of a tag after another, and who looks meanwhile ---------------------------------- */

enum { LIVES = 3000000 };
static struct fixture lives;
static uint32_t begun, over; /* sync: atomic */

/* Even lives are client 2's, and their state is TAG_TX; odd ones are client 3's, in TAG_TX_COMMITTED. */
static void *live(void *argument)
{
    while (!load_acquire(&begun))
        ;
    for (uint32_t n = 0; n < LIVES; n++) {
        struct tag tag = {.state = n % 2 ? TAG_TX_COMMITTED : TAG_TX, .owner = n % 2 ? 3 : 2};
        tag_write(&lives.h, 9, &tag);
        tag_set_state(&lives.h, 9, TAG_FREE);
    }
    store_release(&over, 1);
    return argument;
}

static void an_owner_is_not_taken_for_that_of_another_life(void **state)
{
    pthread_t thread;
    uint64_t wrong = 0, looks = 0;
    (void)state;
    fixture_init(&lives, HEAP_MIN, 64);
    assert_int_equal(pthread_create(&thread, NULL, live, NULL), 0);
    for (; !load_acquire(&over); looks++, store_release(&begun, 1))
        wrong += tag_is_of(&lives.h, 9, TAG_TX, 3) + tag_is_of(&lives.h, 9, TAG_TX_COMMITTED, 2);
    pthread_join(thread, NULL);
    assert_int_equal(wrong, 0);
    assert_true(looks > 0);
    fixture_fini(&lives);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_entry_reads_back_as_it_was_written),
        cmocka_unit_test(words_of_a_committed_transaction_count_as_shared_and_no_others),
        cmocka_unit_test(a_tag_is_somebodys_only_in_the_state_that_was_asked_for),
        cmocka_unit_test(an_owner_is_not_taken_for_that_of_another_life),
        cmocka_unit_test(the_check_notices_states_and_owners_that_cannot_be),
        cmocka_unit_test(a_word_tells_its_tag_and_whether_it_is_owned_or_cached),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
