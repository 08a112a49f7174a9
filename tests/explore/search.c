/* The search: through every state that the scenario can come to, depth first. */
#include "tests/explore/engine.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/explore/hooks.h"

enum {
    DEPTH_MAX = 4000,
    TRANSITIONS_MAX = 48,
};

static struct ex_result result;

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
    return (size_t)(ex_stacks[i] + STACK_BYTES - (uint8_t *)ex_threads[i].sp);
}
static bool has_stack(unsigned i)
{
    return ex_threads[i].status != THREAD_DONE && ex_threads[i].status != THREAD_DEAD;
}

static uint64_t hash_state(void)
{
    uint64_t hash = mix(1, &ex_state, sizeof ex_state);
    for (unsigned i = 0; i < ex_range_count; i++)
        hash = mix(hash, ex_ranges[i].p, ex_ranges[i].bytes);
    for (unsigned i = 0; i < ex_thread_count; i++) {
        const struct thread *t = &ex_threads[i];
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
    size_t need = sizeof ex_state + sizeof ex_threads;
    struct snapshot *s = &snapshots[depth];
    for (unsigned i = 0; i < ex_range_count; i++)
        need += ex_ranges[i].bytes;
    for (unsigned i = 0; i < ex_thread_count; i++)
        need += has_stack(i) ? stack_bytes(i) : 0;
    if (need > s->capacity) {
        free(s->bytes);
        s->capacity = need * 2;
        s->bytes = malloc(s->capacity);
        if (!s->bytes)
            abort();
    }
    uint8_t *at = s->bytes;
    at = (uint8_t *)memcpy(at, &ex_state, sizeof ex_state) + sizeof ex_state;
    at = (uint8_t *)memcpy(at, ex_threads, sizeof ex_threads) + sizeof ex_threads;
    for (unsigned i = 0; i < ex_range_count; i++)
        at = (uint8_t *)memcpy(at, ex_ranges[i].p, ex_ranges[i].bytes) + ex_ranges[i].bytes;
    for (unsigned i = 0; i < ex_thread_count; i++)
        if (has_stack(i))
            at = (uint8_t *)memcpy(at, ex_threads[i].sp, stack_bytes(i)) + stack_bytes(i);
}

static void restore(unsigned depth)
{
    const uint8_t *at = snapshots[depth].bytes;
    uint8_t *now[EX_THREADS]; /* stack pointers: below them all is zero */
    for (unsigned i = 0; i < ex_thread_count; i++)
        now[i] = ex_threads[i].sp;
    memcpy(&ex_state, at, sizeof ex_state);
    at += sizeof ex_state;
    memcpy(ex_threads, at, sizeof ex_threads);
    at += sizeof ex_threads;
    for (unsigned i = 0; i < ex_range_count; at += ex_ranges[i].bytes, i++)
        memcpy(ex_ranges[i].p, at, ex_ranges[i].bytes);
    for (unsigned i = 0; i < ex_thread_count; i++)
        if (has_stack(i)) {
            memcpy(ex_threads[i].sp, at, stack_bytes(i));
            if (now[i] < (uint8_t *)ex_threads[i].sp)
                memset(now[i], 0, (size_t)((uint8_t *)ex_threads[i].sp - now[i]));
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
    if (ex_scenario_now->order != EX_WEAK || s->release)
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
    for (unsigned i = 0; i < ex_thread_count; i++) {
        struct thread *t = &ex_threads[i];
        bool full = ex_scenario_now->buffer && t->buffered >= ex_scenario_now->buffer;
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
    for (unsigned p = 0; n && ex_state.kills < ex_scenario_now->kills && p < EX_PROCESSES; p++) {
        bool lives = false;
        for (unsigned i = 0; i < ex_thread_count; i++)
            lives |= ex_threads[i].process == p && has_stack(i);
        if (lives && (ex_scenario_now->kill_mask >> p & 1))
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
    ex_state.kills++;
    for (unsigned i = 0; i < ex_thread_count; i++) {
        struct thread *t = &ex_threads[i];
        if (t->process != process)
            continue;
        while (t->buffered)
            flush(t, 0);
        t->delayed = 0;
        memset(&t->late, 0, sizeof t->late);
        if (t->status != THREAD_DONE)
            t->status = THREAD_DEAD;
        memset(t->sp, 0, stack_bytes(i));
        t->sp = ex_stacks[i] + STACK_BYTES;
        t->ready = NULL;
        t->choices = t->choice = 0;
    }
    ex_state.dead |= 1u << process;
    if (ex_scenario_now->killed)
        ex_scenario_now->killed(process);
}

static void describe(const struct transition *tr, char *out, size_t capacity)
{
    const struct thread *t = &ex_threads[tr->who];
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
    struct thread *t = &ex_threads[tr->who];
    if (tr->what == KILL)
        kill_process(tr->who);
    else if (tr->what == FLUSH)
        flush(t, tr->which);
    else {
        t->choice = tr->which;
        ex_step(t);
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

static jmp_buf check_aborted;

/* An assertion of the product has failed. */
void ex_abort(void)
{
    ex_violation("an assertion failed");
    if (!ex_current)
        longjmp(check_aborted, 1);
    for (;;)
        ex_stop(THREAD_DEAD, "an assertion", "");
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
    if (ex_scenario_now->most_states && result.states >= ex_scenario_now->most_states) {
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
    check(ex_scenario_now->invariant);
    unsigned n = enumerate(next);
    if (n == 0 && !result.violation[0]) {
        result.finals++;
        check(ex_scenario_now->final);
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
    ex_engine_reset();
    memset(&result, 0, sizeof result);
    free(seen.slots);
    memset(&seen, 0, sizeof seen);
    result.complete = true;
    way_length = 0;
    check(ex_scenario_now->setup);
    explore(0);
}

struct ex_result ex_run(const struct ex_scenario *s, const struct ex_mutant *m, bool verbose)
{
    const struct sigaction fault = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    struct sigaction before[2];
    sigaction(SIGSEGV, &fault, &before[0]);
    sigaction(SIGFPE, &fault, &before[1]);
    ex_scenario_now = s;
    ex_mutant_now = m;
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
