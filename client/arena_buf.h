/* arena: buffers of bytes that grow in the heap.
 *
 * A buffer is a small structure of the caller's, in private memory, over one object of the heap that is OWNED by this
 * process: if the process dies the object is freed. It belongs to one thread at a time. What it holds moves when it
 * grows, except in place: up to the end of the object's size class at no cost, and a large object into free pages
 * behind it for a round trip. It at least doubles while it is small and copied, and takes a quarter more while it
 * grows in place. detach gives the object itself, cut to what is used, which can be published like any other.
 *
 * Transactions: until detach the object is of none, whichever is open while it grows. detach gives it to the one that
 * is open on the thread, as if it were allocated by that call.
 * fork: in the child it is the parent's: only read.
 * Errors: of an allocation, as arena.h lists them.
 */
#ifndef ARENA_BUF_H
#define ARENA_BUF_H

#include "arena.h"

#ifdef __cplusplus
extern "C" {
#endif

struct arena_buf { /* bytes. sync: its user's; read the first three, write none */
    char *data;      /* NULL: nothing reserved yet. Behind the last byte there is always a 0 */
    size_t length;   /* bytes in use */
    size_t capacity; /* bytes that fit without growth */
    arena_t *arena;
    int error;       /* the first growth that failed, a negative errno; kept until arena_buf_clear */
};
typedef struct arena_buf arena_buf_t;

/* capacity: bytes to reserve now; 0: none. -ENOMEM and the like, then it is empty and may be used all the same. */
int arena_buf_init(arena_buf_t *b, arena_t *a, size_t capacity);
void arena_buf_fini(arena_buf_t *b); /* frees it; then it is as if initialised with 0 */
int arena_buf_reserve(arena_buf_t *b, size_t more); /* room for that many bytes behind the length */
int arena_buf_append(arena_buf_t *b, const void *bytes, size_t count);
int arena_buf_puts(arena_buf_t *b, const char *text); /* without its 0 */
int arena_buf_printf(arena_buf_t *b, const char *format, ...)
#ifdef __GNUC__
    __attribute__((format(printf, 2, 3)))
#endif
    ;
/* `count` bytes at the end, to be written by the caller; NULL and errno. */
void *arena_buf_add(arena_buf_t *b, size_t count);
void arena_buf_truncate(arena_buf_t *b, size_t length); /* longer than it is: nothing */
void arena_buf_clear(arena_buf_t *b);                   /* length 0, no error; keeps its memory */

/* The noscan object with the bytes and a 0 behind them, the caller's from now on; ret_length may be NULL. The buffer is
 * empty again. NULL and errno if a growth had failed (the text would have a hole; the bytes are still there), or for
 * an empty one that cannot get an object. */
char *arena_buf_detach(arena_buf_t *b, size_t *ret_length);

#ifdef __cplusplus
}
#endif
#endif
