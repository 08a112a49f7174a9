/* client/link/environ.c: what the environment asks of the library.
 *
 * Goal: each variable is obeyed, or is named on one line with what it says; unset and empty are the same; a setuid
 * program obeys none. Method: each variable unset, good, nonsense, too big, empty; a setuid copy of this program.
 */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "client/link/environ.h"

enum { NOBODY = 65534 };

static const char *const variables[] = {"ARENA_DEBUG",       "ARENA_STACK_MAX", "ARENA_PROFILE",
                                        "ARENA_PROFILE_DIR", "ARENA_SOCKET",    "XDG_RUNTIME_DIR"};
enum { VARIABLES = sizeof variables / sizeof *variables };

static char directory[200], long_text[8192];

static int clear(void **state)
{
    (void)state;
    for (int i = 0; i < VARIABLES; i++)
        unsetenv(variables[i]);
    return 0;
}

static struct environment look(const char *name, const char *value)
{
    struct environment e = {.complaint = ""};
    if (name && value)
        setenv(name, value, 1);
    environ_read(&e);
    if (name)
        unsetenv(name);
    return e;
}

/* It says which variable, begins with it, and is one line. */
static void assert_names(const struct environment *e, const char *name)
{
    assert_memory_equal(e->complaint, name, strlen(name));
    assert_int_equal(e->complaint[strlen(name)], '=');
    for (const char *at = e->complaint; *at; at++)
        assert_in_range((unsigned char)*at, ' ', '~');
    assert_in_range(strlen(e->complaint), strlen(name) + 8, sizeof e->complaint - 1);
}

static void nothing_is_asked_where_nothing_is_set_or_all_is_empty(void **state)
{
    (void)state;
    for (int empty = 0; empty < 2; empty++) {
        for (int i = 0; empty && i < VARIABLES; i++)
            setenv(variables[i], "", 1);
        struct environment e = look(NULL, NULL);
        char buf[256];
        assert_int_equal(e.debug, 0);
        assert_int_equal(e.stack_max, 0);
        assert_int_equal(e.profile_rate, 0);
        assert_string_equal(e.profile_dir, "/tmp");
        assert_string_equal(environ_socket(&e, NULL, buf, sizeof buf), "/run/arenad/default.sock");
        assert_string_equal(environ_socket(&e, "", buf, sizeof buf), "/run/arenad/default.sock");
        assert_string_equal(e.complaint, "");
    }
}

static void a_debug_word_is_obeyed_and_an_unknown_one_is_named(void **state)
{
    static const struct {
        const char *text;
        unsigned flags;
    } good[] = {{"stack", DEBUG_STACK},
                {"escape", DEBUG_ESCAPE},
                {"stack,escape", DEBUG_STACK | DEBUG_ESCAPE},
                {",escape, stack,", DEBUG_STACK | DEBUG_ESCAPE},
                {",", 0}};
    static const char *const bad[] = {"stak", "stacks", "stac", "STACK", "1", "stack,all", "escape;stack", "*"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct environment e = look("ARENA_DEBUG", good[i].text);
        assert_int_equal(e.debug, good[i].flags);
        assert_string_equal(e.complaint, "");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct environment e = look("ARENA_DEBUG", bad[i]);
        assert_int_equal(e.debug, strcmp(bad[i], "stack,all") ? 0 : DEBUG_STACK); /* the good one of two is obeyed */
        assert_names(&e, "ARENA_DEBUG");
        assert_non_null(strstr(e.complaint, "stack, escape"));
    }
    struct environment e = look("ARENA_DEBUG", long_text);
    assert_int_equal(e.debug, 0);
    assert_names(&e, "ARENA_DEBUG");
}

static void a_stacks_maximum_is_a_size_in_its_limits_or_named(void **state)
{
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"2048", 2048},  {"2K", 2048},         {"64K", 65536},   {"3M", 3 << 20},
                {"1G", 1 << 30}, {"512G", 1ULL << 39}, {"0002048", 2048}};
    static const char *const bad[] = {
        "2047", "1K", "0",      "513G", "549755813889", "-1",    "-2K", "+4K", " 4K", "4K ", "4KB", "4k",
        "K",    "1T", "0x4000", "4.5M", "much",         "4K,5K", "18446744073709551616", "18014398509481984K",
        "99999999999999999999999G"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct environment e = look("ARENA_STACK_MAX", good[i].text);
        assert_int_equal(e.stack_max, good[i].bytes);
        assert_string_equal(e.complaint, "");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct environment e = look("ARENA_STACK_MAX", bad[i]);
        assert_int_equal(e.stack_max, 0);
        assert_names(&e, "ARENA_STACK_MAX");
        assert_non_null(strstr(e.complaint, bad[i]));
    }
    struct environment e = look("ARENA_STACK_MAX", long_text);
    assert_int_equal(e.stack_max, 0);
    assert_names(&e, "ARENA_STACK_MAX");
}

