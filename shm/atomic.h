/* Atomic accesses to shared memory, named by their order, so that one grep lists them all.
 *
 * Every load and store of memory that another thread or process may touch goes through these names: plain C accesses
 * to it are a defect. A build of the explorer (tests/explore) puts hooks in place of them. An order stronger than
 * relaxed bears a label at its call, such as [ST1], which stands at both of its ends; tests/scripts/labels.sh looks.
 *
 * A process that is killed leaves what it had executed, in the order of its instructions. So stores of which the later one
 * says that the earlier one is whole - to the daemon that is started again, to the pass after a client - are releases
 * too: they keep the compiler from changing the order.
 */
#ifndef SHM_ATOMIC_H
#define SHM_ATOMIC_H

#include <stdbool.h>
#include <stdint.h>

#ifdef ARENA_EXPLORE
#include "tests/explore/hooks.h"
#else

#define load_relaxed(p)     __atomic_load_n((p), __ATOMIC_RELAXED)
#define load_acquire(p)     __atomic_load_n((p), __ATOMIC_ACQUIRE)
#define store_relaxed(p, v) __atomic_store_n((p), (v), __ATOMIC_RELAXED)
#define store_release(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)

#define exchange_acq_rel(p, v)  __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
#define exchange_relaxed(p, v)  __atomic_exchange_n((p), (v), __ATOMIC_RELAXED)
#define fetch_add_relaxed(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELAXED)
#define fetch_sub_relaxed(p, v) __atomic_fetch_sub((p), (v), __ATOMIC_RELAXED)
#define fetch_add_release(p, v) __atomic_fetch_add((p), (v), __ATOMIC_RELEASE)

/* *expected is left as it was found when the swap fails */
#define cas_acq_rel(p, expected, desired)                                                                    \
    __atomic_compare_exchange_n((p), (expected), (desired), false, __ATOMIC_ACQ_REL, __ATOMIC_RELAXED)

#define fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
#define fence_seq_cst() __atomic_thread_fence(__ATOMIC_SEQ_CST) /* stores before it, loads after it: [GC1] [HZ1] [EX1] */

#define fetch_or_relaxed(p, v)  __atomic_fetch_or((p), (v), __ATOMIC_RELAXED)
#define fetch_and_relaxed(p, v) __atomic_fetch_and((p), (v), __ATOMIC_RELAXED)

#endif

#define likely(x)   __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#endif
