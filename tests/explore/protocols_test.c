/* Goal: the small lock-free protocols hold in every interleaving, with store buffers, with kills
 * between any two accesses. Method: each scenario is a few calls of the library's real code by two
 * to four threads, and the real core of the daemon; the explorer takes them through every order.
 * Then the test of the test: each mutant moves or weakens one access, and the explorer must find
 * what that breaks.
 *
 * EXPLORE=all: the larger scenarios too. */
#include "shm/root.h"
#include "tests/explore/suite.h"

enum { DAEMON = 0, A = 1, B = 2, C = 3 };
#define BIT(process) (1u << (process))

static void expect(bool ok, const char *what)
{
    if (!ok)
        ex_violation("%s", what);
}

/* ---- free against reclaim -------------------------------------------------------------------- */

static void *object_p, *object_q;

static void reclaim_a(void *unused)
{
    (void)unused;
    world_free(A, object_q);
    void *r = world_alloc(A);
    arena_publish(world_client(A), r);
    world_holds(r, A, true);
    world_board.done[0] = 1;
}

static void reclaim_b(void *unused)
{
    (void)unused;
    world_free(B, object_p);
    arena_trim(world_client(B));
}

static void setup_free_against_reclaim(void)
{
    world_setup(
        &(struct world_options){.clients = 2, .daemon = true, .single = {[A] = true, [B] = true}});
    world_thread("A", A, reclaim_a, NULL);
    world_thread("B", B, reclaim_b, NULL);
    world_become(0);
    object_p = world_alloc(A);
    object_q = world_alloc(A);
    arena_publish(world_client(A), object_p);
    world_holds(object_p, A, true);
}

static void final_free_against_reclaim(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == 0, "something is owned at the end");
    expect(n.shared <= 1 && n.shared >= world_board.done[0],
           "what was published is not there, or twice");
    expect(ex_is_dead(A) || n.shared == 1, "it was published and is gone");
}

/* ---- two frees and two claims of one published object ---------------------------------------- */

static void race_free(void *argument)
{
    unsigned process = *(const unsigned *)argument;
    if (world_free_try(process, object_p))
        world_board.won[0] += process;
    world_board.done[0]++;
}

static void race_claim(void *argument)
{
    unsigned process = *(const unsigned *)argument;
    if (arena_claim(world_client(process), object_p) == 0)
        world_board.won[1] += process;
    world_board.done[0]++;
}

static const unsigned process_a = A, process_b = B;

static void setup_race(unsigned frees_of_a)
{
    world_setup(&(struct world_options){
        .clients = 2, .quiet_map = true, .single = {[A] = true, [B] = true}});
    world_thread("A frees", A, race_free, (void *)(uintptr_t)&process_a);
    if (frees_of_a > 1)
        world_thread("A frees too", A, race_free, (void *)(uintptr_t)&process_a);
    else
        world_thread("A claims", A, race_claim, (void *)(uintptr_t)&process_a);
    world_thread("B frees", B, race_free, (void *)(uintptr_t)&process_b);
    world_thread("B claims", B, race_claim, (void *)(uintptr_t)&process_b);
    world_become(0);
    object_p = world_alloc(A);
    arena_publish(world_client(A), object_p);
    world_holds(object_p, A, true);
}
static void setup_frees_and_claims(void)
{
    setup_race(1);
}
static void setup_frees_of_two_threads(void)
{
    setup_race(2);
}

static void final_race(void)
{
    uint32_t freed = world_board.won[0], claimed = world_board.won[1];
    uint16_t word = world_word(object_p);
    expect(world_board.done[0] == 4, "a call has not returned");
    expect(freed <= 2 && claimed <= 2, "two frees, or two claims, have succeeded");
    expect(freed || claimed, "nobody has won");
    expect(!freed || !claimed || freed == claimed,
           "one process has freed what another has claimed");
    expect(word == (freed ? WORD_CACHED(world_client(freed)->tag)
                          : WORD_OWNED(world_client(claimed)->tag)),
           "the word is not the winner's");
}

/* ---- flush and hint against sweep ------------------------------------------------------------ */

static void flush_a(void *unused)
{
    (void)unused;
    world_free(A, object_p);
    arena_trim(world_client(A));
    world_free(A, object_q);
    arena_trim(world_client(A));
}

static void flush_b(void *unused)
{
    (void)unused;
    world_free(B, object_q);
    arena_trim(world_client(B));
}

static void flush_a_one(void *unused)
{
    (void)unused;
    world_free(A, object_p);
    arena_trim(world_client(A));
}

