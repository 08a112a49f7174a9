/* What the program is told of a call: why it was refused, by arena_reason(), and of a bad free or the like the error handler.
 * Memory: the reason is the thread's. sync: none but the handler's [EH1]. */
#ifndef CLIENT_REASON_H
#define CLIENT_REASON_H

#include <stdbool.h>

struct arena;

void reason_set(const char *text); /* what arena_reason() says to this thread */
/* What arena_reason() says is the library's own refusal: returns `error`. */
int refused(int error, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* To the error handler, or without one to standard error, and the program ends. */
void report_error(struct arena *a, const void *p, int error, const char *text);
bool report_handled(struct arena *a, const void *p, int error, const char *text); /* false: there is no handler */
/* A call goes on with the heap after what it reports: the handler may not close it. Returns the heap of which that was so. */
const struct arena *report_goes_on(const struct arena *a);
bool report_may_close(const struct arena *a); /* false: in such a handler */

#endif
