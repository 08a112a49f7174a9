/* The mcache: a thread's magazines, and what alloc and free do where arena_inline.h's fast paths over them do not.
 *
 * A magazine is a LIFO array of {object, state word}. Each entry's word is CACHED by this client; a pop looks at the word
 * first, and drops an entry whose word says otherwise. Orders within one thread: alloc stores the word, then the top;
 * free stores the word, then slot and top. So at any instruction an object is in a magazine, or allocated, or CACHED
 * and in none: then it is lost to this process until it dies, and never handed out twice.
 *
 * The fast paths have one branch for whatever is out of the ordinary. alloc: the word of the top entry is not what
 * `expect` says - the magazine is empty (the sentinel), the entry is stale, a transaction is open, or this thread has no
 * mcache yet (no_mcache); also a magazine that has no slots yet. free: no small object begins here, its word is not OWNED by
 * this client, or the magazine is full. The slow paths find out which.
 *
 * An mcache is private memory that a fork's child finds wiped (thread.c). Zeros are as harmless as no_mcache: the child,
 * however it was made and whatever ran in it before, cannot take what its parent has cached.
 *
 * Capacities adapt: a magazine that runs empty or full grows, within the thread's budget (keep.h) for all of its magazines;
 * when that is used up it takes from one that was not used lately. One that gets no capacity holds nothing: its class's
 * objects come and go one by one.
 */
#include <string.h>

#include "client/alloc/keep.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/heap.h"
#include "client/link/registry.h"

/* ---- no mcache, and the sentinel ------------------------------------------------------------------------------------ */

static uint16_t sentinel_word = WORD_SHARED; /* never stored to: no `expect` is equal to it */
static const struct arena_slot sentinel = {NULL, &sentinel_word};

PUBLIC extern const char arena_inline_layout_2;
const char arena_inline_layout_2 = 1; /* its name is what counts: arena_inline.h */

struct mcache no_mcache = {.expect = NO_WORD, .own = NO_WORD};
uint8_t size_classes[SIZE_CLASS_EIGHTS];

__thread struct mcache *tls_mcaches[HEAPS_MAX] = {[0 ... HEAPS_MAX - 1] = &no_mcache};

static uint32_t count_of(const struct mcache *mc, unsigned c) { return (uint32_t)(mc->magazines[c].top - mc->bases[c]); }
static uint32_t capacity_of(const struct mcache *mc, unsigned c) { return (uint32_t)(mc->magazines[c].limit - mc->bases[c]); }

/* ---- capacities ------------------------------------------------------------------------------------------------------ */

static uint32_t capacity_max(unsigned span_class)
{
    uint32_t size = class_table[span_class].size;
    uint32_t slots = size ? MAGAZINE_BYTES / size : 0;
    return slots > MAGAZINE_SLOTS ? MAGAZINE_SLOTS : slots;
}

/* Of a budget that is used up, a magazine that has nothing yet gets so small a part more. */
enum { FIRST_PARTS = 16 };

static uint32_t capacity_first(unsigned span_class)
{
    uint32_t size = class_table[span_class].size;
    return size <= 512 ? 16 : size <= 4096 ? 4 : 2;
}

/* Where the slots of a class begin in an mcache, its sentinel first. Nothing is written there before its first use. */
static uint64_t slots_at(unsigned span_class)
{
    uint64_t at = (sizeof(struct mcache) + 4095) & ~4095ULL;
    for (unsigned c = 2; c < span_class; c++)
        at += (capacity_max(c) + 1) * sizeof(struct arena_slot);
    return at;
}

static struct arena_slot *slots_of(struct mcache *mc, unsigned span_class)
{
    return (struct arena_slot *)(void *)((uint8_t *)mc + slots_at(span_class));
}

uint64_t mcache_bytes(void) { return slots_at(SPAN_CLASS_COUNT); }

void mcache_init(struct mcache *mc, struct arena *a, uint32_t number)
{
    memcpy(mc, &no_mcache, sizeof *mc);
    mc->number = number;
    mc->arena = a;
    mc->cached = WORD_CACHED(a->tag);
    mc->trim_seen = load_relaxed(&a->keep.trim_serial);
    mcache_expect(mc);
    mc->own = mc->owned = WORD_OWNED(a->tag);
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        mc->magazines[c].magic = class_table[c].magic;
        mc->magazines[c].objects = class_table[c].objects;
    }
}

static void mark(uint64_t bits[4], unsigned span_class) { bits[span_class / 64] |= 1ULL << span_class % 64; }
static bool is_marked(const uint64_t bits[4], unsigned span_class) { return bits[span_class / 64] >> span_class % 64 & 1; }

static void give_back(struct mcache *mc, unsigned span_class, uint32_t keep);

static void set_capacity(struct mcache *mc, unsigned span_class, uint32_t capacity)
{
    struct arena_magazine *m = &mc->magazines[span_class];
    int64_t more = (int64_t)capacity - capacity_of(mc, span_class);
    if (!mc->bases[span_class]) {
        struct arena_slot *slots = slots_of(mc, span_class);
        slots[0] = sentinel;
        mc->bases[span_class] = m->top = slots + 1;
    }
    m->limit = mc->bases[span_class] + capacity;
    store_relaxed(&mc->budget_used, mc->budget_used + (uint64_t)(more * class_table[span_class].size));
}

