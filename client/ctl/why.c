/* `why`: why the heap is full, or that it is not, and what would help: limits, the machine's
 * memory, fragmentation, what is held by whom. The verdict is the first of these that holds; the
 * lines below it are the figures it rests on. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "client/ctl/ctl.h"
#include "shm/layout.h"

struct facts {
    const cJSON *stat;
    cJSON *limits, *users, *clients, *classes;
    char limit[256]; /* a limit that is nearly reached; "": none is */
};

static void free_facts(struct facts *f)
{
    cJSON_Delete(f->limits);
    cJSON_Delete(f->users);
    cJSON_Delete(f->clients);
    cJSON_Delete(f->classes);
}

/* 15/16 of it: what is refused is mostly larger than what is left */
static bool is_near(uint64_t value, uint64_t limit)
{
    return limit && value >= limit - limit / 16;
}

static void look_at_limits(struct facts *f)
{
    static const struct {
        const char *who, *limit, *figure;
        bool bytes;
    } limits[] = {
        {"client", "client_bytes", "bytes_charged", true},
        {"client", "client_spans", "spans_charged", false},
        {"user", "uid_bytes", "bytes_charged", true},
        {"user", "uid_spans", "spans_charged", false},
    };
    const cJSON *row;
    for (int i = 0; i < 4 && !f->limit[0]; i++) {
        bool client = limits[i].who[0] == 'c';
        uint64_t limit = row_number(f->limits, limits[i].limit);
        cJSON_ArrayForEach(row, (client ? f->clients : f->users))
        {
            uint64_t value = row_number(row, limits[i].figure);
            char who[128], name[32];
            if (f->limit[0] || !is_near(value, limit))
                continue;
            snprintf(name, sizeof name, "limit-%s-%s", limits[i].who,
                     limits[i].bytes ? "bytes" : "spans");
            if (client)
                snprintf(who, sizeof who, "client %" PRIu64 " (%.60s)", row_number(row, "pid"),
                         row_text(row, "command"));
            else
                snprintf(who, sizeof who, "user %.60s", user_name(row_number(row, "uid")));
            if (limits[i].bytes)
                snprintf(f->limit, sizeof f->limit, "%s has %s of the %s that %s allows", who,
                         human(value), human(limit), name);
            else
                snprintf(f->limit, sizeof f->limit,
                         "%s has %" PRIu64 " of the %" PRIu64 " spans that %s allows", who, value,
                         limit, name);
        }
    }
}

static int read_facts(struct ctl *ctl, const cJSON *stat, struct facts *f)
{
    memset(f, 0, sizeof *f);
    f->stat = stat;
    f->limits = ctl_row(ctl, INFO_LIMITS);
    f->users = f->limits ? ctl_rows(ctl, INFO_USERS) : NULL;
    f->clients = f->users ? clients_sorted(ctl) : NULL;
    f->classes = f->clients ? ctl_rows(ctl, INFO_CLASSES) : NULL;
    if (f->classes)
        look_at_limits(f);
    else
        free_facts(f);
    return f->classes ? 0 : CTL_UNREACHABLE;
}

static uint64_t held_by_clients(const struct facts *f)
{
    uint64_t held = 0;
    const cJSON *row;
    cJSON_ArrayForEach(row, f->clients) held += row_number(row, "bytes_held");
    return held;
}

static uint64_t figure(const struct facts *f, const char *name)
{
    return row_number(f->stat, name);
}

/* In spans, and neither in an object in use nor cached. */
static uint64_t waste(const struct facts *f)
{
    uint64_t used = figure(f, "bytes_used") + figure(f, "bytes_cached"),
             spans = figure(f, "heap_in_use");
    return spans > used ? spans - used : 0;
}

static const char *verdict(const struct facts *f)
{
    static char text[512];
    uint64_t max = figure(f, "heap_max"), in_use = figure(f, "heap_in_use"),
             room = figure(f, "pages_free") * PAGE_SIZE;
    uint64_t warm = figure(f, "pages_warm") * PAGE_SIZE,
             run = figure(f, "pages_free_run") * PAGE_SIZE;
    uint64_t allowed = figure(f, "memory_allowance"), used = figure(f, "bytes_used");
    if (f->limit[0])
        snprintf(text, sizeof text, "a limit: %s", f->limit);
    else if (room > max / 16 && allowed + warm < 16 << 20 && allowed + warm < room / 16)
        snprintf(text, sizeof text,
                 "the machine: %s of the heap are free, but the machine and its cgroups would give "
                 "only %s "
                 "beyond memory-reserve",
                 human(room), human(allowed));
    else if (in_use >= max - max / 16 && used >= in_use - in_use / 4)
        snprintf(text, sizeof text,
                 "full: %s of %s are in spans, and %s of that in objects that are in use",
                 human(in_use), human(max), percent(used, in_use));
    else if (in_use >= max - max / 16)
        snprintf(text, sizeof text,
                 "full of free objects: %s of %s are in spans, but only %s of that is in use; try "
                 "arenactl "
                 "trim",
                 human(in_use), human(max), percent(used, in_use));
    else if (room > 1 << 20 && run < room / 16)
        snprintf(
            text, sizeof text,
            "fragmented: %s are free, but the longest run is %s: objects above that do not fit",
            human(room), human(run));
    else
        snprintf(text, sizeof text, "not full: %s are free, in runs of up to %s", human(room),
                 human(run));
    return text;
}

