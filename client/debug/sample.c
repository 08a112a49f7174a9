/* Samples of allocations, by address, and what became of them. See profile.h. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/alloc/mcache.h"
#include "client/alloc/tx_log.h"
#include "client/debug/profile.h"
#include "client/debug/site.h"
#include "client/heap.h"
#include "client/own/object.h"

uint64_t profile_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static uint64_t next_random(uint64_t *seed)
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed * 2685821657736338717ULL;
}

/* An interval to the next event, exponential with that mean, at least 1: -log2 by the exponent and
 * a linear mantissa, whose mean is 1.5 and not 1.4427. */
uint64_t profile_interval(uint64_t *seed, uint64_t mean)
{
    if (mean <= 1)
        return 1;
    uint64_t r = next_random(seed) | 1;
    unsigned zeros = (unsigned)__builtin_clzll(r);
    double mantissa = (double)(r << zeros) / 9223372036854775808.0; /* [1, 2) */
    double n = (double)mean * (zeros + 2 - mantissa) / 1.5;
    return n < 1 ? 1 : (uint64_t)n;
}

/* ---- samples by address --------------------------------------------------------------------- */

static struct sample **find(struct profile *p, uintptr_t object)
{
    struct sample **at =
        &p->buckets[(object >> 3) * 0x9e3779b97f4a7c15ULL >> 40 & (PROFILE_BUCKETS - 1)];
    while (*at && (*at)->object != object)
        at = &(*at)->next;
    return at;
}

void profile_drop(struct profile *p, struct sample **at)
{
    struct sample *s = *at;
    *at = s->next;
    free(s);
    p->sample_count--;
}

static void move(struct sample *s, enum fate to)
{
    s->tally->fates[s->fate]--;
    s->tally->fates[to]++;
    s->fate = to;
}

static void end(struct profile *p, struct sample **at, enum fate fate)
{
    struct sample *s = *at;
    move(s, fate);
    s->tally->ended++;
    s->tally->life_ns += (double)(profile_now_ns() - s->born_ns);
    profile_drop(p, at);
}

static struct tally *tally_of(struct profile *p, const struct trace *trace)
{
    struct site *site = site_of(trace);
    if (!site)
        return NULL;
    for (struct tally *t = p->tallies; t; t = t->next) /* one process's sites: tens */
        if (t->site == site)
            return t;
    struct tally *t = calloc(1, sizeof *t);
    if (!t)
        return NULL;
    t->site = site;
    t->next = p->tallies;
    return p->tallies = t;
}

/* ---- what became of published ones ---------------------------------------------------------- */

static void cross(struct profile *p, struct sample **at, unsigned tag)
{
    const struct heap *h = &p->arena->heap;
    struct tally *t = (*at)->tally;
    tag = tag_client(h, tag);
    uint32_t pid = load_relaxed(&h->tags[tag].pid);
    unsigned i = 0;
    while (i < t->to_count && (t->to[i].tag != tag || t->to[i].pid != pid))
        i++;
    if (i == t->to_count && i < PROFILE_CLIENTS) {
        t->to[i] = (struct crossing){.tag = (uint16_t)tag, .pid = pid};
        memcpy(t->to[i].command, h->tags[tag].command, sizeof t->to[i].command - 1);
        t->to_count++;
    }
    t->to[i < PROFILE_CLIENTS ? i : PROFILE_CLIENTS - 1].objects++;
    end(p, at, FATE_CROSSED);
}

/* True: the sample is over, and gone. */
static bool look(struct profile *p, struct sample **at)
{
    struct arena *a = p->arena;
    uint16_t word = load_relaxed((*at)->word);
    unsigned tag = word_tag(word);
    bool mine = tag == a->tag || (tag && tx_is_mine(a, tag));
    if (word == WORD_FREE)
        end(p, at, FATE_LOST);
    else if (word_is_cached(word) && mine)
        end(p, at, FATE_PUBLISHED);
    else if (tag && !mine && !tag_is_committed(&a->heap, tag))
        cross(p, at, tag);
    else
        return false;
    return true;
}

void profile_look(struct profile *p)
{
    for (unsigned i = 0; i < PROFILE_BUCKETS; i++)
        for (struct sample **at = &p->buckets[i]; *at;)
            if ((*at)->fate != FATE_SHARED || !look(p, at))
                at = &(*at)->next;
}

/* ---- events --------------------------------------------------------------------------------- */

/* The words of a sample of this process's own are told from others by their tag. */
static void mark(struct profile *p, const struct mcache *mc, struct sample *s)
{
    if (p->tag && load_relaxed(s->word) == mc->own)
        word_adopt(s->word, WORD_OWNED(p->tag)); /* T10: OWNED by this process, before and after */
    else
        move(s, FATE_SHARED);
}

