/* Pidfds that outlive the daemon: of processes that the next one could not open by pid. */
#ifndef DAEMON_KEPT_H
#define DAEMON_KEPT_H

#include <stdbool.h>
#include <stdint.h>

/* Once, before the keeper starts a daemon: 0 or a negative errno. Without it nothing is kept. */
int kept_open(void);

/* Under a service manager: what is kept is in its store, under this name; from the first pidfd on. The two descriptors that it
 * has stored are handed over one by one, in any order. */
#define KEPT_NAME "peers"
void kept_by_manager(void);
void kept_adopt(int fd);

bool kept_is_on(void);

/* The pidfd of the process of this inode, which is the caller's from here on; -1: none was kept. */
int kept_take(uint64_t inode);

/* After a start: what nobody has taken is closed. */
void kept_drop_rest(void);

/* Keeps a copy. What is not kept for lack of room only makes its client one that cannot be told after a restart. */
void kept_add(uint64_t inode, int pidfd);

#endif
