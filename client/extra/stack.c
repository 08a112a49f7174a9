/* The thread's stack. Contiguous: at the edge of what it has it is copied once, to twice the size,
 * and then there is no edge any more; a segmented one would take and drop a segment every time
 * round.
 *
 * The bytes are an object OWNED by the process, never by a transaction that happens to be open. A
 * copy is made whole before the old object is freed. die: both are OWNED, and the pass frees them.
 *
 * Forks: a child, however it was made, holds its parent's pointer to a stack, and the inline functions would write into the
 * parent's frames. What they look at (struct arena_stack) is therefore memory that a fork wipes. Zeros lead each of them into
 * a slow path, and there its thread, nobody else, begins it anew (entered()).
 *
 * All stacks of the process lie in chunks, which stay: one part of a chunk is wiped, the other is found by the same index.
 * A child finds by index, without a list, what another thread may have been in the middle of.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/extra/pins.h"
#include "client/extra/stack.h"
#include "client/heap.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/registry.h"

enum { WIPED_BYTES = 64 << 10, WIPED_EACH = 64, CHUNK_STACKS = WIPED_BYTES / WIPED_EACH, CHUNKS_MAX = 128 };
_Static_assert(sizeof(struct arena_stack) <= WIPED_EACH, "what a fork wipes of a stack");
_Static_assert(CHUNK_STACKS * CHUNKS_MAX >= MCACHES_MAX * HEAPS_MAX, "a stack for each thread and heap");

/* Behind WIPED_BYTES, aligned to as much. */
struct chunk {
    struct stack stacks[CHUNK_STACKS];
};

static __thread struct stack *tls_stacks[HEAPS_MAX];
/* sync: registry_lock; looked at without it by who begins anew after a fork. A chunk is set before a stack of it counts */
static struct chunk *chunks[CHUNKS_MAX];
static uint32_t stacks_made;
static struct stack *spare;  /* sync: registry_lock */
static uint32_t stack_count; /* for handles. sync: registry_lock */

static struct stack *stack_of(const arena_stack_t *s)
{
    uintptr_t at = (uintptr_t)s, wiped = at & ~(uintptr_t)(WIPED_BYTES - 1);
    struct chunk *c = (struct chunk *)(wiped + WIPED_BYTES);
    return &c->stacks[(at - wiped) / WIPED_EACH];
}

static struct stack *stack_number(uint32_t i) { return &chunks[i / CHUNK_STACKS]->stacks[i % CHUNK_STACKS]; }

/* Without memory of its own: the guard is in the scratch, and the first allocation makes it grow. By its thread; by the one
 * that forked. */
static void begin(struct stack *k)
{
    k->s->top = STACK_BOTTOM;
    k->s->limit = 0;
    k->s->pop_max = 0;
    k->s->handles = k->handles;
    k->s->base = k->scratch;
}

/* What each slow path begins with: in a forked child the stack is empty from here on. */
static struct stack *entered(arena_stack_t *s)
{
    fork_generation();
    struct stack *k = stack_of(s);
    if (unlikely(!s->base))
        begin(k);
    return k;
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
    char *from = k->s->base, *to = alloc_own(k->arena, size);
    if (!to) {
        rc = -errno;
        free(entry);
        return rc;
    }
    memcpy(to, from, k->s->top);
    if (is_debugged(k))
        memset(to + k->s->top, 0, size - k->s->top);
    k->s->base = to;
    store_relaxed(&k->owner, thread_self());
    if (k->size)
        leave(k, from, k->size, entry);
    store_relaxed(&k->size, size);
    k->s->limit = is_debugged(k) ? 0 : real_limit(k);
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
    struct stack *k = entered(s);
    size_t size = k->size;
    while (size > STACK_FIRST && k->s->top <= size / 4 && k->s->top + ARENA_FRAME_GUARD <= size / 2)
        size /= 2;
    return size < k->size ? move_to(k, size) : 0;
}

int stack_collect(struct arena *a)
{
    struct stack *k = tls_stacks[a->index];
    if (!k)
        return 0;
    if (k->size) {
        arena_stack_shrink(k->s); /* or it is as it was */
        return 0;
    }
    /* a forked child's, still in private memory: the collector reads the heap alone */
    return k->s->top > STACK_BOTTOM ? grow(k, k->s->top + ARENA_FRAME_GUARD) : 0;
}

PUBLIC size_t arena_stack_size(const arena_stack_t *s)
{
    fork_generation();
    return stack_of(s)->size;
}

