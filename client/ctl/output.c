/* What is written to a file that the user names.
 *
 * A regular file, or none, is replaced as a whole: by a new file beside it, whose name nobody can guess, renamed when all of
 * it is there. So no link is followed, who reads the directory meanwhile sees the old one or the new one, and a write
 * that fails leaves the old one. A device, a pipe or a descriptor (/dev/stdout, /proc/self/fd/1) is written to directly. */
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

/* Is it a name of something that is open, below /proc? Its file cannot be replaced, and a link that leads to it, in as
 * many steps as the kernel would follow (/dev/stdout -> fd/1, /dev/fd -> /proc/self/fd), must not be. */
static bool is_descriptor(const char *path)
{
    enum { LINKS = 40 };
    char name[4096], copy[4096], dir[4096], target[4096];
    snprintf(name, sizeof name, "%s", path);
    for (int links = 0; links < LINKS; links++) {
        memcpy(copy, name, sizeof copy);
        if (!realpath(dirname(copy), dir))
            return false;
        if (strncmp(dir, "/proc/", 6) == 0)
            return true;
        ssize_t n = readlink(name, target, sizeof target - 1);
        if (n <= 0)
            return false;
        target[n] = 0;
        bool whole = target[0] == '/';
        if (snprintf(name, sizeof name, "%s%s%s", whole ? "" : dir, whole ? "" : "/", target) >= (int)sizeof name)
            return false;
    }
    return false;
}

/* A file that is replaced keeps its mode. */
static FILE *open_beside(struct output *o, mode_t mode)
{
    char dir[4096], name[4096];
    snprintf(dir, sizeof dir, "%s", o->path);
    snprintf(name, sizeof name, "%s", o->path);
    if (asprintf(&o->unfinished, "%s/.%.200s.XXXXXX", dirname(dir), basename(name)) < 0) {
        o->unfinished = NULL;
        return NULL;
    }
    int fd = mkostemp(o->unfinished, O_CLOEXEC);
    FILE *f = fd < 0 || fchmod(fd, mode) < 0 ? NULL : fdopen(fd, "w");
    if (!f) {
        int error = errno;
        if (fd >= 0) {
            unlink(o->unfinished);
            close(fd);
        }
        free(o->unfinished);
        o->unfinished = NULL;
        errno = error;
    }
    return f;
}

static int say(const struct output *o, int error)
{
    fprintf(stderr, "arenactl: cannot write %s: %s\n", clean(o->path, false), error ? strerror(error) : "a write failed");
    return CTL_OUTPUT;
}

int output_open(struct output *o, const char *path)
{
    struct stat st, link;
    *o = (struct output){.path = path};
    if (strlen(path) >= 4000)
        return say(o, ENAMETOOLONG);
    if (strcmp(path, "-") == 0) {
        o->file = stdout;
        return 0;
    }
    bool there = stat(path, &st) == 0, itself = lstat(path, &link) == 0 && S_ISREG(link.st_mode);
    if (there && S_ISDIR(st.st_mode))
        return say(o, EISDIR);
    if (there && (!S_ISREG(st.st_mode) || is_descriptor(path))) {
        int fd = open(path, O_WRONLY | O_CLOEXEC | O_NOCTTY);
        o->file = fd < 0 ? NULL : fdopen(fd, "w");
    } else {
        mode_t mask = umask(077);
        umask(mask);
        o->file = open_beside(o, itself ? link.st_mode & 0777 : 0666 & ~mask);
    }
    return o->file ? 0 : say(o, errno);
}

int output_close(struct output *o)
{
    if (o->file == stdout)
        return 0;
    errno = 0;
    bool failed = fflush(o->file) != 0 || ferror(o->file);
    failed |= fclose(o->file) != 0;
    int error = errno;
    if (o->unfinished && !failed && rename(o->unfinished, o->path) != 0) {
        failed = true;
        error = errno;
    }
    if (o->unfinished && failed)
        unlink(o->unfinished);
    free(o->unfinished);
    return failed ? say(o, error) : 0;
}
