/* A model of the whole API. See README.md beside it.
 *
 *     make model [SEED=...]                                       a minute: four heaps, chosen by the seed
 *     make soak MINUTES=60 [SEED=...]                             as long as asked
 *     MODEL='heap=64M collector=1 stops=0 round=3' SEED=... ...   what the seed would choose is given
 */
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "tests/model/faults.h"
#include "tests/model/operations.h"
#include "tests/model/verify.h"
#include "tests/model/worker.h"

enum { HEAPS = 4 };

static uint64_t seed;
static struct counts totals;
static uint64_t rounds;

static uint64_t now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec;
}

/* ---- options ----------------------------------------------------------------------------------------------------------- */

/* The value of a word NAME=VALUE in $MODEL; NULL: it is not there. */
static const char *given(const char *name, char value[32])
{
    const char *at = getenv("MODEL");
    size_t length = strlen(name);
    for (; at && *at; at += strcspn(at, " "), at += strspn(at, " "))
        if (strncmp(at, name, length) == 0 && at[length] == '=') {
            snprintf(value, 32, "%.*s", (int)strcspn(at + length + 1, " "), at + length + 1);
            return value;
        }
    return NULL;
}

static uint64_t number(const char *name, uint64_t otherwise)
{
    char value[32];
    return given(name, value) ? strtoull(value, NULL, 0) : otherwise;
}

struct heap_kind {
    const char *max;
    uint64_t bytes, size_max;
    uint32_t slots;
    bool backing;
};
static const struct heap_kind heaps[HEAPS] = {
    {"1M", 1 << 20, 4 << 10, 12, false},
    {"64M", 64 << 20, 1 << 20, 160, false}, /* full again and again */
    {"4G", 4ULL << 30, 4 << 20, SLOTS / 2, false},
    {"64M", 64 << 20, 256 << 10, SLOTS / 2, true},
};

static void choose(uint64_t *s, uint64_t round)
{
    struct settings *set = &R->set;
    const struct heap_kind *heap = &heaps[number("heap", (round + seed / 2) % HEAPS) % HEAPS];
    char value[32];
    memset(set, 0, sizeof *set);
    snprintf(set->max, sizeof set->max, "%s", heap->max);
    set->heap_bytes = heap->bytes;
    set->size_max = heap->size_max;
    set->slots = heap->slots;
    set->backing = heap->backing;
    set->collector = number("collector", rnd(s) % 2);
    set->kills = number("kills", rnd(s) % 5 != 0);
    set->stops = number("stops", rnd(s) % 2);
    set->limits = number("limits", rnd(s) % 4 == 0);
    set->timeout_ms = (int)number("timeout", set->stops ? 20 + rnd(s) % 300 : 30000);
    const char *const debugs[] = {"", "", "", set->collector ? "pins" : "", "stack", heap->bytes == 1 << 20 ? "escape" : "", "", "stack,pins"};
    snprintf(set->debug, sizeof set->debug, "%s", given("debug", value) ? value : debugs[rnd(s) % 8]);
    const char *const profiles[] = {"", "", "", "", "on", "1"};
    snprintf(set->profile, sizeof set->profile, "%s", given("profile", value) ? value : profiles[rnd(s) % 6]);
}

