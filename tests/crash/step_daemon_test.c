/* Goal: the daemon may be killed at any instruction, and the next one finds the heap whole.
 *
 * Method: the daemon's core runs over regions that outlive it, in a process that is single-stepped
 * through one operation. What a kill leaves is what the regions hold at that instruction; after
 * each instruction they are compared with what they held before. Where no byte has changed a kill
 * leaves the same, so those points are one (merged). For each that differs a new core is started
 * over a copy, works off what is pending, and is checked: every invariant of the heap; published
 * objects, live clients' words and leases as before; a transaction and its root, a root and its
 * client's done both or neither; no page lost. Some points are killed in earnest, to see that
 * the regions then hold the same. And the rebuild is stepped itself, over regions that were left in
 * the middle of an operation.
 *
 * CRASH=all: the rebuild over every such point, not a sample; SEED= chooses the sample. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ucontext.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

#include "proto/msg.h"
#include "shm/root.h"
#include "tests/crash/step.h"
#include "tests/daemon/fixture.h"

enum {
    ROOTS = 16,
    CLASS = SPAN_CLASS(38, 0), /* six objects a span of one page */
    OTHER = SPAN_CLASS(44, 0),
    TAGS_LOOKED_AT = 16,
    WORDS_LOOKED_AT = 4096,
    USED_MAX = 32768,
    SHARED_MAX = 64,
    REQUEST_BEFORE = 71, /* ids of A's ROOT requests: in the begin, and the operation's */
    REQUEST = 72,
};

/* ---- regions --------------------------------------------------------------------------------- */

struct regions_at {
    uint8_t *map, *state;
    struct heap heap;
};
static struct geometry geometry;
static struct regions_at live, copy;     /* shared with the stepped process; the checker's */
static uint8_t *whole_map, *whole_state; /* as they were when the operation began */
static struct used {
    uint64_t at, bytes;
    bool in_state;
} used[11];
static unsigned used_count;
static size_t used_bytes;

static void regions_new(struct regions_at *r)
{
    r->map = shared_memory(geometry.map_bytes);
    r->state = shared_memory(geometry.state_bytes);
    heap_view(&r->heap, &geometry, NULL, r->map, r->state);
}

/* What an operation of this test can write, and is compared after each step. That nothing else was
 * written is looked at when it is over. */
static void use(uint64_t at, uint64_t bytes, bool in_state)
{
    used[used_count++] = (struct used){at, bytes, in_state};
    used_bytes += bytes;
}

static void save(const struct regions_at *r, uint8_t *out)
{
    for (unsigned i = 0; i < used_count; out += used[i].bytes, i++)
        memcpy(out, (used[i].in_state ? r->state : r->map) + used[i].at, used[i].bytes);
}
static void load(struct regions_at *r, const uint8_t *in)
{
    for (unsigned i = 0; i < used_count; in += used[i].bytes, i++)
        memcpy((used[i].in_state ? r->state : r->map) + used[i].at, in, used[i].bytes);
}
static bool same(const struct regions_at *r, const uint8_t *in)
{
    for (unsigned i = 0; i < used_count; in += used[i].bytes, i++)
        if (memcmp((used[i].in_state ? r->state : r->map) + used[i].at, in, used[i].bytes) != 0)
            return false;
    return true;
}

static void nothing_else_was_written(const char *name)
{
    for (unsigned i = 0; i < used_count; i++)
        memcpy((used[i].in_state ? whole_state : whole_map) + used[i].at,
               (used[i].in_state ? live.state : live.map) + used[i].at, used[i].bytes);
    if (memcmp(whole_map, live.map, geometry.map_bytes) != 0 ||
        memcmp(whole_state, live.state, geometry.state_bytes) != 0)
        fail_msg("%s has written beyond what is compared after each step", name);
}

/* ---- a core over them ------------------------------------------------------------------------ */

static struct later later = {.allowance = 1 << 20};

static int start(struct core *core, struct regions_at *r, char *why)
{
    static const struct limits none;
    const struct backing backing = later_backing(&later);
    later.count = 0;
    return core_start(core, &r->heap, &backing, &none, 1, why);
}

static void answer(struct core *core)
{
    while (later.count)
        later_answer(core, later_take(&later, 0), 0);
}