const char *why_verdict(struct ctl *ctl, const cJSON *stat)
{
    struct facts f;
    if (read_facts(ctl, stat, &f) != 0)
        return NULL;
    const char *text = verdict(&f);
    free_facts(&f);
    return text;
}

/* ---- the lines below it ---------------------------------------------------------------------- */

static uint64_t lost(const cJSON *class_row)
{
    return row_number(class_row, "bytes_waste") - row_number(class_row, "bytes_cached");
}

static void show_memory(const struct facts *f)
{
    uint64_t owned = 0, used = figure(f, "bytes_used"), room = figure(f, "pages_free") * PAGE_SIZE;
    const cJSON *row;
    cJSON_ArrayForEach(row, f->clients) owned += row_number(row, "bytes_owned");
    printf(
        "%-10s %8s  in no span, longest run %s; %s of it with memory; the machine would give %s\n",
        "free", human(room), human(figure(f, "pages_free_run") * PAGE_SIZE),
        human(figure(f, "pages_warm") * PAGE_SIZE), human(figure(f, "memory_allowance")));
    printf("%-10s %8s  objects that are nobody's: they stay until somebody frees them\n",
           "published", human(used > owned ? used - owned : 0));
    printf("%-10s %8s  objects that end with their clients\n", "owned",
           human(owned < used ? owned : used));
    printf("%-10s %8s  free objects in clients' magazines; arenactl trim asks for them\n", "cached",
           human(figure(f, "bytes_cached")));
    printf("%-10s %8s  free objects in spans, and ends of spans", "waste", human(waste(f)));
    uint64_t below = UINT64_MAX;
    for (int i = 0; i < 3; i++) {
        const cJSON *most = NULL;
        cJSON_ArrayForEach(row, f->classes)
        {
            if (lost(row) < below && lost(row) && (!most || lost(row) > lost(most)))
                most = row;
        }
        if (!most)
            break;
        below = lost(most);
        printf("%s %s %s", i ? "," : "; the classes with most:",
               row_number(most, "size") ? human(row_number(most, "size")) : "large", human(below));
    }
    putchar('\n');
}

static void show_holders(const struct facts *f)
{
    const cJSON *row;
    int shown = 0, count = cJSON_GetArraySize(f->clients);
    printf("%-10s %8s  held by %d client%s%s\n", "clients", human(held_by_clients(f)), count,
           count == 1 ? "" : "s",
           count > 3 ? "; the three largest:"
           : count   ? ":"
                     : "");
    cJSON_ArrayForEach(row, f->clients) if (shown++ < 3)
        printf("%-10s %8s  pid %" PRIu64 ", %s, %s: owned %s, cached %s, leased %s: %.40s\n", "",
               human(row_number(row, "bytes_held")), row_number(row, "pid"), row_text(row, "user"),
               client_state(row), human(row_number(row, "bytes_owned")),
               human(row_number(row, "bytes_cached")), human(row_number(row, "bytes_leased")),
               row_text(row, "command_line"));
}

static void show_limits_and_refusals(const struct facts *f)
{
    const cJSON *row;
    uint64_t bytes = row_number(f->limits, "uid_bytes");
    cJSON_ArrayForEach(row, f->users) if (row_number(row, "bytes_charged"))
        printf("%-10s %8s  charged to user %s%s%s\n", "user",
               human(row_number(row, "bytes_charged")), user_name(row_number(row, "uid")),
               bytes ? ", limit-user-bytes " : "", bytes ? human(bytes) : "");
    printf("%-10s %8" PRIu64 "  requests since this daemon was started: %" PRIu64
           " as the heap is full, %" PRIu64 " for a limit\n",
           "refused", figure(f, "refused_full") + figure(f, "refused_limit"),
           figure(f, "refused_full"), figure(f, "refused_limit"));
}

static void print_facts(struct facts *f)
{
    cJSON *all = cJSON_CreateObject();
    cJSON_AddStringToObject(all, "verdict", verdict(f));
    row_put(all, "bytes_free", figure(f, "pages_free") * PAGE_SIZE);
    row_put(all, "bytes_free_run", figure(f, "pages_free_run") * PAGE_SIZE);
    row_put(all, "bytes_waste", waste(f));
    row_put(all, "bytes_held", held_by_clients(f));
    row_put(all, "memory_allowance", figure(f, "memory_allowance"));
    row_put(all, "refused_full", figure(f, "refused_full"));
    row_put(all, "refused_limit", figure(f, "refused_limit"));
    cJSON_AddItemToObject(all, "limits", f->limits);
    cJSON_AddItemToObject(all, "users", f->users);
    cJSON_AddItemToObject(all, "clients", f->clients);
    f->limits = f->users = f->clients = NULL;
    print_json(all);
}

int cmd_why(struct ctl *ctl)
{
    struct facts f;
    cJSON *stat = ctl_row(ctl, INFO_STATS);
    if (!stat || read_facts(ctl, stat, &f) != 0) {
        cJSON_Delete(stat);
        return CTL_UNREACHABLE;
    }
    if (ctl->json)
        print_facts(&f);
    else {
        printf("%s\n", verdict(&f));
        show_memory(&f);
        show_holders(&f);
        show_limits_and_refusals(&f);
    }
    free_facts(&f);
    cJSON_Delete(stat);
    return CTL_OK;
}
