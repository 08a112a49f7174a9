#include "daemon/os/listen.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/os/log.h"

enum { WHY_MAX = 1024 };

static int fail(char *ret_why, int error, const char *what, const char *path)
{
    snprintf(ret_why, WHY_MAX, "%s %s: %s", what, path, strerror(error));
    return -error;
}

static int make_parent(const char *path, char *ret_why)
{
    char copy[512];
    snprintf(copy, sizeof copy, "%s", path);
    char *dir = dirname(copy);
    if (mkdir(dir, 0755) < 0 && errno != EEXIST)
        return fail(ret_why, errno, "cannot make the directory of the socket", dir);
    return 0;
}

static struct listen_file file_of(const struct stat *st)
{
    return (struct listen_file){st->st_dev, st->st_ino};
}

static bool same_file(struct listen_file a, struct listen_file b)
{
    return a.device == b.device && a.inode == b.inode;
}

/* What stands at `path`, is it `file`? */
static bool is_there(const char *path, struct listen_file file)
{
    struct stat st;
    return lstat(path, &st) == 0 && same_file(file_of(&st), file);
}

/* What a connection to `path` ends with, without waiting: 0, or an errno; EAGAIN: cannot tell. */
static int connect_error(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return EAGAIN;
    int error = connect(fd, (const struct sockaddr *)&address, sizeof address) == 0 ? 0 : errno;
    close(fd);
    return error;
}

/* Does another process answer there? One of which that cannot be told is left alone. */
static bool is_answered(const char *path)
{
    int error = connect_error(path);
    return error == 0 || error == EAGAIN || error == EINPROGRESS || error == EPROTOTYPE;
}

/* The lock beside the socket closes the race between two daemons that both find nobody there. Kept open for ever. */
static int lock_take(const char *path, char *ret_why)
{
    char lock[600];
    struct stat st;
    snprintf(lock, sizeof lock, "%s.lock", path);
    int fd = open(lock, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, 0600);
    if (fd < 0)
        return fail(ret_why, errno, "cannot make", lock);
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_nlink > 1) {
        snprintf(ret_why, WHY_MAX, "%s is there and is not a file of one name: choose another --socket", lock);
        close(fd);
        return -EEXIST;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        snprintf(ret_why, WHY_MAX, "another daemon serves %s", path);
        close(fd);
        return -EADDRINUSE;
    }
    return fd;
}

/* A socket that a dead daemon has left is removed; anything else that is there stays. */
static int clear_path(const char *path, char *ret_why)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        return errno == ENOENT ? 0 : fail(ret_why, errno, "cannot look at", path);
    if (!S_ISSOCK(st.st_mode)) {
        snprintf(ret_why, WHY_MAX, "%s is there and is not a socket: choose another --socket", path);
        return -EEXIST;
    }
    if (is_answered(path)) {
        snprintf(ret_why, WHY_MAX, "another daemon serves %s", path);
        return -EADDRINUSE;
    }
    return unlink(path) < 0 && errno != ENOENT ? fail(ret_why, errno, "cannot remove the old socket", path) : 0;
}

/* The group is given to the inode that was looked at, and to nothing that was put in its place: a link is not followed. */
static int finish_file(struct listener *l, char *ret_why)
{
    struct stat st;
    int rc = 0, fd = open(l->path, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        rc = fail(ret_why, errno, "cannot look at the socket", l->path);
    else if (!S_ISSOCK(st.st_mode) || st.st_uid != geteuid() || st.st_nlink != 1) {
        snprintf(ret_why, WHY_MAX, "%s was replaced while it was made: choose a directory that nobody else writes to", l->path);
        rc = -EPERM;
    }
    bool is_own = rc == 0;
    if (rc == 0 && l->gid >= 0 && fchownat(fd, "", (uid_t)-1, (gid_t)l->gid, AT_EMPTY_PATH) < 0)
        rc = fail(ret_why, errno, "cannot give the socket its group", l->path);
    if (rc == 0 && l->uid >= 0 && l->uid != st.st_uid && fchownat(fd, "", (uid_t)l->uid, (gid_t)-1, AT_EMPTY_PATH) < 0)
        rc = fail(ret_why, errno, "cannot give the socket its owner", l->path);
    if (rc == 0)
        *l->file = l->own = file_of(&st);
    else if (is_own && is_there(l->path, file_of(&st)))
        unlink(l->path); /* nobody listens there */
    if (fd >= 0)
        close(fd);
    return rc;
}

/* A new listening socket at the path, where nothing is. */
static int bind_here(struct listener *l, char *ret_why)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", l->path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return fail(ret_why, errno, "cannot listen on", l->path);
    mode_t mask = umask(0777 & ~l->mode);
    int rc = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    umask(mask);
    if (rc == 0 && listen(fd, 4096) < 0)
        rc = -errno;
    if (rc < 0)
        fail(ret_why, -rc, "cannot listen on", l->path);
    else
        rc = finish_file(l, ret_why);
    if (rc < 0)
        close(fd);
    return rc < 0 ? rc : fd;
}

