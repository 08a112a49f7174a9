#include "daemon/shell/backing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/shell/collector.h"
#include "daemon/shell/connection.h"
#include "daemon/os/log.h"
#include "daemon/shell/server.h"
#include "daemon/os/sched.h"

enum work_kind { WORK_SMALL, WORK_LARGE, WORK_RETURN, WORK_CLEAR, WORK_TIDY, WORK_KINDS };
enum {
    PASSED_OVER_MAX = 2, /* how often a kind that waits is passed over */
    GROW_PIECE = 256,    /* pages backed at a time, 2 MiB: a fraction of a millisecond, after which a small request may come first */
};

struct work {
    struct work *next;
    uint64_t first, pages;
    uint64_t at; /* pages that are done */
    enum work_kind kind;
    int rc;
};

struct work_list {
    struct work *first, *last;
};

struct backer {
    uv_thread_t thread;
    uv_async_t landed;
    uv_mutex_t lock; /* of what follows */
    uv_cond_t wake;
    struct work_list waiting[WORK_KINDS], done;
    unsigned passed_over[WORK_KINDS];
    bool stop; /* when nothing waits any more */
    uint64_t units_claimed; /* of state words: those below are the loop's */
    uint64_t tidy_from;     /* unit from which some are being cleared; UINT64_MAX: none */
    uv_cond_t tidied;
    uint64_t grown_to;      /* no page at or above it was ever backed. sync: the worker */
};

static void list_push(struct work_list *list, struct work *w)
{
    w->next = NULL;
    *(list->last ? &list->last->next : &list->first) = w;
    list->last = w;
}

static struct work *list_pop(struct work_list *list)
{
    struct work *w = list->first;
    if (w) {
        list->first = w->next;
        if (!list->first)
            list->last = NULL;
    }
    return w;
}

/* ---- the worker ---------------------------------------------------------------------------------------------------------------- */

/* Of the first kind that waits, unless one behind it was passed over too often; it stays on its list until all of it is
 * done. */
static struct work *next_work(struct backer *b)
{
    unsigned take = WORK_KINDS;
    for (unsigned kind = 0; kind < WORK_KINDS; kind++)
        if (b->waiting[kind].first && (take == WORK_KINDS || b->passed_over[kind] >= PASSED_OVER_MAX))
            take = kind;
    if (take == WORK_KINDS)
        return NULL;
    for (unsigned kind = 0; kind < WORK_KINDS; kind++)
        b->passed_over[kind] = kind == take || !b->waiting[kind].first ? 0 : b->passed_over[kind] + 1;
    return b->waiting[take].first;
}

/* Of pages that come into use, the map's entries and records and the hints need memory too. */
static int back_pages(const struct server *s, uint64_t first, uint64_t pages)
{
    const struct heap *h = &s->core.heap;
    uint64_t entries = (uint64_t)((uint8_t *)&h->pages[first] - (uint8_t *)h->header);
    uint64_t records = (uint64_t)((uint8_t *)&h->spans[first] - (uint8_t *)h->header);
    int rc = region_back(&s->regions, REGION_MAP, entries, pages * sizeof *h->pages);
    if (rc == 0)
        rc = region_back(&s->regions, REGION_MAP, records, pages * sizeof *h->spans);
    if (rc == 0)
        rc = region_back(&s->regions, REGION_STATE, first, pages);
    return rc < 0 ? rc : region_back(&s->regions, REGION_HEAP, first << PAGE_SHIFT, pages << PAGE_SHIFT);
}

static int return_pages(const struct server *s, uint64_t first, uint64_t pages)
{
    return region_return(&s->regions, REGION_HEAP, first << PAGE_SHIFT, pages << PAGE_SHIFT);
}

/* Clears the next piece with memory of [from, to), in bytes: 1, or 0: there is none. */
static int clear_piece(const struct server *s, int which, uint64_t from, uint64_t to)
{
    enum { SYSTEM_PAGE = 4096, PIECE = 1 << 20 };
    from = (from + SYSTEM_PAGE - 1) / SYSTEM_PAGE * SYSTEM_PAGE;
    off_t at = from < to ? lseek(s->regions.fd[which], (off_t)from, SEEK_DATA) : -1;
    if (at < 0 || (uint64_t)at >= to)
        return 0;
    uint64_t bytes = to - (uint64_t)at;
    return region_return(&s->regions, which, (uint64_t)at, bytes < PIECE ? bytes : PIECE) == 0;
}

