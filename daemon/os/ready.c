#include "daemon/os/ready.h"

#include <string.h>

void ready_init(struct ready_line *line)
{
    memset(line, 0, sizeof *line);
    line->round = 2;
}

static void append(struct ready_list *list, struct ready *r)
{
    r->list = list;
    r->next = NULL;
    r->prev = list->last;
    *(list->last ? &list->last->next : &list->first) = r;
    list->last = r;
}

void ready_remove(struct ready *r)
{
    struct ready_list *list = r->list;
    if (!list)
        return;
    *(r->prev ? &r->prev->next : &list->first) = r->next;
    *(r->next ? &r->next->prev : &list->last) = r->prev;
    r->list = NULL;
}

void ready_add(struct ready_line *line, struct ready *r)
{
    if (r->list)
        return;
    append(r->served == line->round ? &line->after : r->served + 1 == line->round ? &line->line : &line->front, r);
}

struct ready *ready_take(struct ready_line *line)
{
    if (!line->front.first && !line->line.first) {
        struct ready *r;
        line->round++;
        while ((r = line->after.first) != NULL) {
            ready_remove(r);
            append(&line->line, r);
        }
    }
    struct ready *r = line->front.first ? line->front.first : line->line.first;
    if (r) {
        ready_remove(r);
        r->served = line->round;
    }
    return r;
}
