/* Goal: what clients do between two steps of a collection makes it free nothing that is in use: spans that are uncut and cut
 * anew, units of state words that go from one span to another, clients that die with their pins.
 *
 * Method: one worker, in this thread, over a core without a loop. A page of objects or of state words that the collector
 * comes by at the moment in question is made unreadable; the handler of the fault does what clients and daemon would do
 * then, makes it readable, and the collector goes on. Clients are the test: it writes words and pins as they would.
 */
#include <errno.h>
#include <signal.h>

#include "daemon/passes/gc.h"
#include "proto/msg.h"
#include "tests/daemon/fixture.h"
#include "shm/hazard.h"
#include "tests/shm/fixture.h"

enum { HEAP = 64 << 20, PAGES = HEAP / 8192, LAST = 7 /* index of X, and of Z: the same word if they have the same units */ };

static struct fixture f;
static struct core core;
static struct gc *gc;
static struct later later = {.allowance = PAGES};
static uint8_t *objects;

static struct {
    uint8_t *at; /* an unreadable page; NULL: none */
    void (*then)(void);
} trap;

#ifdef __SANITIZE_THREAD__
/* The fault is of this thread's own load, at a place of the test's choice: not in the middle of an allocation or of a lock. */
__attribute__((visibility("default"))) const char *__tsan_default_options(void);
const char *__tsan_default_options(void) { return "report_signal_unsafe=0"; }
#endif

static void on_fault(int signum, siginfo_t *info, void *context)
{
    uint8_t *at = info->si_addr;
    (void)context;
    if (!trap.at || at < trap.at || at >= trap.at + 4096) {
        signal(signum, SIG_DFL); /* comes again, and ends the test */
        return;
    }
    mprotect(trap.at, 4096, PROT_READ | PROT_WRITE);
    trap.at = NULL;
    trap.then();
}

static void trap_set(void *at, void (*then)(void))
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    trap.at = (uint8_t *)((uintptr_t)at & ~(uintptr_t)4095);
    trap.then = then;
    assert_int_equal(sigaction(SIGSEGV, &action, NULL), 0);
    assert_int_equal(mprotect(trap.at, 4096, PROT_NONE), 0);
}

static void begin(void)
{
    char why[256];
    struct backing backing = later_backing(&later);
    struct limits limits = {0};
    assert_int_equal(core_start(&core, &f.h, &backing, &limits, 1000000000, why), 0);
}

static int setup(void **state)
{
    (void)state;
    fixture_init(&f, HEAP, 64);
    objects = fixture_map(HEAP);
    later.count = 0;
    begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    trap.at = NULL;
    core_stop(&core);
    munmap(objects, HEAP);
    fixture_fini(&f);
    return 0;
}

/* ---- what clients do ------------------------------------------------------------------------------------------------------ */

static uint32_t lease(struct client *client, uint32_t size, unsigned noscan)
{
    uint32_t first;
    bool fresh;
    int n;
    while ((n = mcentral_cache_span(&core, client, SPAN_CLASS(size_class_of(size, noscan), noscan), 1, &first, 1, &fresh)) == -EAGAIN)
        later_answer(&core, later_take(&later, 0), 0);
    assert_int_equal(n, 1);
    return first;
}

static uint64_t ref_of(uint32_t first, uint32_t index)
{
    return ((uint64_t)first << PAGE_SHIFT) + (uint64_t)index * class_table[f.h.spans[first].span_class].size;
}

static uint64_t *slot_at(uint64_t ref) { return (uint64_t *)(void *)(objects + ref); }

/* A client whose pins are looked at. */
static struct client *pinning(uint32_t pid, uint64_t **ret_slots)
{
    struct client *client = attach(&core, pid, 1);
    uint32_t first = lease(client, PIN_TABLE_BYTES, 0);
    words_of(&f.h, first)[0] = WORD_OWNED(client->tag);
    assert_int_equal(client_gc_mode(&core, client, GC_PINS), 0);
    assert_int_equal(client_pins(&core, client, ref_of(first, 0)), 0);
    *ret_slots = slot_at(ref_of(first, 0)) + 1;
    return client;
}

static void sweep_all(void)
{
    sweep_cycle(&core);
    while (sweep_turn(&core))
        ;
}

