/* Goal: buffers and vectors hold what was put in, grow in place where pages behind them are free,
 * give back what they do not use, fail without a loss, and die with their process. Method: one
 * daemon with a heap of 128 MiB; every result is compared with the same built over malloc. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/heap.h"
#include "shm/ticket.h"
#include "tests/e2e/harness.h"

static struct daemon d;
static arena_t *a;

static int setup(void **state)
{
    return daemon_setup(state, &d, "128M", &a);
}

static void a_buffer_holds_what_was_put_in(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    arena_buf_t b;
    char *model = malloc(1 << 20), piece[5000];
    size_t length = 0;
    assert_int_equal(arena_buf_init(&b, a, 0), 0);
    assert_null(b.data);
    while (length < 900000) {
        size_t count = rnd(&seed) % (rnd(&seed) % 8 ? 60 : sizeof piece);
        for (size_t i = 0; i < count; i++)
            piece[i] = (char)rnd(&seed);
        switch (rnd(&seed) % 4) {
        case 0:
            assert_int_equal(arena_buf_append(&b, piece, count), 0);
            memcpy(model + length, piece, count);
            length += count;
            break;
        case 1:
            length += (size_t)sprintf(model + length, "%zu:%-40s|%d", count, "text", (int)count);
            assert_int_equal(arena_buf_printf(&b, "%zu:%-40s|%d", count, "text", (int)count), 0);
            break;
        case 2:
            assert_int_equal(arena_buf_puts(&b, "seven!!"), 0);
            memcpy(model + length, "seven!!", 7);
            length += 7;
            break;
        case 3:
            if (rnd(&seed) % 16 == 0 && length > 100) {
                length -= rnd(&seed) % 100;
                arena_buf_truncate(&b, length);
            } else if (length) { /* of itself */
                size_t from = rnd(&seed) % length, n = length - from < 300 ? length - from : 300;
                assert_int_equal(arena_buf_append(&b, b.data + from, n), 0);
                memcpy(model + length, model + from, n);
                length += n;
            }
            break;
        }
        assert_int_equal(b.length, length);
        assert_true(!b.data || (b.data[length] == 0 && b.capacity >= length &&
                                arena_usable_size(a, b.data) > b.capacity));
    }
    assert_memory_equal(b.data, model, length);
    size_t got;
    char *text = arena_buf_detach(&b, &got);
    assert_int_equal(got, length);
    assert_memory_equal(text, model, length);
    assert_int_equal(text[length], 0);
    assert_true(arena_usable_size(a, text) < length + 8192 + 1);
    assert_int_equal(arena_publish(a, text), 0); /* a plain object */
    arena_free(a, text);
    assert_null(b.data);
    assert_int_equal(arena_buf_puts(&b, "again"), 0);
    assert_string_equal(b.data, "again");
    arena_buf_fini(&b);
    arena_buf_fini(&b);
    free(model);
}

static void a_preset_buffer_does_not_move(void **state)
{
    (void)state;
    arena_buf_t b;
    assert_int_equal(arena_buf_init(&b, a, 1 << 20), 0);
    char *at = b.data;
    assert_true(b.capacity >= 1 << 20);
    for (int i = 0; i < 1 << 16; i++)
        assert_int_equal(arena_buf_append(&b, "0123456789abcdef", 16), 0);
    assert_ptr_equal(b.data, at);
    arena_buf_clear(&b);
    assert_int_equal(b.length, 0);
    assert_ptr_equal(b.data, at);
    arena_buf_fini(&b);
}

