/* Goal: every call on objects does what arena.h says, for good arguments and bad ones.
 * Method: one daemon with a heap of 3 GiB, one process; sizes at every class boundary; a handler that counts bad frees. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

#include "shm/sizeclass.h"

static struct daemon d;
static arena_t *a;
static int errors, last_error;
static char last_message[256];

static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)p;
    errors++;
    last_error = error;
    snprintf(last_message, sizeof last_message, "%s", message);
}

static int setup(void **state)
{
    daemon_setup(state, &d, "3G", &a);
    arena_on_error(a, on_error, NULL);
    return 0;
}

static void every_size_is_usable_aligned_and_its_own(void **state)
{
    (void)state;
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++)
        for (int beyond = -1; beyond <= 1; beyond++) {
            size_t size = class_table[c].size + (size_t)beyond;
            unsigned flags = c & 1 ? ARENA_NOSCAN : 0;
            unsigned char *p = arena_alloc_flags(a, size, flags), *q = arena_alloc_flags(a, size, flags);
            assert_non_null(p);
            assert_non_null(q);
            assert_ptr_not_equal(p, q);
            assert_true(arena_usable_size(a, p) >= size);
            if (size >= 16)
                assert_int_equal((uintptr_t)p % 16, 0);
            memset(p, 0xa5, arena_usable_size(a, p));
            memset(q, 0x5a, arena_usable_size(a, q));
            assert_int_equal(p[0], 0xa5);
            assert_int_equal(p[arena_usable_size(a, p) - 1], 0xa5);
            arena_free(a, p);
            arena_free(a, q);
        }
    assert_int_equal(errors, 0);
}

static void odd_sizes_work_or_are_refused(void **state)
{
    (void)state;
    void *zero = arena_alloc(a, 0), *other = arena_alloc(a, 0);
    assert_non_null(zero);
    assert_ptr_not_equal(zero, other);
    arena_free(a, zero);
    arena_free(a, other);
    arena_free(a, NULL);
    static const size_t sizes[] = {1, 32767, 32768, 32769, 65536, 1 << 20, (1 << 20) + 1, 100 << 20, 1ULL << 30};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        char *p = arena_alloc(a, sizes[i]);
        assert_non_null(p);
        p[0] = 1;
        p[sizes[i] - 1] = 2;
        assert_true(arena_usable_size(a, p) >= sizes[i]);
        arena_free(a, p);
    }
    static const size_t impossible[] = {SIZE_MAX, SIZE_MAX - 1, SIZE_MAX / 2, 1ULL << 40, 4ULL << 30};
    for (size_t i = 0; i < sizeof impossible / sizeof impossible[0]; i++) {
        errno = 0;
        assert_null(arena_alloc(a, impossible[i]));
        assert_int_equal(errno, ENOMEM);
    }
    errno = 0;
    assert_null(arena_calloc(a, SIZE_MAX / 2, 3));
    assert_int_equal(errno, ENOMEM);
    errno = 0;
    assert_null(arena_alloc_flags(a, 10, 1u << 30));
    assert_int_equal(errno, EINVAL);
}

static void every_alignment_is_kept(void **state)
{
    (void)state;
    for (size_t alignment = 1; alignment <= 2 << 20; alignment *= 2)
        for (size_t size = 1; size < 100000; size = size * 3 + 1) {
            char *p = arena_aligned_alloc(a, alignment, size);
            assert_non_null(p);
            assert_int_equal((uintptr_t)p % alignment, 0);
            memset(p, 1, size);
            arena_free(a, p);
        }
    static const size_t bad[] = {0, 3, 24, 4 << 20, SIZE_MAX};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        errno = 0;
        assert_null(arena_aligned_alloc(a, bad[i], 100));
        assert_int_equal(errno, EINVAL);
    }
    assert_int_equal(errors, 0);
}

static void calloc_and_zero_give_zeros_in_used_memory(void **state)
{
    (void)state;
    for (size_t size = 1; size < 200000; size = size * 2 + 1) {
        unsigned char *p = arena_alloc(a, size);
        memset(p, 0xff, size);
        arena_free(a, p);
        p = arena_calloc(a, 1, size);
        for (size_t i = 0; i < size; i++)
            assert_int_equal(p[i], 0);
        arena_free(a, p);
    }
}

static void realloc_keeps_contents_and_grows_in_place_where_it_can(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    unsigned char *p = NULL;
    size_t size = 0;
    for (int i = 0; i < 3000; i++) {
        size_t next = 1 + rnd(&seed) % (i % 10 ? 5000 : 300000);
        unsigned char *q = arena_realloc(a, p, next);
        assert_non_null(q);
        for (size_t k = 0; k < size && k < next; k++)
            assert_int_equal(q[k], (unsigned char)(k * 7));
        for (size_t k = 0; k < next; k++)
            q[k] = (unsigned char)(k * 7);
        p = q;
        size = next;
    }
    assert_null(arena_realloc(a, p, 0));
    void *big = arena_alloc(a, 1 << 20), *grown = arena_realloc(a, big, 40 << 20);
    assert_non_null(grown);
    assert_true(arena_usable_size(a, grown) >= 40 << 20);
    arena_free(a, grown);
    void *small = arena_alloc(a, 100);
    assert_ptr_equal(arena_realloc(a, small, 101), small); /* within its class */
    arena_free(a, small);
    void *shared = arena_alloc_flags(a, 100, ARENA_SHARED | ARENA_NOSCAN);
    shared = arena_realloc(a, shared, 10000);
    assert_int_equal(arena_claim(a, shared), 0); /* it had stayed SHARED */
    arena_free(a, shared);
    assert_int_equal(errors, 0);
}

