/* Steady churn asks nobody: once caches and leases have grown to what a program's turnover needs,
 * its allocations and frees make no refill, no round trip, and no system call at all.
 *
 * Method: a row of work is done in turns that are alike - the random ones too: each turn draws the
 * same numbers, so that no turn needs more of a size at once than one before - until it is warm,
 * then once more, counting. The daemon's own figures say how many leases it granted and how many
 * requests it answered between two looks (the second look is one of them). For system calls the
 * second half runs behind a seccomp filter that answers every call with a signal; and once more
 * under strace, where there is one, between two marks in its record. */
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { SLOTS_MAX = 10000, MARK = -1 };

struct row {
    const char *name;
    uint32_t least, most; /* sizes */
    unsigned slots;       /* a batch, or live objects of which one at random is replaced */
    bool random, logarithmic;
    unsigned warm;  /* turns */
    unsigned count; /* batches, or replacements, in a turn */
    unsigned
        settles; /* 0: the turn after the warm ones is without; else so many of these in a row */
};

static const struct row rows[] = {
#define FIXED(size)                                                                                \
    {"fixed/" #size "/1", size, size, 1, false, false, 3, 10000, 0},                               \
        {"fixed/" #size "/100", size, size, 100, false, false, 3, 300, 0},                         \
    {                                                                                              \
        "fixed/" #size "/10000", size, size, 10000, false, false, 3, 10, 0                         \
    }
    FIXED(16),
    FIXED(64),
    FIXED(256),
    FIXED(1024),
    FIXED(8192),
#undef FIXED
    {"random/small", 8, 1000, 4096, true, false, 6, 100000, 3},
    {"random/wide", 8, 32768, 4096, true, true, 6, 100000,
     3}, /* for a while, memory is given back in small steps */
    {"large", 64 << 10, 4 << 20, 32, true, true, 6, 5000, 0},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static void *slots[SLOTS_MAX];
static uint64_t chance;

static uint32_t size_of(const struct row *row)
{
    uint64_t r = rnd(&chance);
    if (!row->logarithmic)
        return row->least + (uint32_t)(r % (row->most - row->least + 1));
    uint64_t size = row->least; /* doublings, and a part of one */
    unsigned doublings = (unsigned)__builtin_ctz(row->most / row->least);
    size <<= r % doublings;
    return (uint32_t)(size + (r >> 8) % size);
}

/* One turn. No system calls of its own. */
static void churn(arena_t *a, const struct row *row)
{
    const unsigned count = row->count;
    chance = 88172645463325252ULL;
    for (unsigned n = 0; n < count && row->random; n++) {
        unsigned i = (unsigned)(rnd(&chance) % row->slots);
        arena_free(a, slots[i]);
        slots[i] = arena_alloc(a, size_of(row));
        if (!slots[i])
            abort();
        *(uint64_t *)slots[i] = i;
    }
    for (unsigned n = 0; n < count && !row->random; n++) {
        for (unsigned i = 0; i < row->slots; i++) {
            slots[i] = arena_alloc(a, row->least);
            if (!slots[i])
                abort();
            *(uint64_t *)slots[i] = i;
        }
        for (unsigned i = row->slots; i--;) {
            if (*(uint64_t *)slots[i] != i)
                abort();
            arena_free(a, slots[i]);
        }
    }
}

static void warm(arena_t *a, const struct row *row)
{
    chance = 88172645463325252ULL;
    memset(slots, 0, sizeof slots);
    for (unsigned i = 0; i < row->slots && row->random; i++)
        slots[i] = arena_alloc(a, size_of(row));
    for (unsigned turn = 0; turn < row->warm; turn++)
        churn(a, row);
}

struct job {
    const struct daemon *daemon;
    const struct row *row;
};

/* ---- the daemon's figures ---- */

enum { TURNS_MAX = 300 }; /* for a row that settles */

static int count_refills(void *argument)
{
    const struct job *job = argument;
    const unsigned wanted = job->row->settles ? job->row->settles : 1,
                   turns = job->row->settles ? TURNS_MAX : 1;
    struct arena_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    arena_t *a = open_heap(job->daemon);
    warm(a, job->row);
    for (unsigned turn = 0, without = 0; turn < turns; turn++) {
        if (arena_stats(a, &before) < 0)
            return 2;
        churn(a, job->row);
        if (arena_stats(a, &after) < 0)
            return 2;
        bool none = after.refills == before.refills && after.round_trips == before.round_trips + 1;
        without = none ? without + 1 : 0;
        if (without == wanted)
            return 0;
    }
    fprintf(stderr, "%s: %llu refills, %llu round trips in the last turn\n", job->row->name,
            (unsigned long long)(after.refills - before.refills),
            (unsigned long long)(after.round_trips - before.round_trips - 1));
    return 1;
}

static unsigned each_row(int (*fn)(void *))
{
    unsigned failed = 0;
    for (unsigned i = 0; i < ROWS; i++) {
        struct daemon d;
        daemon_start(&d, "2G", NULL);
        struct job job = {&d, &rows[i]};
        int status = reap(spawn(fn, &job));
        if (status == 77)
            failed = ROWS + 1;
        else if (status != 0) {
            failed++;
            fprintf(stderr, "%s: status %d\n", rows[i].name, status);
        }
        daemon_stop(&d);
        daemon_clean(&d);
        if (status == 77)
            break;
    }
    return failed;
}

static void steady_churn_makes_no_refill(void **state)
{
    (void)state;
    assert_int_equal(each_row(count_refills), 0);
}

/* ---- one allocates and publishes, another frees ---- */

enum { PASSED = 4000, TURNS = 20, GROUPS = 500 };

/* Frees what it reads from one pipe, by the thousand, and says so on the other. */
static int consume(const struct daemon *d, int from, int to)
{
    static void *objects[PASSED];
    arena_t *a = open_heap(d);
    for (;;) {
        size_t have = 0;
        while (have < sizeof objects) {
            ssize_t n = read(from, (char *)objects + have, sizeof objects - have);
            if (n <= 0)
                return 0;
            have += (size_t)n;
        }
        for (unsigned i = 0; i < PASSED; i++)
            arena_free(a, objects[i]);
        if (write(to, "", 1) != 1)
            return 1;
    }
}

static void pass(arena_t *a, int to, int from, unsigned turns)
{
    char byte;
    for (unsigned turn = 0; turn < turns; turn++) {
        chance = 88172645463325252ULL;
        for (unsigned i = 0; i < PASSED; i++) {
            slots[i] = arena_alloc(a, 8 + rnd(&chance) % 993);
            assert_non_null(slots[i]);
            assert_int_equal(arena_publish(a, slots[i]), 0);
        }
        for (size_t done = 0; done < PASSED * sizeof *slots;) {
            ssize_t n = write(to, (char *)slots + done, PASSED * sizeof *slots - done);
            assert_true(n > 0);
            done += (size_t)n;
        }
        assert_int_equal(read(from, &byte, 1), 1);
    }
}

static void passing_between_processes_settles_to_no_refill(void **state)
{
    struct daemon d;
    struct arena_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    int there[2], back[2];
    (void)state;
    daemon_start(&d, "2G", NULL);
    assert_int_equal(pipe(there) | pipe(back), 0);
    pid_t pid = fork();
    if (pid == 0) {
        close(there[1]);
        close(back[0]);
        _exit(consume(&d, there[0], back[1]));
    }
    close(there[0]);
    close(back[1]);
    arena_t *a = open_heap(&d);
    /* how much the two hold when they are warm depends on when the daemon sees their hints: so
     * until it holds still */
    unsigned group = 0;
    do {
        assert_int_equal(arena_stats(a, &before), 0);
        pass(a, there[1], back[0], TURNS);
        assert_int_equal(arena_stats(a, &after), 0);
    } while (after.refills != before.refills && ++group < GROUPS);
    close(there[1]);
    assert_int_equal(reap(pid), 0);
    close(back[0]);
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);
    assert_true(group > 0); /* the first group cannot be without */
    assert_true(group < GROUPS);
}

/* ---- behind a filter ---- */

static void on_system_call(int signal_number, siginfo_t *info, void *context)
{
    char text[64] = "system call ";
    int n = info->si_syscall, at = (int)strlen(text);
    (void)signal_number, (void)context;
    for (int power = 1000; power; power /= 10)
        text[at++] = (char)('0' + n / power % 10);
    text[at++] = '\n';
    ssize_t written = write(2, text, (size_t)at);
    _exit(written == at ? 1 : 2);
}

/* From here on only write and exit_group are let through; everything else is SIGSYS. False: this
 * kernel has no filters. */
static bool forbid_system_calls(void)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 2, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_write, 1, 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_TRAP),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    struct sigaction action = {.sa_sigaction = on_system_call, .sa_flags = SA_SIGINFO};
    sigaction(SIGSYS, &action, NULL);
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

/* A sanitizer's run-time library makes calls of its own. */
static void skip_if_sanitized(void)
{
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    printf("skipped: not with a sanitizer\n");
    skip();
#endif
}

static int churn_behind_a_filter(void *argument)
{
    const struct job *job = argument;
    if (job->row->settles) /* when, only a watcher from outside can tell */
        return 0;
    arena_t *a = open_heap(job->daemon);
    warm(a, job->row);
    if (!forbid_system_calls())
        return 77;
    churn(a, job->row);
    return 0; /* by exit_group */
}

static void steady_churn_makes_no_system_call(void **state)
{
    (void)state;
    skip_if_sanitized();
    unsigned failed = each_row(churn_behind_a_filter);
    if (failed > ROWS) {
        printf("skipped: this kernel has no seccomp filters\n");
        skip();
    }
    assert_int_equal(failed, 0);
}

/* ---- under strace ---- */

static char *self;

/* What strace runs: PROGRAM --churn SOCKET ROW; a write to no file marks each turn's beginning and
 * the end. */
static int churn_traced(const char *socket, const char *name)
{
    arena_t *a;
    for (unsigned i = 0; i < ROWS; i++) {
        if (strcmp(rows[i].name, name) != 0)
            continue;
        if (arena_open(&a, socket, NULL) < 0)
            return 2;
        warm(a, &rows[i]);
        for (unsigned turn = 0; turn <= rows[i].settles * 20; turn++) {
            (void)!write(MARK, "turn", 4);
            churn(a, &rows[i]);
        }
        (void)!write(MARK, "end", 3);
        return 0;
    }
    return 2;
}

/* Reads strace's record: how many turns in a row were without a line; -1: the marks are not there.
 */
static int turns_without_lines(const char *path)
{
    char line[512];
    int without = 0, most = -1;
    bool begun = false, ended = false, clean = false;
    FILE *f = fopen(path, "re");
    while (f && !ended && fgets(line, sizeof line, f)) {
        ended = strstr(line, "write(-1, \"end\"") != NULL;
        if (ended || strstr(line, "write(-1, \"turn\"") != NULL) {
            without = begun && clean ? without + 1 : 0;
            most = without > most ? without : most;
            begun = clean = true;
        } else if (begun) {
            clean = false;
            fprintf(stderr, "%s", line);
        }
    }
    if (f)
        fclose(f);
    return ended ? most : -1;
}

static void strace_sees_no_system_call_in_steady_churn(void **state)
{
    static char out[16384];
    char path[120];
    unsigned failed = 0;
    (void)state;
    skip_if_sanitized();
    if (run(out, sizeof out, "strace -o /dev/null true") != 0) {
        printf("skipped: strace is not there, or may not trace: %.60s\n", out);
        skip();
    }
    for (unsigned i = 0; i < ROWS; i++) {
        struct daemon d;
        daemon_start(&d, "2G", NULL);
        snprintf(path, sizeof path, "%s/trace", d.dir);
        assert_int_equal(run(out, sizeof out, "strace -f -o %s %s --churn %s %s", path, self,
                             d.socket, rows[i].name),
                         0);
        int turns = turns_without_lines(path);
        if (turns < (rows[i].settles ? (int)rows[i].settles : 1)) {
            fprintf(stderr, "%s: %d turns without a system call\n", rows[i].name, turns);
            failed++;
        }
        daemon_stop(&d);
        daemon_clean(&d);
    }
    assert_int_equal(failed, 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steady_churn_makes_no_refill),
        cmocka_unit_test(passing_between_processes_settles_to_no_refill),
        cmocka_unit_test(steady_churn_makes_no_system_call),
        cmocka_unit_test(strace_sees_no_system_call_in_steady_churn),
    };
    self = argv[0];
    if (argc == 4 && strcmp(argv[1], "--churn") == 0)
        return churn_traced(argv[2], argv[3]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
