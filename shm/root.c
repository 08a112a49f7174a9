#include "shm/root.h"

#include <errno.h>
#include <string.h>

int root_name_check(const char *name)
{
    if (!name)
        return -EINVAL;
    size_t length = strnlen(name, ROOT_NAME);
    if (length == 0 || length >= ROOT_NAME)
        return -EINVAL;
    for (size_t i = 0; i < length; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return -EINVAL;
    return 0;
}

uint32_t root_hash(const char *name) /* FNV-1a, with a final mix: names often differ in their last digits only */
{
    uint32_t hash = 2166136261u;
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * 16777619u;
    hash ^= hash >> 16;
    hash *= 0x85ebca6bu;
    return hash ^ hash >> 13;
}

static void copy_name(char *out, const char *slot_name)
{
    uint64_t *to = (uint64_t *)(void *)out;
    const uint64_t *from = (const uint64_t *)(const void *)slot_name;
    for (int i = 0; i < ROOT_NAME / 8; i++)
        to[i] = load_relaxed(&from[i]);
    out[ROOT_NAME - 1] = 0;
}

int root_lookup(const struct heap *h, const char *name, uint64_t *ret_ref)
{
    uint32_t slot = root_hash(name) % h->root_slots;
    for (uint32_t probes = 0; probes < h->root_slots; probes++) {
        const struct root *root = &h->roots[slot];
        if (!root_touched(h, slot))
            return -ENOENT;
        _Alignas(8) char seen_name[ROOT_NAME];
        uint32_t seq = load_acquire(&root->seq); /* [RT1] */
        uint64_t ref = load_relaxed(&root->ref);
        uint32_t used = load_relaxed(&root->used);
        copy_name(seen_name, root->name);
        fence_acquire(); /* [RT1] */
        if ((seq & 1) || load_relaxed(&root->seq) != seq)
            return -EAGAIN;
        if (!used)
            return -ENOENT;
        if (ref && strcmp(seen_name, name) == 0) {
            *ret_ref = ref;
            return 0;
        }
        slot = slot + 1 == h->root_slots ? 0 : slot + 1;
    }
    return -ENOENT;
}

int64_t root_find(const struct heap *h, const char *name)
{
    uint32_t slot = root_hash(name) % h->root_slots;
    for (uint32_t probes = 0; probes < h->root_slots; probes++) {
        const struct root *root = &h->roots[slot];
        if (!root_touched(h, slot) || !root->used)
            break;
        if (root->ref && strncmp(root->name, name, ROOT_NAME) == 0)
            return slot;
        slot = slot + 1 == h->root_slots ? 0 : slot + 1;
    }
    return -ENOENT;
}

int64_t root_find_free(const struct heap *h, const char *name)
{
    uint32_t slot = root_hash(name) % h->root_slots;
    for (uint32_t probes = 0; probes < h->root_slots; probes++) {
        if (!root_touched(h, slot) || !h->roots[slot].ref)
            return slot;
        slot = slot + 1 == h->root_slots ? 0 : slot + 1;
    }
    return -ENOSPC;
}

void root_write(struct heap *h, uint32_t slot, const char *name, uint64_t ref, uint32_t uid)
{
    struct root *root = &h->roots[slot];
    uint64_t *touched = &h->root_touched[slot / ROOT_BLOCK / 64];
    store_release(touched, *touched | 1ULL << slot / ROOT_BLOCK % 64);
    uint32_t seq = root->seq;
    store_relaxed(&root->seq, seq | 1);
    fence_release(); /* [RT1] */
    if (ref && (!root->ref || strncmp(root->name, name, ROOT_NAME) != 0)) {
        _Alignas(8) char padded[ROOT_NAME] = {0};
        memcpy(padded, name, strnlen(name, ROOT_NAME - 1));
        for (int i = 0; i < ROOT_NAME / 8; i++)
            store_relaxed(&((uint64_t *)(void *)root->name)[i], ((uint64_t *)(void *)padded)[i]);
        store_relaxed(&root->uid, uid);
        store_relaxed(&root->used, 1);
    }
    store_relaxed(&root->ref, ref);
    store_release(&root->seq, (seq | 1) + 1); /* [RT1] */
    /* a removed slot before one that was never used ends searches again, and so do those before it */
    for (uint32_t n = 0; !ref && n < h->root_slots; n++) {
        uint32_t next = slot + 1 == h->root_slots ? 0 : slot + 1;
        if ((root_touched(h, next) && h->roots[next].used) || !root_touched(h, slot) || h->roots[slot].ref || !h->roots[slot].used)
            break;
        store_release(&h->roots[slot].used, 0);
        slot = slot ? slot - 1 : h->root_slots - 1;
    }
    fetch_add_release(&h->root_gens[root_hash(name) % ROOT_GENS], 1); /* [RT2]: root_wait reads it before the root */
}

void root_repair(struct heap *h)
{
    for (uint32_t slot = 0; slot < h->root_slots; slot++) {
        struct root *root = &h->roots[slot];
        if (root_touched(h, slot) && (root->seq & 1))
            store_release(&root->seq, root->seq + 1);
    }
}

const char *root_check(const struct heap *h, uint32_t slot)
{
    const struct root *root = &h->roots[slot];
    if (!root_touched(h, slot))
        return NULL;
    if (root->seq & 1)
        return "left in the middle of an update";
    if (root->ref && !root->used)
        return "a reference in an unused slot";
    if (root->ref >= h->heap_bytes)
        return "refers beyond the heap";
    if (root->ref && root_name_check(root->name) < 0)
        return "a name that is not allowed";
    return NULL;
}
