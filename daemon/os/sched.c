#include "daemon/os/sched.h"

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { LOOP_SLICE_NS = 100 * 1000, WORKER_SLICE_NS = 20 * 1000 * 1000 }; /* the kernel takes 0.1 to 100 ms */

/* The first version of the kernel's struct sched_attr, whose header does not go with libc's <sched.h>. */
struct attributes {
    uint32_t size, policy;
    uint64_t flags;
    int32_t nice;
    uint32_t priority;
    uint64_t runtime, deadline, period; /* ns; the slice is `runtime` */
};

static void slice_set(uint64_t ns)
{
    struct attributes attr = {.size = sizeof attr};
    if (syscall(SYS_sched_getattr, 0, &attr, sizeof attr, 0) != 0 || attr.policy != SCHED_OTHER)
        return; /* not SCHED_OTHER: somebody has decided otherwise */
    attr.runtime = ns;
    syscall(SYS_sched_setattr, 0, &attr, 0);
}

void sched_loop(void) { slice_set(LOOP_SLICE_NS); }
void sched_worker(void) { slice_set(WORKER_SLICE_NS); }

int sched_create(uv_thread_t *ret, uv_thread_cb main, void *argument)
{
    sigset_t all, before;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int rc = uv_thread_create(ret, main, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return rc;
}
