/* Goal: what is kept comes back, and what is let go is told once, in every order. Method: as
 * protocols_test.c; here the threads refill and let go while others wait for the daemon, while the
 * wire is full, while the connection is made anew, and when memory is short. */
#include "client/alloc/keep.h"
#include "client/alloc/trim.h"
#include "tests/explore/suite.h"

enum { A = 1, B = 2 };
#define BIT(process) (1u << (process))

static void *object_p, *object_q;

static void expect(bool ok, const char *what)
{
    if (!ok)
        ex_violation("%s", what);
}

static void allocates(void *process)
{
    world_alloc(*(const unsigned *)process);
}
static const unsigned process_a = A, process_b = B;

static void lets_go(void *unused)
{
    (void)unused;
    lease_release_all(world_client(A));
}

/* ---- two refills of one class ---------------------------------------------------------------- */

static void setup_two_refills(void)
{
    world_setup(&(struct world_options){.clients = 1, .daemon = true});
    world_thread("A refills", A, allocates, (void *)(uintptr_t)&process_a);
    world_thread("A refills too", A, allocates, (void *)(uintptr_t)&process_a);
}

/* A span has three objects, and a refill takes two: one lease is enough for both. */
static void final_two_refills(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == 2, "an object is lost, or there are too many");
    expect(n.owned + n.cached + n.free == 3, "two threads have asked for the same twice");
}

/* ---- a transaction's objects go back while their span does ------------------------------------ */

static void begins_and_aborts(void *unused)
{
    arena_t *a = world_client(A);
    (void)unused;
    arena_tx_begin(a);
    void *p = arena_alloc(a, WORLD_SIZE);
    if (!p)
        ex_violation("no memory");
    arena_tx_abort(a);
    lease_release_all(a);
}

static void setup_transaction(void)
{
    world_setup(&(struct world_options){.clients = 1, .daemon = true, .transactions = true});
    world_thread("A aborts", A, begins_and_aborts, NULL);
    world_thread("A refills", A, allocates, (void *)(uintptr_t)&process_a);
}

static void final_transaction(void)
{
    world_final();
    expect(world_census().owned == 1, "an object is lost, or there are too many");
}

/* ---- the wire is full, and who has queued dies ------------------------------------------------- */

static void lets_go_twice(void *unused)
{
    (void)unused;
    world_free(A, object_p);
    arena_trim(world_client(A)); /* spans, and that it has trimmed: more than the wire takes */
    object_q = world_alloc(A);
    world_free(A, object_q);
    arena_trim(world_client(A));
}

static void setup_full_wire(void)
{
    world_setup(&(struct world_options){
        .clients = 2, .daemon = true, .narrow = true, .single = {[A] = true, [B] = true}});
    world_thread("A", A, lets_go_twice, NULL);
    world_thread("B", B, allocates, (void *)(uintptr_t)&process_b);
    world_become(0);
    object_p = world_alloc(A);
}

static void final_full_wire(void)
{
    world_final();
    expect(world_census().owned == !ex_is_dead(B), "an object is lost, or there are too many");
}

/* ---- let go while the connection is made anew --------------------------------------------------- */

static void asks(void *unused) /* any request: it finds the connection lost, and resumes */
{
    arena_t *a = world_client(A);
    (void)unused;
    conn_lock(a);
    conn_call(a, MSG(ping));
    conn_unlock(a);
}

static void setup_resume(void)
{
    world_setup(&(struct world_options){.clients = 1, .daemon = true});
    world_thread("A asks", A, asks, NULL);
    world_thread("A lets go", A, lets_go, NULL);
    world_become(0);
    for (unsigned n = 0; n < 4; n++) /* two leases: one worked through, one with a FREE object */
        world_alloc(A);
}

static void final_resume(void)
{
    world_final();
    expect(world_census().owned == 4, "an object is lost, or there are too many");
}

/* ---- a large object whose EXTEND is given up ------------------------------------------------------ */

enum { LARGE_PAGES = 3 };
static uint32_t large_first, large_want;

