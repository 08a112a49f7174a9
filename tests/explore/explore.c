#include "tests/explore/explore.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/explore/hooks.h"

enum {
    STACK_BYTES = 256 << 10,
    DEAD_STACK = 12 << 10, /* below a thread's stack pointer: what its next step may use; zeroed, so
                              that states are equal */
    BUFFER_MAX = 4,
    RANGES_MAX = 160,
    DEPTH_MAX = 4000,
    TRANSITIONS_MAX = 48,
};

/* ---- threads --------------------------------------------------------------------------------- */

enum status {
    THREAD_NONE,
    THREAD_READY,
    THREAD_WAITING,
    THREAD_CHOOSING,
    THREAD_DONE,
    THREAD_DEAD
};

struct pending_store {
    void *p;
    uint64_t value, before; /* before: what is there for others, while the thread runs */
    uint8_t size, release, fence, pad[5];
};

struct thread {
    const char *name;
    void (*fn)(void *);
    void *argument, *tls, *sp;
    bool (*ready)(void *);
    void *ready_argument;
    const char *at_function, *at_address; /* its next access */
    uint32_t process, status, choices, choice;
    uint32_t buffered, fences;
    struct pending_store buffer[BUFFER_MAX];
    uint32_t delayed; /* accesses until the store that a mutant moved; 0: none */
    uint32_t pad;
    struct pending_store late;
};

static struct thread threads[EX_THREADS];
static uint8_t *stacks[EX_THREADS];
static unsigned thread_count;
static struct thread *current;
static void *engine_sp;
void (*ex_switched)(void *tls);

struct world_state { /* what else belongs to the state */
    uint32_t kills;
    uint32_t dead; /* processes, a bit each */
    uint32_t heap_used[EX_PROCESSES];
};
static struct world_state state;

static struct range {
    uint8_t *p;
    size_t bytes;
} ranges[RANGES_MAX];
static unsigned range_count;
static struct quiet {
    const uint8_t *p;
    size_t bytes;
    int owner; /* -1: private */
} quiet[RANGES_MAX];
static unsigned quiet_count;
static struct {
    uint8_t *p;
    size_t bytes;
} heaps[EX_PROCESSES];
static unsigned heap_selected;

static const struct ex_scenario *scenario;
static const struct ex_mutant *mutant;
static struct ex_result result;

#if defined(__x86_64__)
void ex_switch(void **save, void *to);
__asm__(".text\n"
        ".globl ex_switch\n"
        ".type ex_switch, @function\n"
        "ex_switch:\n"
        "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq "
        "%r15\n"
        "    movq %rsp, (%rdi)\n"
        "    movq %rsi, %rsp\n"
        "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
        "    ret\n"
        ".size ex_switch, .-ex_switch\n");
static const bool supported = true;
#else
static void ex_switch(void **save, void *to)
{
    (void)save, (void)to, abort();
}
static const bool supported = false;
#endif

bool ex_supported(void)
{
    return supported;
}

static void thread_main(void)
{
    current->fn(current->argument);
    current->status = THREAD_DONE;
    for (;;)
        ex_switch(&current->sp, engine_sp);
}

static void thread_begin(unsigned i)
{
    struct thread *t = &threads[i];
    uint64_t *top = (uint64_t *)(void *)(stacks[i] + STACK_BYTES);
    *--top = 0; /* where thread_main() would return to: keeps the stack aligned as at a call */
    *--top = (uint64_t)(uintptr_t)thread_main;
    for (int r = 0; r < 6; r++)
        *--top = 0;
    t->sp = top;
    t->status = THREAD_READY;
    t->at_function = "its start";
    t->at_address = "";
    memset((uint8_t *)t->sp - DEAD_STACK, 0, DEAD_STACK);
}

int ex_thread(const char *name, unsigned process, void (*fn)(void *), void *argument, void *tls)
{
    if (thread_count == EX_THREADS)
        abort();
    unsigned i = thread_count++;
    if (!stacks[i])
        stacks[i] =
            mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    threads[i] = (struct thread){
        .name = name, .process = process, .fn = fn, .argument = argument, .tls = tls};
    thread_begin(i);
    return (int)i;
}

