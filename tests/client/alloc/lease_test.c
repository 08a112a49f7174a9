/* client/alloc/lease.c: what a process does with the spans that it has leased.
 *
 * Goal: a refill takes what is nearest - stash, leased spans, hints - and asks the daemon last; what is flushed is had again, and
 * what is let go is told once. Method: the connection is the test's, and so is the daemon behind it: it grants spans of a heap
 * in private memory, and keeps what it is given back.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "client/alloc/lease.h"
#include "client/heap.h"

enum { PAGES = 64, TAG = 7, CLASS = SPAN_CLASS(44, 0), OBJECTS = 3 }; /* 2720 bytes: a span is a page of three objects */

static struct arena *a;
static struct map_header header;
static struct tag tags[2];
static uint64_t pages[PAGES];
static struct span spans[PAGES];
static uint8_t hints[PAGES];
static uint16_t words[PAGES * UNIT_WORDS];
static uint8_t *base;
static uint32_t next_page, calls;
static int refuse;
static bool is_locked;

/* ---- in place of conn.c ---------------------------------------------------------------------------------------------- */

void conn_lock(struct arena *heap) { assert_false(is_locked), (void)heap, is_locked = true; }
bool conn_trylock(struct arena *heap) { return (void)heap, !is_locked && (is_locked = true); }
void conn_unlock(struct arena *heap) { assert_true(is_locked), (void)heap, is_locked = false; }
void conn_kick(struct arena *heap) { (void)heap; }
int conn_ask_ahead(struct arena *heap, struct msg request) { return (void)heap, (void)request, -EAGAIN; }
int conn_ahead(struct arena *heap, unsigned span_class) { return (void)heap, (void)span_class, -ENOENT; }
bool conn_ahead_arrived(struct arena *heap) { return (void)heap, false; }
int conn_tell(struct arena *heap, struct msg request) { return (void)heap, (void)request, 0; }

static void take_back(uint32_t first)
{
    assert_int_equal(spans[first].lessee, TAG);
    spans[first].lessee = 0;
}

int conn_call(struct arena *heap, struct msg request)
{
    static uint32_t granted[1];
    assert_true(is_locked);
    assert_int_equal(request.type, MSG_LEASE);
    calls++;
    for (uint32_t i = 0; i < request.lease.list_count; i++)
        take_back(request.lease.list[i]);
    if (refuse)
        return refuse;
    uint32_t first = next_page++;
    span_write(&heap->heap, first, 1, request.lease.span_class, first, TAG, TAG, 1);
    granted[0] = first;
    heap->conn.in = MSG(grant, .span_class = request.lease.span_class, .list = granted, .list_count = 1);
    return 0;
}

/* ---- the tests --------------------------------------------------------------------------------------------------------- */

static int setup(void **state)
{
    (void)state;
    a = calloc(1, sizeof *a);
    base = calloc(PAGES, PAGE_SIZE);
    memset(pages, 0, sizeof pages);
    memset(spans, 0, sizeof spans);
    memset(hints, 0, sizeof hints);
    memset(words, 0, sizeof words);
    header = (struct map_header){.clients = 1, .top = PAGES};
    a->heap = (struct heap){.base = base, .heap_bytes = PAGES * PAGE_SIZE, .header = &header, .tags = tags, .pages = pages,
                            .spans = spans, .hints = hints, .words = words, .page_count = PAGES, .unit_count = PAGES};
    a->base = base;
    a->heap_bytes = 1ULL << 30; /* it keeps as a large one does */
    a->pages = pages;
    a->words = words;
    a->tag = TAG;
    next_page = 1;
    calls = 0;
    refuse = 0;
    is_locked = false;
    return lease_init(a);
}

static int teardown(void **state)
{
    (void)state;
    lease_fini(a);
    free(base);
    free(a);
    return 0;
}

static uint32_t take(struct arena_slot *out, uint32_t want)
{
    int got = lease_refill(a, CLASS, out, want);
    assert_true(got > 0);
    for (int i = 0; i < got; i++)
        assert_int_equal(*out[i].word, WORD_CACHED(TAG));
    return (uint32_t)got;
}

static void a_span_is_worked_through_before_the_daemon_is_asked(void **state)
{
    struct arena_slot s[4];
    (void)state;
    assert_int_equal(take(s, 2), 2);
    assert_int_equal(take(s + 2, 2), 1);
    assert_int_equal(calls, 1);
    assert_true(s[0].object == base + PAGE_SIZE && s[2].object == base + PAGE_SIZE + 2 * 2720);
    take(s, 1);
    assert_int_equal(calls, 2);
}