static void bad_frees_are_named_and_do_nothing(void **state)
{
    (void)state;
    char local;
    char *p = arena_alloc(a, 100);
    errors = 0;
    arena_free(a, p);
    arena_free(a, p); /* at once */
    assert_int_equal(errors, 1);
    assert_int_equal(last_error, EALREADY);
    assert_non_null(strstr(last_message, "double free"));
    char *q = arena_alloc(a, 100);
    assert_ptr_equal(q, p); /* and it is handed out once */
    assert_ptr_not_equal(arena_alloc(a, 100), p);
    arena_free(a, q + 16);
    assert_int_equal(errors, 2);
    assert_non_null(strstr(last_message, "interior"));
    arena_free(a, &local);
    assert_int_equal(errors, 3);
    assert_int_equal(last_error, EINVAL);
    assert_non_null(strstr(last_message, "outside the heap"));
    arena_free(a, arena_ptr(a, 3ULL << 30 >> 1)); /* in the heap, nothing there */
    assert_int_equal(errors, 4);
    void *large = arena_alloc(a, 1 << 20);
    arena_free(a, (char *)large + 8192);
    assert_int_equal(errors, 5);
    arena_free(a, large);
    arena_free(a, large);
    assert_int_equal(errors, 6);
    void *keep[2000]; /* later: a double free of what has gone through magazines and back */
    for (int i = 0; i < 2000; i++)
        keep[i] = arena_alloc(a, 64);
    for (int i = 0; i < 2000; i++)
        arena_free(a, keep[i]);
    arena_trim(a);
    arena_free(a, keep[77]);
    assert_int_equal(errors, 7);
    errors = 0;
    assert_int_equal(check_of(&d), 0);
}

static int frees_what_is_not_its_own(void *p)
{
    arena_t *b = open_heap(&d);
    int before = errors;
    arena_on_error(b, on_error, NULL);
    arena_free(b, p);
    return errors == before + 1 && last_error == EPERM ? 0 : 1;
}

static void unpublished_objects_of_another_process_are_refused(void **state)
{
    (void)state;
    char *p = arena_alloc(a, 100);
    strcpy(p, "mine");
    assert_int_equal(reap(spawn(frees_what_is_not_its_own, p)), 0);
    assert_string_equal(p, "mine");
    arena_free(a, p);
    assert_int_equal(errors, 0);
}

