#include "daemon/core/pagealloc.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#include "shm/assert.h"

enum { CHUNK = 512, CHUNK_WORDS = CHUNK / 64, FAN = 8 };

static uint64_t node_pages(unsigned level) { return (uint64_t)CHUNK << (3 * level); }
static uint64_t bits_bytes(const struct pagealloc *p) { return (p->count + CHUNK - 1) / CHUNK * CHUNK / 8; }

static void *reserve(uint64_t bytes)
{
    void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return m == MAP_FAILED ? NULL : m;
}

int pagealloc_init(struct pagealloc *p, uint64_t count)
{
    memset(p, 0, sizeof *p);
    ASSERT(count > 0 && count <= UINT32_MAX);
    p->count = p->fresh = count;
    p->bits = reserve(bits_bytes(p));
    bool ok = p->bits != NULL;
    for (unsigned level = 0;; level++) {
        ASSERT(level < PAGEALLOC_LEVELS);
        p->nodes[level] = (count + node_pages(level) - 1) / node_pages(level);
        p->level[level] = reserve(p->nodes[level] * sizeof(struct summary));
        ok = ok && p->level[level];
        p->levels = level + 1;
        if (p->nodes[level] == 1)
            break;
    }
    if (!ok)
        pagealloc_fini(p);
    return ok ? 0 : -ENOMEM;
}

void pagealloc_fini(struct pagealloc *p)
{
    if (p->bits)
        munmap(p->bits, bits_bytes(p));
    for (unsigned level = 0; level < p->levels; level++)
        if (p->level[level])
            munmap(p->level[level], p->nodes[level] * sizeof(struct summary));
    memset(p, 0, sizeof *p);
}

/* ---- summaries ------------------------------------------------------------------------------------------------------------- */

/* Longest run of ones in a word. */
static uint32_t longest_run(uint64_t w)
{
    uint32_t n = 0;
    for (; w; w &= w >> 1)
        n++;
    return n;
}

static struct summary chunk_summary(const uint64_t *words)
{
    struct summary s = {0, 0, 0};
    uint32_t run = 0;
    bool at_start = true;
    for (int i = 0; i < CHUNK_WORDS; i++) {
        uint64_t w = words[i];
        if (w == UINT64_MAX) {
            run += 64;
            continue;
        }
        run += (uint32_t)__builtin_ctzll(~w);
        if (at_start)
            s.start = run;
        at_start = false;
        s.max = run > s.max ? run : s.max;
        if ((uint32_t)__builtin_popcountll(w) > s.max) {
            uint32_t inside = longest_run(w);
            s.max = inside > s.max ? inside : s.max;
        }
        run = (uint32_t)__builtin_clzll(~w);
    }
    if (at_start)
        s.start = run;
    s.max = run > s.max ? run : s.max;
    s.end = run;
    return s;
}

static struct summary join(const struct summary *child, uint64_t children, uint64_t size)
{
    struct summary s = {0, 0, 0};
    uint64_t run = 0;
    bool at_start = true;
    for (uint64_t i = 0; i < children; i++) {
        if (child[i].start == size) {
            run += size;
            continue;
        }
        run += child[i].start;
        if (at_start)
            s.start = (uint32_t)run;
        at_start = false;
        s.max = run > s.max ? (uint32_t)run : s.max;
        s.max = child[i].max > s.max ? child[i].max : s.max;
        run = child[i].end;
    }
    if (at_start)
        s.start = (uint32_t)run;
    s.max = run > s.max ? (uint32_t)run : s.max;
    s.end = (uint32_t)run;
    return s;
}

static struct summary node_summary(const struct pagealloc *p, unsigned level, uint64_t node)
{
    if (level == 0)
        return chunk_summary(p->bits + node * CHUNK_WORDS);
    uint64_t first = node * FAN, children = p->nodes[level - 1] - first;
    struct summary s = join(p->level[level - 1] + first, children < FAN ? children : FAN, node_pages(level - 1));
    if (children < FAN)
        s.end = 0; /* beyond the last page nothing is free */
    return s;
}

static void update(struct pagealloc *p, uint64_t first, uint64_t last)
{
    for (unsigned level = 0; level < p->levels; level++) {
        bool changed = false;
        uint64_t from = first / node_pages(level), to = last / node_pages(level);
        for (uint64_t node = from; node <= to; node++) {
            struct summary s = node_summary(p, level, node), *old = &p->level[level][node];
            changed |= s.start != old->start || s.max != old->max || s.end != old->end;
            *old = s;
        }
        if (!changed)
            return;
    }
}

