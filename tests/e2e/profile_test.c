/* Goal: a profile tells of each call site what became of its objects, and sampling changes nothing
 * else. Method: processes with ARENA_PROFILE=1, which takes every allocation, so that all figures
 * are exact; what arenactl escape --json makes of their files. Linked with -rdynamic: the sites are
 * functions of this program. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "tests/e2e/harness.h"

/* named in the program's dynamic symbols, and not inlined */
#define CASE __attribute__((noinline, visibility("default")))
#pragma GCC diagnostic ignored "-Wmissing-prototypes"

enum { TIMES = 20 };

static struct daemon d;
static char file[200];

static int setup(void **state)
{
    daemon_setup(state, &d, "64M", NULL);
    setenv("ARENA_PROFILE", "1", 1);
    setenv("ARENA_PROFILE_DIR", d.dir, 1);
    return 0;
}

/* ---- the sites ------------------------------------------------------------------------------ */

CASE void stays_in_frame(arena_t *a)
{
    char *p = arena_alloc(a, 100);
    p[0] = 1;
    arena_free(a, p);
}

CASE char *made_for_caller(arena_t *a)
{
    return arena_alloc(a, 200);
}
CASE void drop_it(arena_t *a, char *p)
{
    arena_free(a, p);
}
CASE void calls_maker(arena_t *a)
{
    char *p = made_for_caller(a);
    p[0] = 1;
    drop_it(a, p);
}

CASE char *made_in_thread(arena_t *a)
{
    return arena_alloc(a, 300);
}
CASE char *made_for_thread(arena_t *a)
{
    return arena_alloc_flags(a, 10, ARENA_NOSCAN);
}
CASE char *made_to_publish(arena_t *a)
{
    return arena_alloc(a, 500);
}
CASE char *made_to_keep(arena_t *a)
{
    return arena_alloc(a, 100000);
}

struct hand {
    arena_t *a;
    char *object;
};

CASE void *thread_main(void *argument)
{
    struct hand *h = argument;
    char *own[TIMES];
    for (int i = 0; i < TIMES; i++)
        own[i] = made_in_thread(h->a);
    for (int i = 0; i < TIMES; i++)
        drop_it(h->a, own[i]);
    arena_free(h->a, h->object);
    return NULL;
}

static int program(void *argument)
{
    arena_t *a = open_heap(&d);
    struct hand h = {a, made_for_thread(a)};
    pthread_t t;
    for (int i = 0; i < TIMES; i++) {
        stays_in_frame(a);
        calls_maker(a);
    }
    pthread_create(&t, NULL, thread_main, &h);
    pthread_join(t, NULL);
    char *published = made_to_publish(a), *kept = made_to_keep(a);
    if (arena_publish(a, published) != 0 || !kept)
        return 2;
    if (argument)
        exit(0); /* without a close */
    return arena_close(a) == 0 ? 0 : 3;
}

/* ---- what is made of it --------------------------------------------------------------------- */

static cJSON *report(pid_t pid)
{
    static char out[1 << 20];
    snprintf(file, sizeof file, "%s/arena-%d.prof", d.dir, (int)pid);
    if (run(out, sizeof out, "%s/arenactl escape --json %s", programs_dir(), file) != 0)
        fail_msg("arenactl escape: %s", out);
    cJSON *rows = cJSON_Parse(out);
    assert_non_null(rows);
    return rows;
}

static cJSON *site_of(cJSON *rows, const char *function)
{
    cJSON *row;
    cJSON_ArrayForEach(row, rows) if (strcmp(cJSON_GetObjectItem(row, "function")->valuestring,
                                             function) == 0) return row;
    fail_msg("no site in %s", function);
    return NULL;
}

static void expect(cJSON *rows, const char *function, double objects, double size,
                   const char *verdict)
{
    cJSON *row = site_of(rows, function);
    assert_string_equal(cJSON_GetObjectItem(row, "verdict")->valuestring, verdict);
    assert_true(cJSON_GetObjectItem(row, "objects")->valuedouble == objects);
    assert_true(cJSON_GetObjectItem(row, "bytes")->valuedouble == objects * size);
}

static void expect_all(pid_t pid)
{
    cJSON *rows = report(pid);
    assert_int_equal(cJSON_GetArraySize(rows), 6);
    expect(rows, "stays_in_frame", TIMES, 100, "frame");
    expect(rows, "made_for_caller", TIMES, 200, "caller");
    expect(rows, "made_in_thread", TIMES, 300, "thread");
    expect(rows, "made_for_thread", 1, 10, "process");
    expect(rows, "made_to_publish", 1, 500, "published");
    expect(rows, "made_to_keep", 1, 100000, "lives");
    const char *text = cJSON_GetObjectItem(site_of(rows, "made_for_caller"), "text")->valuestring;
    assert_non_null(strstr(text, "does not escape calls_maker, 1 call up"));
    text = cJSON_GetObjectItem(site_of(rows, "stays_in_frame"), "text")->valuestring;
    assert_non_null(strstr(text, "does not escape stays_in_frame: use arena_frame_alloc"));
    cJSON_Delete(rows);
}

