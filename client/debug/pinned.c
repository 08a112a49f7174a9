/* ARENA_DEBUG=pins: a process that has declared ARENA_PINS uses what a collection may free meanwhile. */
#include <stdio.h>
#include <string.h>

#include "client/debug/pinned.h"
#include "client/debug/site.h"
#include "client/extra/pins.h"
#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/reason.h"
#include "client/own/object.h"

void pinned_look(struct arena *a, const void *p, const struct object *o, const char *call)
{
    struct look l;
    enum standing standing = word_standing(a, o->word, &l);
    look_end(&l);
    if (standing == STANDS_OTHERWISE || !pins_are_declared(a) || pins_is_pinned(a, o->offset) ||
        (standing == STANDS_MINE && strcmp(call, "arena_publish") != 0))
        return;
    char text[600], at[300] = "an unknown place";
    struct trace trace;
    trace_take(&trace);
    if (trace.count)
        site_print_pc(trace.pc[0], at, sizeof at);
    snprintf(text, sizeof text, "pins: %s(%p) at %s: %s that this process has not pinned: unless a lock keeps it where it was found, a "
             "collection may free it", call, p, at,
             standing == STANDS_MINE ? "publishes an object" : "uses a published object");
    if (!report_handled(a, p, ENOLCK, text)) {
        cancel_off();
        fprintf(stderr, "%s\n", text);
        cancel_on();
    }
}
