/* `inspect`: a heap that nobody need serve - one that a daemon has refused, one of a process that is gone - is read from its
 * directory, from a process that keeps it, or from a core file. Nothing of it is changed, and no daemon is asked.
 *
 * What a death has cut short is finished in the copy first, by what a daemon that starts does it with; it is told as
 * suspicious. */
#include "client/ctl/inspect.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "client/ctl/ctl.h"
#include "shm/check.h"
#include "shm/root.h"
#include "shm/span.h"
#include "shm/tag.h"

struct inspection {
    struct ctl *ctl;
    struct inspected in;
    cJSON *faults, *suspicious;
    uint64_t rows; /* shown so far */
};

/* ---- rows: shown one by one, as there may be a million ------------------------------------------------------------------ */

static void show_row(struct inspection *i, cJSON *row, void (*show)(const cJSON *row))
{
    if (i->ctl->json) {
        char *text = cJSON_PrintUnformatted(row);
        printf("%s%s", i->rows ? ",\n" : "[\n", text ? text : "null");
        free(text);
    } else
        show(row);
    i->rows++;
    cJSON_Delete(row);
}

static int end_rows(const struct inspection *i)
{
    if (i->ctl->json)
        puts(i->rows ? "\n]" : "[]");
    return CTL_OK;
}

static void heading(const struct inspection *i, const char *text)
{
    if (!i->ctl->json)
        puts(text);
}

/* ---- check --------------------------------------------------------------------------------------------------------------- */

static void note_finding(void *context, const struct finding *f)
{
    static const char *const places[] = {[CHECK_HEADER] = "header", [CHECK_TAG] = "tag", [CHECK_ROOT] = "root", [CHECK_PAGE] = "page"};
    struct inspection *i = context;
    cJSON *row = cJSON_CreateObject();
    char name[ROOT_NAME + 1];
    cJSON_AddStringToObject(row, "place", places[f->place]);
    row_put(row, "number", f->number);
    if (f->place == CHECK_ROOT) {
        snprintf(name, sizeof name, "%.*s", ROOT_NAME, i->in.h.roots[f->number].name);
        cJSON_AddStringToObject(row, "name", clean(name, true));
    }
    cJSON_AddStringToObject(row, f->suspicious ? "suspicion" : "fault", f->text);
    cJSON_AddItemToArray(f->suspicious ? i->suspicious : i->faults, row);
}

static void show_finding(const cJSON *row, const char *what, const char *before)
{
    const char *place = row_text(row, "place"), *name = row_text(row, "name");
    printf("%s%s", before, place);
    if (strcmp(place, "header") != 0)
        printf(" %" PRIu64, row_number(row, "number"));
    if (*name)
        printf(" (%s)", name);
    printf(": %s\n", row_text(row, what));
}

static void heap_row(const struct inspection *i, cJSON *row)
{
    const struct map_header *header = i->in.h.header;
    char id[33];
    for (int n = 0; n < 16; n++)
        snprintf(id + 2 * n, 3, "%02x", header->heap_id[n]);
    cJSON_AddStringToObject(row, "heap_id", id);
    row_put(row, "layout", header->version);
    row_put(row, "heap_max", header->heap_max);
    row_put(row, "base", i->in.base);
    row_put(row, "epoch", header->epoch);
    row_put(row, "pages_top", header->top);
    row_put(row, "tags_top", header->tag_top);
}