static void publish_and_claim_follow_the_rules(void **state)
{
    (void)state;
    char *p = arena_alloc(a, 100);
    assert_int_equal(arena_claim(a, p), -EBUSY); /* owned already */
    assert_int_equal(arena_publish(a, p), 0);
    assert_int_equal(arena_publish(a, p), 0);
    assert_int_equal(arena_claim(a, p), 0);
    assert_int_equal(arena_claim(a, p), -EBUSY);
    arena_free(a, p);
    assert_int_equal(arena_publish(a, p), -EINVAL);
    assert_int_equal(arena_claim(a, p), -EINVAL);
    assert_int_equal(arena_publish(a, NULL), -EINVAL);
    assert_int_equal(arena_publish(a, &p), -EINVAL);
}

static void references_are_offsets(void **state)
{
    (void)state;
    char *p = arena_alloc(a, 100);
    arena_ref_t ref = arena_ref(a, p);
    assert_true(ref != 0);
    assert_ptr_equal(arena_ptr(a, ref), p);
    assert_ptr_equal(arena_ptr(a, arena_ref(a, p + 5)), p + 5);
    assert_int_equal(arena_ref(a, NULL), 0);
    errno = 0;
    assert_int_equal(arena_ref(a, &p), 0);
    assert_int_equal(errno, EINVAL);
    assert_null(arena_ptr(a, 0));
    assert_null(arena_ptr(a, 3ULL << 30));
    assert_null(arena_ptr(a, UINT64_MAX));
    assert_int_equal(arena_same_address(a), 1);
    arena_free(a, p);
}

static void batches_are_whole(void **state)
{
    (void)state;
    static void *objects[5000];
    assert_int_equal(arena_alloc_batch(a, 48, objects, 5000), 5000);
    for (int i = 0; i < 5000; i++)
        memset(objects[i], i, 48);
    arena_free_batch(a, objects, 5000);
    assert_int_equal(errors, 0);
}

static void *thread_allocates(void *argument)
{
    void *objects[500];
    (void)argument;
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 500; i++)
            objects[i] = arena_alloc(a, (size_t)i * 3);
        for (int i = 0; i < 500; i++)
            arena_free(a, objects[i]);
    }
    return NULL;
}

static void threads_come_and_go_and_leave_nothing(void **state)
{
    (void)state;
    for (int i = 0; i < 2000; i += 4) {
        pthread_t threads[4];
        for (int k = 0; k < 4; k++)
            assert_int_equal(pthread_create(&threads[k], NULL, thread_allocates, NULL), 0);
        for (int k = 0; k < 4; k++)
            pthread_join(threads[k], NULL);
    }
    arena_trim(a);
    assert_true(stat_of(&d, "objects_cached") == 0);
    assert_int_equal(check_of(&d), 0);
}

static void realloc_to_less_stays_in_place_where_it_wastes_little(void **state)
{
    static const size_t from[] = {64, 200, 400, 512, 3000, 32768, 40960, 300000, 40 << 20};
    (void)state;
    for (size_t i = 0; i < sizeof from / sizeof from[0]; i++)
        for (int shared = 0; shared < 2; shared++)
            for (size_t to = from[i]; to > from[i] / 4; to -= from[i] / 8) {
                char *p = arena_alloc_flags(a, from[i], shared ? ARENA_SHARED : 0);
                size_t usable = arena_usable_size(a, p);
                p[0] = 'p';
                p[to - 1] = 'q';
                char *q = arena_realloc(a, p, to);
                assert_int_equal(q[0], 'p');
                assert_int_equal(q[to - 1], 'q');
                assert_true(arena_usable_size(a, q) >= to);
                if (to >= usable / 2 || usable - to <= 256 || (!shared && to > 32768))
                    assert_ptr_equal(p, q);
                else
                    assert_true(arena_usable_size(a, q) < usable);
                arena_free(a, q);
            }
    assert_int_equal(errors, 0);
}