static void setup_sweep(bool two)
{
    world_setup(&(struct world_options){
        .clients = 2, .daemon = true, .sweeps = two ? 1 : 2, .single = {[A] = true, [B] = true}});
    world_thread("A", A, two ? flush_a_one : flush_a, NULL);
    if (two)
        world_thread("B", B, flush_b, NULL);
    world_become(0);
    object_p = world_alloc(A);
    object_q = world_alloc(A);
    arena_publish(world_client(A), object_q);
    if (two)
        world_holds(object_q, A, true);
    lease_release_all(world_client(A));
}
static void setup_flush_against_sweep(void)
{
    setup_sweep(false);
}
static void setup_two_flushes_against_sweep(void)
{
    setup_sweep(true);
}

static void final_sweep(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == 0 && n.shared <= ex_is_dead(B), "not all was freed");
}

/* ---- lease and let-go between threads -------------------------------------------------------- */

static void lease_refills(void *unused)
{
    (void)unused;
    world_alloc(A);
    world_alloc(A);
}

static void lease_refills_once(void *unused)
{
    (void)unused;
    world_alloc(A);
}

static void lease_lets_go(void *unused)
{
    (void)unused;
    lease_release_all(world_client(A));
}

static void lease_flushes_and_lets_go(void *unused)
{
    (void)unused;
    world_free(A, object_p);
    arena_trim(world_client(A));
}

static void lease_b(void *unused)
{
    (void)unused;
    world_alloc(B);
}

static void setup_leases(bool flushes, void (*refills)(void *))
{
    world_setup(&(struct world_options){.clients = 2, .daemon = true, .single = {[B] = true}});
    world_thread("A refills", A, refills, NULL);
    world_thread("A lets go", A, flushes ? lease_flushes_and_lets_go : lease_lets_go, NULL);
    world_thread("B refills", B, lease_b, NULL);
    world_become(1);
    object_p = world_alloc(A); /* a lease with a FREE object; one is in the magazine */
    if (flushes)
        arena_publish(world_client(A), object_p); /* so that its free is a swap */
}
/* One process alone: what its locks are for. */
static void setup_lease_of_one_process(void)
{
    world_setup(&(struct world_options){.clients = 1, .daemon = true});
    world_thread("A refills", A, lease_refills_once, NULL);
    world_thread("A lets go", A, lease_lets_go, NULL);
    world_become(1);
    object_p = world_alloc(A); /* a lease with a FREE object; one is in the magazine */
}
static void setup_lease_and_let_go(void)
{
    setup_leases(false, lease_refills);
}
static void setup_lease_flush_and_let_go(void)
{
    setup_leases(true, lease_refills);
}
static void setup_lease_flush_and_let_go_once(void)
{
    setup_leases(true, lease_refills_once);
}

static void final_leases_of(unsigned owned_by_a)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == owned_by_a * !ex_is_dead(A) + !ex_is_dead(B),
           "an object is lost, or there are too many");
}
static void final_leases_of_one_process(void)
{
    world_final();
    expect(world_census().owned == 2, "an object is lost, or there are too many");
}
static void final_leases(void)
{
    final_leases_of(3);
}
static void final_leases_flush(void)
{
    final_leases_of(2);
}
static void final_leases_once(void)
{
    final_leases_of(1);
}

/* ---- commit against death -------------------------------------------------------------------- */

static void commit_a(void *unused)
{
    arena_t *a = world_client(A);
    (void)unused;
    arena_tx_begin(a);
    object_p = world_alloc(A);
    object_q = world_alloc(A);
    world_holds(object_p, A, true);
    world_holds(object_q, A, true); /* what becomes of them is looked at in the words */
    if (arena_tx_commit(a, "root", 0, arena_ref(a, object_p)) == 0)
        world_board.done[0] = 1;
}

static void commit_b(void *unused)
{
    uint64_t ref;
    (void)unused;
    if (root_lookup(&world_heap, "root", &ref) != 0)
        return;
    if (arena_claim(world_client(B), arena_ptr(world_client(B), ref)) == 0)
        world_board.won[0] = 1;
    else
        ex_violation("what a root shows cannot be claimed");
}

static void setup_commit(void)
{
    world_setup(&(struct world_options){
        .clients = 2, .daemon = true, .transactions = true, .single = {[A] = true, [B] = true}});
    world_thread("A", A, commit_a, NULL);
    world_thread("B", B, commit_b, NULL);
    world_become(0);
    void *p = world_alloc(A); /* a lease, and both of its objects in the magazine */
    world_free(A, p);
}

