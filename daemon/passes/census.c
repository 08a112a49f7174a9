#include "daemon/passes/census.h"

#include <errno.h>
#include <stdio.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <msgpack.h>

#include "proto/msg.h"
#include "proto/stats.h"
#include "shm/root.h"

enum { STRAYS_TOLD = 1 << 20, ROW_MAX = 1024, FAULTS_MAX = 32, ROOTS_TURN = 131072 };

struct class_count {
    uint64_t spans, leased, pages, owned, shared, cached, free, bytes_used, bytes_cached;
};
struct tag_count {
    uint64_t owned, owned_bytes, cached, cached_bytes;
    uint64_t leased_free_bytes; /* FREE objects of the spans that it has leased */
};
struct fault {
    uint64_t page;
    char text[160];
};

struct census {
    struct core *core;
    unsigned what;
    uint64_t cursor, page, pages_leased, bytes_used, bytes_cached;
    struct class_count classes[CLASS_LIMIT];
    struct tag_count *tags;
    struct fault faults[FAULTS_MAX], doubts[FAULTS_MAX]; /* broken; and suspicious, without being broken */
    uint32_t fault_count, doubt_count;
    struct roots_look roots; /* INFO_CHECK: behind the spans */
    bool whole;        /* walks the heap; otherwise rows are made at once */
    bool rows_by_page; /* INFO_SPANS, INFO_MAP: rows are made on the way */
    msgpack_sbuffer rows;
    uint32_t row_count;
    uint64_t next_cursor;
};

struct census *census_new(struct core *core, unsigned what, uint64_t cursor)
{
    struct census *census = calloc(1, sizeof *census);
    if (!census)
        return NULL;
    census->core = core;
    census->what = what;
    census->cursor = cursor;
    census->tags = calloc(TAG_COUNT, sizeof *census->tags);
    if (!census->tags) {
        free(census);
        return NULL;
    }
    msgpack_sbuffer_init(&census->rows);
    census->rows_by_page = what == INFO_SPANS || what == INFO_MAP;
    census->whole = what == INFO_STATS || what == INFO_CLIENTS || what == INFO_CLASSES || what == INFO_CHECK ||
                    census->rows_by_page;
    census->page = census->rows_by_page ? cursor : 0;
    return census;
}

void census_free(struct census *census)
{
    if (!census)
        return;
    msgpack_sbuffer_destroy(&census->rows);
    free(census->tags);
    free(census);
}

static void fault(struct census *census, uint64_t page, const char *text)
{
    if (census->fault_count < FAULTS_MAX) {
        struct fault *f = &census->faults[census->fault_count];
        f->page = page;
        snprintf(f->text, sizeof f->text, "%s", text);
    }
    census->fault_count++;
}

static void __attribute__((format(printf, 2, 3))) doubt(struct census *census, const char *format, ...)
{
    va_list args;
    if (census->doubt_count < FAULTS_MAX) {
        va_start(args, format);
        vsnprintf(census->doubts[census->doubt_count].text, sizeof census->doubts[0].text, format, args);
        va_end(args);
    }
    census->doubt_count++;
}

/* A root was set to an object that was published. What became of that is not the daemon's to know, but to tell. */
static void doubt_root(struct census *census, const struct root *root)
{
    const struct heap *h = &census->core->heap;
    struct object object;
    bool found = object_find(h, root->ref, &object) && !object.remainder;
    uint16_t word = found ? load_acquire(object.word) : WORD_FREE; /* [PB1] */
    if (word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(h, word_tag(word))))
        return;
    doubt(census, "root \"%s\" leads to %s", root->name,
          !found                ? "no object"
          : word_is_owned(word) ? "an object that is not published: another's, in the place of one that was freed"
                                : "an object that was freed");
}

static void doubt_roots(struct census *census, uint32_t from, uint32_t to)
{
    const struct heap *h = &census->core->heap;
    for (uint32_t slot = from; slot < to; slot++)
        if (root_touched(h, slot) && h->roots[slot].ref)
            doubt_root(census, &h->roots[slot]);
}

