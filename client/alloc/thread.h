/* Threads: each gets an mcache of a heap at its first slow path there, and leaves it when it ends. See thread.c.
 * Memory: private, never freed, used again. sync: registry_lock. */
#ifndef CLIENT_THREAD_H
#define CLIENT_THREAD_H

#include <stdbool.h>
#include <stdint.h>

struct arena;
struct mcache;
struct thread;

/* This thread's mcache, made if need be; NULL and errno. */
struct mcache *mcache_get(struct arena *a);
void threads_start(void);
struct thread *thread_self(void); /* NULL: it has no mcache of any heap */
/* Its thread-local memory may be gone, and speaks of the heap in that place as long as it is there. With registry_lock. */
bool thread_is_ending(struct thread *t, uint32_t index);
void threads_reap(bool everywhere); /* gives back what threads that are gone have left. Holds no lock of the caller's */
uint32_t threads_stale(void); /* places of tls_mcaches that no heap may have, a bit each. With registry_lock */
bool threads_after_fork(bool forking, uint32_t places); /* forking: by the thread that forked; returns whether it is that */
void thread_has_forked(void);
void mcaches_forget(struct arena *a); /* in a forked child */
void threads_forget(uint32_t index); /* a heap is closed: no thread has an mcache of it any more. With registry_lock */

#endif
