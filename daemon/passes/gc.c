/* The collector.
 *
 * What it frees: objects that were SHARED when it began, that no root leads to, and that nobody has pinned. Roots are
 * the named roots, all OWNED objects (live clients', open transactions', and committed ones that are not turned yet),
 * and the pins. A root leads to what its bytes name, if it is a scan object: each aligned 8-byte word counts as a
 * reference (an offset in the heap) and as a raw pointer (at the heap's common address), into the middle of an object
 * as well. The words prove nothing: a number that looks like a reference keeps its object alive.
 *
 * Why nothing in use is freed, while clients run
 * ----------------------------------------------
 * A client has declared itself, or no collection begins: it is at a safepoint (it uses no reference, and leaves only
 * with the daemon's answer, which waits for the end), or it pins what it holds. The latter's rules, in arena.h:
 * (P) whatever SHARED object it reads, frees, claims, or stores a reference to - also when it moves one - it has pinned
 * before, and then looked again whether the place where it found it still leads there; what it publishes it pins before.
 *
 * `white` has a bit for each word that was SHARED in the snapshot; marking clears it. Only a white one is ever freed.
 *
 * Five facts
 *  A. A bit stands for one place of the heap. Spans may be uncut and cut anew meanwhile, with other objects in the same pages: a
 *     pin of a freed object then leads to a word of another span, and leaves the bit of its own as it was. So state words that a
 *     span gives up go to no other while the snapshot is taken (mheap_hold_units()), and after it not before their bits are black
 *     (gc_release()); no bit becomes white again then. Such words bear bits of objects that are free, and no span that the sweep
 *     could find them by.
 *  B. A pin that was there at any moment since the flag went up is there at the end: who takes one away - arena_unpin(), a free of
 *     what is pinned, a realloc - first does what [GC1] says, a full fence, then the flag, and leaves the slot alone while the flag
 *     is up. If it saw the flag down, all that it had stored before is visible to the snapshot, whose fence comes after the flag's
 *     store. When its process dies its tables stay as they are too: while the flag is up no pass frees what the dead owned.
 *  C. So every reference that is stored while the flag is up is to an object whose pin the last look finds, or that was not white.
 *     The marking ends only when the queues are empty and a look at all roots and pins then finds nothing white (else it goes on).
 *     Take the first reference to a white object that is stored or pinned after that look began: by (P) it was found somewhere
 *     reachable, so there was a reference before it, stored by then - and all of those lead to marked objects.
 *  D. What is white after that look is unreachable, so nobody comes by it, and it may be freed at leisure: by compare-and-swap, so
 *     that not even a client that breaks the rules can make one object be freed twice.
 *  E. No word of a transaction is turned while the snapshot is taken: the workers start when no client is at it (gc_turner()), and
 *     who begins sees the flag, and `snapped` not yet [TN1]. So each object of a transaction is SHARED in all of the snapshot, or
 *     it is not white. One that is was committed and turned before the flag went up: it counts as any other.
 * An object that is OWNED in the snapshot is read while its owner may write to it: what that stores is covered by C.
 *
 * Each change of a word (T1 to T18 of shm/state.h), where it falls before the flag, in the snapshot, while marking, in the sweep:
 *  T1  T2   free objects are never white, nor are they references' ends; a white bit can be under them only after T11 to T13
 *  T3  T4   before: a root. In the snapshot: a root, or passed by as CACHED: not white, and what it refers to is pinned (C). Later:
 *           not white, likewise
 *  T5       never while the flag is up: a process that pins goes T3, pin, T8; one at a safepoint publishes nothing
 *  T6  T7   before: free. In the snapshot and later: it may have been read as a root; what it referred to is marked for nothing.
 *           What was copied from it is pinned, or in an object that was copied by the library: that goes T13
 *  T8       before: counts as SHARED. In the snapshot: white perhaps, and pinned by (P), so marked at the last look (B). Later: not
 *           white
 *  T9       publish: as T8. Turning: not in the snapshot (E); before it as SHARED; later not white
 *  T10      a root before and after
 *  T11      of a white one: it was pinned, so it is marked by the end (B), whatever is in that place of that span by then; in another
 *           span the bit is another's (A). Of one that the sweep is about to free: the swap of one fails
 *  T12      as T11; a root from then on, and its bit does not matter: the sweep frees SHARED words only. Published again (T8) while
 *           the bit is white: it is pinned, and marked
 *  T13      in the snapshot and later only, with the flag seen up after a full fence: so it is still read as a root or through its
 *           pin, which stays to the end (B), while its copy may have been passed by. Where the flag was seen down the copy was there
 *           before the snapshot began
 *  T14      after the end. A new collection may have begun: then the copy was there before it did
 *  T15 T16  before, or after the end: while the flag is up the pass rests (reclaim_turn()), and none begins with a pass under way
 *  T17      the sweep's own: a white word that is SHARED. It is not one that came there since: such a word is black (A, T11)
 *  T18      before: its words are roots until they are turned. In the snapshot and later: they were roots or not there, so never
 *           white; a root that moves with the commit is found at the last look, and what its objects refer to is pinned (C). Its client
 *           dies: T16, after the end
 *
 * While a collection runs the daemon does all its other work, but for three things: it returns no pages to the system, so
 * that none is read that has no memory behind it; it frees nothing of dead clients; and it holds state words back, see A.
 * A worker that reads a page's entry and its object's bytes at different times marks too much at worst: what is in a span
 * that was cut since the flag went up need not be read, for all that it refers to is pinned (C) or not white.
 *
 * die: the daemon: all of this is private memory, and so is the note of what is held; the flag is taken down when the next
 * one starts, the modes of clients are in the map. What was freed is FREE, what was not is SHARED. A client: its pins and
 * owned objects count until the end, and are freed by the pass after it.
 *
 * Memory: two bits a state word (the second only where queues overflow: such objects are found by a walk, later) and a
 * bounded pool. The heap's bytes are a client's: they are compared and looked up, never trusted.
 */