void ex_restart(int thread, void (*fn)(void *), void *argument)
{
    struct thread *t = &threads[thread];
    struct thread fresh = {
        .name = t->name, .process = t->process, .fn = fn, .argument = argument, .tls = t->tls};
    *t = fresh;
    state.dead &= ~(1u << t->process);
    thread_begin((unsigned)thread);
}

/* Lets the engine run; what comes after is the thread's next step. */
static void stop(enum status status, const char *function, const char *address)
{
    struct thread *t = current;
    t->status = status;
    t->at_function = function;
    t->at_address = address;
    ex_switch(&t->sp, engine_sp);
}

/* A thread sees its own buffered stores: while it runs they are in memory. */
static void overlay_in(struct thread *t)
{
    for (uint32_t i = 0; i < t->buffered; i++) {
        struct pending_store *s = &t->buffer[i];
        s->before = 0;
        memcpy(&s->before, s->p, s->size);
        memcpy(s->p, &s->value, s->size);
    }
}
static void overlay_out(struct thread *t)
{
    for (uint32_t i = t->buffered; i-- > 0;) {
        struct pending_store *s = &t->buffer[i];
        memcpy(s->p, &s->before, s->size);
        s->before = 0;
    }
}

static void step(struct thread *t)
{
    overlay_in(t);
    current = t;
    t->status = THREAD_READY;
    t->ready = NULL;
    if (ex_switched)
        ex_switched(t->tls);
    ex_switch(&engine_sp, t->sp);
    current = NULL;
    overlay_out(t);
    memset((uint8_t *)t->sp - DEAD_STACK, 0, DEAD_STACK);
}

/* While it runs, the values are in memory already. */
static void drain_current(void)
{
    memset(current->buffer, 0, sizeof current->buffer);
    current->buffered = current->fences = 0;
}

/* ---- accesses -------------------------------------------------------------------------------- */

enum { POINT, OWN_LOAD, NO_POINT };

static int point_of(const void *p)
{
    const uint8_t *at = p;
    for (unsigned i = 0; i < quiet_count; i++)
        if (at >= quiet[i].p && at < quiet[i].p + quiet[i].bytes)
            return quiet[i].owner < 0                        ? NO_POINT
                   : quiet[i].owner == (int)current->process ? OWN_LOAD
                                                             : POINT;
    return POINT;
}

static bool is_mutated(enum ex_mutation mutation, const char *function, const char *address)
{
    return mutant && mutant->mutation == mutation && strcmp(mutant->function, function) == 0 &&
           (!mutant->address || (address && strcmp(mutant->address, address) == 0));
}

static uint64_t get(const void *p, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, p, size);
    return value;
}

static void put_store(void *p, uint64_t value, unsigned size, int order)
{
    struct thread *t = current;
    uint64_t before = get(p, size);
    memcpy(p, &value, size);
    if (scenario->order == EX_SC || scenario->buffer == 0)
        return;
    t->buffer[t->buffered++] = (struct pending_store){.p = p,
                                                      .value = value,
                                                      .before = before,
                                                      .size = (uint8_t)size,
                                                      .release = order == EX_RELEASE,
                                                      .fence = (uint8_t)t->fences};
}

/* An access has been made: a store that a mutant holds back comes nearer. */
static void made(void)
{
    struct thread *t = current;
    if (!t->delayed || --t->delayed)
        return;
    struct pending_store late = t->late;
    memset(&t->late, 0, sizeof t->late);
    stop(THREAD_READY, "late", "a store that was moved");
    put_store(late.p, late.value, late.size, late.release ? EX_RELEASE : EX_RELAXED);
}

uint64_t ex_load(const void *p, unsigned size, const char *function, const char *address)
{
    if (!current || point_of(p) != POINT)
        return get(p, size);
    stop(THREAD_READY, function, address);
    uint64_t value = get(p, size);
    made();
    return value;
}

