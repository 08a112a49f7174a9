/* The redo record: the one update of the map that touches two places becomes one. It moves a root and, as one with it,
 * commits the transaction or notes the client's request as done.
 *
 *     redo_begin()      the fields, then `valid`      from here on all of it is done, whoever dies
 *     tag_set_state(), root_write(), tag_set_done()   each may be repeated
 *     redo_end()        `valid` is 0
 *
 * A daemon that finds the record valid at its start does all three again. sync: daemon. */
#ifndef SHM_REDO_H
#define SHM_REDO_H

#include <string.h>

#include "shm/layout.h"

/* die: before `valid` nothing has happened; behind it all of it has, or will have before the next daemon serves anybody. */
static inline void redo_begin(struct heap *h, uint16_t tx, uint16_t client, uint32_t request, uint32_t slot, const char *name,
                              uint64_t ref, uint32_t uid)
{
    struct redo *redo = &h->header->redo;
    redo->tag = tx;
    redo->client = client;
    redo->request = request;
    redo->root_slot = slot;
    redo->root_uid = uid;
    redo->root_ref = ref;
    memset(redo->root_name, 0, ROOT_NAME);
    memcpy(redo->root_name, name, strnlen(name, ROOT_NAME - 1));
    store_release(&redo->valid, 1); /* [RD1] */
}

/* die: the record is applied once more, or not. */
static inline void redo_end(struct heap *h) { store_release(&h->header->redo.valid, 0); } /* [RD1] */

/* The record of an update that was cut short; NULL: there is none. */
static inline const struct redo *redo_pending(const struct heap *h)
{
    const struct redo *redo = &h->header->redo;
    return load_acquire(&redo->valid) ? redo : NULL; /* [RD1] */
}

#endif