static int make(struct listener *l, char *ret_why)
{
    int rc = make_parent(l->path, ret_why);
    if (rc == 0 && l->lock_fd < 0 && (l->lock_fd = lock_take(l->path, ret_why)) < 0) {
        rc = l->lock_fd;
        l->lock_fd = -1;
    }
    if (rc == 0)
        rc = clear_path(l->path, ret_why);
    return rc < 0 ? rc : bind_here(l, ret_why);
}

int listen_open(struct listener *l, const char *path, mode_t mode, int64_t gid)
{
    char why[WHY_MAX] = "";
    *l = (struct listener){.fd = -1, .lock_fd = -1, .path = path, .mode = mode, .uid = -1, .gid = gid};
    if (strlen(path) >= sizeof((struct sockaddr_un *)NULL)->sun_path) {
        fprintf(stderr, "arenad: the socket path %s is longer than %zu bytes\n", path,
                sizeof((struct sockaddr_un *)NULL)->sun_path - 1);
        return -ENAMETOOLONG;
    }
    l->file = mmap(NULL, sizeof *l->file, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (l->file == MAP_FAILED) {
        l->file = NULL;
        fprintf(stderr, "arenad: no memory\n");
        return -ENOMEM;
    }
    int fd = make(l, why);
    if (fd < 0) {
        fprintf(stderr, "arenad: %s\n", why);
        return fd;
    }
    l->fd = fd;
    return 0;
}

void listen_adopt(struct listener *l, int fd, const char *path)
{
    static struct listen_file file; /* a manager's daemon has no keeper */
    *l = (struct listener){.fd = fd, .lock_fd = -1, .handed = true, .path = path, .mode = 0600, .uid = -1, .gid = -1, .file = &file};
}

static bool lock_is_there(const struct listener *l)
{
    char lock[600];
    struct stat st;
    snprintf(lock, sizeof lock, "%s.lock", l->path);
    return l->lock_fd >= 0 && fstat(l->lock_fd, &st) == 0 && is_there(lock, file_of(&st));
}

static void tell(struct listener *l, const char *why)
{
    char path[256], quoted[WHY_MAX];
    if (!l->told)
        log_event(LOG_LEVEL_ERROR, "socket", "path=\"%s\" error=\"%s\" advice=\"new clients cannot come: the file was taken away%s\"",
                  log_quote(path, sizeof path, l->path), log_quote(quoted, sizeof quoted, why),
                  l->handed ? ", and only the manager can make it again: stop the service, which ends a heap that is not in files, "
                              "then restart its socket unit" : "");
    l->told = true;
}

static void tell_made_again(const struct listener *l, const char *what)
{
    char path[256];
    log_event(LOG_LEVEL_WARNING, "socket", "path=\"%s\" cause=\"its %s was removed\" result=\"made again\"",
              log_quote(path, sizeof path, l->path), what);
}

static void write_note(const struct listener *l)
{
    size_t n = strlen(l->noted);
    if (ftruncate(l->lock_fd, 0) < 0 || pwrite(l->lock_fd, l->noted, n, 0) != (ssize_t)n)
        log_event(LOG_LEVEL_WARNING, "start", "what=\"noting the base\" error=\"%s\"", strerror(errno));
}

/* Of a manager's socket only the name is known: what stands there, and is not dead, is taken for its file. A dead one is
 * what a daemon before this one had made in the place of a file that was taken away. It is made again as it was, where
 * this process may. */
static int look_at_handed(struct listener *l)
{
    char why[WHY_MAX] = "";
    struct stat st;
    if (!l->path || !l->path[0] || (l->own.inode && is_there(l->path, l->own))) {
        l->told = false;
        return -1;
    }
    bool there = lstat(l->path, &st) == 0 && S_ISSOCK(st.st_mode);
    if (there && st.st_nlink == 1) {
        l->mode = st.st_mode & 0777;
        l->uid = geteuid() == 0 ? (int64_t)st.st_uid : -1;
        l->gid = st.st_gid;
    }
    if (there && connect_error(l->path) != ECONNREFUSED) {
        l->own = file_of(&st);
        l->told = false;
        return -1;
    }
    int rc = make_parent(l->path, why);
    if (rc == 0)
        rc = clear_path(l->path, why);
    if (rc == 0)
        rc = bind_here(l, why);
    if (rc < 0) {
        tell(l, why);
        return -1;
    }
    tell_made_again(l, "file");
    l->told = false;
    return rc;
}

int listen_look(struct listener *l)
{
    char why[WHY_MAX] = "";
    if (l->handed)
        return look_at_handed(l);
    bool locked = lock_is_there(l);
    if (!locked) { /* first the lock: another daemon may be about to start there */
        int fd = make_parent(l->path, why) < 0 ? -1 : lock_take(l->path, why);
        if (fd < 0) {
            tell(l, why);
            return -1;
        }
        if (l->lock_fd >= 0)
            close(l->lock_fd);
        l->lock_fd = fd;
        write_note(l);
    }
    bool bound = is_there(l->path, l->own);
    int fd = bound ? -1 : make(l, why);
    if (!bound && fd < 0) {
        tell(l, why);
        return -1;
    }
    if (!locked || !bound)
        tell_made_again(l, bound ? "lock" : "file");
    l->told = false;
    return fd;
}

void listen_replace(struct listener *l, int fd)
{
    shutdown(l->fd, SHUT_RDWR); /* a keeper has it too: who waits there is not to wait for ever */
    dup3(fd, l->fd, O_CLOEXEC);
    close(fd);
}

/* What a lock says, if somebody holds it. */
static bool read_lock(int dir, const char *name, uint64_t *ret_base, uint64_t *ret_bytes)
{
    char text[64] = "";
    unsigned long long base = 0, bytes = 0;
    int fd = openat(dir, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY);
    if (fd < 0)
        return false;
    bool held = flock(fd, LOCK_SH | LOCK_NB) < 0 && errno == EWOULDBLOCK;
    bool read = held && pread(fd, text, sizeof text - 1, 0) > 0 && sscanf(text, "base %llx bytes %llu", &base, &bytes) == 2;
    close(fd);
    *ret_base = base;
    *ret_bytes = bytes;
    return read;
}

bool listen_base_is_taken(const struct listener *l, uint64_t base, uint64_t bytes)
{
    enum { LOOKED_AT = 4096 };
    char copy[512], own[300];
    bool taken = false;
    snprintf(copy, sizeof copy, "%s", l->path);
    snprintf(own, sizeof own, "%s.lock", basename(copy));
    snprintf(copy, sizeof copy, "%s", l->path);
    DIR *dir = opendir(dirname(copy));
    struct dirent *entry;
    for (int n = 0; dir && !taken && n < LOOKED_AT && (entry = readdir(dir)) != NULL; n++) {
        size_t length = strlen(entry->d_name);
        uint64_t its_base, its_bytes;
        if (length < 6 || strcmp(entry->d_name + length - 5, ".lock") != 0 || strcmp(entry->d_name, own) == 0)
            continue;
        taken = read_lock(dirfd(dir), entry->d_name, &its_base, &its_bytes) && its_base < base + bytes &&
                base < its_base + its_bytes;
    }
    if (dir)
        closedir(dir);
    return taken;
}

void listen_note_base(struct listener *l, uint64_t base, uint64_t bytes)
{
    if (l->lock_fd < 0)
        return;
    snprintf(l->noted, sizeof l->noted, "base %llx bytes %llu\n", (unsigned long long)base, (unsigned long long)bytes);
    write_note(l);
}

void listen_remove(const struct listener *l)
{
    if (l->file && l->file->inode && is_there(l->path, *l->file))
        unlink(l->path);
}
