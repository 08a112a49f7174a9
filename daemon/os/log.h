/* One line an event, key=value. Where to:
 *
 *   in the foreground   the journal, where standard error is connected to it, with each pair as a field of its own
 *                       (event=death pid=7 -> ARENA_EVENT=death, ARENA_PID=7: `journalctl ARENA_EVENT=death`); else
 *                       standard error
 *   in the background   the log file that was named; else the journal, if there is one; else syslog, if there is one
 *
 * A line never blocks: one that its reader does not take is lost and counted, and the count is the next line that is taken.
 * Lines of one user are limited by rate, those that refuse it more: what was left out is counted too. A byte that could harm
 * a terminal is written as \xHH, whatever it came from. Loop thread, and the keeper's process. */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

#include <stddef.h>
#include <stdint.h>

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

int log_level_parse(const char *text); /* -EINVAL */
void log_set_level(int level);

/* Lines go to this file from here on (NULL, "": none is named): 0, or a negative errno. Opened again by log_reopen(), after
 * it was renamed. A link is not followed. */
int log_set_file(const char *path);
void log_reopen(void);

/* Milliseconds by which the rates go, in place of the monotonic clock's: for tests, whose pace is the machine's. */
void log_set_clock(uint64_t (*clock_ms)(void));

void log_detach(void); /* in the background: the standard streams lead nowhere from here on */

/* Now and then: says what was lost or left out, if there is something. */
void log_tick(void);

/* What may hold anything, to stand between double quotes: a backslash before each quote and backslash, \xHH for what may not
 * be shown. out, which is cut off where `capacity` ends. */
const char *log_quote(char *out, size_t capacity, const char *text);

/* event is one word; format gives key=value pairs, values with spaces in double quotes. A pair uid=N says whose line it is. */
void log_event(int level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
