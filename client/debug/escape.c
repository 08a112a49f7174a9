#include "client/alloc/tx_log.h"
#include "client/debug/escape.h"
#include "client/debug/site.h"
#include "client/extra/stack.h"
#include "client/heap.h"
#include "client/link/reason.h"
#include "client/link/registry.h"
#include "shm/root.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Where the objects of the heap were allocated: open addressing by address, never shrinks. */
struct escape {
    pthread_mutex_t lock;
    struct note {
        uintptr_t object; /* 0: unused */
        struct site *site;
    } * notes;
    size_t count, capacity;
    struct {
        uintptr_t place;
        uint64_t value;
    } told[64]; /* what was reported lately is not reported again by the next pop. sync: lock */
    unsigned told_next; /* sync: lock */
};

/* The frames that are popped, as what could lead there. */
struct gone {
    struct stack *k;
    size_t frame, bytes;
    uint64_t pointer, ref, handle;
    struct site *popped_at;
};

static struct site *site_here(void)
{
    struct trace trace;
    trace_take(&trace);
    return trace.count ? site_of(&trace) : NULL;
}

/* ---- notes ---------------------------------------------------------------------------------- */

static struct escape *escape_of(struct arena *a)
{
    registry_enter();
    if (!a->escape && (a->escape = calloc(1, sizeof *a->escape)) != NULL)
        pthread_mutex_init(&a->escape->lock, NULL);
    pthread_mutex_unlock(&registry_lock);
    return a->escape;
}

void escape_fini(struct arena *a)
{
    if (a->escape)
        free(a->escape->notes);
    free(a->escape);
    a->escape = NULL;
}

static struct note *find_note(struct note *notes, size_t capacity, uintptr_t object)
{
    size_t i = (object >> 3) * 0x9e3779b97f4a7c15ULL >> 20 & (capacity - 1);
    while (notes[i].object && notes[i].object != object)
        i = (i + 1) & (capacity - 1);
    return &notes[i];
}

static bool enlarge(struct escape *e)
{
    size_t capacity = e->capacity ? e->capacity * 2 : 1024;
    struct note *notes = calloc(capacity, sizeof *notes);
    if (!notes)
        return false;
    for (size_t i = 0; i < e->capacity; i++)
        if (e->notes[i].object)
            *find_note(notes, capacity, e->notes[i].object) = e->notes[i];
    free(e->notes);
    e->notes = notes;
    e->capacity = capacity;
    return true;
}

void escape_note_heap(struct arena *a, void *object)
{
    struct escape *e = escape_of(a);
    struct site *site = site_here();
    memset(object, 0, arena_usable_size(a, object));
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    if (e->count * 2 < e->capacity || enlarge(e)) {
        struct note *n = find_note(e->notes, e->capacity, (uintptr_t)object);
        e->count += !n->object;
        *n = (struct note){(uintptr_t)object, site};
    }
    pthread_mutex_unlock(&e->lock);
}

static void drop_sites(struct stack *k, size_t from)
{
    while (k->site_count && k->sites[k->site_count - 1].end > from)
        k->site_count--;
}

void escape_note_frame(struct stack *k, size_t at, size_t end)
{
    drop_sites(k, at);
    if (k->site_count == k->site_capacity) {
        size_t capacity = k->site_capacity ? k->site_capacity * 2 : 64;
        struct stack_site *grown = realloc(k->sites, capacity * sizeof *grown);
        if (!grown)
            return;
        k->sites = grown;
        k->site_capacity = capacity;
    }
    k->sites[k->site_count++] = (struct stack_site){at, end, site_here()};
}

static struct site *site_in_stack(const struct stack *k, size_t at)
{
    for (size_t i = k->site_count; i-- > 0;)
        if (at >= k->sites[i].at && at < k->sites[i].end)
            return k->sites[i].site;
    return NULL; /* a small frame's: nothing of it is noted */
}

/* ---- reports -------------------------------------------------------------------------------- */

static void print_site(const struct site *s, char *text, size_t capacity)
{
    if (s && s->count)
        site_print_pc(s->pc[0], text, capacity);
    else
        snprintf(text, capacity, "an unknown place");
}

/* What is at a place of the heap. Who pops looks, as a collector does, at what the program's other threads write at the
 * same time as they like: with plain stores, of which no atomic here can be the partner. The word is compared with the
 * frame's addresses and no more. So ThreadSanitizer is told to leave this load out. */
#ifdef __SANITIZE_THREAD__
__attribute__((noinline, no_sanitize("thread")))
#endif
static uint64_t value_at(const uint64_t *place)
{
    return load_relaxed(place);
}

/* What of the popped frames `value` leads to: its offset in the stack; 0: nothing. */
static size_t leads_to(const struct gone *g, uint64_t value, const char **ret_kind)
{
    uint64_t at;
    if ((at = value - g->pointer) < g->bytes)
        *ret_kind = "pointer";
    else if ((at = value - g->handle) < g->bytes)
        *ret_kind = "handle";
    else if ((at = value - g->ref) < g->bytes)
        *ret_kind = "reference";
    else
        return 0;
    return g->frame + at;
}

