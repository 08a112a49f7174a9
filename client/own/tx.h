/* Transactions: begun, committed and aborted by the program, by arena.h. See tx.c; what each has is in alloc/tx_log.h.
 * Memory: private, a transaction's. sync: its thread's, but for its lists. */
#ifndef CLIENT_TX_H
#define CLIENT_TX_H

#include <stdbool.h>
#include <stdint.h>

struct arena;
struct mcache;

bool tx_turn_late(struct arena *a); /* true: some still wait for the end of a snapshot */
void tx_thread_exit(struct mcache *mc);
int tx_take_tag(struct arena *a, uint16_t *ret);

#endif