static void every_way_out_is_told_apart(void **state)
{
    (void)state;
    pid_t pid = spawn(program, NULL);
    assert_int_equal(reap(pid), 0);
    expect_all(pid);
}

static void a_program_that_exits_without_a_close_leaves_its_profile_too(void **state)
{
    (void)state;
    pid_t pid = spawn(program, &d);
    assert_int_equal(reap(pid), 0);
    expect_all(pid);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- to other clients ----------------------------------------------------------------------- */

static int pipes[2][2];

static int consumer(void *argument)
{
    (void)argument;
    char byte;
    arena_t *a = open_heap(&d);
    arena_ref_t ref;
    if (read(pipes[0][0], &byte, 1) != 1 || arena_root_get(a, "message", &ref) != 0 ||
        arena_claim(a, arena_ptr(a, ref)) != 0 || write(pipes[1][1], "c", 1) != 1 ||
        read(pipes[0][0], &byte, 1) != 1)
        return 1;
    return arena_close(a) == 0 ? 0 : 2;
}

CASE char *made_to_send(arena_t *a)
{
    return arena_alloc(a, 64);
}

static int producer(void *argument)
{
    (void)argument;
    char byte;
    arena_t *a = open_heap(&d);
    char *p = made_to_send(a);
    if (arena_publish(a, p) != 0 || arena_root_set(a, "message", arena_ref(a, p)) != 0 ||
        write(pipes[0][1], "p", 1) != 1 || read(pipes[1][0], &byte, 1) != 1)
        return 1;
    int rc = arena_profile_write(a, NULL); /* while the other one has it */
    if (rc != 0 || arena_root_set(a, "message", 0) != 0 || write(pipes[0][1], "e", 1) != 1)
        return 2;
    return arena_close(a) == 0 ? 0 : 3;
}

static void what_crosses_names_the_client(void **state)
{
    (void)state;
    assert_int_equal(pipe(pipes[0]) | pipe(pipes[1]), 0);
    pid_t to = spawn(consumer, NULL), from = spawn(producer, NULL);
    assert_int_equal(reap(from), 0);
    assert_int_equal(reap(to), 0);
    cJSON *rows = report(from);
    expect(rows, "made_to_send", 1, 64, "crosses");
    cJSON *clients = cJSON_GetObjectItem(site_of(rows, "made_to_send"), "to");
    assert_int_equal(cJSON_GetArraySize(clients), 1);
    assert_int_equal(cJSON_GetObjectItem(cJSON_GetArrayItem(clients, 0), "pid")->valueint, to);
    cJSON_Delete(rows);
}

/* ---- the other forms ------------------------------------------------------------------------ */

static void folded_stacks_pprof_and_bad_files(void **state)
{
    (void)state;
    char out[20000], name[250];
    const char *build = programs_dir();
    pid_t pid = spawn(program, NULL);
    assert_int_equal(reap(pid), 0);
    snprintf(file, sizeof file, "%s/arena-%d.prof", d.dir, (int)pid);
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape --folded %s", build, file), 0);
    assert_non_null(strstr(out, ";calls_maker;made_for_caller 4000\n"));
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape %s %s", build, file, file),
                     0); /* added up */
    assert_non_null(strstr(out, "stays_in_frame: 40 objects, "));
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape --pprof %s.pb %s", build, file, file),
                     0);
    snprintf(name, sizeof name, "%s.pb", file);
    FILE *f = fopen(name, "re");
    assert_non_null(f);
    size_t n = fread(out, 1, sizeof out, f);
    fclose(f);
    assert_true(n > 200 && out[0] == 0x0a); /* a sample type comes first */
    assert_non_null(memmem(out, n, "made_for_caller", 15));
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape", build), 2);
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape %s", build, d.log), 2);
    assert_non_null(strstr(out, "not a profile"));
    assert_int_equal(run(out, sizeof out, "%s/arenactl escape --json --folded %s", build, file), 2);
}

/* ---- it changes nothing --------------------------------------------------------------------- */

static int bad_frees;
static void on_error(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)p, (void)message;
    bad_frees += error == EALREADY;
}