/* A published object is freed, and it was the last one of an unleased span. */
static void free_last(uint32_t first, uint32_t index)
{
    assert_int_equal(words_of(&f.h, first)[index], WORD_SHARED);
    words_of(&f.h, first)[index] = WORD_FREE;
    hint_set(&f.h.hints[first]);
    sweep_all();
    assert_int_equal(f.h.spans[first].span_class, 0);
}

static void end_collection(void)
{
    while (gc_sweep(&core, gc, TURN_WORDS))
        ;
    gc_end(&core, gc);
    gc_release(&core, NULL);
    assert_int_equal(core.mheap.held.free_count, 0);
    assert_int_equal(core.mheap.units.free_count + core.mheap.units_used + 1, f.h.unit_count);
}

/* ---- words that go from one span to another -------------------------------------------------------------------------------- */

static struct client *other;
static uint64_t *pins;
static uint32_t x_first, x_unit, z_first, root_first, late_first;
static bool release;

/* X, published, in the object that is the root. */
static void make_x(void)
{
    struct client *maker = attach(&core, 1, 1);
    x_first = lease(maker, 1024, 0);
    x_unit = f.h.spans[x_first].unit;
    words_of(&f.h, x_first)[LAST] = WORD_SHARED;
    assert_int_equal(class_table[f.h.spans[x_first].span_class].objects, LAST + 1);
    assert_int_equal(mcentral_uncache_span(&core, maker, x_first), 0);
    struct client *client = pinning(2, &pins);
    client_gc_mode(&core, maker, GC_SAFEPOINT);
    root_first = lease(client, 8192, 0);
    words_of(&f.h, root_first)[0] = WORD_SHARED;
    *slot_at(ref_of(root_first, 0)) = ref_of(x_first, LAST);
    assert_int_equal(client_root(&core, client, 1, "root", ROOT_MODE_SET, 0, ref_of(root_first, 0)), 0);
    other = attach(&core, 3, 1);
    client_gc_mode(&core, other, GC_PINS);
}

/* By (P): X is pinned, taken from where it was found, and freed; the unpin waits. Then its pages are cut anew. */
static void free_x_and_cut_z(void)
{
    pins[0] = ref_of(x_first, LAST);
    *slot_at(ref_of(root_first, 0)) = 0;
    free_last(x_first, LAST);
    if (release)
        gc_release(&core, gc);
    z_first = lease(other, 512, 0);
    assert_int_equal(z_first, x_first);
}

/* Z comes to be published when the last look is over; it is in the same place of its span as X was. */
static void publish_z_and_end(void)
{
    assert_int_equal(gc_work(gc), 0);
    assert_null(trap.at);
    words_of(&f.h, z_first)[LAST] = WORD_SHARED;
    end_collection();
    assert_int_equal(words_of(&f.h, z_first)[LAST], WORD_SHARED);
}

static void words_of_a_span_that_is_uncut_while_marking_are_not_those_of_another(void **state)
{
    (void)state;
    make_x();
    release = false;
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    trap_set(slot_at(ref_of(root_first, 0)), free_x_and_cut_z);
    publish_z_and_end();
    assert_int_not_equal(f.h.spans[z_first].unit, x_unit);
    assert_int_equal(f.h.spans[lease(attach(&core, 4, 1), 512, 0)].unit, x_unit); /* and then they are */
}

static void words_that_were_given_back_after_the_snapshot_are_black(void **state)
{
    (void)state;
    make_x();
    release = true;
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    uint64_t progress = core.progress;
    trap_set(slot_at(ref_of(root_first, 0)), free_x_and_cut_z);
    publish_z_and_end();
    assert_int_equal(f.h.spans[z_first].unit, x_unit);
    assert_true(core.progress > progress);
}

static void words_of_a_span_that_is_uncut_in_the_sweep_are_black_too(void **state)
{
    (void)state;
    make_x();
    *slot_at(ref_of(root_first, 0)) = 0; /* X is lost */
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    assert_int_equal(gc_work(gc), 0);
    assert_true(gc_sweep(&core, gc, 1)); /* that is X's span, the first */
    assert_int_equal(words_of(&f.h, x_first)[LAST], WORD_FREE);
    sweep_all();
    assert_int_equal(f.h.spans[x_first].span_class, 0);
    gc_release(&core, gc);
    lease(core.clients[f.h.spans[root_first].lessee], 8192, 0); /* takes X's page, but its words beside its last ones */
    z_first = lease(other, 512, 0);                             /* so that the sweep comes by Z's */
    assert_true(z_first > x_first);
    assert_int_equal(f.h.spans[z_first].unit, x_unit);
    words_of(&f.h, z_first)[LAST] = WORD_SHARED;
    end_collection();
    assert_int_equal(words_of(&f.h, z_first)[LAST], WORD_SHARED);
}

