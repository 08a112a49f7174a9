/* `metrics`: the heap's figures as OpenMetrics text. What node_exporter's textfile collector reads
 * is an older format: all here is valid in both, so there is no type `info`, and a counter's name
 * is one that both take. Clients are summed up by user and command, so that a series does not come
 * and go with each process. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "shm/layout.h"

/* FAMILY(name, type, unit, figure of `stat`, factor, what it is) */
#define FAMILIES(FAMILY)                                                                           \
    FAMILY("heap_max_bytes", gauge, "bytes", "heap_max", 1, "What the heap may grow to.")          \
    FAMILY("heap_backed_bytes", gauge, "bytes", "heap_backed", 1,                                  \
           "Of the heap, with memory behind it.")                                                  \
    FAMILY("heap_in_use_bytes", gauge, "bytes", "heap_in_use", 1, "In spans.")                     \
    FAMILY("heap_free_bytes", gauge, "bytes", "pages_free", PAGE_SIZE, "In no span.")              \
    FAMILY("heap_free_warm_bytes", gauge, "bytes", "pages_warm", PAGE_SIZE,                        \
           "In no span, with memory behind it.")                                                   \
    FAMILY("heap_free_run_bytes", gauge, "bytes", "pages_free_run", PAGE_SIZE,                     \
           "The longest run of free pages.")                                                       \
    FAMILY("heap_leased_bytes", gauge, "bytes", "bytes_leased", 1,                                 \
           "In spans that are leased to clients.")                                                 \
    FAMILY("heap_used_bytes", gauge, "bytes", "bytes_used", 1,                                     \
           "Of allocated objects, owned and published.")                                           \
    FAMILY("heap_cached_bytes", gauge, "bytes", "bytes_cached", 1,                                 \
           "Of free objects in clients' magazines.")                                               \
    FAMILY("map_backed_bytes", gauge, "bytes", "map_backed", 1,                                    \
           "Of the map region, with memory behind it.")                                            \
    FAMILY("state_backed_bytes", gauge, "bytes", "state_backed", 1,                                \
           "Of the state region, with memory behind it.")                                          \
    FAMILY("memory_allowance_bytes", gauge, "bytes", "memory_allowance", 1,                        \
           "What the machine and the cgroups would give the heap beyond what it has.")             \
    FAMILY("objects_owned", gauge, "", "objects_owned", 1,                                         \
           "Objects that are allocated and not published.")                                        \
    FAMILY("objects_shared", gauge, "", "objects_shared", 1, "Objects that are published.")        \
    FAMILY("objects_cached", gauge, "", "objects_cached", 1,                                       \
           "Free objects in clients' magazines.")                                                  \
    FAMILY("spans", gauge, "", "spans", 1, "Spans.")                                               \
    FAMILY("spans_leased", gauge, "", "spans_leased", 1, "Spans that are leased to clients.")      \
    FAMILY("clients", gauge, "", "clients", 1, "Attached clients.")                                \
    FAMILY("roots", gauge, "", "roots", 1, "Named roots.")                                         \
    FAMILY("refills", counter, "", "refills", 1, "Leases that were granted.")                      \
    FAMILY("round_trips", counter, "", "round_trips", 1, "Requests that were answered.")           \
    FAMILY("reclaimed_clients", counter, "", "reclaimed_clients", 1,                               \
           "Clients that died or said goodbye.")                                                   \
    FAMILY("reclaimed_objects", counter, "", "reclaimed_objects", 1,                               \
           "Objects that were freed after them.")                                                  \
    FAMILY("returned_bytes", counter, "bytes", "pages_returned", PAGE_SIZE,                        \
           "Given back to the system.")                                                            \
    FAMILY("refused_full", counter, "", "refused_full", 1,                                         \
           "Requests refused by this daemon as the heap is full.")                                 \
    FAMILY("refused_limit", counter, "", "refused_limit", 1,                                       \
           "Requests refused by this daemon for a limit.")                                         \
    FAMILY("daemon_starts", counter, "", "epoch", 1, "Daemons that were started over this heap.")

static void put_label(FILE *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\\' || *value == '"')
            fputc('\\', out);
        if (*value == '\n')
            fputs("\\n", out);
        else
            fputc(*value, out);
    }
}

static void put_family(FILE *out, const char *name, const char *type, const char *unit,
                       const char *help)
{
    fprintf(out, "# TYPE arena_%s %s\n", name, type);
    if (*unit)
        fprintf(out, "# UNIT arena_%s %s\n", name, unit);
    fprintf(out, "# HELP arena_%s %s\n", name, help);
}

/* "NAME{heap="X"": what follows are further labels, then the closing brace */
static void put_name(FILE *out, const char *name, bool counter, const char *heap)
{
    fprintf(out, "arena_%s%s{heap=\"", name, counter ? "_total" : "");
    put_label(out, heap);
    fputc('"', out);
}

