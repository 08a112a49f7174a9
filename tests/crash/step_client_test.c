/* Goal: a client may be killed at any instruction of any operation, and the heap is exact
 * afterwards.
 *
 * Method: a fresh client for each kill. It prepares, comes to the mark and is single-stepped from
 * there, until the kill. After it: `check` finds nothing; no state word bears a tag; no span is
 * leased, and none is there without a published object in it, so nothing leaked; every published
 * object is there with its contents, and of what the operation itself was about to publish or free
 * there is as much as may be: all of a transaction with its root, or neither.
 *
 * Kill points between which neither a byte of the state region changed nor a system call was made
 * leave the same heap: one of them stands for all. That is looked at after every single step, so it
 * is known and not assumed. The short operations are killed after each instruction all the same.
 *
 * CRASH=all: all points; otherwise a sample by SEED=. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

#include "proto/call.h"
#include "proto/msg.h"
#include "proto/packet.h"
#include "shm/root.h"
#include "shm/span.h"
#include "shm/tag.h"
#include "tests/crash/step.h"

enum {
    SIZE = 64,
    WORDS_LOOKED_AT = 8192, /* compared after each step; those behind must stay FREE */
    SHORT = 300,            /* instructions of an operation that is killed after each */
    SAMPLE = 3,             /* kills of each kind and operation in a sample */
    SHARED_MAX = 8192,
};

static struct daemon d;

/* ---- the regions, as the daemon has them open ------------------------------------------------ */

static struct heap heap;

static void *map_region(const char *name, uint64_t *ret_bytes)
{
    char dir[64], path[400], link[200];
    void *p = NULL;
    snprintf(dir, sizeof dir, "/proc/%d/fd", (int)daemon_serving(&d));
    DIR *fds = opendir(dir);
    assert_non_null(fds);
    for (struct dirent *e; !p && (e = readdir(fds)) != NULL;) {
        struct stat st;
        snprintf(path, sizeof path, "%s/%s", dir, e->d_name);
        ssize_t n = readlink(path, link, sizeof link - 1);
        link[n > 0 ? n : 0] = 0;
        if (!strstr(link, name))
            continue;
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd >= 0 && fstat(fd, &st) == 0) {
            p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, 0);
            *ret_bytes = (uint64_t)st.st_size;
        }
        close(fd);
    }
    closedir(fds);
    if (!p || p == MAP_FAILED) {
        daemon_clean(&d);
        printf("skipped: the daemon's region %s is not to be opened through /proc\n", name);
        exit(77);
    }
    return p;
}

static void map_heap(void)
{
    struct geometry g;
    const char *why;
    uint64_t map_bytes, state_bytes, heap_bytes;
    void *map = map_region("arena-map", &map_bytes),
         *state = map_region("arena-state", &state_bytes);
    assert_int_equal(heap_check_header(map, map_bytes, state_bytes, &g, &why), 0);
    heap_view(&heap, &g, map_region("arena-heap", &heap_bytes), map, state);
}

/* ---- questions to the daemon ----------------------------------------------------------------- */

static int monitor = -1;
static struct msg in;
static struct msg_space space;
static uint32_t last_id;
static uint8_t packet[MSG_MAX];

static void ask(struct msg out, uint32_t expect)
{
    char why[MSG_TEXT_MAX + 1];
    out.id = ++last_id;
    int bytes = msg_encode(&out, packet, sizeof packet);
    assert_true(bytes > 0);
    assert_int_equal(packet_send(monitor, packet, (size_t)bytes, NULL, 0, 0), 0);
    ssize_t got = packet_receive(monitor, packet, sizeof packet, NULL, 0, NULL, 0);
    assert_true(got > 0);
    assert_int_equal(msg_decode(&in, &space, packet, (size_t)got, why), 0);
    assert_int_equal(in.type, expect);
}

static void monitor_open(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    monitor = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, d.socket, sizeof address.sun_path - 1);
    assert_int_equal(connect(monitor, (struct sockaddr *)&address, sizeof address), 0);
    ask(call_hello(HELLO_MONITOR, 0), MSG_OK);
}

/* All invariants; its answer is an empty array. */
static bool check_passes(void)
{
    ask(MSG(info, .what = INFO_CHECK), MSG_ROWS);
    return in.rows.body_bytes == 1 && in.rows.body[0] == 0x90;
}

/* ---- what the clients do --------------------------------------------------------------------- */

static struct board {
    uint64_t leftover[SHARED_MAX]; /* references of published objects, to be freed */
    uint32_t count;
} * board;

static arena_t *a;
static void *p, *q[24];
enum { PATTERN = 0x5eed };

static void attach(void)
{
    if (arena_open(&a, d.socket, NULL) < 0)
        _exit(3);
}