static void doubt_clients(struct census *census)
{
    const struct core *core = census->core;
    for (unsigned tag = 1; tag < core->heap.header->tag_top; tag++)
        if (core->clients[tag] && core->clients[tag]->untold[0])
            doubt(census, "client %u (pid %u, uid %u) cannot be told to live or to be dead: %s", tag, core->clients[tag]->pid,
                  core->clients[tag]->uid, core->clients[tag]->untold);
}

/* ---- rows -------------------------------------------------------------------------------------------------------------------- */

static void put_str(msgpack_packer *pk, const char *s)
{
    size_t n = strlen(s);
    msgpack_pack_str(pk, n);
    msgpack_pack_str_body(pk, s, n);
}
static void put_number(msgpack_packer *pk, const char *name, uint64_t value)
{
    put_str(pk, name);
    msgpack_pack_uint64(pk, value);
}
static void put_text(msgpack_packer *pk, const char *name, const char *value)
{
    put_str(pk, name);
    put_str(pk, value);
}

static bool rows_full(const struct census *census) { return census->rows.size + ROW_MAX > MSG_BODY_MAX - 16; }

/* ---- counting ------------------------------------------------------------------------------------------------------------------- */

struct span_count {
    uint32_t owned, shared, cached, free;
};

static void count_word(struct census *census, const struct span_info *span, uint32_t index, uint64_t size,
                       struct span_count *n)
{
    uint16_t word = load_relaxed(&span->words[index]);
    unsigned tag = word_tag(word);
    if (word == WORD_FREE)
        n->free++;
    else if (word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(&census->core->heap, tag)))
        n->shared++;
    else if (word_is_cached(word)) {
        n->cached++;
        census->tags[tag].cached++;
        census->tags[tag].cached_bytes += size;
    } else {
        n->owned++;
        enum tag_state state = tag_state(&census->core->heap, tag);
        unsigned owner = state >= TAG_TX ? census->core->heap.tags[tag].owner % TAG_COUNT : tag;
        census->tags[owner].owned++;
        census->tags[owner].owned_bytes += size;
    }
    /* tags are given out and retired by this thread only: what is free now was free when the word was read */
    if (census->what == INFO_CHECK && tag && (tag >= census->core->heap.header->tag_top || tag_state(&census->core->heap, tag) == TAG_FREE))
        fault(census, span->first, "a state word bears a tag that nobody has");
}

static void count_span(struct census *census, const struct span_info *span, struct span_count *n)
{
    uint64_t size = span->size ? span->size : (uint64_t)span->page_count << PAGE_SHIFT;
    struct class_count *c = &census->classes[span->span_class];
    for (uint32_t i = 0; i < span->objects; i++)
        count_word(census, span, i, size, n);
    unsigned lessee = load_relaxed(&census->core->heap.spans[span->first].lessee);
    bool leased = lessee != 0;
    census->tags[lessee % TAG_COUNT].leased_free_bytes += n->free * size;
    c->spans++;
    c->leased += leased;
    c->pages += span->page_count;
    c->owned += n->owned;
    c->shared += n->shared;
    c->cached += n->cached;
    c->free += n->free;
    c->bytes_used += (uint64_t)(n->owned + n->shared) * size;
    c->bytes_cached += n->cached * size;
    census->bytes_used += (uint64_t)(n->owned + n->shared) * size;
    census->bytes_cached += n->cached * size;
    census->pages_leased += leased ? span->page_count : 0;
}

static void span_row(struct census *census, const struct span_info *span, const struct span_count *n)
{
    const struct span *record = &census->core->heap.spans[span->first];
    msgpack_packer pk;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 11);
    put_number(&pk, "page", span->first);
    put_number(&pk, "pages", span->page_count);
    put_number(&pk, "class", span->span_class);
    put_number(&pk, "size", span->size ? span->size : (uint64_t)span->page_count << PAGE_SHIFT);
    put_number(&pk, "objects", span->objects);
    put_number(&pk, "owned", n->owned);
    put_number(&pk, "shared", n->shared);
    put_number(&pk, "cached", n->cached);
    put_number(&pk, "free", n->free);
    put_number(&pk, "lessee", record->lessee);
    put_number(&pk, "returned", record->returned);
    census->row_count++;
}