static void free_x_before_the_snapshot_is_through(void)
{
    release = true;
    free_x_and_cut_z();
    assert_int_equal(core.mheap.held.free_count, 1);
    assert_int_not_equal(f.h.spans[z_first].unit, x_unit);
}

static void words_of_a_span_that_is_uncut_while_the_snapshot_is_taken_wait_for_its_end(void **state)
{
    (void)state;
    make_x();
    for (int i = 0; i < 2; i++) /* the words of the second fill a page of their own */
        late_first = lease(attach(&core, 5, 1), 4, 1);
    assert_int_equal(class_table[f.h.spans[late_first].span_class].objects, 2048);
    for (unsigned tag = 1; tag < core.heap.header->tag_top; tag++)
        f.h.tags[tag].gc_mode = GC_PINS;
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    trap_set(&words_of(&f.h, late_first)[2047], free_x_before_the_snapshot_is_through);
    publish_z_and_end();
}

/* ---- no units left ----------------------------------------------------------------------------------------------------------- */

static void take_all_units(void)
{
    uint32_t next = 0, unit;
    for (uint32_t n = 1 << 16; n; n /= 2)
        while (mheap_alloc_units(&core.mheap, n, &next, &unit) == 0)
            ;
    assert_int_equal(core.mheap.units.free_count, 0);
}

static void a_request_waits_for_words_that_are_held_and_is_refused_only_without_them(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = lease(client, 1024, 0), out;
    bool fresh;
    (void)state;
    client_gc_mode(&core, client, GC_PINS);
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    take_all_units();
    unsigned c = SPAN_CLASS(size_class_of(1024, 0), 0);
    uint64_t used = core.mheap.used_pages;
    assert_int_equal(mcentral_cache_span(&core, client, c, 1, &out, 1, &fresh), -EAGAIN);
    assert_int_equal(core.mheap.used_pages, used);
    gc_cancel(gc); /* whichever way it ends */
    gc_end(&core, gc);
    uint64_t progress = core.progress;
    assert_int_equal(mcentral_cache_span(&core, client, c, 1, &out, 1, &fresh), -EAGAIN);
    gc_release(&core, NULL);
    assert_true(core.progress > progress);
    assert_int_equal(mcentral_cache_span(&core, client, c, 1, &out, 1, &fresh), 1);
    assert_int_equal(mcentral_cache_span(&core, client, c, 1, &out, 1, &fresh), -ENOMEM);
}

static void a_daemon_that_starts_has_words_that_the_last_one_held(void **state)
{
    struct client *client = attach(&core, 1, 1);
    uint32_t first = lease(client, 1024, 0);
    (void)state;
    client_gc_mode(&core, client, GC_PINS);
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    assert_int_equal(mcentral_uncache_span(&core, client, first), 0);
    assert_int_equal(core.mheap.held.free_count, 1);
    gc_end(&core, gc); /* only so that nothing leaks: it leaves what is held */
    core_stop(&core);
    begin();
    assert_int_equal(core.mheap.held.free_count, 0);
    assert_int_equal(core.mheap.units.free_count + 1, f.h.unit_count);
}

/* ---- queues that are full ---------------------------------------------------------------------------------------------------- */

static bool no_memory;

void *__real_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes);
void *__wrap_malloc(size_t bytes) { return no_memory ? NULL : __real_malloc(bytes); }

/* `count` published objects of a size, one after another, each of which refers to what `refers` has of the same number. */
static void make_published(struct client *client, uint32_t size, uint32_t count, uint64_t *refs, const uint64_t *refers)
{
    uint32_t first = 0, index = UINT32_MAX;
    for (uint32_t i = 0; i < count; i++, index++) {
        if (index >= class_table[f.h.spans[first].span_class].objects) {
            first = lease(client, size, 0);
            index = 0;
        }
        words_of(&f.h, first)[index] = WORD_SHARED;
        refs[i] = ref_of(first, index);
        *slot_at(refs[i]) = refers ? refers[i] : 0;
    }
}