static void a_rate_of_samples_is_on_off_or_a_number_or_named(void **state)
{
    static const struct {
        const char *text;
        uint64_t rate;
    } good[] = {{"on", 65536}, {"off", 0}, {"0", 0}, {"1", 1}, {"64K", 65536}, {"4294967295", UINT32_MAX}};
    static const char *const bad[] = {"yes", "On", "-1", "1M", "4294967296", "4194304K", "99999999999999999999",
                                      "1 ",  "1.5", "K", "on,off"};
    (void)state;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct environment e = look("ARENA_PROFILE", good[i].text);
        assert_int_equal(e.profile_rate, good[i].rate);
        assert_string_equal(e.complaint, "");
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct environment e = look("ARENA_PROFILE", bad[i]);
        assert_int_equal(e.profile_rate, 0);
        assert_names(&e, "ARENA_PROFILE");
    }
    struct environment e = look("ARENA_PROFILE", long_text);
    assert_int_equal(e.profile_rate, 0);
    assert_names(&e, "ARENA_PROFILE");
}

static void a_profile_goes_to_the_first_directory_that_is_one(void **state)
{
    (void)state;
    setenv("ARENA_PROFILE", "1", 1);
    struct environment e = look("ARENA_PROFILE_DIR", directory);
    assert_string_equal(e.profile_dir, directory);
    assert_string_equal(e.complaint, "");
    e = look("XDG_RUNTIME_DIR", directory);
    assert_string_equal(e.profile_dir, directory);
    assert_string_equal(e.complaint, "");
    setenv("XDG_RUNTIME_DIR", directory, 1);
    static const char *const bad[] = {"/no/such/directory", "/dev/null", "nonsense\nin two lines"};
    for (int i = 0; i < 3; i++) {
        e = look("ARENA_PROFILE_DIR", bad[i]);
        assert_string_equal(e.profile_dir, directory);
        assert_names(&e, "ARENA_PROFILE_DIR");
    }
    e = look("ARENA_PROFILE_DIR", long_text);
    assert_string_equal(e.profile_dir, directory);
    assert_names(&e, "ARENA_PROFILE_DIR");
    e = look("XDG_RUNTIME_DIR", "/no/such/directory");
    assert_string_equal(e.profile_dir, "/tmp");
    assert_names(&e, "XDG_RUNTIME_DIR");
    clear(NULL);
    e = look("ARENA_PROFILE_DIR", "/no/such/directory"); /* nothing is sampled: it is not looked for */
    assert_string_equal(e.complaint, "");
    e = look("ARENA_PROFILE_DIR", long_text); /* and yet it can be no path */
    assert_names(&e, "ARENA_PROFILE_DIR");
}