/* A run of pages in no span. */
static void gap_row(struct census *census, uint64_t first, uint64_t pages, bool warm)
{
    msgpack_packer pk;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 4);
    put_number(&pk, "page", first);
    put_number(&pk, "pages", pages);
    put_number(&pk, "class", 0);
    put_number(&pk, "warm", warm);
    census->row_count++;
}

/* The pages of no span from `page` on: their number, at most 4096 a call. */
static uint64_t walk_gap(struct census *census, uint64_t page)
{
    struct heap *h = &census->core->heap;
    uint64_t top = census->core->mheap.top, at = page;
    uint64_t entry = load_relaxed(&h->pages[page]);
    while (at < top && at - page < TURN_SPANS && !load_relaxed(&h->spans[at].span_class) &&
           load_relaxed(&h->pages[at]) == entry)
        at++;
    if (at == page)
        at++;
    if (census->what == INFO_CHECK) {
        const char *why = mheap_check(&census->core->mheap, page, at);
        if (why)
            fault(census, page, why);
    } else if (census->what == INFO_MAP)
        gap_row(census, page, at - page, entry == PAGE_WARM);
    return at - page;
}

bool census_turn(struct census *census, uint32_t words)
{
    uint64_t done = 0;
    uint32_t spans = 0;
    if (!census->whole)
        return true;
    while (census->page < census->core->mheap.top && done < words && spans < TURN_SPANS) {
        struct span_info span;
        struct span_count n = {0, 0, 0, 0};
        if (census->rows_by_page && rows_full(census)) {
            census->next_cursor = census->page;
            return true;
        }
        spans++;
        if (!span_at(&census->core->heap, census->page, &span)) {
            census->page += walk_gap(census, census->page);
            done += 64;
            continue;
        }
        if (census->what == INFO_CHECK) {
            const char *why = mcentral_check(census->core, census->page);
            if (why)
                fault(census, census->page, why);
        }
        count_span(census, &span, &n);
        if (census->rows_by_page)
            span_row(census, &span, &n);
        done += span.objects + 1;
        census->page += span.page_count;
    }
    if (census->page < census->core->mheap.top)
        return false;
    if (census->what != INFO_CHECK || census->roots.slot == census->core->heap.root_slots)
        return true;
    uint32_t from = census->roots.slot;
    const char *why = done < words ? roots_check(census->core, &census->roots, TURN_SPANS) : NULL;
    doubt_roots(census, from, census->roots.slot);
    if (why) {
        fault(census, 0, why);
        return true;
    }
    return census->roots.slot == census->core->heap.root_slots;
}

/* ---- the answers ------------------------------------------------------------------------------------------------------------------ */

/* What the machine and the cgroups would give the heap now, beyond what it has. */
static uint64_t allowance_bytes(struct core *core)
{
    const struct backing *backing = &core->mheap.backing;
    uint64_t pages = backing->allowance ? backing->allowance(backing->context) : core->heap.page_count;
    return (pages < core->heap.page_count ? pages : core->heap.page_count) << PAGE_SHIFT;
}