static void a_large_buffer_grows_in_place_into_free_neighbours(void **state)
{
    (void)state;
    arena_buf_t b;
    char line[1024];
    memset(line, 'x', sizeof line);
    arena_trim(a);
    assert_int_equal(arena_buf_init(&b, a, 16 << 20),
                     0); /* beyond all that earlier tests used: free pages follow */
    char *at = b.data;
    size_t before = b.capacity;
    b.data[0] = 'A';
    b.length = before;
    int moved = 0;
    for (int i = 0; i < 25 << 10; i++) {
        line[0] = (char)i;
        assert_int_equal(arena_buf_append(&b, line, sizeof line), 0);
        moved += b.data != at;
        at = b.data;
    }
    assert_int_equal(moved, 0);
    assert_true(b.capacity > before);
    assert_int_equal(b.data[0], 'A');
    for (int i = 0; i < 25 << 10; i++)
        assert_int_equal(b.data[before + (size_t)i * 1024], (char)i);
    size_t held = arena_usable_size(a, b.data), length = b.length;
    uint64_t in_use = stat_of(&d, "heap_in_use");
    char *text = arena_buf_detach(&b, NULL); /* what it did not use goes back at once */
    assert_ptr_equal(text, at);
    size_t kept = arena_usable_size(a, text);
    assert_true(kept <= length + 8192 && kept < held);
    assert_true(stat_of(&d, "heap_in_use") <= in_use - (held - kept));
    assert_int_equal(check_of(&d), 0);
    arena_free(a, text);
    arena_trim(a);
}

static void a_large_buffer_with_a_neighbour_moves(void **state)
{
    (void)state;
    arena_buf_t b;
    char chunk[4096];
    memset(chunk, 7, sizeof chunk);
    arena_trim(a);
    assert_int_equal(arena_buf_init(&b, a, 100000), 0);
    for (int i = 0; i < 2000; i++) { /* something is allocated behind it again and again */
        void *other = arena_alloc(a, 40000);
        assert_non_null(other);
        assert_int_equal(arena_buf_append(&b, chunk, sizeof chunk), 0);
        if (i % 3)
            arena_free(a, other);
        else
            arena_publish(a, other);
    }
    assert_int_equal(b.length, 2000 * sizeof chunk);
    for (size_t i = 0; i < b.length; i++)
        if (b.data[i] != 7)
            fail_msg("byte %zu is %d", i, b.data[i]);
    arena_buf_fini(&b);
    assert_int_equal(check_of(&d), 0);
}

static void a_full_heap_fails_without_a_loss(void **state)
{
    (void)state;
    arena_buf_t b;
    arena_trim(a);
    assert_int_equal(arena_buf_init(&b, a, 0), 0);
    char *block = malloc(1 << 20);
    memset(block, 'z', 1 << 20);
    int rc = 0;
    while ((rc = arena_buf_append(&b, block, 1 << 20)) == 0)
        assert_true(b.length < 128u << 20);
    assert_int_equal(rc, -ENOMEM);
    assert_int_equal(b.error, -ENOMEM);
    assert_true(b.length >= 20u << 20); /* no copy could have been made beyond a third of it */
    assert_int_equal(b.data[b.length - 1], 'z');
    assert_int_equal(b.data[b.length], 0);
    errno = 0;
    assert_null(arena_buf_detach(&b, NULL)); /* it would have a hole */
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(arena_buf_reserve(&b, SIZE_MAX), -ENOMEM);
    assert_int_equal(arena_buf_reserve(&b, SIZE_MAX - b.length - 1), -ENOMEM);
    arena_buf_clear(&b);
    assert_int_equal(b.error, 0);
    assert_int_equal(arena_buf_puts(&b, "fits"), 0);
    char *text = arena_buf_detach(&b, NULL);
    assert_string_equal(text, "fits");
    assert_true(arena_usable_size(a, text) <= 16);
    arena_free(a, text);
    free(block);
    arena_trim(a);
    assert_int_equal(check_of(&d), 0);
}

struct item {
    uint64_t key;
    char name[13];
};

