/* Buffers and vectors: one that lives over many operations, and others that live for one. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

enum { TEXT = 20000 };

static size_t text_most(void) { return is_small_heap() ? 3000 : TEXT; }

static void text_verify(const arena_buf_t *b, uint64_t id, const char *where)
{
    size_t at;
    if (b->length)
        CHECK(pattern_holds(b->data, 0, b->length & ~(size_t)7, id, &at), "%s: a text of %zu bytes was overwritten at %zu", where, b->length, at);
    CHECK(!b->data || b->data[b->length] == 0, "%s: no 0 behind a text of %zu bytes", where, b->length);
}

/* Appends words of the text's pattern, by any function that does. False: there is no memory. */
static bool text_grow(struct ctx *c, arena_buf_t *b, uint64_t id, size_t words)
{
    static __thread char whole[TEXT]; /* the pattern depends on the place in the text */
    size_t before = b->length, bytes = words * 8;
    const char *more = whole + before;
    int rc = 0;
    if (before + bytes > text_most())
        return false;
    pattern_fill(whole, before, before + bytes, id);
    if (below(c, 3) == 0) {
        char *at = arena_buf_add(b, bytes);
        if (at)
            memcpy(at, more, bytes);
        else
            rc = -errno;
    } else
        rc = arena_buf_append(b, more, bytes);
    if (rc < 0) {
        may_fail(c, -rc, "a text's growth");
        CHECK(b->length == before && b->error, "a text that cannot grow has %zu bytes in place of %zu", b->length, before);
        arena_buf_truncate(b, before);
    }
    return rc == 0;
}

static void text_keep(struct ctx *c, arena_buf_t *b, size_t count)
{
    size_t length = 0;
    struct slot *s = empty_slot(c);
    char *p = s ? arena_buf_detach(b, &length) : NULL;
    if (!p) {
        arena_buf_fini(b);
        return;
    }
    CHECK(length == count && p[length] == 0, "a detached text of %zu bytes has %zu", count, length);
    CHECK(b->length == 0, "a detached text is still there");
    slot_put(c, s, p, length, c->in_tx ? SLOT_TX : SLOT_OWNED);
}

static void text(struct ctx *c)
{
    arena_buf_t b;
    uint64_t id = id_new();
    int rc = arena_buf_init(&b, c->a, below(c, 100));
    if (rc < 0)
        may_fail(c, -rc, "arena_buf_init");
    for (uint64_t i = below(c, 60); i > 0 && text_grow(c, &b, id, 1 + below(c, 64)); i--)
        ;
    text_verify(&b, id, "a text");
    if (below(c, 4) == 0) {
        arena_buf_clear(&b);
        CHECK(b.length == 0 && b.error == 0, "a cleared text");
        rc = arena_buf_printf(&b, "%d %s", 42, "times");
        if (rc == 0)
            rc = arena_buf_puts(&b, "!");
        if (rc == 0)
            CHECK(strcmp(b.data, "42 times!") == 0, "a printed text: %s", b.data);
        else
            may_fail(c, -rc, "arena_buf_printf");
    }
    if (b.error || below(c, 2))
        arena_buf_fini(&b);
    else
        text_keep(c, &b, b.length);
}

/* The thread's long-lived one: it grows in transactions and out of them, and is always its owner's. */
static void long_text(struct ctx *c)
{
    arena_buf_t *b = &c->buf;
    if (!b->arena) {
        int rc = arena_buf_init(b, c->a, 0);
        CHECK(rc == 0, "an empty buffer: %s", strerror(-rc));
        c->buf_id = id_new();
    }
    text_verify(b, c->buf_id, "the long text");
    if (b->error) {
        arena_buf_clear(b);
        return;
    }
    if (below(c, 8) == 0) {
        int rc = arena_buf_reserve(b, below(c, 3000));
        if (rc < 0)
            may_fail(c, -rc, "arena_buf_reserve");
    } else if (below(c, 16) == 0)
        arena_buf_truncate(b, b->length / 16 * 8);
    else if (b->length > text_most() - 2000) {
        if (c->in_tx)
            arena_buf_fini(b);
        else
            text_keep(c, b, b->length);
    } else
        text_grow(c, b, c->buf_id, 1 + below(c, 64));
    text_verify(b, c->buf_id, "the long text");
}

struct item {
    uint64_t id, number, check;
};

static void items_verify(const arena_vec_t *v, uint64_t id)
{
    for (size_t i = 0; i < v->count; i++) {
        const struct item *item = arena_vec_at(v, i);
        CHECK(item->id == id && item->number == i && item->check == id_mixed(i), "item %zu of a vector of %zu", i, v->count);
    }
    CHECK(arena_vec_at(v, v->count) == NULL, "an item behind the last");
}

static void vector(struct ctx *c)
{
    arena_vec_t v;
    uint64_t id = id_new();
    int rc = arena_vec_init(&v, c->a, sizeof(struct item), below(c, 10), (unsigned)below(c, 4));
    if (rc < 0)
        may_fail(c, -rc, "arena_vec_init");
    CHECK(arena_vec_init(&(arena_vec_t){0}, c->a, 0, 0, 0) == -EINVAL, "items of no size");
    for (uint64_t i = below(c, is_small_heap() ? 30 : 300); rc == 0 && i > 0; i--) {
        struct item item = {id, v.count, id_mixed(v.count)};
        if (below(c, 20) == 0)
            rc = arena_vec_reserve(&v, below(c, 50));
        else if (below(c, 3) == 0) {
            struct item *at = arena_vec_add(&v, 1);
            if (at)
                *at = item;
            else
                rc = -errno;
        } else
            rc = arena_vec_push(&v, &item);
        if (rc < 0)
            may_fail(c, -rc, "a vector's growth");
        if (v.count && below(c, 10) == 0) {
            CHECK(arena_vec_pop(&v, &item) == 0 && item.number == v.count, "what was popped is not the last");
        }
    }
    items_verify(&v, id);
    arena_vec_truncate(&v, v.count / 2);
    items_verify(&v, id);
    struct slot *s = empty_slot(c);
    size_t count = v.count, got = 0;
    void *p = s && below(c, 2) ? arena_vec_detach(&v, &got) : NULL;
    if (p) {
        CHECK(got == count, "a detached vector of %zu has %zu", count, got);
        slot_put(c, s, p, count * sizeof(struct item), c->in_tx ? SLOT_TX : SLOT_OWNED);
    }
    arena_vec_fini(&v);
    CHECK(arena_vec_pop(&v, NULL) == -ENOENT, "a vector that is empty");
}

void grow_some(struct ctx *c)
{
    switch (below(c, 3)) {
    case 0: text(c); break;
    case 1: long_text(c); break;
    default: vector(c); break;
    }
}

const struct operation grow_operations[] = {
    {"text", text, 20, FOR_WORKERS | FOR_CHILDREN},
    {"long_text", long_text, 40, FOR_WORKERS | FOR_CHILDREN},
    {"vector", vector, 20, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