static void stats_row(struct census *census, const struct census_outside *outside)
{
    struct core *core = census->core;
    struct class_count sum = {0};
    uint64_t heap_id = 0;
    char id[33];
    for (int i = 0; i < (int)CLASS_LIMIT; i++) {
        const struct class_count *c = &census->classes[i];
        sum.spans += c->spans;
        sum.leased += c->leased;
        sum.pages += c->pages;
        sum.owned += c->owned;
        sum.shared += c->shared;
        sum.cached += c->cached;
    }
    for (int i = 0; i < 16; i++) {
        heap_id = i < 8 ? heap_id << 8 | core->heap.header->heap_id[i] : heap_id;
        snprintf(id + 2 * i, 3, "%02x", core->heap.header->heap_id[i]);
    }
    const uint64_t heap_max = core->heap.heap_bytes, heap_backed = outside->heap_backed;
    const uint64_t heap_in_use = sum.pages << PAGE_SHIFT, objects_used = sum.owned + sum.shared;
    const uint64_t objects_owned = sum.owned, objects_shared = sum.shared, objects_cached = sum.cached;
    const uint64_t bytes_used = census->bytes_used, bytes_cached = census->bytes_cached;
    const uint64_t bytes_leased = census->pages_leased << PAGE_SHIFT, spans = sum.spans, spans_leased = sum.leased;
    const uint64_t clients = core->client_count, transactions = core->tx_tag_count, roots = core->root_count;
    const uint64_t refills = core->heap.header->refills, round_trips = core->heap.header->round_trips;
    const uint64_t reclaimed_clients = core->heap.header->reclaimed_clients;
    const uint64_t reclaimed_objects = core->heap.header->reclaimed_objects;
    const uint64_t pages_free = core->heap.page_count - 1 - sum.pages, pages_warm = core->mheap.warm.free_count;
    const uint64_t pages_returned = core->heap.header->pages_returned;
    const uint64_t map_backed = outside->map_backed, state_backed = outside->state_backed;
    const uint64_t words_in_use = core->mheap.units_used * UNIT_BYTES, epoch = core->heap.header->epoch;
    int count = 0;
    msgpack_packer pk;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
#define STAT_COUNT(name, text) count++;
    STATS(STAT_COUNT)
    msgpack_pack_map(&pk, (size_t)count + 14);
#define STAT_PUT(name, text) put_number(&pk, #name, name);
    STATS(STAT_PUT)
    put_number(&pk, "pages_free_run", pagealloc_longest(&core->mheap.free));
    put_number(&pk, "memory_allowance", allowance_bytes(core));
    put_number(&pk, "refused_full", core->refused_full);
    put_number(&pk, "refused_limit", core->refused_limit);
    put_text(&pk, "heap_id_hex", id);
    put_text(&pk, "name", outside->name ? outside->name : "");
    put_text(&pk, "socket", outside->socket ? outside->socket : "");
    put_number(&pk, "pid", outside->pid);
    put_number(&pk, "pid_namespace", outside->pid_namespace);
    put_number(&pk, "keeper_pid", outside->keeper_pid);
    put_number(&pk, "managed", outside->managed);
    put_number(&pk, "reloads", outside->reloads);
    put_number(&pk, "reloads_refused", outside->reloads_refused);
    put_text(&pk, "reload_error", outside->reload_error ? outside->reload_error : "");
    census->row_count = 1;
}

static void client_row(struct census *census, const struct client *client)
{
    const struct tag *t = &census->core->heap.tags[client->tag];
    static const char *const states[] = {"none", "live", "detached", "dying"};
    char command[sizeof t->command + 1] = {0};
    memcpy(command, t->command, sizeof t->command);
    msgpack_packer pk;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 24);
    put_number(&pk, "tag", client->tag);
    put_number(&pk, "pid", client->pid);
    put_number(&pk, "uid", client->uid);
    put_text(&pk, "command", command);
    put_text(&pk, "state", states[client->state]);
    put_number(&pk, "read_only", client->read_only);
    put_number(&pk, "objects_owned", census->tags[client->tag].owned);
    put_number(&pk, "bytes_owned", census->tags[client->tag].owned_bytes);
    put_number(&pk, "objects_cached", census->tags[client->tag].cached);
    put_number(&pk, "bytes_cached", census->tags[client->tag].cached_bytes);
    put_number(&pk, "bytes_leased", client->leased_pages << PAGE_SHIFT);
    put_number(&pk, "bytes_leased_free", census->tags[client->tag].leased_free_bytes);
    put_number(&pk, "bytes_charged", client->charged_pages << PAGE_SHIFT);
    put_number(&pk, "spans_leased", client->leased_spans);
    put_number(&pk, "spans_charged", client->charged_spans);
    put_number(&pk, "refills", client->refills);
    put_number(&pk, "since_ns", t->since_s * 1000000000ULL);
    put_number(&pk, "idle_ns", census->core->now_ns - client->heard_ns);
    put_number(&pk, "start_time", t->start_time);
    put_number(&pk, "inode", t->inode);
    put_text(&pk, "untold", client->untold);
    put_number(&pk, "untold_ns", client->untold[0] ? census->core->now_ns - client->untold_since_ns : 0);
    put_number(&pk, "connected", client->connection != NULL);
    put_number(&pk, "transactions", client->tx_count);
    census->row_count++;
}