static void final_commit(void)
{
    uint64_t ref = 0;
    world_final();
    struct world_census n = world_census();
    bool has_root = root_lookup(&world_heap, "root", &ref) == 0;
    unsigned claimed = world_board.won[0] && !ex_is_dead(B);
    if (world_board.won[0] && ex_is_dead(B))
        n.shared++; /* it had claimed, and died: freed */
    if (has_root) {
        expect(n.shared + claimed == 2, "a root, and not both of its objects");
        expect(n.owned == claimed, "something is owned and was committed, or a claim was overrun");
    } else {
        expect(n.shared == 0, "no root, and an object that was published");
        expect(!world_board.done[0] && ex_is_dead(A), "a commit that was answered is gone");
        expect(n.owned == 0, "a dead transaction's object was not freed");
    }
}

/* ---- a claimer that pauses while a committed tag rests and runs again ------------------------- */

/* A commits p, and frees it if B has not claimed it; then the tag of that commit runs again, and p is
 * allocated in it. One of the two has p. */
static void rest_a(void *unused)
{
    arena_t *a = world_client(A);
    (void)unused;
    if (arena_tx_begin(a) != 0 || arena_alloc(a, WORLD_SIZE) != object_p ||
        arena_tx_commit(a, NULL, 0, 0) != 0)
        ex_violation("a transaction of one object does not work");
    if (!world_free_try(A, object_p))
        return;
    world_board.won[0] = 1;
    if (arena_tx_begin(a) != 0 || arena_tx_commit(a, NULL, 0, 0) != 0) /* it tells that the first is resolved */
        ex_violation("a transaction of nothing does not work");
    if (arena_tx_begin(a) != 0)
        return; /* that tag rests, and there is no other */
    world_board.done[0] = 1;
    if (arena_alloc(a, WORLD_SIZE) != object_p)
        ex_violation("the place is not used again at once");
    arena_tx_abort(a);
}

static void rest_b(void *unused)
{
    (void)unused;
    if (arena_claim(world_client(B), object_p) == 0)
        world_board.won[1] = 1;
}

static void setup_rest(void)
{
    world_setup(&(struct world_options){.clients = 2,
                                        .daemon = true,
                                        .quiet_map = true,
                                        .transactions = true,
                                        .single = {[A] = true, [B] = true}});
    world_thread("A", A, rest_a, NULL);
    world_thread("B", B, rest_b, NULL);
    world_become(0);
    object_p = arena_alloc(world_client(A), WORLD_SIZE);
    arena_free(world_client(A), object_p);
}

static void final_rest(void)
{
    world_final();
    expect(world_board.won[0] + world_board.won[1] == 1 || ex_is_dead(B) || ex_is_dead(A),
           "one object was freed by one and claimed by another, or by nobody");
    expect(!world_board.done[0] || world_word(object_p) == WORD_CACHED(world_client(A)->tag),
           "an object of an open transaction was taken");
}

/* ---- moves of a root against death ----------------------------------------------------------- */

static int root_cas(unsigned process, uint64_t expected,
                    const void *desired) /* as client/own/roots.c */
{
    arena_t *a = world_client(process);
    conn_lock(a);
    fence_release();
    int rc = conn_call(a, MSG(root, .name = "root", .mode = ROOT_MODE_CAS, .expected = expected, .desired = arena_ref(a, desired)));
    conn_unlock(a);
    return rc;
}

/* The root is A's p, then B's q if B has seen p: so A's cas has succeeded, whatever it finds when
 * it comes back. */
static void root_a(void *unused)
{
    (void)unused;
    if (root_cas(A, 0, object_p) != 0)
        ex_violation("a root was moved, and who moved it was told that it was not");
    world_board.done[0] = 1;
}

static void root_b(void *unused)
{
    uint64_t ref;
    (void)unused;
    if (root_lookup(&world_heap, "root", &ref) != 0)
        return;
    expect(ref == arena_ref(world_client(B), object_p), "the root is another object");
    if (root_cas(B, ref, object_q) != 0)
        ex_violation("a root could not be moved that nobody else moves, or twice");
    world_board.done[1] = 1;
}

static void setup_roots(void)
{
    world_setup(&(struct world_options){
        .clients = 2, .daemon = true, .quiet_map = true, .single = {[A] = true, [B] = true}});
    world_thread("A", A, root_a, NULL);
    world_thread("B", B, root_b, NULL);
    world_become(0);
    object_p = world_alloc(A);
    object_q = world_alloc(A);
    arena_publish(world_client(A), object_p);
    arena_publish(world_client(A), object_q);
}

static void final_roots(void)
{
    uint64_t ref = 0;
    world_final();
    int rc = root_lookup(&world_heap, "root", &ref);
    expect(world_board.done[0] || ex_is_dead(A), "A's call has not returned");
    expect(rc == 0 || !world_board.done[0], "a root that was set is not there");
    if (world_board.done[1])
        expect(rc == 0 && ref == arena_ref(world_client(B), object_q),
               "the last move of a root was undone");
}