/* With the lock held. */
static void account(struct profile *p, uint64_t from_ns)
{
    if (p->open)
        p->sampling_ns += profile_now_ns() - from_ns;
}

static void take_sample(struct profile *p, struct mcache *mc, void *object, size_t size)
{
    uint64_t from_ns = profile_now_ns();
    struct trace trace;
    struct object o;
    trace_take(&trace);
    if (!object_find(&p->arena->heap, (uint64_t)((uint8_t *)object - p->arena->base), &o))
        return;
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object); /* freed and given out again behind our back */
    if (*at)
        end(p, at, (*at)->fate == FATE_SHARED ? FATE_LOST : FATE_PROCESS);
    struct tally *t = p->sample_count < PROFILE_SAMPLES ? tally_of(p, &trace) : NULL;
    struct sample *s = t ? calloc(1, sizeof *s) : NULL;
    if (!s) {
        p->dropped++;
        pthread_mutex_unlock(&p->lock);
        return;
    }
    if (t->cfa != trace.cfa[0])
        t->runs = 0;
    t->cfa = trace.cfa[0];
    *s = (struct sample){.object = (uintptr_t)object,
                         .word = o.word,
                         .size = size,
                         .tally = t,
                         .thread = mc,
                         .born_ns = from_ns,
                         .runs = ++t->runs,
                         .frames = trace.count < PROFILE_FRAMES ? trace.count : PROFILE_FRAMES};
    memcpy(s->cfa, trace.cfa, s->frames * sizeof *s->cfa);
    memcpy(s->pc, trace.pc, s->frames * sizeof *s->pc);
    at = find(p, s->object);
    s->next = *at;
    *at = s;
    p->sample_count++;
    t->objects++;
    t->bytes += (double)size;
    t->fates[FATE_OWNED]++;
    mark(p, mc, s);
    account(p, from_ns);
    pthread_mutex_unlock(&p->lock);
}

void profile_alloc(struct mcache *mc, void *object, size_t size)
{
    struct profile *p = mc->arena->profile;
    if (mc->sample_in > 1) {
        mc->sample_in--;
        return;
    }
    bool first = mc->sample_in == 0 && p->every > 1; /* this thread begins to count */
    pthread_mutex_lock(&p->lock);
    mc->sample_in = (uint32_t)profile_interval(&p->seed, p->every);
    pthread_mutex_unlock(&p->lock);
    if (!first)
        take_sample(p, mc, object, size);
}

/* Which of the sample's callers has not returned: its number; -1: none that is known of. The same
 * activation has the same frame address and was called from the same places; so has one that took
 * its place. Where the site was met again since, nobody can tell, and nothing is claimed. A caller
 * that is still at the very call is so because what it called has not returned, or has made its
 * last call a jump. */
static int still_active(const struct sample *s, const struct trace *now)
{
    if (s->tally->cfa == s->cfa[0] && s->tally->runs != s->runs)
        return -1;
    for (unsigned i = 0; i < s->frames; i++)
        for (unsigned k = 0; k < now->count; k++)
            if (now->cfa[k] == s->cfa[i]) {
                unsigned n = 1;
                while (i + n < s->frames && k + n < now->count && now->pc[k + n] == s->pc[i + n])
                    n++;
                if (i + n >= s->frames || k + n >= now->count)
                    return i && now->pc[k] == s->pc[i] ? (int)i - 1 : (int)i;
            }
    return -1;
}

void profile_freed(struct arena *a, const void *object)
{
    struct profile *p = a->profile;
    uint64_t from_ns = profile_now_ns();
    struct trace trace;
    trace_take(&trace);
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object);
    struct sample *s = *at;
    if (s) {
        bool same_thread = s->thread == mcache_of(a);
        int frame = same_thread ? still_active(s, &trace) : -1;
        if (frame >= 0)
            s->tally->frames[frame]++;
        end(p, at, frame == 0 ? FATE_FRAME : same_thread ? FATE_THREAD : FATE_PROCESS);
    }
    account(p, from_ns);
    pthread_mutex_unlock(&p->lock);
}

void profile_published(struct arena *a, const void *object)
{
    struct profile *p = a->profile;
    pthread_mutex_lock(&p->lock);
    struct sample **at = find(p, (uintptr_t)object);
    if (*at && (*at)->fate == FATE_OWNED)
        move(*at, FATE_SHARED);
    pthread_mutex_unlock(&p->lock);
}