static void class_row(struct census *census, unsigned span_class)
{
    const struct class_count *c = &census->classes[span_class];
    const struct mcentral *central = &census->core->central[span_class];
    msgpack_packer pk;
    if (!c->spans)
        return;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 14);
    put_number(&pk, "class", span_class);
    put_number(&pk, "size", class_table[span_class].size);
    put_number(&pk, "noscan", CLASS_IS_NOSCAN(span_class));
    put_number(&pk, "spans", c->spans);
    put_number(&pk, "leased", c->leased);
    put_number(&pk, "nonempty", central->nonempty_count);
    put_number(&pk, "owned", c->owned);
    put_number(&pk, "shared", c->shared);
    put_number(&pk, "cached", c->cached);
    put_number(&pk, "free", c->free);
    put_number(&pk, "bytes", c->pages << PAGE_SHIFT);
    put_number(&pk, "bytes_cached", c->bytes_cached);
    put_number(&pk, "bytes_waste", (c->pages << PAGE_SHIFT) - c->bytes_used);
    put_number(&pk, "refills", central->refills);
    census->row_count++;
}

static void root_rows(struct census *census)
{
    struct heap *h = &census->core->heap;
    for (uint64_t slot = census->cursor; slot < h->root_slots; slot++) {
        const struct root *root = &h->roots[slot];
        if (slot - census->cursor >= ROOTS_TURN) { /* the others are another reply's, though this one be short */
            census->next_cursor = slot;
            return;
        }
        if (!root_touched(h, (uint32_t)slot) || !root->ref)
            continue;
        if (rows_full(census)) {
            census->next_cursor = slot;
            return;
        }
        msgpack_packer pk;
        msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
        msgpack_pack_map(&pk, 3);
        put_text(&pk, "name", root->name);
        put_number(&pk, "ref", root->ref);
        put_number(&pk, "uid", root->uid);
        census->row_count++;
    }
}

static void check_rows(struct census *census, const struct census_outside *outside)
{
    const char *why = clients_check(census->core);
    if (why)
        fault(census, 0, why);
    if ((why = pagealloc_check(&census->core->mheap.free)) != NULL ||
        (why = pagealloc_check(&census->core->mheap.warm)) != NULL)
        fault(census, 0, why);
    if (load_relaxed(&census->core->heap.header->cut_off))
        fault(census, 0, "a client has cut off or punched a file of the backing directory: what was there is lost");
    for (uint32_t i = 0; i < census->fault_count && i < FAULTS_MAX; i++) {
        msgpack_packer pk;
        msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
        msgpack_pack_map(&pk, 2);
        put_number(&pk, "page", census->faults[i].page);
        put_text(&pk, "fault", census->faults[i].text);
        census->row_count++;
    }
    doubt_clients(census);
    if (outside->strays >= STRAYS_TOLD)
        doubt(census, "%llu bytes of memory are behind pages that nobody backed: somebody read or wrote them",
              (unsigned long long)outside->strays);
    for (uint32_t i = 0; i < census->doubt_count && i < FAULTS_MAX; i++) {
        msgpack_packer pk;
        msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
        msgpack_pack_map(&pk, 1);
        put_text(&pk, "suspicion", census->doubts[i].text);
        census->row_count++;
    }
}