static int show_check(struct inspection *i)
{
    bool ok = cJSON_GetArraySize(i->faults) == 0;
    cJSON *result = cJSON_CreateObject(), *row;
    heap_row(i, result);
    if (i->ctl->json) {
        cJSON_AddBoolToObject(result, "ok", ok);
        cJSON_AddItemToObject(result, "faults", i->faults);
        cJSON_AddItemToObject(result, "suspicious", i->suspicious);
        i->faults = i->suspicious = NULL;
        print_json(result);
        return ok ? CTL_OK : CTL_FAULT;
    }
    printf("heap %s of %s at %#" PRIx64 ", layout %" PRIu64 ", served %" PRIu64 " time%s\n", row_text(result, "heap_id"),
           human(row_number(result, "heap_max")), row_number(result, "base"), row_number(result, "layout"), row_number(result, "epoch"),
           row_number(result, "epoch") == 1 ? "" : "s");
    cJSON_ArrayForEach(row, i->faults) show_finding(row, "fault", "");
    if (ok)
        puts("ok: every invariant holds");
    cJSON_ArrayForEach(row, i->suspicious) show_finding(row, "suspicion", "suspicious: ");
    cJSON_Delete(result);
    return ok ? CTL_OK : CTL_FAULT;
}

/* ---- spans, roots, clients --------------------------------------------------------------------------------------------------- */

/* The spans that can be read, in turn: the next one from *page on. What is no span is stepped over page by page. */
static bool next_span(const struct heap *h, uint64_t *page, struct span_info *ret)
{
    for (; *page < h->header->top; (*page)++)
        if (span_at(h, *page, ret) && !span_check(h, *page)) {
            *page += ret->page_count;
            return true;
        }
    return false;
}

static uint64_t object_bytes(const struct span_info *span) { return span->size ? span->size : (uint64_t)span->page_count << PAGE_SHIFT; }

struct counts {
    uint64_t owned, shared, cached, free;
};

static void count_word(const struct heap *h, uint16_t word, struct counts *n)
{
    unsigned tag = word_tag(word);
    if (word == WORD_FREE)
        n->free++;
    else if (word == WORD_SHARED || (word_is_owned(word) && tag < TAG_COUNT && tag_is_committed(h, tag)))
        n->shared++;
    else if (word_is_owned(word))
        n->owned++;
    else
        n->cached++;
}

static void show_span(const cJSON *row)
{
    printf("%10" PRIu64 " %6" PRIu64 " %5" PRIu64 " %8s %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %6" PRIu64 "\n",
           row_number(row, "page"), row_number(row, "pages"), row_number(row, "class"), human(row_number(row, "size")),
           row_number(row, "objects"), row_number(row, "owned"), row_number(row, "shared"), row_number(row, "cached"),
           row_number(row, "free"), row_number(row, "lessee"));
}

static int show_spans(struct inspection *i)
{
    const struct heap *h = &i->in.h;
    struct span_info span;
    heading(i, "      PAGE  PAGES CLASS     SIZE  OBJECTS    OWNED   SHARED   CACHED     FREE LESSEE");
    for (uint64_t page = 1; next_span(h, &page, &span);) {
        struct counts n = {0};
        cJSON *row = cJSON_CreateObject();
        for (uint32_t at = 0; at < span.objects; at++)
            count_word(h, span.words[at], &n);
        row_put(row, "page", span.first);
        row_put(row, "pages", span.page_count);
        row_put(row, "class", span.span_class);
        row_put(row, "size", object_bytes(&span));
        row_put(row, "objects", span.objects);
        row_put(row, "owned", n.owned);
        row_put(row, "shared", n.shared);
        row_put(row, "cached", n.cached);
        row_put(row, "free", n.free);
        row_put(row, "lessee", h->spans[span.first].lessee);
        row_put(row, "returned", h->spans[span.first].returned);
        show_row(i, row, show_span);
    }
    return end_rows(i);
}

static void show_root(const cJSON *row)
{
    const char *name = row_text(row, "name");
    int pad = 40 - columns(name);
    printf("%s%*s %#18" PRIx64 " %6" PRIu64 "\n", name, pad > 0 ? pad : 0, "", row_number(row, "ref"), row_number(row, "uid"));
}

