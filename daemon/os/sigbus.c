#include "daemon/os/sigbus.h"

#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

#include "shm/atomic.h"

struct range {
    uintptr_t from, to;
    uint64_t page_bytes;
};

static struct range ranges[SIGBUS_RANGES]; /* sync: written before the first access to the range, read by the handler */
static unsigned range_count; /* sync: atomic [GD1]: the handler may run on a worker's thread */
static uint64_t hits; /* sync: atomic */

static void on_bus_error(int signum, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr;
    int saved = errno;
    (void)context;
    for (unsigned i = 0, count = load_acquire(&range_count); i < count; i++) { /* [GD1] */
        const struct range *r = &ranges[i];
        if (at < r->from || at >= r->to)
            continue;
        void *page = (void *)(at / r->page_bytes * r->page_bytes);
        if (mmap(page, r->page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        fetch_add_relaxed(&hits, 1);
        errno = saved;
        return;
    }
    signal(signum, SIG_DFL); /* the instruction is tried again, and ends the process */
}

int sigbus_add(void *at, uint64_t bytes, uint64_t page_bytes)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO};
    if (range_count == SIGBUS_RANGES)
        return -ENOSPC;
    ranges[range_count] = (struct range){(uintptr_t)at, (uintptr_t)at + bytes, page_bytes};
    store_release(&range_count, range_count + 1); /* [GD1] */
    sigemptyset(&action.sa_mask);
    return sigaction(SIGBUS, &action, NULL) < 0 ? -errno : 0;
}

void sigbus_remove(void *at)
{
    for (unsigned i = 0; i < range_count; i++)
        if (ranges[i].from == (uintptr_t)at) {
            ranges[i] = ranges[range_count - 1];
            store_release(&range_count, range_count - 1); /* [GD1] */
            return;
        }
}

uint64_t sigbus_hits(void) { return load_relaxed(&hits); }
