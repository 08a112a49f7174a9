#include "client/ctl/map.h"

#include <inttypes.h>
#include <langinfo.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "client/link/environ.h"
#include "proto/rows.h"
#include "shm/layout.h"

#define MAP_NAME(name, glyph, ascii, colour, fill, text) #name,
#define MAP_TEXT(name, glyph, ascii, colour, fill, text) text,
#define MAP_FILL(name, glyph, ascii, colour, fill, text) fill,
const char *const map_names[] = {MAP_KINDS(MAP_NAME)};
const char *const map_texts[] = {MAP_KINDS(MAP_TEXT)};
const char *const map_fills[] = {MAP_KINDS(MAP_FILL)};
static const struct {
    const char *glyph;
    char ascii;
    int colour;
} looks[] = {
#define MAP_LOOK(name, glyph, ascii, colour, fill, text) {glyph, ascii, colour},
    MAP_KINDS(MAP_LOOK)
#undef MAP_LOOK
};

/* ---- reading --------------------------------------------------------------------------------- */

struct reading {
    struct map *map;
    uint64_t next; /* page: rows come by pages; what a change under way shows twice is cut */
    bool no_memory;
};

static void add_run(struct reading *r, uint64_t first, uint64_t pages, unsigned kind,
                    unsigned level)
{
    struct map *map = r->map;
    struct map_run *last = map->run_count ? &map->runs[map->run_count - 1] : NULL;
    if (!pages)
        return;
    map->pages[kind] += pages;
    if (last && last->kind == kind && last->level == level && last->first + last->pages == first) {
        last->pages += (uint32_t)pages;
        return;
    }
    if (map->run_count == map->run_capacity) {
        size_t capacity = map->run_capacity ? map->run_capacity * 2 : 1024;
        struct map_run *grown = realloc(map->runs, capacity * sizeof *grown);
        if (!grown) {
            r->no_memory = true;
            return;
        }
        map->runs = grown;
        map->run_capacity = capacity;
    }
    map->runs[map->run_count++] =
        (struct map_run){(uint32_t)first, (uint32_t)pages, (uint8_t)kind, (uint8_t)level};
}

static unsigned kind_of_span(uint64_t span_class, bool leased, uint64_t free_objects)
{
    if (CLASS_IS_LARGE(span_class))
        return leased ? MAP_large_leased : MAP_large;
    return leased ? MAP_leased : free_objects ? MAP_partial : MAP_full;
}

static void take_row(void *context, const msgpack_object *row)
{
    struct reading *r = context;
    struct map *map = r->map;
    uint64_t first = row_u64(row, "page"), end = first + row_u64(row, "pages");
    uint64_t span_class = row_u64(row, "class");
    end = end < map->page_count ? end : map->page_count;
    if (end <= r->next)
        return;
    if (first > r->next)
        add_run(r, r->next, first - r->next, MAP_free, 0);
    uint64_t from = first > r->next ? first : r->next;
    r->next = end;
    if (!span_class) {
        add_run(r, from, end - from, row_u64(row, "warm") ? MAP_free : MAP_returned, 0);
        return;
    }
    uint64_t objects = row_u64(row, "objects"),
             used = row_u64(row, "owned") + row_u64(row, "shared");
    uint64_t hollow = row_u64(row, "returned");
    unsigned level = objects ? (unsigned)((used * MAP_LEVELS + objects - 1) / objects) : 0;
    unsigned kind =
        kind_of_span(span_class, row_u64(row, "lessee") != 0, row_u64(row, "free"));
    for (uint64_t page = from; page < end;) {
        bool is_hollow = page - first < 16 && (hollow >> (page - first) & 1) && kind == MAP_partial;
        uint64_t pages = page - first < 16 ? 1 : end - page;
        add_run(r, page, pages, is_hollow ? MAP_hollow : kind, level);
        page += pages;
    }
}

static bool is_free(unsigned kind)
{
    return kind == MAP_free || kind == MAP_returned || kind == MAP_untouched;
}