/* ---- the heap that each operation begins with ------------------------------------------------ */

static unsigned tag_a, tag_b, tag_x, tag_y; /* clients; transactions of A: x runs, y is committed */
static uint32_t span_a, span_b, span_free, span_large, span_wide, span_hinted; /* first pages */
static uint64_t ref_x, ref_shared;
static uint32_t shared[SHARED_MAX], shared_count; /* words that are SHARED, or of y */
static uint32_t of_x[2];                          /* words of x */

static uint32_t word_at(const struct heap *h, uint32_t first, uint32_t index)
{
    return page_entry_unit(h->pages[first]) * UNIT_WORDS + index;
}

static uint32_t put(struct heap *h, uint32_t first, uint32_t index, uint16_t word)
{
    uint32_t at = word_at(h, first, index);
    h->words[at] = word;
    if (word == WORD_SHARED || word == WORD_OWNED(tag_y))
        shared[shared_count++] = at;
    return at;
}

static uint32_t lease(struct core *core, unsigned tag, unsigned span_class, uint32_t pages)
{
    uint32_t first = 0;
    bool fresh;
    int rc;
    do {
        rc = CLASS_IS_LARGE(span_class) ? mcentral_cache_large(core, core->clients[tag], span_class,
                                                               pages, 1, &first, &fresh)
                                        : mcentral_cache_span(core, core->clients[tag], span_class,
                                                              pages, &first, 1, &fresh);
        answer(core);
    } while (rc == -EAGAIN);
    assert_int_equal(rc, 1);
    return first;
}

static uint64_t ref_of(uint32_t first, uint32_t index)
{
    return ((uint64_t)first << PAGE_SHIFT) + index * class_table[CLASS].size;
}

static void prepare(void)
{
    static const uint8_t id[16] = "stepped daemon";
    struct core core;
    uint32_t tags[2];
    char why[256];
    heap_format(&live.heap, &geometry, id, 0x550000000000);
    assert_int_equal(start(&core, &live, why), 0);
    struct heap *h = &live.heap;
    struct client *a = attach(&core, 1, 7), *b = attach(&core, 2, 8);
    tag_a = a->tag;
    tag_b = b->tag;
    assert_int_equal(client_tx_tags(&core, a, 2, tags), 2);
    tag_x = tags[0];
    tag_y = tags[1];
    assert_int_equal(client_tx_commit(&core, a, REQUEST_BEFORE, tag_y, "", 0, 0), 0);
    shared_count = 0;
    span_a =
        lease(&core, tag_a, CLASS, 1); /* A's: owned, cached, published, of both transactions */
    put(h, span_a, 0, WORD_OWNED(tag_a));
    put(h, span_a, 1, WORD_CACHED(tag_a));
    put(h, span_a, 2, WORD_SHARED);
    of_x[0] = put(h, span_a, 3, WORD_OWNED(tag_x));
    of_x[1] = put(h, span_a, 4, WORD_OWNED(tag_x));
    put(h, span_a, 5, WORD_OWNED(tag_y));
    ref_shared = ref_of(span_a, 2);
    ref_x = ref_of(span_a, 3);
    span_b = lease(&core, tag_b, CLASS, 1); /* let go, with FREE objects; A has one in it */
    put(h, span_b, 0, WORD_SHARED);
    put(h, span_b, 1, WORD_CACHED(tag_a));
    assert_int_equal(mcentral_uncache_span(&core, b, span_b), 0);
    span_free =
        lease(&core, tag_a, OTHER, 1); /* wholly FREE: goes back to the mheap when it is let go */
    span_hinted =
        lease(&core, tag_b, OTHER, 1); /* let go full, then freed in: the sweep has to find it */
    for (uint32_t i = 0; i < 3; i++)
        put(h, span_hinted, i, i ? WORD_CACHED(tag_b) : WORD_SHARED);
    assert_int_equal(mcentral_uncache_span(&core, b, span_hinted), 0);
    span_wide = lease(&core, tag_b, SPAN_CLASS(45, 0), 3); /* three pages, two of them FREE */
    put(h, span_wide, 0, WORD_SHARED);
    assert_int_equal(mcentral_uncache_span(&core, b, span_wide), 0);
    span_large = lease(&core, tag_a, CLASS_LARGE, 3); /* last, so that it can be extended */
    put(h, span_large, 0, WORD_OWNED(tag_a));
    assert_int_equal(client_root(&core, a, REQUEST_BEFORE, "old", ROOT_MODE_SET, 0, ref_shared), 0);
    h->words[word_at(h, span_hinted, 1)] = WORD_FREE;
    h->hints[span_hinted] = 1;
    core_stop(&core);
}

