/* shm/state: the state words and the hints.
 *
 * Goal: each transition happens from the words that it is allowed from and from no other; of two
 * threads that race for a published word exactly one wins; no FREE word is lost between a flush and
 * a sweep. Method: every function on every word; then races over millions of words, both threads in
 * step so that they meet. That no other interleaving is wrong is what tests/explore enumerates.
 */
#include "tests/shm/fixture.h"

#include <pthread.h>
#include <sched.h>

#include "shm/state.h"

enum { ME = 5, OTHER = 6 };

static const uint16_t all_words[] = {WORD_FREE,          WORD_SHARED,        WORD_CACHED(ME),
                                     WORD_OWNED(ME),     WORD_CACHED(OTHER), WORD_OWNED(OTHER),
                                     WORD_CACHED(32767), WORD_OWNED(32767)};
enum { ALL = sizeof all_words / sizeof all_words[0] };

static void refill_takes_a_free_word_and_no_other(void **state)
{
    (void)state;
    for (int i = 0; i < ALL; i++) {
        uint16_t word = all_words[i];
        assert_int_equal(word_cache(&word, WORD_CACHED(ME)), all_words[i] == WORD_FREE);
        assert_int_equal(word, all_words[i] == WORD_FREE ? WORD_CACHED(ME) : all_words[i]);
    }
}

static void alloc_takes_a_word_that_this_client_caches_and_no_other(void **state)
{
    static const uint16_t to[] = {WORD_OWNED(ME), WORD_OWNED(OTHER), WORD_SHARED};
    (void)state;
    for (int i = 0; i < ALL; i++)
        for (int t = 0; t < 3; t++) {
            uint16_t word = all_words[i];
            assert_int_equal(word_alloc(&word, WORD_CACHED(ME), to[t]),
                             all_words[i] == WORD_CACHED(ME));
            assert_int_equal(word, all_words[i] == WORD_CACHED(ME) ? to[t] : all_words[i]);
        }
}

static void a_flush_frees_a_word_that_this_client_caches_and_no_other(void **state)
{
    (void)state;
    for (int i = 0; i < ALL; i++) {
        uint16_t word = all_words[i];
        assert_int_equal(word_flush(&word, WORD_CACHED(ME)), all_words[i] == WORD_CACHED(ME));
        assert_int_equal(word, all_words[i] == WORD_CACHED(ME) ? WORD_FREE : all_words[i]);
    }
}

static int collect(uint16_t *word, uint16_t seen)
{
    assert_int_equal(seen, WORD_SHARED);
    return word_collect(word);
}

static int free_late(uint16_t *word, uint16_t seen) { return word_free_late(word, seen, WORD_CACHED(ME)); }
static int free_swap(uint16_t *word, uint16_t seen) { return word_free_swap(word, seen, WORD_CACHED(ME)); }
static int claim(uint16_t *word, uint16_t seen) { return word_claim(word, seen, WORD_OWNED(ME)); }
static int adopt_swap(uint16_t *word, uint16_t seen) { return word_adopt_swap(word, seen, WORD_OWNED(OTHER)); }

static void a_swap_changes_the_word_that_was_seen_and_no_other(void **state)
{
    static const struct {
        int (*door)(uint16_t *word, uint16_t seen);
        uint16_t to;
        bool of_shared; /* of no other word */
    } doors[] = {{free_swap, WORD_CACHED(ME), false},
                 {free_late, WORD_CACHED(ME), false},
                 {word_publish_swap, WORD_SHARED, false},
                 {claim, WORD_OWNED(ME), false},
                 {word_reclaim, WORD_FREE, false},
                 {word_publish_dead, WORD_SHARED, false},
                 {collect, WORD_FREE, true},
                 {adopt_swap, WORD_OWNED(OTHER), false}};
    (void)state;
    for (size_t d = 0; d < sizeof doors / sizeof doors[0]; d++)
        for (int i = 0; i < ALL; i++)
            for (int seen = 0; seen < ALL; seen++) {
                uint16_t word = all_words[i];
                if (doors[d].of_shared && all_words[seen] != WORD_SHARED)
                    continue;
                assert_int_equal(doors[d].door(&word, all_words[seen]), i == seen);
                assert_int_equal(word, i == seen ? doors[d].to : all_words[i]);
            }
}

static void the_only_writer_of_a_word_stores(void **state)
{
    uint16_t word = WORD_OWNED(ME);
    uint8_t hint = 1;
    (void)state;
    word_free(&word, WORD_CACHED(ME));
    assert_int_equal(word, WORD_CACHED(ME));
    word_publish(&word);
    assert_int_equal(word, WORD_SHARED);
    word_adopt(&word, WORD_OWNED(OTHER));
    assert_int_equal(word, WORD_OWNED(OTHER));
    word_clear(&word);
    assert_int_equal(word, WORD_FREE);
    hint_reset(&hint);
    assert_int_equal(hint, 0);
}

static void a_hint_stays_until_it_is_cleared_and_is_cleared_once(void **state)
{
    uint8_t hint = 0;
    (void)state;
    assert_false(hint_seen(&hint));
    assert_false(hint_clear(&hint));
    hint_set(&hint);
    hint_set(&hint);
    assert_true(hint_seen(&hint));
    assert_true(hint_clear(&hint));
    assert_false(hint_clear(&hint));
    assert_false(hint_seen(&hint));
    hint = 0xff; /* as a hostile client may leave it */
    assert_true(hint_seen(&hint) && hint_clear(&hint) && hint == 0);
}

/* ---- races -------------------------------------------------------------------------------- */

#if defined __SANITIZE_ADDRESS__ || defined __SANITIZE_THREAD__
enum { LOG = 15 };
#else
enum { LOG = 18 };
#endif
enum { WORDS = 1 << LOG, BLOCK = 16, ROUNDS = 8 };