static void a_vector_holds_its_items(void **state)
{
    (void)state;
    arena_vec_t v;
    struct item item = {0, "name"};
    assert_int_equal(arena_vec_init(&v, a, 0, 0, 0), -EINVAL);
    assert_int_equal(arena_vec_init(&v, a, sizeof item, 0, ARENA_SHARED), -EINVAL);
    assert_int_equal(arena_vec_init(&v, a, SIZE_MAX / 2, 3, 0), -ENOMEM);
    assert_int_equal(arena_vec_init(&v, a, sizeof item, 1000, 0), 0);
    void *at = v.items;
    for (item.key = 0; item.key < 1000; item.key++)
        assert_int_equal(arena_vec_push(&v, &item), 0);
    assert_ptr_equal(v.items, at); /* as preset */
    for (; item.key < 100000; item.key++)
        assert_int_equal(arena_vec_push(&v, &item), 0);
    while (v.count < v.capacity)
        arena_vec_push(&v, arena_vec_at(&v, 0));
    assert_int_equal(arena_vec_push(&v, arena_vec_at(&v, 77)),
                     0); /* one of its own, while it grows */
    assert_int_equal(((struct item *)arena_vec_at(&v, v.count - 1))->key, 77);
    assert_null(arena_vec_at(&v, v.count));
    arena_vec_truncate(&v, 100000);
    for (uint64_t i = v.count; i-- > 50000;) {
        assert_int_equal(arena_vec_pop(&v, &item), 0);
        assert_int_equal(item.key, i);
        assert_string_equal(item.name, "name");
    }
    size_t count;
    struct item *items = arena_vec_detach(&v, &count);
    assert_int_equal(count, 50000);
    for (size_t i = 0; i < count; i++)
        assert_int_equal(items[i].key, i);
    assert_true(arena_usable_size(a, items) < count * sizeof item + 8192);
    arena_free(a, items);
    assert_int_equal(arena_vec_pop(&v, NULL), -ENOENT);
    errno = 0;
    assert_null(arena_vec_detach(&v, NULL));
    assert_int_equal(errno, ENOENT);
    arena_vec_fini(&v);
    assert_int_equal(arena_vec_init(&v, a, 8, 0, ARENA_ZERO | ARENA_NOSCAN), 0);
    for (int i = 0; i < 5000; i++) {
        uint64_t *two = arena_vec_add(&v, 2);
        assert_int_equal(two[0] | two[1], 0);
        two[0] = two[1] = UINT64_MAX;
        if (i % 3 == 0)
            arena_vec_pop(&v, NULL);
    }
    arena_vec_fini(&v);
    assert_int_equal(check_of(&d), 0);
}

/* Grows and detaches for ever, in a process that is killed. */
static _Atomic uint64_t *steps;
static int grower(void *argument)
{
    uint64_t seed = (uint64_t)(uintptr_t)argument;
    arena_t *mine = open_heap(&d);
    arena_buf_t b;
    arena_buf_init(&b, mine, 0);
    for (;;) {
        size_t count = rnd(&seed) % 200000;
        char *at = arena_buf_add(&b, count);
        if (!at)
            return 1;
        memset(at, 'k', count);
        if (rnd(&seed) % 8 == 0)
            arena_free(mine, arena_buf_detach(&b, NULL));
        atomic_fetch_add(steps, 1);
    }
}

static void death_while_growing_leaves_nothing(void **state)
{
    (void)state;
    uint64_t seed = seed_get();
    steps = shared_memory(sizeof *steps);
    for (int i = 0; i < 40; i++) {
        uint64_t until = rnd(&seed) % 60;
        atomic_store(steps, 0);
        pid_t pid = spawn(grower, (void *)(uintptr_t)(seed | 1));
        while (atomic_load(steps) < until)
            ;
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
    }
    arena_close(a);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_cached", 0);
    assert_int_equal(check_of(&d), 0);
    a = open_heap(&d);
}

static void a_daemon_that_follows_finds_what_grew_and_shrank(void **state)
{
    (void)state;
    struct daemon r;
    char dir[80], block[1 << 16], *texts[8];
    memset(block, 'r', sizeof block);
    temp_dir(dir, sizeof dir, "grow");
    daemon_start(&r, "128M", "--keeper=no", "--backing", dir, NULL);
    arena_t *mine = open_heap(&r);
    arena_buf_t b;
    arena_buf_init(&b, mine, 0);
    for (int i = 0; i < 8; i++) {
        for (int n = 0; n < 40; n++)
            assert_int_equal(arena_buf_append(&b, block, sizeof block), 0);
        if (i == 3) {
            daemon_kill(&r);
            daemon_again(&r, "128M", "--keeper=no", "--backing", dir, NULL);
            assert_int_equal(arena_buf_append(&b, block, sizeof block), 0);
        }
        texts[i] = arena_buf_detach(&b, NULL);
    }
    assert_int_equal(check_of(&r), 0);
    for (int i = 0; i < 8; i++) {
        for (size_t n = 0; n < 40 * sizeof block; n += 999)
            assert_int_equal(texts[i][n], 'r');
        arena_free(mine, texts[i]);
    }
    arena_close(mine);
    stat_await(&r, "clients", 0);
    stat_await(&r, "objects_owned", 0);
    assert_int_equal(check_of(&r), 0);
    daemon_clean(&r);
    temp_dir_remove(dir);
}

