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

/* Daemon only. The fields first, the state last. die: TAG_FREE still, or whole. */
void tag_write(struct heap *h, unsigned tag, const struct tag *value);
static inline void tag_set_state(struct heap *h, unsigned tag, enum tag_state state)
{
    store_release(&h->tags[tag].state, (uint32_t)state); /* [TG1] */
}

/* NULL, or what is wrong with the entry (invariant 3's other half). O(1). */
const char *tag_check(const struct heap *h, unsigned tag);

#endif
