#include "daemon/backing.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/collector.h"
#include "daemon/connection.h"
#include "daemon/log.h"
#include "daemon/server.h"
#include "daemon/worker.h"

enum work_kind { WORK_SMALL, WORK_LARGE, WORK_RETURN, WORK_KINDS };
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

/* A growth that fails leaves nothing behind. */
static void do_some(const struct server *s, struct work *w)
{
    if (w->kind == WORK_RETURN) {
        w->rc = return_pages(s, w->first, w->pages);
        w->at = w->pages;
        return;
    }
    uint64_t left = w->pages - w->at, pages = left < GROW_PIECE ? left : GROW_PIECE;
    w->rc = back_pages(s, w->first + w->at, pages);
    if (w->rc < 0 && w->at)
        return_pages(s, w->first, w->at);
    w->at += pages;
}

static void worker_main(void *argument)
{
    struct server *s = argument;
    struct backer *b = s->backer;
    worker_schedule();
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
    bool grow = w->kind != WORK_RETURN;
    s->works--;
    if (grow && w->rc == 0)
        s->allowance_pages -= w->pages < s->allowance_pages ? w->pages : s->allowance_pages;
    else if (w->rc == 0)
        s->allowance_at_ns = 0; /* there is more now: to be asked anew */
    if (grow)
        core_grown(&s->core, w->first, w->pages, w->rc, s->core.now_ns);
    else
        core_returned(&s->core, w->first, w->pages, w->rc);
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

/* ---- start and stop --------------------------------------------------------------------------------------------------------------- */

int backing_start(struct server *s)
{
    struct backer *b = s->backer = calloc(1, sizeof *b);
    if (!b)
        return -ENOMEM;
    uv_mutex_init(&b->lock);
    uv_cond_init(&b->wake);
    uv_async_init(&s->loop, &b->landed, on_landed);
    b->landed.data = s;
    return worker_create(&b->thread, worker_main, s);
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
    uv_mutex_destroy(&b->lock);
    free(b);
    s->backer = NULL;
}