struct handed {
    arena_buf_t b;
    arena_vec_t v;
};

/* Its first calls of the library are these. */
static void *goes_on(void *argument)
{
    struct handed *h = argument;
    for (uint64_t i = 0; i < 5000; i++)
        if (arena_buf_puts(&h->b, "text ") != 0 || arena_vec_push(&h->v, &i) != 0)
            return "growth";
    return NULL;
}

static void *detaches(void *argument)
{
    struct handed *h = argument;
    char *text = arena_buf_detach(&h->b, NULL);
    void *items = arena_vec_detach(&h->v, NULL);
    if (!text || !items || strncmp(text, "text text ", 10) != 0)
        return "detach";
    arena_free(a, text);
    arena_free(a, items);
    return NULL;
}

static void buffers_go_from_thread_to_thread(void **state)
{
    void *(*const threads_do[])(void *) = {goes_on, goes_on, detaches};
    struct handed h;
    (void)state;
    for (int small = 0; small < 2; small++) {
        assert_int_equal(arena_buf_init(&h.b, a, small ? 0 : 10), 0);
        assert_int_equal(arena_vec_init(&h.v, a, 8, small ? 0 : 2, 0), 0);
        for (size_t i = 0; i < sizeof threads_do / sizeof threads_do[0]; i++) {
            pthread_t thread;
            void *what;
            assert_int_equal(pthread_create(&thread, NULL, threads_do[i], &h), 0);
            assert_int_equal(pthread_join(thread, &what), 0);
            if (what)
                fail_msg("%s", (char *)what);
        }
    }
    assert_int_equal(check_of(&d), 0);
}

/* The daemon has taken the request up, as far as the map tells, and stands still: it may cut the object at any moment. */
static void what_a_cut_in_doubt_may_take_is_not_usable(void **state)
{
    enum { BEFORE = 1 << 20, AFTER = 300000 };
    struct arena_options o = ARENA_OPTIONS_INIT;
    arena_t *impatient;
    int rc;
    (void)state;
    o.timeout_ms = 300;
    arena_close(a);
    while (arena_open(&impatient, d.socket, &o) != 0) /* on a busy machine it may not have answered by then */
        ;
    char *p;
    while (!(p = arena_alloc(impatient, BEFORE)))
        assert_int_equal(errno, ENOTCONN);
    assert_true(arena_usable_size(impatient, p) >= BEFORE);
    pid_t serving = daemon_serving(&d);
    kill(serving, SIGSTOP);
    impatient->heap.tickets[impatient->tag] = TICKET_TAKEN(impatient->conn.next_id + 1);
    assert_ptr_equal(arena_realloc(impatient, p, AFTER), p); /* smaller never fails */
    assert_true(arena_usable_size(impatient, p) >= AFTER);
    assert_true(arena_usable_size(impatient, p) < BEFORE);
    kill(serving, SIGCONT);
    while ((rc = arena_publish(impatient, p)) == -ENOTCONN) /* it asks */
        ;
    assert_int_equal(rc, 0);
    assert_true(arena_usable_size(impatient, p) >= BEFORE); /* it was not cut */
    arena_free(impatient, p);
    arena_close(impatient);
    assert_int_equal(arena_open(&a, d.socket, NULL), 0);
    assert_int_equal(check_of(&d), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_buffer_holds_what_was_put_in),
        cmocka_unit_test(a_preset_buffer_does_not_move),
        cmocka_unit_test(a_large_buffer_grows_in_place_into_free_neighbours),
        cmocka_unit_test(a_large_buffer_with_a_neighbour_moves),
        cmocka_unit_test(a_full_heap_fails_without_a_loss),
        cmocka_unit_test(a_vector_holds_its_items),
        cmocka_unit_test(buffers_go_from_thread_to_thread),
        cmocka_unit_test(what_a_cut_in_doubt_may_take_is_not_usable),
        cmocka_unit_test(death_while_growing_leaves_nothing),
        cmocka_unit_test(a_daemon_that_follows_finds_what_grew_and_shrank),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