static void put_environment(const char *name, const char *value)
{
    if (*value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

/* ---- a round ------------------------------------------------------------------------------------------------------------- */

static void add_counts(void)
{
    _Atomic uint64_t *from = (_Atomic uint64_t *)&R->count, *to = (_Atomic uint64_t *)&totals;
    for (int i = 0; i < PROCESSES; i++)
        for (int t = 0; t < THREADS; t++)
            atomic_fetch_add(&R->count.operations, atomic_load(&R->process[i].thread[t].operations));
    for (size_t i = 0; i < sizeof totals / sizeof *to; i++)
        atomic_fetch_add(&to[i], atomic_load(&from[i]));
}

static void round_run(uint64_t round, uint64_t until)
{
    struct daemon d;
    uint64_t s = (seed + round * 0x9e3779b97f4a7c15ULL) | 1;
    choose(&s, round);
    shadow_reset();
    const struct settings *set = &R->set;
    put_environment("ARENA_DEBUG", set->debug);
    put_environment("ARENA_PROFILE", set->profile);
    fprintf(stderr, "round %llu: heap %s%s%s%s%s%s, timeout %d ms, debug '%s', profile '%s'\n", (unsigned long long)round, set->max,
            set->backing ? " in files" : "", set->collector ? ", collector" : "", set->kills ? ", kills" : "", set->stops ? ", stops" : "",
            set->limits ? ", limits" : "", set->timeout_ms, set->debug, set->profile);
    model_daemon_start(&d);
    setenv("ARENA_PROFILE_DIR", R->set.directory, 1);
    heap_prepare(&d);
    processes_start(&s);
    for (uint64_t counted = now_s(), now; (now = now_s()) < until;) {
        fault_next(&d, &s);
        if (now - counted < 3)
            continue;
        quiesce(&d);
        recount(&d);
        go_on();
        counted = now_s();
    }
    quiesce(&d);
    recount(&d);
    go_on();
    processes_end(&d);
    recount_last(&d);
    add_counts();
    rounds++;
    daemon_clean(&d);
    temp_dir_remove(R->set.directory);
}

static void report(uint64_t seconds)
{
    unsigned long long n[] = {totals.operations, totals.passed, totals.graphs, totals.taken, totals.aborts, totals.full, totals.forks, totals.execs,
                              totals.cancels, totals.closes, totals.collections + faults.collections, totals.collected, totals.unanswered, totals.in_doubt};
    printf("model: seed %llu, %llu s, %llu rounds: %llu operations; %llu objects passed on, %llu graphs committed and %llu taken away, %llu aborts; "
           "%llu times full; %llu forks, %llu execs, %llu cancels, %llu closes; %llu collections freed %llu; "
           "survived %llu kills of clients, %llu of the daemon, %llu stops of clients, %llu of the daemon; %llu calls not answered, %llu in doubt; "
           "%llu recounts, %llu checks; %llu objects outlived who knew them, %llu more whose place only a call knew; %llu bytes lost\n",
           (unsigned long long)seed, (unsigned long long)seconds, (unsigned long long)rounds, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], n[8],
           n[9], n[10], n[11], (unsigned long long)faults.client_kills, (unsigned long long)faults.daemon_kills,
           (unsigned long long)faults.client_stops, (unsigned long long)faults.daemon_stops, n[12], n[13], (unsigned long long)verified.recounts,
           (unsigned long long)verified.checks, (unsigned long long)verified.orphans, (unsigned long long)verified.unknown,
           (unsigned long long)verified.lost);
}

static void nothing_is_lost_leaked_or_overwritten(void **state)
{
    (void)state;
    const char *minutes = getenv("MINUTES");
    uint64_t seconds = number("seconds", minutes ? strtoull(minutes, NULL, 10) * 60 : 60), each = minutes ? 60 : seconds / HEAPS + 1;
    uint64_t start = now_s(), until = start + seconds;
    each = number("each", each);
    for (uint64_t round = number("round", 0), now; (now = now_s()) < until; round++)
        round_run(round, now + each < until ? now + each : until);
    report(now_s() - start);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(nothing_is_lost_leaked_or_overwritten)};
    static char path[512];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    model_path = n > 0 ? path : argv[0];
    setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
    if (argc == 4 && strcmp(argv[1], "worker") == 0) {
        shadow_fd = atoi(argv[3]);
        shadow_attach(shadow_fd);
        return worker_main(atoi(argv[2]));
    }
    seed = seed_get();
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    shadow_fd = shadow_make();
    shadow_attach(shadow_fd);
    operations_index();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