void ex_store(void *p, uint64_t value, unsigned size, int order, const char *function,
              const char *address)
{
    if (!current || point_of(p) == NO_POINT) {
        memcpy(p, &value, size);
        return;
    }
    if (is_mutated(MUTANT_DROP, function, address))
        return;
    if (is_mutated(MUTANT_SKIP_IF_SET, function, address) &&
        ex_load(p, size, function, address) == value)
        return;
    if (is_mutated(MUTANT_DELAY, function, address) && !current->delayed) {
        current->delayed = mutant->delay;
        current->late = (struct pending_store){
            .p = p, .value = value, .size = (uint8_t)size, .release = order == EX_RELEASE};
        return;
    }
    stop(THREAD_READY, function, address);
    put_store(p, value, size, order);
    made();
}

uint64_t ex_exchange(void *p, uint64_t value, unsigned size, bool add, const char *function,
                     const char *address)
{
    bool plain = current && is_mutated(MUTANT_PLAIN, function, address);
    int point = current ? point_of(p) : NO_POINT;
    if (point == POINT || (point == OWN_LOAD && !plain))
        stop(THREAD_READY, function, address);
    uint64_t before = get(p, size), after = add ? before + value : value;
    if (point == NO_POINT)
        memcpy(p, &after, size);
    else if (plain) {
        stop(THREAD_READY, function, address);
        put_store(p, after, size, EX_RELAXED);
    } else {
        drain_current();
        memcpy(p, &after, size);
    }
    if (point != NO_POINT)
        made();
    return before;
}

bool ex_cas(void *p, void *expected, uint64_t desired, unsigned size, const char *function,
            const char *address)
{
    bool plain = current && is_mutated(MUTANT_PLAIN, function, address);
    bool is_point = current && point_of(p) != NO_POINT;
    if (is_point)
        stop(THREAD_READY, function, address);
    bool same = memcmp(p, expected, size) == 0;
    if (!same)
        memcpy(expected, p, size);
    if (plain && same) {
        stop(THREAD_READY, function, address);
        put_store(p, desired, size, EX_RELAXED);
    } else {
        if (is_point)
            drain_current();
        if (same)
            memcpy(p, &desired, size);
    }
    if (is_point)
        made();
    return same;
}

void ex_fence_release(void)
{
    if (current && current->buffered)
        current->fences++;
}

static bool is_unlocked(void *lock)
{
    return *(int *)lock == 0;
}

void ex_lock(pthread_mutex_t *lock, const char *function)
{
    if (!current || is_mutated(MUTANT_NO_LOCK, function, NULL))
        return;
    if (point_of(lock) != NO_POINT) {
        current->ready = is_unlocked;
        current->ready_argument = lock;
        stop(THREAD_WAITING, function, "a lock");
        drain_current();
    }
    *(int *)(void *)lock = 1;
}

void ex_unlock(pthread_mutex_t *lock, const char *function)
{
    if (!current || is_mutated(MUTANT_NO_LOCK, function, NULL))
        return;
    if (point_of(lock) != NO_POINT) {
        stop(THREAD_READY, function, "an unlock");
        drain_current();
    }
    *(int *)(void *)lock = 0;
}

void ex_wait(bool (*ready)(void *), void *argument)
{
    if (!current) {
        if (!ready(argument))
            ex_violation("what setup waits for does not come");
        return;
    }
    if (current->buffered) {
        stop(THREAD_READY, "a system call", "");
        drain_current();
    }
    current->ready = ready;
    current->ready_argument = argument;
    stop(THREAD_WAITING, "a system call", "");
}

unsigned ex_choose(unsigned count)
{
    if (!current || count < 2)
        return 0;
    current->choices = count;
    stop(THREAD_CHOOSING, "a choice", "");
    unsigned choice = current->choice;
    current->choices = current->choice = 0;
    return choice;
}

/* ---- memory ---------------------------------------------------------------------------------- */

