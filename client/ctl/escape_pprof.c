/* The format of pprof: https://github.com/google/pprof/blob/main/proto/profile.proto, not
 * compressed. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "client/ctl/escape.h"

struct bytes {
    uint8_t *data;
    size_t length, capacity;
    bool failed;
};

struct writer {
    struct bytes out;
    char **strings;
    size_t string_count;
    bool failed;
};

static void put(struct bytes *b, const void *data, size_t length)
{
    if (b->length + length > b->capacity) {
        size_t capacity = (b->length + length) * 2;
        uint8_t *grown = realloc(b->data, capacity);
        if (!grown) {
            b->failed = true;
            return;
        }
        b->data = grown;
        b->capacity = capacity;
    }
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static void put_varint(struct bytes *b, uint64_t value)
{
    do {
        uint8_t byte = (uint8_t)((value & 127) | (value > 127 ? 128 : 0));
        put(b, &byte, 1);
        value >>= 7;
    } while (value);
}

static void put_number(struct bytes *b, unsigned field, uint64_t value)
{
    put_varint(b, field << 3);
    put_varint(b, value);
}

static void put_data(struct bytes *b, unsigned field, const void *data, size_t length)
{
    put_varint(b, field << 3 | 2);
    put_varint(b, length);
    put(b, data, length);
}

/* A message within the profile; empties it. */
static void put_message(struct writer *w, unsigned field, struct bytes *m)
{
    put_data(&w->out, field, m->data, m->length);
    w->failed |= m->failed;
    m->length = 0;
}

static uint64_t string_number(struct writer *w, const char *text)
{
    for (size_t i = 0; i < w->string_count; i++)
        if (strcmp(w->strings[i], text) == 0)
            return i;
    char **grown = realloc(w->strings, (w->string_count + 1) * sizeof *grown), *copy = strdup(text);
    if (!grown || !copy) {
        w->failed = true;
        w->strings = grown ? grown : w->strings;
        free(copy);
        return 0;
    }
    w->strings = grown;
    w->strings[w->string_count] = copy;
    return w->string_count++;
}

static void put_value_type(struct writer *w, const char *type, const char *unit)
{
    struct bytes m = {0};
    put_number(&m, 1, string_number(w, type));
    put_number(&m, 2, string_number(w, unit));
    put_message(w, 1, &m);
    free(m.data);
}

static uint64_t place_number(const struct escape_report *r, const struct place *p)
{
    for (size_t i = 0; i < r->place_count; i++)
        if (r->places[i] == p)
            return i + 1;
    return 0;
}

static void put_samples(struct writer *w, const struct escape_report *r)
{
    struct bytes m = {0}, packed = {0};
    for (size_t i = 0; i < r->count; i++) {
        const struct escape_site *s = &r->sites[i];
        double live = s->fates[OWNED] + s->fates[SHARED];
        for (unsigned k = 0; k < s->depth; k++)
            put_varint(&packed, place_number(r, s->places[k]));
        put_data(&m, 1, packed.data, packed.length);
        packed.length = 0;
        put_varint(&packed, (uint64_t)s->objects);
        put_varint(&packed, (uint64_t)s->bytes);
        put_varint(&packed, (uint64_t)live);
        put_varint(&packed, (uint64_t)(s->objects > 0 ? s->bytes / s->objects * live : 0));
        put_data(&m, 2, packed.data, packed.length);
        packed.length = 0;
        put_message(w, 2, &m);
    }
    w->failed |= packed.failed;
    free(packed.data);
    free(m.data);
}

/* A mapping, a location and a function for each place: they are tens. */
static void put_places(struct writer *w, const struct escape_report *r)
{
    struct bytes m = {0}, line = {0};
    for (size_t i = 0; i < r->place_count; i++) {
        const struct place *p = r->places[i];
        put_number(&m, 1, i + 1);
        put_number(&m, 5, string_number(w, p->module));
        put_number(&m, 7, 1); /* has_functions */
        put_message(w, 3, &m);
        put_number(&line, 1, i + 1);
        put_number(&line, 2, (uint64_t)p->line);
        put_number(&m, 1, i + 1);
        put_number(&m, 2, i + 1);
        put_number(&m, 3, p->offset);
        put_data(&m, 4, line.data, line.length);
        line.length = 0;
        put_message(w, 4, &m);
        put_number(&m, 1, i + 1);
        put_number(&m, 2, string_number(w, place_function(p)));
        put_number(&m, 3, string_number(w, place_function(p)));
        put_number(&m, 4, string_number(w, p->file ? p->file : p->module));
        put_message(w, 5, &m);
    }
    w->failed |= line.failed;
    free(line.data);
    free(m.data);
}

int escape_pprof(const struct escape_report *r, const char *path)
{
    struct writer w = {0};
    string_number(&w, ""); /* number 0 */
    put_value_type(&w, "alloc_objects", "count");
    put_value_type(&w, "alloc_space", "bytes");
    put_value_type(&w, "inuse_objects", "count");
    put_value_type(&w, "inuse_space", "bytes");
    put_samples(&w, r);
    put_places(&w, r);
    put_number(&w.out, 10, (uint64_t)(r->seconds * 1e9));
    uint64_t preferred = string_number(&w, "alloc_space");
    for (size_t i = 0; i < w.string_count; i++)
        put_data(&w.out, 6, w.strings[i], strlen(w.strings[i]));
    put_number(&w.out, 14, preferred);
    bool failed = w.failed || w.out.failed;
    for (size_t i = 0; i < w.string_count; i++)
        free(w.strings[i]);
    free(w.strings);
    struct output out;
    int rc = failed ? CTL_OUTPUT : output_open(&out, path);
    if (failed)
        fprintf(stderr, "arenactl: cannot write %s: out of memory\n", clean(path, false));
    if (rc == 0) {
        fwrite(w.out.data, 1, w.out.length, out.file);
        rc = output_close(&out);
    }
    free(w.out.data);
    return rc;
}
