/* Named roots: a hash table in the map, open addressing, a seqlock for each entry. The daemon alone writes it; a get is
 * a few loads and no round trip. Waiters sleep on a futex word of the map chosen by the name's hash. */
#ifndef SHM_ROOT_H
#define SHM_ROOT_H

#include "shm/layout.h"

/* 0 for 1..63 bytes without control characters, else -EINVAL. */
int root_name_check(const char *name);

uint32_t root_hash(const char *name);

/* 0: this slot and its block were never written, and need not be read. */
static inline int root_touched(const struct heap *h, uint32_t slot)
{
    uint32_t block = slot / ROOT_BLOCK;
    return (load_relaxed(&h->root_touched[block / 64]) >> block % 64 & 1) != 0;
}

/* The reference of a root: 0, -ENOENT, or -EAGAIN when an entry on the way is being written (and stays so if the daemon
 * died inside: it is put right by its successor). Any process. O(1) expected, bounded by the table's size. */
int root_lookup(const struct heap *h, const char *name, uint64_t *ret_ref);

/* Daemon: the slot that holds `name` now, or -ENOENT; the slot to put it in, or -ENOSPC. */
int64_t root_find(const struct heap *h, const char *name);
int64_t root_find_free(const struct heap *h, const char *name);

/* Daemon: writes a slot; ref 0 removes. die: seq is odd: readers say -EAGAIN; root_repair() makes it even, and the slot
 * is empty or whole: ref is written last when a name appears, first when it goes. */
void root_write(struct heap *h, uint32_t slot, const char *name, uint64_t ref, uint32_t uid);
void root_repair(struct heap *h);

/* NULL, or what is wrong with a slot. O(1). */
const char *root_check(const struct heap *h, uint32_t slot);

#endif
