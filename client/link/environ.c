#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "client/link/environ.h"

enum {
    SOCKET_PATH_MAX = sizeof((struct sockaddr_un *)0)->sun_path - 1,
    SHOWN_MAX = 48, /* bytes of a value in a complaint */
};

static const struct {
    const char *word;
    unsigned flag;
} debug_words[] = {{"stack", DEBUG_STACK}, {"escape", DEBUG_ESCAPE}, {"pins", DEBUG_PINS}, {"core", DEBUG_CORE}};
enum { DEBUG_WORDS = sizeof debug_words / sizeof *debug_words };

const char *environ_get(const char *name)
{
    const char *text = secure_getenv(name);
    return text && *text ? text : NULL;
}

/* Adds "NAME=VALUE: why", what fits of it. */
static void __attribute__((format(printf, 5, 6)))
complain(struct environment *e, const char *name, const char *value, size_t bytes, const char *format, ...)
{
    size_t at = strlen(e->complaint), room = sizeof e->complaint - at;
    char shown[SHOWN_MAX + 4];
    va_list arguments;
    size_t n = bytes < SHOWN_MAX ? bytes : SHOWN_MAX;
    for (size_t i = 0; i < n; i++)
        shown[i] = (unsigned char)value[i] < ' ' || (unsigned char)value[i] > '~' ? '?' : value[i];
    strcpy(shown + n, n < bytes ? "..." : "");
    int said = snprintf(e->complaint + at, room, "%s%s=%s: ", at ? "; " : "", name, shown);
    if (said < 0 || (size_t)said >= room)
        return;
    va_start(arguments, format);
    vsnprintf(e->complaint + at + said, room - (size_t)said, format, arguments);
    va_end(arguments);
}

/* Digits and nothing, or one of the letters in `units` (K, M, G): false: something else is there, or too much. */
static bool parse_number(const char *text, const char *units, uint64_t *ret)
{
    uint64_t n = 0;
    const char *at = text;
    for (; *at >= '0' && *at <= '9'; at++)
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, (uint64_t)(*at - '0'), &n))
            return false;
    if (at == text)
        return false;
    unsigned shift = 0;
    if (*at) {
        if (!strchr(units, *at) || at[1])
            return false;
        shift = *at == 'K' ? 10 : *at == 'M' ? 20 : 30;
    }
    if (n > UINT64_MAX >> shift)
        return false;
    *ret = n << shift;
    return true;
}

static void read_debug(struct environment *e)
{
    const char *text = environ_get("ARENA_DEBUG");
    for (size_t bytes; text && *text; text += bytes) {
        bytes = strcspn(text, ", ");
        size_t i = 0;
        while (i < DEBUG_WORDS && !(strlen(debug_words[i].word) == bytes && memcmp(debug_words[i].word, text, bytes) == 0))
            i++;
        if (i < DEBUG_WORDS)
            e->debug |= debug_words[i].flag;
        else if (bytes) {
            char known[128];
            int at = 0;
            for (i = 0; i < DEBUG_WORDS; i++)
                at += snprintf(known + at, sizeof known - (size_t)at, "%s%s", i ? ", " : "", debug_words[i].word);
            complain(e, "ARENA_DEBUG", text, bytes, "no such word, ignored (there are: %s)", known);
        }
        bytes += text[bytes] != 0;
    }
}

static void read_stack_max(struct environment *e)
{
    const char *text = environ_get("ARENA_STACK_MAX");
    uint64_t bytes;
    if (!text)
        return;
    if (parse_number(text, "KMG", &bytes) && bytes >= STACK_FIRST && bytes <= STACK_MAX_MAX)
        e->stack_max = bytes;
    else
        complain(e, "ARENA_STACK_MAX", text, strlen(text), "no size from 2K to 512G, ignored");
}

static void read_profile(struct environment *e)
{
    const char *text = environ_get("ARENA_PROFILE");
    uint64_t rate;
    if (!text || strcmp(text, "off") == 0)
        return;
    if (strcmp(text, "on") == 0)
        e->profile_rate = PROFILE_RATE;
    else if (parse_number(text, "K", &rate) && rate <= UINT32_MAX)
        e->profile_rate = rate; /* 0: as if it were off */
    else
        complain(e, "ARENA_PROFILE", text, strlen(text), "neither on, off nor a number up to 4294967295, ignored");
}

/* A directory that a variable names; NULL: it names none, or one that cannot be used. */
static const char *directory(struct environment *e, const char *name, bool is_used)
{
    const char *text = environ_get(name);
    struct stat st;
    if (!text)
        return NULL;
    size_t bytes = strlen(text);
    if (bytes >= PATH_MAX - 64) /* the name of a file in it, too */
        complain(e, name, text, bytes, "longer than a path may be, ignored");
    else if (is_used && (stat(text, &st) < 0 || !S_ISDIR(st.st_mode)))
        complain(e, name, text, bytes, "no directory, ignored");
    else
        return text;
    return NULL;
}

void environ_read(struct environment *ret)
{
    ret->debug = 0;
    ret->stack_max = ret->profile_rate = 0;
    read_debug(ret);
    read_stack_max(ret);
    read_profile(ret);
    ret->profile_dir = directory(ret, "ARENA_PROFILE_DIR", ret->profile_rate != 0);
    if (!ret->profile_dir && ret->profile_rate)
        ret->profile_dir = directory(ret, "XDG_RUNTIME_DIR", true);
    if (!ret->profile_dir)
        ret->profile_dir = "/tmp";
}

const char *environ_socket(struct environment *ret, const char *given, char *buf, size_t capacity)
{
    static const char name[] = "arenad/default.sock";
    struct stat st;
    if (given && *given)
        return given;
    const char *text = environ_get("ARENA_SOCKET");
    if (text) {
        if (strlen(text) > SOCKET_PATH_MAX)
            complain(ret, "ARENA_SOCKET", text, strlen(text), "a socket's path has at most %d bytes", SOCKET_PATH_MAX);
        return text;
    }
    const char *dir = environ_get("XDG_RUNTIME_DIR");
    if (dir && *dir != '/')
        complain(ret, "XDG_RUNTIME_DIR", dir, strlen(dir), "not an absolute path, ignored");
    else if (dir && strlen(dir) + sizeof name > SOCKET_PATH_MAX)
        complain(ret, "XDG_RUNTIME_DIR", dir, strlen(dir), "too long for a socket in it, ignored");
    else if (dir && snprintf(buf, capacity, "%s/%s", dir, name) < (int)capacity && stat(buf, &st) == 0)
        return buf;
    return "/run/arenad/default.sock";
}
