/* arenactl inside: a monitor's connection to the daemon (no tag, no memory), its rows, and the commands.
 *
 *   arenactl.c   the tables of commands and options, parsing, --help
 *   rows.c       connection, requests, rows as they come or as JSON values
 *   text.c       figures for people: units, ages, names, clean text
 *   tables.c     the commands that are a table of rows; others have files of their names
 *
 * A new command is a row in `commands` (arenactl.c) and a function here; a new option a row in `options` and a member
 * of struct ctl. --help, the completion's test and the parser follow the tables. A command returns its exit status.
 */
#ifndef CLIENT_CTL_CTL_H
#define CLIENT_CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cjson/cJSON.h>
#include <msgpack.h>

#include "proto/call.h"
#include "proto/msg.h"

/* Exit statuses. `exec` ends with its command's: 126, 127: it could not be run; 128 + signal. */
enum {
    CTL_OK = 0,
    CTL_FAULT = 1,       /* a check found a fault; a collection was refused */
    CTL_USAGE = 2,
    CTL_UNREACHABLE = 3, /* no daemon, or it refused, or it went away */
    CTL_OUTPUT = 4,      /* what was to be written could not be */
};

struct ctl;
struct command {
    const char *name;
    const char *args;    /* behind the options in its usage line: "-- COMMAND [ARGUMENT...]"; "": none */
    const char *options; /* names in the table of options that it takes */
    const char *text;    /* one line for --help */
    int (*run)(struct ctl *ctl);
    bool takes_rest;     /* arguments are allowed: ctl->rest */
};

struct ctl {
    const char *socket, *svg, *output, *pprof, *core;
    bool json, ascii, folded, dry_run;
    uint64_t count, interval_ms, max_bytes, min; /* UINT64_MAX: not given */
    const struct command *command;
    char **rest;
    int rest_count;
    struct call call; /* fd -1: not connected */
    bool greeted;
    bool closed; /* the last call failed because the daemon had closed the connection */
    int (*wait)(struct ctl *ctl); /* called before each reply is waited for; not 0: give up, saying nothing */
    bool hold_errors;             /* the line that says what failed is kept in `error` and not printed */
    char error[1024];
};

/* ---- rows.c ---------------------------------------------------------------------------------- */

/* Connects as a monitor: 0, or CTL_UNREACHABLE after one line. */
int ctl_connect(struct ctl *ctl);
const char *ctl_socket(const struct ctl *ctl, char *buf, size_t capacity); /* the path that it connects to */

/* Says on one line what failed, where, and what to do: CTL_UNREACHABLE. */
int ctl_fail(struct ctl *ctl, const char *format, ...) __attribute__((format(printf, 2, 3)));
void ctl_disconnect(struct ctl *ctl);

/* Waits for the reply, in ctl->call.in: 0, or CTL_UNREACHABLE after one line that says what was refused. */
int ctl_call(struct ctl *ctl, struct msg request);

/* Collects (GC_DRY_RUN: or says what that would free) and calls fn for each row (a msgpack map) of the replies: 0, or as
 * ctl_call(). */
typedef void row_fn(void *context, const msgpack_object *row);
int ctl_each_gc(struct ctl *ctl, unsigned flags, row_fn *fn, void *context);

/* Rows of INFO `what`: one by one, as an array of JSON objects that is the caller's (NULL after one line), or the only
 * one. */
int ctl_each_info(struct ctl *ctl, unsigned what, row_fn *fn, void *context);
cJSON *ctl_rows(struct ctl *ctl, unsigned what);
cJSON *ctl_row(struct ctl *ctl, unsigned what);

/* A row as it came (proto/rows.h). */
cJSON *map_json(const msgpack_object *row);

/* Of a JSON row. Numbers are kept as text where a double would lose bits. */
uint64_t row_number(const cJSON *row, const char *name);
const char *row_text(const cJSON *row, const char *name);
void row_put(cJSON *row, const char *name, uint64_t value);

void print_json(cJSON *value); /* and deletes it */

/* ---- text.c: each result is in one of several buffers that are used in turn ------------------ */

const char *human(uint64_t bytes);                /* "12.3M" */
const char *percent(uint64_t part, uint64_t all); /* "12 %" */
const char *when(uint64_t real_ns);               /* local date and time */
const char *ago(uint64_t ns);                     /* "3m 12s" */
const char *user_name(uint64_t uid);              /* its name, or its number */

/* `text` as UTF-8 that is safe on a terminal and in JSON: control characters and broken sequences become '?' (or \xHH
 * with `hex`). */
const char *clean(const char *text, bool hex);
/* Columns that it takes on a terminal. */
int columns(const char *text);

uint64_t now_real_ns(void);
int terminal_width(void); /* of standard output; 0: it is no terminal */

/* ---- output.c ---------------------------------------------------------------------------------------------------------- */

struct output {
    FILE *file;       /* to write to */
    const char *path;
    char *unfinished; /* what becomes `path` in the end; NULL: it is written directly */
};

/* Opens what the user names; "-": the standard output. 0, or CTL_OUTPUT after one line; so the end. */
int output_open(struct output *o, const char *path);
int output_close(struct output *o);

/* ---- process.c: what the system says of a process; start_time as the daemon noted it --------- */

const char *process_state(uint64_t pid, uint64_t start_time); /* a word; "unseen": not here, or another one */
const char *process_command(uint64_t pid, uint64_t start_time, const char *otherwise); /* its command line, clean */

/* ---- clients.c ------------------------------------------------------------------------------- */

/* INFO_CLIENTS with bytes_held, user, process and command_line, the largest first; NULL after one line. */
cJSON *clients_sorted(struct ctl *ctl);
const char *client_state(const cJSON *row);

/* ---- why.c ----------------------------------------------------------------------------------- */

/* The one line that says why the heap is full, or that it is not; `stat` is the row of INFO_STATS. NULL after one line. */
const char *why_verdict(struct ctl *ctl, const cJSON *stat);

/* ---- the commands ---------------------------------------------------------------------------- */

int cmd_stat(struct ctl *ctl);
int cmd_clients(struct ctl *ctl);
int cmd_classes(struct ctl *ctl);
int cmd_spans(struct ctl *ctl);
int cmd_roots(struct ctl *ctl);
int cmd_check(struct ctl *ctl);
int cmd_trim(struct ctl *ctl);
int cmd_limits(struct ctl *ctl);
int cmd_map(struct ctl *ctl);
int cmd_exec(struct ctl *ctl);
int cmd_metrics(struct ctl *ctl);
int cmd_why(struct ctl *ctl);
int cmd_escape(struct ctl *ctl);
int cmd_top(struct ctl *ctl);
int cmd_gc(struct ctl *ctl);
int cmd_stop(struct ctl *ctl);
int cmd_reload(struct ctl *ctl);
int cmd_inspect(struct ctl *ctl);

#endif
