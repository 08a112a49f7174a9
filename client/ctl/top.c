/* `top`: the heap, its clients by what they hold and its classes by waste, again and again. A frame
 * is lines of text; they go to the screen by ncurses, or to standard output if that is no terminal.
 */
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <curses.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "client/ctl/ctl.h"
#include "client/link/environ.h"
#include "shm/layout.h"

enum { LINES_MAX = 512, LINE = 400, CLASS_LINES = 6, CLASS_LINES_PLAIN = 12 };

/* How a line is shown. */
enum look { PLAIN, BOLD, REVERSE };

struct frame {
    char text[LINES_MAX][LINE];
    enum look look[LINES_MAX];
    int count, width, height; /* height 0: no end */
};

struct sample {
    cJSON *stat, *clients, *classes;
    uint64_t ns; /* monotonic */
};

static struct {
    bool on_screen, quit, winch;
    const char *order; /* figure that clients are ordered by */
} top;

static const struct {
    char key;
    const char *figure, *name;
} orders[] = {
    {'h', "bytes_held", "held"},     {'o', "bytes_owned", "owned"}, {'c', "bytes_cached", "cached"},
    {'l', "bytes_leased", "leased"}, {'r', "refills", "refills"},
};

static uint64_t now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}

/* ---- samples --------------------------------------------------------------------------------- */

static void sample_free(struct sample *s)
{
    cJSON_Delete(s->stat);
    cJSON_Delete(s->clients);
    cJSON_Delete(s->classes);
    memset(s, 0, sizeof *s);
}

static int sample_take(struct ctl *ctl, struct sample *ret)
{
    memset(ret, 0, sizeof *ret);
    ret->stat = ctl_row(ctl, INFO_STATS);
    ret->clients = ret->stat ? clients_sorted(ctl) : NULL;
    ret->classes = ret->clients ? ctl_rows(ctl, INFO_CLASSES) : NULL;
    ret->ns = now_ns();
    if (ret->classes)
        return 0;
    sample_free(ret);
    return CTL_UNREACHABLE;
}

/* What a counter of `row` grew by in a second since `before`, whose rows have the same `key`; below
 * 0: unknown. */
static double rate_of(const cJSON *row, const cJSON *before, const char *key, const char *figure,
                      uint64_t ns)
{
    const cJSON *old;
    if (!before || !ns)
        return -1;
    if (!key)
        old = before;
    else
        cJSON_ArrayForEach(old, before) if (row_number(old, key) == row_number(row, key) &&
                                            row_number(old, "pid") == row_number(row, "pid")) break;
    if (!old || row_number(old, figure) > row_number(row, figure))
        return -1;
    return (double)(row_number(row, figure) - row_number(old, figure)) * 1e9 / (double)ns;
}

static const char *rate_text(double rate)
{
    static char buffers[8][24];
    static unsigned next;
    char *out = buffers[next++ % 8];
    snprintf(out, sizeof buffers[0],
             rate < 0                  ? "-"
             : rate > 0 && rate < 9.95 ? "%.1f"
                                       : "%.0f",
             rate);
    return out;
}

/* ---- the frame ------------------------------------------------------------------------------- */

static void __attribute__((format(printf, 3, 4)))
add_line(struct frame *f, enum look look, const char *format, ...)
{
    va_list args;
    if (f->count == LINES_MAX || (f->height && f->count >= f->height))
        return;
    va_start(args, format);
    vsnprintf(f->text[f->count], LINE, format, args);
    va_end(args);
    f->look[f->count++] = look;
}

static const cJSON *largest_below(const cJSON *rows, const char *figure, const cJSON **done,
                                  int done_count)
{
    const cJSON *row, *most = NULL;
    cJSON_ArrayForEach(row, rows)
    {
        bool seen = false;
        for (int i = 0; i < done_count; i++)
            seen |= done[i] == row;
        if (!seen && (!most || row_number(row, figure) > row_number(most, figure)))
            most = row;
    }
    return most;
}