static void messages_name_the_function_that_was_called(void **state)
{
    arena_buf_t b;
    arena_vec_t v;
    char local;
    (void)state;
    errors = 0;
    void *p = arena_alloc(a, 100), *freed = arena_alloc(a, 100);
    arena_free(a, freed);
    assert_null(arena_realloc(a, (char *)p + 16, 200));
    assert_non_null(strstr(last_message, "arena_realloc("));
    assert_non_null(strstr(last_message, "interior"));
    assert_null(arena_realloc(a, freed, 200));
    assert_non_null(strstr(last_message, "arena_realloc("));
    assert_int_equal(last_error, EALREADY);
    assert_null(arena_realloc(a, &local, 0));
    assert_non_null(strstr(last_message, "arena_realloc("));
    arena_free(a, &local);
    assert_non_null(strstr(last_message, "arena_free("));
    arena_free_batch(a, &freed, 1);
    assert_non_null(strstr(last_message, "arena_free_batch("));
    assert_int_equal(arena_buf_init(&b, a, 100), 0);
    arena_free(a, b.data);
    arena_buf_fini(&b);
    assert_non_null(strstr(last_message, "arena_buf_fini("));
    assert_int_equal(arena_vec_init(&v, a, 8, 100, 0), 0);
    arena_free(a, v.items);
    arena_vec_fini(&v);
    assert_non_null(strstr(last_message, "arena_vec_fini("));
    assert_int_equal(errors, 7);
    arena_free(a, p);
    errors = 0;
}

#define ASSERT_REASON(text)                                              \
    do {                                                                 \
        if (!strstr(arena_reason(), text))                               \
            fail_msg("the reason is \"%s\", not " text, arena_reason()); \
    } while (0)

static void what_the_library_refuses_has_a_reason(void **state)
{
    (void)state;
    char *p = arena_alloc(a, 100);
    assert_null(arena_alloc_flags(a, 10, 64));
    ASSERT_REASON("flags");
    assert_null(arena_aligned_alloc(a, 24, 100));
    ASSERT_REASON("alignment");
    assert_int_equal(arena_claim(a, p), -EBUSY);
    ASSERT_REASON("owns");
    assert_int_equal(arena_claim(a, p + 1), -EINVAL);
    ASSERT_REASON("interior");
    assert_int_equal(arena_publish(a, &p), -EINVAL);
    ASSERT_REASON("outside");
    assert_int_equal(arena_root_set(a, "r", arena_ref(a, p)), -EINVAL);
    ASSERT_REASON("not published");
    assert_int_equal(arena_tx_begin(a), 0);
    assert_int_equal(arena_tx_commit(a, "r", 0, arena_ref(a, p)), -EINVAL);
    ASSERT_REASON("neither published nor of this transaction");
    assert_int_equal(arena_tx_begin(a), -EALREADY);
    ASSERT_REASON("open");
    assert_int_equal(arena_tx_commit(a, "a\nb", 0, 0), -EINVAL);
    ASSERT_REASON("name");
    assert_int_equal(arena_tx_abort(a), 0);
    assert_int_equal(arena_tx_abort(a), -EINVAL);
    ASSERT_REASON("no transaction");
    assert_int_equal(arena_publish(a, p), 0);
    assert_int_equal(arena_root_cas(a, "r", 0, arena_ref(a, p + 8)), -EINVAL);
    ASSERT_REASON("interior");
    assert_int_equal(arena_unpin(a, p), -EINVAL);
    ASSERT_REASON("not pinned");
    arena_free(a, p);
    assert_int_equal(arena_root_set(a, "r", arena_ref(a, p)), -EINVAL);
    ASSERT_REASON("free");
    assert_int_equal(arena_pin(a, p), -EINVAL);
    ASSERT_REASON("free");
    assert_int_equal(arena_safepoint(a, 7), -EINVAL);
    ASSERT_REASON("mode");
    assert_int_equal(errors, 0);
}

static int opens_with_few_addresses(void *unused)
{
    (void)unused;
    struct rlimit limit = {1ULL << 30, 1ULL << 30};
    arena_t *b;
    arena_close(a); /* the parent's: what is mapped stays */
    if (setrlimit(RLIMIT_AS, &limit) != 0)
        return 1;
    int rc = arena_open(&b, d.socket, NULL);
    if (rc != -ENOMEM)
        return 2;
    return strstr(arena_reason(), "addresses") ? 0 : 3;
}

