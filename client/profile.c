#include "client/escape.h"

void watch_alloc(struct mcache *mc, void *object, size_t size)
{
    struct arena *a = mc->arena;
    (void)size;
    if (a->debug & DEBUG_ESCAPE)
        escape_note_heap(a, object);
}
