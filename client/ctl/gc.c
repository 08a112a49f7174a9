/* `gc`: asks for a collection, or what one would free, and shows where it was. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"

static void add_row(void *context, const msgpack_object *map)
{
    cJSON_AddItemToArray(context, map_json(map));
}

/* {"result": ..., figures, "classes": [...], "clients": [...], "users": [...], "blockers": [...]} */
static cJSON *as_object(cJSON *rows)
{
    static const struct {
        const char *kind, *list;
    } lists[] = {
        {"class", "classes"}, {"client", "clients"}, {"user", "users"}, {"blocker", "blocked_by"}};
    cJSON *result = cJSON_DetachItemFromArray(rows, 0);
    if (!result)
        return NULL;
    cJSON_DeleteItemFromObject(result, "kind");
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
        cJSON_AddItemToObject(result, lists[i].list, cJSON_CreateArray());
    while (cJSON_GetArraySize(rows)) {
        cJSON *row = cJSON_DetachItemFromArray(rows, 0);
        cJSON *kind = cJSON_DetachItemFromObject(row, "kind"), *list = NULL;
        for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++)
            if (cJSON_IsString(kind) && strcmp(kind->valuestring, lists[i].kind) == 0)
                list = cJSON_GetObjectItem(result, lists[i].list);
        cJSON_Delete(kind);
        if (list)
            cJSON_AddItemToArray(list, row);
        else
            cJSON_Delete(row);
    }
    return result;
}

static void show_blockers(const cJSON *result)
{
    const cJSON *row;
    printf("refused: each client must be at a safepoint, or pin what it holds (arena_safepoint); "
           "these have declared "
           "nothing:\n%7s %7s %-10s %s\n",
           "TAG", "PID", "USER", "COMMAND");
    cJSON_ArrayForEach(row, cJSON_GetObjectItem(result, "blocked_by"))
        printf("%7" PRIu64 " %7" PRIu64 " %-10s %s\n", row_number(row, "tag"),
               row_number(row, "pid"), user_name(row_number(row, "uid")), row_text(row, "command"));
}

static void show_lists(const cJSON *result)
{
    const cJSON *row;
    const cJSON *classes = cJSON_GetObjectItem(result, "classes");
    if (cJSON_GetArraySize(classes))
        printf("\n%10s %-7s %12s %9s\n", "SIZE", "", "OBJECTS", "BYTES");
    cJSON_ArrayForEach(row, classes) printf(
        "%10s %-7s %12" PRIu64 " %9s\n",
        row_number(row, "size") ? human(row_number(row, "size")) : "large",
        row_number(row, "noscan") ? "noscan" : "scan", row_number(row, "objects"),
        human(row_number(row, "bytes")));
    const cJSON *clients = cJSON_GetObjectItem(result, "clients"),
                *users = cJSON_GetObjectItem(result, "users");
    if (cJSON_GetArraySize(clients) + cJSON_GetArraySize(users))
        printf("\nin spans that were last leased to\n%7s %7s %-10s %-15s %12s %9s\n", "TAG", "PID",
               "USER", "COMMAND", "OBJECTS", "BYTES");
    cJSON_ArrayForEach(row, clients)
        printf("%7" PRIu64 " %7" PRIu64 " %-10s %-15s %12" PRIu64 " %9s\n", row_number(row, "tag"),
               row_number(row, "pid"), user_name(row_number(row, "uid")), row_text(row, "command"),
               row_number(row, "objects"), human(row_number(row, "bytes")));
    cJSON_ArrayForEach(row, users)
        printf("%7s %7s %-10s %-15s %12" PRIu64 " %9s\n", "-", "-",
               user_name(row_number(row, "uid")), "(gone)", row_number(row, "objects"),
               human(row_number(row, "bytes")));
}

static void show(const cJSON *result, bool dry_run)
{
    printf("%s %" PRIu64 " objects, %s: published, unreachable, not pinned\n",
           dry_run ? "would free" : "freed", row_number(result, "objects"),
           human(row_number(result, "bytes")));
    printf("kept       %" PRIu64 " published objects, %s; read %s of objects in %.3f s, "
           "%" PRIu64 " workers, %.3f s in all\n",
           row_number(result, "objects_kept"), human(row_number(result, "bytes_kept")),
           human(row_number(result, "bytes_scanned")), (double)row_number(result, "mark_ns") / 1e9,
           row_number(result, "workers"), (double)row_number(result, "total_ns") / 1e9);
    show_lists(result);
}

int cmd_gc(struct ctl *ctl)
{
    cJSON *rows = cJSON_CreateArray();
    int rc = ctl_each_gc(ctl, ctl->dry_run ? GC_DRY_RUN : 0, add_row, rows);
    cJSON *result = rc == 0 ? as_object(rows) : NULL;
    cJSON_Delete(rows);
    if (!result)
        return CTL_UNREACHABLE;
    const char *what = row_text(result, "result");
    bool refused = strcmp(what, "refused") == 0;
    bool done = strcmp(what, "freed") == 0 || strcmp(what, "dry run") == 0;
    if (ctl->json) {
        print_json(result);
        return done ? CTL_OK : CTL_FAULT;
    }
    if (refused)
        show_blockers(result);
    else if (done)
        show(result, ctl->dry_run);
    else
        printf("the collection %s; nothing was freed\n", what);
    cJSON_Delete(result);
    return done ? CTL_OK : CTL_FAULT;
}