static int ordinary(void *argument)
{
    setenv("ARENA_PROFILE", argument, 1);
    uint64_t seed = 5;
    arena_t *a = open_heap(&d);
    arena_on_error(a, on_error, NULL);
    enum { SLOTS = 500 };
    char *slots[SLOTS] = {NULL};
    for (int i = 0; i < 30000; i++) {
        size_t k = rnd(&seed) % SLOTS, size = rnd(&seed) % (rnd(&seed) % 100 ? 500 : 90000);
        switch (rnd(&seed) % 8) {
        case 0:
            slots[k] = arena_realloc(a, slots[k], size + 1);
            break;
        case 1:
            if (slots[k] && (arena_publish(a, slots[k]) != 0 ||
                             (rnd(&seed) & 1 && arena_claim(a, slots[k]) != 0)))
                return 1;
            break;
        case 2:
            if (arena_tx_begin(a) != 0)
                return 2;
            arena_free(a, slots[k]);
            slots[k] = arena_alloc(a, size);
            if (rnd(&seed) & 1)
                arena_tx_commit(a, NULL, 0, 0);
            else {
                arena_tx_abort(a);
                slots[k] = NULL;
            }
            break;
        default:
            arena_free(a, slots[k]);
            slots[k] = arena_alloc(a, size);
            break;
        }
        if (slots[k])
            slots[k][0] = 1;
    }
    for (int i = 0; i < SLOTS; i++)
        arena_free(a, slots[i]);
    if (bad_frees)
        return 3;
    char *p = arena_alloc(a, 40);
    arena_free(a, p);
    arena_free(a, p);
    return arena_close(a) == 0 && bad_frees == 1 ? 0 : 4;
}

static void a_program_runs_as_it_does_without(void **state)
{
    (void)state;
    static char *const rates[] = {"1", "7", "on", "20000", "nonsense", "0"};
    char out[200];
    for (size_t i = 0; i < sizeof rates / sizeof rates[0]; i++) {
        pid_t pid = spawn(ordinary, rates[i]);
        assert_int_equal(reap(pid), 0);
        snprintf(file, sizeof file, "%s/arena-%d.prof", d.dir, (int)pid);
        assert_int_equal(run(out, sizeof out, "test -s %s", file), i < 4 ? 0 : 1);
        stat_await(&d, "clients", 0);
        stat_await(&d, "objects_owned", 0);
        assert_int_equal(check_of(&d), 0);
    }
}

static int forks(void *argument)
{
    (void)argument;
    arena_t *a = open_heap(&d);
    char *p = made_for_caller(a);
    pid_t idle = fork();
    if (idle == 0)
        exit(0); /* it never was a client: no profile of it */
    pid_t child = fork();
    if (child == 0) {
        stays_in_frame(a);
        _exit(arena_close(a) == 0 ? 0 : 1);
    }
    if (reap(idle) != 0 || reap(child) != 0)
        return 1;
    char name[200];
    snprintf(name, sizeof name, "%s/arena-%d.prof", d.dir, (int)idle);
    if (access(name, F_OK) == 0)
        return 2;
    cJSON *rows = report(child);
    if (cJSON_GetArraySize(rows) != 1)
        return 3;
    expect(rows, "stays_in_frame", 1, 100, "frame");
    arena_free(a, p);
    return arena_close(a) == 0 ? 0 : 4;
}

static void a_forked_child_has_a_profile_of_its_own(void **state)
{
    (void)state;
    pid_t pid = spawn(forks, NULL);
    assert_int_equal(reap(pid), 0);
    cJSON *rows = report(pid);
    assert_int_equal(cJSON_GetArraySize(rows), 1);
    expect(rows, "made_for_caller", 1, 200, "caller");
    cJSON_Delete(rows);
}

static int dies(void *argument)
{
    (void)argument;
    arena_t *a = open_heap(&d);
    for (int i = 0; i < 1000; i++)
        made_for_caller(a);
    kill(getpid(), SIGKILL);
    return 0;
}

static void death_frees_what_was_sampled(void **state)
{
    (void)state;
    assert_int_equal(reap(spawn(dies, NULL)), 128 + SIGKILL);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    assert_int_equal(check_of(&d), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_way_out_is_told_apart),
        cmocka_unit_test(a_program_that_exits_without_a_close_leaves_its_profile_too),
        cmocka_unit_test(what_crosses_names_the_client),
        cmocka_unit_test(folded_stacks_pprof_and_bad_files),
        cmocka_unit_test(a_program_runs_as_it_does_without),
        cmocka_unit_test(a_forked_child_has_a_profile_of_its_own),
        cmocka_unit_test(death_frees_what_was_sampled),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
