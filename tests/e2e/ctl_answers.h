/* What the tests of arenactl share: its answer to a command, and what every answer must be. */
#ifndef TESTS_E2E_CTL_ANSWERS_H
#define TESTS_E2E_CTL_ANSWERS_H

#include <stdio.h>
#include <string.h>

#include "tests/e2e/harness.h"

static char out[4 << 20];

static inline int ctl(const struct daemon *d, const char *command)
{
    return arenactl(d, out, sizeof out, "%s", command);
}

static inline bool is_utf8(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p;) {
        int more = *p < 0x80                 ? 0
                   : *p >= 0xc2 && *p < 0xe0 ? 1
                   : *p >= 0xe0 && *p < 0xf0 ? 2
                   : *p >= 0xf0 && *p < 0xf5 ? 3
                                             : -1;
        if (more < 0)
            return false;
        for (p++; more > 0; more--, p++)
            if ((*p & 0xc0) != 0x80)
                return false;
    }
    return true;
}

/* Lines and printable text only: nothing that moves a terminal's cursor. */
static inline bool is_plain(const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++)
        if ((*p < 0x20 && *p != '\n') || *p == 0x7f)
            return false;
    return is_utf8(text);
}

/* One line, which says `what`. */
static inline void assert_line(const char *what)
{
    size_t length = strlen(out);
    if (length == 0 || strchr(out, '\n') != out + length - 1 || !strstr(out, what) ||
        !is_plain(out))
        fail_msg("not one line that says '%s': %.600s", what, out);
}

#endif
