/* shm/root: named roots, chains of slots under a seqlock a bucket.
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
        slot = root_find_free(h, name, 1000);
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

/* What the table is made of, counted without its own functions: links to slots of buckets and of the free list. */
static void count_links(const struct heap *h, uint32_t *ret_chained, uint32_t *ret_free, uint32_t *ret_longest)
{
    *ret_chained = *ret_free = *ret_longest = 0;
    for (uint32_t b = 0; b < h->root_slots; b++) {
        uint32_t length = 0;
        for (uint32_t at = h->root_buckets[b].first; at; at = h->roots[at - 1].next)
            assert_true(++length <= h->root_slots);
        *ret_chained += length;
        *ret_longest = length > *ret_longest ? length : *ret_longest;
    }
    for (uint32_t at = h->header->root_free; at; at = h->roots[at - 1].next)
        assert_true(++*ret_free <= h->root_slots);
}

static void what_was_removed_is_walked_over_by_nobody(void **state)
{
    struct fixture f;
    char name[ROOT_NAME];
    uint32_t chained, unused, longest;
    (void)state;
    fixture_init(&f, HEAP_MIN, 4096);
    for (int i = 0; i < 100000; i++) { /* one or two at a time: with tombstones all of the table would be full of them */
        snprintf(name, sizeof name, "n%d", i);
        assert_int_equal(set(&f.h, name, 64), 0);
        if (i) {
            snprintf(name, sizeof name, "n%d", i - 1);
            assert_int_equal(set(&f.h, name, 0), 0);
        }
    }
    count_links(&f.h, &chained, &unused, &longest);
    assert_int_equal(chained, 1);
    assert_int_equal(f.h.header->root_top, 2); /* and no more memory was written than two roots need */
    assert_int_equal(unused, 1);
    fixture_fini(&f);
}

/* Names that fall into bucket 0, found with the key as any client may. */
static void next_of_bucket(const struct heap *h, unsigned *from, char *out)
{
    do
        snprintf(out, ROOT_NAME, "c%u", (*from)++);
    while (root_bucket(h, out) != 0);
}

static void a_chain_is_bounded_for_one_user_and_for_all(void **state)
{
    struct fixture f;
    char name[ROOT_NAME];
    unsigned from = 0;
    uint32_t chained, unused, longest;
    uint64_t ref;
    (void)state;
    fixture_init(&f, HEAP_MIN, 1024);
    for (uint32_t n = 0; n < ROOT_CHAIN + 3 * ROOT_CHAIN_USER; n++) {
        uint32_t uid = 1000 + n / (2 * ROOT_CHAIN_USER); /* each tries twice as many as it may */
        next_of_bucket(&f.h, &from, name);
        int64_t slot = root_find_free(&f.h, name, uid);
        assert_int_equal(slot < 0, n % (2 * ROOT_CHAIN_USER) >= ROOT_CHAIN_USER);
        if (slot >= 0)
            root_write(&f.h, (uint32_t)slot, name, 64, uid);
    }
    for (uint32_t uid = 2000; uid < 2004; uid++)
        for (uint32_t n = 0; n < ROOT_CHAIN_USER; n++) {
            next_of_bucket(&f.h, &from, name);
            int64_t slot = root_find_free(&f.h, name, uid);
            if (slot >= 0)
                root_write(&f.h, (uint32_t)slot, name, 64, uid);
        }
    count_links(&f.h, &chained, &unused, &longest);
    assert_int_equal(longest, ROOT_CHAIN);
    next_of_bucket(&f.h, &from, name);
    assert_int_equal(root_find_free(&f.h, name, 3000), -ENOSPC);
    assert_int_equal(root_lookup(&f.h, name, &ref), -ENOENT);
    assert_true(root_find_free(&f.h, "elsewhere", 3000) >= 0 && root_bucket(&f.h, "elsewhere") != 0);
    fixture_fini(&f);
}

static void buckets_of_names_depend_on_the_key(void **state)
{
    struct fixture f;
    char name[ROOT_NAME];
    uint32_t before[64], same = 0;
    (void)state;
    fixture_init(&f, HEAP_MIN, 1 << 16);
    for (int key = 0; key < 2; key++) {
        for (int i = 0; i < 64; i++) {
            snprintf(name, sizeof name, "name %d", i);
            before[i] = root_bucket(&f.h, name);
        }
        f.h.header->root_key[key] ^= 1;
        for (int i = 0; i < 64; i++) {
            snprintf(name, sizeof name, "name %d", i);
            same += root_bucket(&f.h, name) == before[i];
        }
    }
    assert_true(same <= 2);
    f.h.header->root_key[0] = 0x0706050403020100;
    f.h.header->root_key[1] = 0x0f0e0d0c0b0a0908;
    uint32_t spread[16] = {0};
    for (int i = 0; i < 16000; i++) {
        snprintf(name, sizeof name, "%d", i);
        spread[root_bucket(&f.h, name) % 16]++;
    }
    for (int i = 0; i < 16; i++)
        assert_in_range(spread[i], 800, 1200); /* 1000 are expected, the deviation is 31 */
    fixture_fini(&f);
}

