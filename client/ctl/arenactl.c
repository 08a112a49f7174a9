/* arenactl: asks a daemon what it knows, and shows it as a table, as JSON, or as a picture. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/ctl/ctl.h"

static const struct command commands[] = {
    {"stat", "the heap's figures", cmd_stat, false},
    {"clients", "who holds memory", cmd_clients, false},
    {"classes", "size classes: spans, objects, waste", cmd_classes, false},
    {"spans", "every span", cmd_spans, false},
    {"roots", "the named roots", cmd_roots, false},
    {"check", "verify every invariant; 1 if one is broken", cmd_check, false},
    {"trim", "return what can be returned", cmd_trim, false},
    {"limits", "quotas in force", cmd_limits, false},
};
enum { COMMAND_COUNT = sizeof commands / sizeof commands[0] };

static void usage(FILE *out)
{
    fprintf(out, "usage: arenactl [--socket PATH] COMMAND [--json] ...\n");
    for (int i = 0; i < COMMAND_COUNT; i++)
        fprintf(out, "  %-8s %s\n", commands[i].name, commands[i].text);
    fprintf(out, "Looks at: PATH, $ARENA_SOCKET, $XDG_RUNTIME_DIR/arenad/default.sock, /run/arenad/default.sock.\n"
                 "Exit status: 0, 1 a check failed, 2 wrong usage, 3 the daemon cannot be asked. See arenactl(1).\n");
}

static int parse(struct ctl *ctl, int argc, char **argv)
{
    static const struct option options[] = {{"socket", required_argument, NULL, 's'}, {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},         {"version", no_argument, NULL, 'V'},
                                            {"svg", required_argument, NULL, 'S'},    {"dry-run", no_argument, NULL, 'n'},
                                            {NULL, 0, NULL, 0}};
    int option;
    opterr = 0;
    while ((option = getopt_long(argc, argv, "+:", options, NULL)) != -1 || (optind < argc && !ctl->command)) {
        if (option == -1) { /* the command; options may stand before and behind it */
            for (int i = 0; i < COMMAND_COUNT; i++)
                if (strcmp(argv[optind], commands[i].name) == 0)
                    ctl->command = &commands[i];
            if (!ctl->command) {
                fprintf(stderr, "arenactl: %s is not a command; see arenactl --help\n", argv[optind]);
                return CTL_USAGE;
            }
            optind++;
            if (ctl->command->takes_rest)
                break;
            continue;
        }
        switch (option) {
        case 's': ctl->socket = optarg; break;
        case 'j': ctl->json = true; break;
        case 'S': ctl->svg = optarg; break;
        case 'n': ctl->dry_run = true; break;
        case 'h': usage(stdout); exit(0);
        case 'V': printf("arenactl %s\n", ARENA_VERSION); exit(0);
        default:
            fprintf(stderr, "arenactl: %s %s; see arenactl --help\n", argv[optind - 1],
                    option == ':' ? "needs a value" : "is not an option");
            return CTL_USAGE;
        }
    }
    ctl->rest = argv + optind;
    ctl->rest_count = argc - optind;
    if (!ctl->command) {
        usage(stderr);
        return CTL_USAGE;
    }
    if (ctl->rest_count && !ctl->command->takes_rest) {
        fprintf(stderr, "arenactl: %s: %s takes no argument\n", argv[optind], ctl->command->name);
        return CTL_USAGE;
    }
    return 0;
}

int main(int argc, char **argv)
{
    struct ctl ctl = {.fd = -1};
    int rc = parse(&ctl, argc, argv);
    if (rc == 0)
        rc = ctl.command->run(&ctl);
    ctl_disconnect(&ctl);
    if (fflush(stdout) != 0 || ferror(stdout)) {
        fprintf(stderr, "arenactl: cannot write: %s\n", strerror(errno));
        rc = rc ? rc : CTL_UNREACHABLE;
    }
    return rc;
}
