/* The threads beside the loop, which back, punch and mark for milliseconds: what all of them have in common.
 *
 * Where there are more threads than CPUs, the loop is to run first: it does little at a time, and for each thing that it
 * does a client waits. So it asks the scheduler for short slices and the workers for long ones (sched_setattr(2); counted
 * from Linux 6.12 on): who wakes with a shorter slice need not wait until the running one's is over. Priorities and shares
 * of all are as they were, and all of it where the kernel does not know it or somebody has set another policy. */
#ifndef DAEMON_SCHED_H
#define DAEMON_SCHED_H

#include <uv.h>

void sched_loop(void); /* the calling thread is the loop's */

/* A thread to which no signal comes but SIGBUS (sigbus.c), and which begins with sched_worker(): 0 or a negative errno. */
int sched_create(uv_thread_t *ret, uv_thread_cb main, void *argument);
void sched_worker(void); /* the calling thread works beside the loop */

#endif