static void what_was_never_written_is_not_read(void **state)
{
    struct fixture f;
    uint64_t ref;
    (void)state;
    fixture_init(&f, HEAP_MIN, 1000);
    for (uint32_t slot = 0; slot < 1000; slot++) { /* would be found if it were read */
        strcpy(f.h.roots[slot].name, "ghost");
        f.h.roots[slot].used = 1;
        f.h.roots[slot].ref = 32;
        f.h.root_buckets[slot].first = slot + 1;
    }
    f.h.root_buckets[root_bucket(&f.h, "ghost")].first = 1;
    assert_int_equal(root_lookup(&f.h, "ghost", &ref), -ENOENT);
    assert_int_equal(root_find(&f.h, "ghost"), -ENOENT);
    assert_int_equal(root_find_free(&f.h, "ghost", 0), 0);
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
    f.h.root_buckets[root_bucket(&f.h, "a")].seq |= 1; /* the daemon was killed here */
    assert_int_equal(root_lookup(&f.h, "a", &ref), -EAGAIN);
    assert_int_equal(ref, 1);
    assert_non_null(root_check(&f.h, (uint32_t)slot));
    root_repair(&f.h);
    assert_null(root_check(&f.h, (uint32_t)slot));
    assert_int_equal(root_lookup(&f.h, "a", &ref), 0);
    assert_int_equal(ref, 64);
    fixture_fini(&f);
}

/* The states between the stores of a change, as a daemon that died leaves them: a chain of three, one of them new or
 * going. */
static void a_change_cut_short_leaves_a_whole_table_after_the_repair(void **state)
{
    (void)state;
    for (int died = 0; died < 4; died++) {
        struct fixture f;
        char names[3][ROOT_NAME];
        unsigned from = 0;
        uint32_t chained, unused, longest;
        uint64_t ref;
        fixture_init(&f, HEAP_MIN, 64);
        for (int i = 0; i < 3; i++) {
            next_of_bucket(&f.h, &from, names[i]);
            assert_int_equal(set(&f.h, names[i], 64 + 16 * (uint64_t)i), 0);
        }
        uint32_t slot = (uint32_t)root_find(&f.h, names[1]);
        f.h.root_buckets[0].seq |= 1;
        f.h.roots[slot].ref = 0; /* linked and without a reference: it comes or goes */
        if (died == 1)
            f.h.roots[root_find(&f.h, names[2])].next = f.h.roots[slot].next; /* not linked any more */
        if (died == 2) { /* and not used */
            f.h.roots[root_find(&f.h, names[2])].next = f.h.roots[slot].next;
            f.h.roots[slot].used = 0;
        }
        if (died == 3) /* the list of free slots and the chain were both pointed at it */
            f.h.header->root_free = slot + 1;
        root_repair(&f.h);
        count_links(&f.h, &chained, &unused, &longest);
        assert_int_equal(chained, 2);
        assert_int_equal(unused, 1);
        assert_int_equal(root_lookup(&f.h, names[0], &ref), 0);
        assert_int_equal(ref, 64);
        assert_int_equal(root_lookup(&f.h, names[1], &ref), -ENOENT);
        assert_int_equal(root_lookup(&f.h, names[2], &ref), 0);
        assert_int_equal(ref, 96);
        root_write(&f.h, slot, names[1], 80, 1000); /* the redo record, again and again */
        root_write(&f.h, slot, names[1], 80, 1000);
        assert_int_equal(root_lookup(&f.h, names[1], &ref), 0);
        count_links(&f.h, &chained, &unused, &longest);
        assert_int_equal(chained, 3);
        assert_int_equal(unused, 0);
        root_write(&f.h, slot, names[1], 0, 1000);
        root_write(&f.h, slot, names[1], 0, 1000);
        count_links(&f.h, &chained, &unused, &longest);
        assert_int_equal(chained, 2);
        assert_int_equal(unused, 1);
        for (uint32_t i = 0; i < 64; i++)
            assert_null(root_check(&f.h, i));
        fixture_fini(&f);
    }
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
    strcpy(root->name, "b"); /* of another bucket */
    assert_int_not_equal(root_bucket(&f.h, "a"), root_bucket(&f.h, "b"));
    assert_non_null(root_check(&f.h, slot));
    *root = good;
    uint32_t *first = &f.h.root_buckets[root_bucket(&f.h, "a")].first, was = *first;
    *first = 0;
    assert_non_null(root_check(&f.h, slot));
    *first = was;
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
        cmocka_unit_test(what_was_removed_is_walked_over_by_nobody),
        cmocka_unit_test(a_chain_is_bounded_for_one_user_and_for_all),
        cmocka_unit_test(buckets_of_names_depend_on_the_key),
        cmocka_unit_test(what_was_never_written_is_not_read),
        cmocka_unit_test(every_change_wakes_the_waiters_of_its_name),
        cmocka_unit_test(an_update_cut_short_reads_as_eagain_until_it_is_repaired),
        cmocka_unit_test(a_change_cut_short_leaves_a_whole_table_after_the_repair),
        cmocka_unit_test(the_check_notices_each_damage_of_a_slot),
        cmocka_unit_test(readers_see_whole_entries_and_never_miss_a_root_that_stays),
        cmocka_unit_test(a_slot_that_changes_its_name_under_a_reader_is_never_read_half),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
