/* Goal: no object is handed out twice, none is lost, and every figure agrees with a recount.
 * Method: 4 processes x 2 threads; each allocates, fills, publishes and passes objects of mixed size through a ring to its
 * neighbour, which checks and frees them: 10 million in all. A second test frees each published object twice at once. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { PROCESSES = 4, THREADS = 2, WORKERS = PROCESSES * THREADS, SLOTS = 1024, EACH = 1250000 / LESS };

struct ring {
    _Atomic uint64_t head, tail;
    _Atomic uint64_t slots[SLOTS];
};

struct object {
    uint64_t magic, size, id;
};

static struct daemon d;
static struct ring *rings;
static uint64_t seed;

static int setup(void **state)
{
    rings = shared_memory(sizeof *rings * WORKERS);
    seed = seed_get();
    return daemon_setup(state, &d, "4G", NULL);
}

static size_t mixed_size(uint64_t *s)
{
    uint64_t kind = rnd(s) % 1000;
    if (kind < 950)
        return sizeof(struct object) + 1 + rnd(s) % 1000;
    return kind < 999 ? sizeof(struct object) + 1 + rnd(s) % 32000 : 40000 + rnd(s) % 300000;
}

static void die_of(const char *what, const struct object *o, uint64_t want)
{
    fprintf(stderr, "%s: magic %llx id %llu, wanted %llu\n", what, (unsigned long long)o->magic,
            (unsigned long long)o->id, (unsigned long long)want);
    _exit(9);
}

static struct object *make(arena_t *a, uint64_t *s, uint64_t id)
{
    size_t size = mixed_size(s);
    struct object *o = arena_alloc(a, size);
    if (!o) {
        perror("arena_alloc");
        _exit(8);
    }
    if (o->magic == 0xabcdef)
        die_of("handed out while it is in use", o, id);
    *o = (struct object){0xabcdef, size, id};
    ((unsigned char *)o)[sizeof *o] = (unsigned char)id;
    ((unsigned char *)o)[size - 1] = (unsigned char)id;
    if (arena_publish(a, o) != 0)
        die_of("publish", o, id);
    return o;
}

static void take_in(arena_t *a, struct object *o, uint64_t id)
{
    if (o->magic != 0xabcdef || o->id != id || ((unsigned char *)o)[o->size - 1] != (unsigned char)id ||
        arena_usable_size(a, o) < o->size)
        die_of("received", o, id);
    o->magic = 0;
    arena_free(a, o);
}

struct worker {
    arena_t *a;
    int number;
};

static void *work(void *argument)
{
    struct worker *w = argument;
    uint64_t s = seed + (uint64_t)w->number * 2, sent = 0, got = 0, source = (uint64_t)(w->number + 1) % WORKERS;
    struct ring *out = &rings[w->number], *in = &rings[source];
    while (sent < EACH || got < EACH) {
        uint64_t head = atomic_load(&out->head), tail = atomic_load(&in->tail), before = sent + got;
        if (sent < EACH && head - atomic_load(&out->tail) < SLOTS) {
            struct object *o = make(w->a, &s, (uint64_t)w->number << 40 | sent++);
            out->slots[head % SLOTS] = arena_ref(w->a, o);
            atomic_store(&out->head, head + 1);
        }
        if (got < EACH && tail < atomic_load(&in->head)) {
            take_in(w->a, arena_ptr(w->a, in->slots[tail % SLOTS]), source << 40 | got++);
            atomic_store(&in->tail, tail + 1);
        }
        if (sent + got == before)
            sched_yield(); /* nothing to do until a neighbour runs */
    }
    return NULL;
}

static int process(void *argument)
{
    arena_t *a = open_heap(&d);
    struct worker workers[THREADS];
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        workers[i] = (struct worker){a, (int)(intptr_t)argument * THREADS + i};
        pthread_create(&threads[i], NULL, work, &workers[i]);
    }
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    return arena_close(a) == 0 ? 0 : 1;
}

static void ten_million_objects_pass_through_rings(void **state)
{
    (void)state;
    pid_t pids[PROCESSES];
    for (int i = 0; i < PROCESSES; i++)
        pids[i] = spawn(process, (void *)(intptr_t)i);
    assert_int_equal(check_of(&d), 0); /* under load, no false alarm */
    for (int i = 0; i < PROCESSES; i++)
        assert_int_equal(reap(pids[i]), 0);
    stat_await(&d, "clients", 0);
    stat_await(&d, "spans", 0);
    assert_int_equal(stat_of(&d, "objects_used"), 0);
    assert_int_equal(stat_of(&d, "objects_cached"), 0);
    assert_int_equal(stat_of(&d, "heap_in_use"), 0);
    assert_int_equal(check_of(&d), 0);
}

/* ---- two frees of one published object ------------------------------------------------------------------------------------ */

enum { ROUNDS = 16384 / LESS, OBJECTS = 64 }; /* a million frees that are refused */
struct duel {
    _Atomic uint64_t round, refused, done[2];
    _Atomic uint64_t objects[OBJECTS];
};
static struct duel *duel;

static void count_refused(void *context, int error, const void *p, const char *message)
{
    (void)context, (void)error, (void)p, (void)message;
    atomic_fetch_add(&duel->refused, 1);
}

static void await(_Atomic uint64_t *counter, uint64_t value)
{
    for (unsigned spins = 0; atomic_load(counter) < value; spins++)
        if (spins > 1000)
            sched_yield();
}

/* Both sides free the same objects in the same order; none is allocated again before both are through. */
static void fight(arena_t *a, int side)
{
    for (uint64_t round = 1; round <= ROUNDS; round++) {
        if (side == 0) {
            await(&duel->done[1], round - 1);
            for (int i = 0; i < OBJECTS; i++)
                duel->objects[i] = arena_ref(a, arena_alloc_flags(a, 32, ARENA_SHARED));
            atomic_store(&duel->round, round);
        } else
            await(&duel->round, round);
        for (int i = 0; i < OBJECTS; i++)
            arena_free(a, arena_ptr(a, duel->objects[i]));
        atomic_store(&duel->done[side], round);
    }
}

static int second_fighter(void *argument)
{
    arena_t *a = open_heap(&d);
    (void)argument;
    arena_on_error(a, count_refused, NULL);
    fight(a, 1);
    return arena_close(a) == 0 ? 0 : 1;
}

static void *second_thread(void *a)
{
    fight(a, 1);
    return NULL;
}

static void of_two_racing_frees_one_is_refused(void **state)
{
    (void)state;
    duel = shared_memory(sizeof *duel);
    pid_t pid = spawn(second_fighter, NULL); /* between processes */
    arena_t *a = open_heap(&d);
    arena_on_error(a, count_refused, NULL);
    fight(a, 0);
    assert_int_equal(reap(pid), 0);
    assert_int_equal(atomic_load(&duel->refused), ROUNDS * OBJECTS);
    memset(duel, 0, sizeof *duel); /* between threads */
    pthread_t thread;
    pthread_create(&thread, NULL, second_thread, a);
    fight(a, 0);
    pthread_join(thread, NULL);
    assert_int_equal(atomic_load(&duel->refused), ROUNDS * OBJECTS);
    arena_close(a);
    stat_await(&d, "spans", 0);
    assert_int_equal(check_of(&d), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_million_objects_pass_through_rings),
        cmocka_unit_test(of_two_racing_frees_one_is_refused),
    };
    return cmocka_run_group_tests(tests, setup, daemon_teardown);
}