/* ---- bits ---------------------------------------------------------------------------------------------------------------------- */

static uint64_t mask_of(uint64_t from, uint64_t to) /* bits [from, to) of one word; from < to <= 64 */
{
    return (to == 64 ? UINT64_MAX : (1ULL << to) - 1) & ~((1ULL << from) - 1);
}

static void flip_bits(struct pagealloc *p, uint64_t first, uint64_t count, bool free)
{
    for (uint64_t at = first, end = first + count; at < end;) {
        uint64_t to = at / 64 * 64 + 64 < end ? at / 64 * 64 + 64 : end;
        uint64_t mask = mask_of(at % 64, to - at / 64 * 64);
        ASSERT((p->bits[at / 64] & mask) == (free ? 0 : mask));
        p->bits[at / 64] ^= mask;
        at = to;
    }
    update(p, first, first + count - 1);
}

/* The pages below `end` are no fresh ones any more, and some behind it, that it need not be done for each. */
static void open_fresh(struct pagealloc *p, uint64_t end)
{
    uint64_t first = p->fresh, step = node_pages(1);
    if (end <= first)
        return;
    end = (end + step - 1) / step * step;
    p->fresh = end < p->count ? end : p->count;
    p->touched = p->fresh;
    flip_bits(p, first, p->fresh - first, true);
}

static void set_bits(struct pagealloc *p, uint64_t first, uint64_t count, bool free)
{
    ASSERT(count > 0 && first < p->count && count <= p->count - first);
    if (!free)
        open_fresh(p, first + count);
    ASSERT(first + count <= p->fresh);
    p->touched = first + count > p->touched ? first + count : p->touched;
    flip_bits(p, first, count, free);
    p->free_count = free ? p->free_count + count : p->free_count - count;
}

void pagealloc_free(struct pagealloc *p, uint64_t first, uint64_t count) { set_bits(p, first, count, true); }
void pagealloc_take(struct pagealloc *p, uint64_t first, uint64_t count) { set_bits(p, first, count, false); }

void pagealloc_free_rest(struct pagealloc *p, uint64_t first)
{
    ASSERT(p->fresh == p->count && first <= p->count);
    p->fresh = first;
    p->free_count += p->count - first;
}

/* ---- walking -------------------------------------------------------------------------------------------------------------------- */

/* The first page at or after `from` that is free (or taken) in the tree; whole nodes without one are skipped. */
static uint64_t next_in_tree(const struct pagealloc *p, uint64_t from, bool free)
{
    while (from < p->count) {
        if (from % CHUNK == 0) {
            unsigned level = 0;
            const struct summary *s = &p->level[0][from / CHUNK];
            if (free ? s->max == 0 : s->start == CHUNK) {
                while (level + 1 < p->levels && from % node_pages(level + 1) == 0) {
                    s = &p->level[level + 1][from / node_pages(level + 1)];
                    if (!(free ? s->max == 0 : s->start == node_pages(level + 1)))
                        break;
                    level++;
                }
                from += node_pages(level);
                continue;
            }
        }
        uint64_t w = (free ? p->bits[from / 64] : ~p->bits[from / 64]) & ~((1ULL << from % 64) - 1);
        if (w) {
            uint64_t at = from / 64 * 64 + (uint64_t)__builtin_ctzll(w);
            return at < p->count ? at : p->count;
        }
        from = from / 64 * 64 + 64;
    }
    return p->count;
}

static uint64_t next(const struct pagealloc *p, uint64_t from, bool free)
{
    if (from >= p->fresh)
        return free && from < p->count ? from : p->count;
    uint64_t at = next_in_tree(p, from, free);
    if (at < p->fresh)
        return at;
    return free ? p->fresh : p->count;
}

uint64_t pagealloc_next_free(const struct pagealloc *p, uint64_t from) { return next(p, from, true); }
uint64_t pagealloc_next_taken(const struct pagealloc *p, uint64_t from) { return next(p, from, false); }

bool pagealloc_all_free(const struct pagealloc *p, uint64_t first, uint64_t count)
{
    return count <= p->count && first <= p->count - count && next(p, first, false) >= first + count;
}