/* ---- resume against reclaim ------------------------------------------------------------------ */

static void resume_asks(void *unused) /* any request: it finds the connection lost, and resumes */
{
    arena_t *a = world_client(A);
    (void)unused;
    conn_lock(a);
    conn_call(a, MSG(ping));
    conn_unlock(a);
}

static void resume_allocates(void *unused)
{
    (void)unused;
    world_alloc(A);
}

static void resume_b(void *unused)
{
    (void)unused;
    world_alloc(B);
    world_alloc(B);
}

static void resume_b_once(void *unused)
{
    (void)unused;
    world_alloc(B);
}

static void setup_resume(void)
{
    world_setup(&(struct world_options){.clients = 2, .daemon = true, .single = {[B] = true}});
    world_thread("A asks", A, resume_asks, NULL);
    world_thread("A allocates", A, resume_allocates, NULL);
    world_thread("B", B, resume_b_once, NULL);
    world_become(0);
    for (unsigned n = 0; n < 3; n++) /* a lease that is worked through */
        world_alloc(A);
    mcache_flush_all(mcache_of(world_client(A))); /* nothing; but its capacity is small again */
    world_alloc(A);                               /* and one with a FREE object */
    world_become(2);
    world_alloc(B);
}

static void final_resume(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == 5u * !ex_is_dead(A) + 2u * !ex_is_dead(B),
           "an object is lost, or there are too many");
}

/* Spans on nonempty, which A and B lease; A's connection is found lost by its refill. */
static void setup_resume_refill(void)
{
    world_setup(
        &(struct world_options){.clients = 2, .daemon = true, .single = {[A] = true, [B] = true}});
    world_thread("A", A, resume_allocates, NULL);
    world_thread("B", B, resume_b, NULL);
    world_become(1);
    void *p = world_alloc(B), *q = world_alloc(B);
    arena_publish(world_client(B), q);
    world_holds(q, B, true);
    world_free(B, p);
    arena_trim(world_client(B));
}

static void final_resume_refill(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == !ex_is_dead(A) + 2u * !ex_is_dead(B),
           "an object is lost, or there are too many");
}

/* ---- cutting and uncutting against the daemon's death ---------------------------------------- */

static void cut_a(void *unused)
{
    (void)unused;
    world_free(A, world_alloc(A));
    arena_trim(world_client(A));
}

static void setup_cut(void)
{
    world_setup(&(struct world_options){.clients = 1, .daemon = true, .single = {[A] = true}});
    world_thread("A", A, cut_a, NULL);
}

static void final_cut(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned + n.shared + n.cached == 0, "an object is left");
    expect(n.free == 0 || !world_is_connected(A),
           "a span is left"); /* what it let go is settled when it resumes */
}

/* ---- requests that are given up, and a daemon that stands still ------------------------------- */

/* The daemon stands still for as long as it likes between any two steps: before it looks at a
 * request, in the middle of it, before it answers. A's patience is at an end whenever no answer is
 * there, once. What A was told holds in every state from then on. */

static enum asked { ASK_ROOT, ASK_MORE, ASK_FEWER, ASK_MODE } asked;
static uint32_t large_first;
enum { LARGE_PAGES = 2 };

/* What the root leads to; 0: nothing. `expected` while it is written: a daemon that was started again
 * does anew what its predecessor may have done. */
static uint64_t root_now(uint64_t expected)
{
    uint64_t ref = 0;
    int rc = root_lookup(&world_heap, "root", &ref);
    return rc == 0 ? ref : rc == -EAGAIN ? expected : 0;
}

static uint64_t asked_now(uint64_t expected) /* as the map has it */
{
    if (asked == ASK_ROOT)
        return root_now(expected);
    if (asked == ASK_MODE)
        return load_relaxed(&world_heap.tags[world_client(A)->tag].gc_mode);
    return load_relaxed(&world_heap.spans[large_first].page_count);
}

static uint64_t asked_for(void)
{
    return asked == ASK_ROOT    ? arena_ref(world_client(A), object_p)
           : asked == ASK_MODE  ? GC_SAFEPOINT
           : asked == ASK_MORE  ? LARGE_PAGES + 1
                                : LARGE_PAGES - 1;
}

static int ask(struct msg request)
{
    arena_t *a = world_client(A);
    conn_lock(a);
    int rc = conn_call(a, request);
    conn_unlock(a);
    return rc;
}

