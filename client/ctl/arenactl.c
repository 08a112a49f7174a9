/* arenactl: asks a daemon what it knows, and shows it as a table, as JSON, or as a picture. */
#include <ctype.h>
#include <errno.h>
#include <getopt.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"

static const struct command commands[] = {
    {"stat", "", "json", "the heap's figures, and why it is full", cmd_stat, false},
    {"clients", "", "json", "who holds memory", cmd_clients, false},
    {"classes", "", "json", "size classes: spans, objects, waste", cmd_classes, false},
    {"spans", "", "json", "every span", cmd_spans, false},
    {"roots", "", "json", "the named roots", cmd_roots, false},
    {"check", "", "json", "verify every invariant; 1 if one is broken; and what is suspicious", cmd_check, false},
    {"trim", "", "json", "return what can be returned", cmd_trim, false},
    {"gc", "", "json dry-run", "free what no root leads to; 1 if a client is in the way", cmd_gc, false},
    {"map", "", "json ascii svg", "the heap as a picture", cmd_map, false},
    {"limits", "", "json", "quotas in force", cmd_limits, false},
    {"why", "", "json", "why it is full, and what would help", cmd_why, false},
    {"top", "", "json count interval", "clients and classes, again and again; q quits", cmd_top,
     false},
    {"metrics", "", "output", "figures as OpenMetrics text", cmd_metrics, false},
    {"escape", "FILE...", "json folded pprof", "by call site: what need not be on the shared heap",
     cmd_escape, true},
    {"stop", "", "", "stop the daemon, and wait for its end; its heap goes if it is in memory", cmd_stop, false},
    {"reload", "", "", "have the daemon read its configuration again; 1 if it is refused", cmd_reload, false},
    {"inspect", "[DIRECTORY|PID] [check|spans|roots|clients|word ADDRESS]", "json core",
     "look at a heap that nobody serves; 1 if an invariant is broken", cmd_inspect, true},
    {"exec", "[--] COMMAND [ARGUMENT...]", "max",
     "run a command against a private heap that ends with it", cmd_exec, true},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

enum kind { FLAG, TEXT, COUNT, SECONDS, SIZE, HELP, VERSION };

/* `at`: in struct ctl. `value`: what stands for it in a usage line. */
static const struct {
    const char *name, *value, *text;
    enum kind kind;
    size_t at;
} options[] = {
    {"socket", "PATH", "the daemon's socket", TEXT, offsetof(struct ctl, socket)},
    {"help", NULL, "this text; behind a command: that command's", HELP, 0},
    {"version", NULL, "the version", VERSION, 0},
    {"json", NULL, "as JSON", FLAG, offsetof(struct ctl, json)},
    {"ascii", NULL, "no character beyond ASCII", FLAG, offsetof(struct ctl, ascii)},
    {"svg", "FILE", "as a picture to FILE; - is the standard output", TEXT,
     offsetof(struct ctl, svg)},
    {"folded", NULL, "as stacks with bytes, for flame graphs", FLAG, offsetof(struct ctl, folded)},
    {"pprof", "FILE", "as a profile for pprof to FILE; - is the standard output", TEXT,
     offsetof(struct ctl, pprof)},
    {"output", "FILE", "to FILE, put in place as a whole", TEXT, offsetof(struct ctl, output)},
    {"count", "N", "how often (on a terminal: without end; else once)", COUNT,
     offsetof(struct ctl, count)},
    {"interval", "SECONDS", "between two looks (2)", SECONDS, offsetof(struct ctl, interval_ms)},
    {"max", "SIZE", "what the heap may grow to", SIZE, offsetof(struct ctl, max_bytes)},
    {"core", "FILE", "the heap is in this core file", TEXT, offsetof(struct ctl, core)},
    {"dry-run", NULL, "change nothing, say what would be", FLAG, offsetof(struct ctl, dry_run)},
};
enum { OPTION_COUNT = sizeof options / sizeof options[0], GLOBAL_OPTIONS = 3 };

static bool takes(const struct command *command, const char *name)
{
    size_t length = strlen(name);
    for (const char *at = command->options; (at = strstr(at, name)) != NULL; at += length)
        if ((at == command->options || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    return false;
}

/* By any command. */
static bool is_taken(const char *name)
{
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (takes(&commands[i], name))
            return true;
    return false;
}

static void usage_line(FILE *out, const struct command *command)
{
    fprintf(out, "usage: arenactl [--socket PATH] %s", command->name);
    for (int i = GLOBAL_OPTIONS; i < OPTION_COUNT; i++)
        if (takes(command, options[i].name))
            fprintf(out, " [--%s%s%s]", options[i].name, options[i].value ? " " : "",
                    options[i].value ? options[i].value : "");
    fprintf(out, "%s%s\n", command->args[0] ? " " : "", command->args);
}

static void usage_options(FILE *out, const struct command *command)
{
    for (int i = 0; i < OPTION_COUNT; i++) {
        char name[40];
        if (i >= GLOBAL_OPTIONS &&
            !(command ? takes(command, options[i].name) : is_taken(options[i].name)))
            continue;
        snprintf(name, sizeof name, "--%s%s%s", options[i].name, options[i].value ? " " : "",
                 options[i].value ? options[i].value : "");
        fprintf(out, "  %-20s %s\n", name, options[i].text);
    }
}

static void usage(FILE *out, const struct command *command)
{
    if (command) {
        usage_line(out, command);
        fprintf(out, "%s\n", command->text);
    } else {
        fprintf(out, "usage: arenactl [--socket PATH] COMMAND [OPTION...]\ncommands:\n");
        for (int i = 0; i < COMMAND_COUNT; i++)
            fprintf(out, "  %-20s %s\n", commands[i].name, commands[i].text);
    }
    fprintf(out, "options%s:\n", command ? "" : " (each command has --help)");
    usage_options(out, command);
    if (command)
        return;
    fprintf(out, "The socket: PATH, else $ARENA_SOCKET, else $XDG_RUNTIME_DIR/arenad/default.sock "
                 "if it is there, else\n"
                 "/run/arenad/default.sock. Sizes are written 64K, 512M, 8G.\n"
                 "Exit status: 0 done, 1 a check found a fault, 2 wrong usage, 3 the daemon cannot be asked or the heap not\n"
                 "be read, 4 the output cannot be written. See arenactl(1).\n");
}

/* "1.5" -> 1500; UINT64_MAX: not that */
static uint64_t parse_seconds(const char *text)
{
    char *end;
    double value = strtod(text, &end);
    return !isdigit((unsigned char)*text) || *end || value < 0.1 || value > 86400
               ? UINT64_MAX
               : (uint64_t)(value * 1000 + 0.5);
}

static uint64_t parse_number(const char *text, bool size)
{
    static const char units[] = "KMGT";
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    const char *unit = size && *end ? strchr(units, toupper((unsigned char)*end)) : NULL;
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (unit)
        end++;
    if (!isdigit((unsigned char)*text) || errno || *end || (shift && value >> (63 - shift)))
        return UINT64_MAX;
    return (uint64_t)value << shift;
}

static int wrong(const char *what, const char *why, const struct command *command)
{
    fprintf(stderr, "arenactl: %s %s; see arenactl %s%s--help\n", clean(what, false), why,
            command ? command->name : "", command ? " " : "");
    return CTL_USAGE;
}

static int take_option(struct ctl *ctl, int i)
{
    static const char *const wants[] = {[COUNT] = "a number from 1",
                                        [SECONDS] = "seconds from 0.1 to 86400",
                                        [SIZE] = "a size such as 512M or 8G"};
    char *at = (char *)ctl + options[i].at;
    char what[128], why[128];
    uint64_t value = 0;
    switch (options[i].kind) {
    case FLAG:
        *(bool *)at = true;
        return 0;
    case TEXT:
        if (!*optarg) {
            snprintf(what, sizeof what, "--%s", options[i].name);
            return wrong(what, "needs a value that is not empty", ctl->command);
        }
        *(const char **)(void *)at = optarg;
        return 0;
    case SECONDS:
        value = parse_seconds(optarg);
        break;
    case COUNT:
        value = parse_number(optarg, false);
        break;
    case SIZE:
        value = parse_number(optarg, true);
        break;
    default:
        return 0;
    }
    if (value == UINT64_MAX || value == 0) {
        snprintf(what, sizeof what, "--%s %.80s", options[i].name, optarg);
        snprintf(why, sizeof why, "is not %s", wants[options[i].kind]);
        return wrong(what, why, ctl->command);
    }
    *(uint64_t *)(void *)at = value;
    return 0;
}

static int take_command(struct ctl *ctl, const char *name)
{
    for (int i = 0; i < COMMAND_COUNT; i++)
        if (strcmp(name, commands[i].name) == 0)
            ctl->command = &commands[i];
    return ctl->command ? 0 : wrong(name, "is not a command", NULL);
}

/* What belongs to the whole line: -1 when there is nothing to run any more, or CTL_USAGE. */
static int check_line(struct ctl *ctl, const bool *given)
{
    const struct command *command = ctl->command;
    char what[64], why[64];
    for (int i = 0; i < GLOBAL_OPTIONS; i++) {
        if (given[i] && options[i].kind == HELP)
            usage(stdout, command);
        else if (given[i] && options[i].kind == VERSION)
            printf("arenactl %s\n", PRODUCT_VERSION);
        else
            continue;
        return -1;
    }
    if (!command) {
        fprintf(stderr, "arenactl: a command is wanted; see arenactl --help\n");
        return CTL_USAGE;
    }
    for (int i = GLOBAL_OPTIONS; i < OPTION_COUNT; i++)
        if (given[i] && !takes(command, options[i].name)) {
            snprintf(what, sizeof what, "--%s", options[i].name);
            snprintf(why, sizeof why, "is not an option of %s", command->name);
            return wrong(what, why, command);
        }
    if (ctl->rest_count && !command->takes_rest) {
        snprintf(why, sizeof why, "is too much: %s takes no argument", command->name);
        return wrong(ctl->rest[0], why, command);
    }
    return 0;
}

/* 0, -1: it was help, or CTL_USAGE. Options may stand before and behind the command. */
static int parse(struct ctl *ctl, int argc, char **argv)
{
    struct option table[OPTION_COUNT + 1] = {{NULL, 0, NULL, 0}};
    bool given[OPTION_COUNT] = {false};
    int option;
    for (int i = 0; i < OPTION_COUNT; i++)
        table[i] = (struct option){options[i].name,
                                   options[i].value ? required_argument : no_argument, NULL, i};
    opterr = 0;
    for (;;) {
        option = getopt_long(argc, argv, "+:", table, NULL);
        if (option == -1) {
            if (ctl->command || optind >= argc)
                break;
            if (take_command(ctl, argv[optind++]) != 0)
                return CTL_USAGE;
            continue;
        }
        if (option == ':' || option == '?')
            return wrong(argv[optind - 1], option == ':' ? "needs a value" : "is not an option",
                         ctl->command);
        given[option] = true;
        if (take_option(ctl, option) != 0)
            return CTL_USAGE;
    }
    ctl->rest = argv + optind;
    ctl->rest_count = argc - optind;
    return check_line(ctl, given);
}

int main(int argc, char **argv)
{
    struct ctl ctl = {.call.fd = -1,
                      .count = UINT64_MAX,
                      .interval_ms = UINT64_MAX,
                      .max_bytes = UINT64_MAX,
                      .min = UINT64_MAX};
    setlocale(LC_CTYPE, "");
    int rc = parse(&ctl, argc, argv);
    if (rc == 0)
        rc = ctl.command->run(&ctl);
    ctl_disconnect(&ctl);
    errno = 0;
    if (fflush(stdout) != 0 || ferror(stdout)) {
        if (errno != EPIPE)
            fprintf(stderr, "arenactl: cannot write the output: %s\n",
                    errno ? strerror(errno) : "an earlier write failed");
        rc = rc > 0 ? rc : CTL_OUTPUT;
    }
    return rc < 0 ? CTL_OK : rc;
}
