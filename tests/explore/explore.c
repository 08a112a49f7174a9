#include "tests/explore/engine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "tests/explore/hooks.h"

/* ---- threads --------------------------------------------------------------------------------- */

struct thread ex_threads[EX_THREADS];
uint8_t *ex_stacks[EX_THREADS];
unsigned ex_thread_count;
struct thread *ex_current;
static void *engine_sp;
void (*ex_switched)(void *tls);
struct world_state ex_state;
struct range ex_ranges[RANGES_MAX];
unsigned ex_range_count;
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

const struct ex_scenario *ex_scenario_now;
const struct ex_mutant *ex_mutant_now;

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
    ex_current->fn(ex_current->argument);
    ex_current->status = THREAD_DONE;
    for (;;)
        ex_switch(&ex_current->sp, engine_sp);
}

static void thread_begin(unsigned i)
{
    struct thread *t = &ex_threads[i];
    uint64_t *top = (uint64_t *)(void *)(ex_stacks[i] + STACK_BYTES);
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
    if (ex_thread_count == EX_THREADS)
        abort();
    unsigned i = ex_thread_count++;
    if (!ex_stacks[i])
        ex_stacks[i] =
            mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    ex_threads[i] = (struct thread){
        .name = name, .process = process, .fn = fn, .argument = argument, .tls = tls};
    thread_begin(i);
    return (int)i;
}

void ex_restart(int thread, void (*fn)(void *), void *argument)
{
    struct thread *t = &ex_threads[thread];
    struct thread fresh = {
        .name = t->name, .process = t->process, .fn = fn, .argument = argument, .tls = t->tls};
    *t = fresh;
    ex_state.dead &= ~(1u << t->process);
    thread_begin((unsigned)thread);
}

/* Lets the engine run; what comes after is the thread's next step. */
void ex_stop(enum status status, const char *function, const char *address)
{
    struct thread *t = ex_current;
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

void ex_step(struct thread *t)
{
    overlay_in(t);
    ex_current = t;
    t->status = THREAD_READY;
    t->ready = NULL;
    if (ex_switched)
        ex_switched(t->tls);
    ex_switch(&engine_sp, t->sp);
    ex_current = NULL;
    overlay_out(t);
    memset((uint8_t *)t->sp - DEAD_STACK, 0, DEAD_STACK);
}

/* While it runs, the values are in memory already. */
static void drain_current(void)
{
    memset(ex_current->buffer, 0, sizeof ex_current->buffer);
    ex_current->buffered = ex_current->fences = 0;
}

/* ---- accesses -------------------------------------------------------------------------------- */

enum { POINT, OWN_LOAD, NO_POINT };

static int point_of(const void *p)
{
    const uint8_t *at = p;
    for (unsigned i = 0; i < quiet_count; i++)
        if (at >= quiet[i].p && at < quiet[i].p + quiet[i].bytes)
            return quiet[i].owner < 0                        ? NO_POINT
                   : quiet[i].owner == (int)ex_current->process ? OWN_LOAD
                                                             : POINT;
    return POINT;
}

static bool is_mutated(enum ex_mutation mutation, const char *function, const char *address)
{
    return ex_mutant_now && ex_mutant_now->mutation == mutation &&
           strcmp(ex_mutant_now->function, function) == 0 &&
           (!ex_mutant_now->address || (address && strcmp(ex_mutant_now->address, address) == 0));
}

static uint64_t get(const void *p, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, p, size);
    return value;
}

static void put_store(void *p, uint64_t value, unsigned size, int order)
{
    struct thread *t = ex_current;
    uint64_t before = get(p, size);
    memcpy(p, &value, size);
    if (ex_scenario_now->order == EX_SC || ex_scenario_now->buffer == 0)
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
    struct thread *t = ex_current;
    if (!t->delayed || --t->delayed)
        return;
    struct pending_store late = t->late;
    memset(&t->late, 0, sizeof t->late);
    ex_stop(THREAD_READY, "late", "a store that was moved");
    put_store(late.p, late.value, late.size, late.release ? EX_RELEASE : EX_RELAXED);
}

uint64_t ex_load(const void *p, unsigned size, const char *function, const char *address)
{
    if (!ex_current || point_of(p) != POINT)
        return get(p, size);
    ex_stop(THREAD_READY, function, address);
    uint64_t value = is_mutated(MUTANT_BLIND, function, address) ? 0 : get(p, size);
    made();
    return value;
}

void ex_store(void *p, uint64_t value, unsigned size, int order, const char *function,
              const char *address)
{
    if (!ex_current || point_of(p) == NO_POINT) {
        memcpy(p, &value, size);
        return;
    }
    if (is_mutated(MUTANT_DROP, function, address))
        return;
    if (is_mutated(MUTANT_SKIP_IF_SET, function, address) &&
        ex_load(p, size, function, address) == value)
        return;
    if (is_mutated(MUTANT_DELAY, function, address) && !ex_current->delayed) {
        ex_current->delayed = ex_mutant_now->delay;
        ex_current->late = (struct pending_store){
            .p = p, .value = value, .size = (uint8_t)size, .release = order == EX_RELEASE};
        return;
    }
    ex_stop(THREAD_READY, function, address);
    put_store(p, value, size, order);
    made();
}

