/* The thread's stack. Contiguous: at the edge of what it has it is copied once, to twice the size,
 * and then there is no edge any more; a segmented one would take and drop a segment every time
 * round.
 *
 * The bytes are an object OWNED by the process, never by a transaction that happens to be open. A
 * copy is made whole before the old object is freed. die: both are OWNED, and the pass frees them.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/escape.h"
#include "client/stack.h"

static __thread struct stack *tls_stacks[HEAPS_MAX];
static struct stack *stacks; /* sync: registry_lock */
static uint32_t stack_count; /* sync: registry_lock */

static struct stack *stack_of(arena_stack_t *s)
{
    return (struct stack *)(void *)s;
}

static bool is_debugged(const struct stack *k)
{
    return (k->arena->debug & (DEBUG_STACK | DEBUG_ESCAPE)) != 0;
}

/* The limit that says `size`, less the guard; in debug mode every allocation takes the slow path.
 */
static size_t real_limit(const struct stack *k)
{
    return k->size > ARENA_FRAME_GUARD ? k->size - ARENA_FRAME_GUARD : 0;
}

/* An object of this process, whatever transaction is open on the thread. */
static void *alloc_own(struct arena *a, size_t size)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    struct transaction *tx = tx_suspend(mc);
    void *p = arena_alloc(a, size);
    tx_resume(mc, tx);
    return p;
}

/* ---- moving --------------------------------------------------------------------------------- */

/* Frees the old place, now or after a collection that may have it still to read; in debug mode, without one, it is poisoned,
 * and kept from use until others have been. */
static void leave(struct stack *k, void *old, size_t size, struct limbo_entry *entry)
{
    if (!is_debugged(k) || entry) {
        limbo_or_free(k->arena, old, entry, "arena_frame_alloc");
        return;
    }
    memset(old, 0xdb, size);
    void **slot = &k->old[k->old_next++ % STACK_QUARANTINE];
    arena_free(k->arena, *slot);
    *slot = old;
}

static int move_to(struct stack *k, size_t size)
{
    struct limbo_entry *entry = NULL;
    int rc = k->size ? limbo_prepare(k->arena, &entry) : 0;
    if (rc < 0)
        return rc;
    char *from = k->s.base, *to = alloc_own(k->arena, size);
    if (!to) {
        rc = -errno;
        free(entry);
        return rc;
    }
    memcpy(to, from, k->s.top);
    if (is_debugged(k))
        memset(to + k->s.top, 0, size - k->s.top);
    k->s.base = to;
    k->owner = thread_self();
    if (k->size)
        leave(k, from, k->size, entry);
    k->size = size;
    k->s.limit = is_debugged(k) ? 0 : real_limit(k);
    return 0;
}

static int grow(struct stack *k, size_t need)
{
    size_t size = k->size ? k->size : STACK_FIRST;
    while (size < need)
        size *= 2;
    if (size > load_relaxed(&k->arena->stack_max))
        return -ENOMEM;
    return move_to(k, size);
}

PUBLIC int arena_stack_shrink(arena_stack_t *s)
{
    fork_generation(); /* in a child it is empty from here on */
    struct stack *k = stack_of(s);
    size_t size = k->size;
    while (size > STACK_FIRST && k->s.top <= size / 4 && k->s.top + ARENA_FRAME_GUARD <= size / 2)
        size /= 2;
    return size < k->size ? move_to(k, size) : 0;
}

int stack_collect(struct arena *a)
{
    struct stack *k = tls_stacks[a->index];
    if (!k)
        return 0;
    if (k->size) {
        arena_stack_shrink(&k->s); /* or it is as it was */
        return 0;
    }
    /* a forked child's, still in private memory: the collector reads the heap alone */
    return k->s.top > STACK_BOTTOM ? grow(k, k->s.top + ARENA_FRAME_GUARD) : 0;
}

PUBLIC size_t arena_stack_size(const arena_stack_t *s)
{
    return ((const struct stack *)(const void *)s)->size;
}

PUBLIC int arena_stack_set_max(arena_t *a, size_t bytes)
{
    if (bytes < STACK_FIRST || bytes > STACK_MAX_MAX)
        return -EINVAL;
    store_relaxed(&a->stack_max, bytes);
    return 0;
}

/* ---- frames --------------------------------------------------------------------------------- */

/* Small frames went beyond the guard: in debug mode, before they have done harm or soon after. */
static void check_guard(struct stack *k)
{
    size_t room = k->size ? k->size : sizeof k->scratch;
    if (k->s.top <= room)
        return;
    fprintf(stderr,
            "arena_frame_alloc_small: the guard of a stack is overrun by %zu bytes: more than %d "
            "small frames inside "
            "one another without an arena_frame_alloc\n",
            k->s.top - room, ARENA_FRAME_GUARD / ARENA_FRAME_SMALL);
    abort();
}