static void the_socket_is_the_argument_or_the_first_variable_that_names_one(void **state)
{
    struct environment e = {.complaint = ""};
    char buf[256], folder[220], there[256];
    (void)state;
    snprintf(folder, sizeof folder, "%s/arenad", directory);
    snprintf(there, sizeof there, "%s/default.sock", folder);
    setenv("XDG_RUNTIME_DIR", directory, 1);
    assert_string_equal(environ_socket(&e, NULL, buf, sizeof buf), "/run/arenad/default.sock"); /* none in it yet */
    assert_int_equal(mkdir(folder, 0700), 0);
    close(open(there, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_string_equal(environ_socket(&e, NULL, buf, sizeof buf), there);
    setenv("ARENA_SOCKET", "/some/where", 1);
    assert_string_equal(environ_socket(&e, NULL, buf, sizeof buf), "/some/where");
    assert_string_equal(environ_socket(&e, "/given", buf, sizeof buf), "/given");
    assert_string_equal(environ_socket(&e, long_text, buf, sizeof buf), long_text); /* its error is the caller's */
    assert_string_equal(e.complaint, "");
    unlink(there);
    rmdir(folder);
}

static void a_variable_that_can_name_no_socket_is_named(void **state)
{
    static const char *const bad[] = {"relative", long_text};
    char buf[256];
    (void)state;
    for (int i = 0; i < 2; i++) {
        struct environment e = {.complaint = ""};
        setenv("XDG_RUNTIME_DIR", bad[i], 1);
        assert_string_equal(environ_socket(&e, NULL, buf, sizeof buf), "/run/arenad/default.sock");
        assert_names(&e, "XDG_RUNTIME_DIR");
    }
    struct environment e = {.complaint = ""};
    setenv("ARENA_SOCKET", long_text, 1);
    environ_socket(&e, NULL, buf, sizeof buf); /* whatever it is, it cannot be connected to */
    assert_names(&e, "ARENA_SOCKET");
}

static void several_are_named_on_one_line_that_ends_in_its_memory(void **state)
{
    struct environment e = {.complaint = ""};
    char buf[256];
    (void)state;
    for (int i = 0; i < VARIABLES; i++)
        setenv(variables[i], long_text, 1);
    environ_socket(&e, NULL, buf, sizeof buf);
    environ_read(&e);
    assert_names(&e, "ARENA_SOCKET");
    assert_non_null(strstr(e.complaint, "; ARENA_DEBUG="));
    assert_non_null(strstr(e.complaint, "; ARENA_STACK_MAX="));
}

/* ---- setuid ------------------------------------------------------------------------------------ */

static int nothing_is_obeyed(void)
{
    struct environment e = {.complaint = ""};
    char buf[256];
    environ_read(&e);
    const char *socket = environ_socket(&e, NULL, buf, sizeof buf);
    return !(geteuid() == 0 && getuid() == NOBODY) ? 2
           : e.debug || e.stack_max || e.profile_rate || strcmp(e.profile_dir, "/tmp") || e.complaint[0] ||
                   strcmp(socket, "/run/arenad/default.sock") || environ_get("PATH")
               ? 1
               : 0;
}

static void a_setuid_program_obeys_none(void **state)
{
    char copy[220], line[800];
    (void)state;
    if (geteuid() != 0) {
        print_message("skipped: not root, and so no setuid program can be made\n");
        skip();
    }
    snprintf(copy, sizeof copy, "%s/raised", directory);
    char self[300];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    assert_true(n > 0);
    self[n] = 0;
    snprintf(line, sizeof line, "cp '%s' %s && chmod 4755 %s", self, copy, copy);
    assert_int_equal(system(line), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        setenv("ARENA_DEBUG", "stack", 1);
        setenv("ARENA_STACK_MAX", "nonsense", 1);
        setenv("ARENA_PROFILE", "1", 1);
        setenv("ARENA_PROFILE_DIR", directory, 1);
        setenv("ARENA_SOCKET", "/some/where", 1);
        setenv("XDG_RUNTIME_DIR", directory, 1);
        if (setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
            _exit(3);
        execl(copy, copy, "--raised", (char *)NULL);
        _exit(4);
    }
    int status;
    waitpid(pid, &status, 0);
    unlink(copy);
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 2 || WEXITSTATUS(status) == 4)) {
        print_message("skipped: no setuid program runs below %s\n", directory);
        skip();
    }
    assert_int_equal(status, 0);
}

static int setup(void **state)
{
    memset(long_text, 'y', sizeof long_text - 1);
    strcpy(directory, "/tmp/arena-environ-XXXXXX"); /* another user is to reach it: $TMPDIR may be closed */
    if (!mkdtemp(directory) || chmod(directory, 0755) < 0)
        return -1;
    return clear(state);
}

static int teardown(void **state)
{
    (void)state;
    return rmdir(directory);
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--raised") == 0)
        return nothing_is_obeyed();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(nothing_is_asked_where_nothing_is_set_or_all_is_empty, clear),
        cmocka_unit_test_setup(a_debug_word_is_obeyed_and_an_unknown_one_is_named, clear),
        cmocka_unit_test_setup(a_stacks_maximum_is_a_size_in_its_limits_or_named, clear),
        cmocka_unit_test_setup(a_rate_of_samples_is_on_off_or_a_number_or_named, clear),
        cmocka_unit_test_setup(a_profile_goes_to_the_first_directory_that_is_one, clear),
        cmocka_unit_test_setup(the_socket_is_the_argument_or_the_first_variable_that_names_one, clear),
        cmocka_unit_test_setup(a_variable_that_can_name_no_socket_is_named, clear),
        cmocka_unit_test_setup(several_are_named_on_one_line_that_ends_in_its_memory, clear),
        cmocka_unit_test_setup(a_setuid_program_obeys_none, clear),
    };
    return cmocka_run_group_tests_name("client/environ", tests, setup, teardown);
}
