/* The commands that show rows. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "proto/rows.h"
#include "proto/stats.h"
#include "shm/layout.h"

static bool is_bytes(const char *name)
{
    return strncmp(name, "bytes_", 6) == 0 || strncmp(name, "heap_", 5) == 0 ||
           strstr(name, "_backed") || strcmp(name, "words_in_use") == 0;
}

static void show_figure(const cJSON *row, const char *name, const char *text)
{
    uint64_t value = row_number(row, name);
    printf("%-18s %14" PRIu64 " %8s  %s\n", name, value,
           is_bytes(name)                    ? human(value)
           : strncmp(name, "pages_", 6) == 0 ? human(value * PAGE_SIZE)
                                             : "",
           text);
}

int cmd_stat(struct ctl *ctl)
{
    cJSON *row = ctl_row(ctl, INFO_STATS);
    if (!row)
        return CTL_UNREACHABLE;
    if (ctl->json) { /* all of the id: 64 bits of it would do for a program, not for a person */
        cJSON *hex = cJSON_DetachItemFromObject(row, "heap_id_hex");
        cJSON_ReplaceItemInObject(row, "heap_id", hex);
        print_json(row);
        return CTL_OK;
    }
    const char *verdict = why_verdict(ctl, row);
    if (verdict) {
        printf("%-18s %s\n%-18s %s\n%-18s %s\n", "heap", row_text(row, "heap_id_hex"), "name",
               row_text(row, "name"), "full?", verdict);
        printf("%-18s %" PRIu64 "", "pid", row_number(row, "pid"));
        if (row_number(row, "keeper_pid"))
            printf(", kept by %" PRIu64 "", row_number(row, "keeper_pid"));
        printf("%s\n", row_number(row, "managed") ? ", run by a service manager" : "");
#define SHOW(name, text)                                                                           \
    if (strcmp(#name, "heap_id") != 0)                                                             \
        show_figure(row, #name, text);
        STATS(SHOW)
#undef SHOW
        show_figure(row, "pages_free_run", "the longest run of them");
        show_figure(row, "refused_full", "requests that this daemon refused as the heap is full");
        show_figure(row, "refused_limit", "requests that this daemon refused for a limit");
    }
    cJSON_Delete(row);
    return verdict ? CTL_OK : CTL_UNREACHABLE;
}

static void show_classes(const cJSON *rows)
{
    const cJSON *row;
    printf("%5s %8s %-6s %8s %8s %8s %10s %10s %10s %10s %9s %9s %8s\n", "CLASS", "SIZE", "",
           "SPANS", "LEASED", "NONEMPTY", "OWNED", "SHARED", "CACHED", "FREE", "BYTES", "WASTE",
           "REFILLS");
    cJSON_ArrayForEach(row, rows)
        printf("%5" PRIu64 " %8s %-6s %8" PRIu64 " %8" PRIu64 " %8" PRIu64 " %10" PRIu64
               " %10" PRIu64 " %10" PRIu64 " %10" PRIu64 " %9s %9s %8" PRIu64 "\n",
               row_number(row, "class"),
               row_number(row, "size") ? human(row_number(row, "size")) : "large",
               row_number(row, "noscan") ? "noscan" : "scan", row_number(row, "spans"),
               row_number(row, "leased"), row_number(row, "nonempty"), row_number(row, "owned"),
               row_number(row, "shared"), row_number(row, "cached"), row_number(row, "free"),
               human(row_number(row, "bytes")), human(row_number(row, "bytes_waste")),
               row_number(row, "refills"));
}

/* Of spans and roots there may be a million: each row is shown as it comes. */
struct stream {
    bool json;
    uint64_t count;
    void (*show)(const msgpack_object *row);
};

static void stream_row(void *context, const msgpack_object *row)
{
    struct stream *stream = context;
    if (!stream->json)
        stream->show(row);
    else {
        cJSON *value = map_json(row);
        char *text = cJSON_PrintUnformatted(value);
        printf("%s%s", stream->count ? ",\n" : "[\n", text ? text : "null");
        free(text);
        cJSON_Delete(value);
    }
    stream->count++;
}

/* A JSON array that was begun is ended, whatever happened: the status tells. */
static int stream_rows(struct ctl *ctl, unsigned what, const char *heading,
                       void (*show)(const msgpack_object *row))
{
    struct stream stream = {.json = ctl->json, .show = show};
    int rc = ctl_connect(ctl);
    if (rc == 0 && !ctl->json)
        puts(heading);
    if (rc == 0)
        rc = ctl_each_info(ctl, what, stream_row, &stream);
    if (ctl->json && (rc == 0 || stream.count))
        puts(stream.count ? "\n]" : "[]");
    return rc;
}

static void show_span(const msgpack_object *row)
{
    printf("%10" PRIu64 " %6" PRIu64 " %5" PRIu64 " %8s %8" PRIu64 " %8" PRIu64 " %8" PRIu64
           " %8" PRIu64 " %8" PRIu64 " %6" PRIu64 "\n",
           row_u64(row, "page"), row_u64(row, "pages"), row_u64(row, "class"),
           human(row_u64(row, "size")), row_u64(row, "objects"), row_u64(row, "owned"),
           row_u64(row, "shared"), row_u64(row, "cached"), row_u64(row, "free"),
           row_u64(row, "lessee"));
}

static void show_root(const msgpack_object *row)
{
    cJSON *value = map_json(row);
    const char *name = row_text(value, "name");
    int pad = 40 - columns(name);
    printf("%s%*s %#18" PRIx64 " %6" PRIu64 "\n", name, pad > 0 ? pad : 0, "",
           row_number(value, "ref"), row_number(value, "uid"));
    cJSON_Delete(value);
}

int cmd_spans(struct ctl *ctl)
{
    return stream_rows(
        ctl, INFO_SPANS,
        "      PAGE  PAGES CLASS     SIZE  OBJECTS    OWNED   SHARED   CACHED     FREE "
        "LESSEE",
        show_span);
}

int cmd_roots(struct ctl *ctl)
{
    return stream_rows(ctl, INFO_ROOTS,
                       "NAME                                                    REF    UID",
                       show_root);
}

static const char *limit_text(uint64_t limit, bool bytes)
{
    static char text[32];
    if (!limit)
        return "no limit";
    snprintf(text, sizeof text, "%" PRIu64, limit);
    return bytes ? human(limit) : text;
}

/* The limits, the most that a turn of the daemon has done, and how far each user is. */
int cmd_limits(struct ctl *ctl)
{
    cJSON *limits = ctl_row(ctl, INFO_LIMITS), *users = limits ? ctl_rows(ctl, INFO_USERS) : NULL;
    const cJSON *item, *row;
    if (!users) {
        cJSON_Delete(limits);
        return CTL_UNREACHABLE;
    }
    if (ctl->json) {
        cJSON *all = cJSON_CreateObject();
        cJSON_AddItemToObject(all, "limits", limits);
        cJSON_AddItemToObject(all, "users", users);
        print_json(all);
        return CTL_OK;
    }
    cJSON_ArrayForEach(item, limits)
    {
        uint64_t value = row_number(limits, item->string);
        if (strncmp(item->string, "turn_", 5) == 0)
            printf("%-20s %12" PRIu64 "\n", item->string, value);
        else
            printf("%-20s %12s\n", item->string, limit_text(value, strstr(item->string, "bytes")));
    }
    printf("\n%-20s %9s %9s %9s %9s %11s %12s\n", "USER", "CLIENTS", "BYTES", "SPANS", "ROOTS", "CONNECTIONS", "TRANSACTIONS");
    cJSON_ArrayForEach(row, users) printf(
        "%-20s %9" PRIu64 " %9s %9" PRIu64 " %9" PRIu64 " %11" PRIu64 " %12" PRIu64 "\n", user_name(row_number(row, "uid")),
        row_number(row, "clients"), human(row_number(row, "bytes_charged")), row_number(row, "spans_charged"),
        row_number(row, "roots"), row_number(row, "connections"), row_number(row, "transactions"));
    cJSON_Delete(limits);
    cJSON_Delete(users);
    return CTL_OK;
}

int cmd_classes(struct ctl *ctl)
{
    cJSON *rows = ctl_rows(ctl, INFO_CLASSES);
    if (!rows)
        return CTL_UNREACHABLE;
    if (ctl->json)
        print_json(rows);
    else {
        show_classes(rows);
        cJSON_Delete(rows);
    }
    return CTL_OK;
}

int cmd_check(struct ctl *ctl)
{
    cJSON *row, *rows = ctl_rows(ctl, INFO_CHECK);
    if (!rows)
        return CTL_UNREACHABLE;
    cJSON *faults = cJSON_CreateArray(), *doubts = cJSON_CreateArray();
    while ((row = cJSON_DetachItemFromArray(rows, 0)) != NULL)
        cJSON_AddItemToArray(cJSON_HasObjectItem(row, "suspicion") ? doubts : faults, row);
    cJSON_Delete(rows);
    bool ok = cJSON_GetArraySize(faults) == 0;
    if (ctl->json) {
        cJSON *result = cJSON_CreateObject();
        cJSON_AddBoolToObject(result, "ok", ok);
        cJSON_AddItemToObject(result, "faults", faults);
        cJSON_AddItemToObject(result, "suspicious", doubts);
        print_json(result);
        return ok ? CTL_OK : CTL_FAULT;
    }
    cJSON_ArrayForEach(row, faults)
        printf("page %" PRIu64 ": %s\n", row_number(row, "page"), clean(row_text(row, "fault"), false));
    if (ok)
        printf("ok: every invariant holds\n");
    cJSON_ArrayForEach(row, doubts)
        printf("suspicious: %s\n", clean(row_text(row, "suspicion"), true));
    cJSON_Delete(faults);
    cJSON_Delete(doubts);
    return ok ? CTL_OK : CTL_FAULT;
}

int cmd_trim(struct ctl *ctl)
{
    int rc = ctl_connect(ctl);
    if (rc == 0)
        rc = ctl_call(ctl, MSG(trim));
    if (rc == 0)
        printf(ctl->json ? "{\"ok\": true}\n"
                         : "asked every client; free pages go back to the system\n");
    return rc;
}