static int show_roots(struct inspection *i)
{
    const struct heap *h = &i->in.h;
    heading(i, "NAME                                                    REF    UID");
    for (uint32_t slot = 0; slot < h->root_slots && root_touched(h, slot); slot++) {
        const struct root *root = &h->roots[slot];
        char name[ROOT_NAME + 1];
        cJSON *row = root->ref ? cJSON_CreateObject() : NULL;
        if (!row)
            continue;
        snprintf(name, sizeof name, "%.*s", ROOT_NAME, root->name);
        cJSON_AddStringToObject(row, "name", clean(name, true));
        row_put(row, "ref", root->ref);
        row_put(row, "uid", root->uid);
        show_row(i, row, show_root);
    }
    return end_rows(i);
}

static const char *tag_word(unsigned state)
{
    static const char *const words[TAG_STATE_COUNT] = {"free", "client", "dying", "transaction", "committed", "aborted", "publishing"};
    return state < TAG_STATE_COUNT ? words[state] : "unknown";
}

/* The process that a tag is of: a transaction's client. Its fields are filled in for both. */
static void put_holder(cJSON *row, const struct heap *h, unsigned tag)
{
    unsigned owner = tag < TAG_COUNT ? tag_client(h, tag) : 0;
    const struct tag *t = &h->tags[tag < TAG_COUNT ? tag : 0], *client = &h->tags[owner < TAG_COUNT ? owner : 0];
    char command[sizeof client->command + 1];
    snprintf(command, sizeof command, "%.*s", (int)sizeof client->command, client->command);
    row_put(row, "tag", tag);
    cJSON_AddStringToObject(row, "holder", tag_word(t->state));
    row_put(row, "client", owner);
    row_put(row, "pid", client->pid);
    row_put(row, "uid", client->uid);
    cJSON_AddStringToObject(row, "command", clean(command, true));
}

static void show_client(const cJSON *row)
{
    printf("%6" PRIu64 " %-11s %6" PRIu64 " %7" PRIu64 " %-10.10s %8" PRIu64 " %8s %8s %6" PRIu64 " %s\n", row_number(row, "tag"),
           row_text(row, "holder"), row_number(row, "client"), row_number(row, "pid"), user_name(row_number(row, "uid")),
           row_number(row, "objects"), human(row_number(row, "bytes_owned")), human(row_number(row, "bytes_cached")),
           row_number(row, "spans"), row_text(row, "command"));
}

struct holding {
    uint64_t objects, owned, cached, spans;
};

static void count_holdings(const struct heap *h, struct holding *all)
{
    struct span_info span;
    for (uint64_t page = 1; next_span(h, &page, &span);) {
        all[h->spans[span.first].lessee % TAG_COUNT].spans++;
        for (uint32_t at = 0; at < span.objects; at++) {
            uint16_t word = span.words[at];
            struct holding *holding = &all[word_tag(word) % TAG_COUNT];
            holding->objects++;
            *(word_is_owned(word) ? &holding->owned : &holding->cached) += object_bytes(&span);
        }
    }
}

/* Every tag in use, a transaction's too. */
static int show_clients(struct inspection *i)
{
    const struct heap *h = &i->in.h;
    struct holding *all = calloc(TAG_COUNT, sizeof *all);
    if (!all)
        return inspect_fail("the heap", "out of memory");
    count_holdings(h, all);
    heading(i, "   TAG HOLDER      CLIENT     PID USER        OBJECTS    OWNED   CACHED  SPANS COMMAND");
    for (unsigned tag = 1; tag < h->header->tag_top; tag++) {
        cJSON *row = h->tags[tag].state ? cJSON_CreateObject() : NULL;
        if (!row)
            continue;
        put_holder(row, h, tag);
        row_put(row, "since_ns", (uint64_t)h->tags[tag].since_s * 1000000000);
        row_put(row, "objects", all[tag].objects);
        row_put(row, "bytes_owned", all[tag].owned);
        row_put(row, "bytes_cached", all[tag].cached);
        row_put(row, "spans", all[tag].spans);
        show_row(i, row, show_client);
    }
    free(all);
    return end_rows(i);
}

