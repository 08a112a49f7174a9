/* Transactions, as far as allocation knows them: which are open, what each has, and what is in doubt of its commit. Beginning,
 * committing and aborting is own/tx.c, with the rules of the log.
 * Memory: private, a transaction's; a forked child forgets its parent's. sync: see the fields; tx_lock is taken last, and
 * nothing is called with it. */
#ifndef CLIENT_TX_LOG_H
#define CLIENT_TX_LOG_H

#include "client/heap.h"
#include "shm/root.h"

struct log {
    struct arena_slot *slots;
    size_t count, capacity;
};

struct transaction {
    uint16_t tag;
    bool in_doubt;           /* a commit was not answered: it may have been done. In tx_late: its thread has ended */
    bool closed;             /* to objects that other threads move: while a commit is under way or in doubt. sync: tx_lock */
    struct log log;          /* in the order of allocation, until it is compacted. sync: its thread */
    struct log moved;        /* objects of it that other threads have moved. sync: tx_lock */
    uint64_t freed;          /* of its objects since the log was compacted, by its thread; */
    uint64_t freed_by_others; /* what a->tx_freed_by_others was then */
    uint64_t expected, desired; /* of the commit in doubt */
    char root[ROOT_NAME];
    struct transaction *next; /* of tx_open or tx_late. sync: tx_lock */
};

/* A transaction is open on the thread: tx_room() before an object is taken, 0 or why there is none; tx_log() after. */
void tx_init(struct arena *a);
void tx_fini(struct arena *a);
int tx_room(struct mcache *mc);
void tx_log(struct mcache *mc, void *object, uint16_t *word);
void tx_freed(struct arena *a, const struct mcache *mc, unsigned tag); /* an object of an open one is it no more */
int tx_adopt(struct mcache *mc, void *object); /* an object of the process's becomes the open one's; or there is none */
/* An object of the process's, so far, becomes that of the open transaction `tag` of any thread: 0, -ENOMEM, -EBUSY it is
 * being committed, or that is in doubt. */
int tx_move(struct arena *a, unsigned tag, void *object, uint16_t *word);
/* What is allocated between the two is the process's own, whatever transaction is open. */
struct transaction *tx_suspend(struct mcache *mc);
void tx_resume(struct mcache *mc, struct transaction *tx);
bool tx_is_mine(const struct arena *a, unsigned tag);

/* The open ones' list, and that of those whose words are turned later: tx_open, tx_late. */
void tx_link(struct arena *a, struct transaction **list, struct transaction *tx);
void tx_unlink(struct arena *a, struct transaction *tx); /* of the open ones */
void tx_set_closed(struct arena *a, struct transaction *tx, bool closed);
void tx_free(struct transaction *tx);
bool tx_is_live(const struct arena *a, unsigned tag, const struct arena_slot *s); /* the entry's object is still the transaction's */

/* What became of a commit that was not answered: 0 it was not done and will not be, -EALREADY it was, -ENOTCONN nobody can
 * say yet. A connection anew ends the old one, and with it what was still to be read there. */
int tx_settle(struct arena *a, struct transaction *tx, bool waits);

#endif
