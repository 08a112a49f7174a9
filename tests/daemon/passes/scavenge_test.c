/* Goal: pages inside partly used spans go back to the system and come again, and no client ever has a span leased of which
 * a page has no memory behind it: not while pages are in flight, not when a punch or a growth fails, and not over a
 * restart of the daemon at any moment.
 *
 * Method: the core is driven without a loop. A backing of the test's own keeps what it was asked for, answers later and in
 * any order, and has a bit a page of what has memory. Clients are the test: it writes state words as a lessee would. */
#include <errno.h>

#include "tests/daemon/fixture.h"
#include "tests/shm/fixture.h"

enum { HEAP = 64 << 20, PAGES = HEAP / 8192 };

static struct fixture f;
static struct core core;
static bool backed[PAGES];
static struct later later = {.allowance = PAGES};
static bool refuse_grow, refuse_return;
static uint64_t seed;

static int on_return(void *context, uint64_t first, uint64_t pages)
{
    for (uint64_t page = first; page < first + pages; page++) { /* the map says so before it is done */
        uint64_t entry = f.h.pages[page];
        if (page_entry_class(entry))
            assert_true(f.h.spans[page - page_entry_index(entry)].returned >> page_entry_index(entry) & 1);
        else
            assert_true(entry == PAGE_COLD);
    }
    return later_give_back(context, first, pages);
}

/* What a client has given memory by reading it; and what is being cleared of that, answered later too. */
static bool stray[PAGES];
static struct asked clears[64];
static size_t clear_count;

static uint64_t has_memory(void *context, uint64_t first, uint64_t pages)
{
    uint64_t page = first;
    (void)context;
    while (page < first + pages && !stray[page] && !backed[page])
        page++;
    return page;
}

static int on_clear(void *context, uint64_t first, uint64_t pages)
{
    (void)context;
    if (clear_count == 64 || random_below(&seed, 16) == 0)
        return -ENOMEM;
    clears[clear_count++] = (struct asked){first, pages, false};
    return 0;
}

static void clear_one(void)
{
    struct asked a = clears[--clear_count];
    for (uint64_t page = a.first; page < a.first + a.pages; page++)
        stray[page] = backed[page] = false; /* if one of them was granted, its memory is gone, as it would be */
    core_cleared(&core, a.first, a.pages);
}

static bool look_for_strays(uint64_t *cursor, uint32_t steps, uint64_t most)
{
    const struct stray_ops ops = {NULL, has_memory, on_clear};
    uint64_t asked;
    return scavenge_strays(&core, &ops, cursor, steps, most, &asked);
}

/* Does one of the things that were asked for, whichever, and tells the core. */
static void answer_one(void)
{
    struct asked a = later_take(&later, random_below(&seed, later.count));
    bool fail = a.grow ? refuse_grow : refuse_return;
    for (uint64_t page = a.first; !fail && page < a.first + a.pages; page++)
        backed[page] = a.grow;
    core.now_ns += a.grow;
    later_answer(&core, a, !fail ? 0 : a.grow ? -ENOMEM : -EIO);
}

static void answer_all(void)
{
    while (later.count)
        answer_one();
    while (clear_count)
        clear_one();
}

static void begin(void)
{
    char why[256];
    struct backing backing = later_backing(&later);
    struct limits limits = {0};
    backing.give_back = on_return;
    assert_int_equal(core_start(&core, &f.h, &backing, &limits, 1000000000, why), 0);
}

/* The daemon dies with all that it had in flight: some of it was done, some not. */
static void die_and_begin(void)
{
    for (const struct asked *a = later.asked; a < later.asked + later.count; a++)
        for (uint64_t page = a->first; page < a->first + a->pages; page++)
            if (random_below(&seed, 2))
                backed[page] = a->grow;
    later.count = clear_count = 0;
    core_stop(&core);
    begin();
}

static int setup(void **state)
{
    (void)state;
    fixture_init(&f, HEAP, 64);
    memset(backed, 0, sizeof backed);
    memset(stray, 0, sizeof stray);
    later.count = clear_count = 0;
    refuse_grow = refuse_return = false;
    seed = seed_get();
    begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    core_stop(&core);
    fixture_fini(&f);
    return 0;
}

static void check_all(void)
{
    for (uint64_t page = 1; page < core.mheap.top; page++) {
        struct span_info span;
        if (!span_at(&f.h, page, &span)) {
            if (f.h.pages[page] == PAGE_WARM)
                assert_true(backed[page]);
            continue;
        }
        const char *why = mcentral_check(&core, page);
        if (why)
            fail_msg("page %llu: %s", (unsigned long long)page, why);
        for (uint32_t i = 0; i < span.page_count; i++)
            if (f.h.spans[page].lessee || !(f.h.spans[page].returned >> i & 1))
                assert_true(backed[page + i]); /* the promise */
        page += span.page_count - 1;
    }
}

