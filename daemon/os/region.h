/* The regions as files: three memfds, or three files in a directory, mapped by the daemon. A region outlives a daemon by
 * its descriptor (systemd's fd store, a keeper) or by its file. Backing and returning memory is a system call on the
 * descriptor, made by worker threads. */
#ifndef DAEMON_REGION_H
#define DAEMON_REGION_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/layout.h"

enum { REGION_HEAP, REGION_MAP, REGION_STATE, REGION_COUNT };
extern const char *const region_names[REGION_COUNT]; /* "heap", "map", "state": of files and stored descriptors */

struct regions {
    int fd[REGION_COUNT];
    int read_only_fd[REGION_COUNT]; /* the same, opened O_RDONLY, for clients */
    uint64_t bytes[REGION_COUNT];
    void *mapped[REGION_COUNT]; /* [REGION_HEAP] is NULL: the daemon does not map objects */
    char *directory;            /* NULL: memfds */
    int directory_fd;           /* files are opened and removed in it, whatever its name leads to by now */
    uint64_t state_backed_to;   /* units below it have memory behind them */
    uint64_t sigbus_seen;        /* sigbus_hits() when the state region was last mended */
};

/* Opens a directory for the regions' files: a descriptor, or a negative errno with one line in ret_why (512 bytes). It and
 * each file in it are trusted if they are owned by root or by this user, nobody else may write to them, and their name is
 * no link; a file has no second name. -EPERM: they are not. */
int regions_directory(const char *dir, char *ret_why);

/* Makes new regions of g's sizes. dir NULL: memfds. 0 or a negative errno, with one line in ret_why (512 bytes). */
int regions_create(struct regions *r, const struct geometry *g, const char *dir, char *ret_why);

/* Takes over regions by descriptor, or from the files in dir: 0, -ENOENT (there are none), -EUCLEAN (not a heap),
 * -EPERM (somebody else could have made or written them). */
int regions_adopt(struct regions *r, const int fd[REGION_COUNT], const char *dir, struct geometry *ret_g, char *ret_why);

void regions_close(struct regions *r);
void regions_remove(struct regions *r); /* the files, if there are any */
int regions_reset(const char *dir, char *ret_why); /* the same for a directory: 0, or an error */
void regions_remove_made(struct regions *r); /* after regions_create() failed: the files that it had made */

/* Memory behind a part of a region: 0, -ENOMEM. Any thread. */
int region_back(const struct regions *r, int which, uint64_t at, uint64_t bytes);
int region_return(const struct regions *r, int which, uint64_t at, uint64_t bytes);

/* Files that a client has cut off or punched: they have their size again, and the state region's memory and mapping. What
 * was there reads as zeros. 1: something was wrong (the heap's pages are to be backed again), 0: nothing; or an error. */
int regions_mend(struct regions *r, const struct heap *h);
int regions_back_again(const struct regions *r, const struct heap *h); /* the heap's pages that are not cold. Any thread */

/* Bytes that a region holds now. */
uint64_t region_held(const struct regions *r, int which);

/* Pages (of PAGE_SIZE) that the machine and every cgroup above us would give now, less `reserve_bytes`. v1 and v2. */
uint64_t memory_allowance(uint64_t reserve_bytes, const char *dir);

#endif
