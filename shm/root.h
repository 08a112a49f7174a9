/* Named roots: a hash table in the map. A name's bucket is a chain of slots under a seqlock; the daemon alone writes it, and
 * a get is a few loads and no round trip. Waiters sleep on a futex word of the map chosen by the name.
 *
 *     header: key, top, free       bucket: seq | first ---> slot: name, ref | next ---> slot | 0
 *
 * A removed root leaves its chain at once and its slot is the next to be used, so nothing that was removed is ever walked
 * over, whatever was set and removed before. Which names fall into one bucket is known only with the heap's key. Clients can
 * read that; so a chain has at most ROOT_CHAIN_USER roots of one user and ROOT_CHAIN in all, and a lookup is that many steps
 * at most. By chance a user's fifteenth root of a bucket comes up once in 10^12 roots.
 *
 * Invariants (root_check(), O(1) for each slot): a slot is in the chain of its name's bucket exactly if it is used, else it
 * is free; a slot with a reference is used. A slot that is used and has no reference is in the middle of a change. */
#ifndef SHM_ROOT_H
#define SHM_ROOT_H

#include "shm/layout.h"

enum { ROOT_CHAIN = 64, ROOT_CHAIN_USER = 16 };

/* 0 for 1..63 bytes without control characters, else -EINVAL. */
int root_name_check(const char *name);

/* Of a name, the same in every heap: names the word that its waiters sleep on. */
uint32_t root_hash(const char *name);

/* The bucket of a name: by a hash with the heap's key. */
uint32_t root_bucket(const struct heap *h, const char *name);

/* 0: this slot and all above it were never written, and need not be read. */
static inline int root_touched(const struct heap *h, uint32_t slot)
{
    return slot < load_acquire(&h->header->root_top); /* [RT3] */
}

/* The reference of a root: 0, -ENOENT, or -EAGAIN when its bucket is being written (and stays so if the daemon died inside:
 * it is put right by its successor). Any process. At most ROOT_CHAIN steps. */
int root_lookup(const struct heap *h, const char *name, uint64_t *ret_ref);

/* Daemon: the slot that holds `name` now, or -ENOENT; the slot to put it in, or -ENOSPC: none is free, or its bucket has as
 * many roots, of this user or in all, as it may. */
int64_t root_find(const struct heap *h, const char *name);
int64_t root_find_free(const struct heap *h, const char *name, uint32_t uid);

/* Daemon: writes a slot that one of these has told; ref 0 removes. The same call may be repeated. die: the bucket's seq is
 * odd: readers say -EAGAIN; root_repair() makes it even, and the root is whole or not there: ref is written last when a name
 * appears, first when it goes. */
void root_write(struct heap *h, uint32_t slot, const char *name, uint64_t ref, uint32_t uid);

/* Daemon, at its start: chains without those that have no reference, and the list of free slots. */
void root_repair(struct heap *h);

/* NULL, or what is wrong with a slot. */
const char *root_check(const struct heap *h, uint32_t slot);

#endif
