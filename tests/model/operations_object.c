/* Objects of one's own: all that allocates, resizes and frees them. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

static void check_zero(const void *p, size_t size)
{
    for (size_t i = 0; i < size; i++)
        CHECK(((const char *)p)[i] == 0, "byte %zu of %zu is not 0", i, size);
}

static size_t alignment_of(size_t size, unsigned flags)
{
    if (flags & ARENA_NOSCAN && size <= 12)
        return size >= 5 && size <= 8 ? 8 : 4;
    return size >= 16 ? 16 : 8;
}

static void check_aligned(const void *p, size_t alignment, const char *what)
{
    CHECK(((uintptr_t)p & (alignment - 1)) == 0, "%s: %p is not aligned to %zu", what, p, alignment);
}

static void *alloc_by_flags(struct ctx *c, size_t size)
{
    unsigned flags = (unsigned)below(c, 4);
    void *p = arena_alloc_flags(c->a, size, flags);
    if (p && flags & ARENA_ZERO)
        check_zero(p, size);
    if (p)
        check_aligned(p, alignment_of(size, flags), "arena_alloc_flags");
    return p;
}

static void *alloc_cleared(struct ctx *c, size_t *size)
{
    size_t item = 1 + below(c, 40), count = *size / item + 1;
    *size = item * count;
    void *p = arena_calloc(c->a, count, item);
    if (p)
        check_zero(p, *size);
    return p;
}

static void *alloc_aligned(struct ctx *c, size_t size)
{
    size_t alignment = (size_t)1 << below(c, below(c, 20) || R->set.heap_bytes < 32 << 20 ? 13 : 22);
    void *p = arena_aligned_alloc(c->a, alignment, size);
    if (p)
        check_aligned(p, alignment, "arena_aligned_alloc");
    return p;
}

static void no_more(struct ctx *c, size_t size) { allocation_failed(c, errno, size); }

/* Published from the start. Its place is known only by the return; outside of transactions. */
static void alloc_shared(struct ctx *c, struct slot *s)
{
    size_t size = random_size(c);
    atomic_store(&c->t->unknown, 1);
    void *p = arena_alloc_flags(c->a, size, ARENA_SHARED | (unsigned)below(c, 4));
    if (p)
        slot_put(c, s, p, size, SLOT_SHARED);
    else
        no_more(c, size);
    atomic_store(&c->t->unknown, 0);
}

void object_new(struct ctx *c, struct slot *s)
{
    size_t size = random_size(c);
    void *p;
    switch (below(c, 12)) {
    case 0: case 1: p = alloc_by_flags(c, size); break;
    case 2: p = alloc_cleared(c, &size); break;
    case 3: p = alloc_aligned(c, size); break;
    case 4: p = arena_realloc(c->a, NULL, size); break;
    default:
        p = arena_alloc(c->a, size);
        if (p)
            check_aligned(p, alignment_of(size, 0), "arena_alloc");
        break;
    }
    if (!p) {
        no_more(c, size);
        return;
    }
    slot_put(c, s, p, size, c->in_tx ? SLOT_TX : SLOT_OWNED);
}

/* What was there is there still, up to the smaller size. */
static void check_kept(const void *p, const struct slot *s, size_t size)
{
    size_t kept = s->size < size ? s->size : size, from = is_headed(s->size) ? sizeof(struct head) : 0, at;
    const struct head *head = p;
    if (from && kept >= from)
        CHECK(head->id == s->id && head_size(head) == s->size, "realloc lost the head of object %llu", (unsigned long long)s->id);
    if (s->size <= 64 << 10 && kept > from)
        CHECK(pattern_holds(p, from, kept, s->id, &at), "realloc of %llu bytes to %zu lost byte %zu", (unsigned long long)s->size, size, at);
}

void object_resize(struct ctx *c, struct slot *s)
{
    uint32_t state = slot_state(s);
    void *old = slot_object(c, s);
    size_t size = below(c, 3) ? random_size(c) : s->size + s->size / 4 + 1;
    size = size > R->set.size_max ? R->set.size_max : size;
    slot_verify(c, s, "before realloc");
    if (size == 0) {
        if (state == SLOT_SHARED)
            slot_set(s, SLOT_UNSURE);
        CHECK(arena_realloc(c->a, old, 0) == NULL, "realloc to 0 returns something");
        slot_forget(c, s);
        return;
    }
    if (state == SLOT_SHARED) { /* killed in it, the old one and the new one may be there */
        atomic_store(&c->t->unknown, 1);
        slot_set(s, SLOT_UNSURE);
    }
    void *p = arena_realloc(c->a, old, size);
    int error = errno;
    if (p) {
        check_kept(p, s, size);
        atomic_fetch_sub_explicit(&c->p->live_bytes, s->size, memory_order_relaxed);
        slot_put(c, s, p, size, state);
    } else {
        slot_set(s, state);
        may_fail(c, error, "arena_realloc");
        slot_verify(c, s, "after a realloc that failed");
    }
    atomic_store(&c->t->unknown, 0);
}

/* ---- operations --------------------------------------------------------------------------------------------------- */