/* ---- word --------------------------------------------------------------------------------------------------------------------- */

static const char *word_text(const struct heap *h, uint16_t word)
{
    unsigned tag = word_tag(word);
    if (word == WORD_FREE)
        return "free";
    if (word == WORD_SHARED)
        return "shared";
    if (word_is_cached(word))
        return "cached";
    return tag < TAG_COUNT && tag_is_committed(h, tag) ? "shared by a commit" : "owned";
}

static void show_word(const cJSON *row)
{
    printf("object   %#" PRIx64 ", reference %#" PRIx64 ", %s bytes, and %" PRIu64 " into it\n", row_number(row, "address"),
           row_number(row, "ref"), human(row_number(row, "size")), row_number(row, "offset"));
    printf("span     page %" PRIu64 ", %" PRIu64 " page%s, class %" PRIu64 " (%s), object %" PRIu64 " of %" PRIu64 ", lessee %" PRIu64 "\n",
           row_number(row, "page"), row_number(row, "pages"), row_number(row, "pages") == 1 ? "" : "s", row_number(row, "class"),
           row_number(row, "noscan") ? "noscan" : "scan", row_number(row, "index"), row_number(row, "objects"), row_number(row, "lessee"));
    if (row_text(row, "fault")[0])
        printf("         broken: %s\n", row_text(row, "fault"));
    printf("word     %#06" PRIx64 ": %s\n", row_number(row, "word"), row_text(row, "state"));
    if (row_number(row, "tag"))
        printf("holder   tag %" PRIu64 " (%s), client %" PRIu64 ", pid %" PRIu64 ", user %s, %s\n", row_number(row, "tag"),
               row_text(row, "holder"), row_number(row, "client"), row_number(row, "pid"), user_name(row_number(row, "uid")),
               row_text(row, "command"));
}

static int show_no_object(struct inspection *i, uint64_t ref)
{
    uint64_t page = ref >> PAGE_SHIFT, entry = i->in.h.pages[page];
    const char *what = entry == PAGE_COLD ? "free, without memory behind it" : entry == PAGE_WARM ? "free, with memory behind it" : "of a span";
    if (i->ctl->json) {
        cJSON *row = cJSON_CreateObject();
        row_put(row, "ref", ref);
        row_put(row, "page", page);
        cJSON_AddStringToObject(row, "state", "no object");
        cJSON_AddStringToObject(row, "page_state", what);
        print_json(row);
    } else
        printf("%#" PRIx64 " is in no object: page %" PRIu64 " is %s\n", ref, page, what);
    return CTL_FAULT;
}

static int show_object(struct inspection *i, uint64_t ref)
{
    const struct heap *h = &i->in.h;
    struct object object;
    if (!object_find(h, ref, &object))
        return show_no_object(i, ref);
    const struct span *span = &h->spans[object.first];
    const char *why = span_check(h, object.first);
    cJSON *row = cJSON_CreateObject();
    row_put(row, "address", i->in.base + object.offset);
    row_put(row, "ref", object.offset);
    row_put(row, "offset", ref - object.offset);
    row_put(row, "size", object.size);
    row_put(row, "page", object.first);
    row_put(row, "pages", span->page_count);
    row_put(row, "class", object.span_class);
    row_put(row, "noscan", CLASS_IS_NOSCAN(object.span_class));
    row_put(row, "index", object.index);
    row_put(row, "objects", CLASS_IS_LARGE(object.span_class) ? 1 : class_table[object.span_class].objects);
    row_put(row, "lessee", span->lessee);
    if (why)
        cJSON_AddStringToObject(row, "fault", why);
    row_put(row, "word", *object.word);
    cJSON_AddStringToObject(row, "state", word_text(h, *object.word));
    if (word_tag(*object.word))
        put_holder(row, h, word_tag(*object.word));
    if (i->ctl->json)
        print_json(row);
    else {
        show_word(row);
        cJSON_Delete(row);
    }
    return CTL_OK;
}

