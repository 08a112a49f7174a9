/* shm/ticket: a request that its client has taken back is not done, one that the daemon has taken is not taken back.
 *
 * Goal: of the two exactly one wins, for each request, also when both come at once. Method: by hand in both orders, then two
 * threads against one another. (The explorer takes the protocol through every order.) */
#include "tests/shm/fixture.h"

#include <pthread.h>

#include "shm/ticket.h"

enum { TAG = 3 };
static uint64_t tickets[TAG_COUNT];
static const struct heap h = {.tickets = tickets};

static void what_was_taken_back_is_not_taken(void **state)
{
    (void)state;
    assert_true(ticket_cancel(&h, TAG, 7));
    assert_false(ticket_take(&h, TAG, 7));
    assert_false(ticket_take(&h, TAG, 7));
    assert_true(ticket_take(&h, TAG, 8)); /* the next request is another */
    assert_false(ticket_cancel(&h, TAG, 8));
}

static void what_was_taken_is_not_taken_back(void **state)
{
    (void)state;
    assert_true(ticket_take(&h, TAG, 20));
    assert_false(ticket_cancel(&h, TAG, 20));
    assert_true(ticket_take(&h, TAG, 20)); /* by who says it again: raw programs use an id twice */
    assert_true(ticket_cancel(&h, TAG, 21));
}

static void ids_at_both_ends_of_their_range_are_told_apart(void **state)
{
    (void)state;
    assert_true(ticket_cancel(&h, TAG, UINT32_MAX));
    assert_false(ticket_take(&h, TAG, UINT32_MAX));
    assert_true(ticket_take(&h, TAG, UINT32_MAX >> 2));
    assert_true(ticket_take(&h, TAG, 1));
    assert_int_not_equal(TICKET_CANCELED(UINT32_MAX), TICKET_CANCELED(UINT32_MAX >> 2));
}

static void a_tags_ticket_is_no_other_tags(void **state)
{
    (void)state;
    assert_true(ticket_cancel(&h, TAG, 30));
    assert_true(ticket_take(&h, TAG + 1, 30));
    assert_false(ticket_take(&h, TAG, 30));
}

enum { REQUESTS = 200000 };
static uint8_t taken[REQUESTS], canceled[REQUESTS];
static pthread_barrier_t barrier;

static void *takes(void *unused)
{
    (void)unused;
    for (uint32_t id = 1; id < REQUESTS; id++) {
        if (id % 64 == 1)
            pthread_barrier_wait(&barrier); /* a word tells of one request at a time: none is used again before */
        taken[id] = (uint8_t)ticket_take(&h, id % TAG_COUNT, id);
    }
    return NULL;
}

static void of_two_at_once_exactly_one_wins(void **state)
{
    pthread_t thread;
    (void)state;
    memset(tickets, 0, sizeof tickets);
    pthread_barrier_init(&barrier, NULL, 2);
    assert_int_equal(pthread_create(&thread, NULL, takes, NULL), 0);
    for (uint32_t id = 1; id < REQUESTS; id++) {
        if (id % 64 == 1)
            pthread_barrier_wait(&barrier);
        canceled[id] = (uint8_t)ticket_cancel(&h, id % TAG_COUNT, id);
    }
    pthread_join(thread, NULL);
    pthread_barrier_destroy(&barrier);
    for (uint32_t id = 1; id < REQUESTS; id++)
        assert_int_equal(taken[id] + canceled[id], 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_taken_back_is_not_taken),
        cmocka_unit_test(what_was_taken_is_not_taken_back),
        cmocka_unit_test(ids_at_both_ends_of_their_range_are_told_apart),
        cmocka_unit_test(a_tags_ticket_is_no_other_tags),
        cmocka_unit_test(of_two_at_once_exactly_one_wins),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
