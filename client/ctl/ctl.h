/* arenactl inside: a monitor's connection to the daemon (no tag, no memory), its rows as JSON values, and the commands. */
#ifndef CLIENT_CTL_CTL_H
#define CLIENT_CTL_CTL_H

#include <stdbool.h>
#include <stdint.h>

#include <cjson/cJSON.h>

#include "proto/msg.h"

/* exit statuses */
enum { CTL_OK = 0, CTL_FAULT = 1, CTL_USAGE = 2, CTL_UNREACHABLE = 3 };

struct ctl;
struct command {
    const char *name, *text;
    int (*run)(struct ctl *ctl);
    bool takes_rest;
};

struct ctl {
    const char *socket, *svg;
    bool json, dry_run;
    const struct command *command;
    char **rest;
    int rest_count;
    int fd; /* -1: not connected */
    uint32_t next_id;
};

/* Connects as a monitor: 0, or CTL_UNREACHABLE after one line. */
int ctl_connect(struct ctl *ctl);
void ctl_disconnect(struct ctl *ctl);

/* Sends m and waits for its reply: 0, or CTL_UNREACHABLE after one line that says what was refused. */
int ctl_call(struct ctl *ctl, struct msg *m, struct msg *ret, uint32_t expect);

/* All rows of INFO `what`: an array of objects, the caller's; NULL after one line. */
cJSON *ctl_rows(struct ctl *ctl, unsigned what);

/* Numbers are kept as text where a double would lose bits. */
uint64_t row_number(const cJSON *row, const char *name);
const char *row_text(const cJSON *row, const char *name);

void print_json(cJSON *value); /* and deletes it */
/* "12.3M" into one of eight buffers */
const char *human(uint64_t bytes);

int cmd_stat(struct ctl *ctl);
int cmd_clients(struct ctl *ctl);
int cmd_classes(struct ctl *ctl);
int cmd_spans(struct ctl *ctl);
int cmd_roots(struct ctl *ctl);
int cmd_check(struct ctl *ctl);
int cmd_trim(struct ctl *ctl);
int cmd_limits(struct ctl *ctl);

#endif
