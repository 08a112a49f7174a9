#include "client/heap.h"
#include "client/link/registry.h"

#include <time.h>

pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t registry_changed = PTHREAD_COND_INITIALIZER;
struct arena *registry_heaps[HEAPS_MAX];

void registry_wait(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&registry_changed, &registry_lock, &until);
}

void registry_after_fork(void)
{
    pthread_mutex_init(&registry_lock, NULL);
    pthread_cond_init(&registry_changed, NULL);
}
