/* The map as a picture in SVG: a grid of cells in address order, each shaded by how much of it is
 * in use; beside it the legend with sums; below it how long the runs of free pages are, which is
 * what fragmentation means to a large object. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/map.h"
#include "shm/layout.h"

enum {
    MARGIN = 24,
    ADDRESS = 64, /* width of the column of addresses */
    GRID = 768,
    ACROSS = 128, /* cells in a row */
    DOWN_MAX = 112,
    LEGEND = 348,
    HISTOGRAM = 132,
    WIDTH = MARGIN + ADDRESS + GRID + MARGIN + LEGEND + MARGIN,
    CELL = GRID / ACROSS
};

#define FREE_FILL "#8d99a6"

static void put_escaped(FILE *out, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        default:
            fputc(*text, out);
        }
}

static void put_text(FILE *out, int x, int y, const char *style, const char *text)
{
    fprintf(out, "<text x=\"%d\" y=\"%d\" %s>", x, y, style);
    put_escaped(out, text);
    fputs("</text>\n", out);
}

static void put_rect(FILE *out, double x, double y, double width, double height, const char *fill,
                     double opacity)
{
    fprintf(out, "<rect x=\"%g\" y=\"%g\" width=\"%g\" height=\"%g\" fill=\"%s\"", x, y, width,
            height, fill);
    if (opacity < 1)
        fprintf(out, " fill-opacity=\"%.2f\"", opacity);
    fputs("/>\n", out);
}

/* Spans whose objects are all in use are solid; the fewer are, the paler. */
static double shade(const struct map_cell *cell)
{
    bool shaded =
        cell->kind == MAP_leased || cell->kind == MAP_partial || cell->kind == MAP_large_leased;
    return shaded ? 0.3 + 0.7 * cell->level / MAP_LEVELS : 1;
}

static void put_grid(FILE *out, const struct map_cell *cells, int down, int top, uint64_t each)
{
    char label[32];
    for (int y = 0; y < down; y++) {
        const struct map_cell *row = cells + (size_t)y * ACROSS;
        if (y % 8 == 0) {
            snprintf(label, sizeof label, "%s", human((uint64_t)y * ACROSS * each << PAGE_SHIFT));
            put_text(out, MARGIN + ADDRESS - 8, top + y * CELL + CELL + 3,
                     "text-anchor=\"end\" class=\"s\"", label);
        }
        for (int x = 0, end; x < ACROSS; x = end) { /* one rectangle for a run of equal cells */
            end = x + 1;
            while (end < ACROSS && row[end].kind == row[x].kind && row[end].level == row[x].level)
                end++;
            if (row[x].kind != MAP_untouched)
                put_rect(out, MARGIN + ADDRESS + x * CELL, top + y * CELL, (end - x) * CELL, CELL,
                         map_fills[row[x].kind], shade(&row[x]));
        }
    }
    /* thin lines between the cells, so that they can be counted */
    fprintf(out, "<path d=\"");
    for (int x = 0; x <= ACROSS; x += 8)
        fprintf(out, "M%d %dv%d", MARGIN + ADDRESS + x * CELL, top, down * CELL);
    for (int y = 0; y <= down; y += 8)
        fprintf(out, "M%d %dh%d", MARGIN + ADDRESS, top + y * CELL, GRID);
    fprintf(
        out,
        "\" stroke=\"#ffffff\" stroke-opacity=\"0.55\" stroke-width=\"1\" fill=\"none\"/>\n"
        "<rect x=\"%d\" y=\"%d\" width=\"%d\" height=\"%d\" fill=\"none\" stroke=\"#98a2ad\"/>\n",
        MARGIN + ADDRESS, top, GRID, down * CELL);
}

static int put_legend(FILE *out, const struct map *map, int x, int y)
{
    char text[96];
    uint64_t all = map->page_count - 1, spans = 0;
    for (unsigned kind = 0; kind < MAP_KIND_COUNT; kind++) {
        if (kind < MAP_free)
            spans += map->pages[kind];
        if (!map->pages[kind])
            continue;
        fprintf(
            out,
            "<rect x=\"%d\" y=\"%d\" width=\"14\" height=\"14\" fill=\"%s\" stroke=\"#98a2ad\"/>\n",
            x, y - 11, map_fills[kind]);
        put_text(out, x + 78, y, "text-anchor=\"end\"", human(map->pages[kind] << PAGE_SHIFT));
        put_text(out, x + 128, y, "text-anchor=\"end\" class=\"s\"",
                 percent(map->pages[kind], all));
        put_text(out, x + 138, y, "class=\"s\"", map_texts[kind]);
        y += 22;
    }
    y += 8;
    snprintf(text, sizeof text, "%s in spans, %s free", human(spans << PAGE_SHIFT),
             human((all - spans) << PAGE_SHIFT));
    put_text(out, x, y, "", text);
    snprintf(text, sizeof text, "%s in %" PRIu64 " objects in use, %s cached",
             human(row_number(map->stat, "bytes_used")), row_number(map->stat, "objects_used"),
             human(row_number(map->stat, "bytes_cached")));
    put_text(out, x, y + 20, "", text);
    snprintf(text, sizeof text, "longest free run: %s", human(map->longest_run << PAGE_SHIFT));
    put_text(out, x, y + 40, "", text);
    put_text(out, x, y + 64, "class=\"s\"", "paler: fewer of the objects there are in use");
    return y + 76;
}