/* Leases one span of a class. */
static uint32_t lease(struct client *client, unsigned span_class)
{
    uint32_t first;
    bool fresh;
    int n;
    while ((n = mcentral_cache_span(&core, client, span_class, 1, &first, 1, &fresh)) == -EAGAIN)
        answer_one();
    assert_int_equal(n, 1);
    return first;
}

static void idle(void)
{
    mheap_tick(&core.mheap);
    mheap_tick(&core.mheap);
}

/* A class with two objects in seven pages. */
static unsigned two_in_seven(void)
{
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++)
        if (class_table[c].pages == 7 && class_table[c].objects == 2)
            return c;
    fail_msg("no such class");
    return 0;
}

/* An unleased span of that class, its second object published. */
static uint32_t half_used(struct client *client)
{
    uint32_t first = lease(client, two_in_seven());
    words_of(&f.h, first)[1] = WORD_SHARED;
    assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    assert_int_equal(core.dspans[first].list, LIST_NONEMPTY);
    return first;
}

static void pages_of_an_idle_span_go_back_and_come_again_before_it_is_leased(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = half_used(client);
    (void)state;
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    assert_int_equal(later.count, 0); /* it was used a moment ago */
    idle();
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    assert_int_equal(later.count, 1);
    assert_int_equal(later.asked[0].first, first);
    assert_int_equal(later.asked[0].pages, 3); /* 28672 bytes are three pages and a half */
    assert_int_equal(core.dspans[first].list, LIST_BUSY);
    answer_all();
    assert_int_equal(core.dspans[first].list, LIST_RETURNED);
    assert_int_equal(f.h.spans[first].returned, 7);
    assert_int_equal(core.heap.header->pages_returned, 3);
    check_all();
    uint32_t out;
    bool fresh;
    assert_int_equal(mcentral_cache_span(&core, client, two_in_seven(), 1, &out, 1, &fresh), -EAGAIN);
    assert_int_equal(f.h.spans[first].returned, 7); /* until the memory is there */
    answer_all();
    assert_int_equal(f.h.spans[first].returned, 0);
    assert_int_equal(lease(client, two_in_seven()), first);
    check_all();
}

static void a_span_that_becomes_wholly_free_while_busy_gives_its_pages_to_the_mheap_as_they_are(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = half_used(client);
    (void)state;
    idle();
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    words_of(&f.h, first)[1] = WORD_FREE;
    hint_set(&f.h.hints[first + 4]);
    while (core.sweep_serial == 0) {
        sweep_cycle(&core);
        sweep_turn(&core);
    }
    assert_int_equal(core.dspans[first].list, LIST_BUSY); /* not uncut under the punch */
    answer_all();
    assert_int_equal(f.h.spans[first].span_class, 0);
    for (uint32_t i = 0; i < 7; i++)
        assert_true(f.h.pages[first + i] == (i < 3 ? PAGE_COLD : PAGE_WARM));
    check_all();
}

static void a_punch_that_fails_leaves_the_span_as_it_was(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = half_used(client);
    (void)state;
    idle();
    refuse_return = true;
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    answer_all();
    assert_int_equal(f.h.spans[first].returned, 0);
    assert_int_equal(core.dspans[first].list, LIST_NONEMPTY);
    assert_int_equal(lease(client, two_in_seven()), first);
    check_all();
}

static void a_growth_that_fails_keeps_the_mark(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = half_used(client), out;
    bool fresh;
    (void)state;
    idle();
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    answer_all();
    refuse_grow = true;
    assert_int_equal(mcentral_cache_span(&core, client, two_in_seven(), 1, &out, 1, &fresh), -EAGAIN);
    answer_all();
    assert_int_equal(f.h.spans[first].returned, 7);
    assert_int_equal(core.dspans[first].list, LIST_RETURNED);
    check_all();
}

