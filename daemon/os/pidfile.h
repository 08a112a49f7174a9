/* A file that holds the pid that is to be signalled: the keeper's, or the daemon's if it has none. Known by device and inode, as
 * the socket's: one that somebody else has put in its place is left alone. */
#ifndef DAEMON_PIDFILE_H
#define DAEMON_PIDFILE_H

#include <stdint.h>

struct pid_file {
    const char *path; /* "": none */
    uint64_t device, inode;
};

/* Writes this process's pid, as a whole: 0, or a negative errno after one line on standard error. A file that is there is
 * replaced; a link, a device or a directory is refused. */
int pid_file_write(struct pid_file *f, const char *path);
void pid_file_remove(const struct pid_file *f);

#endif
