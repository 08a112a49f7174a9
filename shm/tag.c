#include "shm/tag.h"

#include <string.h>

void tag_write(struct heap *h, unsigned tag, const struct tag *value)
{
    struct tag *t = &h->tags[tag];
    fence_release(); /* [TG2] the tag's life before this one is over when a field is written */
    store_relaxed(&t->owner, value->owner);
    store_relaxed(&t->read_only, value->read_only);
    store_relaxed(&t->gc_mode, value->gc_mode);
    store_relaxed(&t->pins, value->pins);
    store_relaxed(&t->pid, value->pid);
    t->uid = value->uid;
    store_relaxed(&t->done, value->done);
    t->image = value->image;
    t->copy = value->copy;
    t->start_time = value->start_time;
    t->since_s = value->since_s;
    t->inode = value->inode;
    memcpy(t->command, value->command, sizeof t->command);
    tag_set_state(h, tag, (enum tag_state)value->state);
}

const char *tag_check(const struct heap *h, unsigned tag)
{
    const struct tag *t = &h->tags[tag];
    uint32_t state = load_acquire(&t->state); /* [TG1] */
    if (state >= TAG_STATE_COUNT)
        return "state out of range";
    if (state == TAG_TX || state == TAG_TX_COMMITTED) {
        unsigned owner = load_relaxed(&t->owner);
        if (owner == 0 || owner >= TAG_COUNT)
            return "a transaction of nobody";
        if (tag_state(h, owner) != TAG_CLIENT)
            return "a transaction of a client that is gone";
    }
    return NULL;
}
