/* The mcache: a thread's magazines, and the fast paths of alloc and free over them.
 *
 * A magazine is a LIFO array of {object, state word}. Each entry's word is CACHED by this client; a pop looks at the word
 * first, and drops an entry whose word says otherwise. Orders within one thread: alloc stores the word, then the count;
 * free stores the word, then slot and count. So at any instruction an object is in a magazine, or allocated, or CACHED
 * and in none: then it is lost to this process until it dies, and never handed out twice.
 *
 * Capacities adapt: a magazine that runs empty or full grows, within MCACHE_BUDGET bytes for all of a thread's; when that
 * is used up it takes from one that was not used lately.
 */
#include <string.h>

#include "client/client.h"

__thread struct mcache *tls_mcaches[HEAPS_MAX];

/* ---- capacities ------------------------------------------------------------------------------------------------------------- */

static uint32_t capacity_max(unsigned span_class)
{
    uint32_t size = class_table[span_class].size;
    uint32_t slots = size ? MAGAZINE_BYTES / size : 0;
    return slots > MAGAZINE_SLOTS ? MAGAZINE_SLOTS : slots;
}

static uint32_t capacity_first(unsigned span_class)
{
    uint32_t size = class_table[span_class].size;
    return size <= 512 ? 16 : size <= 4096 ? 4 : 2;
}

void mcache_init(struct mcache *mc, struct arena *a, uint32_t number)
{
    memset(mc, 0, sizeof *mc);
    mc->number = number;
    mc->arena = a;
    mc->cached = WORD_CACHED(a->tag);
    mc->own = mc->owned = WORD_OWNED(a->tag);
    mc->trim_seen = load_relaxed(&a->trim_serial);
    uint8_t *at = (uint8_t *)mc + ((sizeof *mc + 4095) & ~4095ULL);
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        mc->magazines[c].slots = (struct slot *)(void *)at;
        at += capacity_max(c) * sizeof(struct slot);
    }
}

static void mark_used(struct mcache *mc, unsigned span_class) { mc->used_serial[span_class / 64] |= 1ULL << span_class % 64; }

static void give_back(struct mcache *mc, unsigned span_class, uint32_t keep);

/* Halves magazines that were not used since the cursor last passed them, until `bytes` fit. */
static bool steal(struct mcache *mc, uint64_t bytes)
{
    for (unsigned n = 0; n < SPAN_CLASS_COUNT && mc->budget_used + bytes > MCACHE_BUDGET; n++) {
        unsigned c = mc->steal_cursor = mc->steal_cursor + 1 < SPAN_CLASS_COUNT ? mc->steal_cursor + 1 : 2;
        struct magazine *m = &mc->magazines[c];
        bool used = mc->used_serial[c / 64] >> c % 64 & 1;
        mc->used_serial[c / 64] &= ~(1ULL << c % 64);
        if (used || m->capacity <= capacity_first(c))
            continue;
        uint32_t capacity = m->capacity / 2;
        if (m->count > capacity)
            give_back(mc, c, capacity);
        mc->budget_used -= (uint64_t)(m->capacity - capacity) * class_table[c].size;
        m->capacity = capacity;
    }
    return mc->budget_used + bytes <= MCACHE_BUDGET;
}

/* Doubles a magazine's capacity if it may. */
static bool grow(struct mcache *mc, unsigned span_class)
{
    struct magazine *m = &mc->magazines[span_class];
    uint32_t most = capacity_max(span_class), capacity = m->capacity ? m->capacity * 2 : capacity_first(span_class);
    if (capacity > most)
        capacity = most;
    uint64_t bytes = (uint64_t)(capacity - m->capacity) * class_table[span_class].size;
    if (capacity == m->capacity)
        return false;
    if (mc->budget_used + bytes > MCACHE_BUDGET && m->capacity && !steal(mc, bytes))
        return false;
    mc->budget_used += bytes;
    m->capacity = capacity;
    return true;
}

/* ---- refill and flush ----------------------------------------------------------------------------------------------------------- */

