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

/* What of an entry is read at one moment: its first 8 bytes, by one load. */
struct tag_head {
    uint32_t state;
    uint16_t owner;
    uint8_t read_only, gc_mode;
};
_Static_assert(sizeof(struct tag_head) == 8 && offsetof(struct tag, state) == 0 && sizeof(struct tag) % 8 == 0 &&
                   offsetof(struct tag, owner) == offsetof(struct tag_head, owner),
               "an entry begins as a head does, and at a multiple of 8");

static inline struct tag_head tag_head(const struct heap *h, unsigned tag)
{
    struct tag_head head;
    uint64_t both = load_acquire((const uint64_t *)(const void *)&h->tags[tag]); /* [TG1] [TG2] */
    __builtin_memcpy(&head, &both, sizeof head);
    return head;
}

/* Is it in that state, and client `owner`'s, at one moment? Of two loads the second could be of a later life. */
static inline int tag_is_of(const struct heap *h, unsigned tag, enum tag_state state, unsigned owner)
{
    struct tag_head head = tag_head(h, tag);
    return head.state == (uint32_t)state && head.owner == owner;
}

/* The client that a tag stands for: a transaction's owner, else itself. Not what decides anything. */
static inline unsigned tag_client(const struct heap *h, unsigned tag)
{
    struct tag_head head = tag_head(h, tag);
    return head.state >= TAG_TX && head.owner ? head.owner : tag;
}

/* The last shortage that a client is to answer: of the heap's memory, or of its user's limit (or that of a user
 * whose number falls together with its own). */
static inline uint32_t tag_shortage(const struct heap *h, unsigned tag)
{
    uint32_t all = load_relaxed(&h->header->shortages);
    uint32_t own = load_relaxed(&h->header->user_shortages[h->tags[tag].uid % USER_SHORTAGES]);
    return (int32_t)(own - all) > 0 ? own : all;
}

/* The functions below are the daemon's alone.
 *
 * No tag at or above `top` was ever used. die: a tag that is TAG_FREE. */
static inline void tag_raise_top(struct heap *h, unsigned top) { store_release(&h->header->tag_top, top); } /* [TT1] */

/* The fields first, the state last. die: TAG_FREE still, or whole; of tag_set_state():
 * the tag's words are what its state says from then on, to the pass as well. */
void tag_write(struct heap *h, unsigned tag, const struct tag *value);
static inline void tag_set_state(struct heap *h, unsigned tag, enum tag_state state)
{
    store_release(&h->tags[tag].state, (uint32_t)state); /* [TG1] */
}

/* The client's request `id` has taken effect. die: it was done, and its client is told so; before: see shm/ticket.h. */
static inline void tag_set_done(struct heap *h, unsigned tag, uint32_t id)
{
    store_release(&h->tags[tag].done, id); /* [TK2] what was done is seen by who sees this */
}

/* 0: the pid is not one of header->pid_namespace. die: before or after; who looks at a pid compares its start time. */
static inline void tag_set_pid(struct heap *h, unsigned tag, uint32_t pid) { store_relaxed(&h->tags[tag].pid, pid); }

/* What the client declares to the collector. die: as if the request had been answered. */
static inline void tag_set_gc_mode(struct heap *h, unsigned tag, enum gc_mode mode) { store_relaxed(&h->tags[tag].gc_mode, (uint8_t)mode); }
static inline void tag_set_pins(struct heap *h, unsigned tag, uint64_t ref) { store_relaxed(&h->tags[tag].pins, ref); }

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
