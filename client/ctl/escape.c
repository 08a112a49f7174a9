/* arenactl escape: what of a program's objects need not be on the shared heap, by call site, as
 * Go's compiler says it with -gcflags=-m; here it is told by what a profile saw at run time. */
#include "client/ctl/escape.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const fate_names[FATES] = {"owned",  "frame",     "thread",  "process",
                                              "shared", "published", "crossed", "lost"};

/* ---- verdicts ------------------------------------------------------------------------------- */

enum verdict {
    STAYS_IN_FRAME,
    STAYS_IN_CALLER,
    STAYS_IN_THREAD,
    STAYS_IN_PROCESS,
    IS_PUBLISHED,
    CROSSES,
    LIVES
};
static const char *const verdict_names[] = {"frame",     "caller",  "thread", "process",
                                            "published", "crosses", "lives"};

/* The outermost caller that every freed object stayed within; -1: not even the outermost one that
 * is told apart. */
static int caller_of_all(const struct escape_site *s)
{
    double told = 0;
    int outermost = -1;
    for (int i = 0; i < ESCAPE_FRAMES; i++) {
        told += s->frames[i];
        if (s->frames[i] > 0)
            outermost = i;
    }
    return told + 0.5 >= s->fates[FRAME] + s->fates[THREAD] ? outermost : -1;
}

/* The first function of a thread, or main: what the C library calls. Within it is within the
 * thread. */
static bool is_outermost(const struct escape_site *s, int caller)
{
    return (unsigned)caller + 1 >= s->depth ||
           strstr(s->places[caller + 1]->module, "/libc.so") != NULL;
}

static enum verdict verdict_of(const struct escape_site *s)
{
    int caller = caller_of_all(s);
    if (s->fates[CROSSED] > 0)
        return CROSSES;
    if (s->fates[SHARED] + s->fates[PUBLISHED] + s->fates[LOST] > 0)
        return IS_PUBLISHED;
    if (s->fates[PROCESS] > 0)
        return STAYS_IN_PROCESS;
    if (s->fates[THREAD] > 0)
        return caller > 0 && !is_outermost(s, caller) ? STAYS_IN_CALLER : STAYS_IN_THREAD;
    return s->fates[FRAME] > 0 ? STAYS_IN_FRAME : LIVES;
}

static const char *life(double ns)
{
    static char buffers[4][32];
    static unsigned next;
    char *out = buffers[next++ % 4];
    const char *const units[] = {"ns", "us", "ms", "s"};
    int unit = 0;
    for (; unit < 3 && ns >= 1000; unit++)
        ns /= 1000;
    snprintf(out, sizeof buffers[0], ns < 10 && unit ? "%.1f %s" : "%.0f %s", ns, units[unit]);
    return out;
}

static void list_clients(const struct escape_site *s, char *text, size_t capacity)
{
    size_t at = 0;
    *text = 0;
    for (unsigned i = 0; i < s->to_count && at < capacity; i++)
        at +=
            (size_t)snprintf(text + at, capacity - at, "%sclient %u (%s, pid %llu)", i ? ", " : "",
                             s->to[i].tag, s->to[i].command, (unsigned long long)s->to[i].pid);
}

static void verdict_text(const struct escape_site *s, char *text, size_t capacity)
{
    enum verdict v = verdict_of(s);
    int caller = caller_of_all(s);
    const char *so_far = s->fates[OWNED] > 0 && v != LIVES ? " so far" : "";
    const char *function = s->depth ? place_function(s->places[0]) : "it";
    char clients[400];
    switch (v) {
    case STAYS_IN_FRAME:
        snprintf(text, capacity, "does not escape %s%s: use arena_frame_alloc", function, so_far);
        break;
    case STAYS_IN_CALLER:
        snprintf(text, capacity,
                 "does not escape %s, %d call%s up%s: use arena_frame_alloc in a frame of it",
                 place_function(s->places[caller]), caller, caller > 1 ? "s" : "", so_far);
        break;
    case STAYS_IN_THREAD:
        snprintf(text, capacity, "leaks out of %s, never leaves its thread%s: malloc would do",
                 function, so_far);
        break;
    case STAYS_IN_PROCESS:
        snprintf(text, capacity,
                 "escapes to another thread, never leaves its process%s: malloc would do", so_far);
        break;
    case IS_PUBLISHED:
        snprintf(text, capacity,
                 "published, taken by no other client so far: malloc would do if none will");
        break;
    case CROSSES:
        list_clients(s, clients, sizeof clients);
        snprintf(text, capacity, "escapes to %s: belongs on the shared heap", clients);
        break;
    case LIVES:
        snprintf(text, capacity,
                 "was neither freed nor published: malloc would do if nobody else will read it");
        break;
    }
}