static void add_clients(struct frame *f, const struct sample *s, const struct sample *before,
                        int lines)
{
    const cJSON *done[LINES_MAX], *row;
    uint64_t ns = before->ns ? s->ns - before->ns : 0;
    int count = cJSON_GetArraySize(s->clients);
    add_line(f, REVERSE, "%7s %-8s %-8s %6s %6s %6s %6s %6s %s", "PID", "USER", "STATE", "HOLDS",
             "OWNED", "CACHED", "LEASED", "REF/s", "COMMAND");
    for (int i = 0; i < count && i < lines && i < LINES_MAX; i++) {
        if (!(row = done[i] = largest_below(s->clients, top.order, done, i)))
            break;
        add_line(f, PLAIN, "%7" PRIu64 " %-8.8s %-8s %6s %6s %6s %6s %6s %.200s",
                 row_number(row, "pid"), row_text(row, "user"), client_state(row),
                 human(row_number(row, "bytes_held")), human(row_number(row, "bytes_owned")),
                 human(row_number(row, "bytes_cached")), human(row_number(row, "bytes_leased")),
                 rate_text(rate_of(row, before->clients, "tag", "refills", ns)),
                 row_text(row, "command_line"));
    }
    if (count > lines)
        add_line(f, PLAIN, "        ... and %d more", count - lines);
}

static void add_classes(struct frame *f, const struct sample *s, const struct sample *before,
                        int lines)
{
    const cJSON *done[LINES_MAX], *row;
    uint64_t ns = before->ns ? s->ns - before->ns : 0;
    add_line(f, REVERSE, "%7s %-6s %7s %7s %7s %6s %9s %9s %8s", "SIZE", "KIND", "SPANS", "BYTES",
             "WASTE", "OF IT", "USED", "FREE", "REFILL/s");
    for (int i = 0; i < lines && i < LINES_MAX; i++) {
        if (!(row = done[i] = largest_below(s->classes, "bytes_waste", done, i)))
            break;
        uint64_t bytes = row_number(row, "bytes"), lost = row_number(row, "bytes_waste");
        add_line(f, PLAIN, "%7s %-6s %7" PRIu64 " %7s %7s %6s %9" PRIu64 " %9" PRIu64 " %8s",
                 row_number(row, "size") ? human(row_number(row, "size")) : "large",
                 row_number(row, "noscan") ? "noscan" : "scan", row_number(row, "spans"),
                 human(bytes), human(lost), percent(lost, bytes),
                 row_number(row, "owned") + row_number(row, "shared"),
                 row_number(row, "free") + row_number(row, "cached"),
                 rate_text(rate_of(row, before->classes, "class", "refills", ns)));
    }
}

static void add_bar(struct frame *f, const struct sample *s)
{
    uint64_t max = row_number(s->stat, "heap_max"),
             width = (uint64_t)(f->width > 24 ? f->width - 14 : 20);
    uint64_t used = row_number(s->stat, "bytes_used"), spans = row_number(s->stat, "heap_in_use"),
             at = 0;
    uint64_t cached = used + row_number(s->stat, "bytes_cached");
    char bar[LINE];
    width = width < 160 ? width : 160;
    for (; at < width; at++) {
        uint64_t bytes = max / width * at;
        bar[at] = bytes < used ? '#' : bytes < cached ? '+' : bytes < spans ? '-' : ' ';
    }
    bar[at] = 0;
    add_line(f, PLAIN, "[%s] %s", bar, percent(spans, max));
}

