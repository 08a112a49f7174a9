#include "daemon/log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>
#define SD_JOURNAL_SUPPRESS_LOCATION
#include <systemd/sd-journal.h>

static int log_level = LOG_LEVEL_INFO;

int log_level_parse(const char *text)
{
    static const struct {
        const char *name;
        int level;
    } names[] = {{"error", LOG_LEVEL_ERROR},
                 {"warning", LOG_LEVEL_WARNING},
                 {"info", LOG_LEVEL_INFO},
                 {"debug", LOG_LEVEL_DEBUG}};
    for (int i = 0; i < 4; i++)
        if (strcmp(text, names[i].name) == 0)
            return names[i].level;
    return -EINVAL;
}

void log_set_level(int level)
{
    log_level = level;
}

void log_detach(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
}

/* JOURNAL_STREAM names the journal's end of standard error by device and inode: it may have been
 * redirected since. */
static int to_journal(void)
{
    const char *stream = secure_getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && fstat(2, &st) == 0 &&
           st.st_dev == device && st.st_ino == inode;
}

const char *log_quote(char *out, size_t capacity, const char *text)
{
    char *to = out, *end = out + capacity - 2; /* room for two, and the end */
    while (*text && to < end) {
        if (*text == '"' || *text == '\\')
            *to++ = '\\';
        *to++ = *text++;
    }
    *to = 0;
    return out;
}

/* Where a value ends: at its quote that has no backslash before it. */
static const char *value_end(const char *value, int quoted)
{
    if (!quoted)
        return value + strcspn(value, " ");
    while (*value && *value != '"')
        value += *value == '\\' && value[1] ? 2 : 1;
    return value;
}

static size_t copy_value(char *to, const char *value, const char *end, int quoted)
{
    char *from = to;
    for (; value < end; value++) {
        value += quoted && *value == '\\' && value + 1 < end;
        *to++ = *value;
    }
    return (size_t)(to - from);
}

/* key=value key="a b" -> ARENA_KEY=value, ARENA_KEY=a b: how many. The text is cut up, the fields
 * are in `space`. */
static int split_fields(const char *text, struct iovec *fields, int most, char *space, size_t room)
{
    int count = 0;
    const char *p = text;
    while (count < most) {
        p += strspn(p, " ");
        const char *equals = strchr(p, '=');
        size_t key_bytes = equals ? (size_t)(equals - p) : 0;
        if (!key_bytes || memchr(p, ' ', key_bytes))
            return count;
        const char *value = equals + 1;
        int quoted = *value == '"';
        value += quoted;
        const char *end = value_end(value, quoted);
        if (6 + key_bytes + 1 + (size_t)(end - value) > room)
            return count;
        memcpy(space, "ARENA_", 6);
        for (size_t i = 0; i < key_bytes; i++)
            space[6 + i] = isalnum((unsigned char)p[i]) ? (char)toupper((unsigned char)p[i]) : '_';
        space[6 + key_bytes] = '=';
        size_t bytes = 7 + key_bytes + copy_value(space + 7 + key_bytes, value, end, quoted);
        fields[count++] = (struct iovec){space, bytes};
        space += bytes, room -= bytes;
        p = end + (quoted && *end == '"');
    }
    return count;
}

static int send_to_journal(int level, const char *line)
{
    enum { FIELDS = 32 };
    struct iovec fields[FIELDS];
    char message[1200], priority[16], space[1600];
    int n = snprintf(message, sizeof message, "MESSAGE=%s", line);
    fields[0] =
        (struct iovec){message, (size_t)n < sizeof message ? (size_t)n : sizeof message - 1};
    fields[1] =
        (struct iovec){priority, (size_t)snprintf(priority, sizeof priority, "PRIORITY=%d", level)};
    fields[2] = (struct iovec){(char *)(uintptr_t) "SYSLOG_IDENTIFIER=arenad", 24};
    return sd_journal_sendv(fields,
                            3 + split_fields(line, fields + 3, FIELDS - 3, space, sizeof space));
}

void log_event(int level, const char *event, const char *format, ...)
{
    char text[1024], line[1100];
    va_list args;
    if (level > log_level)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    for (char *p = text; *p; p++) /* one line, whatever a name holds */
        if ((unsigned char)*p < 0x20)
            *p = '?';
    snprintf(line, sizeof line, "event=%s%s%s", event, *text ? " " : "", text);
    if (to_journal() && send_to_journal(level, line) == 0)
        return;
    fprintf(stderr, "arenad: %s\n", line);
}