/* Fills an empty magazine: how many objects, or a negative errno. */
static int refill(struct mcache *mc, unsigned span_class)
{
    struct magazine *m = &mc->magazines[span_class];
    mark_used(mc, span_class);
    grow(mc, span_class);
    uint32_t want = m->capacity / 2 ? m->capacity / 2 : 1;
    int got = lease_refill(mc->arena, span_class, m->slots, want);
    if (got > 0)
        m->count = (uint32_t)got; /* die: CACHED words, which the pass frees */
    return got;
}

/* Takes the oldest entries out, all but `keep`, and flushes them: out of the magazine first, then their words. */
static void give_back(struct mcache *mc, unsigned span_class, uint32_t keep)
{
    enum { BATCH = 256 };
    struct slot batch[BATCH];
    struct magazine *m = &mc->magazines[span_class];
    while (m->count > keep) {
        uint32_t n = m->count - keep > BATCH ? BATCH : m->count - keep;
        memcpy(batch, m->slots, n * sizeof *batch);
        memmove(m->slots, m->slots + n, (m->count - n) * sizeof *batch);
        m->count -= n;
        lease_flush(mc->arena, span_class, batch, n);
    }
}

void mcache_flush_all(struct mcache *mc)
{
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++) {
        struct magazine *m = &mc->magazines[c];
        give_back(mc, c, 0);
        m->capacity = 0;
    }
    mc->budget_used = 0;
}

/* A push that found the magazine full. */
static void make_room(struct mcache *mc, unsigned span_class)
{
    struct magazine *m = &mc->magazines[span_class];
    mark_used(mc, span_class);
    trim_if_asked(mc);
    if (m->count < m->capacity || grow(mc, span_class))
        return;
    if (m->capacity)
        give_back(mc, span_class, m->capacity / 2);
    else
        m->capacity = capacity_first(span_class);
}

int mcache_push(struct mcache *mc, unsigned span_class, void *object, uint16_t *word)
{
    struct magazine *m = &mc->magazines[span_class];
    if (unlikely(m->count >= m->capacity))
        make_room(mc, span_class);
    m->slots[m->count] = (struct slot){object, word};
    m->count++;
    return 0;
}

/* ---- alloc -------------------------------------------------------------------------------------------------------------------------- */

/* Pops an object whose word becomes `to`; NULL: the magazine is empty. */
static inline void *pop(struct mcache *mc, struct magazine *m, uint16_t to, uint16_t **ret_word)
{
    while (likely(m->count)) {
        struct slot s = m->slots[m->count - 1];
        int ok = word_own(s.word, mc->cached, to);
        m->count--;
        if (likely(ok)) {
            *ret_word = s.word;
            return s.object;
        }
    }
    return NULL;
}

static __attribute__((noinline)) void *alloc_slow(struct mcache *mc, unsigned span_class, uint16_t to)
{
    struct magazine *m = &mc->magazines[span_class];
    uint16_t *word;
    void *object;
    if (mc->arena->read_only) {
        errno = EACCES;
        return NULL;
    }
    trim_if_asked(mc);
    while ((object = pop(mc, m, to, &word)) == NULL) {
        int got = refill(mc, span_class);
        if (got == -ENOMEM || got == -EDQUOT) { /* what this process hoards may be what is missing */
            mcache_flush_all(mc);
            lease_release_all(mc->arena);
            large_release_all(mc->arena);
            got = refill(mc, span_class);
        }
        if (got < 0) {
            errno = -got;
            return NULL;
        }
    }
    if (mc->special)
        tx_log(mc, object, word);
    return object;
}

void *alloc_class(struct mcache *mc, unsigned span_class, unsigned flags, size_t size)
{
    uint16_t *word, to = flags & ARENA_SHARED ? WORD_SHARED : mc->owned;
    void *object = pop(mc, &mc->magazines[span_class], to, &word);
    if (unlikely(!object))
        object = alloc_slow(mc, span_class, to);
    else if (unlikely(mc->special))
        tx_log(mc, object, word);
    if (object && (flags & ARENA_ZERO))
        memset(object, 0, size);
    return object;
}