static void what_no_queue_has_room_for_is_found_again(void **state)
{
    enum { COUNT = 4096 };
    static uint64_t far[COUNT], near[COUNT], lost[1], root[1];
    struct client *client = attach(&core, 1, 1);
    (void)state;
    client_gc_mode(&core, client, GC_PINS);
    make_published(client, 64, COUNT, far, NULL);
    make_published(client, 64, COUNT, near, far);
    make_published(client, 64, 1, lost, NULL);
    make_published(client, COUNT * 8, 1, root, NULL);
    memcpy(slot_at(root[0]), near, sizeof near);
    assert_int_equal(client_root(&core, client, 1, "root", ROOT_MODE_SET, 0, root[0]), 0);
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    no_memory = true;
    int rc = gc_work(gc);
    no_memory = false;
    assert_int_equal(rc, 0);
    assert_true(gc_report(gc)->overflows > 0);
    end_collection();
    for (int i = 0; i < COUNT; i++) {
        struct object object;
        assert_true(object_find(&f.h, near[i], &object) && *object.word == WORD_SHARED);
        assert_true(object_find(&f.h, far[i], &object) && *object.word == WORD_SHARED);
    }
    struct object object;
    assert_true(object_find(&f.h, lost[0], &object) && *object.word == WORD_FREE);
}

/* ---- pins of the dead -------------------------------------------------------------------------------------------------------- */

static uint32_t early_first;

/* By (P): X is pinned, stored where the collector has been, and taken from where it comes next. Then the client dies. */
static void move_x_and_die(void)
{
    struct client *client = core.clients[f.h.spans[root_first].lessee];
    pins[0] = ref_of(x_first, LAST);
    *slot_at(ref_of(early_first, 0) + 8) = ref_of(x_first, LAST);
    *slot_at(ref_of(root_first, 0)) = 0;
    client_die(&core, client);
    for (int i = 0; i < 100 && core_turn(&core); i++)
        ;
}

static void pins_of_a_client_that_dies_count_until_the_end(void **state)
{
    (void)state;
    make_x();
    early_first = lease(other, 8192, 0);
    words_of(&f.h, early_first)[0] = WORD_SHARED;
    *slot_at(ref_of(early_first, 0)) = ref_of(root_first, 0); /* so it is read first */
    assert_int_equal(client_root(&core, other, 1, "root", ROOT_MODE_SET, 0, ref_of(early_first, 0)), 0);
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    trap_set(slot_at(ref_of(root_first, 0)), move_x_and_die);
    assert_int_equal(gc_work(gc), 0);
    assert_null(trap.at);
    end_collection();
    assert_int_equal(words_of(&f.h, x_first)[LAST], WORD_SHARED);
    assert_true(core.reclaim.running);
    for (int i = 0; i < 100 && core_turn(&core); i++)
        ;
    assert_false(core.reclaim.running); /* the pass goes on */
}

/* ---- commits --------------------------------------------------------------------------------------------------------------------- */

static uint32_t head_first, tail_first, tx;
static bool may_turn;

/* As client/own/tx.c: words of what is committed are turned when no snapshot is being taken. */
static void turn(uint32_t first)
{
    const struct map_header *header = f.h.header;
    may_turn = !header->collecting || header->snapped == header->collecting;
    if (may_turn)
        assert_true(word_publish_swap(&words_of(&f.h, first)[0], WORD_OWNED(tx)));
}

/* The snapshot has passed the head's place, and comes to the tail's. */
static void commit_a_list(void)
{
    words_of(&f.h, head_first)[0] = words_of(&f.h, tail_first)[0] = WORD_OWNED(tx);
    *slot_at(ref_of(head_first, 0)) = ref_of(tail_first, 0);
    assert_int_equal(client_tx_commit(&core, other, 77, tx, "list", 0, ref_of(head_first, 0)), 0);
    turn(tail_first);
    assert_false(may_turn);
}

