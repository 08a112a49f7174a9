/* shm/root: named roots, an open-addressing table under a seqlock a slot.
 *
 * Goal: lookups say what a plain list of names says, whatever was set, changed and removed before;
 * a reader that races with the writer sees a whole entry or -EAGAIN and never misses a root that is
 * there all the time. Method: random operations beside a model, in tables that are small enough to
 * be full, wrapped and worn; then a writer against readers.
 */
#include "tests/shm/fixture.h"

#include <errno.h>
#include <pthread.h>

#include "shm/root.h"

static void names_of_1_to_63_bytes_without_control_characters_are_names(void **state)
{
    char name[70];
    (void)state;
    for (size_t length = 0; length < sizeof name; length++) {
        memset(name, 'x', length);
        name[length] = 0;
        assert_int_equal(root_name_check(name), length >= 1 && length <= 63 ? 0 : -EINVAL);
    }
    for (int c = 1; c < 256; c++) {
        char odd[4] = {'a', (char)c, 'b', 0};
        assert_int_equal(root_name_check(odd), c < 0x20 || c == 0x7f ? -EINVAL : 0);
    }
    assert_int_equal(root_name_check(NULL), -EINVAL);
}

/* ---- against a model ---------------------------------------------------------------------- */

enum { NAMES = 200 };

/* As the daemon sets a root: 0, or what it refuses with. */
static int set(struct heap *h, const char *name, uint64_t ref)
{
    int64_t slot = root_find(h, name);
    if (slot < 0 && !ref)
        return -ENOENT;
    if (slot < 0)
        slot = root_find_free(h, name);
    if (slot < 0)
        return (int)slot;
    root_write(h, (uint32_t)slot, name, ref, 1000);
    return 0;
}

static void name_of(int i, char *out)
{
    snprintf(out, ROOT_NAME, i % 3 ? "root %d" : "a rather longer name of a root, number %d", i);
}

static void compare(const struct fixture *f, const uint64_t *model)
{
    char name[ROOT_NAME];
    for (int i = 0; i < NAMES; i++) {
        uint64_t ref = 12345;
        name_of(i, name);
        assert_int_equal(root_lookup(&f->h, name, &ref), model[i] ? 0 : -ENOENT);
        assert_int_equal(ref, model[i] ? model[i] : 12345);
        assert_int_equal(root_find(&f->h, name) >= 0, model[i] != 0);
    }
    for (uint32_t slot = 0; slot < f->h.root_slots; slot++)
        assert_null(root_check(&f->h, slot));
}

static void lookups_say_what_a_plain_list_says(void **state)
{
    static const uint32_t slots[] = {1, 2, 7, 63, 65, 130, 256, 1000};
    uint64_t seed = seed_get();
    (void)state;
    for (size_t s = 0; s < sizeof slots / sizeof slots[0]; s++) {
        struct fixture f;
        uint64_t model[NAMES] = {0};
        uint32_t used = 0;
        fixture_init(&f, HEAP_MIN, slots[s]);
        for (int step = 0; step < 4000; step++) {
            char name[ROOT_NAME];
            int i = (int)random_below(&seed, NAMES);
            uint64_t ref = random_below(&seed, step / 500 % 2 ? 4 : 2)
                               ? 16 + random_below(&seed, 1000) * 16
                               : 0;
            int expect = !ref && !model[i]                      ? -ENOENT
                         : ref && !model[i] && used == slots[s] ? -ENOSPC
                                                                : 0;
            name_of(i, name);
            assert_int_equal(set(&f.h, name, ref), expect);
            if (expect == 0) {
                used += (ref != 0) - (model[i] != 0);
                model[i] = ref;
            }
            if (step % 50 == 0)
                compare(&f, model);
        }
        for (int i = 0; i < NAMES;
             i++) { /* all removed: nothing but unused slots is left, and searches end at once */
            char name[ROOT_NAME];
            name_of(i, name);
            set(&f.h, name, 0);
        }
        for (uint32_t slot = 0; slot < slots[s]; slot++)
            assert_int_equal(f.h.roots[slot].ref, 0);
        memset(model, 0, sizeof model);
        compare(&f, model);
        fixture_fini(&f);
    }
}

