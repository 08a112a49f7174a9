/* The thread's stack: frames inside frames, handles that survive its moves, objects that escape. */
#include <errno.h>
#include <string.h>

#include "tests/model/operations.h"

enum { FRAMES = 30 };

struct frame {
    arena_frame_t begin;
    arena_handle_t handle;
    uint64_t id;
    size_t size;
};

static void escape(struct ctx *c, arena_stack_t *stack, const struct frame *f)
{
    struct slot *s = empty_slot(c);
    void *p = arena_frame_ptr(stack, f->handle);
    if (!s)
        return;
    void *copy = below(c, 2) ? arena_escape(stack, p, f->size, 0) : arena_escape_handle(stack, f->handle, f->size, ARENA_NOSCAN);
    if (!copy) {
        may_fail(c, errno, "arena_escape");
        return;
    }
    object_verify(copy, f->size, f->id, "what escaped");
    slot_put(c, s, copy, f->size, c->in_tx ? SLOT_TX : SLOT_OWNED);
}

static bool frame_push(struct ctx *c, arena_stack_t *stack, struct frame *f)
{
    f->begin = arena_frame_push(stack);
    f->size = 1 + below(c, 900);
    f->id = id_new();
    void *p = arena_frame_alloc(stack, f->size);
    if (!p) {
        may_fail(c, errno, "arena_frame_alloc");
        arena_frame_pop(stack, f->begin);
        return false;
    }
    object_fill(p, f->size, f->id);
    f->handle = arena_frame_ref(stack, p);
    return true;
}

static void small_frame(struct ctx *c, arena_stack_t *stack)
{
    arena_frame_t begin = arena_frame_push(stack);
    uint64_t id = id_new();
    void *p = arena_frame_alloc_small(stack, 64), *q = arena_frame_alloc_small(stack, 32);
    object_fill(p, 64, id);
    pattern_fill(q, 0, 32, id + 1);
    object_verify(p, 64, id, "a small frame");
    size_t at;
    CHECK(pattern_holds(q, 0, 32, id + 1, &at), "a small frame");
    arena_frame_pop(stack, begin);
    (void)c;
}

void frames_some(struct ctx *c)
{
    struct frame frames[FRAMES];
    arena_stack_t *stack = arena_stack(c->a);
    int count = 0, wanted = 1 + (int)below(c, is_small_heap() ? 3 : FRAMES);
    if (!stack) {
        may_fail(c, errno, "arena_stack");
        return;
    }
    while (count < wanted && frame_push(c, stack, &frames[count]))
        count++;
    if (count)
        small_frame(c, stack);
    while (count-- > 0) {
        struct frame *f = &frames[count];
        void *p = arena_frame_ptr(stack, f->handle);
        CHECK(p, "a handle of an open frame leads nowhere");
        object_verify(p, f->size, f->id, "a frame");
        if (below(c, 8) == 0)
            escape(c, stack, f);
        arena_frame_pop(stack, f->begin);
        CHECK(!arena_frame_ptr(stack, f->handle), "a handle of a popped frame leads somewhere");
        if (below(c, 16) == 0) {
            int rc = arena_stack_shrink(stack);
            if (rc < 0)
                may_fail(c, -rc, "arena_stack_shrink");
        }
    }
    CHECK(arena_stack_size(stack) == 0 || arena_stack_size(stack) >= 2048, "a stack of %zu bytes", arena_stack_size(stack));
}

static void stack_limits(struct ctx *c)
{
    CHECK(arena_stack_set_max(c->a, 100) == -EINVAL, "a stack of at most 100 bytes");
    CHECK(arena_stack_set_max(c->a, 1 << 20 << below(c, 4)) == 0, "a limit of stacks");
    arena_stack_t *stack = arena_stack(c->a);
    errno = 0;
    if (stack)
        CHECK(!arena_escape(stack, c, 8, 0) && errno == EINVAL, "what is not in the stack escaped");
}

const struct operation stack_operations[] = {
    {"frames_some", frames_some, 25, FOR_WORKERS | FOR_CHILDREN},
    {"stack_limits", stack_limits, 2, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