static void put_stats(FILE *out, const cJSON *stat, const char *heap)
{
    static const struct {
        const char *name, *type, *unit, *figure;
        uint64_t factor;
        const char *help;
    } families[] = {
#define FAMILY_ROW(name, type, unit, figure, factor, help)                                         \
    {name, #type, unit, figure, factor, help},
        FAMILIES(FAMILY_ROW)
#undef FAMILY_ROW
    };
    for (size_t i = 0; i < sizeof families / sizeof families[0]; i++) {
        put_family(out, families[i].name, families[i].type, families[i].unit, families[i].help);
        put_name(out, families[i].name, families[i].type[0] == 'c', heap);
        fprintf(out, "} %" PRIu64 "\n", row_number(stat, families[i].figure) * families[i].factor);
    }
}

/* ---- clients, by user and command ------------------------------------------------------------ */

static cJSON *sum_of(cJSON *sums, const cJSON *row)
{
    cJSON *sum;
    cJSON_ArrayForEach(sum,
                       sums) if (strcmp(row_text(sum, "command"), row_text(row, "command")) == 0 &&
                                 row_number(sum, "uid") == row_number(row, "uid")) return sum;
    sum = cJSON_CreateObject();
    cJSON_AddStringToObject(sum, "command", row_text(row, "command"));
    cJSON_AddStringToObject(sum, "user", user_name(row_number(row, "uid")));
    row_put(sum, "uid", row_number(row, "uid"));
    cJSON_AddItemToArray(sums, sum);
    return sum;
}

static void add_to(cJSON *sum, const char *name, uint64_t value)
{
    uint64_t before = row_number(sum, name);
    cJSON_DeleteItemFromObjectCaseSensitive(sum, name);
    row_put(sum, name, before + value);
}

static void put_clients(FILE *out, const cJSON *rows, const char *heap)
{
    static const struct {
        const char *name, *unit, *figure, *help;
    } families[] = {
        {"client_processes", "", "processes", "Attached clients, by user and command."},
        {"client_owned_bytes", "bytes", "bytes_owned", "Of objects that they own."},
        {"client_cached_bytes", "bytes", "bytes_cached", "Of free objects in their magazines."},
        {"client_leased_bytes", "bytes", "bytes_leased", "Of spans that are leased to them."},
        {"client_charged_bytes", "bytes", "bytes_charged", "Of spans that are charged to them."},
    };
    cJSON *sums = cJSON_CreateArray();
    const cJSON *row;
    cJSON_ArrayForEach(row, rows)
    {
        cJSON *sum = sum_of(sums, row);
        add_to(sum, "processes", 1);
        for (int i = 1; i < 5; i++)
            add_to(sum, families[i].figure, row_number(row, families[i].figure));
    }
    for (int i = 0; i < 5; i++) {
        put_family(out, families[i].name, "gauge", families[i].unit, families[i].help);
        cJSON_ArrayForEach(row, sums)
        {
            put_name(out, families[i].name, false, heap);
            fputs(",user=\"", out);
            put_label(out, row_text(row, "user"));
            fputs("\",command=\"", out);
            put_label(out, row_text(row, "command"));
            fprintf(out, "\"} %" PRIu64 "\n", row_number(row, families[i].figure));
        }
    }
    cJSON_Delete(sums);
}

static void put_classes(FILE *out, const cJSON *rows, const char *heap)
{
    static const struct {
        const char *name, *type, *unit, *figure, *help;
    } families[] = {
        {"class_spans", "gauge", "", "spans", "Spans of a size class."},
        {"class_bytes", "gauge", "bytes", "bytes", "In spans of a size class."},
        {"class_waste_bytes", "gauge", "bytes", "bytes_waste", "Of these, in no allocated object."},
        {"class_refills", "counter", "", "refills",
         "Leases of a size class that were granted by this daemon."},
    };
    const cJSON *row;
    for (int i = 0; i < 4; i++) {
        put_family(out, families[i].name, families[i].type, families[i].unit, families[i].help);
        cJSON_ArrayForEach(row, rows)
        {
            put_name(out, families[i].name, families[i].type[0] == 'c', heap);
            if (row_number(row, "size"))
                fprintf(out, ",size=\"%" PRIu64 "\"", row_number(row, "size"));
            else
                fputs(",size=\"large\"", out);
            fprintf(out, ",kind=\"%s\"} %" PRIu64 "\n",
                    row_number(row, "noscan") ? "noscan" : "scan",
                    row_number(row, families[i].figure));
        }
    }
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void put_up(FILE *out, const char *socket, bool up)
{
    put_family(out, "up", "gauge", "", "Does a daemon answer at the socket?");
    fputs("arena_up{socket=\"", out);
    put_label(out, clean(socket, true));
    fprintf(out, "\"} %d\n", up);
}

static int put_all(struct ctl *ctl, FILE *out)
{
    char buf[256];
    const char *socket = ctl_socket(ctl, buf, sizeof buf);
    cJSON *stat = ctl_row(ctl, INFO_STATS);
    cJSON *clients = stat ? ctl_rows(ctl, INFO_CLIENTS) : NULL,
          *classes = clients ? ctl_rows(ctl, INFO_CLASSES) : NULL;
    if (classes) {
        const char *heap = row_text(stat, "name");
        put_up(out, socket, true);
        put_stats(out, stat, heap);
        put_clients(out, clients, heap);
        put_classes(out, classes, heap);
        fputs("# EOF\n", out);
    } else if (ctl->output) { /* whoever reads the file shall know */
        put_up(out, socket, false);
        fputs("# EOF\n", out);
    }
    int rc = classes ? CTL_OK : CTL_UNREACHABLE;
    cJSON_Delete(stat);
    cJSON_Delete(clients);
    cJSON_Delete(classes);
    return rc;
}

static int put_file(struct ctl *ctl, const char *path)
{
    struct output out;
    int rc = output_open(&out, path);
    if (rc != 0)
        return rc;
    rc = put_all(ctl, out.file);
    int written = output_close(&out);
    return written ? written : rc;
}

int cmd_metrics(struct ctl *ctl)
{
    return ctl->output ? put_file(ctl, ctl->output) : put_all(ctl, stdout);
}
