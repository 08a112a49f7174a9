#include "proto/text.h"

#include <stdint.h>
#include <string.h>

/* Not to be shown, beyond ASCII. */
static const struct {
    uint32_t from, to;
} hidden[] = {
    {0x80, 0x9f},       /* C1 */
    {0xad, 0xad},       /* soft hyphen */
    {0x61c, 0x61c},     /* Arabic letter mark */
    {0x180e, 0x180e},   /* a vowel separator without width */
    {0x200b, 0x200f},   /* without width; marks of direction */
    {0x2028, 0x202e},   /* separators of lines and paragraphs; embeddings and overrides */
    {0x2060, 0x206f},   /* invisible operators, isolates, deprecated formats */
    {0xfeff, 0xfeff},   /* the byte order mark */
    {0xfff9, 0xfffb},   /* annotations */
    {0xe0000, 0xe0fff}, /* tags, variation selectors */
};

int text_shown(const unsigned char *at)
{
    unsigned first = at[0];
    if (first < 0x80)
        return first >= 0x20 && first != 0x7f;
    int more = first >= 0xc2 && first < 0xe0 ? 1 : first >= 0xe0 && first < 0xf0 ? 2 : first >= 0xf0 && first < 0xf5 ? 3 : 0;
    uint32_t character = first & (0x3fu >> more);
    for (int i = 1; i <= more; i++) {
        if ((at[i] & 0xc0) != 0x80)
            return 0;
        character = character << 6 | (at[i] & 0x3f);
    }
    if (!more || (more == 2 && (character < 0x800 || (character >= 0xd800 && character < 0xe000))) ||
        (more == 3 && (character < 0x10000 || character > 0x10ffff)))
        return 0;
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++)
        if (character >= hidden[i].from && character <= hidden[i].to)
            return 0;
    return more + 1;
}

char *text_escape(char *out, size_t capacity, const char *text)
{
    static const char digits[] = "0123456789abcdef";
    size_t n = 0;
    for (const unsigned char *at = (const unsigned char *)text; *at;) {
        int length = text_shown(at), room = length ? length : 4;
        if (n + (size_t)room >= capacity)
            break;
        if (length)
            memcpy(out + n, at, (size_t)length);
        else
            memcpy(out + n, (const char[4]){'\\', 'x', digits[*at >> 4], digits[*at & 15]}, 4);
        n += (size_t)room;
        at += length ? length : 1;
    }
    out[n] = 0;
    return out;
}