void ex_memory(void *p, size_t bytes)
{
    if (range_count == RANGES_MAX)
        abort();
    ranges[range_count++] = (struct range){p, bytes};
}

static void add_quiet(const void *p, size_t bytes, int owner)
{
    if (quiet_count == RANGES_MAX)
        abort();
    quiet[quiet_count].p = p;
    quiet[quiet_count].bytes = bytes;
    quiet[quiet_count++].owner = owner;
}
void ex_private(const void *p, size_t bytes)
{
    add_quiet(p, bytes, -1);
}
void ex_owned(const void *p, size_t bytes, unsigned process)
{
    add_quiet(p, bytes, (int)process);
}

void ex_heap(unsigned process, void *p, size_t bytes)
{
    heaps[process].p = p;
    heaps[process].bytes = bytes;
    ex_heap_reset(process);
    ex_memory(p, bytes);
    ex_private(p, bytes);
}

void ex_heap_reset(unsigned process)
{
    memset(heaps[process].p, 0, heaps[process].bytes);
    state.heap_used[process] = 0;
}

void ex_heap_select(unsigned process)
{
    heap_selected = process;
}

/* A stack: what is freed last is used again, which is enough for runs this short. Before each piece
 * stands its size. */
void *ex_alloc(size_t count, size_t size)
{
    unsigned process = current ? current->process : heap_selected;
    size_t bytes = (count * size + 15 + 16) & ~(size_t)15;
    uint32_t *used = &state.heap_used[process];
    if (*used + bytes > heaps[process].bytes) {
        ex_violation("process %u needs %zu bytes more than its %zu", process, bytes,
                     heaps[process].bytes);
        return NULL;
    }
    uint8_t *p = heaps[process].p + *used;
    *used += (uint32_t)bytes;
    memset(p, 0, bytes);
    memcpy(p, &bytes, sizeof bytes);
    return p + 16;
}

void ex_free(void *p)
{
    unsigned process = current ? current->process : heap_selected;
    uint32_t *used = &state.heap_used[process];
    size_t bytes;
    if (!p)
        return;
    uint8_t *piece = (uint8_t *)p - 16;
    memcpy(&bytes, piece, sizeof bytes);
    if (piece + bytes != heaps[process].p + *used)
        return;
    *used -= (uint32_t)bytes;
    memset(piece, 0, bytes);
}

void *ex_realloc(void *p, size_t bytes)
{
    size_t had;
    uint8_t *fresh = ex_alloc(1, bytes);
    if (p && fresh) {
        memcpy(&had, (uint8_t *)p - 16, sizeof had);
        memcpy(fresh, p, had - 16 < bytes ? had - 16 : bytes);
    }
    return fresh;
}

/* ---- states ---------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t hash, const void *p, size_t bytes)
{
    const uint8_t *at = p;
    uint64_t w, lane[4] = {hash, hash + 1, hash + 2, hash + 3}, four[4];
    if (bytes >= 64) { /* four chains of multiplications at once */
        for (; bytes >= 32; at += 32, bytes -= 32) {
            memcpy(four, at, 32);
            for (int i = 0; i < 4; i++) {
                __uint128_t product = (__uint128_t)(lane[i] ^ four[i]) * 0x9fb21c651e98df25ULL;
                lane[i] =
                    (uint64_t)product ^ (uint64_t)(product >> 64) ^ (four[i] << 32 | four[i] >> 32);
            }
        }
        hash = mix(lane[0], lane + 1, 24);
    }
    for (; bytes >= 8; at += 8, bytes -= 8) {
        memcpy(&w, at, 8);
        __uint128_t product = (__uint128_t)(hash ^ w) * 0x9fb21c651e98df25ULL;
        hash = (uint64_t)product ^ (uint64_t)(product >> 64) ^ (w << 32 | w >> 32);
    }
    w = 0;
    memcpy(&w, at, bytes);
    __uint128_t product = (__uint128_t)(hash ^ w ^ bytes << 56) * 0xd6e8feb86659fd93ULL;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static size_t stack_bytes(unsigned i)
{
    return (size_t)(stacks[i] + STACK_BYTES - (uint8_t *)threads[i].sp);
}
static bool has_stack(unsigned i)
{
    return threads[i].status != THREAD_DONE && threads[i].status != THREAD_DEAD;
}