static void limits_row(struct census *census)
{
    const struct limits *l = &census->core->limits;
    msgpack_packer pk;
    msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
    msgpack_pack_map(&pk, 18);
    put_number(&pk, "turn_words_most", census->core->turn_most.words);
    put_number(&pk, "turn_entries_most", census->core->turn_most.entries);
    put_number(&pk, "turn_backed_most", census->core->turn_most.backed);
    put_number(&pk, "turn_packets_most", census->core->turn_most.packets);
    put_number(&pk, "turn_retries_most", census->core->turn_most.retries);
    put_number(&pk, "client_bytes", l->client_bytes);
    put_number(&pk, "uid_bytes", l->uid_bytes);
    put_number(&pk, "client_spans", l->client_spans);
    put_number(&pk, "uid_spans", l->uid_spans);
    put_number(&pk, "clients", l->clients);
    put_number(&pk, "uid_clients", l->uid_clients);
    put_number(&pk, "roots", l->roots);
    put_number(&pk, "uid_roots", l->uid_roots);
    put_number(&pk, "connections", limit_connections(l));
    put_number(&pk, "uid_connections", limit_user_connections(l));
    put_number(&pk, "client_transactions", l->client_transactions);
    put_number(&pk, "uid_transactions", l->uid_transactions);
    put_number(&pk, "transactions", l->transactions);
    census->row_count++;
}

/* What each user's clients, and the spans that outlived them, are charged. */
static void user_rows(struct census *census)
{
    uint64_t number = 0;
    for (const struct uid_account *account = census->core->accounts; account; account = account->hh.next, number++) {
        if (number < census->cursor)
            continue;
        if (rows_full(census)) {
            census->next_cursor = number;
            return;
        }
        msgpack_packer pk;
        msgpack_packer_init(&pk, &census->rows, msgpack_sbuffer_write);
        msgpack_pack_map(&pk, 7);
        put_number(&pk, "uid", account->uid);
        put_number(&pk, "clients", account->clients);
        put_number(&pk, "connections", account->connections);
        put_number(&pk, "transactions", account->transactions);
        put_number(&pk, "roots", account->roots);
        put_number(&pk, "bytes_charged", account->charged_pages << PAGE_SHIFT);
        put_number(&pk, "spans_charged", account->charged_spans);
        census->row_count++;
    }
}

static void make_rows(struct census *census, const struct census_outside *outside)
{
    struct core *core = census->core;
    if (census->what == INFO_STATS)
        stats_row(census, outside);
    else if (census->what == INFO_CLIENTS) {
        for (uint64_t tag = census->cursor; tag < TAG_COUNT; tag++) {
            if (!core->clients[tag])
                continue;
            if (rows_full(census)) {
                census->next_cursor = tag;
                break;
            }
            client_row(census, core->clients[tag]);
        }
    } else if (census->what == INFO_CLASSES) {
        for (unsigned c = 0; c < CLASS_LIMIT; c++)
            class_row(census, c);
    } else if (census->what == INFO_ROOTS)
        root_rows(census);
    else if (census->what == INFO_CHECK)
        check_rows(census, outside);
    else if (census->what == INFO_LIMITS)
        limits_row(census);
    else if (census->what == INFO_USERS)
        user_rows(census);
}

int census_rows(struct census *census, const struct census_outside *outside, void **ret, size_t *ret_bytes,
                uint64_t *ret_cursor)
{
    msgpack_sbuffer all;
    msgpack_packer pk;
    make_rows(census, outside);
    msgpack_sbuffer_init(&all);
    msgpack_packer_init(&pk, &all, msgpack_sbuffer_write);
    msgpack_pack_array(&pk, census->row_count);
    msgpack_sbuffer_write(&all, census->rows.data ? census->rows.data : "", census->rows.size);
    *ret_bytes = all.size;
    *ret_cursor = census->next_cursor;
    *ret = msgpack_sbuffer_release(&all);
    return *ret ? 0 : -ENOMEM;
}
