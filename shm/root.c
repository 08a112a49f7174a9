#include "shm/root.h"

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "shm/fnv.h"

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

uint32_t root_hash(const char *name) /* FNV-1a with a final mix: names often differ in their last digits only */
{
    uint32_t hash = fnv_text(name);
    hash ^= hash >> 16;
    hash *= 0x85ebca6bu;
    return hash ^ hash >> 13;
}

/* SipHash with one round a word and three at the end, of a name's 64 bytes: 8 words, so its length needs no place. */
static inline uint64_t rotate(uint64_t x, int by) { return x << by | x >> (64 - by); }

static inline void sip_round(uint64_t v[4])
{
    v[0] += v[1], v[1] = rotate(v[1], 13) ^ v[0], v[0] = rotate(v[0], 32);
    v[2] += v[3], v[3] = rotate(v[3], 16) ^ v[2];
    v[0] += v[3], v[3] = rotate(v[3], 21) ^ v[0];
    v[2] += v[1], v[1] = rotate(v[1], 17) ^ v[2], v[2] = rotate(v[2], 32);
}

static uint64_t keyed_hash(const uint64_t key[2], const uint64_t words[ROOT_NAME / 8])
{
    uint64_t v[4] = {key[0] ^ 0x736f6d6570736575ULL, key[1] ^ 0x646f72616e646f6dULL, key[0] ^ 0x6c7967656e657261ULL,
                     key[1] ^ 0x7465646279746573ULL};
    for (int i = 0; i < ROOT_NAME / 8; i++) {
        v[3] ^= words[i];
        sip_round(v);
        v[0] ^= words[i];
    }
    v[2] ^= 0xff;
    sip_round(v);
    sip_round(v);
    sip_round(v);
    return v[0] ^ v[1] ^ v[2] ^ v[3];
}

/* A name as it stands in a slot: eight bytes at a time, zeros behind its end. */
struct text {
    uint64_t eight[ROOT_NAME / 8];
};

static struct text text_of(const char *name)
{
    struct text text = {{0}};
    memcpy(text.eight, name, strnlen(name, ROOT_NAME - 1));
    return text;
}

static uint32_t bucket_of(const struct heap *h, const struct text *name)
{
    return (uint32_t)(keyed_hash(h->header->root_key, name->eight) % h->root_slots);
}

uint32_t root_bucket(const struct heap *h, const char *name)
{
    struct text text = text_of(name);
    return bucket_of(h, &text);
}

static bool bucket_touched(const struct heap *h, uint32_t bucket)
{
    uint32_t block = bucket / ROOT_BLOCK;
    return load_acquire(&h->root_touched[block / 64]) >> block % 64 & 1; /* [RT3] */
}

static bool has_name(const struct root *root, const struct text *name)
{
    const uint64_t *eights = (const uint64_t *)(const void *)root->name;
    for (int i = 0; i < ROOT_NAME / 8; i++)
        if (load_relaxed(&eights[i]) != name->eight[i])
            return false;
    return true;
}

int root_lookup(const struct heap *h, const char *name, uint64_t *ret_ref)
{
    struct text text = text_of(name);
    uint32_t at = bucket_of(h, &text);
    if (!bucket_touched(h, at))
        return -ENOENT;
    const struct root_bucket *bucket = &h->root_buckets[at];
    uint32_t seq = load_acquire(&bucket->seq), next = load_relaxed(&bucket->first); /* [RT1] */
    uint64_t ref = 0;
    for (unsigned n = 0; next && next <= h->root_slots && n < ROOT_CHAIN && !ref; n++) {
        const struct root *root = &h->roots[next - 1];
        if (has_name(root, &text))
            ref = load_relaxed(&root->ref);
        next = load_relaxed(&root->next);
    }
    fence_acquire(); /* [RT1] */
    if ((seq & 1) || load_relaxed(&bucket->seq) != seq)
        return -EAGAIN;
    if (!ref)
        return -ENOENT;
    *ret_ref = ref;
    return 0;
}

/* ---- the daemon -------------------------------------------------------------------------------------------------------------- */

/* Where in its chain the number of this slot stands; NULL: it is not in it. */
static uint32_t *link_to(const struct heap *h, uint32_t bucket, uint32_t slot)
{
    if (!bucket_touched(h, bucket))
        return NULL;
    uint32_t *link = &h->root_buckets[bucket].first;
    for (unsigned n = 0; *link && *link <= h->root_slots && n <= ROOT_CHAIN; n++) {
        if (*link == slot + 1)
            return link;
        link = &h->roots[*link - 1].next;
    }
    return NULL;
}

int64_t root_find(const struct heap *h, const char *name)
{
    struct text text = text_of(name);
    uint32_t at = bucket_of(h, &text);
    uint32_t next = bucket_touched(h, at) ? h->root_buckets[at].first : 0;
    for (unsigned n = 0; next && next <= h->root_slots && n < ROOT_CHAIN; n++) {
        const struct root *root = &h->roots[next - 1];
        if (root->ref && has_name(root, &text))
            return next - 1;
        next = root->next;
    }
    return -ENOENT;
}