uint64_t ex_exchange(void *p, uint64_t value, unsigned size, bool add, const char *function,
                     const char *address)
{
    bool plain = ex_current && is_mutated(MUTANT_PLAIN, function, address);
    int point = ex_current ? point_of(p) : NO_POINT;
    if (point == POINT || (point == OWN_LOAD && !plain))
        ex_stop(THREAD_READY, function, address);
    uint64_t before = get(p, size), after = add ? before + value : value;
    if (point == NO_POINT)
        memcpy(p, &after, size);
    else if (plain) {
        ex_stop(THREAD_READY, function, address);
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
    bool plain = ex_current && is_mutated(MUTANT_PLAIN, function, address);
    bool is_point = ex_current && point_of(p) != NO_POINT;
    if (ex_current && is_mutated(MUTANT_DROP, function, address))
        return true;
    if (is_point)
        ex_stop(THREAD_READY, function, address);
    if (ex_current && is_mutated(MUTANT_BLIND, function, address))
        return true;
    bool same = memcmp(p, expected, size) == 0;
    if (!same)
        memcpy(expected, p, size);
    if (plain && same) {
        ex_stop(THREAD_READY, function, address);
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
    if (ex_current && ex_current->buffered)
        ex_current->fences++;
}

void ex_fence_full(void)
{
    if (ex_current)
        drain_current();
}

static bool is_unlocked(void *lock)
{
    return *(int *)lock == 0;
}

void ex_lock(pthread_mutex_t *lock, const char *function)
{
    if (!ex_current || is_mutated(MUTANT_NO_LOCK, function, NULL))
        return;
    if (point_of(lock) != NO_POINT) {
        ex_current->ready = is_unlocked;
        ex_current->ready_argument = lock;
        ex_stop(THREAD_WAITING, function, "a lock");
        drain_current();
    }
    *(int *)(void *)lock = 1;
}

bool ex_trylock(pthread_mutex_t *lock, const char *function)
{
    if (ex_current && point_of(lock) != NO_POINT) {
        ex_stop(THREAD_READY, function, "a try at a lock");
        drain_current();
    }
    if (!is_unlocked(lock))
        return false;
    *(int *)(void *)lock = ex_current != NULL;
    return true;
}

void ex_unlock(pthread_mutex_t *lock, const char *function)
{
    if (!ex_current || is_mutated(MUTANT_NO_LOCK, function, NULL))
        return;
    if (point_of(lock) != NO_POINT) {
        ex_stop(THREAD_READY, function, "an unlock");
        drain_current();
    }
    *(int *)(void *)lock = 0;
}

void ex_wait(bool (*ready)(void *), void *argument)
{
    if (!ex_current) {
        if (!ready(argument))
            ex_violation("what setup waits for does not come");
        return;
    }
    if (ex_current->buffered) {
        ex_stop(THREAD_READY, "a system call", "");
        drain_current();
    }
    ex_current->ready = ready;
    ex_current->ready_argument = argument;
    ex_stop(THREAD_WAITING, "a system call", "");
}

unsigned ex_choose(unsigned count)
{
    if (!ex_current || count < 2)
        return 0;
    ex_current->choices = count;
    ex_stop(THREAD_CHOOSING, "a choice", "");
    unsigned choice = ex_current->choice;
    ex_current->choices = ex_current->choice = 0;
    return choice;
}

/* ---- memory ---------------------------------------------------------------------------------- */

void ex_memory(void *p, size_t bytes)
{
    if (ex_range_count == RANGES_MAX)
        abort();
    ex_ranges[ex_range_count++] = (struct range){p, bytes};
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
    ex_state.heap_used[process] = 0;
}

void ex_heap_select(unsigned process)
{
    heap_selected = process;
}

/* A stack: what is freed last is used again, which is enough for runs this short. Before each piece
 * stands its size. */
void *ex_alloc(size_t count, size_t size)
{
    unsigned process = ex_current ? ex_current->process : heap_selected;
    size_t bytes = (count * size + 15 + 16) & ~(size_t)15;
    uint32_t *used = &ex_state.heap_used[process];
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
    unsigned process = ex_current ? ex_current->process : heap_selected;
    uint32_t *used = &ex_state.heap_used[process];
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

void ex_engine_reset(void)
{
    memset(&ex_state, 0, sizeof ex_state);
    memset(ex_threads, 0, sizeof ex_threads);
    ex_thread_count = ex_range_count = quiet_count = 0;
    ex_current = NULL;
}

bool ex_is_dead(unsigned process)
{
    return ex_state.dead >> process & 1;
}

unsigned ex_self(void)
{
    return ex_current ? ex_current->process : heap_selected;
}

bool ex_done(int thread)
{
    return ex_threads[thread].status == THREAD_DONE;
}

bool ex_running(void)
{
    return ex_current != NULL;
}

const struct ex_mutant *ex_mutant(void)
{
    return ex_mutant_now;
}