static void give_up_a(void *unused)
{
    uint64_t before = asked == ASK_ROOT || asked == ASK_MODE ? 0 : LARGE_PAGES;
    int rc = asked == ASK_ROOT   ? root_cas(A, 0, object_p)
             : asked == ASK_MODE ? ask(MSG(safepoint, .gc_mode = asked_for()))
                                 : ask(MSG(extend, .first = large_first, .pages = (uint32_t)asked_for()));
    (void)unused;
    if (rc != 0 && rc != -ENOTCONN && rc != -EINPROGRESS)
        ex_violation("a request that nothing stands in the way of is answered %d", rc);
    world_board.ref[0] = rc == 0 ? asked_for() : before;
    if (rc == -EINPROGRESS) { /* in doubt: the next call that reaches a daemon settles it */
        while ((rc = ask(MSG(ping))) == -ENOTCONN)
            ;
        expect(rc == 0, "a call that settles is refused");
        world_board.ref[0] = asked_now(UINT64_MAX);
        expect(world_board.ref[0] == before || world_board.ref[0] == asked_for(),
               "it is neither as it was nor as it was to be");
    }
    world_board.done[0] = 1;
}

static void invariant_given_up(void)
{
    world_invariant();
    uint64_t told = world_board.ref[0], now = asked_now(told);
    if (world_board.done[0] && now != told)
        ex_violation("what A was told to be %llu is %llu", (unsigned long long)told,
                     (unsigned long long)now);
}

static void setup_given_up(enum asked what)
{
    bool large = what == ASK_MORE || what == ASK_FEWER, fresh;
    asked = what;
    large_first = 0;
    world_setup(&(struct world_options){.clients = 1,
                                        .daemon = true,
                                        .quiet_map = !large,
                                        .give_ups = 1,
                                        .single = {[A] = true}});
    world_thread("A", A, give_up_a, NULL);
    world_become(0);
    arena_t *a = world_client(A);
    if (what == ASK_ROOT) {
        object_p = world_alloc(A);
        arena_publish(a, object_p);
    }
    if (!large)
        return;
    ex_heap_select(DAEMON);
    struct client *client = world_core.clients[a->tag];
    if (mcentral_cache_large(&world_core, client, CLASS_LARGE, LARGE_PAGES, 1, &large_first,
                             &fresh) != 1)
        ex_violation("no large span");
    ex_heap_select(A);
    a->leases[large_first].list = LEASE_CURRENT;
    a->leases[large_first].span_class = CLASS_LARGE;
    world_heap.words[page_entry_unit(world_heap.pages[large_first]) * UNIT_WORDS] =
        WORD_OWNED(a->tag);
}
static void setup_root_given_up(void)
{
    setup_given_up(ASK_ROOT);
}
static void setup_more_given_up(void)
{
    setup_given_up(ASK_MORE);
}
static void setup_fewer_given_up(void)
{
    setup_given_up(ASK_FEWER);
}
static void setup_mode_given_up(void)
{
    setup_given_up(ASK_MODE);
}

static void final_given_up(void)
{
    world_final();
    expect(world_board.done[0], "A's call has not returned");
}

/* The same of a commit, by the library's own transactions. */
static void commit_given_up_a(void *unused)
{
    arena_t *a = world_client(A);
    int rc;
    (void)unused;
    arena_tx_begin(a);
    object_p = world_alloc(A);
    world_holds(object_p, A, true);
    rc = arena_tx_commit(a, "root", 0, arena_ref(a, object_p));
    if (rc == -ENOTCONN) /* not done, so there is nothing to ask */
        expect(arena_tx_abort(a) == 0, "what was given up cannot be aborted");
    else if (rc == -EINPROGRESS) {
        while ((rc = arena_tx_abort(a)) == -ENOTCONN)
            ;
        expect(rc == 0 || rc == -EALREADY, "a commit in doubt is not settled");
        rc = rc == 0 ? -ENOTCONN : 0;
    }
    world_board.won[0] = rc == 0;
    world_board.done[0] = 1;
}

static void invariant_commit_given_up(void)
{
    world_invariant();
    if (world_board.done[0] && (root_now(world_board.won[0]) != 0) != world_board.won[0])
        ex_violation("a commit was %s, its root says otherwise",
                     world_board.won[0] ? "done" : "not done");
}

static void setup_commit_given_up(void)
{
    world_setup(&(struct world_options){.clients = 1,
                                        .daemon = true,
                                        .transactions = true,
                                        .give_ups = 1,
                                        .single = {[A] = true}});
    world_thread("A", A, commit_given_up_a, NULL);
    world_become(0);
    world_free(A, world_alloc(A)); /* a lease, and both of its objects in the magazine */
}

static void final_commit_given_up(void)
{
    world_final();
    struct world_census n = world_census();
    expect(world_board.done[0], "A's call has not returned");
    expect(n.owned == 0, "something is owned");
    expect(n.shared == world_board.won[0],
           "an object is published and was not to be, or the other way round");
}