/* Or else it is noted that it is told now. */
static bool told_before(struct escape *e, const void *place, uint64_t value)
{
    bool told = false;
    pthread_mutex_lock(&e->lock);
    for (size_t i = 0; i < sizeof e->told / sizeof e->told[0] && !told; i++)
        told = e->told[i].place == (uintptr_t)place && e->told[i].value == value;
    if (!told) {
        unsigned i = e->told_next++ % (sizeof e->told / sizeof e->told[0]);
        e->told[i].place = (uintptr_t)place;
        e->told[i].value = value;
    }
    pthread_mutex_unlock(&e->lock);
    return told;
}

static void tell(const struct gone *g, const char *kind, size_t at, const void *place,
                 const char *holder, const struct site *holder_site)
{
    struct arena *a = g->k->arena;
    char object[300], popped[300], held[300], text[1200];
    print_site(site_in_stack(g->k, at), object, sizeof object);
    print_site(g->popped_at, popped, sizeof popped);
    print_site(holder_site, held, sizeof held);
    snprintf(text, sizeof text,
             "escape: %s %p, allocated at %s, holds a %s to an object of a popped frame, allocated "
             "at %s, popped at %s: "
             "use arena_escape, or store it before the frame",
             holder, place, held, kind, object, popped);
    report_error(a, place, EFAULT, text);
}

/* ---- the search ----------------------------------------------------------------------------- */

static void look_at_stack(const struct gone *g, struct escape *e)
{
    const char *kind;
    for (size_t at = STACK_BOTTOM; at < g->frame; at += 8) {
        const uint64_t *place = (const uint64_t *)(void *)(g->k->s->base + at);
        uint64_t value = load_relaxed(place);
        size_t found = leads_to(g, value, &kind);
        if (found && !told_before(e, place, value))
            tell(g, kind, found, place, "an outer frame at", site_in_stack(g->k, at));
    }
}

static void look_at_object(const struct gone *g, struct escape *e, const uint8_t *object,
                           size_t size, bool shared)
{
    const char *kind;
    for (size_t i = 0; i + 8 <= size; i += 8) {
        const uint64_t *place = (const uint64_t *)(const void *)(object + i);
        uint64_t value = value_at(place);
        size_t found = leads_to(g, value, &kind);
        if (!found || told_before(e, place, value))
            continue;
        pthread_mutex_lock(&e->lock);
        struct site *site =
            e->capacity ? find_note(e->notes, e->capacity, (uintptr_t)object)->site : NULL;
        pthread_mutex_unlock(&e->lock);
        tell(g, kind, found, place, shared ? "a published object at" : "a heap object at", site);
    }
}

static void look_at_heap(const struct gone *g, struct escape *e)
{
    struct arena *a = g->k->arena;
    uint64_t top = load_acquire(&a->heap.header->top); /* [TP1] */
    for (uint64_t page = 1; page < top && page < a->heap.page_count;) {
        struct span_info span;
        if (!span_next(&a->heap, &page, &span))
            continue;
        uint64_t size =
            CLASS_IS_LARGE(span.span_class) ? (uint64_t)span.page_count << PAGE_SHIFT : span.size;
        uint8_t *base = a->base + (span.first << PAGE_SHIFT);
        for (uint32_t i = 0; i < span.objects; i++) {
            uint16_t word = load_relaxed(&span.words[i]);
            uint8_t *object = base + i * size;
            bool mine =
                word_is_owned(word) && (word_tag(word) == a->tag || tx_is_mine(a, word_tag(word)));
            if ((mine || word == WORD_SHARED) && object != (uint8_t *)g->k->s->base)
                look_at_object(g, e, object, size, !mine);
        }
    }
}

static void look_at_roots(const struct gone *g, struct escape *e)
{
    const struct heap *h = &g->k->arena->heap;
    const char *kind;
    for (uint32_t slot = 0; slot < h->root_slots; slot++) {
        if (!root_touched(h, slot)) {
            slot |= ROOT_BLOCK - 1;
            continue;
        }
        const uint64_t *place = &h->roots[slot].ref;
        uint64_t value = load_relaxed(place);
        size_t found = leads_to(g, value, &kind);
        if (found && !told_before(e, place, value))
            tell(g, kind, found, place, "a root at", NULL);
    }
}

void escape_check_pop(struct stack *k, size_t frame)
{
    struct escape *e = escape_of(k->arena);
    uint64_t at = (uint64_t)(uintptr_t)k->s->base + frame;
    struct gone g = {.k = k,
                     .frame = frame,
                     .bytes = k->s->top - frame,
                     .pointer = at,
                     .ref = at - (uint64_t)(uintptr_t)k->arena->base,
                     .handle = k->s->handles + frame,
                     .popped_at = site_here()};
    if (!e || !k->size)
        return;
    look_at_stack(&g, e);
    look_at_heap(&g, e);
    look_at_roots(&g, e);
    drop_sites(k, frame);
}