/* ---- the operations -------------------------------------------------------------------------- */

static struct core stepped;

static struct client *client(unsigned tag)
{
    stepped.clients[tag]->state = CLIENT_LIVE;
    return stepped.clients[tag];
}

static uint32_t got[8];
static bool fresh;

static void op_grant_fresh(void)
{
    mcentral_cache_span(&stepped, client(tag_b), SPAN_CLASS(40, 0), 2, got, 8, &fresh);
}
static void op_grant_nonempty(void)
{
    mcentral_cache_span(&stepped, client(tag_b), CLASS, 1, got, 8, &fresh);
}
static void op_grant_large(void)
{
    mcentral_cache_large(&stepped, client(tag_b), CLASS_LARGE, 5, 1, got, &fresh);
}
static void op_extend(void)
{
    mcentral_extend(&stepped, client(tag_a), REQUEST, span_large, 4);
}
static void op_return(void)
{
    mcentral_uncache_span(&stepped, client(tag_a), span_a);
}
static void op_return_free(void)
{
    mcentral_uncache_span(&stepped, client(tag_a), span_free);
}
static void turns(void)
{
    while (core_turn(&stepped))
        ;
}
static void op_sweep(void)
{
    sweep_cycle(&stepped);
    turns();
}
static void op_reclaim(void)
{
    client_die(&stepped, client(tag_a));
    turns();
}
static void op_reclaim_both(void)
{
    client_die(&stepped, client(tag_b));
    client_die(&stepped, client(tag_a));
    turns();
}
static void op_take_back(void)
{
    const uint32_t listed = (uint32_t)span_a;
    uint64_t cursor = 0;
    client_list_begin(client(tag_a));
    client_list(&stepped, client(tag_a), &listed, 1);
    while (!client_take_back(&stepped, client(tag_a), &cursor))
        ;
}
static void op_root_new(void)
{
    client_root(&stepped, client(tag_a), REQUEST, "new", ROOT_MODE_SET, 0, ref_shared);
}
static void op_root_move(void)
{
    client_root(&stepped, client(tag_a), REQUEST, "old", ROOT_MODE_CAS, ref_shared,
                ref_of(span_b, 0));
}
static void op_root_remove(void)
{
    client_root(&stepped, client(tag_a), REQUEST, "old", ROOT_MODE_SET, 0, 0);
}
static void op_commit(void)
{
    client_tx_commit(&stepped, client(tag_a), REQUEST, tag_x, "x", 0, ref_x);
}
static void op_commit_no_root(void)
{
    client_tx_commit(&stepped, client(tag_a), REQUEST, tag_x, "", 0, 0);
}
static void op_attach(void)
{
    struct client *c;
    client_attach(&stepped, &(struct tag){.pid = 3, .uid = 7, .command = "newcomer"}, &c);
}
static void op_tx_tags(void)
{
    client_tx_tags(&stepped, client(tag_b), 2, got);
}
static void op_grow(void)
{
    uint64_t first;
    if (mheap_alloc(&stepped.mheap, 55, 1, 1, &first) == -EAGAIN)
        answer(&stepped);
}
static void op_scavenge(void)
{
    mheap_scavenge(&stepped.mheap, 0, 8, true);
    answer(&stepped);
}
static void op_scavenge_spans(void)
{
    for (int i = 0; i < 4; i++)
        mheap_tick(&stepped.mheap);
    scavenge_turn(&stepped, 1000, 100000);
    answer(&stepped);
    scavenge_back(&stepped, client(tag_b)->account, SPAN_CLASS(45, 0), 3);
    answer(&stepped);
}

