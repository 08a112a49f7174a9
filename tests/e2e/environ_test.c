/* A program's environment, at arena_open.
 *
 * Goal: what cannot be obeyed is named on one line of standard error and by arena_reason(), the heap is opened all the same,
 * and what is right is obeyed. Method: processes with one variable each, whose standard error is a file.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

static struct daemon d;
static char errors[120];

struct trial {
    const char *name, *value;
    const char *named; /* NULL: nothing is said */
    size_t opens;
};

/* Exit status: which of its steps failed. */
static int open_with(void *argument)
{
    const struct trial *t = argument;
    arena_t *a = NULL;
    int fd = open(errors, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || dup2(fd, 2) < 0)
        return 9;
    setenv(t->name, t->value, 1);
    for (size_t i = 0; i < t->opens; i++) {
        if (arena_open(&a, d.socket, NULL) != 0)
            return 1;
        if (t->named ? !strstr(arena_reason(), t->named) : *arena_reason() != 0)
            return 2;
        void *p = arena_alloc(a, 100);
        if (!p)
            return 3;
        arena_free(a, p);
        if (arena_close(a) != 0)
            return 4;
    }
    return 0;
}

static void assert_trial(const struct trial *t)
{
    char text[2048] = "";
    assert_int_equal(reap(spawn(open_with, (void *)t)), 0);
    int fd = open(errors, O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    if (!t->named) {
        assert_string_equal(text, "");
        return;
    }
    assert_memory_equal(text, "arena: ", 7);
    assert_non_null(strstr(text, t->named));
    assert_ptr_equal(strchr(text, '\n'), text + n - 1); /* one line, whole */
}

static void what_cannot_be_obeyed_is_said_on_one_line_and_the_heap_is_opened(void **state)
{
    static char big[5000];
    static const char *const names[] = {"ARENA_DEBUG", "ARENA_STACK_MAX", "ARENA_PROFILE", "ARENA_PROFILE_DIR"};
    (void)state;
    memset(big, '9', sizeof big - 1);
    for (int i = 0; i < 4; i++) {
        assert_trial(&(struct trial){names[i], big, names[i], 1});
        assert_trial(&(struct trial){names[i], "", NULL, 1});
        if (i < 3)
            assert_trial(&(struct trial){names[i], "non\nsense", names[i], 1});
    }
}

static void what_is_right_is_not_spoken_of(void **state)
{
    (void)state;
    assert_trial(&(struct trial){"ARENA_DEBUG", "stack", NULL, 1});
    assert_trial(&(struct trial){"ARENA_STACK_MAX", "1M", NULL, 1});
    assert_trial(&(struct trial){"ARENA_PROFILE", "off", NULL, 1});
    assert_trial(&(struct trial){"ARENA_PROFILE_DIR", d.dir, NULL, 1});
}

static void a_program_that_opens_again_and_again_is_told_once(void **state)
{
    (void)state;
    assert_trial(&(struct trial){"ARENA_DEBUG", "everything", "ARENA_DEBUG=everything", 5});
}

static int open_by_variable(void *argument)
{
    arena_t *a;
    char path[300];
    memset(path, 'x', sizeof path);
    path[0] = '/';
    path[argument ? 299 : 108] = 0; /* 108 bytes are one too many */
    if (!freopen("/dev/null", "w", stderr))
        return 2;
    setenv("ARENA_SOCKET", path, 1);
    return arena_open(&a, NULL, NULL) == -ENAMETOOLONG && strstr(arena_reason(), "ARENA_SOCKET=/xx") ? 0 : 1;
}

static void a_socket_that_is_too_long_is_an_error_that_says_whose_it_is(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(open_by_variable, NULL)), 0);
    assert_int_equal(reap(spawn(open_by_variable, "")), 0);
}

static int setup(void **state)
{
    unsetenv("ARENA_DEBUG");
    unsetenv("ARENA_STACK_MAX");
    unsetenv("ARENA_PROFILE");
    unsetenv("ARENA_PROFILE_DIR");
    int rc = daemon_setup(state, &d, "16M", NULL);
    snprintf(errors, sizeof errors, "%s/errors", d.dir);
    return rc;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_cannot_be_obeyed_is_said_on_one_line_and_the_heap_is_opened),
        cmocka_unit_test(what_is_right_is_not_spoken_of),
        cmocka_unit_test(a_program_that_opens_again_and_again_is_told_once),
        cmocka_unit_test(a_socket_that_is_too_long_is_an_error_that_says_whose_it_is),
    };
    return cmocka_run_group_tests_name("e2e/environ", tests, setup, daemon_teardown);
}