static void *make(size_t size, bool published)
{
    uint64_t *object = arena_alloc(a, size);
    if (!object)
        _exit(4);
    object[0] = arena_ref(a, object);
    object[1] = PATTERN;
    if (published && arena_publish(a, object) < 0)
        _exit(5);
    return object;
}

static void nothing(void) {}
static void prepare_magazine(void)
{
    attach();
    arena_free(a, make(SIZE, false)); /* a magazine with objects */
}
static void prepare_attach(void)
{
    attach();
}
static void prepare_own(void)
{
    attach();
    p = make(SIZE, false);
}
static void prepare_shared(void)
{
    attach();
    p = make(SIZE, true);
}
static void prepare_batch(void)
{
    attach();
    for (int i = 0; i < 24; i++)
        q[i] = make(SIZE, false);
    for (int i = 0; i < 16; i++)
        arena_free(a, q[i]);
}
static void prepare_drained(void) /* a lease with FREE objects, and an empty magazine */
{
    attach();
    for (int i = 0; i < 8; i++)
        q[i] = make(SIZE, false);
}
static void prepare_large(void)
{
    attach();
    p = make(100000, false);
}
static void prepare_tx(void)
{
    attach();
    if (arena_tx_begin(a) < 0)
        _exit(6);
    for (int i = 0; i < 3; i++)
        q[i] = make(SIZE, false);
}

static void do_alloc(void)
{
    arena_alloc(a, SIZE);
}
static void do_alloc_shared(void)
{
    arena_alloc_flags(a, SIZE, ARENA_SHARED);
}
static void do_alloc_large(void)
{
    arena_alloc(a, 100000);
}
static void do_free(void)
{
    arena_free(a, p);
}
static void do_trim(void)
{
    arena_trim(a);
}
static void do_publish(void)
{
    arena_publish(a, p);
}
static void do_claim(void)
{
    arena_claim(a, p);
}
static void do_attach(void)
{
    attach();
}
static void do_close(void)
{
    arena_close(a);
}
static void do_realloc(void)
{
    arena_realloc(a, p, 4 * SIZE);
}
static void do_commit(void)
{
    arena_tx_commit(a, "stepped", 0, arena_ref(a, q[0]));
}
static void do_commit_alone(void)
{
    arena_tx_commit(a, NULL, 0, 0);
}
static void do_abort(void)
{
    arena_tx_abort(a);
}
static void do_begin(void)
{
    arena_tx_begin(a);
}

static const struct op {
    const char *name;
    void (*prepare)(void), (*run)(void);
    unsigned least, most; /* published objects more than before, afterwards */
    bool all_or_none;     /* `least` or `most`, and nothing between */
    bool root;            /* and the root with `most` only */
    bool thread;          /* in a thread, which then ends */
} ops[] = {
    {"alloc_hit", prepare_magazine, do_alloc, 0, 0, false, false, false},
    {"alloc_shared", prepare_magazine, do_alloc_shared, 0, 1, false, false, false},
    {"alloc_refill", prepare_drained, do_alloc, 0, 0, false, false, false},
    {"alloc_lease", prepare_attach, do_alloc, 0, 0, false, false, false},
    {"alloc_large", prepare_attach, do_alloc_large, 0, 0, false, false, false},
    {"alloc_in_transaction", prepare_tx, do_alloc, 0, 0, false, false, false},
    {"free_local", prepare_own, do_free, 0, 0, false, false, false},
    {"free_published", prepare_shared, do_free, 0, 1, false, false, false},
    {"free_large", prepare_large, do_free, 0, 0, false, false, false},
    {"flush_and_let_go", prepare_batch, do_trim, 0, 0, false, false, false},
    {"publish", prepare_own, do_publish, 0, 1, false, false, false},
    {"publish_large", prepare_large, do_publish, 0, 1, false, false, false},
    {"claim", prepare_shared, do_claim, 0, 1, false, false, false},
    {"realloc", prepare_shared, do_realloc, 0, 2, false, false, false},
    {"thread_exit", prepare_batch, nothing, 0, 0, false, false, true},
    {"attach", nothing, do_attach, 0, 0, false, false, false},
    {"close", prepare_batch, do_close, 0, 0, false, false, false},
    {"transaction_begin", prepare_magazine, do_begin, 0, 0, false, false, false},
    {"transaction_commit", prepare_tx, do_commit, 0, 3, true, true, false},
    {"transaction_commit_alone", prepare_tx, do_commit_alone, 0, 3, true, false, false},
    {"transaction_abort", prepare_tx, do_abort, 0, 0, false, false, false},
};
enum { OPS = sizeof ops / sizeof ops[0] };