/* Halves magazines that were not used since the cursor last passed them, until `bytes` fit. */
static bool steal(struct mcache *mc, uint64_t bytes, uint64_t budget)
{
    enum { PAUSE = 64 };
    if (mc->steal_pause) {
        mc->steal_pause--;
        return false;
    }
    mc->steal_pause = PAUSE; /* capacities that went round and round would cost more than they save */
    for (unsigned n = 0; n < SPAN_CLASS_COUNT && mc->budget_used + bytes > budget; n++) {
        unsigned c = mc->steal_cursor = mc->steal_cursor + 1 < SPAN_CLASS_COUNT ? mc->steal_cursor + 1 : 2;
        uint32_t capacity = capacity_of(mc, c);
        bool used = is_marked(mc->used_serial, c);
        mc->used_serial[c / 64] &= ~(1ULL << c % 64);
        if (used || capacity <= capacity_first(c))
            continue;
        if (count_of(mc, c) > capacity / 2)
            give_back(mc, c, capacity / 2);
        set_capacity(mc, c, capacity / 2);
    }
    return mc->budget_used + bytes <= budget;
}

/* Doubles a magazine's capacity if it may. The first capacity that does not fit is halved: to nothing where a single object
 * is more than the budget. */
static bool grow(struct mcache *mc, unsigned span_class)
{
    uint32_t now = capacity_of(mc, span_class), most = capacity_max(span_class);
    uint32_t capacity = now ? now * 2 : capacity_first(span_class), size = class_table[span_class].size;
    if (capacity > most)
        capacity = most;
    uint64_t bytes = (uint64_t)(capacity - now) * size, budget = keep_thread_budget(&mc->arena->keep, load_relaxed(&mc->arena->mcache_count));
    if (mc->budget_used + bytes > budget) {
        while (now == 0 && capacity && (uint64_t)capacity * size > budget / FIRST_PARTS)
            capacity /= 2;
        if (now && capacity != now && !steal(mc, bytes, budget))
            return false;
    }
    if (capacity == now && mc->bases[span_class])
        return false;
    set_capacity(mc, span_class, capacity);
    return capacity > now;
}

/* ---- refill and flush ------------------------------------------------------------------------------------------------- */

/* Fills an empty magazine: how many objects, or a negative errno. */
int mcache_refill(struct mcache *mc, unsigned span_class)
{
    mark(mc->used_serial, span_class);
    mark(mc->refilled, span_class);
    grow(mc, span_class);
    uint32_t half = capacity_of(mc, span_class) / 2;
    int got = lease_refill(mc->arena, span_class, mc->bases[span_class], half ? half : 1);
    if (got > 0)
        mc->magazines[span_class].top = mc->bases[span_class] + got; /* die: CACHED words, which the pass frees */
    return got;
}

/* Takes the oldest entries out, all but `keep`, and flushes them: out of the magazine first, then their words. */
static void give_back(struct mcache *mc, unsigned span_class, uint32_t keep)
{
    enum { BATCH = 256 };
    struct arena_slot batch[BATCH];
    struct arena_slot *base = mc->bases[span_class];
    while (count_of(mc, span_class) > keep) {
        uint32_t count = count_of(mc, span_class), n = count - keep > BATCH ? BATCH : count - keep;
        memcpy(batch, base, n * sizeof *batch);
        memmove(base, base + n, (count - n) * sizeof *batch);
        mc->magazines[span_class].top -= n;
        lease_flush(mc->arena, span_class, batch, n);
    }
}

void mcache_flush_all(struct mcache *mc)
{
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        give_back(mc, c, 0);
        if (capacity_of(mc, c))
            set_capacity(mc, c, 0);
    }
}

/* A thread that only frees in a class does not need what it collects: the less it holds, the sooner and the warmer it is back
 * with whom it came from. */
static bool may_collect(const struct mcache *mc, unsigned span_class)
{
    uint32_t capacity = capacity_of(mc, span_class);
    return is_marked(mc->refilled, span_class) ||
           (capacity < FREES_ONLY_SLOTS && (uint64_t)capacity * class_table[span_class].size < FREES_ONLY_BYTES);
}

/* A push that found the magazine full. */
static void make_room(struct mcache *mc, unsigned span_class)
{
    struct arena_magazine *m = &mc->magazines[span_class];
    mark(mc->used_serial, span_class);
    if (m->top < m->limit || (may_collect(mc, span_class) && grow(mc, span_class)))
        return;
    give_back(mc, span_class, is_marked(mc->refilled, span_class) ? capacity_of(mc, span_class) / 2 : 0);
}

void mcache_push(struct mcache *mc, unsigned span_class, void *object, uint16_t *word)
{
    struct arena_magazine *m = &mc->magazines[span_class];
    struct arena_slot slot = {object, word};
    if (unlikely(m->top >= m->limit))
        make_room(mc, span_class);
    if (unlikely(m->top >= m->limit)) {
        lease_flush(mc->arena, span_class, &slot, 1);
        return;
    }
    *m->top = slot;
    m->top++;
}
