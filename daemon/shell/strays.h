/* Strays: memory behind the regions that the daemon did not put there.
 *
 * A client that reads or writes a page which nobody backed gives it memory: a core dump does, a lock of all memory, a walk over
 * everything, or malice. No grant asked for it and no limit counts it. So the loop compares at each tick what the file system
 * holds with its own account, and where there is more it looks for the pages and has them cleared by the worker.
 *
 *      held > account ---> a pass by turns: cold page with data ---> out of use ---> worker clears ---> cold again
 *
 * What is cleared cannot be wanted meanwhile:
 *   1. A cold page of the heap is taken out of the mheap, or its span off its list, before the worker is asked.
 *   2. Hints and entries of the map behind all pages that were ever backed: only the worker backs those, and it does one thing
 *      at a time.
 *   3. State words behind those that the loop has claimed: it claims before it backs, and waits for the piece under way.
 *
 * Tried, and not taken: a userfaultfd over a client's mappings (missing pages, SIGBUS, user mode only). A read of a hole is a
 * SIGBUS then and makes no memory; to register costs 2 us, and a fault of a backed page what it cost before (2-3 us, no
 * difference beyond the noise). But it binds only who wants to be bound: a client may map its descriptor once more. A system
 * call that reads into a hole fails with EFAULT, a fork's child has lost it, and it takes a descriptor of every process.
 *
 * Regions on hugetlbfs are left alone: a piece of a page cannot be given back there. Loop thread, but for the clearing itself (worker.c). */
#ifndef DAEMON_STRAYS_H
#define DAEMON_STRAYS_H

#include <stdbool.h>
#include <stdint.h>

struct server;

struct strays {
    bool off;            /* the regions' pages are larger than ours */
    bool on;             /* a pass is under way */
    uint64_t cursor;     /* of the pass */
    uint64_t found;      /* pages of this pass */
    uint64_t in_flight;  /* pages */
    bool tidying;        /* map and state are being looked through */
    uint32_t pause_ticks, rest_ticks; /* a pass that finds nothing is not begun again at once */
    uint32_t quiet_ticks;             /* since there was anything */
    uint32_t told_pid;
    bool told;
};

void strays_start(struct server *s);
void strays_tick(struct server *s);
void strays_now(struct server *s);  /* a trim */
bool strays_turn(struct server *s); /* true: there is more to look at now */
bool strays_busy(const struct server *s);
void strays_cleared(struct server *s, uint64_t pages);

/* Pages that have memory and should have none, of the heap as it is now. */
uint64_t strays_pages(const struct server *s);

#endif
