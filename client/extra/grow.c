/* Objects that grow: in place where they can, else by a copy to a bigger one. And back to what is
 * used. */
#include <string.h>
#include <sys/mman.h>

#include "client/alloc/large.h"
#include "client/alloc/mcache.h"
#include "client/alloc/thread.h"
#include "client/alloc/tx_log.h"
#include "client/extra/grow.h"
#include "client/extra/move.h"
#include "client/heap.h"

enum { COPY_LEAST = 64 };

/* A large object takes the free pages behind it: `want` bytes, or `need` if that is too much. */
static bool grow_in_place(struct arena *a, void *p, size_t capacity, size_t need, size_t want)
{
    uint64_t first = (uint64_t)((uint8_t *)p - a->base) >> PAGE_SHIFT;
    uint32_t most = large_pages(want), least = large_pages(need);
    if (!CLASS_IS_LARGE(page_entry_class(load_relaxed(&a->pages[first]))))
        return false;
    if ((!most || large_extend(a, first, most) < 0) &&
        (!least || large_extend(a, first, least) < 0))
        return false;
    size_t now = arena_usable_size(a, p);
    madvise((uint8_t *)p + capacity, now - capacity,
            MADV_POPULATE_WRITE); /* a fault a page would cost more */
    return true;
}

/* An object of the process's own, whatever transaction is open: what a buffer or a vector holds is its owner's scratch. */
static void *alloc_own(struct arena *a, size_t size, unsigned flags)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    struct transaction *tx = tx_suspend(mc);
    void *p = arena_alloc_flags(a, size, flags);
    tx_resume(mc, tx);
    return p;
}

/* p (NULL: none yet), whose first `used` bytes count, gets room for `need` bytes, and more ahead of demand. What it is now, or
 * NULL and errno: then p is as it was. die: both objects are OWNED, and freed by the pass. */
void *object_grow(struct arena *a, void *p, size_t used, size_t need, unsigned flags, size_t *ret_capacity, const char *call)
{
    size_t capacity = p ? arena_usable_size(a, p) : 0, want = need;
    if (p && need <= capacity) {
        *ret_capacity = capacity;
        return p;
    }
    if (p) {
        size_t step = capacity >> (capacity < 1 << 20 ? 0 : capacity < 16 << 20 ? 1 : 2);
        if (grow_in_place(a, p, capacity, need, capacity + step > need ? capacity + step : need)) {
            *ret_capacity = arena_usable_size(a, p);
            return p;
        }
        want = capacity * 2 > COPY_LEAST ? capacity * 2 : COPY_LEAST;
        want = want > need ? want : need;
    }
    void *bigger = p ? object_move(a, p, used, want, call) : alloc_own(a, want, flags);
    if (!bigger && want > need)
        bigger = p ? object_move(a, p, used, need, call) : alloc_own(a, need, flags);
    if (bigger)
        *ret_capacity = arena_usable_size(a, bigger);
    return bigger;
}

/* Gives back what is behind the first `used` bytes, if it is worth it, and hands the object to the transaction that is open on
 * the thread, as if it were allocated now. NULL and errno: it cannot be noted there, and p is as it was. */
void *object_fit(struct arena *a, void *p, size_t used, const char *call)
{
    struct mcache *mc = mcache_get(a);
    if (!mc)
        return NULL;
    int rc = mc->tx ? tx_room(mc) : 0;
    if (rc < 0) {
        errno = -rc;
        return NULL;
    }
    size_t capacity = arena_usable_size(a, p);
    uint64_t first = (uint64_t)((uint8_t *)p - a->base) >> PAGE_SHIFT;
    unsigned span_class = page_entry_class(load_relaxed(&a->pages[first]));
    if (CLASS_IS_LARGE(span_class) && used > SMALL_MAX) {
        uint64_t pages = (used + PAGE_SIZE - 1) >> PAGE_SHIFT;
        if (pages < capacity >> PAGE_SHIFT)
            large_extend(a, first, (uint32_t)pages);
    } else {
        unsigned noscan = CLASS_IS_NOSCAN(span_class), size_class = size_class_of((uint32_t)(used ? used : 1), noscan);
        void *smaller = NULL;
        if (CLASS_IS_LARGE(span_class) || class_table[SPAN_CLASS(size_class, noscan)].size < capacity)
            smaller = object_move(a, p, used, used, call);
        p = smaller ? smaller : p; /* at worst as it is */
    }
    tx_adopt(mc, p);
    return p;
}
