/* Tags: who is meant by the number in a state word. A tag is a client's or a transaction's; the daemon alone writes the
 * table, each entry's state last. A tag is used again only after the pass has found no word that bears it. */
#ifndef SHM_TAG_H
#define SHM_TAG_H

#include "shm/layout.h"

static inline enum tag_state tag_state(const struct heap *h, unsigned tag)
{
    return (enum tag_state)load_acquire(&h->tags[tag].state); /* [TG1] */
}

/* Words OWNED by it count as SHARED. */
static inline int tag_is_committed(const struct heap *h, unsigned tag)
{
    enum tag_state state = tag_state(h, tag);
    return state == TAG_TX_COMMITTED || state == TAG_TX_PUBLISHING;
}

/* Is it in that state, and client `owner`'s, at one moment? The state first, then the owner, which may be of a later life of
 * the tag; then the state again: it had left the one before the owner was written. */
static inline int tag_is_of(const struct heap *h, unsigned tag, enum tag_state state, unsigned owner)
{
    if (tag_state(h, tag) != state || load_relaxed(&h->tags[tag].owner) != owner) /* [TG1] */
        return 0;
    fence_acquire(); /* [TG2] */
    return load_relaxed(&h->tags[tag].state) == (uint32_t)state;
}

/* The client that a tag stands for: a transaction's owner, else itself. Not what decides anything. */
static inline unsigned tag_client(const struct heap *h, unsigned tag)
{
    unsigned owner = tag_state(h, tag) >= TAG_TX ? load_relaxed(&h->tags[tag].owner) : 0; /* [TG1] */
    return owner ? owner : tag;
}

/* Daemon only. The fields first, the state last. die: TAG_FREE still, or whole. */
void tag_write(struct heap *h, unsigned tag, const struct tag *value);
static inline void tag_set_state(struct heap *h, unsigned tag, enum tag_state state)
{
    store_release(&h->tags[tag].state, (uint32_t)state); /* [TG1] */
}

/* Do two entries name one process? The inodes tell where both are known, else pid and start time. */
static inline int tag_same_process(const struct tag *a, const struct tag *b)
{
    if (a->inode && b->inode)
        return a->inode == b->inode;
    return a->pid && a->pid == b->pid && a->start_time && a->start_time == b->start_time;
}

/* NULL, or what is wrong with the entry (invariant 3's other half). O(1). */
const char *tag_check(const struct heap *h, unsigned tag);

#endif