static uint64_t hash_state(void)
{
    uint64_t hash = mix(1, &state, sizeof state);
    for (unsigned i = 0; i < range_count; i++)
        hash = mix(hash, ranges[i].p, ranges[i].bytes);
    for (unsigned i = 0; i < thread_count; i++) {
        const struct thread *t = &threads[i];
        hash = mix(hash, &t->process,
                   offsetof(struct thread, buffer) - offsetof(struct thread, process));
        hash = mix(hash, t->buffer, t->buffered * sizeof t->buffer[0]);
        if (t->delayed)
            hash = mix(hash, &t->delayed, sizeof *t - offsetof(struct thread, delayed));
        if (has_stack(i))
            hash = mix(hash, t->sp, stack_bytes(i));
    }
    return hash | 1;
}

static struct {
    uint64_t *slots, count, mask;
} seen;

/* false: it was there */
static bool seen_add(uint64_t hash)
{
    if (seen.count * 3 >= seen.mask * 2) {
        uint64_t *old = seen.slots, old_mask = seen.mask;
        seen.mask = seen.mask ? seen.mask * 2 + 1 : (1 << 16) - 1;
        seen.slots = calloc(seen.mask + 1, sizeof *seen.slots);
        seen.count = 0;
        if (!seen.slots)
            abort();
        for (uint64_t i = 0; old && i <= old_mask; i++)
            if (old[i])
                seen_add(old[i]);
        free(old);
    }
    for (uint64_t at = hash >> 8 & seen.mask;; at = (at + 1) & seen.mask) {
        if (seen.slots[at] == hash)
            return false;
        if (!seen.slots[at]) {
            seen.slots[at] = hash;
            seen.count++;
            return true;
        }
    }
}

struct snapshot {
    uint8_t *bytes;
    size_t capacity;
};
static struct snapshot snapshots[DEPTH_MAX];

static void save(unsigned depth)
{
    size_t need = sizeof state + sizeof threads;
    struct snapshot *s = &snapshots[depth];
    for (unsigned i = 0; i < range_count; i++)
        need += ranges[i].bytes;
    for (unsigned i = 0; i < thread_count; i++)
        need += has_stack(i) ? stack_bytes(i) : 0;
    if (need > s->capacity) {
        free(s->bytes);
        s->capacity = need * 2;
        s->bytes = malloc(s->capacity);
        if (!s->bytes)
            abort();
    }
    uint8_t *at = s->bytes;
    at = (uint8_t *)memcpy(at, &state, sizeof state) + sizeof state;
    at = (uint8_t *)memcpy(at, threads, sizeof threads) + sizeof threads;
    for (unsigned i = 0; i < range_count; i++)
        at = (uint8_t *)memcpy(at, ranges[i].p, ranges[i].bytes) + ranges[i].bytes;
    for (unsigned i = 0; i < thread_count; i++)
        if (has_stack(i))
            at = (uint8_t *)memcpy(at, threads[i].sp, stack_bytes(i)) + stack_bytes(i);
}

static void restore(unsigned depth)
{
    const uint8_t *at = snapshots[depth].bytes;
    uint8_t *now[EX_THREADS]; /* stack pointers: below them all is zero */
    for (unsigned i = 0; i < thread_count; i++)
        now[i] = threads[i].sp;
    memcpy(&state, at, sizeof state);
    at += sizeof state;
    memcpy(threads, at, sizeof threads);
    at += sizeof threads;
    for (unsigned i = 0; i < range_count; at += ranges[i].bytes, i++)
        memcpy(ranges[i].p, at, ranges[i].bytes);
    for (unsigned i = 0; i < thread_count; i++)
        if (has_stack(i)) {
            memcpy(threads[i].sp, at, stack_bytes(i));
            if (now[i] < (uint8_t *)threads[i].sp)
                memset(now[i], 0, (size_t)((uint8_t *)threads[i].sp - now[i]));
            at += stack_bytes(i);
        }
}

