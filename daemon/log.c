#include "daemon/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int log_level = LOG_LEVEL_INFO;

int log_level_parse(const char *text)
{
    static const struct { const char *name; int level; } names[] = {
        {"error", LOG_LEVEL_ERROR}, {"warning", LOG_LEVEL_WARNING}, {"info", LOG_LEVEL_INFO}, {"debug", LOG_LEVEL_DEBUG}};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i].name) == 0)
            return names[i].level;
    return -EINVAL;
}

void log_set_level(int level) { log_level = level; }

void log_event(int level, const char *event, const char *format, ...)
{
    char text[1024];
    va_list args;
    if (level > log_level)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p; p++) /* one line, whatever a name holds */
        if ((unsigned char)*p < 0x20)
            *p = '?';
    if (getenv("JOURNAL_STREAM"))
        fprintf(stderr, "<%d>event=%s %s\n", level, event, text);
    else
        fprintf(stderr, "arenad: event=%s %s\n", event, text);
}
