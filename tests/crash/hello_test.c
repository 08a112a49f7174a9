/* Goal: a HELLO says who comes. A look makes no client; another image of a process that is attached means that exec has
 * replaced the one before, whose memory comes back at once; an image that is not told means nothing. A library that attaches
 * anew is no other client of its kind any more.
 * Method: raw clients of this process, which are the same process with the images that they say they are. */
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "shm/tag.h"
#include "tests/crash/raw.h"
#include "tests/e2e/harness.h"

static struct daemon d;

static void say_hello_of(struct raw *r, uint32_t flags, uint32_t image, uint32_t copy)
{
    struct msg hello = call_hello(flags, image);
    hello.hello.copy = copy;
    memset(r, 0, sizeof *r);
    r->fd = raw_connect(d.socket);
    assert_int_equal(raw_send(r->fd, 1, hello), 0);
    assert_int_equal(raw_receive(r), MSG_WELCOME);
    r->tag = m.welcome.tag;
    r->epoch = m.welcome.epoch;
}

static void say_hello(struct raw *r, uint32_t flags, uint32_t image) { say_hello_of(r, flags, image, 0); }

static void lease_some(struct raw *r)
{
    assert_int_equal(raw_send(r->fd, 2, MSG(lease, .epoch = r->epoch, .span_class = 8, .pages = 4)), 0);
    assert_int_equal(raw_receive(r), MSG_GRANT);
    assert_true(m.grant.list_count > 0);
}

static bool is_served(struct raw *r)
{
    return raw_send(r->fd, 9, MSG(ping)) == 0 && raw_receive(r) == MSG_OK;
}

static void a_look_names_the_heap_and_makes_no_client(void **state)
{
    struct raw r;
    uint8_t id[16];
    (void)state;
    say_hello(&r, HELLO_LOOK, 7);
    assert_int_equal(r.tag, 0);
    assert_int_equal(r.fd_count, 0);
    assert_int_equal(m.welcome.heap_id_bytes, HEAP_ID_BYTES);
    memcpy(id, m.welcome.heap_id, sizeof id);
    assert_int_equal(stat_of(&d, "clients"), 0);
    assert_int_equal(raw_send(r.fd, 2, MSG(info, .what = INFO_STATS)), 0); /* as any monitor */
    assert_int_equal(raw_receive(&r), MSG_ROWS);
    assert_int_equal(raw_send(r.fd, 3, call_hello(0, 0)), 0);
    assert_int_equal(raw_receive(&r), MSG_WELCOME);
    assert_int_not_equal(m.welcome.tag, 0);
    assert_memory_equal(m.welcome.heap_id, id, sizeof id);
    assert_true(r.fd_count >= 3);
    assert_int_equal(stat_of(&d, "clients"), 1);
    assert_int_equal(raw_send(r.fd, 4, call_hello(HELLO_LOOK, 0)), 0); /* a client looks no more */
    assert_int_equal(raw_receive(&r), 0);
    raw_close(&r);
}

static void rows_that_there_are_not_are_refused(void **state)
{
    struct raw r;
    (void)state;
    say_hello(&r, HELLO_LOOK, 7);
    for (uint32_t what = 0; what < 32; what++) {
        assert_int_equal(raw_send(r.fd, 2 + what, MSG(info, .what = what)), 0);
        uint32_t type = raw_receive(&r);
        if (what >= INFO_STATS && what <= INFO_USERS)
            assert_int_equal(type, MSG_ROWS);
        else
            assert_true(type == MSG_ERROR && m.error.error == EINVAL);
    }
    raw_close(&r);
}

static void another_image_buries_the_one_before_and_its_memory_comes_back(void **state)
{
    struct raw old, new;
    (void)state;
    say_hello(&old, 0, 7);
    lease_some(&old);
    say_hello(&new, 0, 8);
    stat_await(&d, "clients", 1);
    assert_false(is_served(&old));
    assert_true(is_served(&new));
    stat_await(&d, "spans_leased", 0);
    raw_close(&old);
    raw_close(&new);
}