static void extends_and_frees(void *unused)
{
    arena_t *a = world_client(A);
    (void)unused;
    int rc = large_extend(a, large_first, large_want);
    if (rc != 0 && rc != -ENOTCONN && rc != -EINPROGRESS)
        ex_violation("an EXTEND that nothing stands in the way of is answered %d", rc);
    world_board.done[0] = 1;
    if (rc == -ENOTCONN) /* not done, and never will be: it may be published */
        large_let_go(a, large_first);
    arena_free(a, world_heap.base + ((uint64_t)large_first << PAGE_SHIFT));
    world_board.done[1] = 1;
    large_release_all(a); /* it was cached, unless it was in doubt */
    asks(NULL);           /* tells what was let go */
}

static void setup_extend(uint32_t want)
{
    bool fresh;
    large_want = want;
    world_setup(&(struct world_options){.clients = 1, .daemon = true, .give_ups = 1, .single = {[A] = true}});
    world_thread("A", A, extends_and_frees, NULL);
    ex_heap_select(0);
    arena_t *a = world_client(A);
    if (mcentral_cache_large(&world_core, world_core.clients[a->tag], CLASS_LARGE, LARGE_PAGES, 1, &large_first, &fresh) != 1)
        ex_violation("no large span");
    world_become(0);
    a->large.allocates = true;
    a->leases[large_first].list = LEASE_CURRENT;
    a->leases[large_first].span_class = CLASS_LARGE;
    a->leases[large_first].pages = LARGE_PAGES;
    world_heap.words[page_entry_unit(world_heap.pages[large_first]) * UNIT_WORDS] = WORD_OWNED(a->tag);
}
static void setup_grow(void)
{
    setup_extend(LARGE_PAGES + 1);
}
static void setup_shrink(void)
{
    setup_extend(LARGE_PAGES - 1);
}

/* From the answer on, or from when it was given up: what the object is taken to be is surely its own, whatever a daemon that
 * stood still does now. */
static void invariant_extend(void)
{
    arena_t *a = world_client(A);
    uint64_t bytes = (uint64_t)world_heap.spans[large_first].page_count << PAGE_SHIFT;
    world_invariant();
    if (world_board.done[0] && !world_board.done[1] && large_bytes(a, large_first, bytes) > bytes)
        ex_violation("A has %llu bytes, and %llu are the span's", (unsigned long long)large_bytes(a, large_first, bytes),
                     (unsigned long long)bytes);
}

static void final_extend(void)
{
    world_final();
    expect(world_board.done[1], "A's calls have not returned");
    struct world_census n = world_census();
    expect(n.owned == 0 && n.shared == 0, "the object is not freed");
}

/* ---- a hoard, and memory that is short ----------------------------------------------------------- */

static bool is_short(void *unused)
{
    (void)unused;
    return world_heap.header->shortages != 0;
}
static bool has_answered(void *unused)
{
    (void)unused;
    return world_board.done[0] != 0;
}

static void hoards(void *unused)
{
    (void)unused;
    ex_wait(is_short, NULL);
    trim_if_asked(mcache_of(world_client(A))); /* as each slow path begins */
    world_board.done[0] = 1;
}

static void frees_and_hoards(void *unused)
{
    (void)unused;
    world_free(A, object_q);
}

static void is_in_need(void *unused)
{
    (void)unused;
    if (!world_alloc(B)) {
        ex_wait(has_answered, NULL);
        if (!world_alloc(B))
            ex_violation("what another process had kept and given back could not be had");
    }
    world_board.won[0] = 1;
}

static void setup_shortage(void)
{
    static void *all[WORLD_OBJECTS];
    unsigned n = 0;
    world_setup(&(struct world_options){.clients = 2, .daemon = true, .single = {[B] = true}});
    world_thread("A hoards", A, hoards, NULL);
    world_thread("A frees", A, frees_and_hoards, NULL);
    world_thread("B", B, is_in_need, NULL);
    world_become(1);
    object_q = world_alloc(A);
    world_become(0);
    for (; n < WORLD_OBJECTS && (all[n] = world_alloc(A)) != NULL; n++)
        ;
    world_heap.header->shortages = 0; /* what it took to fill the heap was none of this */
    world_client(A)->keep.shortage_seen = 0;
    for (unsigned i = 0; i < 4; i++) /* the hoard: all four are in its magazine, or the stash */
        world_free(A, all[i]);
}