static void what_is_committed_while_the_snapshot_is_taken_is_never_white(void **state)
{
    (void)state;
    other = attach(&core, 1, 1);
    client_gc_mode(&core, other, GC_PINS);
    assert_int_equal(client_tx_tags(&core, other, 1, &tx), 1);
    head_first = lease(other, 8192, 0);
    for (int i = 0; i < 2; i++) /* the words of the second fill a page of their own */
        late_first = lease(other, 4, 1);
    tail_first = lease(other, 32768, 0);
    assert_true(head_first < late_first && late_first < tail_first);
    assert_non_null(gc = gc_begin(&core, objects, 1, false));
    assert_int_equal(gc_turner(&core, 0), 0);
    trap_set(&words_of(&f.h, late_first)[2047], commit_a_list);
    assert_int_equal(gc_work(gc), 0);
    assert_null(trap.at);
    assert_true(gc_may_release(gc));
    gc_snapped(&core, gc);
    turn(head_first);
    turn(tail_first);
    assert_true(may_turn);
    end_collection();
    assert_int_equal(words_of(&f.h, head_first)[0], WORD_SHARED);
    assert_int_equal(words_of(&f.h, tail_first)[0], WORD_SHARED);
}

static void who_turns_words_is_named_until_he_is_through_or_dead(void **state)
{
    struct client *one = attach(&core, 1, 1), *two = attach(&core, 2, 1);
    (void)state;
    assert_int_equal(gc_turner(&core, 0), 0);
    f.h.turning[one->tag] = 2;
    f.h.turning[two->tag] = 1;
    assert_int_equal(gc_turner(&core, 0), one->tag);
    assert_int_equal(gc_turner(&core, one->tag + 1u), two->tag);
    f.h.turning[one->tag] = 0;
    assert_int_equal(gc_turner(&core, 0), two->tag);
    uint16_t tag = two->tag;
    client_die(&core, two);
    assert_int_equal(gc_turner(&core, 0), 0);
    for (int i = 0; i < 100 && core_turn(&core); i++)
        ;
    assert_int_equal(tag_state(&f.h, tag), TAG_FREE);
    assert_int_equal(f.h.turning[tag], 0); /* the next one's begins at none */
}

/* ---- hazards ----------------------------------------------------------------------------------------------------------------------- */

/* The search for a free tag comes by it next. */
static bool is_handed_out(struct client *client, unsigned tag)
{
    uint32_t got = 0;
    core.tag_cursor = tag - 1;
    assert_int_equal(client_tx_tags(&core, client, 1, &got), 1);
    return got == tag;
}

static void a_tag_that_a_hazard_names_is_given_to_nobody(void **state)
{
    struct client *maker = attach(&core, 1, 1), *claimer = attach(&core, 2, 1);
    uint32_t x;
    (void)state;
    assert_int_equal(client_tx_tags(&core, maker, 1, &x), 1);
    assert_int_equal(client_tx_commit(&core, maker, 7, x, "", 0, 0), 0);
    assert_non_null(hazard_set(&f.h, claimer->tag, x, 0)); /* he has seen that it is committed */
    client_die(&core, maker);
    for (int i = 0; i < 100 && core_turn(&core); i++)
        ;
    assert_int_equal(tag_state(&f.h, x), TAG_FREE);
    core.tag_cursor = x - 1;
    struct client *next = attach(&core, 3, 1);
    assert_int_not_equal(next->tag, x);
    assert_false(is_handed_out(next, x));
    client_die(&core, claimer); /* and in the end the daemon clears it */
    client_die(&core, next);
    for (int i = 0; i < 1000 && core_turn(&core); i++)
        ;
    assert_false(hazard_names(&f.h, x));
    assert_true(is_handed_out(attach(&core, 4, 1), x));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        TEST(words_of_a_span_that_is_uncut_while_marking_are_not_those_of_another),
        TEST(words_that_were_given_back_after_the_snapshot_are_black),
        TEST(words_of_a_span_that_is_uncut_in_the_sweep_are_black_too),
        TEST(words_of_a_span_that_is_uncut_while_the_snapshot_is_taken_wait_for_its_end),
        TEST(a_request_waits_for_words_that_are_held_and_is_refused_only_without_them),
        TEST(a_daemon_that_starts_has_words_that_the_last_one_held),
        TEST(what_no_queue_has_room_for_is_found_again),
        TEST(pins_of_a_client_that_dies_count_until_the_end),
        TEST(what_is_committed_while_the_snapshot_is_taken_is_never_white),
        TEST(who_turns_words_is_named_until_he_is_through_or_dead),
        TEST(a_tag_that_a_hazard_names_is_given_to_nobody),
#undef TEST
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
