#include "client/heap.h"
#include "client/link/cancel.h"
#include "client/link/reason.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- what is refused, and why ---------------------------------------------------------------------------------------- */

/* Not all of MSG_TEXT_MAX: a library's thread-local memory is scarce where it is loaded late. */
static __thread char reason[240];

void reason_set(const char *text) { snprintf(reason, sizeof reason, "%.239s", text); }

PUBLIC const char *arena_reason(void) { return reason; }

int refused(int error, const char *format, ...)
{
    char text[240];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    reason_set(text);
    return error;
}

/* ---- bad frees ------------------------------------------------------------------------------------------------------- */

/* The heap that a call of this thread's goes on with after its handler. */
static __thread const struct arena *goes_on;

const struct arena *report_goes_on(const struct arena *a)
{
    const struct arena *before = goes_on;
    goes_on = a;
    return before;
}

bool report_may_close(const struct arena *a) { return goes_on != a; }

bool report_handled(struct arena *a, const void *p, int error, const char *text)
{
    arena_error_fn *fn = load_acquire(&a->on_error); /* [EH1] */
    const struct arena *before = goes_on;
    if (!fn)
        return false;
    if (error == EFAULT || error == ENOLCK) /* a pop, and whatever was not pinned */
        goes_on = a;
    fn(load_relaxed(&a->on_error_context), error, p, text);
    goes_on = before;
    return true;
}

void report_error(struct arena *a, const void *p, int error, const char *text)
{
    if (report_handled(a, p, error, text))
        return;
    cancel_off(); /* it is said before the end */
    fprintf(stderr, "%s\n", text);
    abort();
}

PUBLIC int arena_on_error(arena_t *a, arena_error_fn *fn, void *context)
{
    store_relaxed(&a->on_error_context, context);
    store_release(&a->on_error, fn); /* [EH1] the context first */
    return 0;
}