static void what_is_flushed_is_had_again_untouched(void **state)
{
    struct arena_slot s[3], again[3];
    (void)state;
    take(s, 3);
    lease_flush(a, CLASS, s, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(*s[i].word, WORD_CACHED(TAG));
    assert_int_equal(take(again, 3), 3);
    assert_memory_equal(s, again, sizeof s);
    assert_int_equal(calls, 1);
}

/* Over the bound of what is kept words become FREE, with a hint each, and their span is had again by a look. */
static void what_is_not_kept_becomes_free_with_a_hint(void **state)
{
    struct arena_slot s[3], again[3];
    (void)state;
    take(s, 3);
    a->keep.free_limit = 0;
    lease_flush(a, CLASS, s, 2);
    assert_int_equal(*s[0].word, WORD_FREE);
    assert_int_equal(*s[1].word, WORD_FREE);
    assert_int_equal(hints[1], 1);
    assert_int_equal(a->leases[1].list, LEASE_NONE);
    a->keep.free_limit = 1 << 20;
    take(again, 2);
    assert_int_equal(calls, 2);
    assert_int_equal(spans[1].lessee, 0); /* the second LEASE has told it */
}

static void what_others_free_in_a_span_is_found_by_its_hint(void **state)
{
    struct arena_slot s[3], again[2];
    (void)state;
    take(s, 3);
    *s[1].word = WORD_FREE;
    hints[1] = 1;
    assert_int_equal(take(again, 2), 1);
    assert_true(again[0].object == s[1].object);
    assert_int_equal(calls, 1);
    assert_int_equal(hints[1], 0);
}

static void a_word_that_is_not_cached_is_nobodys_to_flush(void **state)
{
    struct arena_slot s[3];
    (void)state;
    take(s, 3);
    a->keep.free_limit = 0;
    *s[0].word = WORD_SHARED;
    lease_flush(a, CLASS, s, 1);
    assert_int_equal(*s[0].word, WORD_SHARED);
    assert_int_equal(hints[1], 0);
}

static void all_of_it_is_let_go_and_told_once(void **state)
{
    struct arena_slot s[3];
    uint32_t list[PAGES];
    (void)state;
    for (int i = 0; i < 4; i++) {
        take(s, 3);
        if (i % 2)
            lease_flush(a, CLASS, s, 2);
    }
    lease_release_all(a);
    assert_int_equal(a->keep.free_bytes, 0);
    assert_int_equal(a->keep.full_bytes, 0);
    assert_int_equal(a->keep.held_pages, 0);
    uint32_t count = returns_take(a, list, PAGES);
    assert_int_equal(count, next_page - 1);
    for (uint32_t i = 0; i < count; i++)
        take_back(list[i]);
    lease_release_all(a);
    assert_int_equal(returns_take(a, list, PAGES), 0);
}

static void a_connection_that_comes_back_lists_what_is_leased_alone(void **state)
{
    struct arena_slot s[3];
    uint32_t list[PAGES];
    uint64_t cursor = 0;
    (void)state;
    for (int i = 0; i < 3; i++)
        take(s, 3);
    assert_true(returns_put(a, 2));
    assert_false(returns_put(a, 2));
    assert_int_equal(returns_list(a, &cursor, list, PAGES), 2);
    assert_int_equal(list[0], 1);
    assert_int_equal(list[1], 3);
    assert_true(cursor >= PAGES);
    assert_int_equal(returns_take(a, list, PAGES), 0); /* it is not listed, so the daemon takes it back */
}

static void a_refusal_is_passed_on(void **state)
{
    struct arena_slot s[3];
    (void)state;
    refuse = -EDQUOT;
    assert_int_equal(lease_refill(a, CLASS, s, 3), -EDQUOT);
    assert_false(is_locked);
    refuse = 0;
    take(s, 3);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(a_span_is_worked_through_before_the_daemon_is_asked),
        TEST(what_is_flushed_is_had_again_untouched),
        TEST(what_is_not_kept_becomes_free_with_a_hint),
        TEST(what_others_free_in_a_span_is_found_by_its_hint),
        TEST(a_word_that_is_not_cached_is_nobodys_to_flush),
        TEST(all_of_it_is_let_go_and_told_once),
        TEST(a_connection_that_comes_back_lists_what_is_leased_alone),
        TEST(a_refusal_is_passed_on),
    };
    return cmocka_run_group_tests_name("client/lease", tests, NULL, NULL);
}