static void a_table_emptied_from_full_has_no_slot_that_searches_must_pass(void **state)
{
    struct fixture f;
    char name[ROOT_NAME];
    (void)state;
    fixture_init(&f, HEAP_MIN, 256);
    for (int i = 0; i < NAMES; i++) {
        name_of(i, name);
        assert_int_equal(set(&f.h, name, 64), 0);
    }
    for (int i = 0; i < NAMES; i++) {
        name_of(i, name);
        assert_int_equal(set(&f.h, name, 0), 0);
    }
    for (uint32_t slot = 0; slot < 256; slot++)
        assert_int_equal(f.h.roots[slot].used, 0);
    fixture_fini(&f);
}

static void blocks_of_slots_that_were_never_written_are_not_read(void **state)
{
    struct fixture f;
    uint64_t ref;
    (void)state;
    fixture_init(&f, HEAP_MIN, 1000);
    for (uint32_t slot = 0; slot < 1000; slot++) { /* would be found if it were read */
        strcpy(f.h.roots[slot].name, "ghost");
        f.h.roots[slot].used = 1;
        f.h.roots[slot].ref = 32;
    }
    assert_int_equal(root_lookup(&f.h, "ghost", &ref), -ENOENT);
    assert_int_equal(root_find(&f.h, "ghost"), -ENOENT);
    assert_int_equal(root_find_free(&f.h, "ghost"), root_hash("ghost") % 1000);
    fixture_fini(&f);
}

static void every_change_wakes_the_waiters_of_its_name(void **state)
{
    struct fixture f;
    uint32_t *gen;
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    gen = &f.h.root_gens[root_hash("a") % ROOT_GENS];
    uint32_t before = *gen;
    set(&f.h, "a", 64);
    assert_int_equal(*gen, before + 1);
    set(&f.h, "a", 128);
    set(&f.h, "a", 0);
    assert_int_equal(*gen, before + 3);
    fixture_fini(&f);
}

/* ---- damage and death --------------------------------------------------------------------- */

static void an_update_cut_short_reads_as_eagain_until_it_is_repaired(void **state)
{
    struct fixture f;
    uint64_t ref = 1;
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    set(&f.h, "a", 64);
    int64_t slot = root_find(&f.h, "a");
    f.h.roots[slot].seq |= 1; /* the daemon was killed here */
    assert_int_equal(root_lookup(&f.h, "a", &ref), -EAGAIN);
    assert_int_equal(ref, 1);
    assert_non_null(root_check(&f.h, (uint32_t)slot));
    root_repair(&f.h);
    assert_null(root_check(&f.h, (uint32_t)slot));
    assert_int_equal(root_lookup(&f.h, "a", &ref), 0);
    assert_int_equal(ref, 64);
    fixture_fini(&f);
}

static void the_check_notices_each_damage_of_a_slot(void **state)
{
    struct fixture f;
    (void)state;
    fixture_init(&f, HEAP_MIN, 64);
    set(&f.h, "a", 64);
    uint32_t slot = (uint32_t)root_find(&f.h, "a");
    struct root *root = &f.h.roots[slot], good = *root;
    assert_null(root_check(&f.h, slot));
    root->used = 0;
    assert_non_null(root_check(&f.h, slot));
    *root = good;
    root->ref = f.h.heap_bytes;
    assert_non_null(root_check(&f.h, slot));
    *root = good;
    root->name[0] = 0;
    assert_non_null(root_check(&f.h, slot));
    memset(root->name, 'x', sizeof root->name);
    assert_non_null(root_check(&f.h, slot));
    *root = good;
    assert_null(root_check(&f.h, slot));
    fixture_fini(&f);
}

/* ---- a writer against readers ------------------------------------------------------------- */

enum { SLOTS = 16, STEADY = 4, RESTLESS = 12, UPDATES = 200000 };

struct race {
    struct fixture f;
    uint32_t stop;
    uint64_t lookups[2], torn[2], missed[2];
};

/* The reference of name i always has i in its low bits, and so tells whose it is. */
static uint64_t ref_of(int i, uint64_t round)
{
    return (round % 1000 + 1) * 64 + (uint64_t)i;
}

static void read_all(struct race *r, int reader)
{
    char name[ROOT_NAME];
    while (!load_acquire(&r->stop))
        for (int i = 0; i < STEADY + RESTLESS; i++) {
            uint64_t ref = 0;
            name_of(i, name);
            int rc = root_lookup(&r->f.h, name, &ref);
            store_relaxed(&r->lookups[reader], r->lookups[reader] + (rc == 0));
            r->torn[reader] += rc == 0 && ref % 64 != (uint64_t)i;
            r->missed[reader] += rc == -ENOENT && i < STEADY;
        }
}

