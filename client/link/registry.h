/* The registry: which heaps are open in this process, and one lock for all that the process's heaps and threads share.
 * Memory: the library's own. A forked child makes lock and condition anew before anything else (fork.c).
 * Invariant: the lock is never held while a daemon is waited for, nor while an mcache is flushed. */
#ifndef CLIENT_REGISTRY_H
#define CLIENT_REGISTRY_H

#include <pthread.h>

#include "client/link/fork.h"

enum { HEAPS_MAX = 16 }; /* open at once in a process */

extern pthread_mutex_t registry_lock;
extern pthread_cond_t registry_changed; /* a heap was opened, closed or attached, or nobody is busy with it any more */
extern struct arena *registry_heaps[HEAPS_MAX]; /* NULL: none. sync: registry_lock; atomic, for who begins anew after a fork [FK3] */

static inline void registry_enter(void)
{
    fork_generation(); /* in a child the lock may be held by nobody who is there */
    pthread_mutex_lock(&registry_lock);
}

void registry_wait(void); /* for another thread that has the lock for something; looks up now and then */
void registry_after_fork(void);

#endif
