#include "client/alloc/mcache.h"
#include "client/debug/escape.h"
#include "client/debug/profile.h"
#include "client/debug/watch.h"
#include "client/heap.h"
#include "client/link/environ.h"

void watch_alloc(struct mcache *mc, void *object, size_t size)
{
    struct arena *a = mc->arena;
    if (a->debug & DEBUG_ESCAPE)
        escape_note_heap(a, object);
    if (a->profile)
        profile_alloc(mc, object, size);
}