static struct op {
    const char *name;
    void (*run)(void);
    bool a_dies, b_dies, old_root_moves, x_root;
} ops[] = {
    {"grant_of_fresh_spans", op_grant_fresh, false, false, false, false},
    {"grant_of_used_spans", op_grant_nonempty, false, false, false, false},
    {"grant_of_a_large_span", op_grant_large, false, false, false, false},
    {"extension_of_a_large_span", op_extend, false, false, false, false},
    {"return_of_a_span", op_return, false, false, false, false},
    {"return_of_a_free_span", op_return_free, false, false, false, false},
    {"sweep", op_sweep, false, false, false, false},
    {"death_and_reclaim", op_reclaim, true, false, false, false},
    {"two_deaths_and_reclaim", op_reclaim_both, true, true, false, false},
    {"leases_taken_back", op_take_back, false, false, false, false},
    {"new_root", op_root_new, false, false, false, false},
    {"root_moved", op_root_move, false, false, true, false},
    {"root_removed", op_root_remove, false, false, true, false},
    {"commit_with_a_root", op_commit, false, false, false, true},
    {"commit_without_a_root", op_commit_no_root, false, false, false, false},
    {"attach", op_attach, false, false, false, false},
    {"tags_for_transactions", op_tx_tags, false, false, false, false},
    {"growth", op_grow, false, false, false, false},
    {"return_of_pages", op_scavenge, false, false, false, false},
    {"return_of_pages_in_spans", op_scavenge_spans, false, false, false, false},
};
enum { OPS = sizeof ops / sizeof ops[0] };

static void run_op(void *argument)
{
    const struct op *op = argument;
    char why[256];
    if (start(&stepped, &live, why) < 0)
        _exit(3);
    STEP_MARK();
    op->run();
    STEP_MARK();
}

/* ---- the rebuild: too long to be stepped whole each time ------------------------------------- */

/* It runs with the regions read-only. Each instruction that writes there faults, is let through
 * alone (the trap flag), and what the regions hold after it is kept. Between two such instructions
 * nothing was written: the machine says so. */
static struct trapped {
    uint32_t count;
    uint64_t ip[512];
} * trapped;
static uint8_t *trapped_bytes;

static void protect(int prot)
{
    mprotect(live.map, geometry.map_bytes, prot);
    mprotect(live.state, geometry.state_bytes, prot);
}

#if defined(__x86_64__)
enum { TRAP_FLAG = 0x100 };

static void on_write(int signal, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    uint8_t *at = info->si_addr;
    if (!(at >= live.map && at < live.map + geometry.map_bytes) &&
        !(at >= live.state && at < live.state + geometry.state_bytes)) {
        struct sigaction plain = {.sa_handler = SIG_DFL};
        sigaction(signal, &plain, NULL);
        return;
    }
    if (trapped->count < 512)
        trapped->ip[trapped->count] = (uint64_t)u->uc_mcontext.gregs[REG_RIP];
    protect(PROT_READ | PROT_WRITE);
    u->uc_mcontext.gregs[REG_EFL] |= TRAP_FLAG;
}

static void on_written(int signal, siginfo_t *info, void *context)
{
    ucontext_t *u = context;
    (void)signal, (void)info;
    if (trapped->count < 512)
        save(&live, trapped_bytes + (size_t)trapped->count++ * used_bytes);
    protect(PROT_READ);
    u->uc_mcontext.gregs[REG_EFL] &= ~TRAP_FLAG;
}
#else
static void on_write(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
}
static void on_written(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
}
#endif

static void run_rebuild_trapped(void)
{
    const struct sigaction write = {.sa_sigaction = on_write, .sa_flags = SA_SIGINFO},
                           written = {.sa_sigaction = on_written, .sa_flags = SA_SIGINFO};
    char why[256];
    sigaction(SIGSEGV, &write, NULL);
    sigaction(SIGTRAP, &written, NULL);
    trapped->count = 0;
    protect(PROT_READ);
    int rc = start(&stepped, &live, why);
    protect(PROT_READ | PROT_WRITE);
    _exit(rc < 0 ? 4 : 0);
}

static void run_rebuild(void *unused)
{
    char why[256];
    (void)unused;
    STEP_MARK();
    int rc = start(&stepped, &live, why);
    STEP_MARK();
    _exit(rc < 0 ? 4 : 0);
}

/* ---- what must hold after a kill ------------------------------------------------------------- */