static void *reader_0(void *argument)
{
    return read_all(argument, 0), NULL;
}
static void *reader_1(void *argument)
{
    return read_all(argument, 1), NULL;
}

static void readers_see_whole_entries_and_never_miss_a_root_that_stays(void **state)
{
    static struct race r;
    uint64_t seed = seed_get();
    char name[ROOT_NAME];
    pthread_t threads[2];
    (void)state;
    fixture_init(&r.f, HEAP_MIN,
                 SLOTS); /* full: every chain is long, every slot has had many names */
    for (int i = 0; i < STEADY; i++) {
        name_of(i, name);
        assert_int_equal(set(&r.f.h, name, ref_of(i, 0)), 0);
    }
    pthread_create(&threads[0], NULL, reader_0, &r);
    pthread_create(&threads[1], NULL, reader_1, &r);
    for (uint64_t n = 0; n < UPDATES; n++) {
        int i = (int)random_below(&seed, STEADY + RESTLESS);
        name_of(i, name);
        set(&r.f.h, name, i < STEADY || random_below(&seed, 2) ? ref_of(i, n) : 0);
    }
    while (load_relaxed(&r.lookups[0]) == 0 && load_relaxed(&r.lookups[1]) == 0)
        continue; /* at least one of them has run */
    store_release(&r.stop, 1);
    pthread_join(threads[0], NULL);
    pthread_join(threads[1], NULL);
    assert_int_equal(r.torn[0] + r.torn[1], 0);
    assert_int_equal(r.missed[0] + r.missed[1], 0);
    assert_true(r.lookups[0] + r.lookups[1] > 0);
    fixture_fini(&r.f);
}

/* The one slot belongs to each of two names in turn; nothing but the seqlock keeps a reader from
 * taking the reference of the one for the other's. */
static void read_two(struct race *r, int reader)
{
    char names[2][ROOT_NAME];
    name_of(0, names[0]);
    name_of(1, names[1]);
    while (!load_acquire(&r->stop))
        for (int i = 0; i < 2; i++) {
            uint64_t ref = 0;
            int rc = root_lookup(&r->f.h, names[i], &ref);
            store_relaxed(&r->lookups[reader], r->lookups[reader] + (rc == 0));
            r->torn[reader] += rc == 0 && ref % 64 != (uint64_t)i;
        }
}

static void *two_reader(void *argument)
{
    return read_two(argument, 0), NULL;
}

static void a_slot_that_changes_its_name_under_a_reader_is_never_read_half(void **state)
{
    static struct race r;
    char names[2][ROOT_NAME];
    pthread_t thread;
    (void)state;
    fixture_init(&r.f, HEAP_MIN, 1);
    name_of(0, names[0]);
    name_of(1, names[1]);
    pthread_create(&thread, NULL, two_reader, &r);
    for (uint64_t n = 0; n < 10 * UPDATES || load_relaxed(&r.lookups[0]) == 0; n++) {
        root_write(&r.f.h, 0, names[n % 2], ref_of((int)(n % 2), n), 0);
        root_write(&r.f.h, 0, names[n % 2], 0, 0);
    }
    store_release(&r.stop, 1);
    pthread_join(thread, NULL);
    assert_int_equal(r.torn[0], 0);
    fixture_fini(&r.f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_of_1_to_63_bytes_without_control_characters_are_names),
        cmocka_unit_test(lookups_say_what_a_plain_list_says),
        cmocka_unit_test(a_table_emptied_from_full_has_no_slot_that_searches_must_pass),
        cmocka_unit_test(blocks_of_slots_that_were_never_written_are_not_read),
        cmocka_unit_test(every_change_wakes_the_waiters_of_its_name),
        cmocka_unit_test(an_update_cut_short_reads_as_eagain_until_it_is_repaired),
        cmocka_unit_test(the_check_notices_each_damage_of_a_slot),
        cmocka_unit_test(readers_see_whole_entries_and_never_miss_a_root_that_stays),
        cmocka_unit_test(a_slot_that_changes_its_name_under_a_reader_is_never_read_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
