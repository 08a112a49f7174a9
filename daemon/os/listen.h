/* The socket that clients connect to, as a file: made here, or a service manager's.
 *
 * A file is known by its device and inode, never by its name alone: whatever stands at the path and is not the file that was
 * made here is left alone. A cleaner may remove the file, or the lock beside it, while the daemon lives; listen_look() sees
 * that and makes both again, the lock first; a manager's too, where this process may: a service that runs as another user
 * than root in a directory of root's may not, and says what to do. What it is stands in memory that the keeper shares: who is last removes it. */
#ifndef DAEMON_LISTEN_H
#define DAEMON_LISTEN_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct listen_file {
    uint64_t device, inode; /* 0, 0: none */
};

struct listener {
    int fd;                   /* listening; -1: none */
    int lock_fd;              /* -1: a manager's socket has no lock */
    bool handed;              /* by a service manager: its file is not ours, unless it was made again */
    const char *path;
    mode_t mode;
    int64_t uid, gid;         /* of the file; -1: the process's */
    struct listen_file own;   /* of fd: a daemon that a keeper starts has the first one's, though a later one made another */
    struct listen_file *file; /* the last that was made. sync: the keeper's process reads it after the daemon's has ended */
    char noted[64];           /* what the lock says */
    bool told;                /* that something else stands there; until it is put right */
};

/* Makes, locks and listens on `path`: 0, or a negative errno after one line on standard error. */
int listen_open(struct listener *l, const char *path, mode_t mode, int64_t gid);

/* Takes over a manager's listening socket. */
void listen_adopt(struct listener *l, int fd, const char *path);

/* Looks whether the file and the lock are there: a descriptor that is to take the place of l->fd (listen_replace()), or -1:
 * nothing changes. One line in the log when something is wrong, and one when it is put right. */
int listen_look(struct listener *l);

/* l->fd becomes what `fd` was, under the same number: nothing may wait for it meanwhile. */
void listen_replace(struct listener *l, int fd);

/* Is a place of the address space that of a heap which a living daemon with a socket in the same directory has noted? And: notes
 * that of this one, in the lock beside the socket. */
bool listen_base_is_taken(const struct listener *l, uint64_t base, uint64_t bytes);
void listen_note_base(struct listener *l, uint64_t base, uint64_t bytes);

/* Removes the socket's file if it is ours. Any process that has the listener. */
void listen_remove(const struct listener *l);

#endif
