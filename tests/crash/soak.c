/* Goal: for as long as one likes, whoever is killed: no byte is lost, no check fails, nobody is held up. Method: processes
 * that allocate, grow, shrink and commit lists with roots are killed at random and replaced, the daemon too; one is
 * stopped for a minute; `check` runs every few seconds. A list is committed as a whole with its root, so it is there or
 * not; only this process, which is not killed, takes lists away. An object that a worker has published and not yet claimed
 * outlives it, as is promised: so each notes what it is about to publish, and what the killed ones had noted is freed at
 * the end, when nothing else is left. All is freed then, and what is still in use is lost.
 *
 *     make soak MINUTES=60 [SEED=...]
 *
 * The seed decides what is done and when by count; what it meets is the scheduler's. */
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { WORKERS = 4, SLOTS = 600, NAME = 48, LEFT_MAX = 1 << 16 };

struct board {
    _Atomic uint64_t operations, stop;
    _Atomic uint64_t lists[WORKERS]; /* the next list of each */
    _Atomic arena_ref_t published[WORKERS]; /* what each is about to claim again; 0: nothing */
};
static struct board *board;
static struct daemon d;
static uint64_t seed;

struct node {
    arena_ref_t next;
    uint64_t number, count;
};

static void name_of(char name[NAME], int worker, uint64_t list) { snprintf(name, NAME, "soak-%d-%llu", worker, (unsigned long long)list); }

static int commit_list(arena_t *a, uint64_t *s, const char *name)
{
    uint64_t count = 1 + rnd(s) % 60;
    arena_ref_t head = 0;
    if (arena_tx_begin(a) != 0)
        return 21;
    for (uint64_t i = 0; i < count; i++) {
        struct node *node = arena_alloc(a, sizeof *node + (rnd(s) % 40 ? rnd(s) % 2000 : rnd(s) % 200000));
        if (!node) {
            arena_tx_abort(a);
            return errno == ENOMEM ? 0 : 22;
        }
        *node = (struct node){head, i, count};
        head = arena_ref(a, node);
    }
    int rc = arena_tx_commit(a, name, 0, head);
    return rc == 0 ? 1 : 23;
}

static int worker(void *argument)
{
    int me = (int)(intptr_t)argument;
    uint64_t s = seed * 31 + (uint64_t)me + atomic_load(&board->operations);
    void *slots[SLOTS] = {NULL};
    arena_t *a = open_heap(&d);
    char name[NAME];
    arena_ref_t ref;
    for (unsigned turn = 0; !atomic_load(&board->stop); turn++) {
        unsigned live = turn / 300 % 2 ? SLOTS : SLOTS / 20; /* grows and shrinks */
        for (int i = 0; i < 50; i++) {
            size_t k = rnd(&s) % SLOTS;
            arena_free(a, slots[k]);
            slots[k] = k < live ? arena_alloc(a, rnd(&s) % 60 ? rnd(&s) % 9000 : rnd(&s) % 600000) : NULL;
            if (k < live && !slots[k] && errno != ENOMEM)
                return 11;
            if (slots[k] && rnd(&s) % 16 == 0) {
                atomic_store(&board->published[me], arena_ref(a, slots[k]));
                if (arena_publish(a, slots[k]) != 0 || arena_claim(a, slots[k]) != 0)
                    return 12;
                atomic_store(&board->published[me], 0);
            }
        }
        atomic_fetch_add(&board->operations, 50);
        if (rnd(&s) % 8)
            continue;
        uint64_t list = atomic_load(&board->lists[me]);
        name_of(name, me, list);
        int rc = arena_root_get(a, name, &ref) == 0 ? 1 : commit_list(a, &s, name); /* the one before me may have got so far */
        if (rc > 1)
            return rc;
        if (rc == 1)
            atomic_store(&board->lists[me], list + 1);
        if (rnd(&s) % 200 == 0)
            arena_trim(a);
    }
    for (int i = 0; i < SLOTS; i++)
        arena_free(a, slots[i]);
    return arena_close(a) == 0 ? 0 : 13;
}

/* Takes away a list, which must be whole: how many objects it had; 0: there is none. */
static uint64_t take_away(arena_t *a, int owner, uint64_t list)
{
    char name[NAME];
    arena_ref_t ref;
    uint64_t seen = 0;
    name_of(name, owner, list);
    if (arena_root_get(a, name, &ref) != 0)
        return 0;
    assert_int_equal(arena_root_set(a, name, 0), 0);
    uint64_t count = ((struct node *)arena_ptr(a, ref))->count;
    while (ref) {
        struct node *node = arena_ptr(a, ref);
        assert_int_equal(node->number, count - 1 - seen++);
        assert_int_equal(node->count, count);
        ref = node->next;
        arena_free(a, node);
    }
    assert_int_equal(seen, count);
    return count;
}