int64_t root_find_free(const struct heap *h, const char *name, uint32_t uid)
{
    uint32_t at = root_bucket(h, name), users = 0, all = 0;
    uint32_t next = bucket_touched(h, at) ? h->root_buckets[at].first : 0;
    for (; next && next <= h->root_slots && all < ROOT_CHAIN; all++) {
        users += h->roots[next - 1].uid == uid;
        next = h->roots[next - 1].next;
    }
    if (all >= ROOT_CHAIN || users >= ROOT_CHAIN_USER)
        return -ENOSPC;
    if (h->header->root_free)
        return h->header->root_free - 1;
    return h->header->root_top < h->root_slots ? (int64_t)h->header->root_top : -ENOSPC;
}

/* A slot leaves the free ones, for a chain. It is the first of them, or behind the last that was used; only after a death it
 * may stand elsewhere. */
static void take_slot(struct heap *h, uint32_t slot)
{
    struct map_header *header = h->header;
    if (slot >= header->root_top) {
        store_release(&header->root_top, slot + 1); /* [RT3] */
        return;
    }
    uint32_t *link = &header->root_free;
    for (uint32_t n = 0; *link && *link <= h->root_slots && n < h->root_slots; n++) {
        if (*link == slot + 1) {
            store_relaxed(link, h->roots[slot].next);
            return;
        }
        link = &h->roots[*link - 1].next;
    }
}

static void free_slot(struct heap *h, uint32_t slot)
{
    store_relaxed(&h->roots[slot].next, h->header->root_free);
    h->header->root_free = slot + 1;
}

static void link_slot(struct heap *h, uint32_t slot, uint32_t bucket, const struct text *name, uint32_t uid)
{
    struct root *root = &h->roots[slot];
    uint64_t *eights = (uint64_t *)(void *)root->name;
    take_slot(h, slot);
    for (int i = 0; i < ROOT_NAME / 8; i++)
        store_relaxed(&eights[i], name->eight[i]);
    store_relaxed(&root->uid, uid);
    store_relaxed(&root->next, h->root_buckets[bucket].first);
    store_relaxed(&root->used, 1);
    store_relaxed(&h->root_buckets[bucket].first, slot + 1);
}

void root_write(struct heap *h, uint32_t slot, const char *name, uint64_t ref, uint32_t uid)
{
    struct text text = text_of(name);
    uint32_t at = bucket_of(h, &text), block = at / ROOT_BLOCK;
    struct root *root = &h->roots[slot];
    struct root_bucket *bucket = &h->root_buckets[at];
    uint32_t *link = link_to(h, at, slot);
    if (!link && !ref) { /* it is removed already */
        fetch_add_release(&h->root_gens[root_hash(name) % ROOT_GENS], 1); /* [RT2] */
        return;
    }
    store_release(&h->root_touched[block / 64], h->root_touched[block / 64] | 1ULL << block % 64); /* [RT3] */
    uint32_t seq = bucket->seq;
    store_relaxed(&bucket->seq, seq | 1);
    fence_release(); /* [RT1] */
    if (!link)
        link_slot(h, slot, at, &text, uid);
    store_relaxed(&root->ref, ref);
    if (!ref) {
        store_relaxed(link, root->next);
        store_relaxed(&root->used, 0);
    }
    store_release(&bucket->seq, (seq | 1) + 1); /* [RT1] */
    if (!ref)
        free_slot(h, slot);
    fetch_add_release(&h->root_gens[root_hash(name) % ROOT_GENS], 1); /* [RT2]: root_wait reads it before the root */
}

/* A chain without those that have no reference, and no longer than it may be. */
static void repair_bucket(struct heap *h, struct root_bucket *bucket)
{
    uint32_t *link = &bucket->first;
    for (unsigned n = 0; *link && n <= ROOT_CHAIN; n++) {
        struct root *root = *link <= h->root_slots ? &h->roots[*link - 1] : NULL;
        if (!root)
            store_relaxed(link, 0);
        else if (root->ref)
            link = &root->next;
        else
            store_relaxed(link, root->next);
    }
    if (bucket->seq & 1)
        store_release(&bucket->seq, bucket->seq + 1); /* [RT1] */
}

void root_repair(struct heap *h)
{
    for (uint32_t at = 0; at < h->root_slots; at++)
        if (!bucket_touched(h, at))
            at |= ROOT_BLOCK - 1;
        else if (h->root_buckets[at].first || (h->root_buckets[at].seq & 1))
            repair_bucket(h, &h->root_buckets[at]);
    h->header->root_free = 0;
    for (uint32_t slot = h->header->root_top < h->root_slots ? h->header->root_top : h->root_slots; slot-- > 0;)
        if (!h->roots[slot].ref) {
            store_relaxed(&h->roots[slot].used, 0);
            free_slot(h, slot);
        }
}

const char *root_check(const struct heap *h, uint32_t slot)
{
    if (!root_touched(h, slot))
        return NULL;
    const struct root *root = &h->roots[slot];
    if (root->ref && !root->used)
        return "a reference in an unused slot";
    if (root->ref >= h->heap_bytes)
        return "refers beyond the heap";
    if (root->ref && root_name_check(root->name) < 0)
        return "a name that is not allowed";
    if (!root->ref)
        return NULL;
    uint32_t at = root_bucket(h, root->name);
    if (bucket_touched(h, at) && (h->root_buckets[at].seq & 1))
        return "left in the middle of an update";
    return link_to(h, at, slot) ? NULL : "not in the chain of its name";
}