/* Runs of free pages, whatever is behind them. */
static void count_free_runs(struct map *map)
{
    uint64_t length = 0, used = 0; /* of the run; of that, what was ever used */
    for (size_t i = 0; i <= map->run_count; i++) {
        if (i < map->run_count && is_free(map->runs[i].kind)) {
            length += map->runs[i].pages;
            used += map->runs[i].kind == MAP_untouched ? 0 : map->runs[i].pages;
            continue;
        }
        if (used) {
            unsigned bin = 63u - (unsigned)__builtin_clzll(used);
            bin = bin < MAP_RUN_BINS ? bin : MAP_RUN_BINS - 1;
            map->free_runs[bin]++;
            map->free_pages[bin] += used;
        }
        map->longest_run = length > map->longest_run ? length : map->longest_run;
        length = used = 0;
    }
}

int map_read(struct ctl *ctl, struct map *map)
{
    struct reading r = {.map = map, .next = 1};
    memset(map, 0, sizeof *map);
    map->stat = ctl_row(ctl, INFO_STATS);
    if (!map->stat)
        return CTL_UNREACHABLE;
    map->page_count = row_number(map->stat, "heap_max") >> PAGE_SHIFT;
    int rc = ctl_each_info(ctl, INFO_MAP, take_row, &r);
    map->top = r.next;
    if (rc == 0 && map->page_count > r.next)
        add_run(&r, r.next, map->page_count - r.next, MAP_untouched, 0);
    if (rc == 0 && r.no_memory) {
        fprintf(stderr, "arenactl: out of memory for the map of %" PRIu64 " pages\n",
                map->page_count);
        rc = CTL_OUTPUT;
    }
    count_free_runs(map);
    return rc;
}

void map_free(struct map *map)
{
    cJSON_Delete(map->stat);
    free(map->runs);
}

struct map_cell *map_cells(const struct map *map, size_t count, uint64_t pages_each)
{
    struct map_cell *cells = calloc(count, sizeof *cells);
    size_t run = 0;
    for (size_t i = 0; cells && i < count; i++) {
        uint64_t from = i * pages_each, to = from + pages_each, pages[MAP_KIND_COUNT] = {0},
                 used[MAP_KIND_COUNT] = {0};
        unsigned best = MAP_untouched;
        while (run < map->run_count &&
               map->runs[run].first + (uint64_t)map->runs[run].pages <= from)
            run++;
        for (size_t k = run; k < map->run_count && map->runs[k].first < to; k++) {
            const struct map_run *r = &map->runs[k];
            uint64_t a = r->first > from ? r->first : from, b = r->first + (uint64_t)r->pages;
            b = b < to ? b : to;
            pages[r->kind] += b - a;
            used[r->kind] += (b - a) * r->level;
        }
        for (unsigned kind = MAP_KIND_COUNT; kind-- > 0;)
            if (pages[kind] && pages[kind] >= pages[best])
                best = kind;
        cells[i].kind = (uint8_t)best;
        cells[i].level = (uint8_t)(pages[best] ? (used[best] + pages[best] - 1) / pages[best] : 0);
    }
    return cells;
}

/* ---- on a terminal --------------------------------------------------------------------------- */

struct drawing {
    bool ascii, colour;
    unsigned last; /* kind whose colour is set; MAP_KIND_COUNT: none */
};

static void draw(struct drawing *d, unsigned kind, unsigned level)
{
    if (d->colour && kind != d->last && kind != MAP_untouched) {
        printf("\033[%dm", looks[kind].colour);
        d->last = kind;
    }
    if (d->ascii)
        putchar(looks[kind].ascii);
    else
        fputs(kind == MAP_partial && level <= MAP_LEVELS / 2 ? "░" : looks[kind].glyph, stdout);
}

static void plain(struct drawing *d)
{
    if (d->colour && d->last != MAP_KIND_COUNT)
        fputs("\033[0m", stdout);
    d->last = MAP_KIND_COUNT;
}