/* A refill that is given up: what it was granted comes back, and is nobody's twice. */
static void refill_given_up_a(void *unused)
{
    (void)unused;
    void *p;
    while (!(p = world_alloc(A)))
        ;
    world_free(A, p);
    arena_trim(world_client(A));
}

static void refill_given_up_b(void *unused)
{
    (void)unused;
    while (!world_alloc(B))
        ;
}

static void setup_refill_given_up(void)
{
    world_setup(&(struct world_options){
        .clients = 2, .daemon = true, .give_ups = 1, .single = {[A] = true, [B] = true}});
    world_thread("A", A, refill_given_up_a, NULL);
    world_thread("B", B, refill_given_up_b, NULL);
}

static void final_refill_given_up(void)
{
    world_final();
    struct world_census n = world_census();
    expect(n.owned == 1, "an object is lost, or there are too many");
}

/* ---- all of them ----------------------------------------------------------------------------- */

/* With stores that wait, and a daemon that may die and be started again. */
#define GIVEN_UP(name_, setup_, invariant_, final_)                                                \
    {                                                                                              \
        .name = name_, .setup = setup_, .final = final_, .invariant = invariant_,                  \
        .killed = world_killed, .order = EX_TSO, .buffer = 2, .kills = 1,                          \
        .kill_mask = BIT(DAEMON)                                                                   \
    }

enum {
    RECLAIM,
    RACE,
    RACE_THREADS,
    SWEEP,
    SWEEP_TWO,
    LEASE_ONE,
    LEASE,
    LEASE_FLUSH,
    COMMIT,
    REST,
    ROOT,
    RESUME,
    RESUME_REFILL,
    CUT,
    GIVEN_ROOT,
    GIVEN_MORE,
    GIVEN_FEWER,
    GIVEN_MODE,
    GIVEN_COMMIT,
    GIVEN_REFILL
};

/* `make test`: each of them to its end. */
static const struct ex_scenario scenarios[] = {
    [RECLAIM] =
        SCENARIO("free_against_reclaim", setup_free_against_reclaim, final_free_against_reclaim,
                 .order = EX_WEAK, .buffer = 3, .kills = 1, .kill_mask = BIT(A)),
    [RACE] = SCENARIO("two_frees_and_two_claims_of_one_object", setup_frees_and_claims, final_race,
                      .order = EX_WEAK, .buffer = 3),
    [RACE_THREADS] =
        SCENARIO("frees_by_two_threads_and_another_process", setup_frees_of_two_threads, final_race,
                 .order = EX_WEAK, .buffer = 3),
    [SWEEP] = SCENARIO("flush_and_hint_against_sweep", setup_flush_against_sweep, final_sweep,
                       .order = EX_WEAK, .buffer = 3),
    [SWEEP_TWO] =
        SCENARIO("two_flushes_against_sweep_and_death", setup_two_flushes_against_sweep,
                 final_sweep, .order = EX_WEAK, .buffer = 2, .kills = 1, .kill_mask = BIT(B)),
    [LEASE_ONE] = SCENARIO("lease_and_let_go_of_one_process", setup_lease_of_one_process,
                           final_leases_of_one_process, .order = EX_SC),
    [LEASE] = SCENARIO("lease_and_let_go_between_threads", setup_lease_and_let_go, final_leases,
                       .order = EX_SC),
    [LEASE_FLUSH] = SCENARIO("lease_flush_and_let_go_between_threads",
                             setup_lease_flush_and_let_go_once, final_leases_once, .order = EX_SC),
    [COMMIT] = SCENARIO("commit_against_death", setup_commit, final_commit, .order = EX_TSO,
                        .buffer = 2, .kills = 1, .kill_mask = BIT(A) | BIT(DAEMON)),
    [REST] = SCENARIO("a_claimer_pauses_while_a_committed_tag_runs_again", setup_rest, final_rest,
                      .order = EX_TSO, .buffer = 2, .kills = 1, .kill_mask = BIT(B)),
    [ROOT] = SCENARIO("moves_of_a_root_against_death", setup_roots, final_roots, .order = EX_TSO,
                      .buffer = 2, .kills = 1, .kill_mask = BIT(A) | BIT(DAEMON)),
    [RESUME] = SCENARIO("resume_against_reclaim", setup_resume, final_resume, .order = EX_SC,
                        .kills = 2, .kill_mask = BIT(DAEMON) | BIT(B)),
    [RESUME_REFILL] =
        SCENARIO("refills_against_a_restart", setup_resume_refill, final_resume_refill,
                 .order = EX_SC, .kills = 1, .kill_mask = BIT(DAEMON)),
    [CUT] = SCENARIO("cut_and_uncut_against_a_restart", setup_cut, final_cut, .order = EX_TSO,
                     .buffer = 2, .kills = 2, .kill_mask = BIT(DAEMON)),
    [GIVEN_ROOT] = GIVEN_UP("a_move_of_a_root_is_given_up", setup_root_given_up, invariant_given_up,
                            final_given_up),
    [GIVEN_MORE] = GIVEN_UP("an_extension_is_given_up", setup_more_given_up, invariant_given_up,
                            final_given_up),
    [GIVEN_FEWER] = GIVEN_UP("a_cut_is_given_up", setup_fewer_given_up, invariant_given_up,
                             final_given_up),
    [GIVEN_MODE] = GIVEN_UP("a_safepoint_is_given_up", setup_mode_given_up, invariant_given_up,
                            final_given_up),
    [GIVEN_COMMIT] = GIVEN_UP("a_commit_is_given_up", setup_commit_given_up,
                              invariant_commit_given_up, final_commit_given_up),
    [GIVEN_REFILL] = SCENARIO("a_refill_is_given_up", setup_refill_given_up, final_refill_given_up,
                              .order = EX_SC),
};