bool pagealloc_any_free(const struct pagealloc *p, uint64_t first, uint64_t count)
{
    return next(p, first, true) < first + count;
}

uint64_t pagealloc_next_run(const struct pagealloc *p, uint64_t from, uint64_t limit, uint64_t *ret_first)
{
    uint64_t first = next(p, from, true);
    if (first >= p->count)
        return 0;
    uint64_t run = next(p, first, false) - first;
    *ret_first = first;
    return run < limit ? run : limit;
}

/* The last free (or taken) page below `before`; PAGEALLOC_NONE. */
static uint64_t previous(const struct pagealloc *p, uint64_t before, bool free)
{
    if (before > p->fresh) {
        if (free)
            return before - 1;
        before = p->fresh;
    }
    while (before > 0) {
        if (before % CHUNK == 0) {
            unsigned level = 0;
            const struct summary *s = &p->level[0][before / CHUNK - 1];
            if (free ? s->max == 0 : s->start == CHUNK) {
                while (level + 1 < p->levels && before % node_pages(level + 1) == 0) {
                    s = &p->level[level + 1][before / node_pages(level + 1) - 1];
                    if (!(free ? s->max == 0 : s->start == node_pages(level + 1)))
                        break;
                    level++;
                }
                before -= node_pages(level);
                continue;
            }
        }
        uint64_t word = (before - 1) / 64, in_word = before - word * 64;
        uint64_t w = (free ? p->bits[word] : ~p->bits[word]) & mask_of(0, in_word);
        if (w)
            return word * 64 + 63 - (uint64_t)__builtin_clzll(w);
        before = word * 64;
    }
    return PAGEALLOC_NONE;
}

uint64_t pagealloc_prev_run(const struct pagealloc *p, uint64_t before, uint64_t limit, uint64_t *ret_first)
{
    uint64_t last = previous(p, before < p->count ? before : p->count, true);
    if (last == PAGEALLOC_NONE)
        return 0;
    uint64_t taken = previous(p, last + 1, false);
    uint64_t run = taken == PAGEALLOC_NONE ? last + 1 : last - taken;
    if (run > limit)
        run = limit;
    *ret_first = last + 1 - run;
    return run;
}

/* ---- search ---------------------------------------------------------------------------------------------------------------------- */

/* The lowest run of `count` free pages that begins at or after `from`. Climbs over whole nodes that neither hold one nor
 * end one that began before them, and descends into the first that does: eight nodes a level. */
static uint64_t find_in_tree(const struct pagealloc *p, uint64_t from, uint64_t count)
{
    uint64_t at = from, run = 0; /* free pages just below `at`, from `from` on */
    while (at < p->fresh) {
        int level = -1;
        if (at % CHUNK == 0)
            while (level + 1 < (int)p->levels && at % node_pages((unsigned)level + 1) == 0) {
                const struct summary *s = &p->level[level + 1][at / node_pages((unsigned)level + 1)];
                if (run + s->start >= count)
                    return at - run;
                if (s->max >= count)
                    break;
                level++;
            }
        if (level >= 0) {
            uint64_t size = node_pages((unsigned)level);
            const struct summary *s = &p->level[level][at / size];
            run = s->start == size ? run + size : s->end;
            at += size;
            continue;
        }
        uint64_t w = p->bits[at / 64] >> at % 64, left = 64 - at % 64; /* of this word */
        uint64_t ones = ~w ? (uint64_t)__builtin_ctzll(~w) : 64;
        ones = ones < left ? ones : left;
        if (run + ones >= count)
            return at - run;
        run = ones == left ? run + ones : 0;
        uint64_t rest = ones < 64 ? w >> ones : 0; /* begins with a taken page */
        at += ones == left ? left : rest ? ones + (uint64_t)__builtin_ctzll(rest) : left;
    }
    return PAGEALLOC_NONE;
}

/* Where the run that goes over `fresh` to the last page begins, but not below `from`. */
static uint64_t fresh_run(const struct pagealloc *p, uint64_t from)
{
    uint64_t taken = previous(p, p->fresh, false), first = taken == PAGEALLOC_NONE ? 0 : taken + 1;
    return first > from ? first : from;
}

