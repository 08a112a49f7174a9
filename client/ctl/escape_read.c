#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/escape.h"

enum { FIELDS_MAX = 16 };

/* A file while it is read: its sites by their numbers. */
struct reading {
    struct escape_report *report;
    const char *path;
    unsigned line;
    struct escape_site site; /* the one whose lines come now */
    uint64_t id;             /* 0: none yet */
};

static int bad(const struct reading *in, const char *why)
{
    fprintf(stderr, "arenactl: %s:%u: %s\n", clean(in->path, false), in->line, why);
    return -1;
}

static unsigned split(char *line, char **fields)
{
    unsigned count = 0;
    line[strcspn(line, "\n")] = 0;
    for (char *at = line; at && count < FIELDS_MAX; count++) {
        fields[count] = at;
        at = strchr(at, '\t');
        if (at)
            *at++ = 0;
    }
    return count;
}

static struct place *place_of(struct escape_report *r, const char *module, uint64_t offset,
                              const char *name)
{
    for (size_t i = 0; i < r->place_count; i++)
        if (r->places[i]->offset == offset && strcmp(r->places[i]->module, module) == 0)
            return r->places[i];
    struct place **grown = realloc(r->places, (r->place_count + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    r->places = grown;
    struct place *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->module = strdup(module);
    p->offset = offset;
    p->function = *name ? strdup(name) : NULL;
    return r->places[r->place_count++] = p;
}

static void add_crossing(struct escape_site *to, const struct crossing *c)
{
    unsigned i = 0;
    while (i < to->to_count && (to->to[i].pid != c->pid || to->to[i].tag != c->tag))
        i++;
    if (i == ESCAPE_CLIENTS)
        i--;
    else if (i == to->to_count) {
        to->to[to->to_count++] = *c;
        return;
    }
    to->to[i].objects += c->objects;
}

static void add_site(struct escape_site *to, const struct escape_site *s)
{
    to->objects += s->objects;
    to->bytes += s->bytes;
    to->ended += s->ended;
    to->life_ns += s->life_ns;
    for (int i = 0; i < FATES; i++)
        to->fates[i] += s->fates[i];
    for (int i = 0; i < ESCAPE_FRAMES; i++)
        to->frames[i] += s->frames[i];
    for (unsigned i = 0; i < s->to_count; i++)
        add_crossing(to, &s->to[i]);
}

/* The site that was read joins the one of the same calls. */
static int finish_site(struct reading *in)
{
    struct escape_report *r = in->report;
    if (!in->id)
        return 0;
    in->id = 0;
    for (size_t i = 0; i < r->count; i++)
        if (r->sites[i].depth == in->site.depth &&
            // cppcheck-suppress pointerSize ; the pointers are what is compared
            memcmp(r->sites[i].places, in->site.places, in->site.depth * sizeof(struct place *)) ==
                0) {
            add_site(&r->sites[i], &in->site);
            return 0;
        }
    if (r->count == r->capacity) {
        size_t capacity = r->capacity ? r->capacity * 2 : 64;
        struct escape_site *grown = realloc(r->sites, capacity * sizeof *grown);
        if (!grown)
            return bad(in, "out of memory");
        r->sites = grown;
        r->capacity = capacity;
    }
    r->sites[r->count++] = in->site;
    return 0;
}

/* The line's site is the one whose lines come now. */
static bool is_current(const struct reading *in, const char *id)
{
    return in->id && strtoull(id, NULL, 10) == in->id;
}

static int take_site(struct reading *in, char **f, unsigned count)
{
    if (count != 6 + FATES)
        return bad(in, "a site has 14 fields");
    if (finish_site(in) < 0)
        return -1;
    memset(&in->site, 0, sizeof in->site);
    in->id = strtoull(f[1], NULL, 10);
    in->site.objects = strtod(f[2], NULL);
    in->site.bytes = strtod(f[3], NULL);
    in->site.ended = strtod(f[4], NULL);
    in->site.life_ns = strtod(f[5], NULL) * in->site.ended;
    for (int i = 0; i < FATES; i++)
        in->site.fates[i] = strtod(f[6 + i], NULL);
    return in->id ? 0 : bad(in, "a site's number is from 1");
}

static int take_line(struct reading *in, char **f, unsigned count)
{
    struct escape_site *s = &in->site;
    if (strcmp(f[0], "process") == 0 && count == 9) {
        in->report->seconds += strtod(f[6], NULL);
        in->report->samples += strtod(f[7], NULL);
        return 0;
    }
    if (strcmp(f[0], "site") == 0)
        return take_site(in, f, count);
    if (count < 3 || !is_current(in, f[1]))
        return bad(in, "a line that belongs to no site");
    if (strcmp(f[0], "frames") == 0)
        for (unsigned i = 2; i < count && i - 2 < ESCAPE_FRAMES; i++)
            s->frames[i - 2] = strtod(f[i], NULL);
    else if (strcmp(f[0], "to") == 0 && count == 6) {
        struct crossing c = {.tag = (unsigned)strtoul(f[2], NULL, 10),
                             .pid = strtoull(f[3], NULL, 10),
                             .objects = strtod(f[5], NULL)};
        snprintf(c.command, sizeof c.command, "%s", clean(f[4], false));
        add_crossing(s, &c);
    } else if (strcmp(f[0], "pc") == 0 && count == 5) {
        if (s->depth < ESCAPE_DEPTH &&
            !(s->places[s->depth++] = place_of(in->report, f[2], strtoull(f[3], NULL, 0), f[4])))
            return bad(in, "out of memory");
    } else
        return bad(in, "not a line of a profile");
    return 0;
}

int escape_read(struct escape_report *r, const char *path)
{
    struct reading in = {.report = r, .path = path};
    char *line = NULL, *fields[FIELDS_MAX];
    size_t capacity = 0;
    int rc = 0;
    FILE *f = fopen(path, "re");
    if (!f) {
        fprintf(stderr, "arenactl: cannot read %s: %s\n", clean(path, false), strerror(errno));
        return -1;
    }
    while (rc == 0 && getline(&line, &capacity, f) > 0) {
        in.line++;
        unsigned count = split(line, fields);
        if (in.line == 1)
            rc = strcmp(fields[0], "arena-profile 1") == 0
                     ? 0
                     : bad(&in, "not a profile of an arena program");
        else
            rc = take_line(&in, fields, count);
    }
    if (rc == 0 && in.line == 0)
        rc = bad(&in, "empty");
    if (rc == 0)
        rc = finish_site(&in);
    r->files++;
    free(line);
    fclose(f);
    return rc;
}

void escape_free(struct escape_report *r)
{
    for (size_t i = 0; i < r->place_count; i++) {
        free(r->places[i]->module);
        free(r->places[i]->function);
        free(r->places[i]->file);
        free(r->places[i]);
    }
    free(r->places);
    free(r->sites);
}
