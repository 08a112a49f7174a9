/* FNV-1a, 32 bits: a hash of what nobody chooses against us; roots' buckets have one with a key (shm/root.c). */
#ifndef SHM_FNV_H
#define SHM_FNV_H

#include <stdint.h>

#define FNV_START 2166136261u

static inline uint32_t fnv_add(uint32_t hash, uint32_t value) { return (hash ^ value) * 16777619u; }

static inline uint32_t fnv_text(const char *text)
{
    uint32_t hash = FNV_START;
    for (; *text; text++)
        hash = fnv_add(hash, (unsigned char)*text);
    return hash;
}

#endif