__attribute__((noinline)) PUBLIC void *arena_frame_alloc_slow(arena_stack_t *s, size_t size)
{
    fork_generation(); /* in a child it is empty from here on */
    struct stack *k = stack_of(s);
    size_t bytes = size ? (size + 15) & ~(size_t)15 : 16, top = k->s.top;
    if (size >= STACK_MAX_MAX) {
        errno = ENOMEM;
        return NULL;
    }
    check_guard(k);
    int rc = 0;
    if (top + bytes + ARENA_FRAME_GUARD > k->size)
        rc = grow(k, top + bytes + ARENA_FRAME_GUARD);
    else if (k->arena->debug & DEBUG_STACK)
        rc = move_to(k, k->size);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    k->s.top = top + bytes;
    void *p = k->s.base + top;
    if (k->arena->debug & DEBUG_ESCAPE)
        escape_note_frame(k, top, top + bytes);
    return p;
}

__attribute__((noinline)) PUBLIC void arena_frame_pop_slow(arena_stack_t *s, arena_frame_t frame)
{
    fork_generation(); /* in a child it is empty from here on */
    struct stack *k = stack_of(s);
    check_guard(k);
    if (frame >= k->s.top) /* of before a fork; or popped already */
        return;
    if (k->arena->debug & DEBUG_ESCAPE)
        escape_check_pop(k, frame);
    if (is_debugged(k))
        memset(k->s.base + frame, 0xdb, k->s.top - frame);
    k->s.top = frame;
}

static void *escape(arena_stack_t *s, uint64_t at, size_t size, unsigned flags)
{
    if (at < STACK_BOTTOM || at >= s->top || size > s->top - at) {
        errno = EINVAL;
        return NULL;
    }
    void *copy = arena_alloc_flags(stack_of(s)->arena, size, flags);
    return copy ? memcpy(copy, s->base + at, size) : NULL;
}

PUBLIC void *arena_escape(arena_stack_t *s, const void *p, size_t size, unsigned flags)
{
    return escape(s, (uint64_t)((const char *)p - s->base), size, flags);
}

PUBLIC void *arena_escape_handle(arena_stack_t *s, arena_handle_t handle, size_t size,
                                 unsigned flags)
{
    return escape(s, handle - s->handles, size, flags);
}

/* ---- a stack's life ------------------------------------------------------------------------- */

/* Without memory of its own: the guard is in the scratch, and the first allocation makes it grow.
 */
static void empty(struct stack *k)
{
    k->size = 0;
    k->s.base = k->scratch;
    k->s.top = STACK_BOTTOM;
    k->s.limit = 0;
    k->site_count = 0;
    memset(k->old, 0, sizeof k->old);
}

PUBLIC arena_stack_t *arena_stack(arena_t *a)
{
    struct stack *k = tls_stacks[a->index];
    if (k) {
        fork_generation(); /* in a child it is empty from here on */
        return &k->s;
    }
    if (!mcache_get(a)) /* from here on the thread's end is noticed */
        return NULL;
    k = calloc(1, sizeof *k);
    if (!k)
        return NULL;
    k->arena = a;
    empty(k);
    k->s.pop_max = is_debugged(k) ? 0 : SIZE_MAX;
    if (grow(k, STACK_FIRST) < 0) {
        free(k);
        return NULL;
    }
    k->tls = &tls_stacks[a->index];
    registry_enter();
    k->s.handles = HANDLE_BASE(++stack_count);
    k->next = stacks;
    store_release(&stacks, k); /* [FK3] */
    *k->tls = k;
    pthread_mutex_unlock(&registry_lock);
    return &k->s;
}

static void unlink_stack(struct stack *k)
{
    struct stack **at = &stacks;
    while (*at != k)
        at = &(*at)->next;
    store_release(at, k->next); /* [FK3] */
}

static void free_stack(struct stack *k)
{
    free(k->sites);
    free(k);
}

void stack_thread_exit(struct arena *a, struct thread *t)
{
    registry_enter();
    struct stack *k = stacks;
    while (k && (k->arena != a || k->owner != t))
        k = k->next;
    if (k)
        unlink_stack(k);
    if (k && t == thread_self())
        tls_stacks[a->index] = NULL;
    pthread_mutex_unlock(&registry_lock);
    if (!k)
        return;
    if (k->size) {
        arena_free(a, k->s.base);
        for (int i = 0; i < STACK_QUARANTINE; i++)
            arena_free(a, k->old[i]);
    }
    free_stack(k);
}

void stack_forget(struct arena *a)
{
    for (struct stack *k = stacks, *next; k; k = next) {
        next = k->next;
        if (k->arena == a) {
            if (k->owner && !thread_is_ending(k->owner, a->index))
                *k->tls = NULL;
            else if (!k->owner && tls_stacks[a->index] == k)
                tls_stacks[a->index] = NULL;
            unlink_stack(k);
            free_stack(k);
        }
    }
}

void stack_forget_own(uint32_t index) { tls_stacks[index] = NULL; }

/* The bytes are the parent's, and so is what other threads had. Whoever holds this thread's finds
 * it empty. Which one that is tells only the thread that forked. */
void stacks_after_fork(bool forking)
{
    for (struct stack *k = load_acquire(&stacks), *next; k; k = next) { /* [FK3] */
        next = k->next;
        if (forking && tls_stacks[k->arena->index] != k) {
            unlink_stack(k);
            free_stack(k);
            continue;
        }
        empty(k);
        k->owner = NULL;
        k->s.pop_max = 0;
    }
}