/* Random clients, frees, scavenging, failures and restarts; after each step the promise is looked at. */
static void no_leased_page_is_without_memory_whatever_happens(void **state)
{
    (void)state;
    struct client *client = attach(&core, 1, 1);
    unsigned tag = client->tag;
    uint64_t stray_cursor = 0;
    for (int step = 0; step < 6000; step++) {
        unsigned c = 2 + (unsigned)random_below(&seed, SPAN_CLASS_COUNT - 2);
        uint64_t page = 1 + random_below(&seed, core.mheap.top > 1 ? core.mheap.top : 1);
        struct span_info span = {0};
        refuse_grow = random_below(&seed, 16) == 0;
        refuse_return = random_below(&seed, 16) == 0;
        switch (random_below(&seed, 11)) {
        case 0:
        case 1: { /* a lease, if memory is there; some objects become published */
            uint32_t first;
            bool fresh;
            core.now_ns += 1000000000;
            if (mcentral_cache_span(&core, client, c, 1, &first, 1, &fresh) == 1)
                for (uint32_t i = 0; i < class_table[c].objects; i++)
                    words_of(&f.h, first)[i] = random_below(&seed, 4) ? WORD_FREE : WORD_SHARED;
            break;
        }
        case 2:
        case 3: /* let go */
            if (span_at(&f.h, page, &span) && f.h.spans[page].lessee == tag)
                assert_int_equal(mcentral_uncache_span(&core, client, page), 0);
            break;
        case 4: /* freed by somebody */
            if (span_at(&f.h, page, &span)) {
                uint32_t i = (uint32_t)random_below(&seed, span.objects);
                if (span.words[i] == WORD_SHARED) {
                    span.words[i] = WORD_FREE;
                    hint_set(&f.h.hints[page + i * (uint64_t)span.size / PAGE_SIZE]);
                }
            }
            sweep_cycle(&core);
            sweep_turn(&core);
            break;
        case 5:
            idle();
            scavenge_turn(&core, 64, TURN_WORDS);
            mheap_scavenge(&core.mheap, 2, 64, false);
            break;
        case 6:
            if (later.count)
                answer_one();
            break;
        case 7:
            for (uint64_t run = random_below(&seed, 300); run; run--)
                stray[1 + random_below(&seed, PAGES - 1)] = true;
            break;
        case 8:
            stray_cursor = random_below(&seed, 2) ? 0 : stray_cursor;
            look_for_strays(&stray_cursor, (uint32_t)random_below(&seed, 500), random_below(&seed, 1000));
            break;
        case 9:
            if (clear_count)
                clear_one();
            break;
        default:
            if (random_below(&seed, 20) == 0) {
                die_and_begin();
                client = core.clients[tag];
                assert_non_null(client);
            }
        }
        if (step % 16 == 0)
            check_all();
    }
    answer_all();
    check_all();
}

/* What should have memory, counted page by page from the map. */
static uint64_t pages_with_memory(void)
{
    uint64_t count = 0;
    for (uint64_t page = 1; page < core.mheap.top; page++) {
        struct span_info span;
        if (!span_at(&f.h, page, &span)) {
            count += f.h.pages[page] == PAGE_WARM;
            continue;
        }
        for (uint32_t i = 0; i < span.page_count; i++)
            count += i >= 16 || !(f.h.spans[page].returned >> i & 1);
        page += span.page_count - 1;
    }
    return count;
}

static void strays_are_cleared_wherever_they_are_and_nothing_else_is(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t other = lease(client, two_in_seven()), first = half_used(client);
    uint64_t cursor = 0;
    (void)state;
    idle();
    scavenge_turn(&core, TURN_SPANS, TURN_WORDS);
    answer_all();
    assert_int_equal(f.h.spans[first].returned, 7);
    assert_int_equal(core_backed_pages(&core), pages_with_memory());
    memset(stray, 1, sizeof stray);
    stray[0] = false; /* page 0 is nobody's */
    for (bool end = false; !end || clear_count;) {
        end = look_for_strays(&cursor, 50, 1000);
        while (clear_count)
            clear_one();
        cursor = end && has_memory(NULL, first, 3) < first + 3 ? 0 : cursor; /* what was refused */
        check_all();
    }
    for (uint64_t page = 1; page < PAGES; page++) {
        uint64_t entry = f.h.pages[page];
        bool has = page < core.mheap.top && (page_entry_class(entry) ? !(page >= first && page < first + 3u) : entry == PAGE_WARM);
        if (backed[page] != has)
            fail_msg("page %llu: memory %d, should be %d", (unsigned long long)page, backed[page], has);
    }
    assert_int_equal(core_backed_pages(&core), pages_with_memory());
    assert_int_equal(core.mheap.returning_pages, 0);
    assert_int_equal(mcentral_uncache_span(&core, client, other), 0);
    assert_int_equal(lease(client, two_in_seven()), first); /* nothing is in the way of what comes next */
    assert_int_equal(f.h.spans[first].returned, 0);
    check_all();
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(pages_of_an_idle_span_go_back_and_come_again_before_it_is_leased, setup, teardown),
        cmocka_unit_test_setup_teardown(
            a_span_that_becomes_wholly_free_while_busy_gives_its_pages_to_the_mheap_as_they_are, setup, teardown),
        cmocka_unit_test_setup_teardown(a_punch_that_fails_leaves_the_span_as_it_was, setup, teardown),
        cmocka_unit_test_setup_teardown(a_growth_that_fails_keeps_the_mark, setup, teardown),
        cmocka_unit_test_setup_teardown(no_leased_page_is_without_memory_whatever_happens, setup, teardown),
        cmocka_unit_test_setup_teardown(strays_are_cleared_wherever_they_are_and_nothing_else_is, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