static void frame_build(struct frame *f, const struct sample *s, const struct sample *before)
{
    uint64_t ns = before->ns ? s->ns - before->ns : 0;
    time_t now = time(NULL);
    struct tm tm;
    char clock[16] = "";
    if (localtime_r(&now, &tm))
        strftime(clock, sizeof clock, "%H:%M:%S", &tm);
    f->count = 0;
    add_line(f, BOLD, "arena %s  %s  %s of %s in spans, %s free, longest run %s",
             row_text(s->stat, "name"), clock, human(row_number(s->stat, "heap_in_use")),
             human(row_number(s->stat, "heap_max")),
             human(row_number(s->stat, "pages_free") * PAGE_SIZE),
             human(row_number(s->stat, "pages_free_run") * PAGE_SIZE));
    add_bar(f, s);
    add_line(f, PLAIN,
             "used # %s in %" PRIu64 " objects, %" PRIu64
             " published; cached + %s; leased %s; backed %s",
             human(row_number(s->stat, "bytes_used")), row_number(s->stat, "objects_used"),
             row_number(s->stat, "objects_shared"), human(row_number(s->stat, "bytes_cached")),
             human(row_number(s->stat, "bytes_leased")), human(row_number(s->stat, "heap_backed")));
    add_line(f, PLAIN,
             "clients %d  refills/s %s  round trips/s %s  reclaimed %" PRIu64
             "  refused: full %" PRIu64 ", limit %" PRIu64,
             cJSON_GetArraySize(s->clients),
             rate_text(rate_of(s->stat, before->stat, NULL, "refills", ns)),
             rate_text(rate_of(s->stat, before->stat, NULL, "round_trips", ns)),
             row_number(s->stat, "reclaimed_clients"), row_number(s->stat, "refused_full"),
             row_number(s->stat, "refused_limit"));
    int classes = cJSON_GetArraySize(s->classes), clients = cJSON_GetArraySize(s->clients);
    if (f->height) { /* what there is below the four lines: the last line is for the keys */
        int room = f->height - 4 - 2 - 1;
        classes = classes < CLASS_LINES || clients + classes <= room ? classes : CLASS_LINES;
        clients = clients + classes <= room ? clients : room - classes - 1;
        clients = clients < 0 ? 0 : clients;
    } else if (classes > CLASS_LINES_PLAIN)
        classes = CLASS_LINES_PLAIN;
    add_clients(f, s, before, clients);
    add_classes(f, s, before, classes);
}

/* ---- the screen ------------------------------------------------------------------------------ */

static void on_signal(int signum)
{
    if (signum == SIGWINCH)
        top.winch = true;
    else
        top.quit = true;
}

static void take_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal}; /* without SA_RESTART: poll() returns */
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGHUP, &action, NULL);
}

static void draw_frame(const struct frame *f)
{
    static const attr_t attributes[] = {[PLAIN] = A_NORMAL, [BOLD] = A_BOLD, [REVERSE] = A_REVERSE};
    erase();
    for (int y = 0; y < f->count && y < LINES; y++) {
        attrset(attributes[f->look[y]]);
        mvaddnstr(y, 0, f->text[y], -1);
        if (f->look[y] == REVERSE)
            for (int x = columns(f->text[y]); x < COLS; x++)
                addch(' ');
    }
    attrset(A_REVERSE);
    if (LINES > f->count) {
        mvaddnstr(LINES - 1, 0, "q quit  by: h held  o owned  c cached  l leased  r refills",
                  COLS - 1);
    }
    attrset(A_NORMAL);
    move(LINES - 1, COLS - 1);
    refresh();
}

/* Keys that are there; true: draw anew. */
static bool take_keys(void)
{
    bool anew = top.winch;
    int key;
    if (top.winch) {
        top.winch = false;
        endwin();
        refresh(); /* asks for the size again */
    }
    while ((key = getch()) != ERR) {
        anew = true;
        if (key == 'q' || key == 'Q' || key == 27)
            top.quit = true;
        for (size_t i = 0; i < sizeof orders / sizeof orders[0]; i++)
            if (key == orders[i].key)
                top.order = orders[i].figure;
    }
    return anew;
}

/* Waits for a key, a signal or `fd` (-1: none), at most until `deadline`: true when fd can be read.
 */
static bool wait_for(int fd, uint64_t deadline)
{
    struct pollfd fds[2] = {{0, POLLIN, 0}, {fd, POLLIN, 0}};
    uint64_t now = now_ns();
    int left = deadline == UINT64_MAX ? -1
               : deadline > now       ? (int)((deadline - now) / 1000000) + 1
                                      : 0;
    int rc = poll(top.on_screen ? fds : fds + 1, top.on_screen ? 2 : 1, left);
    if (rc > 0 && top.on_screen && (fds[0].revents & (POLLHUP | POLLERR | POLLNVAL)))
        top.quit = true; /* the terminal is gone */
    return rc > 0 && fds[1].revents;
}

