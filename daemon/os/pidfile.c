#include "daemon/os/pidfile.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_beside(struct pid_file *f, char *unfinished)
{
    struct stat st;
    int rc = 0, fd = mkostemp(unfinished, O_CLOEXEC);
    if (fd < 0)
        return -errno;
    if (dprintf(fd, "%d\n", (int)getpid()) < 0 || fchmod(fd, 0644) < 0 || fstat(fd, &st) < 0 || rename(unfinished, f->path) < 0) {
        rc = -errno;
        unlink(unfinished);
    } else {
        f->device = st.st_dev;
        f->inode = st.st_ino;
    }
    close(fd);
    return rc;
}

int pid_file_write(struct pid_file *f, const char *path)
{
    char unfinished[4200];
    struct stat st;
    *f = (struct pid_file){.path = path};
    if (!*path)
        return 0;
    int rc = snprintf(unfinished, sizeof unfinished, "%s.XXXXXX", path) < (int)sizeof unfinished ? 0 : -ENAMETOOLONG;
    if (rc == 0 && lstat(path, &st) == 0 && !S_ISREG(st.st_mode))
        rc = -EEXIST;
    if (rc == 0)
        rc = write_beside(f, unfinished);
    if (rc < 0)
        fprintf(stderr, "arenad: cannot write the pid file %s: %s\n", path, strerror(-rc));
    return rc;
}

void pid_file_remove(const struct pid_file *f)
{
    struct stat st;
    if (f->path && f->inode && lstat(f->path, &st) == 0 && st.st_dev == f->device && st.st_ino == f->inode)
        unlink(f->path);
}