struct racer {
    uint16_t *words;
    uint16_t to;                    /* what a win stores */
    uint64_t *my_turn, *other_turn; /* blocks done: both stay within one of each other */
    uint64_t wins, losses;
};

/* As arena_free() and arena_claim() do: load, and swap what was SHARED. */
static void *race(void *argument)
{
    struct racer *r = argument;
    for (uint64_t block = 0; block < WORDS / BLOCK; block++) {
        __atomic_store_n(r->my_turn, block + 1, __ATOMIC_RELEASE);
        for (int spins = 0; __atomic_load_n(r->other_turn, __ATOMIC_ACQUIRE) < block; spins++)
            if (spins > 1000)
                sched_yield();
        for (int i = 0; i < BLOCK; i++) {
            uint16_t *word = &r->words[block * BLOCK + (uint64_t)i];
            uint16_t seen = load_relaxed(word);
            if (seen == WORD_SHARED && word_free_swap(word, seen, r->to))
                r->wins++;
            else
                r->losses++;
        }
    }
    __atomic_store_n(r->my_turn, UINT64_MAX, __ATOMIC_RELEASE);
    return NULL;
}

static void race_for_all_words(uint16_t a_to, uint16_t b_to)
{
    uint16_t *words = fixture_map(WORDS * sizeof *words);
    for (int round = 0; round < ROUNDS; round++) {
        struct {
            _Alignas(64) uint64_t turn;
        } turns[2] = {{0}, {0}};
        struct racer a = {words, a_to, &turns[0].turn, &turns[1].turn, 0, 0};
        struct racer b = {words, b_to, &turns[1].turn, &turns[0].turn, 0, 0};
        uint64_t a_words = 0, b_words = 0;
        pthread_t thread;
        for (int i = 0; i < WORDS; i++)
            words[i] = WORD_SHARED;
        assert_int_equal(pthread_create(&thread, NULL, race, &b), 0);
        race(&a);
        pthread_join(thread, NULL);
        for (int i = 0; i < WORDS; i++) {
            a_words += words[i] == a_to;
            b_words += words[i] == b_to;
        }
        assert_int_equal(a.wins + a.losses, WORDS);
        assert_int_equal(b.wins + b.losses, WORDS);
        assert_int_equal(a.wins + b.wins, WORDS); /* each word: one winner, and not two */
        assert_int_equal(a_words, a.wins);
        assert_int_equal(b_words, b.wins);
    }
    munmap(words, WORDS * sizeof *words);
}

static void of_two_racing_frees_of_a_published_object_one_is_refused(void **state)
{
    (void)state;
    race_for_all_words(WORD_CACHED(ME), WORD_CACHED(OTHER));
}

static void of_two_racing_claims_of_a_published_object_one_wins(void **state)
{
    (void)state;
    race_for_all_words(WORD_OWNED(ME), WORD_OWNED(OTHER));
}

static void of_a_free_and_a_claim_that_race_one_wins(void **state)
{
    (void)state;
    race_for_all_words(WORD_CACHED(ME), WORD_OWNED(OTHER));
}

enum { FLUSHES = 1 << (LOG + 1), SPAN = 64 };

struct sweep {
    _Alignas(64) uint8_t hint;
    _Alignas(64) uint16_t words[SPAN];
    _Alignas(64) uint32_t done;
};

static void *flush_all(void *argument)
{
    struct sweep *s = argument;
    for (uint32_t i = 0; i < FLUSHES; i++) { /* as lease_flush(): the word, then the hint, always */
        uint16_t *word = &s->words[i % SPAN];
        while (load_relaxed(word) != WORD_CACHED(ME))
            sched_yield(); /* until the sweeper has found it and made it CACHED again */
        word_flush(word, WORD_CACHED(ME));
        hint_set(&s->hint);
    }
    store_release(&s->done, 1);
    return NULL;
}

static void every_flushed_word_is_found_by_a_sweep_that_looks_only_when_hinted(void **state)
{
    static struct sweep s;
    pthread_t thread;
    uint32_t found = 0, last = 0;
    (void)state;
    for (int i = 0; i < SPAN; i++)
        s.words[i] = WORD_CACHED(ME);
    assert_int_equal(pthread_create(&thread, NULL, flush_all, &s), 0);
    while (found < FLUSHES && !last) {
        last = load_acquire(
            &s.done); /* all hints are set by then: one look more finds all that there is */
        if (!hint_clear(&s.hint)) {
            sched_yield();
            continue;
        }
        for (int i = 0; i < SPAN; i++)
            if (load_acquire(&s.words[i]) == WORD_FREE) {
                store_relaxed(&s.words[i], WORD_CACHED(ME));
                found++;
            }
    }
    /* a lost hint would have left the flusher waiting for a word that nobody looks at */
    assert_int_equal(found, FLUSHES);
    pthread_join(thread, NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refill_takes_a_free_word_and_no_other),
        cmocka_unit_test(alloc_takes_a_word_that_this_client_caches_and_no_other),
        cmocka_unit_test(a_flush_frees_a_word_that_this_client_caches_and_no_other),
        cmocka_unit_test(a_swap_changes_the_word_that_was_seen_and_no_other),
        cmocka_unit_test(the_only_writer_of_a_word_stores),
        cmocka_unit_test(a_hint_stays_until_it_is_cleared_and_is_cleared_once),
        cmocka_unit_test(of_two_racing_frees_of_a_published_object_one_is_refused),
        cmocka_unit_test(of_two_racing_claims_of_a_published_object_one_wins),
        cmocka_unit_test(of_a_free_and_a_claim_that_race_one_wins),
        cmocka_unit_test(every_flushed_word_is_found_by_a_sweep_that_looks_only_when_hinted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
