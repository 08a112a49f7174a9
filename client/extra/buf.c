/* Buffers: bytes that grow. The object has one byte more than the capacity that the user sees, for
 * a closing 0. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "client/extra/grow.h"
#include "client/heap.h"
#include "client/own/free.h"

PUBLIC int arena_buf_init(arena_buf_t *b, arena_t *a, size_t capacity)
{
    *b = (arena_buf_t){.arena = a};
    return capacity ? arena_buf_reserve(b, capacity) : 0;
}

PUBLIC void arena_buf_fini(arena_buf_t *b)
{
    if (b->data)
        free_as(b->arena, b->data, "arena_buf_fini");
    *b = (arena_buf_t){.arena = b->arena};
}

static int failed(arena_buf_t *b, int error)
{
    if (!b->error)
        b->error = error;
    return error;
}

PUBLIC int arena_buf_reserve(arena_buf_t *b, size_t more)
{
    size_t need, capacity;
    if (b->data && more <= b->capacity - b->length)
        return 0;
    if (__builtin_add_overflow(b->length, more, &need) || need == SIZE_MAX)
        return failed(b, -ENOMEM);
    char *data = object_grow(b->arena, b->data, b->data ? b->length + 1 : 0, need + 1, ARENA_NOSCAN,
                             &capacity, "arena_buf_reserve");
    if (!data)
        return failed(b, -errno);
    b->data = data;
    b->capacity = capacity - 1;
    data[b->length] = 0;
    return 0;
}

PUBLIC void *arena_buf_add(arena_buf_t *b, size_t count)
{
    int rc = arena_buf_reserve(b, count);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    char *at = b->data + b->length;
    b->length += count;
    at[count] = 0;
    return at;
}

PUBLIC int arena_buf_append(arena_buf_t *b, const void *bytes, size_t count)
{
    if (count <= b->capacity - b->length && b->data) {
        char *at = b->data + b->length;
        memmove(at, bytes, count);
        at[count] = 0;
        b->length += count;
        return 0;
    }
    size_t inside = (size_t)((const char *)bytes - b->data);
    bool own = b->data && inside <= b->length; /* of itself: it may move */
    void *to = arena_buf_add(b, count);
    if (!to)
        return -errno;
    if (count)
        memcpy(to, own ? b->data + inside : bytes, count);
    return 0;
}

PUBLIC int arena_buf_puts(arena_buf_t *b, const char *text)
{
    return arena_buf_append(b, text, strlen(text));
}

PUBLIC int arena_buf_printf(arena_buf_t *b, const char *format, ...)
{
    va_list args;
    size_t room = b->data ? b->capacity - b->length + 1 : 0;
    va_start(args, format);
    int n = vsnprintf(room ? b->data + b->length : NULL, room, format, args);
    va_end(args);
    if (n >= 0 && (size_t)n >= room) {
        int rc = arena_buf_reserve(b, (size_t)n);
        if (rc < 0) {
            if (b->data)
                b->data[b->length] = 0;
            return rc;
        }
        va_start(args, format);
        n = vsnprintf(b->data + b->length, (size_t)n + 1, format, args);
        va_end(args);
    }
    if (n < 0) {
        if (b->data)
            b->data[b->length] = 0;
        return failed(b, -EINVAL);
    }
    b->length += (size_t)n;
    return 0;
}

PUBLIC void arena_buf_truncate(arena_buf_t *b, size_t length)
{
    if (length >= b->length)
        return;
    b->length = length;
    b->data[length] = 0;
}

PUBLIC void arena_buf_clear(arena_buf_t *b)
{
    b->error = 0;
    arena_buf_truncate(b, 0);
}

PUBLIC char *arena_buf_detach(arena_buf_t *b, size_t *ret_length)
{
    int rc = b->error;
    if (rc == 0 && !b->data)
        rc = arena_buf_reserve(b, 0);
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    char *data = object_fit(b->arena, b->data, b->length + 1, "arena_buf_detach");
    if (!data)
        return NULL;
    if (ret_length)
        *ret_length = b->length;
    *b = (arena_buf_t){.arena = b->arena};
    return data;
}
