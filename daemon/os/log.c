#include "daemon/os/log.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "proto/text.h"

#define JOURNAL "/run/systemd/journal/socket"
#define SYSLOG  "/dev/log"

enum { LINE_MAX_BYTES = 3000 }; /* less than what a pipe takes as a whole */

static int log_level = LOG_LEVEL_INFO;
static bool detached;
static int file_fd = -1, socket_fd = -1; /* of the log file; of datagrams to journal and syslog */
static char file_path[512];
static uint64_t lost;

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

/* ---- where to ------------------------------------------------------------------------------------------------------------------ */

int log_set_file(const char *path)
{
    int fd = -1;
    if (path && *path) {
        fd = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0640);
        if (fd < 0)
            return -errno;
    }
    if (file_fd >= 0)
        close(file_fd);
    file_fd = fd;
    snprintf(file_path, sizeof file_path, "%s", path ? path : "");
    return 0;
}

void log_reopen(void)
{
    char path[sizeof file_path];
    if (!*file_path)
        return;
    memcpy(path, file_path, sizeof path);
    int rc = log_set_file(path); /* what cannot be opened again: the old one goes on */
    if (rc < 0)
        log_event(LOG_LEVEL_ERROR, "log", "error=\"cannot open the log file again: %s\"", strerror(-rc));
}

void log_detach(void)
{
    int null = open("/dev/null", O_RDWR | O_CLOEXEC);
    for (int fd = 0; null >= 0 && fd <= 2; fd++)
        dup2(null, fd);
    if (null > 2)
        close(null);
    detached = true;
}

/* JOURNAL_STREAM names the journal's end of standard error by device and inode: it may have been
 * redirected since. */
static bool stderr_is_journal(void)
{
    const char *stream = secure_getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat st;
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 && fstat(2, &st) == 0 &&
           st.st_dev == device && st.st_ino == inode;
}