PUBLIC int arena_stack_set_max(arena_t *a, size_t bytes)
{
    if (bytes < STACK_FIRST || bytes > STACK_MAX_MAX)
        return refused(-EINVAL, "arena_stack_set_max: %zu is not from 2 KiB to 512 GiB", bytes);
    store_relaxed(&a->stack_max, bytes);
    return 0;
}

/* ---- frames --------------------------------------------------------------------------------- */

/* Small frames went beyond the guard: in debug mode, before they have done harm or soon after. */
static void check_guard(struct stack *k)
{
    size_t room = k->size ? k->size : sizeof k->scratch;
    if (k->s->top <= room)
        return;
    fprintf(stderr,
            "arena_frame_alloc_small: the guard of a stack is overrun by %zu bytes: more than %d "
            "small frames inside "
            "one another without an arena_frame_alloc\n",
            k->s->top - room, ARENA_FRAME_GUARD / ARENA_FRAME_SMALL);
    abort();
}

__attribute__((noinline)) PUBLIC void *arena_frame_alloc_slow(arena_stack_t *s, size_t size)
{
    struct stack *k = entered(s);
    size_t bytes = size ? (size + 15) & ~(size_t)15 : 16, top = k->s->top;
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
    k->s->top = top + bytes;
    void *p = k->s->base + top;
    if (k->arena->debug & DEBUG_ESCAPE)
        hooks.frame_object(k, top, top + bytes);
    return p;
}