static void no_addresses_is_an_error_with_a_reason(void **state)
{
    (void)state;
    if (LESS > 1 || getenv("TEST_RUNNER")) {
        print_message("skipped: a sanitizer or valgrind needs more addresses than there would be\n");
        skip();
    }
    assert_int_equal(reap(spawn(opens_with_few_addresses, NULL)), 0);
}

/* In a process of its own, in which something is at the common address. */
static int aligns_elsewhere(void *argument)
{
    arena_t *b;
    char *base = (char *)arena_ptr(a, 8192) - 8192;
    arena_close(a); /* and its mapping goes */
    for (uintptr_t shift = 0; shift < 5; shift++)
        mmap(NULL, 4096 * (1 + shift * (uintptr_t)(intptr_t)argument), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(base, 3ULL << 30); /* whoever has it */
    if (mmap(base, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != base)
        return 1;
    if (arena_open(&b, d.socket, NULL) != 0 || arena_same_address(b))
        return 2;
    for (size_t alignment = 1; alignment <= 2 << 20; alignment *= 2)
        for (size_t size = 1; size < 300000; size = size * 5 + 1) {
            char *p = arena_aligned_alloc(b, alignment, size);
            if (!p || (uintptr_t)p % alignment != 0)
                return 3;
            memset(p, 1, size);
            arena_free(b, p);
        }
    return arena_close(b) != 0;
}

static void pointers_are_aligned_where_the_common_address_is_taken(void **state)
{
    (void)state;
    for (intptr_t i = 0; i < 3; i++)
        assert_int_equal(reap(spawn(aligns_elsewhere, (void *)i)), 0);
    stat_await(&d, "clients", 1);
}

static int claims_without_a_daemon(void *p)
{
    if (arena_claim(a, p) != -ENOTCONN || arena_publish(a, p) != -ENOTCONN || arena_claim(a, NULL) != -EINVAL)
        return 1;
    return arena_pin(a, p) == -ENOTCONN && arena_tx_begin(a) == -ENOTCONN ? 0 : 2;
}

static void a_child_without_a_daemon_is_told_so(void **state)
{
    struct arena_options o = ARENA_OPTIONS_INIT;
    (void)state;
    o.timeout_ms = 300;
    arena_close(a);
    assert_int_equal(arena_open(&a, d.socket, &o), 0);
    arena_on_error(a, on_error, NULL);
    void *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    pid_t child = spawn(claims_without_a_daemon, p);
    int status = reap(child);
    kill(serving, SIGCONT);
    assert_int_equal(status, 0);
    arena_free(a, p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_size_is_usable_aligned_and_its_own),
        cmocka_unit_test(odd_sizes_work_or_are_refused),
        cmocka_unit_test(every_alignment_is_kept),
        cmocka_unit_test(calloc_and_zero_give_zeros_in_used_memory),
        cmocka_unit_test(realloc_keeps_contents_and_grows_in_place_where_it_can),
        cmocka_unit_test(bad_frees_are_named_and_do_nothing),
        cmocka_unit_test(unpublished_objects_of_another_process_are_refused),
        cmocka_unit_test(publish_and_claim_follow_the_rules),
        cmocka_unit_test(references_are_offsets),
        cmocka_unit_test(batches_are_whole),
        cmocka_unit_test(threads_come_and_go_and_leave_nothing),
        cmocka_unit_test(realloc_to_less_stays_in_place_where_it_wastes_little),
        cmocka_unit_test(messages_name_the_function_that_was_called),
        cmocka_unit_test(what_the_library_refuses_has_a_reason),
        cmocka_unit_test(no_addresses_is_an_error_with_a_reason),
        cmocka_unit_test(pointers_are_aligned_where_the_common_address_is_taken),
        cmocka_unit_test(a_child_without_a_daemon_is_told_so),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