static const char *check_words(const struct heap *h, const struct op *op)
{
    static char text[120];
    for (uint32_t i = 0; i < shared_count; i++) {
        uint16_t word = h->words[shared[i]];
        bool counts =
            word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(h, word_tag(word)));
        if (!counts && h->words[shared[i]] != WORD_SHARED)
            return snprintf(text, sizeof text, "published word %u is %#x", shared[i], word), text;
    }
    bool dead_a = h->tags[tag_a].state != TAG_CLIENT, dead_b = h->tags[tag_b].state != TAG_CLIENT;
    if ((dead_a && !op->a_dies) || (dead_b && !op->b_dies))
        return "a live client was taken for dead";
    for (uint32_t i = 0; i < WORDS_LOOKED_AT; i++) {
        unsigned tag = word_tag(h->words[i]);
        if (tag && (tag >= TAGS_LOOKED_AT || h->tags[tag].state == TAG_FREE))
            return snprintf(text, sizeof text, "word %u bears tag %u, which nobody has", i, tag),
                   text;
        if ((tag == tag_a && dead_a) || (tag == tag_b && dead_b) ||
            (dead_a && (tag == tag_x || tag == tag_y)))
            return snprintf(text, sizeof text, "word %u bears dead tag %u", i, tag), text;
    }
    if (!dead_a && (h->words[word_at(h, span_a, 0)] != WORD_OWNED(tag_a) ||
                    h->words[word_at(h, span_b, 1)] != WORD_CACHED(tag_a) ||
                    h->words[word_at(h, span_large, 0)] != WORD_OWNED(tag_a)))
        return "a live client's word was changed";
    return NULL;
}

static const char *check_transaction(const struct heap *h, const struct op *op)
{
    uint64_t ref = 0;
    bool has_root = root_lookup(h, "x", &ref) == 0, dead_a = h->tags[tag_a].state != TAG_CLIENT;
    uint16_t word[2] = {h->words[of_x[0]], h->words[of_x[1]]};
    bool committed =
        word[0] == WORD_SHARED || (word[0] == WORD_OWNED(tag_x) && tag_is_committed(h, tag_x));
    bool committed_too =
        word[1] == WORD_SHARED || (word[1] == WORD_OWNED(tag_x) && tag_is_committed(h, tag_x));
    if (committed != committed_too)
        return "one object of a transaction is committed, the other one is not";
    if (op->x_root && committed != has_root)
        return committed ? "a transaction is committed and its root is not there"
                         : "a root of a transaction that is not committed";
    if (!committed && word[0] != (dead_a ? WORD_FREE : WORD_OWNED(tag_x)))
        return "an open transaction's word is wrong";
    uint64_t ref_old = 0;
    int rc = root_lookup(h, "old", &ref_old);
    if (!op->old_root_moves && (rc < 0 || ref_old != ref_shared))
        return "a root that nobody touched is gone";
    if (op->old_root_moves && rc == 0 && ref_old != ref_shared && ref_old != ref_of(span_b, 0))
        return "a root is neither what it was nor what it became";
    bool moved = root_lookup(h, "new", &ref) == 0 || rc < 0 || ref_old != ref_shared ||
                 (op->x_root && has_root);
    /* these need no record: said again they change nothing, or their state tells */
    bool alone = h->spans[span_large].page_count == 4 || (committed && !has_root);
    uint32_t done = h->tags[tag_a].done;
    if (done != REQUEST && (moved || done != REQUEST_BEFORE))
        return "a root is moved, and its client will not know";
    if (done == REQUEST && !moved && !alone)
        return "it is as before, and its client believes that its request was done";
    return NULL;
}

static const char *check_core(struct core *core)
{
    const char *why = clients_check(core);
    if (!why)
        why = roots_check(core, &(struct roots_look){0}, core->heap.root_slots);
    uint64_t pages = core->mheap.free.free_count;
    for (uint64_t page = 1; page < core->heap.page_count && !why;) {
        struct span_info span;
        if (span_at(&core->heap, page, &span)) {
            why = mcentral_check(core, page);
            if (!why && !core->heap.spans[page].lessee && span_count_free(&span) == span.objects)
                why = "a wholly free span that nobody leases";
            page += span.page_count;
            pages += span.page_count;
        } else {
            why = page < core->mheap.top ? mheap_check(&core->mheap, page, page + 1) : NULL;
            page++;
        }
    }
    if (!why && pages != core->heap.page_count - 1)
        why = "a page is in no span and is not free";
    if (!why)
        why = pagealloc_check(&core->mheap.free);
    return why ? why : pagealloc_check(&core->mheap.warm);
}