/* While a reply is awaited: a daemon that is stopped must not keep q from working. */
static int wait_reply(struct ctl *ctl)
{
    while (top.on_screen && !top.quit && !wait_for(ctl->call.fd, UINT64_MAX))
        take_keys();
    return top.quit;
}

static bool screen_open(void)
{
    const char *term = environ_get("TERM");
    if (!isatty(0) || !isatty(1) || !term || strcmp(term, "dumb") == 0 ||
        !newterm(NULL, stdout, stdin))
        return false;
    top.on_screen = true;
    sigaction(SIGWINCH, &(struct sigaction){.sa_handler = on_signal}, NULL);
    cbreak();
    noecho();
    nodelay(stdscr, TRUE);
    keypad(stdscr, TRUE);
    set_escdelay(25);
    curs_set(0);
    return true;
}

static void screen_close(void)
{
    if (top.on_screen)
        endwin();
    top.on_screen = false;
}

/* ---- the command ----------------------------------------------------------------------------- */

static void show(struct frame *f, const struct sample *s, const struct sample *before)
{
    if (top.on_screen) {
        f->width = COLS;
        f->height = LINES > 1 ? LINES - 1 : 1;
        frame_build(f, s, before);
        draw_frame(f);
        return;
    }
    f->width = 80;
    f->height = 0;
    frame_build(f, s, before);
    for (int i = 0; i < f->count; i++)
        puts(f->text[i]);
    putchar('\n');
    fflush(stdout);
}

/* One object a line. */
static void show_json(struct sample *s)
{
    cJSON *all = cJSON_CreateObject();
    row_put(all, "time_ns", now_real_ns());
    cJSON_AddItemReferenceToObject(all, "stat", s->stat);
    cJSON_AddItemReferenceToObject(all, "clients", s->clients);
    cJSON_AddItemReferenceToObject(all, "classes", s->classes);
    char *text = cJSON_PrintUnformatted(all);
    puts(text ? text : "null");
    fflush(stdout);
    free(text);
    cJSON_Delete(all);
}

/* A daemon that was started again after a crash is the same heap: one new connection is tried. */
static int take_again(struct ctl *ctl, struct sample *ret)
{
    int rc = sample_take(ctl, ret);
    if (rc == 0 || top.quit)
        return rc;
    ctl_disconnect(ctl);
    return sample_take(ctl, ret);
}

static int run_top(struct ctl *ctl, struct frame *f)
{
    struct sample now = {0}, before = {0};
    uint64_t interval = (ctl->interval_ms == UINT64_MAX ? 2000 : ctl->interval_ms) * 1000000,
             left = ctl->count;
    int rc = 0;
    if (left == UINT64_MAX && !top.on_screen)
        left = 1;
    while (!top.quit && (rc = take_again(ctl, &now)) == 0) {
        if (ctl->json)
            show_json(&now);
        else
            show(f, &now, &before);
        if (left != UINT64_MAX && --left == 0)
            break;
        while (!top.quit && now_ns() < now.ns + interval) {
            wait_for(-1, now.ns + interval);
            if (top.on_screen && take_keys() && !top.quit)
                show(f, &now, &before);
        }
        sample_free(&before);
        before = now;
        now = (struct sample){0};
    }
    sample_free(&now);
    sample_free(&before);
    return top.quit ? CTL_OK : rc;
}

int cmd_top(struct ctl *ctl)
{
    struct frame *f = calloc(1, sizeof *f);
    top.order = orders[0].figure;
    if (!f) {
        fprintf(stderr, "arenactl: top: out of memory\n");
        return CTL_OUTPUT;
    }
    int rc = ctl_connect(ctl); /* what is wrong from the start is said before the screen is taken */
    if (rc == 0) {
        take_signals();
        if (!ctl->json)
            screen_open();
        ctl->wait = wait_reply;
        ctl->hold_errors = true;
        rc = run_top(ctl, f);
        screen_close();
        if (rc != 0 && ctl->error[0])
            fprintf(stderr, "arenactl: %s\n", ctl->error);
    }
    free(f);
    return rc;
}
