/* Goal: nothing that could move a cursor, turn the direction of writing, begin a line or hide is shown as it is, and all other
 * text is. Method: every character of Unicode by itself, encoded here; and every byte that is no character. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "proto/text.h"

static int encode(uint32_t c, unsigned char out[5])
{
    int n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    static const unsigned char heads[] = {0, 0, 0xc0, 0xe0, 0xf0};
    for (int i = n - 1; i > 0; i--, c >>= 6)
        out[i] = (unsigned char)(0x80 | (c & 0x3f));
    out[0] = (unsigned char)(heads[n] | c);
    out[n] = 0;
    return n;
}

static int hides(uint32_t c)
{
    return c < 0x20 || (c >= 0x7f && c <= 0x9f) || c == 0xad || c == 0x61c || c == 0x180e || (c >= 0x200b && c <= 0x200f) ||
           (c >= 0x2028 && c <= 0x202e) || (c >= 0x2060 && c <= 0x206f) || c == 0xfeff || (c >= 0xfff9 && c <= 0xfffb) ||
           (c >= 0xe0000 && c <= 0xe0fff) || (c >= 0xd800 && c < 0xe000);
}

static void every_character_is_shown_or_not_as_it_should_be(void **state)
{
    (void)state;
    for (uint32_t c = 1; c <= 0x10ffff; c++) {
        unsigned char text[5];
        int n = encode(c, text);
        if (text_shown(text) != (hides(c) ? 0 : n))
            fail_msg("U+%04X: %d", c, text_shown(text));
    }
}

static void what_is_no_character_is_not_shown(void **state)
{
    static const char *const wrong[] = {"\x80", "\xbf", "\xc0\x80", "\xc1\xbf", "\xc3", "\xc3(", "\xe0\x80\x80", "\xe0\x9f\xbf", "\xe2\x82",
                                        "\xed\xa0\x80", "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80", "\xff", "\x9b[2J"};
    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++)
        assert_int_equal(text_shown((const unsigned char *)wrong[i]), 0);
}

static void escaped_text_is_whole_wherever_it_is_cut(void **state)
{
    static const char text[] = "a\x1b[31m\xc2\x9b\xe2\x80\xae\xc3\xa9\xe2\x82\xac\n\x7f end";
    static const char all[] = "a\\x1b[31m\\xc2\\x9b\\xe2\\x80\\xae\xc3\xa9\xe2\x82\xac\\x0a\\x7f end";
    char out[128];
    (void)state;
    assert_string_equal(text_escape(out, sizeof out, text), all);
    for (size_t capacity = 1; capacity <= sizeof all; capacity++) {
        memset(out, '#', sizeof out);
        text_escape(out, capacity, text);
        size_t n = strlen(out);
        assert_true(n < capacity && memcmp(out, all, n) == 0);
        assert_true(out[capacity] == '#');
        for (size_t i = 0; i < n;) { /* whole characters */
            int length = text_shown((const unsigned char *)out + i);
            assert_true(length > 0 && i + (size_t)length <= n);
            i += (size_t)length;
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_character_is_shown_or_not_as_it_should_be),
        cmocka_unit_test(what_is_no_character_is_not_shown),
        cmocka_unit_test(escaped_text_is_whole_wherever_it_is_cut),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
