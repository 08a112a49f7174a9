/* `clients`: who holds this memory. What a client holds is what would be free without it: the
 * objects that it owns (those of its transactions too), has in its magazines, and the free ones of
 * the spans that it has leased. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

static int by_held(const void *a, const void *b)
{
    const cJSON *left = *(cJSON *const *)a, *right = *(cJSON *const *)b;
    uint64_t l = row_number(left, "bytes_held"), r = row_number(right, "bytes_held");
    if (l != r)
        return l < r ? 1 : -1;
    return row_number(left, "tag") < row_number(right, "tag") ? -1 : 1;
}

/* What the daemon does not know, or keeps to itself: a name, a command line, what the process does
 * now. */
static void complete(cJSON *row)
{
    uint64_t pid = row_number(row, "pid"), start_time = row_number(row, "start_time");
    row_put(row, "bytes_held",
            row_number(row, "bytes_owned") + row_number(row, "bytes_cached") +
                row_number(row, "bytes_leased_free"));
    cJSON_AddStringToObject(row, "user", user_name(row_number(row, "uid")));
    cJSON_AddStringToObject(row, "process", process_state(pid, start_time));
    cJSON_AddStringToObject(row, "command_line",
                            process_command(pid, start_time, row_text(row, "command")));
}

cJSON *clients_sorted(struct ctl *ctl)
{
    cJSON *rows = ctl_rows(ctl, INFO_CLIENTS), *sorted;
    if (!rows)
        return NULL;
    size_t count = (size_t)cJSON_GetArraySize(rows), i = 0;
    cJSON **all = calloc(count + 1, sizeof *all);
    sorted = cJSON_CreateArray();
    while (all && (all[i] = cJSON_DetachItemFromArray(rows, 0)) != NULL)
        complete(all[i++]);
    if (all)
        qsort(all, count, sizeof *all, by_held);
    for (i = 0; all && i < count; i++)
        cJSON_AddItemToArray(sorted, all[i]);
    free(all);
    cJSON_Delete(rows);
    return sorted;
}

/* One word for both: what the daemon knows of the client, and the system of its process. */
const char *client_state(const cJSON *row)
{
    if (row_text(row, "untold")[0])
        return "untold";
    if (strcmp(row_text(row, "state"), "live") != 0)
        return row_text(row, "state");
    return row_number(row, "connected") ? row_text(row, "process") : "away";
}

int terminal_width(void)
{
    struct winsize size;
    return isatty(1) && ioctl(1, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : 0;
}

/* The first `width` columns; 0: all. */
static void print_cut(const char *text, int width)
{
    char piece[2048];
    snprintf(piece, sizeof piece, "%s", text);
    for (size_t n = strlen(piece); width > 0 && columns(piece) > width && n > 0;) {
        do
            n--;
        while (n > 0 && ((unsigned char)piece[n] & 0xc0) == 0x80);
        piece[n] = 0;
    }
    puts(piece);
}

/* Clients of a daemon before this one, of which it cannot be told whether they live. */
static void show_untold(const cJSON *rows)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, rows)
    {
        if (row_text(row, "untold")[0])
            printf("Process %" PRIu64 " is detached, and whether it lives cannot be told (%s), for %s. It keeps %s until it comes "
                   "back or is seen to be dead.\n", row_number(row, "pid"), clean(row_text(row, "untold"), false),
                   ago(row_number(row, "untold_ns")), human(row_number(row, "bytes_held")));
    }
}

static void show_totals(struct ctl *ctl, const cJSON *rows)
{
    uint64_t held = 0, owned = 0;
    const cJSON *row;
    cJSON *stat = ctl_row(ctl, INFO_STATS);
    cJSON_ArrayForEach(row, rows)
    {
        held += row_number(row, "bytes_held");
        owned += row_number(row, "bytes_owned");
    }
    if (!stat)
        return;
    uint64_t used = row_number(stat, "bytes_used");
    printf("%d client%s hold%s %s. Published, so nobody's: %s. Heap: %s of %s in spans.\n",
           cJSON_GetArraySize(rows), cJSON_GetArraySize(rows) == 1 ? "" : "s",
           cJSON_GetArraySize(rows) == 1 ? "s" : "", human(held),
           human(used > owned ? used - owned : 0), human(row_number(stat, "heap_in_use")),
           human(row_number(stat, "heap_max")));
    cJSON_Delete(stat);
}

int cmd_clients(struct ctl *ctl)
{
    cJSON *rows = clients_sorted(ctl);
    const cJSON *row;
    if (!rows)
        return CTL_UNREACHABLE;
    if (ctl->json) {
        print_json(rows);
        return CTL_OK;
    }
    int width = terminal_width();
    printf("%7s %-10s %-8s %8s %8s %8s %8s %8s %-19s %8s %s\n", "PID", "USER", "STATE", "HOLDS",
           "OWNED", "CACHED", "LEASED", "CHARGED", "SINCE", "IDLE", "COMMAND");
    cJSON_ArrayForEach(row, rows)
    {
        printf("%7" PRIu64 " %-10.10s %-8s %8s %8s %8s %8s %8s %-19s %8s ", row_number(row, "pid"),
               row_text(row, "user"), client_state(row), human(row_number(row, "bytes_held")),
               human(row_number(row, "bytes_owned")), human(row_number(row, "bytes_cached")),
               human(row_number(row, "bytes_leased")), human(row_number(row, "bytes_charged")),
               when(row_number(row, "since_ns")), ago(row_number(row, "idle_ns")));
        print_cut(row_text(row, "command_line"), width ? (width > 110 ? width - 103 : 8) : 0);
    }
    show_untold(rows);
    show_totals(ctl, rows);
    cJSON_Delete(rows);
    return CTL_OK;
}
