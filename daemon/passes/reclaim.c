/* The pass over the state words on behalf of dead tags.
 *
 * One circular walk over all spans serves every tag that is dying: a tag is through when the cursor has gone once around
 * since it was added. At each span the words that bear a dying tag are freed, or turned to SHARED if the tag is that of
 * a committed transaction; a span leased to a dying client loses its lessee; and each unleased span is counted again, as
 * a client may have died between its FREE and its hint. Who is dying is in the map, so a restarted daemon goes on. While
 * a collection runs it rests: pins of the dead count until its end (B in gc.c).
 */
#include "daemon/core/core.h"

#include <errno.h>
#include <stdlib.h>

#include "shm/assert.h"
#include "shm/collect.h"
#include "shm/hazard.h"

int reclaim_init(struct core *core)
{
    core->reclaim.start = calloc(TAG_COUNT, sizeof *core->reclaim.start);
    return core->reclaim.start ? 0 : -ENOMEM;
}

void reclaim_add(struct core *core, unsigned tag)
{
    struct reclaim *r = &core->reclaim;
    ASSERT(r->start[tag] == 0);
    r->start[tag] = core->heap.page_count + 1; /* pages to go, wherever the cursor is */
    r->dying_count++;
    r->running = true;
}

/* What becomes of a word: FREE or SHARED; or the same again. */
static uint16_t verdict(const struct core *core, uint16_t word)
{
    unsigned tag = word_tag(word);
    if (tag == 0 || core->reclaim.start[tag] == 0)
        return word;
    return tag_state(&core->heap, tag) == TAG_TX_PUBLISHING && word_is_owned(word) ? WORD_SHARED : WORD_FREE;
}

static int change(uint16_t *word, uint16_t seen, uint16_t becomes)
{
    return becomes == WORD_FREE ? word_reclaim(word, seen) : word_publish_dead(word, seen);
}

/* Frees the dying tags' words of a span; how many are FREE after that. *ret_freed: changed to FREE. */
static uint32_t reclaim_words(struct core *core, const struct span_info *span, uint32_t *ret_freed)
{
    uint32_t free_count = 0, freed = 0;
    for (uint32_t i = 0; i < span->objects; i++) {
        uint16_t word = load_relaxed(&span->words[i]);
        uint16_t becomes = verdict(core, word);
        if (becomes != word && change(&span->words[i], word, becomes)) {
            if (becomes == WORD_FREE) {
                freed++;
                core->heap.header->reclaimed_objects += word_is_owned(word) != 0;
            }
            word = becomes;
        }
        free_count += word == WORD_FREE;
    }
    fence_acquire(); /* [ST1] */
    *ret_freed = freed;
    return free_count;
}

static bool is_dying(const struct core *core, unsigned tag) { return tag && core->reclaim.start[tag] != 0; }

/* die: in the middle of the words, or before the lessee is cleared: the tag is still dying, the pass starts again. */
static void reclaim_span(struct core *core, const struct span_info *span)
{
    const struct span *record = &core->heap.spans[span->first];
    uint32_t freed, free_count;
    uint16_t lessee = load_relaxed(&record->lessee);
    if (!lessee || is_dying(core, lessee))
        span_clear_hints(&core->heap, span->first, span->page_count);
    free_count = reclaim_words(core, span, &freed);
    if (is_dying(core, record->charged)) {
        core->clients[record->charged]->charged_pages -= span->page_count;
        core->clients[record->charged]->charged_spans--;
        span_set_charged(&core->heap, span->first, 0); /* its user stays charged until it is free */
    }
    if (is_dying(core, lessee)) {
        core->clients[lessee]->leased_pages -= span->page_count;
        core->clients[lessee]->leased_spans--;
        span_set_lessee(&core->heap, span->first, 0);
        lessee = 0;
    }
    if (!lessee)
        mcentral_place(core, span, free_count);
    else if (freed)
        hint_set(&core->heap.hints[span->first]); /* for its lessee */
}

/* A tag is through: no word bears it, and it may be used again. What a client had left half done in the state region - a
 * hazard, a turning - ends with it. die: the tag is still dying, and all is done again. */
static void retire(struct core *core, unsigned tag)
{
    struct reclaim *r = &core->reclaim;
    enum tag_state state = tag_state(&core->heap, tag);
    if (state == TAG_CLIENT_DYING) {
        hazard_clear_all(&core->heap, tag);
        turning_reset(&core->heap, tag);
    }
    r->start[tag] = 0;
    r->dying_count--;
    if (state == TAG_CLIENT_DYING) {
        core->clients[tag]->account->dying--;
        client_forget(core, tag);
    } else {
        account_of(core, core->heap.tags[tag].uid)->transactions--;
        core->tx_tag_count--;
    }
    tag_set_state(&core->heap, tag, TAG_FREE);
    core->progress++;
}

static void advance(struct core *core, uint64_t pages)
{
    struct reclaim *r = &core->reclaim;
    r->cursor += pages;
    if (r->cursor >= core->heap.page_count)
        r->cursor = 0;
    for (unsigned tag = 1, left = r->dying_count; left && tag < core->heap.header->tag_top; tag++) {
        if (!r->start[tag])
            continue;
        left--;
        r->start[tag] = r->start[tag] > pages + 1 ? r->start[tag] - pages : 1;
    }
}

bool reclaim_turn(struct core *core, uint32_t words)
{
    struct reclaim *r = &core->reclaim;
    uint64_t done = 0, passed = 0, spans = 0;
    if (collect_serial(&core->heap))
        return false;
    while (r->running && done < words && spans < TURN_SPANS) {
        struct span_info span;
        uint64_t at = r->cursor + passed;
        if (at >= core->heap.page_count)
            break;
        if (at >= core->mheap.top) { /* nothing was ever used from here on */
            passed += core->heap.page_count - at;
            break;
        }
        spans++;
        bool found = core_span_next(core, &at, &span);
        passed = at - r->cursor; /* before the span may be uncut */
        if (!found)
            continue;
        done += span.objects + span_entries_now(&span);
        reclaim_span(core, &span);
    }
    if (!r->running)
        return false;
    advance(core, passed);
    for (unsigned tag = 1; tag < core->heap.header->tag_top && r->dying_count; tag++)
        if (r->start[tag] == 1)
            retire(core, tag);
    r->running = r->dying_count != 0;
    return r->running;
}