/* In a process of its own: an assertion that fails is a failure with a place, not the end of the
 * test. */
static int verify(const struct op *op)
{
    struct core core;
    char text[256];
    int rc = start(&core, &copy, text);
    const char *why = rc < 0 ? text : NULL;
    for (int again = 0; !why && again < 2; again++) {
        sweep_cycle(&core);
        while (core_turn(&core))
            ;
        why = check_core(&core);
        if (!why)
            why = check_words(&copy.heap, op);
        if (!why)
            why = check_transaction(&copy.heap, op);
        core_stop(&core);
        if (!why && start(&core, &copy, text) < 0) /* and the one after it finds the same */
            why = text;
    }
    if (why)
        fprintf(stderr, "%s: %s\n", op->name, why);
    return why != NULL;
}

static unsigned failures;

static void verify_at(const struct op *op, const struct stepper *s, const uint8_t *bytes,
                      const char *during)
{
    load(&copy, bytes);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        _exit(verify(op));
    int status = reap(pid);
    if (status) {
        fprintf(stderr, "  ... after instruction %llu of %s, before %s (status %d)\n",
                (unsigned long long)s->steps, during, step_place(s->ip), status);
        failures++;
    }
}

/* ---- stepping -------------------------------------------------------------------------------- */

static uint8_t *begin,
    *before; /* the regions: at the begin, and after the last instruction that changed them */
static uint8_t *kept; /* after every such instruction: for the rebuild */
static unsigned kept_count;
enum { KEPT_MAX = 4096 };

struct counts {
    uint64_t raw, merged, earnest;
};
static struct counts total;

/* Steps through `fn` from the regions in `from`; verifies what each instruction leaves. */
static void step_through(const struct op *op, const char *during, void (*fn)(void *),
                         void *argument, const uint8_t *from, bool keep, struct counts *n)
{
    struct stepper s;
    load(&live, from);
    if (!step_start(&s, fn, argument))
        fail_msg("%s: did not begin (status %x)", during, s.status);
    save(&live, before);
    verify_at(op, &s, before, during);
    n->merged++;
    for (;;) {
        enum step step = step_one(&s);
        if (step == STEP_MARKED)
            break;
        if (step == STEP_GONE)
            fail_msg("%s: ended after %llu instructions with status %x", during,
                     (unsigned long long)s.steps, s.status);
        n->raw++;
        if (same(&live, before))
            continue;
        save(&live, before);
        n->merged++;
        verify_at(op, &s, before, during);
        if (keep && kept_count < KEPT_MAX)
            memcpy(kept + (size_t)kept_count++ * used_bytes, before, used_bytes);
    }
    step_kill(&s);
}

/* A kill in earnest after `steps` instructions leaves what the stepping has seen there. */
static void kill_in_earnest(struct op *op, uint64_t steps, struct counts *n)
{
    struct stepper s;
    load(&live, begin);
    assert_true(step_start(&s, run_op, op));
    while (s.steps < steps && step_one(&s) < STEP_MARKED)
        ;
    save(&live, before);
    step_kill(&s);
    if (!same(&live, before))
        fail_msg("%s: killed after %llu instructions, the regions are not what they were", op->name,
                 (unsigned long long)steps);
    verify_at(op, &s, before, op->name);
    n->earnest++;
}

/* Every write of a rebuild over the regions in `from`. */
static void trap_rebuild(const struct op *op, const uint8_t *from, struct counts *n)
{
    struct stepper at = {0};
    load(&live, from);
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0)
        run_rebuild_trapped();
    int status = reap(pid);
    if (status)
        fail_msg("%s: a rebuild ended with status %d", op->name, status);
    for (uint32_t i = 0; i < trapped->count; i++) {
        const uint8_t *bytes = trapped_bytes + (size_t)i * used_bytes;
        if (memcmp(bytes, i ? bytes - used_bytes : from, used_bytes) == 0)
            continue;
        at.steps = i + 1;
        at.ip = trapped->ip[i];
        verify_at(op, &at, bytes, "the writes of the rebuild");
        n->merged++;
    }
    n->raw += trapped->count;
}

