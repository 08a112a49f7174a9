/* Figures and names as people read them. */
#include <pwd.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <wchar.h>

#include "client/ctl/ctl.h"
#include "proto/text.h"

enum { BUFFERS = 16, BUFFER = 48 };

static char *next_buffer(void)
{
    static char buffers[BUFFERS][BUFFER];
    static unsigned next;
    return buffers[next++ % BUFFERS];
}

const char *human(uint64_t bytes)
{
    static const char units[] = " KMGTP";
    char *out = next_buffer();
    double value = (double)bytes;
    int unit = 0;
    while (value >= 1023.5 && units[unit + 1]) {
        value /= 1024;
        unit++;
    }
    if (unit)
        snprintf(out, BUFFER,
                 value < 99.95 && value != (double)(uint64_t)value ? "%.1f%c" : "%.0f%c", value,
                 units[unit]);
    else
        snprintf(out, BUFFER, "%.0f", value);
    return out;
}

const char *percent(uint64_t part, uint64_t all)
{
    char *out = next_buffer();
    double value = all ? 100.0 * (double)part / (double)all : 0;
    snprintf(out, BUFFER, value < 9.95 && part ? "%.1f %%" : "%.0f %%", value);
    return out;
}

const char *when(uint64_t real_ns)
{
    char *out = next_buffer();
    time_t seconds = (time_t)(real_ns / 1000000000);
    struct tm tm;
    if (!localtime_r(&seconds, &tm) || !strftime(out, BUFFER, "%Y-%m-%d %H:%M:%S", &tm))
        snprintf(out, BUFFER, "-");
    return out;
}

const char *ago(uint64_t ns)
{
    static const struct {
        uint64_t seconds;
        char name;
    } units[] = {{86400, 'd'}, {3600, 'h'}, {60, 'm'}, {1, 's'}};
    char *out = next_buffer();
    uint64_t seconds = ns / 1000000000;
    for (int i = 0; i < 3; i++)
        if (seconds >= units[i].seconds) {
            snprintf(out, BUFFER, "%llu%c%02llu%c",
                     (unsigned long long)(seconds / units[i].seconds), units[i].name,
                     (unsigned long long)(seconds % units[i].seconds / units[i + 1].seconds),
                     units[i + 1].name);
            return out;
        }
    snprintf(out, BUFFER, "%llus", (unsigned long long)seconds);
    return out;
}

const char *user_name(uint64_t uid)
{
    static uint64_t last = UINT64_MAX;
    static char name[BUFFER];
    if (uid != last) { /* a table mostly has the same one again */
        struct passwd *pw = getpwuid((uid_t)uid);
        snprintf(name, sizeof name, "%s", pw ? clean(pw->pw_name, false) : "");
        if (!pw)
            snprintf(name, sizeof name, "%llu", (unsigned long long)uid);
        last = uid;
    }
    return name;
}

const char *clean(const char *text, bool hex)
{
    static char buffers[4][2048];
    static unsigned next;
    char *out = buffers[next++ % 4];
    size_t n = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at && n + 5 < sizeof buffers[0];) {
        int length = text_shown(at);
        if (length) {
            memcpy(out + n, at, (size_t)length);
            n += (size_t)length;
            at += length;
        } else if (hex)
            n += (size_t)snprintf(out + n, 5, "\\x%02x", *at++);
        else {
            out[n++] = '?';
            at++;
        }
    }
    out[n] = 0;
    return out;
}

int columns(const char *text)
{
    wchar_t wide[2048];
    size_t n = mbstowcs(wide, text, sizeof wide / sizeof wide[0] - 1);
    int width = n == (size_t)-1 ? -1 : wcswidth(wide, n);
    return width >= 0 ? width : (int)strlen(text);
}

uint64_t now_real_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_REALTIME, &ts);
    return (uint64_t)ts.tv_sec * 1000000000ULL + (uint64_t)ts.tv_nsec;
}