static void the_same_image_and_one_that_is_not_told_bury_nobody(void **state)
{
    struct raw first, same, silent, after;
    (void)state;
    say_hello(&first, 0, 7);
    say_hello(&same, 0, 7);
    say_hello(&silent, 0, 0);
    assert_true(is_served(&first));
    assert_true(is_served(&same));
    assert_true(is_served(&silent));
    say_hello(&after, 0, 8); /* the silent one may be anybody */
    assert_false(is_served(&first));
    assert_false(is_served(&same));
    assert_true(is_served(&silent));
    raw_close(&first);
    raw_close(&same);
    raw_close(&silent);
    raw_close(&after);
}

static void a_library_has_one_client_of_a_kind_and_says_so_when_it_attaches_anew(void **state)
{
    struct raw lost, connected, reader, other, silent, anew;
    (void)state;
    say_hello_of(&lost, 0, 7, 21);
    lease_some(&lost);
    raw_close(&lost); /* no BYE: its process lives, so it may come back */
    say_hello_of(&connected, 0, 7, 22);
    say_hello_of(&reader, HELLO_READ_ONLY, 7, 21);
    raw_close(&reader);
    say_hello_of(&other, 0, 7, 23);
    raw_close(&other);
    say_hello_of(&silent, 0, 7, 0);
    raw_close(&silent);
    stat_await(&d, "clients", 5);
    say_hello_of(&anew, 0, 7, 21);
    stat_await(&d, "clients", 5); /* in place of the lost one */
    stat_await(&d, "spans_leased", 0);
    raw_close(&anew);
    say_hello_of(&anew, 0, 7, 22); /* somebody is connected as that one */
    assert_true(is_served(&connected));
    assert_int_equal(stat_of(&d, "clients"), 6);
    raw_close(&connected);
    raw_close(&anew);
}

/* It has no word to write a goodbye to. */
static void a_reader_that_closes_while_no_daemon_runs_is_gone_when_it_opens_again(void **state)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    char directory[100];
    arena_t *a;
    (void)state;
    temp_dir(directory, sizeof directory, "hello");
    daemon_start(&d, "64M", "--backing", directory, "--keeper=no", NULL);
    options.flags = ARENA_READ_ONLY;
    assert_int_equal(arena_open(&a, d.socket, &options), 0);
    arena_close(a);
    options.timeout_ms = 1;
    while (arena_open(&a, d.socket, &options) == -ENOTCONN) /* on a busy machine */
        continue;
    daemon_kill(&d);
    assert_int_equal(arena_close(a), 0);
    daemon_again(&d, "64M", "--backing", directory, "--keeper=no", NULL);
    assert_int_equal(stat_of(&d, "clients"), 1);
    options.timeout_ms = 0;
    assert_int_equal(arena_open(&a, d.socket, &options), 0);
    assert_int_equal(stat_of(&d, "clients"), 1);
    assert_int_equal(arena_close(a), 0);
    assert_int_equal(stat_of(&d, "clients"), 0);
    assert_int_equal(daemon_stop(&d), 0);
    daemon_clean(&d);
    assert_int_equal(temp_dir_remove(directory), 0);
}

static int start(void **state) { return daemon_setup(state, &d, "64M", NULL); }

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_look_names_the_heap_and_makes_no_client, start, daemon_teardown),
        cmocka_unit_test_setup_teardown(rows_that_there_are_not_are_refused, start, daemon_teardown),
        cmocka_unit_test_setup_teardown(another_image_buries_the_one_before_and_its_memory_comes_back, start, daemon_teardown),
        cmocka_unit_test_setup_teardown(the_same_image_and_one_that_is_not_told_bury_nobody, start, daemon_teardown),
        cmocka_unit_test_setup_teardown(a_library_has_one_client_of_a_kind_and_says_so_when_it_attaches_anew, start, daemon_teardown),
        cmocka_unit_test(a_reader_that_closes_while_no_daemon_runs_is_gone_when_it_opens_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