static arena_ref_t left[LEFT_MAX]; /* published, perhaps, when its owner was killed */
static uint64_t left_count;

static void ignore(void *context, int error, const void *p, const char *message) { (void)context, (void)error, (void)p, (void)message; }

/* Frees what the killed ones had published; nothing else is allocated any more. Its bytes. */
static uint64_t free_left(arena_t *a)
{
    uint64_t bytes = 0;
    arena_on_error(a, ignore, NULL); /* it had not been published yet, or was claimed already: reclaimed, and free */
    for (uint64_t i = 0; i < left_count; i++) {
        uint64_t before = stat_of(&d, "bytes_used");
        arena_free(a, arena_ptr(a, left[i]));
        bytes += before - stat_of(&d, "bytes_used");
    }
    return bytes;
}

static uint64_t now_s(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec;
}

static pid_t pids[WORKERS];
static int stopped = -1;
static uint64_t stopped_at, client_kills, daemon_kills, checks, stops, lists_taken;

static void kill_one(int i)
{
    kill(pids[i], SIGKILL);
    assert_int_equal(reap(pids[i]), 128 + SIGKILL); /* else it had ended by itself, with what went wrong */
    arena_ref_t published = atomic_exchange(&board->published[i], 0);
    if (published && left_count < LEFT_MAX)
        left[left_count++] = published;
    pids[i] = spawn(worker, (void *)(intptr_t)i);
    client_kills++;
}

static void kill_daemon(void)
{
    pid_t serving = daemon_serving(&d);
    if (serving == d.pid || serving <= 0)
        return;
    kill(serving, SIGKILL);
    daemon_kills++;
}

static void stop_or_continue(uint64_t now)
{
    if (stopped >= 0 && now - stopped_at >= 60) {
        kill(pids[stopped], SIGCONT);
        stopped = -1;
    } else if (stopped < 0 && rnd(&seed) % 100 == 0) {
        stopped = (int)(rnd(&seed) % WORKERS);
        stopped_at = now;
        kill(pids[stopped], SIGSTOP);
        stops++;
    }
}

static void soak(void **state)
{
    (void)state;
    const char *minutes = getenv("MINUTES");
    uint64_t start = now_s(), until = start + (minutes ? strtoull(minutes, NULL, 10) : 1) * 60, checked = start;
    uint64_t taken[WORKERS] = {0}, first_seed = seed;
    board = shared_memory(sizeof *board);
    daemon_start(&d, "512M", NULL);
    for (int i = 0; i < WORKERS; i++)
        pids[i] = spawn(worker, (void *)(intptr_t)i);
    arena_t *a = open_heap(&d);
    for (uint64_t now; (now = now_s()) < until;) {
        pause_us((unsigned)(5 + rnd(&seed) % 60) * 1000);
        int i = (int)(rnd(&seed) % WORKERS);
        if (i != stopped)
            kill_one(i);
        if (rnd(&seed) % 8 == 0)
            kill_daemon();
        stop_or_continue(now);
        for (int w = 0; w < WORKERS; w++)
            while (taken[w] + 5 < atomic_load(&board->lists[w]))
                lists_taken += take_away(a, w, taken[w]++) != 0;
        if (now - checked >= 3) {
            assert_int_equal(check_of(&d), 0);
            checks++;
            checked = now;
        }
    }
    if (stopped >= 0)
        kill(pids[stopped], SIGCONT);
    atomic_store(&board->stop, 1);
    for (int i = 0; i < WORKERS; i++)
        assert_int_equal(reap(pids[i]), 0);
    for (int w = 0; w < WORKERS; w++)
        while (taken[w] <= atomic_load(&board->lists[w]))
            lists_taken += take_away(a, w, taken[w]++) != 0;
    stat_await(&d, "clients", 1);
    stat_await(&d, "objects_owned", 0);
    uint64_t outlived = free_left(a);
    assert_int_equal(arena_close(a), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "objects_owned", 0);
    stat_await(&d, "objects_cached", 0);
    uint64_t lost = stat_of(&d, "bytes_used");
    assert_int_equal(check_of(&d), 0);
    printf("soak: seed %llu, %llu s: %llu operations, %llu lists; survived %llu kills of clients, %llu of the daemon, %llu stops of a "
           "minute; %llu checks; %llu bytes had been published and outlived their makers; %llu bytes lost\n", (unsigned long long)first_seed, (unsigned long long)(now_s() - start),
           (unsigned long long)atomic_load(&board->operations), (unsigned long long)lists_taken, (unsigned long long)client_kills,
           (unsigned long long)daemon_kills, (unsigned long long)stops, (unsigned long long)checks, (unsigned long long)outlived,
           (unsigned long long)lost);
    assert_int_equal(lost, 0);
    stat_await(&d, "spans", 0);
    daemon_clean(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(soak)};
    seed = seed_get();
    return cmocka_run_group_tests(tests, NULL, NULL);
}
