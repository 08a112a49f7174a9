/* In place of shm/atomic.h's accesses when the explorer is built: each one is a point at which the
 * explorer may switch threads, hold a store back in a buffer, or kill. Locks and memory of the real
 * client and daemon go through it too, so that a state of the explored world is a handful of bytes
 * that can be saved and put back. */
#ifndef TESTS_EXPLORE_HOOKS_H
#define TESTS_EXPLORE_HOOKS_H

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { EX_RELAXED, EX_RELEASE };

/* site: the function and the text of the address, by which a mutant finds the access that it
 * changes */
uint64_t ex_load(const void *p, unsigned size, const char *function, const char *address);
void ex_store(void *p, uint64_t value, unsigned size, int order, const char *function,
              const char *address);
uint64_t ex_exchange(void *p, uint64_t value, unsigned size, bool add, const char *function,
                     const char *address);
bool ex_cas(void *p, void *expected, uint64_t desired, unsigned size, const char *function,
            const char *address);
void ex_fence_release(void);
void ex_fence_full(void);
void ex_lock(pthread_mutex_t *lock, const char *function);
bool ex_trylock(pthread_mutex_t *lock, const char *function);
void ex_unlock(pthread_mutex_t *lock, const char *function);
void ex_abort(void) __attribute__((noreturn));
void *ex_alloc(size_t count, size_t size);
void *ex_realloc(void *p, size_t bytes);
void ex_free(void *p);

#define EX_TYPE(p)          __typeof__((void)0, *(p)) /* without its qualifiers */

#define load_relaxed(p)     ((EX_TYPE(p))ex_load((p), sizeof *(p), __func__, #p))
#define load_acquire(p)     load_relaxed(p)
#define store_relaxed(p, v) ex_store((p), (uint64_t)(v), sizeof *(p), EX_RELAXED, __func__, #p)
#define store_release(p, v) ex_store((p), (uint64_t)(v), sizeof *(p), EX_RELEASE, __func__, #p)

#define EX_RMW(p, v, add)                                                                          \
    __extension__({                                                                                \
        EX_TYPE(p)                                                                                 \
        ex_was = (EX_TYPE(p))ex_exchange((p), (uint64_t)(v), sizeof *(p), add, __func__, #p);      \
        ex_was;                                                                                    \
    })
#define exchange_acq_rel(p, v)  EX_RMW(p, v, false)
#define exchange_relaxed(p, v)  EX_RMW(p, v, false)
#define fetch_add_relaxed(p, v) EX_RMW(p, v, true)
#define fetch_sub_relaxed(p, v) EX_RMW(p, -(uint64_t)(v), true)
#define fetch_add_release(p, v) fetch_add_relaxed(p, v)

#define cas_acq_rel(p, expected, desired)                                                          \
    ex_cas((p), (expected), (uint64_t)(desired), sizeof *(p), __func__, #p)

#define fence_acquire() ((void)0) /* loads are not reordered here */
#define fence_release() ex_fence_release()
#define fence_seq_cst() ex_fence_full()

#ifndef EX_ENGINE
#define pthread_mutex_init(lock, attributes) memset((lock), 0, sizeof *(lock))
#define pthread_mutex_lock(lock)             ex_lock((lock), __func__)
#define pthread_mutex_trylock(lock)          (ex_trylock((lock), __func__) ? 0 : EBUSY)
#define pthread_mutex_unlock(lock)           ex_unlock((lock), __func__)
#define abort()                              ex_abort()
#define malloc(bytes)                        ex_alloc(1, (bytes))
#define calloc(count, bytes)                 ex_alloc((count), (bytes))
#define realloc(p, bytes)                    ex_realloc((p), (bytes))
#define free(p)                              ex_free(p)
#define mmap(at, bytes, ...)                 ex_alloc(1, (bytes))
#define munmap(p, bytes)                     ex_free(p)
#define madvise(p, bytes, advice)            ({ (void)(p); 0; })
#define nanosleep(pause, left)               ((void)(pause))
#endif

#endif