static void run_op(void *argument)
{
    const struct op *op = argument;
    op->prepare();
    STEP_MARK();
    op->run();
    if (!op->thread)
        STEP_MARK();
}

/* What must survive all of it: published, of two sizes. */
static int publisher(void *unused)
{
    (void)unused;
    attach();
    for (int i = 0; i < 6; i++)
        make(SIZE, true);
    make(50000, true);
    return arena_close(a) == 0 ? 0 : 1;
}

/* Frees what kills have left, and goes. */
static int janitor(void *unused)
{
    (void)unused;
    attach();
    arena_root_set(a, "stepped", 0);
    for (uint32_t i = 0; i < board->count; i++)
        arena_free(a, arena_ptr(a, board->leftover[i]));
    return arena_close(a) == 0 ? 0 : 1;
}

/* ---- what must hold after a kill ------------------------------------------------------------- */

/* The daemon has seen every death and has worked off what it has to; each question lets it work. */
static void settle(void)
{
    for (unsigned busy = 1; busy;) {
        if (!check_passes())
            fail_msg("check: %s", in.rows.body_bytes > 1 ? (const char *)in.rows.body + 1 : "");
        busy = 0;
        for (unsigned tag = 1; tag < load_acquire(&heap.header->tag_top); tag++)
            busy += tag_state(&heap, tag) != TAG_FREE;
    }
}

static struct shared_set {
    uint64_t ref[SHARED_MAX];
    uint32_t count;
} base, after_kill; /* base: what the publisher made */

/* What is published; nothing else may be there. NULL, or what is wrong. */
static const char *take_stock(struct shared_set *set)
{
    static char text[160];
    set->count = 0;
    for (uint64_t page = 1; page < load_acquire(&heap.header->top); page++) {
        struct span_info span;
        uint32_t shared = 0;
        if (!span_at(&heap, page, &span))
            continue;
        for (uint32_t i = 0; i < span.objects; i++) {
            uint16_t word = load_relaxed(&span.words[i]);
            if (word == WORD_FREE)
                continue;
            if (word != WORD_SHARED)
                return snprintf(text, sizeof text, "page %llu: word %u is %#x",
                                (unsigned long long)page, i, word),
                       text;
            shared++;
            if (set->count < SHARED_MAX)
                set->ref[set->count++] = (page << PAGE_SHIFT) + (uint64_t)i * span.size;
        }
        if (load_relaxed(&heap.spans[page].lessee))
            return snprintf(text, sizeof text, "page %llu is leased to a dead client",
                            (unsigned long long)page),
                   text;
        if (!shared)
            return snprintf(text, sizeof text, "page %llu: a span with nothing in it",
                            (unsigned long long)page),
                   text;
        page += span.page_count - 1;
    }
    return NULL;
}

static bool has(const struct shared_set *set, uint64_t ref)
{
    for (uint32_t i = 0; i < set->count; i++)
        if (set->ref[i] == ref)
            return true;
    return false;
}

static const char *check_published(const struct op *op)
{
    static char text[160];
    for (uint32_t i = 0; i < base.count; i++) {
        const uint64_t *object = (const uint64_t *)(const void *)(heap.base + base.ref[i]);
        if (!has(&after_kill, base.ref[i]) || object[0] != base.ref[i] || object[1] != PATTERN)
            return snprintf(text, sizeof text,
                            "the published object at %#llx is gone, or not what it was",
                            (unsigned long long)base.ref[i]),
                   text;
    }
    uint32_t more = after_kill.count - base.count;
    uint64_t root = 0;
    bool has_root = root_lookup(&heap, "stepped", &root) == 0;
    if (more < op->least || more > op->most ||
        (op->all_or_none && more != op->least && more != op->most))
        return snprintf(text, sizeof text, "%u published objects more than before", more), text;
    if (op->root && has_root != (more == op->most))
        return has_root ? "a root, and its transaction is not there"
                        : "a transaction, and its root is not there";
    return NULL;
}

/* Everything but the base away again, so that the next kill finds the heap as this one did. */
static void clean(const struct shared_set *keep)
{
    static struct shared_set now;
    board->count = 0;
    for (uint32_t i = 0; i < after_kill.count; i++)
        if (!has(keep, after_kill.ref[i]))
            board->leftover[board->count++] = after_kill.ref[i];
    if (board->count == 0)
        return;
    assert_int_equal(reap(spawn(janitor, NULL)), 0);
    settle();
    const char *why = take_stock(&now);
    if (why)
        fail_msg("cleaning: %s", why);
    assert_int_equal(now.count, keep->count);
}

/* ---- stepping -------------------------------------------------------------------------------- */

static uint8_t seen_hints[4096];
static uint16_t seen_words[WORDS_LOOKED_AT];

