/* Forks: what a process has that its parent had made. See fork.c.
 * Memory: a page that a fork wipes. sync: atomic [FK1] [FK2]. */
#ifndef CLIENT_FORK_H
#define CLIENT_FORK_H

#include <stdbool.h>
#include <stdint.h>

struct arena;

/* Looked at by every slow path before a lock, a descriptor or a list is used. */
bool forked(const struct arena *a); /* what is here is the parent's: arena_reattach() first */
uint32_t fork_generation(void);     /* of this process; as forked(), for all that is not a heap's */
bool fork_wipes(void);              /* MADV_WIPEONFORK works here */
uint32_t process_image(void);       /* other after each exec; never 0 */
uint32_t process_copy(void);        /* of the library, in this program; never 0 */
void fork_start(void);              /* before main() */

#endif