__attribute__((noinline)) PUBLIC void arena_frame_pop_slow(arena_stack_t *s, arena_frame_t frame)
{
    struct stack *k = entered(s);
    check_guard(k);
    if (frame >= k->s->top) /* of before a fork; or popped already */
        return;
    if (frame < STACK_BOTTOM) /* pushed in a child before its stack was begun anew */
        frame = STACK_BOTTOM;
    if (k->arena->debug & DEBUG_ESCAPE)
        hooks.frame_pop(k, frame);
    if (is_debugged(k))
        memset(k->s->base + frame, 0xdb, k->s->top - frame);
    k->s->top = frame;
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

/* ---- safepoints of other threads ------------------------------------------------------------- */

static void *copy_make(struct arena *a)
{
    void *copy = alloc_own(a, sizeof(((struct stack *)NULL)->scratch));
    return copy ? memset(copy, 0, sizeof(((struct stack *)NULL)->scratch)) : NULL;
}

/* Pointers into a frame are its thread's, so the frames stay where they are: what the collector reads is a copy. */
static void copy_frames(struct stack *k)
{
    size_t top = load_relaxed(&k->s->top);
    size_t bytes = top < sizeof k->scratch ? top : sizeof k->scratch;
    memcpy(k->kept, k->scratch, bytes);
    memset((char *)k->kept + bytes, 0, sizeof k->scratch - bytes);
}

/* die: copies that are OWNED, which the pass frees */
int stacks_keep(struct arena *a)
{
    void *copy = NULL;
    bool again = true;
    while (again) {
        again = false;
        registry_enter();
        for (uint32_t i = 0; i < stacks_made && !again; i++) {
            struct stack *k = stack_number(i);
            if (k->arena != a || k == tls_stacks[a->index] || load_relaxed(&k->size) ||
                load_relaxed(&k->s->top) <= STACK_BOTTOM)
                continue;
            if (k->kept || copy) {
                if (!k->kept) {
                    k->kept = copy;
                    copy = NULL;
                }
                copy_frames(k);
            } else
                again = true;
        }
        pthread_mutex_unlock(&registry_lock);
        if (again && (copy = copy_make(a)) == NULL)
            return -errno;
    }
    arena_free(a, copy);
    return 0;
}

void stacks_let_go(struct arena *a)
{
    for (;;) {
        void *copy = NULL;
        registry_enter();
        for (uint32_t i = 0; i < stacks_made && !copy; i++) {
            struct stack *k = stack_number(i);
            if (k->arena == a && k->kept) {
                copy = k->kept;
                k->kept = NULL;
            }
        }
        pthread_mutex_unlock(&registry_lock);
        if (!copy)
            return;
        arena_free(a, copy);
    }
}

/* ---- a stack's life ------------------------------------------------------------------------- */

static struct chunk *chunk_make(void)
{
    size_t bytes = WIPED_BYTES + sizeof(struct chunk), all = bytes + WIPED_BYTES;
    uint8_t *p = mmap(NULL, all, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    uint8_t *at = p + (-(uintptr_t)p & (WIPED_BYTES - 1));
    if (fork_wipes() && madvise(at, WIPED_BYTES, MADV_WIPEONFORK) != 0) {
        munmap(p, all);
        return NULL;
    }
    struct chunk *c = (struct chunk *)(void *)(at + WIPED_BYTES);
    for (uint32_t i = 0; i < CHUNK_STACKS; i++)
        c->stacks[i].s = (struct arena_stack *)(void *)(at + (size_t)i * WIPED_EACH);
    return c;
}

/* One for this thread; NULL: no private memory. With registry_lock. */
static struct stack *stack_take(struct arena *a)
{
    struct stack *k = spare;
    if (k)
        spare = k->next_spare;
    else {
        uint32_t c = stacks_made / CHUNK_STACKS;
        if (c == CHUNKS_MAX || (!chunks[c] && (chunks[c] = chunk_make()) == NULL))
            return NULL;
        k = stack_number(stacks_made++);
    }
    *k = (struct stack){.s = k->s, .arena = a, .handles = HANDLE_BASE(++stack_count)};
    begin(k);
    return k;
}

/* With registry_lock. */
static void stack_put(struct stack *k)
{
    k->arena = NULL;
    k->next_spare = spare;
    spare = k;
}

PUBLIC arena_stack_t *arena_stack(arena_t *a)
{
    struct stack *k = tls_stacks[a->index];
    if (k) {
        entered(k->s);
        return k->s;
    }
    if (!mcache_get(a)) /* from here on the thread's end is noticed */
        return NULL;
    registry_enter();
    k = stack_take(a);
    pthread_mutex_unlock(&registry_lock);
    if (!k) {
        errno = refused(ENOMEM, "no private memory for a stack");
        return NULL;
    }
    if (grow(k, STACK_FIRST) < 0) {
        registry_enter();
        stack_put(k);
        pthread_mutex_unlock(&registry_lock);
        return NULL;
    }
    k->s->pop_max = is_debugged(k) ? 0 : SIZE_MAX;
    k->tls = &tls_stacks[a->index];
    *k->tls = k;
    return k->s;
}

void stack_thread_exit(struct arena *a, struct thread *t)
{
    struct stack *k = NULL;
    struct stack_site *sites = NULL;
    void *objects[STACK_QUARANTINE + 2] = {NULL};
    registry_enter();
    for (uint32_t i = 0; i < stacks_made && !k; i++)
        if (stack_number(i)->arena == a && load_relaxed(&stack_number(i)->owner) == t)
            k = stack_number(i);
    if (k) {
        memcpy(objects, k->old, sizeof k->old);
        objects[STACK_QUARANTINE] = k->size ? k->s->base : NULL;
        objects[STACK_QUARANTINE + 1] = k->kept;
        sites = k->sites;
        stack_put(k);
    }
    if (k && t == thread_self())
        tls_stacks[a->index] = NULL;
    pthread_mutex_unlock(&registry_lock);
    for (size_t i = 0; i < sizeof objects / sizeof *objects; i++)
        arena_free(a, objects[i]);
    free(sites);
}

void stack_forget(struct arena *a)
{
    for (uint32_t i = 0; i < stacks_made; i++) {
        struct stack *k = stack_number(i);
        if (k->arena != a)
            continue;
        if (k->owner && k->tls && !thread_is_ending(k->owner, a->index))
            *k->tls = NULL;
        else if (!k->owner && tls_stacks[a->index] == k)
            tls_stacks[a->index] = NULL;
        free(k->sites);
        stack_put(k);
    }
}

void stack_forget_own(uint32_t index) { tls_stacks[index] = NULL; }

static bool is_own(const struct stack *k)
{
    for (uint32_t i = 0; i < HEAPS_MAX; i++)
        if (tls_stacks[i] == k)
            return true;
    return false;
}

/* The bytes are the parent's, and so is what other threads had. Whoever holds this thread's finds it empty. Which one that
 * is tells only the thread that forked. What others were in the middle of is neither read nor freed. */
void stacks_after_fork(bool forking)
{
    while (stacks_made && !chunks[(stacks_made - 1) / CHUNK_STACKS])
        stacks_made--;
    spare = NULL;
    for (uint32_t i = 0; i < stacks_made; i++) {
        struct stack *k = stack_number(i);
        if (!k->arena || (forking && !is_own(k))) {
            stack_put(k);
            continue;
        }
        k->size = 0;
        k->owner = NULL;
        k->kept = NULL;
        k->sites = NULL;
        k->site_count = k->site_capacity = 0;
        memset(k->old, 0, sizeof k->old);
        if (forking || !fork_wipes())
            begin(k);
    }
}