#include "daemon/passes/gc.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "shm/assert.h"
#include "shm/collect.h"
#include "shm/root.h"

enum {
    GC_CHUNK = 510,           /* references in a chunk of the pool */
    GC_POOL_CHUNKS = 8192,    /* 32 MiB at most */
    GC_STACK = 2 * GC_CHUNK,  /* of a worker's own */
    GC_RING = 8,              /* objects on their way from memory */
    GC_PIECE = 128 << 10,     /* bytes of a large object that a worker reads at once */
    GC_LOOK_STEPS = 256,      /* objects read between two looks at the others */
    GC_SHARE_STEPS = 4096,    /* and between two that give them work: to wake a thread costs as much as 500 objects */
    GC_WALK_PAGES = 4096,     /* of a walk over the spans, to a worker at once */
    GC_ROUNDS = 1000,         /* last looks that find something new before it gives up */
    GC_PIN_TABLES = 65536,    /* of a client */
    GC_RELEASE_UNITS = 65536, /* given back in a turn, their bits cleared */
};

struct chunk {
    struct chunk *next;
    uint64_t count;
    uint64_t at[GC_CHUNK];
};

/* sync: its worker */
struct worker {
    struct gc *gc;
    uint32_t count, ring_count, ring_first;
    uint64_t stack[GC_STACK];
    uint64_t ring[GC_RING];
    uint64_t roots, shares;
    struct gc_count scanned, marked;
};

struct gc {
    /* sync: constant after gc_begin() */
    const struct heap *heap;
    const uint8_t *objects;
    uint64_t base, top;
    uint32_t serial;
    /* a bit a state word, a byte a unit. sync: atomic */
    uint8_t *white, *grey;
    uint64_t cursor;     /* page: the next piece of a walk. sync: atomic */
    uint32_t cancelled, overflowed, hungry;
    /* sync: lock */
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct chunk *full, *empty;
    uint32_t chunks, workers, snapped, idle;
    bool walking, looking, done, gave_up;
    struct gc_report report;
    uint64_t sweep_page; /* sync: loop thread */
};

/* ---- begin and end ---------------------------------------------------------------------------------------------------------- */

unsigned gc_blocker(const struct core *core, unsigned from)
{
    for (unsigned tag = from ? from : 1; tag < core->heap.header->tag_top; tag++)
        if (core->clients[tag] && core->clients[tag]->state != CLIENT_DYING &&
            load_relaxed(&core->heap.tags[tag].gc_mode) == GC_RUNS)
            return tag;
    return 0;
}

