/* Tickets: what a client has given up is not done later.
 *
 * A request that changes something is sent with an id. If no answer comes in time the client takes the request back, by a
 * word that only it and the daemon write, before it tells its caller that nothing was done:
 *
 *     client                              daemon
 *     ticket_cancel(id)                   ticket_take(id)     right before the first store that has an effect
 *       won:  it was not done, and          won:  it is done now; then the map's tag.done = id
 *             will never be                 lost: dropped without an effect or an answer
 *       lost: it is being done, or was:
 *             the map tells when it was
 *
 *        idle -- ticket_cancel, client --> CANCELED(id)      idle: any word that does not name this id
 *          \---- ticket_take, daemon ----> TAKEN(id)
 *
 * So a daemon that stands still for an hour between any two steps and then goes on executes nothing that its client has
 * answered for. Requests that a client never cancels need no store of it. Ids of one client are not used twice.
 *
 * A client that closes the heap writes TICKET_GOODBYE before it says BYE: if nobody reads that, its hanging up means the same,
 * also to a daemon that is started later. From then on nothing that it had asked for is done.
 * sync: CAS of both [TK1]. What a hostile client writes here concerns its own requests, and is a permission, never believed.
 */
#ifndef SHM_TICKET_H
#define SHM_TICKET_H

#include "shm/layout.h"

#define TICKET_CANCELED(id) ((uint64_t)(id) << 2 | 1)
#define TICKET_TAKEN(id)    ((uint64_t)(id) << 2 | 2)
#define TICKET_GOODBYE      ((uint64_t)3) /* it hangs up for good */

/* Client: true: request `id` was not done and never will be. False: the daemon was faster, see tag.done.
 * die: the request may be done or not, as if it had been sent and not waited for. */
static inline int ticket_cancel(const struct heap *h, unsigned tag, uint32_t id)
{
    uint64_t *ticket = &h->tickets[tag], seen = load_acquire(ticket); /* [TK1] */
    while (seen != TICKET_TAKEN(id))
        if (cas_acq_rel(ticket, &seen, TICKET_CANCELED(id))) /* [TK1] */
            return 1;
    return 0;
}

/* Daemon: the tag is given to a new client, whose ids begin anew. die: as before. */
static inline void ticket_reset(const struct heap *h, unsigned tag) { store_release(&h->tickets[tag], 0); } /* [TK1] */

/* Daemon: may request `id` be done? One that was taken may be, again: a client repeats with a new id.
 * die: taken and without an effect: the client learns from tag.done, and repeats it. */
static inline int ticket_take(const struct heap *h, unsigned tag, uint32_t id)
{
    uint64_t *ticket = &h->tickets[tag], seen = load_acquire(ticket); /* [TK1] */
    while (seen != TICKET_CANCELED(id) && seen != TICKET_GOODBYE)
        if (cas_acq_rel(ticket, &seen, TICKET_TAKEN(id))) /* [TK1] */
            return 1;
    return 0;
}

/* Client: whoever finds its connection gone takes back what it has. die: as if it had died. */
static inline void ticket_goodbye(const struct heap *h, unsigned tag) { store_release(&h->tickets[tag], TICKET_GOODBYE); } /* [TK1] */

/* Daemon: of a client whose connection is gone. Who writes it for another could as well write that one's state words. */
static inline int ticket_is_goodbye(const struct heap *h, unsigned tag)
{
    return load_acquire(&h->tickets[tag]) == TICKET_GOODBYE; /* [TK1] */
}

#endif