static void alloc_or_free(struct ctx *c)
{
    struct slot *s = random_slot(c);
    if (slot_state(s) == SLOT_EMPTY)
        object_new(c, s);
    else if (slot_is_free_to_use(s))
        slot_free(c, s);
}

/* Until the heap is full; then a part of it is free again, as the call that failed took its time. */
static void fill_or_empty(struct ctx *c)
{
    bool fills = fills_up(c);
    for (int i = 0; i < 32; i++) {
        struct slot *s = random_slot(c);
        if (!fills && slot_is_free_to_use(s))
            slot_free(c, s);
        else if (fills && slot_state(s) == SLOT_EMPTY) {
            object_new(c, s);
            fills = slot_state(s) != SLOT_EMPTY;
        }
    }
}

static void free_then_alloc(struct ctx *c)
{
    for (int i = 0; i < 16; i++) {
        struct slot *s = random_slot(c);
        if (slot_is_free_to_use(s))
            slot_free(c, s);
        if (slot_state(s) == SLOT_EMPTY)
            object_new(c, s);
    }
}

static void resize(struct ctx *c)
{
    struct slot *s = random_slot(c);
    if (slot_is_free_to_use(s))
        object_resize(c, s);
}

static void verify_some(struct ctx *c)
{
    for (int i = 0; i < 8; i++) {
        struct slot *s = random_slot(c);
        if (!slot_is_free_to_use(s))
            continue;
        slot_verify(c, s, "a look");
        void *p = slot_object(c, s);
        CHECK(arena_usable_size(c->a, p) >= s->size, "it has become too small");
        if (s->size > 1)
            CHECK(arena_ref(c->a, (char *)p + s->size - 1) == s->ref + s->size - 1, "an interior reference");
    }
}

static void published_from_the_start(struct ctx *c)
{
    struct slot *s = empty_slot(c);
    if (s)
        alloc_shared(c, s);
}

static void batches(struct ctx *c)
{
    void *objects[200];
    size_t size = random_size(c), count = 1 + below(c, size > 4096 || is_small_heap() ? 8 : 200);
    uint64_t id = id_new();
    size_t got = arena_alloc_batch(c->a, size, objects, count);
    if (got < count)
        no_more(c, size);
    for (size_t i = 0; i < got; i++)
        object_fill(objects[i], size, id + i * 7919);
    for (size_t i = 0; i < got; i++)
        object_verify(objects[i], size, id + i * 7919, "a batch");
    size_t kept = 0;
    for (struct slot *s; kept < got && below(c, 4) == 0 && (s = empty_slot(c)) != NULL; kept++)
        slot_put(c, s, objects[kept], size, c->in_tx ? SLOT_TX : SLOT_OWNED);
    arena_free_batch(c->a, objects + kept, got - kept);
}

static void bad_frees(struct ctx *c)
{
    struct slot *s = random_slot(c);
    char here[64];
    c->expected = EINVAL;
    arena_free(c->a, here + 16);
    CHECK(c->expected == 0, "a free of the thread's own stack was not called bad");
    if (slot_state(s) != SLOT_OWNED || s->size < 64)
        return;
    c->expected = EINVAL;
    arena_free(c->a, (char *)slot_object(c, s) + 16);
    CHECK(c->expected == 0, "a free of an interior pointer was not called bad");
    slot_verify(c, s, "after a bad free");
}

static void bad_arguments(struct ctx *c)
{
    errno = 0;
    CHECK(!arena_alloc_flags(c->a, 1, 64) && errno == EINVAL, "an unknown flag was taken");
    CHECK(!arena_calloc(c->a, SIZE_MAX / 2, 4) && errno == ENOMEM, "count times size overflowed");
    CHECK(!arena_aligned_alloc(c->a, 24, 100) && errno == EINVAL, "an alignment of 24");
    CHECK(!arena_aligned_alloc(c->a, 4 << 20, 100) && errno == EINVAL, "an alignment of 4 MiB");
    CHECK(arena_ptr(c->a, 0) == NULL && arena_ref(c->a, NULL) == 0, "null");
    CHECK(arena_ref(c->a, &errno) == 0, "what is not in the heap has a reference");
    CHECK(arena_publish(c->a, NULL) == -EINVAL && arena_claim(c->a, NULL) == -EINVAL, "null was published");
    arena_free(c->a, NULL);
}

const struct operation object_operations[] = {
    {"alloc_or_free", alloc_or_free, 600, FOR_WORKERS | FOR_CHILDREN},
    {"fill_or_empty", fill_or_empty, 8, FOR_WORKERS},
    {"free_then_alloc", free_then_alloc, 60, FOR_WORKERS | FOR_CHILDREN},
    {"resize", resize, 80, FOR_WORKERS | FOR_CHILDREN},
    {"verify_some", verify_some, 60, FOR_WORKERS | FOR_CHILDREN},
    {"published_from_the_start", published_from_the_start, 12, FOR_WORKERS},
    {"batches", batches, 20, FOR_WORKERS | FOR_CHILDREN},
    {"bad_frees", bad_frees, 4, FOR_WORKERS | FOR_CHILDREN},
    {"bad_arguments", bad_arguments, 2, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