/* ---- transitions ----------------------------------------------------------------------------- */

struct transition {
    enum { STEP, CHOOSE, FLUSH, KILL } what;
    unsigned who, which;
};
static char (*path_text)[112]; /* of the way that is being gone */

static bool may_flush(const struct thread *t, uint32_t which)
{
    const struct pending_store *s = &t->buffer[which];
    if (which == 0)
        return true;
    if (scenario->order != EX_WEAK || s->release)
        return false;
    for (uint32_t i = 0; i < which;
         i++) /* the same place keeps its order, and a fence keeps all before it */
        if (t->buffer[i].fence != s->fence ||
            ((uint8_t *)t->buffer[i].p < (uint8_t *)s->p + s->size &&
             (uint8_t *)s->p < (uint8_t *)t->buffer[i].p + t->buffer[i].size))
            return false;
    return true;
}

static unsigned enumerate(struct transition *out)
{
    unsigned n = 0;
    for (unsigned i = 0; i < thread_count; i++) {
        struct thread *t = &threads[i];
        bool full = scenario->buffer && t->buffered >= scenario->buffer;
        if (t->status == THREAD_READY && !full)
            out[n++] = (struct transition){STEP, i, 0};
        else if (t->status == THREAD_WAITING && t->ready(t->ready_argument))
            out[n++] = (struct transition){STEP, i, 0};
        for (unsigned k = 0; t->status == THREAD_CHOOSING && k < t->choices; k++)
            out[n++] = (struct transition){CHOOSE, i, k};
        for (uint32_t k = 0; k < t->buffered; k++)
            if (may_flush(t, k))
                out[n++] = (struct transition){FLUSH, i, k};
    }
    for (unsigned p = 0; n && state.kills < scenario->kills && p < EX_PROCESSES; p++) {
        bool lives = false;
        for (unsigned i = 0; i < thread_count; i++)
            lives |= threads[i].process == p && has_stack(i);
        if (lives && (scenario->kill_mask >> p & 1))
            out[n++] = (struct transition){KILL, p, 0};
    }
    return n;
}

static void flush(struct thread *t, uint32_t which)
{
    struct pending_store *s = &t->buffer[which];
    memcpy(s->p, &s->value, s->size);
    memmove(s, s + 1, (t->buffered - which - 1) * sizeof *s);
    memset(&t->buffer[--t->buffered], 0, sizeof *s);
    if (!t->buffered)
        t->fences = 0;
}

static void kill_process(unsigned process)
{
    state.kills++;
    for (unsigned i = 0; i < thread_count; i++) {
        struct thread *t = &threads[i];
        if (t->process != process)
            continue;
        while (t->buffered)
            flush(t, 0);
        t->delayed = 0;
        memset(&t->late, 0, sizeof t->late);
        if (t->status != THREAD_DONE)
            t->status = THREAD_DEAD;
        memset(t->sp, 0, stack_bytes(i));
        t->sp = stacks[i] + STACK_BYTES;
        t->ready = NULL;
        t->choices = t->choice = 0;
    }
    state.dead |= 1u << process;
    if (scenario->killed)
        scenario->killed(process);
}

static void describe(const struct transition *tr, char *out, size_t capacity)
{
    const struct thread *t = &threads[tr->who];
    if (tr->what == KILL)
        snprintf(out, capacity, "process %u is killed", tr->who);
    else if (tr->what == FLUSH)
        snprintf(out, capacity, "%s: its store of %llx becomes visible", t->name,
                 (unsigned long long)t->buffer[tr->which].value);
    else
        snprintf(out, capacity, "%s: %s %s%s", t->name, t->at_function, t->at_address,
                 tr->what == CHOOSE ? " taken" : "");
}