static uint64_t find_from(const struct pagealloc *p, uint64_t from, uint64_t count)
{
    uint64_t at = find_in_tree(p, from, count);
    if (at != PAGEALLOC_NONE || p->fresh == p->count)
        return at;
    at = fresh_run(p, from);
    return at < p->count && count <= p->count - at ? at : PAGEALLOC_NONE;
}

/* The lowest run of `count` free pages, at most 64, at a multiple of `align`, none of which begins below `from`. By words
 * and not by runs: a client can make millions of runs that are long enough and hold no aligned one. */
static uint64_t find_aligned(const struct pagealloc *p, uint64_t from, uint64_t count, uint64_t align)
{
    uint64_t words = ((p->touched < p->fresh ? p->touched : p->fresh) + 63) / 64, stride = align > 64 ? align / 64 : 1;
    uint64_t starts = align < 64 ? UINT64_MAX / ((1ULL << align) - 1) : 1; /* each align-th bit */
    for (uint64_t i = from / 64 / stride * stride; i < words;) {
        if (!p->bits[i]) {
            uint64_t free = next_in_tree(p, i * 64, true) / 64 / stride * stride;
            i = free > i ? free : i + stride;
            continue;
        }
        unsigned __int128 run = (unsigned __int128)(i + 1 < words ? p->bits[i + 1] : 0) << 64 | p->bits[i];
        for (uint64_t n = 1, more; n < count; n += more) { /* a bit is left where n free pages begin */
            more = n < count - n ? n : count - n;
            run &= run >> more;
        }
        if ((uint64_t)run & starts)
            return i * 64 + (uint64_t)__builtin_ctzll((uint64_t)run & starts);
        i += stride;
    }
    uint64_t at = (fresh_run(p, from) + align - 1) / align * align;
    return p->fresh < p->count && at < p->count && count <= p->count - at ? at : PAGEALLOC_NONE;
}

uint64_t pagealloc_find(const struct pagealloc *p, uint64_t count, uint64_t align)
{
    return pagealloc_find_above(p, 0, count, align);
}

uint64_t pagealloc_find_above(const struct pagealloc *p, uint64_t from, uint64_t count, uint64_t align)
{
    if (count == 0 || count > p->count)
        return PAGEALLOC_NONE;
    uint64_t at = find_from(p, from, count);
    if (at != PAGEALLOC_NONE && align > 1 && count <= 64)
        return find_aligned(p, at, count, align);
    while (at != PAGEALLOC_NONE && align > 1) { /* each run that is long enough, until one holds an aligned one */
        uint64_t taken = next(p, at, false), aligned = (at + align - 1) / align * align;
        if (aligned + count <= taken)
            return aligned;
        at = find_from(p, taken, count);
    }
    return at;
}

uint64_t pagealloc_longest(const struct pagealloc *p)
{
    uint64_t most = p->level[p->levels - 1][0].max;
    uint64_t over = p->fresh < p->count ? p->count - fresh_run(p, 0) : 0;
    return most > over ? most : over;
}

const char *pagealloc_check(const struct pagealloc *p)
{
    uint64_t free_count = 0, end = (p->count + CHUNK - 1) / CHUNK * CHUNK, touched = p->touched < p->fresh ? p->touched : p->fresh;
    for (uint64_t at = 0; at < touched; at += CHUNK) {
        const struct summary *s = &p->level[0][at / CHUNK];
        if (s->max == 0 && at + CHUNK <= p->count)
            continue; /* looked at below */
        for (int i = 0; i < CHUNK_WORDS; i++)
            free_count += (uint64_t)__builtin_popcountll(p->bits[at / 64 + (uint64_t)i]);
    }
    if (p->fresh < p->count)
        end = p->fresh + (CHUNK - p->fresh % CHUNK) % CHUNK;
    for (uint64_t page = p->fresh; page < end; page++)
        if (p->bits[page / 64] >> page % 64 & 1)
            return "a page beyond the last one, or a fresh one, is free in the bits";
    if (free_count + (p->count - p->fresh) != p->free_count)
        return "the number of free pages is wrong";
    for (unsigned level = 0; level < p->levels; level++)
        for (uint64_t node = 0; node < p->nodes[level] && node * node_pages(level) < touched; node++) {
            struct summary s = node_summary(p, level, node), *old = &p->level[level][node];
            if (s.start != old->start || s.max != old->max || s.end != old->end)
                return "a summary disagrees with what is below it";
        }
    return NULL;
}