static void show_legend(const struct map *map, struct drawing *d)
{
    for (unsigned kind = 0; kind < MAP_KIND_COUNT; kind++) {
        if (!map->pages[kind])
            continue;
        fputs("  ", stdout);
        draw(d, kind, MAP_LEVELS);
        plain(d);
        printf("  %8s %6s  %s\n", human(map->pages[kind] << PAGE_SHIFT),
               percent(map->pages[kind], map->page_count - 1), map_texts[kind]);
    }
    uint64_t free_pages =
        map->pages[MAP_free] + map->pages[MAP_returned] + map->pages[MAP_untouched];
    printf("in spans %s, free %s; longest free run %s\n",
           human((map->page_count - 1 - free_pages) << PAGE_SHIFT), human(free_pages << PAGE_SHIFT),
           human(map->longest_run << PAGE_SHIFT));
}

static int show_blocks(const struct map *map, bool ascii)
{
    struct winsize size = {.ws_row = 24, .ws_col = 80};
    struct drawing d = {.ascii = ascii || strcmp(nl_langinfo(CODESET), "UTF-8") != 0,
                        .last = MAP_KIND_COUNT};
    const char *term = environ_get("TERM");
    bool terminal = isatty(1);
    if (terminal)
        ioctl(1, TIOCGWINSZ, &size);
    d.colour = terminal && !environ_get("NO_COLOR") && term && strcmp(term, "dumb") != 0;
    uint64_t width = size.ws_col > 28 ? (size.ws_col - 12) / 8 * 8 : 16,
             height = size.ws_row > 18 ? size.ws_row - 14 : 4;
    if (!terminal)
        height = 16;
    uint64_t each = 1;
    while (each * width * height < map->top)
        each *= 2;
    uint64_t rows = (map->top + each * width - 1) / (each * width);
    struct map_cell *cells = map_cells(map, rows * width, each);
    if (!cells) {
        fprintf(stderr, "arenactl: out of memory for %" PRIu64 " blocks\n", rows * width);
        return CTL_OUTPUT;
    }
    printf("heap %s, %s: a block is %" PRIu64 " page%s, %s; a line %s\n",
           row_text(map->stat, "name"), human(row_number(map->stat, "heap_max")), each,
           each == 1 ? "" : "s", human(each << PAGE_SHIFT), human(each * width << PAGE_SHIFT));
    for (uint64_t y = 0; y < rows; y++) {
        printf("%9s ", human(y * width * each << PAGE_SHIFT));
        for (uint64_t x = 0; x < width; x++)
            if (y + x == 0 && each == 1)
                putchar(' '); /* page 0 */
            else
                draw(&d, cells[y * width + x].kind, cells[y * width + x].level);
        plain(&d);
        putchar('\n');
    }
    free(cells);
    show_legend(map, &d);
    return CTL_OK;
}

static int show_json(const struct map *map)
{
    cJSON *all = cJSON_CreateObject(), *kinds = cJSON_CreateObject();
    row_put(all, "page_bytes", PAGE_SIZE);
    row_put(all, "pages", map->page_count - 1);
    row_put(all, "top", map->top);
    row_put(all, "longest_free_run", map->longest_run);
    for (unsigned kind = 0; kind < MAP_KIND_COUNT; kind++)
        row_put(kinds, map_names[kind], map->pages[kind]);
    cJSON_AddItemToObject(all, "kinds", kinds);
    char *text = cJSON_PrintUnformatted(all);
    text[strlen(text) - 1] = 0; /* its last brace: what may be long is not kept as values */
    printf("%s,\"runs\":[", text);
    for (size_t i = 0; i < map->run_count; i++)
        printf("%s\n{\"page\":%u,\"pages\":%u,\"kind\":\"%s\",\"used_eighths\":%u}", i ? "," : "",
               map->runs[i].first, map->runs[i].pages, map_names[map->runs[i].kind],
               map->runs[i].level);
    puts("]}");
    free(text);
    cJSON_Delete(all);
    return CTL_OK;
}

int cmd_map(struct ctl *ctl)
{
    struct map map;
    int rc = map_read(ctl, &map);
    if (rc == 0 && ctl->svg)
        rc = map_svg(&map, ctl->svg);
    if (rc == 0 && ctl->json)
        rc = show_json(&map);
    else if (rc == 0 && !ctl->svg)
        rc = show_blocks(&map, ctl->ascii);
    map_free(&map);
    return rc;
}