/* EXPLORE=all */
static const struct ex_scenario larger[] = {
    SCENARIO("free_against_reclaim_all_may_die", setup_free_against_reclaim,
             final_free_against_reclaim, .order = EX_WEAK, .buffer = 3, .kills = 2,
             .kill_mask = BIT(A) | BIT(DAEMON)),
    SCENARIO("lease_flush_and_let_go_with_buffers", setup_lease_flush_and_let_go,
             final_leases_flush, .order = EX_TSO, .buffer = 2),
    SCENARIO("lease_and_let_go_and_death", setup_lease_and_let_go, final_leases, .order = EX_TSO,
             .buffer = 2, .kills = 1, .kill_mask = BIT(A) | BIT(B)),
    SCENARIO("commit_against_two_deaths", setup_commit, final_commit, .order = EX_WEAK, .buffer = 3,
             .kills = 2, .kill_mask = BIT(A) | BIT(DAEMON) | BIT(B)),
    SCENARIO("moves_of_a_root_against_two_deaths", setup_roots, final_roots, .order = EX_TSO,
             .buffer = 2, .kills = 2, .kill_mask = BIT(A) | BIT(DAEMON) | BIT(B)),
    SCENARIO("refills_against_a_restart_with_buffers", setup_resume_refill, final_resume_refill,
             .order = EX_TSO, .buffer = 2, .kills = 1, .kill_mask = BIT(DAEMON)),
    SCENARIO("resume_against_reclaim_two_restarts", setup_resume, final_resume, .order = EX_TSO,
             .buffer = 2, .kills = 3, .kill_mask = BIT(DAEMON) | BIT(B)),
};