static void look(void)
{
    memcpy(seen_hints, heap.hints, heap.page_count);
    memcpy(seen_words, heap.words, sizeof seen_words);
}
static bool looks_the_same(void)
{
    return memcmp(seen_words, heap.words, sizeof seen_words) == 0 &&
           memcmp(seen_hints, heap.hints, heap.page_count) == 0;
}

static void begin(struct stepper *s, const struct op *op)
{
    void *argument = (void *)(uintptr_t)op;
    if (!(op->thread ? step_start_thread(s, run_op, argument) : step_start(s, run_op, argument)))
        fail_msg("%s did not begin: status %#x", op->name, s->status);
    look();
}

/* One instruction; true if a kill after it leaves something else than one before it. *ret_over:
 * there was none. */
static bool differs_after_step(struct stepper *s, bool *ret_over)
{
    enum step step = step_one(s);
    *ret_over = step >= STEP_MARKED;
    bool differs = !*ret_over && (step == STEP_SYSTEM_CALL || !looks_the_same());
    if (differs)
        look();
    return differs;
}

struct counts {
    uint64_t raw, merged, killed;
};
static struct counts total;

/* A client is killed after `steps` instructions, or when `points` of them have made a difference.
 */
static void kill_one(const struct op *op, uint64_t steps, uint64_t points, struct counts *n)
{
    struct stepper s;
    bool over = false;
    begin(&s, op);
    for (uint64_t made = 0; s.steps < steps && made < points && !over;)
        made += differs_after_step(&s, &over);
    step_kill(&s);
    settle();
    const char *why = take_stock(&after_kill);
    if (!why)
        why = check_published(op);
    if (why)
        fail_msg("%s, killed after %llu instructions, before %s: %s", op->name,
                 (unsigned long long)s.steps, step_place(s.ip), why);
    n->killed++;
    clean(&base);
}

static void each_instruction_of_an_operation(void **state)
{
    const struct op *op = *state;
    struct counts n = {0, 0, 0};
    struct stepper s;
    bool over = false;
    begin(&s, op); /* once to its end: how many points there are */
    while (!over)
        n.merged += differs_after_step(&s, &over);
    n.raw = s.steps;
    step_kill(&s);
    settle();
    const char *why = take_stock(&after_kill);
    if (why)
        fail_msg("%s, done: %s", op->name, why);
    for (uint64_t i = WORDS_LOOKED_AT; i < heap.unit_count * UNIT_WORDS;
         i += step_all ? 1 : heap.unit_count * UNIT_WORDS)
        assert_int_equal(heap.words[i], WORD_FREE);
    clean(&base);
    for (uint64_t i = 0; i < (step_all ? n.merged + 1 : SAMPLE); i++)
        kill_one(op, UINT64_MAX, step_all ? i : rnd(&step_seed) % (n.merged + 1), &n);
    for (uint64_t i = 0; n.raw <= SHORT && i < (step_all ? n.raw + 1 : SAMPLE); i++)
        kill_one(op, step_all ? i : rnd(&step_seed) % (n.raw + 1), UINT64_MAX, &n);
    printf("%-26s %6llu instructions, %4llu points that differ, %4llu clients killed\n", op->name,
           (unsigned long long)n.raw, (unsigned long long)n.merged + 1,
           (unsigned long long)n.killed);
    total.raw += n.raw + 1;
    total.merged += n.merged + 1;
    total.killed += n.killed;
}

static void the_figures(void **state)
{
    static const struct shared_set none;
    (void)state;
    printf("client: %llu kill points, %llu that differ, %llu clients killed\n",
           (unsigned long long)total.raw, (unsigned long long)total.merged,
           (unsigned long long)total.killed);
    after_kill = base;
    clean(&none);
    assert_int_equal(check_of(&d), 0);
    assert_int_equal(stat_of(&d, "spans"), 0);
}

static int setup(void **state)
{
    (void)state;
    board = shared_memory(sizeof *board);
    daemon_start(&d, "4M", NULL);
    map_heap();
    monitor_open();
    assert_int_equal(reap(spawn(publisher, NULL)), 0);
    settle();
    assert_null(take_stock(&base));
    assert_int_equal(base.count, 7);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close(monitor);
    daemon_clean(&d);
    return 0;
}

int main(void)
{
    struct CMUnitTest tests[OPS + 1];
    for (unsigned i = 0; i < OPS; i++)
        tests[i] = (struct CMUnitTest){ops[i].name, each_instruction_of_an_operation, NULL, NULL,
                                       (void *)(uintptr_t)&ops[i]};
    tests[OPS] = (struct CMUnitTest)cmocka_unit_test(the_figures);
    return step_main("step_client", tests, OPS + 1, setup, teardown);
}