static void each_instruction_of_an_operation(void **state)
{
    struct op *op = *state;
    struct counts n = {0, 0, 0};
    load(&live, begin);
    memcpy(whole_map, live.map, geometry.map_bytes);
    memcpy(whole_state, live.state, geometry.state_bytes);
    kept_count = 0;
    step_through(op, op->name, run_op, op, begin, true, &n);
    nothing_else_was_written(op->name);
    kill_in_earnest(op, rnd(&step_seed) % (n.raw + 1), &n);
    struct counts writes = {0, 0, 0}, rebuild = {0, 0, 0};
    for (uint32_t i = 0; i < kept_count;
         i++) /* the next daemon dies too, over what this one left */
        if (step_all || kept_count < 8 || rnd(&step_seed) % kept_count < 8)
            trap_rebuild(op, kept + i * used_bytes, &writes);
    if (step_all && kept_count)
        step_through(op, "rebuild", run_rebuild, NULL,
                     kept + rnd(&step_seed) % kept_count * used_bytes, false, &rebuild);
    printf("%-26s %6llu instructions, %3llu points that differ; rebuilds over them: %5llu writes, "
           "%5llu that differ",
           op->name, (unsigned long long)n.raw, (unsigned long long)n.merged,
           (unsigned long long)writes.raw, (unsigned long long)writes.merged);
    printf(step_all ? "; one stepped: %llu instructions, %llu points\n" : "\n",
           (unsigned long long)rebuild.raw, (unsigned long long)rebuild.merged);
    n.merged += writes.merged;
    rebuild.raw += rebuild.raw ? 0 : writes.raw;
    struct counts rebuilds = rebuild;
    total.raw += n.raw + rebuilds.raw;
    total.merged += n.merged + rebuilds.merged;
    total.earnest += n.earnest;
    assert_int_equal(failures, 0);
}

static void the_figures(void **state)
{
    (void)state;
    printf("daemon: %llu instructions, %llu kill points that differ, %llu killed in earnest\n",
           (unsigned long long)total.raw, (unsigned long long)total.merged,
           (unsigned long long)total.earnest);
    assert_true(total.merged > OPS);
}

static int setup(void **state)
{
    (void)state;
    assert_int_equal(geometry_init(&geometry, 1 << 20, ROOTS), 0);
    regions_new(&live);
    regions_new(&copy);
    prepare();
    use(0, sizeof(struct map_header), false);
    use(geometry.tags_at, TAGS_LOOKED_AT * sizeof(struct tag), false);
    use(geometry.gens_at, ROOT_GENS * sizeof(uint32_t) + 64, false);
    use(geometry.roots_at, ROOTS * sizeof(struct root), false);
    use(geometry.buckets_at, ROOTS * sizeof(struct root_bucket), false);
    use(geometry.pages_at, geometry.page_count * sizeof(uint64_t), false);
    use(geometry.spans_at, geometry.page_count * sizeof(struct span), false);
    use(0, geometry.page_count, true);
    use(geometry.tickets_at, TAGS_LOOKED_AT * sizeof(uint64_t), true);
    use(geometry.words_at, WORDS_LOOKED_AT * sizeof(uint16_t), true);
    begin = malloc(used_bytes);
    before = malloc(used_bytes);
    kept = malloc(used_bytes * KEPT_MAX);
    whole_map = malloc(geometry.map_bytes);
    whole_state = malloc(geometry.state_bytes);
    trapped = shared_memory(sizeof *trapped);
    trapped_bytes = shared_memory(512 * used_bytes);
    save(&live, begin);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[OPS + 1];
    for (unsigned i = 0; i < OPS; i++)
        tests[i] = (struct CMUnitTest){ops[i].name, each_instruction_of_an_operation, NULL, NULL,
                                       &ops[i]};
    tests[OPS] = (struct CMUnitTest)cmocka_unit_test(the_figures);
    return step_main("step_daemon", tests, OPS + 1, setup, NULL);
}