static __attribute__((noinline)) void *alloc_first(arena_t *a, size_t size, unsigned flags)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    if (size > SMALL_MAX)
        return large_alloc(a, mc, size, 1, flags);
    return alloc_class(mc, SPAN_CLASS(size_class_of((uint32_t)size, flags & ARENA_NOSCAN), flags & ARENA_NOSCAN), flags, size);
}

PUBLIC void *arena_alloc(arena_t *a, size_t size)
{
    struct mcache *mc = tls_mcaches[a->index];
    if (unlikely(size > SMALL_MAX || !mc))
        return alloc_first(a, size, 0);
    unsigned size_class = size > 8 ? size_class_table[(size + 15) / 16] : 2;
    unsigned span_class = SPAN_CLASS(size_class, 0);
    struct magazine *m = &mc->magazines[span_class];
    uint32_t n = m->count;
    if (unlikely(n == 0))
        return alloc_slow(mc, span_class, mc->owned);
    struct slot s = m->slots[n - 1];
    if (unlikely(!word_own(s.word, mc->cached, mc->owned)))
        return alloc_slow(mc, span_class, mc->owned);
    m->count = n - 1;
    if (unlikely(mc->special))
        tx_log(mc, s.object, s.word);
    return s.object;
}

PUBLIC void *arena_alloc_flags(arena_t *a, size_t size, unsigned flags)
{
    struct mcache *mc = tls_mcaches[a->index];
    if (unlikely(flags & ~(unsigned)(ARENA_NOSCAN | ARENA_ZERO | ARENA_SHARED))) {
        errno = EINVAL;
        return NULL;
    }
    if (unlikely(size > SMALL_MAX || !mc))
        return alloc_first(a, size, flags);
    unsigned noscan = flags & ARENA_NOSCAN;
    return alloc_class(mc, SPAN_CLASS(size_class_of((uint32_t)size, noscan), noscan), flags, size);
}

PUBLIC size_t arena_alloc_batch(arena_t *a, size_t size, void **out, size_t count)
{
    size_t got = 0;
    while (got < count && (out[got] = arena_alloc(a, size)) != NULL)
        got++;
    return got;
}

/* ---- free --------------------------------------------------------------------------------------------------------------------------- */

PUBLIC void arena_free(arena_t *a, void *p)
{
    struct mcache *mc = tls_mcaches[a->index];
    uint64_t offset = (uint64_t)((uint8_t *)p - a->base);
    if (unlikely(offset >= a->heap_bytes || !mc))
        goto slow;
    uint64_t entry = load_relaxed(&a->pages[offset >> PAGE_SHIFT]);
    unsigned c = page_entry_class(entry);
    const struct class_info *info = &class_table[c];
    uint64_t in_span = ((uint64_t)page_entry_index(entry) << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1));
    uint32_t index = class_index(info, in_span);
    if (unlikely(!info->size || (uint64_t)index * info->size != in_span || index >= info->objects))
        goto slow;
    uint16_t *word = a->words + (uint64_t)page_entry_unit(entry) * UNIT_WORDS + index;
    uint16_t seen = load_relaxed(word);
    struct magazine *m = &mc->magazines[c];
    if (likely(seen == mc->own)) {
        if (unlikely(m->count >= m->capacity)) {
            make_room(mc, c);
            if (load_relaxed(word) != mc->own)
                goto slow;
        }
        store_relaxed(word, mc->cached); /* OWNED(t) -> CACHED(t): mine, a plain store */
    } else if (seen == WORD_SHARED) {
        if (unlikely(!word_swap(word, seen, mc->cached)))
            goto slow;
        if (unlikely(m->count >= m->capacity))
            make_room(mc, c);
    } else
        goto slow;
    m->slots[m->count] = (struct slot){p, word};
    m->count++;
    return;
slow:
    free_slow(a, mc, p);
}

PUBLIC void arena_free_batch(arena_t *a, void **objects, size_t count)
{
    for (size_t i = 0; i < count; i++)
        arena_free(a, objects[i]);
}

PUBLIC int arena_trim(arena_t *a)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return -errno;
    if (a->read_only)
        return 0;
    mc->trim_seen = fetch_add_relaxed(&a->trim_serial, 1) + 1;
    mcache_flush_all(mc);
    large_release_all(a);
    lease_release_all(a);
    return 0;
}