/* ---- the four forms ------------------------------------------------------------------------- */

static void print_text(const struct escape_report *r)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct escape_site *s = &r->sites[i];
        char verdict[900];
        verdict_text(s, verdict, sizeof verdict);
        printf("%s: %s: %.0f object%s, %s", s->depth ? place_text(s->places[0]) : "?",
               s->depth ? place_function(s->places[0]) : "?", s->objects,
               s->objects == 1 ? "" : "s", human((uint64_t)s->bytes));
        if (s->ended > 0)
            printf(", lived %s", life(s->life_ns / s->ended));
        printf(": %s\n", verdict);
        if (s->depth > 1)
            printf("    from %s: %s\n", place_text(s->places[1]), place_function(s->places[1]));
    }
    printf("%zu site%s, %.0f samples in %.1f s of %u process%s\n", r->count,
           r->count == 1 ? "" : "s", r->samples, r->seconds, r->files, r->files == 1 ? "" : "es");
}

static cJSON *site_json(const struct escape_site *s)
{
    cJSON *row = cJSON_CreateObject();
    char text[900];
    verdict_text(s, text, sizeof text);
    cJSON_AddStringToObject(row, "site", s->depth ? place_text(s->places[0]) : "?");
    cJSON_AddStringToObject(row, "function", s->depth ? place_function(s->places[0]) : "?");
    cJSON_AddNumberToObject(row, "objects", s->objects);
    cJSON_AddNumberToObject(row, "bytes", s->bytes);
    cJSON_AddNumberToObject(row, "life_ns", s->ended > 0 ? floor(s->life_ns / s->ended) : 0);
    cJSON_AddStringToObject(row, "verdict", verdict_names[verdict_of(s)]);
    cJSON_AddStringToObject(row, "text", text);
    cJSON *fates = cJSON_AddObjectToObject(row, "fates"), *to = cJSON_AddArrayToObject(row, "to");
    cJSON *calls = cJSON_AddArrayToObject(row, "calls");
    for (int i = 0; i < FATES; i++)
        cJSON_AddNumberToObject(fates, fate_names[i], s->fates[i]);
    for (unsigned i = 0; i < s->to_count; i++) {
        cJSON *c = cJSON_CreateObject();
        cJSON_AddNumberToObject(c, "client", s->to[i].tag);
        cJSON_AddNumberToObject(c, "pid", (double)s->to[i].pid);
        cJSON_AddStringToObject(c, "command", s->to[i].command);
        cJSON_AddNumberToObject(c, "objects", s->to[i].objects);
        cJSON_AddItemToArray(to, c);
    }
    for (unsigned i = 0; i < s->depth; i++) {
        cJSON *c = cJSON_CreateObject();
        cJSON_AddStringToObject(c, "function", place_function(s->places[i]));
        cJSON_AddStringToObject(c, "place", place_text(s->places[i]));
        cJSON_AddItemToArray(calls, c);
    }
    return row;
}

static void print_folded(const struct escape_report *r)
{
    for (size_t i = 0; i < r->count; i++) {
        const struct escape_site *s = &r->sites[i];
        for (unsigned k = s->depth; k-- > 0;)
            printf("%s%s", place_function(s->places[k]), k ? ";" : "");
        printf(" %.0f\n", s->bytes);
    }
}

static int by_bytes(const void *x, const void *y)
{
    const struct escape_site *a = x, *b = y;
    return a->bytes < b->bytes ? 1 : a->bytes > b->bytes ? -1 : 0;
}

int cmd_escape(struct ctl *ctl)
{
    struct escape_report r = {0};
    int rc = CTL_OK;
    if (!ctl->rest_count || ctl->json + ctl->folded + (ctl->pprof != NULL) > 1) {
        fprintf(stderr, "arenactl: escape: %s\n",
                ctl->rest_count ? "one of --json, --folded and --pprof"
                                : "which profiles? A program writes one where ARENA_PROFILE=on is "
                                  "in its environment");
        return CTL_USAGE;
    }
    for (int i = 0; i < ctl->rest_count && rc == CTL_OK; i++)
        if (escape_read(&r, ctl->rest[i]) < 0)
            rc = CTL_USAGE;
    if (rc == CTL_OK) {
        escape_names(&r);
        qsort(r.sites, r.count, sizeof *r.sites, by_bytes);
        if (ctl->pprof) {
            rc = escape_pprof(&r, ctl->pprof);
        } else if (ctl->json) {
            cJSON *rows = cJSON_CreateArray();
            for (size_t i = 0; i < r.count; i++)
                cJSON_AddItemToArray(rows, site_json(&r.sites[i]));
            print_json(rows);
        } else if (ctl->folded)
            print_folded(&r);
        else
            print_text(&r);
    }
    escape_free(&r);
    return rc;
}