unsigned gc_turner(const struct core *core, unsigned from)
{
    for (unsigned tag = from ? from : 1; tag < core->heap.header->tag_top; tag++)
        if (core->clients[tag] && core->clients[tag]->state != CLIENT_DYING &&
            turning_is_on(&core->heap, tag))
            return tag;
    return 0;
}

void gc_snapped(struct core *core, const struct gc *gc)
{
    collect_snapped(&core->heap, gc->serial);
}

static void *bits_new(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

static void gc_free(struct gc *gc)
{
    struct gc_user *user, *next_user;
    while (gc->full || gc->empty) {
        struct chunk **list = gc->full ? &gc->full : &gc->empty, *next = (*list)->next;
        free(*list);
        *list = next;
    }
    if (gc->white)
        munmap(gc->white, gc->heap->unit_count);
    if (gc->grey)
        munmap(gc->grey, gc->heap->unit_count);
    HASH_ITER(hh, gc->report.by_user, user, next_user) {
        HASH_DEL(gc->report.by_user, user);
        free(user);
    }
    free(gc->report.by_class);
    free(gc->report.by_tag);
    pthread_mutex_destroy(&gc->lock);
    pthread_cond_destroy(&gc->wake);
    free(gc);
}

struct gc *gc_begin(struct core *core, const uint8_t *objects, uint32_t workers, bool dry_run)
{
    struct map_header *header = core->heap.header;
    struct gc *gc = calloc(1, sizeof *gc);
    if (!gc)
        return NULL;
    gc->heap = &core->heap;
    gc->objects = objects;
    gc->base = header->base;
    gc->workers = gc->report.workers = workers;
    gc->report.dry_run = dry_run;
    gc->cursor = gc->sweep_page = 1;
    pthread_mutex_init(&gc->lock, NULL);
    pthread_cond_init(&gc->wake, NULL);
    gc->white = bits_new(core->heap.unit_count);
    gc->grey = bits_new(core->heap.unit_count);
    gc->report.by_class = calloc(CLASS_LIMIT, sizeof *gc->report.by_class);
    gc->report.by_tag = calloc(TAG_COUNT, sizeof *gc->report.by_tag);
    if (!gc->white || !gc->grey || !gc->report.by_class || !gc->report.by_tag) {
        gc_free(gc);
        return NULL;
    }
    gc->serial = collect_begin(&core->heap);
    gc->top = load_acquire(&header->top); /* [TP1] */
    mheap_hold_units(&core->mheap, true); /* A; on the loop thread, as all that gives them up */
    return gc;
}

void gc_is_over(struct core *core) { collect_end(&core->heap); }

void gc_end(struct core *core, struct gc *gc)
{
    gc_is_over(core);
    mheap_hold_units(&core->mheap, false);
    gc_free(gc);
}

bool gc_may_release(struct gc *gc)
{
    if (!gc)
        return true;
    pthread_mutex_lock(&gc->lock); /* what the snapshot wrote is seen */
    bool snapped = gc->snapped >= gc->workers;
    pthread_mutex_unlock(&gc->lock);
    return snapped;
}

void gc_release(struct core *core, struct gc *gc)
{
    uint64_t first, run;
    if (!core->mheap.held.free_count || !gc_may_release(gc))
        return;
    for (uint64_t left = GC_RELEASE_UNITS, runs = TURN_SPANS; left && runs; left -= run, runs--) {
        run = mheap_release_units(&core->mheap, left, &first);
        if (!run)
            break;
        for (uint64_t i = 0; gc && i < run; i++)
            store_relaxed(&gc->white[first + i], 0); /* others clear bits of these bytes, nobody sets any */
    }
    core->progress++;
}

const struct gc_report *gc_report(const struct gc *gc) { return &gc->report; }

void gc_worker_missing(struct gc *gc)
{
    pthread_mutex_lock(&gc->lock);
    gc->workers--;
    gc->report.workers--;
    pthread_cond_broadcast(&gc->wake);
    pthread_mutex_unlock(&gc->lock);
}

void gc_cancel(struct gc *gc)
{
    pthread_mutex_lock(&gc->lock);
    store_relaxed(&gc->cancelled, 1);
    pthread_cond_broadcast(&gc->wake);
    pthread_mutex_unlock(&gc->lock);
}

/* ---- queues ------------------------------------------------------------------------------------------------------------------- */

/* The queues are full: the object is found again by a walk. */
static void overflow(struct gc *gc, uint64_t at)
{
    struct object object;
    if (!object_find(gc->heap, at, &object))
        return;
    uint64_t word = (uint64_t)(object.word - gc->heap->words);
    fetch_or_relaxed(&gc->grey[word / 8], (uint8_t)(1u << word % 8));
    store_relaxed(&gc->overflowed, 1);
}

/* Moves a chunk's worth from the worker's stack to the pool. */
static void share(struct worker *w)
{
    struct gc *gc = w->gc;
    uint32_t n = w->count < GC_CHUNK ? w->count / 2 : GC_CHUNK;
    w->shares++;
    pthread_mutex_lock(&gc->lock);
    struct chunk *chunk = gc->empty;
    if (chunk)
        gc->empty = chunk->next;
    else if (gc->chunks < GC_POOL_CHUNKS && (chunk = malloc(sizeof *chunk)) != NULL)
        gc->chunks++;
    if (chunk) { /* the oldest ones: near the roots, so the most is behind them */
        memcpy(chunk->at, w->stack, n * sizeof *w->stack);
        chunk->count = n;
        chunk->next = gc->full;
        gc->full = chunk;
        pthread_cond_signal(&gc->wake);
    }
    pthread_mutex_unlock(&gc->lock);
    for (uint32_t i = 0; !chunk && i < n; i++)
        overflow(gc, w->stack[i]);
    memmove(w->stack, w->stack + n, (w->count - n) * sizeof *w->stack);
    w->count -= n;
}

static inline void push(struct worker *w, uint64_t at)
{
    if (unlikely(w->count == GC_STACK))
        share(w);
    w->stack[w->count++] = at;
}

/* ---- marking -------------------------------------------------------------------------------------------------------------------- */

/* Whatever is at this place of the heap is reached. The map is our own: its entries are right, if perhaps of before. */
static inline void reach(struct worker *w, uint64_t offset)
{
    const struct gc *gc = w->gc;
    uint64_t entry = load_relaxed(&gc->heap->pages[offset >> PAGE_SHIFT]);
    unsigned c = page_entry_class(entry);
    uint64_t in_span = ((uint64_t)page_entry_index(entry) << PAGE_SHIFT) + (offset & (PAGE_SIZE - 1));
    uint64_t byte = page_entry_unit(entry), size;
    uint32_t index = 0;
    if (!CLASS_IS_LARGE(c)) {
        const struct class_info *info = &class_table[c];
        index = class_index(info, in_span);
        if (index >= info->objects) /* a free page is of class 0, which has no objects */
            return;
        size = info->size;
    } else
        size = (uint64_t)load_relaxed(&gc->heap->spans[(offset - in_span) >> PAGE_SHIFT].page_count) << PAGE_SHIFT;
    byte += index / 8;
    uint8_t bit = (uint8_t)(1u << index % 8);
    if (byte >= gc->heap->unit_count || !(load_relaxed(&gc->white[byte]) & bit))
        return;
    if (!(fetch_and_relaxed(&gc->white[byte], (uint8_t)~bit) & bit))
        return; /* another worker was first */
    w->marked.objects++;
    w->marked.bytes += size;
    if (!CLASS_IS_NOSCAN(c))
        push(w, offset - in_span + (uint64_t)index * size);
}

/* Everything that the bytes of [from, to) may refer to is reached. */
static void scan_bytes(struct worker *w, uint64_t from, uint64_t to)
{
    const struct gc *gc = w->gc;
    const uint64_t heap_bytes = gc->heap->heap_bytes, base = gc->base;
    const uint64_t *at = (const uint64_t *)(const void *)(gc->objects + from);
    const uint64_t *end = (const uint64_t *)(const void *)(gc->objects + (to & ~7ULL));
    w->scanned.bytes += to - from;
    for (; at < end; at++) {
        uint64_t value = load_relaxed(at), offset = value - base;
        if (offset >= heap_bytes && (offset = value) >= heap_bytes)
            continue;
        if (offset >= PAGE_SIZE) /* page 0 is nobody's */
            reach(w, offset);
    }
}

/* Reads the object at `at`, or a piece of a large one from there. */
static void scan_at(struct worker *w, uint64_t at)
{
    const struct gc *gc = w->gc;
    struct object object;
    if (!object_find(gc->heap, at, &object) || CLASS_IS_NOSCAN(object.span_class))
        return;
    uint64_t end = object.offset + object.size;
    if (end > gc->heap->heap_bytes) /* what is read twice may not fit together */
        end = gc->heap->heap_bytes;
    if (end > at + GC_PIECE) {
        push(w, at + GC_PIECE); /* for whoever is free */
        end = at + GC_PIECE;
    }
    w->scanned.objects += at == object.offset;
    scan_bytes(w, at, end);
}

/* Empties the worker's stack. Objects are asked for from memory some steps before they are read. */
static void drain(struct worker *w)
{
    struct gc *gc = w->gc;
    uint32_t steps = 0, shared_at = 0;
    while (w->count || w->ring_count) {
        while (w->count && w->ring_count < GC_RING) {
            uint64_t at = w->stack[--w->count];
            __builtin_prefetch(gc->objects + at);
            w->ring[(w->ring_first + w->ring_count++) % GC_RING] = at;
        }
        uint64_t at = w->ring[w->ring_first];
        w->ring_first = (w->ring_first + 1) % GC_RING;
        w->ring_count--;
        scan_at(w, at);
        if (likely(++steps % GC_LOOK_STEPS))
            continue;
        if (load_relaxed(&gc->cancelled))
            w->count = w->ring_count = 0;
        else if (load_relaxed(&gc->hungry) && w->count >= 8 && steps - shared_at >= GC_SHARE_STEPS) {
            share(w);
            shared_at = steps;
        }
    }
}

/* ---- walks over all spans --------------------------------------------------------------------------------------------------------- */

/* What is SHARED is white; what is OWNED is a root. */
static void snapshot_span(struct worker *w, const struct span_info *span)
{
    struct gc *gc = w->gc;
    uint64_t unit = (uint64_t)(span->words - gc->heap->words) / UNIT_WORDS;
    bool scan = !CLASS_IS_NOSCAN(span->span_class);
    for (uint32_t i = 0; i < span->objects; i += UNIT_WORDS, unit++) {
        uint8_t bits = 0;
        for (uint32_t k = 0; k < UNIT_WORDS && i + k < span->objects; k++) {
            uint16_t word = load_relaxed(&span->words[i + k]);
            if (word == WORD_SHARED)
                bits |= (uint8_t)(1u << k);
            else if (scan && word_is_owned(word)) {
                w->roots++;
                push(w, (span->first << PAGE_SHIFT) + (uint64_t)(i + k) * span->size);
            }
        }
        if (bits)
            fetch_or_relaxed(&gc->white[unit], bits);
    }
}

/* What the queues had no room for. */
static void rescan_span(struct worker *w, const struct span_info *span)
{
    struct gc *gc = w->gc;
    uint64_t unit = (uint64_t)(span->words - gc->heap->words) / UNIT_WORDS;
    for (uint32_t i = 0; i < span->objects; i += UNIT_WORDS, unit++) {
        if (!load_relaxed(&gc->grey[unit]))
            continue;
        uint8_t bits = exchange_relaxed(&gc->grey[unit], 0);
        for (; bits; bits &= (uint8_t)(bits - 1)) {
            uint32_t index = i + (uint32_t)__builtin_ctz(bits);
            if (index < span->objects)
                push(w, (span->first << PAGE_SHIFT) + (uint64_t)index * span->size);
            drain(w);
        }
    }
}

/* A span that was cut anew between two loads of span_at() is taken for what it never was, with the words of others. The
 * entry of its first page, one load, says so. */
static bool is_of_one_time(const struct heap *h, const struct span_info *span)
{
    uint32_t unit = (uint32_t)((uint64_t)(span->words - h->words) / UNIT_WORDS);
    return load_relaxed(&h->pages[span->first]) == page_entry_make(span->span_class, unit, 0);
}

static void walk(struct worker *w, void (*visit)(struct worker *w, const struct span_info *span))
{
    struct gc *gc = w->gc;
    uint64_t page, end;
    while ((page = fetch_add_relaxed(&gc->cursor, GC_WALK_PAGES)) < gc->top && !load_relaxed(&gc->cancelled)) {
        end = page + GC_WALK_PAGES < gc->top ? page + GC_WALK_PAGES : gc->top;
        while (page < end) {
            struct span_info span;
            if (!span_at(gc->heap, page, &span) || !is_of_one_time(gc->heap, &span)) {
                page++;
                continue;
            }
            visit(w, &span);
            page += span.page_count ? span.page_count : 1;
        }
    }
}

/* ---- the last look -------------------------------------------------------------------------------------------------------------- */

static void look_at_roots(struct worker *w)
{
    const struct heap *h = w->gc->heap;
    for (uint32_t slot = 0; slot < h->root_slots; slot++) {
        if (!root_touched(h, slot)) {
            slot |= ROOT_BLOCK - 1;
            continue;
        }
        uint64_t ref = load_relaxed(&h->roots[slot].ref);
        if (ref && ref < h->heap_bytes) {
            w->roots++;
            reach(w, ref);
        }
    }
}

/* A client's tables of pins, as it says. They were in the snapshot, most of them: this is for what has changed since. */
static void look_at_pins(struct worker *w, unsigned tag)
{
    const struct heap *h = w->gc->heap;
    uint64_t ref = load_relaxed(&h->tags[tag].pins);
    for (uint32_t n = 0; ref && n < GC_PIN_TABLES; n++) {
        struct object object;
        if (ref >= h->heap_bytes - PIN_TABLE_BYTES || !object_find(h, ref, &object) || object.offset != ref ||
            object.size < PIN_TABLE_BYTES || load_relaxed(object.word) != WORD_OWNED(tag))
            return;
        scan_bytes(w, ref, ref + PIN_TABLE_BYTES);
        ref = load_acquire(&((const struct pin_table *)(const void *)(w->gc->objects + ref))->next); /* [PN1] */
    }
}

/* All are idle and the queues are empty. True: there is more to mark. */
static bool look_again(struct worker *w)
{
    struct gc *gc = w->gc;
    uint32_t tags = load_acquire(&gc->heap->header->tag_top); /* [TT1] */
    uint64_t shares = w->shares;
    fence_seq_cst(); /* [GC1] */
    look_at_roots(w);
    for (unsigned tag = 1; tag < tags && tag < TAG_COUNT; tag++)
        if (load_relaxed(&gc->heap->tags[tag].pins))
            look_at_pins(w, tag);
    return w->count != 0 || w->shares != shares;
}

/* ---- a worker ------------------------------------------------------------------------------------------------------------------------ */

static void await_snapshot(struct gc *gc)
{
    pthread_mutex_lock(&gc->lock);
    gc->snapped++;
    pthread_cond_broadcast(&gc->wake);
    while (gc->snapped < gc->workers && !gc->cancelled)
        pthread_cond_wait(&gc->wake, &gc->lock);
    pthread_mutex_unlock(&gc->lock);
}

static void take_chunk(struct worker *w)
{
    struct gc *gc = w->gc;
    struct chunk *chunk = gc->full;
    gc->full = chunk->next;
    memcpy(w->stack, chunk->at, chunk->count * sizeof *w->stack);
    w->count = (uint32_t)chunk->count;
    chunk->next = gc->empty;
    gc->empty = chunk;
}

/* The last one that is idle decides what comes next. True: the worker has something to do. */
static bool decide(struct worker *w)
{
    struct gc *gc = w->gc;
    gc->walking = false;
    if (exchange_relaxed(&gc->overflowed, 0)) {
        gc->report.overflows++;
        store_relaxed(&gc->cursor, 1);
        gc->walking = true;
    } else {
        gc->looking = true; /* and nobody else decides meanwhile, as push() may need the lock */
        pthread_mutex_unlock(&gc->lock);
        bool more = look_again(w);
        pthread_mutex_lock(&gc->lock);
        gc->looking = false;
        gc->gave_up = more && ++gc->report.rounds >= GC_ROUNDS;
        gc->done = !more || gc->gave_up;
    }
    pthread_cond_broadcast(&gc->wake);
    return !gc->done && w->count != 0;
}

/* Waits until there is work: references on its stack, or *ret_walk. False: all is done. */
static bool take_work(struct worker *w, bool *ret_walk)
{
    struct gc *gc = w->gc;
    bool work = false;
    *ret_walk = false;
    pthread_mutex_lock(&gc->lock);
    gc->idle++;
    store_relaxed(&gc->hungry, gc->idle);
    while (!work && !gc->done && !gc->cancelled) {
        if (gc->full) {
            take_chunk(w);
            work = true;
        } else if (gc->walking && load_relaxed(&gc->cursor) < gc->top)
            work = *ret_walk = true;
        else if (gc->idle >= gc->workers && !gc->looking)
            work = decide(w);
        else
            pthread_cond_wait(&gc->wake, &gc->lock);
    }
    gc->idle--;
    store_relaxed(&gc->hungry, gc->idle);
    pthread_mutex_unlock(&gc->lock);
    return work;
}

int gc_work(struct gc *gc)
{
    struct worker *w = calloc(1, sizeof *w);
    bool rewalk;
    if (!w) {
        gc_cancel(gc);
        return -ENOMEM;
    }
    w->gc = gc;
    walk(w, snapshot_span);
    await_snapshot(gc);
    do
        drain(w);
    while (take_work(w, &rewalk) && (rewalk ? walk(w, rescan_span), true : true));
    pthread_mutex_lock(&gc->lock);
    gc->report.roots += w->roots;
    gc->report.scanned.objects += w->scanned.objects;
    gc->report.scanned.bytes += w->scanned.bytes;
    gc->report.marked.objects += w->marked.objects;
    gc->report.marked.bytes += w->marked.bytes;
    int rc = gc->cancelled ? -ECANCELED : gc->gave_up ? -EAGAIN : 0;
    pthread_mutex_unlock(&gc->lock);
    free(w);
    return rc;
}

/* ---- the sweep ------------------------------------------------------------------------------------------------------------------------- */

static struct gc_user *user_of(struct gc *gc, uint32_t uid)
{
    struct gc_user *user;
    HASH_FIND(hh, gc->report.by_user, &uid, sizeof uid, user);
    if (!user && (user = calloc(1, sizeof *user)) != NULL) {
        user->uid = uid;
        HASH_ADD(hh, gc->report.by_user, uid, sizeof uid, user);
    }
    return user;
}

static void count(struct gc_count *c, uint64_t objects, uint64_t bytes)
{
    c->objects += objects;
    c->bytes += bytes;
}

/* die: some words FREE, some hints missing: a daemon that starts counts every unleased span, a lessee its own when it
 * looks, and a span whose hint was lost is counted when anything else in it is freed. */
static void sweep_span(struct core *core, struct gc *gc, const struct span_info *span)
{
    uint64_t unit = (uint64_t)(span->words - core->heap.words) / UNIT_WORDS, freed = 0;
    uint64_t size = span->size ? span->size : (uint64_t)span->page_count << PAGE_SHIFT;
    const struct span *record = &core->heap.spans[span->first];
    for (uint32_t i = 0; i < span->objects; i += UNIT_WORDS, unit++) {
        uint8_t bits = load_relaxed(&gc->white[unit]);
        for (; bits; bits &= (uint8_t)(bits - 1)) {
            uint32_t index = i + (uint32_t)__builtin_ctz(bits);
            uint16_t *word = &span->words[index];
            if (index >= span->objects || load_relaxed(word) != WORD_SHARED)
                continue;
            if (!gc->report.dry_run) {
                if (!word_collect(word))
                    continue;
                hint_set(&core->heap.hints[span->first + (index * size >> PAGE_SHIFT)]);
            }
            freed++;
        }
    }
    if (!freed)
        return;
    struct gc_user *user = record->charged ? NULL : user_of(gc, record->uid);
    count(&gc->report.white, freed, freed * size);
    count(&gc->report.by_class[span->span_class], freed, freed * size);
    if (record->charged && record->charged < TAG_COUNT)
        count(&gc->report.by_tag[record->charged], freed, freed * size);
    else if (user)
        count(&user->white, freed, freed * size);
}

bool gc_sweep(struct core *core, struct gc *gc, uint32_t words)
{
    uint64_t done = 0;
    while (gc->sweep_page < core->mheap.top && done < words) {
        struct span_info span;
        if (!span_next(&core->heap, &gc->sweep_page, &span)) {
            done++;
            continue;
        }
        sweep_span(core, gc, &span);
        done += span.objects / UNIT_WORDS + 1;
    }
    return gc->sweep_page < core->mheap.top;
}