/* Free memory by the length of its runs: a bar for each power of two. */
static void put_histogram(FILE *out, const struct map *map, int top)
{
    uint64_t most = 1;
    unsigned last = 0;
    char text[64];
    for (unsigned bin = 0; bin < MAP_RUN_BINS; bin++) {
        most = map->free_pages[bin] > most ? map->free_pages[bin] : most;
        last = map->free_pages[bin] ? bin : last;
    }
    put_text(out, MARGIN + ADDRESS, top, "class=\"b\"",
             "Free memory that was used before, by the length of the run of pages that it lies in");
    int step = GRID / (int)(last < 7 ? 8 : last + 1), base = top + HISTOGRAM - 18;
    for (unsigned bin = 0; bin <= last; bin++) {
        int x = MARGIN + ADDRESS + (int)bin * step;
        double height = (HISTOGRAM - 56) * (double)map->free_pages[bin] / (double)most;
        if (map->free_pages[bin]) {
            height = height < 1 ? 1 : height;
            put_rect(out, x + 3, base - height, step - 6, height, FREE_FILL, 1);
            put_text(out, x + step / 2, (int)(base - height) - 4,
                     "text-anchor=\"middle\" class=\"s\"",
                     human(map->free_pages[bin] << PAGE_SHIFT));
        }
        snprintf(text, sizeof text, "%s+", human(PAGE_SIZE << bin));
        put_text(out, x + step / 2, base + 15, "text-anchor=\"middle\" class=\"s\"", text);
    }
    fprintf(out, "<path d=\"M%d %dh%d\" stroke=\"#98a2ad\"/>\n", MARGIN + ADDRESS, base, GRID);
}

static void put_picture(FILE *out, const struct map *map, const struct map_cell *cells, int down,
                        uint64_t each)
{
    int top = 84, legend_rows = 0;
    char text[256];
    for (unsigned kind = 0; kind < MAP_KIND_COUNT; kind++)
        legend_rows += map->pages[kind] != 0;
    int body = down * CELL, legend = legend_rows * 22 + 100;
    int histogram = top + (body > legend ? body : legend) + 36;
    fprintf(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d "
        "%d\">\n"
        "<style>text{font-family:\"DejaVu Sans\",Verdana,sans-serif;font-size:13px;fill:#1f2933}"
        ".s{font-size:11px;fill:#52606d}.b{font-size:13px;font-weight:bold}.h{font-size:20px;font-"
        "weight:bold}</style>\n"
        "<rect width=\"100%%\" height=\"100%%\" fill=\"#ffffff\"/>\n",
        WIDTH, histogram + HISTOGRAM + MARGIN, WIDTH, histogram + HISTOGRAM + MARGIN);
    snprintf(text, sizeof text, "heap %s: %s of %s in spans", row_text(map->stat, "name"),
             human(row_number(map->stat, "heap_in_use")), human(row_number(map->stat, "heap_max")));
    put_text(out, MARGIN, 38, "class=\"h\"", text);
    snprintf(text, sizeof text, "%s, id %s. A cell is %" PRIu64 " page%s, %s; a row is %s.%s",
             when(now_real_ns()), row_text(map->stat, "heap_id_hex"), each, each == 1 ? "" : "s",
             human(each << PAGE_SHIFT), human(each * ACROSS << PAGE_SHIFT),
             map->page_count > (uint64_t)down * ACROSS * each ? " What is above was never used."
                                                              : "");
    put_text(out, MARGIN, 62, "class=\"s\"", text);
    put_grid(out, cells, down, top, each);
    put_legend(out, map, MARGIN + ADDRESS + GRID + MARGIN, top + 12);
    put_histogram(out, map, histogram);
    fputs("</svg>\n", out);
}

int map_svg(const struct map *map, const char *path)
{
    uint64_t each = 1;
    while (each * ACROSS * DOWN_MAX < map->top)
        each *= 2;
    uint64_t down = (map->top + each * ACROSS - 1) / (each * ACROSS);
    down = (down + 7) / 8 * 8; /* whole boxes of lines */
    struct map_cell *cells = map_cells(map, down * ACROSS, each);
    struct output out;
    int rc = CTL_OK;
    if (!cells) {
        fprintf(stderr, "arenactl: cannot write %s: out of memory\n", clean(path, false));
        rc = CTL_OUTPUT;
    } else if ((rc = output_open(&out, path)) == 0) {
        put_picture(out.file, map, cells, (int)down, each);
        rc = output_close(&out);
    }
    free(cells);
    return rc;
}