static int clear_words(struct server *s)
{
    struct backer *b = s->backer;
    const struct heap *h = &s->core.heap;
    uint64_t words_at = (uint64_t)((uint8_t *)h->words - h->hints);
    uv_mutex_lock(&b->lock);
    b->tidy_from = b->units_claimed;
    uv_mutex_unlock(&b->lock);
    int rc = clear_piece(s, REGION_STATE, words_at + b->tidy_from * UNIT_BYTES, s->regions.bytes[REGION_STATE]);
    uv_mutex_lock(&b->lock);
    b->tidy_from = UINT64_MAX;
    uv_cond_signal(&b->tidied);
    uv_mutex_unlock(&b->lock);
    return rc;
}

/* 1: a piece was cleared, and there may be more. */
static int tidy_some(struct server *s)
{
    const struct heap *h = &s->core.heap;
    const uint8_t *map = (const uint8_t *)h->header;
    uint64_t top = s->backer->grown_to, pages_at = (uint64_t)((uint8_t *)h->pages - map),
             spans_at = (uint64_t)((uint8_t *)h->spans - map), tickets_at = (uint64_t)((uint8_t *)h->tickets - h->hints);
    return clear_piece(s, REGION_STATE, top, tickets_at) || clear_words(s) ||
           clear_piece(s, REGION_MAP, pages_at + top * sizeof *h->pages, spans_at) ||
           clear_piece(s, REGION_MAP, spans_at + top * sizeof *h->spans, s->regions.bytes[REGION_MAP]);
}

static bool is_stopping(struct backer *b)
{
    uv_mutex_lock(&b->lock);
    bool stop = b->stop;
    uv_mutex_unlock(&b->lock);
    return stop;
}

/* A growth that fails leaves nothing behind. */
static void do_some(struct server *s, struct work *w)
{
    if (w->kind == WORK_TIDY) {
        w->at = tidy_some(s) && !is_stopping(s->backer) ? 0 : w->pages;
        return;
    }
    if (w->kind == WORK_RETURN || w->kind == WORK_CLEAR) {
        w->rc = return_pages(s, w->first, w->pages);
        w->at = w->pages;
        return;
    }
    uint64_t left = w->pages - w->at, pages = left < GROW_PIECE ? left : GROW_PIECE;
    if (w->first + w->at + pages > s->backer->grown_to)
        s->backer->grown_to = w->first + w->at + pages;
    w->rc = back_pages(s, w->first + w->at, pages);
    if (w->rc < 0 && w->at)
        return_pages(s, w->first, w->at);
    w->at += pages;
}

static void worker_main(void *argument)
{
    struct server *s = argument;
    struct backer *b = s->backer;
    sched_worker();
    uv_mutex_lock(&b->lock);
    for (;;) {
        struct work *w = next_work(b);
        if (!w && b->stop)
            break;
        if (!w) {
            uv_cond_wait(&b->wake, &b->lock);
            continue;
        }
        uv_mutex_unlock(&b->lock);
        do_some(s, w);
        uv_mutex_lock(&b->lock);
        if (w->rc < 0 || w->at == w->pages) {
            list_push(&b->done, list_pop(&b->waiting[w->kind]));
            uv_async_send(&b->landed);
        }
    }
    uv_mutex_unlock(&b->lock);
}

/* ---- the loop ------------------------------------------------------------------------------------------------------------------- */