/* An address in a process that has the heap at its place, or a reference. */
static int parse_address(const struct inspection *i, const char *text, uint64_t *ret_ref)
{
    char *end;
    errno = 0;
    uint64_t value = strtoull(text, &end, 0), bytes = i->in.h.heap_bytes;
    if (!isdigit((unsigned char)*text) || *end || errno) {
        fprintf(stderr, "arenactl: %s is no address; see arenactl inspect --help\n", clean(text, false));
        return CTL_USAGE;
    }
    *ret_ref = value >= i->in.base && value - i->in.base < bytes ? value - i->in.base : value;
    if (*ret_ref < bytes)
        return 0;
    fprintf(stderr, "arenactl: %s is not in the heap, which is at %#" PRIx64 " to %#" PRIx64 "\n", clean(text, false), i->in.base,
            i->in.base + bytes);
    return CTL_USAGE;
}

/* ---- the command ---------------------------------------------------------------------------------------------------------------- */

static int check(struct inspection *i)
{
    struct heap *h = &i->in.h;
    const char *why = check_counts(h);
    size_t bytes = (size_t)(h->unit_count / 8 + 1);
    i->faults = cJSON_CreateArray();
    i->suspicious = cJSON_CreateArray();
    if (why) { /* and what they count is read as far as it can be */
        note_finding(i, &(struct finding){CHECK_HEADER, 0, false, why});
        h->header->tag_top = h->header->tag_top > TAG_COUNT ? TAG_COUNT : h->header->tag_top;
        h->header->top = h->header->top > h->page_count ? h->page_count : h->header->top;
    }
    check_unfinished(h, note_finding, i);
    check_repair(h);
    uint8_t *units = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (units == MAP_FAILED)
        return inspect_fail("the heap", "%s", strerror(errno));
    check_heap(h, units, note_finding, i);
    munmap(units, bytes);
    return 0;
}

static int show(struct inspection *i, const char *what, const char *address)
{
    uint64_t ref;
    int rc;
    if (strcmp(what, "check") == 0)
        return show_check(i);
    if (strcmp(what, "spans") == 0)
        return show_spans(i);
    if (strcmp(what, "roots") == 0)
        return show_roots(i);
    if (strcmp(what, "clients") == 0)
        return show_clients(i);
    rc = parse_address(i, address, &ref);
    return rc == 0 ? show_object(i, ref) : rc;
}

static int usage(const char *what, const char *why)
{
    fprintf(stderr, "arenactl: %s %s; see arenactl inspect --help\n", clean(what, false), why);
    return CTL_USAGE;
}

int cmd_inspect(struct ctl *ctl)
{
    static const char *const views[] = {"check", "spans", "roots", "clients", "word"};
    struct inspection i = {.ctl = ctl};
    int at = ctl->core ? 0 : 1, known = 0;
    if (!ctl->core && ctl->rest_count == 0)
        return usage("inspect", "needs a directory, a process or --core");
    const char *what = ctl->rest_count > at ? ctl->rest[at] : "check";
    for (size_t n = 0; n < sizeof views / sizeof views[0]; n++)
        known |= strcmp(what, views[n]) == 0;
    int wanted = at + (ctl->rest_count > at) + (strcmp(what, "word") == 0);
    if (!known)
        return usage(what, "is neither check, spans, roots, clients nor word");
    if (ctl->rest_count < wanted)
        return usage(what, "needs an address");
    if (ctl->rest_count > wanted)
        return usage(ctl->rest[wanted], "is too much");
    int rc = ctl->core ? inspect_open_core(&i.in, ctl->core) : inspect_open(&i.in, ctl->rest[0]);
    if (rc == 0)
        rc = check(&i);
    if (rc == 0)
        rc = show(&i, what, wanted > at + 1 ? ctl->rest[at + 1] : NULL);
    cJSON_Delete(i.faults);
    cJSON_Delete(i.suspicious);
    return rc;
}