static const struct suite_mutant mutants[] = {
    {RECLAIM,
     {"free: CACHED is stored after slot and count", MUTANT_DELAY, "arena_inline_push", NULL, 2,
      false}},
    {RECLAIM, {"alloc: OWNED is stored later", MUTANT_DELAY, "arena_inline_pop", NULL, 4, false}},
    {RECLAIM, {"flush: the hint comes before FREE", MUTANT_DELAY, "word_flush", "word", 1, false}},
    {RECLAIM,
     {"reclaim: the client's state changes after its tag is looked at", MUTANT_DELAY,
      "tag_set_state", NULL, 3, false}},
    {RACE,
     {"free and claim: a plain store on a SHARED word", MUTANT_PLAIN, "word_swap", "word", 0,
      false}},
    {RACE,
     {"free against claim: a plain store on a SHARED word", MUTANT_PLAIN, "arena_inline_push",
      "word", 0, false}},
    {RACE_THREADS,
     {"free: a plain store on a SHARED word", MUTANT_PLAIN, "arena_inline_push", "word", 0, false}},
    {SWEEP, {"flush: the hint comes before FREE", MUTANT_DELAY, "word_flush", "word", 1, false}},
    {SWEEP, {"flush: no hint", MUTANT_DROP, "hint_set", "hint", 0, false}},
    {SWEEP,
     {"flush: the hint is skipped if it is set", MUTANT_SKIP_IF_SET, "hint_set", "hint", 0, false}},
    {SWEEP,
     {"sweep: the hint is cleared by a plain store", MUTANT_PLAIN, "hint_clear", "hint", 0, false}},
    {SWEEP_TWO,
     {"flush: the hint is skipped if it is set", MUTANT_SKIP_IF_SET, "hint_set", "hint", 0, false}},
    {LEASE_ONE, {"refill: without the lock", MUTANT_NO_LOCK, "lease_refill", NULL, 0, false}},
    {LEASE_ONE, {"let go: without the lock", MUTANT_NO_LOCK, "lease_release_all", NULL, 0, false}},
    {COMMIT, {"commit: no redo record", MUTANT_DROP, "redo_begin", "&redo->valid", 0, false}},
    {COMMIT,
     {"commit: the redo record becomes valid too late", MUTANT_DELAY, "redo_begin", "&redo->valid",
      2, false}},
    {COMMIT,
     {"commit: COMMITTED is stored after the root", MUTANT_DELAY, "tag_set_state", NULL, 20, true}},
    {COMMIT,
     {"commit: the log's words are turned by plain stores", MUTANT_PLAIN, "word_swap", "word", 0,
      false}},
    {REST,
     {"claim: no hazard is set", MUTANT_DROP, "hazard_set", "slot", 0, true}},
    {ROOT, {"root: no redo record", MUTANT_DROP, "redo_begin", "&redo->valid", 0, false}},
    {ROOT,
     {"root: done is not stored", MUTANT_DROP, "tag_set_done", "&h->tags[tag].done",
      0, false}},
    {ROOT,
     {"root: done is stored after the redo record", MUTANT_DELAY, "tag_set_done",
      "&h->tags[tag].done", 2, false}},
    {RESUME,
     {"resume: leases are taken back before all are listed", MUTANT_BACKWARDS, "on_resume", NULL, 0,
      false}},
    {RESUME_REFILL,
     {"lease: the lessee is stored after the grant was sent", MUTANT_DELAY, "span_set_lessee",
      "&h->spans[first].lessee", 1, false}},
    {CUT,
     {"cut: an entry is stored after the record", MUTANT_DELAY, "span_write_entries",
      "&h->pages[first + i]", 7, false}},
    {CUT,
     {"uncut: the record goes after the entries", MUTANT_DELAY, "span_clear", "&span->span_class",
      1, false}},
    {GIVEN_ROOT,
     {"root given up: the ticket is not taken", MUTANT_BLIND, "ticket_take", NULL, 0, true}},
    {GIVEN_ROOT,
     {"root given up: the ticket is taken by a plain store", MUTANT_PLAIN, "ticket_take", NULL, 0,
      true}},
    {GIVEN_ROOT,
     {"root given up: it is not looked whether it was taken back in time", MUTANT_BLIND,
      "ticket_cancel", NULL, 0, true}},
    {GIVEN_ROOT,
     {"root given up: it is not taken back", MUTANT_BACKWARDS, "give_up", NULL, 0, true}},
    {GIVEN_ROOT,
     {"root given up: done is not stored", MUTANT_DROP, "tag_set_done", "&h->tags[tag].done",
      0, true}},
    {GIVEN_MORE,
     {"extension given up: the ticket is not taken", MUTANT_BLIND, "ticket_take", NULL, 0, true}},
    {GIVEN_MORE,
     {"extension given up: it is not taken back", MUTANT_BACKWARDS, "give_up", NULL, 0, true}},
    {GIVEN_FEWER,
     {"cut given up: the ticket is not taken", MUTANT_BLIND, "ticket_take", NULL, 0, true}},
    {GIVEN_FEWER,
     {"cut given up: it is not taken back", MUTANT_BACKWARDS, "give_up", NULL, 0, true}},
    {GIVEN_FEWER,
     {"cut given up: only its last repetition is looked for", MUTANT_BACKWARDS, "was_done", NULL, 0,
      false}},
    {GIVEN_MODE,
     {"safepoint given up: the ticket is not taken", MUTANT_BLIND, "ticket_take", NULL, 0, true}},
    {GIVEN_MODE,
     {"safepoint given up: it is not taken back", MUTANT_BACKWARDS, "give_up", NULL, 0, true}},
    {GIVEN_COMMIT,
     {"commit given up: the ticket is not taken", MUTANT_BLIND, "ticket_take", NULL, 0, true}},
    {GIVEN_COMMIT,
     {"commit given up: it is not taken back", MUTANT_BACKWARDS, "give_up", NULL, 0, true}},
    {GIVEN_COMMIT,
     {"commit given up: it is done when its tag says so", MUTANT_BACKWARDS, "has_ended", NULL, 0,
      false}},
};

int main(void)
{
    return suite_main(&(struct suite){
        .name = "protocols",
        .scenarios = scenarios,
        .scenario_count = sizeof scenarios / sizeof scenarios[0],
        .larger = larger,
        .larger_count = sizeof larger / sizeof larger[0],
        .mutants = mutants,
        .mutant_count = sizeof mutants / sizeof mutants[0],
    });
}
