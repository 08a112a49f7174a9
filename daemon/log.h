/* One line an event, key=value: to the journal, where standard error is connected to it, with each
 * pair as a field of its own (event=death pid=7 -> ARENA_EVENT=death, ARENA_PID=7: `journalctl
 * ARENA_EVENT=death`); else to standard error. */
#ifndef DAEMON_LOG_H
#define DAEMON_LOG_H

#include <stddef.h>

enum log_level {
    LOG_LEVEL_ERROR = 3,
    LOG_LEVEL_WARNING = 4,
    LOG_LEVEL_INFO = 6,
    LOG_LEVEL_DEBUG = 7
};

int log_level_parse(const char *text); /* -EINVAL */
void log_set_level(int level);
void log_detach(void); /* in the background: the standard streams lead nowhere from here on */

/* What may hold anything, to stand between double quotes: a backslash before each quote and backslash. out, which is cut
 * off where `capacity` ends. */
const char *log_quote(char *out, size_t capacity, const char *text);

/* event is one word; format gives key=value pairs, values with spaces in double quotes */
void log_event(int level, const char *event, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

#endif