static void final_shortage(void)
{
    world_final();
    expect(world_board.won[0] == 1, "who was in need waits for ever");
}

/* ---- all of them ----------------------------------------------------------------------------- */

enum { TWO_REFILLS, TRANSACTION, FULL_WIRE, RESUME, SHORTAGE, GROW, SHRINK };

static const struct ex_scenario scenarios[] = {
    [TWO_REFILLS] = SCENARIO("two_refills_of_one_class", setup_two_refills, final_two_refills,
                             .order = EX_SC),
    [TRANSACTION] = SCENARIO("an_abort_while_its_span_goes_back", setup_transaction,
                             final_transaction, .order = EX_SC),
    [FULL_WIRE] = SCENARIO("let_go_on_a_full_wire_and_death", setup_full_wire, final_full_wire,
                           .order = EX_SC, .kills = 1, .kill_mask = BIT(A)),
    [RESUME] = SCENARIO("let_go_against_a_resume", setup_resume, final_resume, .order = EX_SC,
                        .kills = 1, .kill_mask = BIT(0)),
    [GROW] = {.name = "a_large_object_whose_growth_is_given_up",
              .setup = setup_grow,
              .final = final_extend,
              .invariant = invariant_extend,
              .killed = world_killed,
              .order = EX_TSO,
              .buffer = 2,
              .kills = 1,
              .kill_mask = BIT(0)},
    [SHRINK] = {.name = "a_large_object_whose_cut_is_given_up",
                .setup = setup_shrink,
                .final = final_extend,
                .invariant = invariant_extend,
                .killed = world_killed,
                .order = EX_TSO,
                .buffer = 2,
                .kills = 1,
                .kill_mask = BIT(0)},
    [SHORTAGE] = SCENARIO("a_hoard_against_a_shortage", setup_shortage, final_shortage,
                          .order = EX_SC),
};

static const struct ex_scenario larger[] = {
    SCENARIO("two_refills_of_one_class_and_a_restart", setup_two_refills, final_two_refills,
             .order = EX_TSO, .buffer = 2),
    SCENARIO("let_go_on_a_full_wire_and_two_deaths", setup_full_wire, final_full_wire,
             .order = EX_TSO, .buffer = 2, .kills = 2, .kill_mask = BIT(A) | BIT(0)),
    SCENARIO("let_go_against_two_resumes", setup_resume, final_resume, .order = EX_TSO,
             .buffer = 2, .kills = 2, .kill_mask = BIT(0)),
    SCENARIO("a_hoard_against_a_shortage_with_buffers", setup_shortage, final_shortage,
             .order = EX_TSO, .buffer = 2),
};

static const struct suite_mutant mutants[] = {
    {TWO_REFILLS, {"refill: without the lock", MUTANT_NO_LOCK, "lease_more", NULL, 0, false}},
    {RESUME,
     {"resume: what is let go behind the list's place is told too", MUTANT_DROP, "returns_list",
      "&r->listed_to", 0, false}},
    {RESUME,
     {"returns: queued without the lock", MUTANT_NO_LOCK, "returns_put", NULL, 0, false}},
    {SHORTAGE,
     {"shortage: it is not counted in the map", MUTANT_DROP, "on_lease",
      "&world_heap.header->shortages", 0, false}},
};

int main(void)
{
    return suite_main(&(struct suite){
        .name = "hoard",
        .scenarios = scenarios,
        .scenario_count = sizeof scenarios / sizeof scenarios[0],
        .larger = larger,
        .larger_count = sizeof larger / sizeof larger[0],
        .mutants = mutants,
        .mutant_count = sizeof mutants / sizeof mutants[0],
    });
}
