#include "daemon/passes/gc_rows.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "proto/msg.h"

enum { ROW_MAX = 512 };

struct writer {
    struct gc_rows *rows;
    msgpack_sbuffer body; /* rows so far */
    uint32_t count;
    bool failed;
};

/* What was written becomes a body: an array. */
static void finish_body(struct writer *w)
{
    msgpack_packer pk;
    msgpack_sbuffer *grown = realloc(w->rows->bodies, (w->rows->count + 1) * sizeof *grown);
    if (!grown) {
        w->failed = true;
        return;
    }
    w->rows->bodies = grown;
    msgpack_sbuffer *body = &grown[w->rows->count++];
    msgpack_sbuffer_init(body);
    msgpack_packer_init(&pk, body, msgpack_sbuffer_write);
    w->failed |= msgpack_pack_array(&pk, w->count) < 0 || (w->body.size && msgpack_sbuffer_write(body, w->body.data, w->body.size) < 0);
    msgpack_sbuffer_clear(&w->body);
    w->count = 0;
}

static void begin_row(struct writer *w, msgpack_packer *pk, size_t fields)
{
    if (w->body.size + ROW_MAX > MSG_BODY_MAX - 16)
        finish_body(w);
    msgpack_packer_init(pk, &w->body, msgpack_sbuffer_write);
    w->failed |= msgpack_pack_map(pk, fields) < 0;
    w->count++;
}

static void put_str(msgpack_packer *pk, const char *s)
{
    size_t n = strlen(s);
    msgpack_pack_str(pk, n);
    msgpack_pack_str_body(pk, s, n);
}
static void put_text(msgpack_packer *pk, const char *name, const char *value)
{
    put_str(pk, name);
    put_str(pk, value);
}
static void put_number(msgpack_packer *pk, const char *name, uint64_t value)
{
    put_str(pk, name);
    msgpack_pack_uint64(pk, value);
}
static void put_count(msgpack_packer *pk, const struct gc_count *count)
{
    put_number(pk, "objects", count->objects);
    put_number(pk, "bytes", count->bytes);
}

static void put_client(struct writer *w, const struct core *core, const char *kind, unsigned tag, const struct gc_count *count)
{
    const struct tag *t = &core->heap.tags[tag];
    msgpack_packer pk;
    char command[sizeof t->command + 1] = {0};
    memcpy(command, t->command, sizeof t->command);
    begin_row(w, &pk, count ? 7 : 5);
    put_text(&pk, "kind", kind);
    put_number(&pk, "tag", tag);
    put_number(&pk, "pid", t->pid);
    put_number(&pk, "uid", t->uid);
    put_text(&pk, "command", command);
    if (count)
        put_count(&pk, count);
}

static void put_collection(struct writer *w, const struct core *core, const struct gc_report *report, unsigned turner,
                           const char *result, uint64_t mark_ns, uint64_t total_ns)
{
    static const struct gc_report none;
    msgpack_packer pk;
    uint64_t blockers = turner != 0;
    for (unsigned tag = 0; (tag = gc_blocker(core, tag + 1)) != 0;)
        blockers++;
    if (!report)
        report = &none;
    begin_row(w, &pk, 15);
    put_text(&pk, "kind", "collection");
    put_text(&pk, "result", result);
    put_count(&pk, &report->white);
    put_number(&pk, "objects_kept", report->marked.objects);
    put_number(&pk, "bytes_kept", report->marked.bytes);
    put_number(&pk, "objects_scanned", report->scanned.objects);
    put_number(&pk, "bytes_scanned", report->scanned.bytes);
    put_number(&pk, "roots", report->roots);
    put_number(&pk, "workers", report->workers);
    put_number(&pk, "rounds", report->rounds);
    put_number(&pk, "overflows", report->overflows);
    put_number(&pk, "mark_ns", mark_ns);
    put_number(&pk, "total_ns", total_ns);
    put_number(&pk, "blockers", blockers);
}

static void put_found(struct writer *w, const struct core *core, const struct gc_report *report)
{
    msgpack_packer pk;
    for (unsigned c = 0; c < CLASS_LIMIT; c++) {
        if (!report->by_class[c].objects)
            continue;
        begin_row(w, &pk, 6);
        put_text(&pk, "kind", "class");
        put_number(&pk, "class", c);
        put_number(&pk, "size", class_table[c].size);
        put_number(&pk, "noscan", CLASS_IS_NOSCAN(c));
        put_count(&pk, &report->by_class[c]);
    }
    for (unsigned tag = 1; tag < TAG_COUNT; tag++)
        if (report->by_tag[tag].objects)
            put_client(w, core, "client", tag, &report->by_tag[tag]);
    for (const struct gc_user *user = report->by_user; user; user = user->hh.next) {
        begin_row(w, &pk, 4);
        put_text(&pk, "kind", "user");
        put_number(&pk, "uid", user->uid);
        put_count(&pk, &user->white);
    }
}

int gc_rows_make(struct gc_rows *rows, const struct core *core, const struct gc_report *report, unsigned turner,
                 const char *result, uint64_t mark_ns, uint64_t total_ns)
{
    struct writer w = {.rows = rows};
    memset(rows, 0, sizeof *rows);
    msgpack_sbuffer_init(&w.body);
    put_collection(&w, core, report, turner, result, mark_ns, total_ns);
    if (report)
        put_found(&w, core, report);
    for (unsigned tag = 0; !report && (tag = gc_blocker(core, tag + 1)) != 0;)
        put_client(&w, core, "blocker", tag, NULL);
    if (turner)
        put_client(&w, core, "blocker", turner, NULL);
    finish_body(&w);
    msgpack_sbuffer_destroy(&w.body);
    if (!w.failed)
        return 0;
    gc_rows_free(rows);
    return -ENOMEM;
}

void gc_rows_free(struct gc_rows *rows)
{
    for (uint32_t i = 0; i < rows->count; i++)
        msgpack_sbuffer_destroy(&rows->bodies[i]);
    free(rows->bodies);
    memset(rows, 0, sizeof *rows);
}
