/* Forks: how a child learns that it is one, and what it does first.
 *
 * The rule: nothing that is its parent's - a lock, a descriptor, a list, an mcache - is used in a child, however it was made.
 *  - fork() tells by its handlers; _Fork() and clone() call none, and the handlers of the program or of other libraries may
 *    use the heap before ours had its turn. So it is a page that tells: a child finds it wiped. Each slow path looks at it
 *    (forked()) before it takes a lock; the fast paths fail in wiped mcaches, so they end in a slow path.
 *  - The first thread that finds it wiped makes new what all heaps share (begin_anew()), once; others wait for that. Nothing is
 *    freed or walked there that another thread of the parent might have been in the middle of.
 *  - Each heap is made new by the first slow path that needs it (arena_reattach()), once: the heap's generation is not the
 *    process's until that is done.
 * Where the system cannot wipe pages (before Linux 4.14) the process's id tells, and mcaches are not in the child at all: there
 * fork() is noticed, other ways only if the child calls arena_open before anything else. */
#include <sched.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <string.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"

/* What a fork copies while another thread is at it is a moment between two of that thread's stores, where the later one is
 * a release. The lists that a child walks are linked so [FK3]: it finds an entry whole, or not at all. */

/* owner: the process's id; its complement while a thread begins anew; 0 in a page that was wiped. sync: atomic */
struct fork_page {
    uint32_t owner;
};
static struct fork_page without;           /* where no page is to be had: not wiped */
static struct fork_page *page = &without;  /* constant after the library is loaded */
static bool wipes;                         /* constant after the library is loaded */
static uint32_t generation = 1;            /* of forks. sync: written by who begins anew, read after owner [FK1] */

bool fork_wipes(void) { return wipes; }

static void begin_anew(bool forking)
{
    uint32_t me = (uint32_t)getpid();
    for (;;) {
        uint32_t seen = load_acquire(&page->owner); /* [FK1] */
        if (seen == me)
            return;
        if (seen == ~me)
            sched_yield();
        else if (cas_acq_rel(&page->owner, &seen, ~me)) /* [FK1] */
            break;
    }
    generation++;
    hooks.begin_anew(forking);
    store_release(&page->owner, me); /* [FK1] all of it, before any thread believes that it is done */
}

uint32_t fork_generation(void)
{
    uint32_t owner = load_acquire(&page->owner); /* [FK1] */
    if (unlikely(wipes ? (int32_t)owner <= 0 : owner != (uint32_t)getpid()))
        begin_anew(false);
    return generation;
}

bool forked(const struct arena *a) { return load_acquire(&a->generation) != fork_generation(); } /* [FK2] */

/* By the thread that forked: no other one's memory can speak of the parent's mcaches. */
static void on_fork(void)
{
    begin_anew(true);
    hooks.forked();
}

uint32_t process_image(void)
{
    const void *at = (const void *)getauxval(AT_RANDOM); /* 16 bytes, new with each exec, at any address */
    uint32_t random[4] = {0};
    if (at)
        memcpy(random, at, sizeof random);
    uint32_t image = at ? random[0] ^ random[1] * 0x9e3779b1u ^ random[2] * 0x85ebca6bu ^ random[3] * 0xc2b2ae35u : 0;
    return image ? image : 1;
}

/* A program may hold the library twice, linked into it and loaded. */
uint32_t process_copy(void)
{
    static const char here;
    uint64_t at = (uint64_t)(uintptr_t)&here * 0x9e3779b97f4a7c15ULL;
    return (uint32_t)(at >> 32) | 1;
}

void fork_start(void)
{
    void *p = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p != MAP_FAILED && madvise(p, 4096, MADV_WIPEONFORK) == 0) {
        page = p;
        wipes = true;
    }
    page->owner = (uint32_t)getpid();
    pthread_atfork(NULL, NULL, on_fork);
}
