/* Text that came from others, to be shown: on a terminal, in a log, in an answer. What could move the cursor, turn the
 * direction of writing, begin a line or hide is no text: control characters (C0, DEL, C1), marks of direction, separators of
 * lines and paragraphs, characters without width that join or mark, tags; and what is not UTF-8. */
#ifndef PROTO_TEXT_H
#define PROTO_TEXT_H

#include <stddef.h>

/* Bytes of the UTF-8 character at `at` that may be shown as it is; 0: this byte may not. */
int text_shown(const unsigned char *at);

/* Copies text with \xHH for each byte that may not be shown. Cut off where `capacity` ends, at a whole character. out. */
char *text_escape(char *out, size_t capacity, const char *text);

#endif