/* To a datagram socket that somebody listens on: 0, or a negative errno; -EAGAIN: it does not read. */
static int send_datagram(const char *to, struct iovec *parts, int count)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct msghdr msg = {.msg_name = &address, .msg_namelen = sizeof address, .msg_iov = parts, .msg_iovlen = (size_t)count};
    strcpy(address.sun_path, to);
    if (socket_fd < 0)
        socket_fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (socket_fd < 0)
        return -errno;
    return sendmsg(socket_fd, &msg, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Never waits: 0, or a negative errno; -EAGAIN: nobody reads. A pipe takes a line as a whole or not at all. */
static int write_now(int fd, const char *line, size_t bytes)
{
    struct iovec iov = {(char *)(uintptr_t)line, bytes};
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    struct stat st;
    if (fstat(fd, &st) < 0)
        return -errno;
    if (S_ISFIFO(st.st_mode)) {
        ssize_t n = pwritev2(fd, &iov, 1, -1, RWF_NOWAIT);
        if (n >= 0 || (errno != EOPNOTSUPP && errno != EINVAL && errno != ENOSYS))
            return n < 0 ? -errno : 0;
    }
    if (S_ISSOCK(st.st_mode))
        return send(fd, line, bytes, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
    if (!S_ISREG(st.st_mode) && (poll(&writable, 1, 0) != 1 || !(writable.revents & POLLOUT)))
        return -EAGAIN;
    return write(fd, line, bytes) < 0 ? -errno : 0;
}

/* ---- text -------------------------------------------------------------------------------------------------------------------- */

const char *log_quote(char *out, size_t capacity, const char *text)
{
    size_t n = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        bool marked = *at == '"' || *at == '\\';
        int length = text_shown(at);
        size_t room = length ? (size_t)length + marked : 4;
        if (n + room >= capacity)
            break;
        if (marked)
            out[n++] = '\\';
        if (length)
            memcpy(out + n, at, (size_t)length);
        else
            snprintf(out + n, 5, "\\x%02x", *at);
        n += length ? (size_t)length : 4;
        at += length ? length : 1;
    }
    out[n] = 0;
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
        value += quoted && *value == '\\' && value + 1 < end && value[1] != 'x';
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

/* The journal's own protocol: a field a line. What its library does may wait. */
static int send_to_journal(int level, const char *line)
{
    enum { FIELDS = 32 };
    struct iovec fields[FIELDS], parts[2 * FIELDS];
    char message[LINE_MAX_BYTES + 16], priority[16], space[LINE_MAX_BYTES + 600];
    int n = snprintf(message, sizeof message, "MESSAGE=%s", line);
    fields[0] = (struct iovec){message, (size_t)n};
    fields[1] = (struct iovec){priority, (size_t)snprintf(priority, sizeof priority, "PRIORITY=%d", level)};
    fields[2] = (struct iovec){(char *)(uintptr_t) "SYSLOG_IDENTIFIER=arenad", 24};
    int count = 3 + split_fields(line, fields + 3, FIELDS - 3, space, sizeof space);
    for (int i = 0; i < count; i++) {
        parts[2 * i] = fields[i];
        parts[2 * i + 1] = (struct iovec){(char *)(uintptr_t) "\n", 1};
    }
    return send_datagram(JOURNAL, parts, 2 * count);
}

static int send_to_syslog(int level, const char *line)
{
    enum { FACILITY_DAEMON = 3 << 3 };
    char head[64];
    int n = snprintf(head, sizeof head, "<%d>arenad[%d]: ", FACILITY_DAEMON | level, (int)getpid());
    struct iovec parts[2] = {{head, (size_t)n}, {(char *)(uintptr_t)line, strlen(line)}};
    return send_datagram(SYSLOG, parts, 2);
}

static int write_line(int fd, const char *line, bool dated)
{
    char text[LINE_MAX_BYTES + 80], date[40] = "";
    time_t now = time(NULL);
    struct tm tm;
    if (dated && localtime_r(&now, &tm))
        strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S%z ", &tm);
    int n = snprintf(text, sizeof text, "%sarenad: %s\n", date, line);
    return write_now(fd, text, (size_t)n);
}

/* Takes the line, or says why not; -EAGAIN: its reader does not read. */
static int put(int level, const char *line)
{
    if (file_fd >= 0)
        return write_line(file_fd, line, true);
    if (detached || stderr_is_journal()) {
        int rc = send_to_journal(level, line);
        if (rc == 0 || rc == -EAGAIN || rc == -ENOBUFS)
            return rc == 0 ? 0 : -EAGAIN;
    }
    if (!detached)
        return write_line(2, line, false);
    int rc = send_to_syslog(level, line);
    return rc == -ENOENT ? 0 : rc; /* there is nothing to log to: nothing is lost that somebody wanted */
}

static void put_counted(int level, const char *line)
{
    char count[120];
    if (lost) {
        snprintf(count, sizeof count, "event=log lost=%llu why=\"nobody read: %llu lines lost\"", (unsigned long long)lost,
                 (unsigned long long)lost);
        if (put(LOG_LEVEL_WARNING, count) == 0)
            lost = 0;
    }
    if (line && (lost || put(level, line) < 0))
        lost++;
}

/* ---- rates --------------------------------------------------------------------------------------------------------------------- */

enum { USERS = 64, STRICT_BURST = 10, STRICT_MS = 1000, BURST = 1000, REST_MS = 20 };

/* Of one user: lines that it may have now, of those that refuse it and of all others, and how many were left out. */
static struct rate {
    uint32_t uid;
    bool used;
    uint64_t at_ms[2];  /* when a bucket was last filled */
    uint32_t left[2];
    uint64_t left_out;
} rates[USERS];

static uint64_t monotonic_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

static uint64_t (*now_ms)(void) = monotonic_ms;

void log_set_clock(uint64_t (*clock_ms)(void))
{
    now_ms = clock_ms;
}

/* Whoever was heard least lately makes room. */
static struct rate *rate_of(uint32_t uid, uint64_t now)
{
    struct rate *oldest = &rates[0];
    for (int i = 0; i < USERS; i++) {
        if (rates[i].used && rates[i].uid == uid)
            return &rates[i];
        if (!rates[i].used || (oldest->used && rates[i].at_ms[1] < oldest->at_ms[1]))
            oldest = &rates[i];
    }
    *oldest = (struct rate){.uid = uid, .used = true, .at_ms = {now, now}, .left = {STRICT_BURST, BURST}};
    return oldest;
}

static bool take_token(struct rate *r, int which, uint64_t now)
{
    const uint64_t every = which == 0 ? STRICT_MS : REST_MS;
    const uint32_t most = which == 0 ? STRICT_BURST : BURST;
    uint64_t more = (now - r->at_ms[which]) / every;
    r->at_ms[which] += more * every;
    r->left[which] = more > most - r->left[which] ? most : r->left[which] + (uint32_t)more;
    if (!r->left[which])
        return false;
    r->left[which]--;
    return true;
}

/* The line's user may have it. *ret_left_out: how many it could not have before. */
static bool is_allowed(const char *event, const char *text, uint64_t *ret_left_out)
{
    const char *at = text;
    unsigned uid;
    *ret_left_out = 0;
    while ((at = strstr(at, "uid=")) && at > text && at[-1] != ' ')
        at += 4;
    if (!at || sscanf(at, "uid=%u", &uid) != 1)
        return true;
    uint64_t now = now_ms();
    struct rate *r = rate_of(uid, now);
    if (!take_token(r, strcmp(event, "refuse") == 0 || strcmp(event, "cut") == 0 ? 0 : 1, now)) {
        r->left_out++;
        return false;
    }
    *ret_left_out = r->left_out;
    r->left_out = 0;
    return true;
}

static void tell_left_out(uint32_t uid, uint64_t count)
{
    char line[120];
    snprintf(line, sizeof line, "event=log uid=%u left_out=%llu why=\"%llu lines of this user were too many\"", uid,
             (unsigned long long)count, (unsigned long long)count);
    put_counted(LOG_LEVEL_WARNING, line);
}

void log_tick(void)
{
    uint64_t now = now_ms();
    if (lost)
        put_counted(LOG_LEVEL_WARNING, NULL);
    for (int i = 0; i < USERS; i++)
        if (rates[i].used && rates[i].left_out && take_token(&rates[i], 0, now)) {
            tell_left_out(rates[i].uid, rates[i].left_out);
            rates[i].left_out = 0;
        }
}

void log_event(int level, const char *event, const char *format, ...)
{
    char text[1024], whole[1100], line[LINE_MAX_BYTES];
    uint64_t left_out;
    va_list args;
    if (level > log_level)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (!is_allowed(event, text, &left_out))
        return;
    snprintf(whole, sizeof whole, "event=%s%s%s", event, *text ? " " : "", text);
    text_escape(line, sizeof line, whole); /* one line, whatever a name holds */
    if (left_out) {
        size_t n = strlen(line);
        snprintf(line + n, sizeof line - n, " left_out=%llu", (unsigned long long)left_out);
    }
    put_counted(level, line);
}