static void work_done(struct server *s, const struct work *w)
{
    bool grow = w->kind == WORK_SMALL || w->kind == WORK_LARGE;
    s->works--;
    s->work_pages -= w->kind == WORK_TIDY ? 0 : w->pages;
    if (grow && w->rc == 0)
        s->allowance_pages -= w->pages < s->allowance_pages ? w->pages : s->allowance_pages;
    else if (w->rc == 0)
        s->allowance_at_ns = 0; /* there is more now: to be asked anew */
    if (grow)
        core_grown(&s->core, w->first, w->pages, w->rc, s->core.now_ns);
    else if (w->kind == WORK_RETURN)
        core_returned(&s->core, w->first, w->pages, w->rc);
    else if (w->kind == WORK_TIDY)
        s->strays.tidying = false;
    else {
        core_cleared(&s->core, w->first, w->pages);
        strays_cleared(s, w->pages);
    }
    if (w->rc < 0)
        log_event(LOG_LEVEL_WARNING, grow ? "grow" : "return", "page=%llu pages=%llu error=\"%s\"",
                  (unsigned long long)w->first, (unsigned long long)w->pages, strerror(-w->rc));
    s->core.progress++;
}

static void take_what_is_done(struct server *s)
{
    struct backer *b = s->backer;
    struct work *w;
    uv_mutex_lock(&b->lock);
    struct work_list done = b->done;
    b->done = (struct work_list){NULL, NULL};
    uv_mutex_unlock(&b->lock);
    s->core.now_ns = uv_hrtime();
    while ((w = list_pop(&done)) != NULL) {
        work_done(s, w);
        free(w);
    }
}

static void on_landed(uv_async_t *async)
{
    struct server *s = async->data;
    take_what_is_done(s);
    server_pump(s);
}

static int work_queue(struct server *s, uint64_t first, uint64_t pages, enum work_kind kind)
{
    struct backer *b = s->backer;
    struct work *w = malloc(sizeof *w);
    if (!w)
        return -ENOMEM;
    *w = (struct work){.first = first, .pages = pages, .kind = kind};
    uv_mutex_lock(&b->lock);
    list_push(&b->waiting[kind], w);
    uv_cond_signal(&b->wake);
    uv_mutex_unlock(&b->lock);
    s->works++;
    s->work_pages += kind == WORK_TIDY ? 0 : pages;
    return 0;
}

int backing_grow(void *context, uint64_t first, uint64_t pages)
{
    struct server *s = context;
    return work_queue(s, first, pages, s->core.mheap.grow_request <= GROW_SMALL ? WORK_SMALL : WORK_LARGE);
}

int backing_give_back(void *context, uint64_t first, uint64_t pages)
{
    return collector_holds_pages(context) ? -EBUSY : work_queue(context, first, pages, WORK_RETURN);
}

int backing_clear(struct server *s, uint64_t first, uint64_t pages) { return work_queue(s, first, pages, WORK_CLEAR); }

int backing_tidy(struct server *s) { return work_queue(s, 0, 1, WORK_TIDY); }

void backing_claim_units(struct server *s, uint64_t units)
{
    struct backer *b = s->backer;
    if (!b)
        return; /* at the start there is no worker */
    uv_mutex_lock(&b->lock);
    b->units_claimed = units > b->units_claimed ? units : b->units_claimed;
    while (b->tidy_from < units) /* a piece, a fraction of a millisecond */
        uv_cond_wait(&b->tidied, &b->lock);
    uv_mutex_unlock(&b->lock);
}

/* ---- start and stop --------------------------------------------------------------------------------------------------------------- */

int backing_start(struct server *s)
{
    struct backer *b = s->backer = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    uv_mutex_init(&b->lock);
    uv_cond_init(&b->wake);
    uv_cond_init(&b->tidied);
    b->tidy_from = UINT64_MAX;
    b->units_claimed = s->regions.state_backed_to;
    b->grown_to = s->core.heap.header->top;
    uv_async_init(&s->loop, &b->landed, on_landed);
    b->landed.data = s;
    return sched_create(&b->thread, worker_main, s);
}

void backing_stop(struct server *s)
{
    struct backer *b = s->backer;
    if (!b)
        return;
    uv_mutex_lock(&b->lock);
    b->stop = true;
    uv_cond_signal(&b->wake);
    uv_mutex_unlock(&b->lock);
    uv_thread_join(&b->thread);
    take_what_is_done(s);
}

void backing_free(struct server *s)
{
    struct backer *b = s->backer;
    if (!b)
        return;
    uv_cond_destroy(&b->wake);
    uv_cond_destroy(&b->tidied);
    uv_mutex_destroy(&b->lock);
    free(b);
    s->backer = NULL;
}