static void apply(const struct transition *tr)
{
    struct thread *t = &threads[tr->who];
    if (tr->what == KILL)
        kill_process(tr->who);
    else if (tr->what == FLUSH)
        flush(t, tr->which);
    else {
        t->choice = tr->which;
        step(t);
    }
}

void ex_violation(const char *format, ...)
{
    va_list args;
    if (result.violation[0])
        return;
    va_start(args, format);
    vsnprintf(result.violation, sizeof result.violation, format, args);
    va_end(args);
}

bool ex_is_dead(unsigned process)
{
    return state.dead >> process & 1;
}
unsigned ex_self(void)
{
    return current ? current->process : heap_selected;
}
bool ex_done(int thread)
{
    return threads[thread].status == THREAD_DONE;
}
const struct ex_mutant *ex_mutant(void)
{
    return mutant;
}
bool ex_running(void)
{
    return current != NULL;
}

static jmp_buf check_aborted;

/* An assertion of the product has failed. */
void ex_abort(void)
{
    ex_violation("an assertion failed");
    if (!current)
        longjmp(check_aborted, 1);
    for (;;)
        stop(THREAD_DEAD, "an assertion", "");
}

static void on_fault(int signal)
{
    (void)signal;
    ex_violation("a crash");
    ex_abort();
}

/* The scenario's checks, which may run the product's code and meet an assertion. */
static void check(void (*fn)(void))
{
    if (fn && setjmp(check_aborted) == 0)
        fn();
}

static unsigned way_length; /* to the violation */

static bool stop_here(void)
{
    if (scenario->most_states && result.states >= scenario->most_states) {
        result.complete = false;
        return true;
    }
    return result.violation[0] != 0;
}

static void explore(unsigned depth)
{
    struct transition next[TRANSITIONS_MAX];
    if (!seen_add(hash_state()))
        return;
    result.states++;
    if (depth > result.depth)
        result.depth = depth;
    check(scenario->invariant);
    unsigned n = enumerate(next);
    if (n == 0 && !result.violation[0]) {
        result.finals++;
        check(scenario->final);
    }
    if (depth + 1 >= DEPTH_MAX)
        ex_violation("a run of more than %d steps", DEPTH_MAX);
    if (stop_here())
        return;
    save(depth);
    for (unsigned i = 0; i < n && !stop_here(); i++) {
        if (i)
            restore(depth);
        if (path_text)
            describe(&next[i], path_text[depth], sizeof *path_text);
        result.transitions++;
        apply(&next[i]);
        if (!result.violation[0])
            explore(depth + 1);
        if (result.violation[0]) {
            if (!way_length)
                way_length = depth + 1;
            return;
        }
    }
}

static void run_once(void)
{
    memset(&state, 0, sizeof state);
    memset(&result, 0, sizeof result);
    memset(threads, 0, sizeof threads);
    thread_count = range_count = quiet_count = 0;
    current = NULL;
    free(seen.slots);
    memset(&seen, 0, sizeof seen);
    result.complete = true;
    way_length = 0;
    check(scenario->setup);
    explore(0);
}

struct ex_result ex_run(const struct ex_scenario *s, const struct ex_mutant *m, bool verbose)
{
    const struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    struct sigaction before[2];
    sigaction(SIGSEGV, &fault, &before[0]);
    sigaction(SIGFPE, &fault, &before[1]);
    scenario = s;
    mutant = m;
    path_text = NULL;
    run_once();
    if (result.violation[0] && verbose) { /* once more, writing down the way */
        path_text = calloc(DEPTH_MAX, sizeof *path_text);
        run_once();
        for (unsigned i = 0; path_text && i < DEPTH_MAX && i < way_length; i++)
            fprintf(stderr, "  %3u %s\n", i, path_text[i]);
        fprintf(stderr, "  ... %s\n", result.violation);
        free(path_text);
        path_text = NULL;
    }
    free(seen.slots);
    memset(&seen, 0, sizeof seen);
    sigaction(SIGSEGV, &before[0], NULL);
    sigaction(SIGFPE, &before[1], NULL);
    return result;
}
