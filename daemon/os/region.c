#include "daemon/os/region.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "daemon/os/sigbus.h"

const char *const region_names[REGION_COUNT] = {"heap", "map", "state"};

static int fail(char *ret_why, int error, const char *what, const char *name)
{
    snprintf(ret_why, 512, "%s %s: %s", what, name, strerror(error));
    return -error;
}

/* The same file, opened anew: what a descriptor may do is a property of the opening, and cannot be given up later. */
static int reopen_read_only(int fd)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    return open(path, O_RDONLY | O_CLOEXEC);
}

/* Why something of a backing directory is not trusted; NULL: it is. Access lists show in the group's bits. */
static const char *distrust(const struct stat *st, bool file)
{
    if (file && !S_ISREG(st->st_mode))
        return "is no regular file";
    if (file && st->st_nlink != 1)
        return "has another name elsewhere";
    if (st->st_uid != 0 && st->st_uid != geteuid())
        return "is another user's";
    return st->st_mode & 022 ? "may be written by others" : NULL;
}

static int refuse(char *ret_why, const char *dir, const char *name, const char *why)
{
    snprintf(ret_why, 512, "%.300s%s%s %s: it must be this user's or root's, and nobody else's to write to", dir,
             *name ? "/" : "", name, why);
    return -EPERM;
}

/* `dir` without slashes at its end: with one, a link would be followed. */
static const char *without_slash(const char *dir, char *out, size_t capacity)
{
    size_t n = strnlen(dir, capacity - 1);
    memcpy(out, dir, n);
    while (n > 1 && out[n - 1] == '/')
        n--;
    out[n] = 0;
    return out;
}

int regions_directory(const char *dir, char *ret_why)
{
    char path[PATH_MAX];
    struct stat st;
    int fd = open(without_slash(dir, path, sizeof path), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
    if (fd < 0 && lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
        return refuse(ret_why, path, "", "is a link");
    if (fd < 0)
        return fail(ret_why, errno, "cannot open the backing directory", dir);
    const char *why = fstat(fd, &st) < 0 ? strerror(errno) : distrust(&st, false);
    if (!why)
        return fd;
    close(fd);
    return refuse(ret_why, dir, "", why);
}

static int use_directory(struct regions *r, const char *dir, char *ret_why)
{
    if (!dir)
        return 0;
    r->directory = strdup(dir);
    r->directory_fd = r->directory ? regions_directory(dir, ret_why) : -ENOMEM;
    return r->directory_fd < 0 ? r->directory_fd : 0;
}

static int open_region(struct regions *r, int which, bool create)
{
    char name[32];
    if (!r->directory) {
        snprintf(name, sizeof name, "arena-%s", region_names[which]);
        return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    return openat(r->directory_fd, region_names[which],
                  O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY | (create ? O_CREAT | O_EXCL : 0), 0600);
}

/* Opens a file that is there: 0, or a negative errno. */
static int open_file(struct regions *r, int which, char *ret_why)
{
    struct stat st;
    r->fd[which] = open_region(r, which, false);
    if (r->fd[which] < 0 && (errno == ELOOP || errno == ENXIO || errno == ENODEV || errno == EISDIR))
        return refuse(ret_why, r->directory, region_names[which], "is no regular file");
    if (r->fd[which] < 0)
        return fail(ret_why, errno, "cannot open region", region_names[which]);
    if (fstat(r->fd[which], &st) < 0)
        return fail(ret_why, errno, "cannot stat region", region_names[which]);
    const char *why = distrust(&st, true);
    return why ? refuse(ret_why, r->directory, region_names[which], why) : 0;
}

/* Of a mapping of the file: larger than the system's on hugetlbfs. */
static uint64_t page_bytes(int fd)
{
    enum { HUGETLBFS = 0x958458f6 };
    struct statfs fs;
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    return fstatfs(fd, &fs) == 0 && (uint32_t)fs.f_type == (uint32_t)HUGETLBFS ? (uint64_t)fs.f_bsize : page;
}

static int map_regions(struct regions *r, char *ret_why)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        r->read_only_fd[i] = reopen_read_only(r->fd[i]);
        if (r->read_only_fd[i] < 0)
            return fail(ret_why, errno, "cannot reopen region", region_names[i]);
        if (i == REGION_HEAP)
            continue;
        r->mapped[i] = mmap(NULL, r->bytes[i], PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fd[i], 0);
        if (r->mapped[i] == MAP_FAILED) {
            r->mapped[i] = NULL;
            return fail(ret_why, errno, "cannot map region", region_names[i]);
        }
        if (i == REGION_STATE && r->directory && sigbus_add(r->mapped[i], r->bytes[i], page_bytes(r->fd[i])) < 0)
            return fail(ret_why, ENOSPC, "cannot guard region", region_names[i]);
    }
    r->sigbus_seen = sigbus_hits();
    return 0;
}

static void regions_clear(struct regions *r)
{
    memset(r, 0, sizeof *r);
    r->directory_fd = -1;
    for (int i = 0; i < REGION_COUNT; i++)
        r->fd[i] = r->read_only_fd[i] = -1;
}

/* A full disk is told with the directory and what is wanted. */
static int back_at_start(const struct regions *r, int which, uint64_t at, uint64_t bytes, char *ret_why)
{
    struct statfs fs;
    int rc = region_back(r, which, at, bytes);
    if (rc == -ENOMEM && r->directory && fstatfs(r->directory_fd, &fs) == 0)
        snprintf(ret_why, 512, "no room in %.300s: region %s needs %llu KiB now, %llu are free", r->directory,
                 region_names[which], (unsigned long long)bytes >> 10,
                 (unsigned long long)fs.f_bavail * (unsigned long long)fs.f_bsize >> 10);
    else if (rc < 0)
        return fail(ret_why, -rc, "cannot back region", region_names[which]);
    return rc;
}

int regions_create(struct regions *r, const struct geometry *g, const char *dir, char *ret_why)
{
    const uint64_t bytes[REGION_COUNT] = {g->heap_bytes, g->map_bytes, g->state_bytes};
    regions_clear(r);
    int rc = use_directory(r, dir, ret_why);
    if (rc < 0)
        return rc;
    for (int i = 0; i < REGION_COUNT; i++) {
        r->bytes[i] = bytes[i];
        r->fd[i] = open_region(r, i, true);
        if (r->fd[i] < 0)
            return fail(ret_why, errno, "cannot make region", region_names[i]);
        if (fchmod(r->fd[i], 0600) < 0 || ftruncate(r->fd[i], (off_t)bytes[i]) < 0)
            return fail(ret_why, errno, "cannot size region", region_names[i]);
        if (!dir && fcntl(r->fd[i], F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
            return fail(ret_why, errno, "cannot seal region", region_names[i]);
    }
    /* of a file all that is written by and by must be backed now: a full disk would be a SIGBUS later. A memfd has no
     * limit of its own, and is backed as it comes into use. */
    rc = back_at_start(r, REGION_MAP, 0, dir ? g->pages_at : g->tags_at, ret_why);
    if (rc == 0 && dir)
        rc = back_at_start(r, REGION_STATE, g->tickets_at, g->words_at - g->tickets_at, ret_why);
    return rc < 0 ? rc : map_regions(r, ret_why);
}

int regions_adopt(struct regions *r, const int fd[REGION_COUNT], const char *dir, struct geometry *ret_g, char *ret_why)
{
    regions_clear(r);
    int rc = use_directory(r, dir, ret_why);
    for (int i = 0; rc == 0 && i < REGION_COUNT; i++) {
        struct stat st;
        if (fd)
            r->fd[i] = fd[i];
        else if ((rc = open_file(r, i, ret_why)) < 0)
            break;
        if (fstat(r->fd[i], &st) < 0)
            return fail(ret_why, errno, "cannot stat region", region_names[i]);
        r->bytes[i] = (uint64_t)st.st_size;
    }
    if (rc < 0)
        return rc;
    struct map_header header;
    const char *why = "shorter than its header";
    if (pread(r->fd[REGION_MAP], &header, sizeof header, 0) != (ssize_t)sizeof header ||
        heap_check_header(&header, r->bytes[REGION_MAP], r->bytes[REGION_STATE], ret_g, &why) < 0 ||
        ret_g->heap_bytes > r->bytes[REGION_HEAP]) {
        snprintf(ret_why, 512, "region map: %s", why);
        return -EUCLEAN;
    }
    rc = map_regions(r, ret_why);
    r->state_backed_to = 0;
    return rc;
}

void regions_close(struct regions *r)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        if (r->mapped[i]) {
            sigbus_remove(r->mapped[i]);
            munmap(r->mapped[i], r->bytes[i]);
        }
        if (r->fd[i] >= 0)
            close(r->fd[i]);
        if (r->read_only_fd[i] >= 0)
            close(r->read_only_fd[i]);
    }
    if (r->directory_fd >= 0)
        close(r->directory_fd);
    free(r->directory);
    regions_clear(r);
}

void regions_remove(struct regions *r)
{
    for (int i = 0; r->directory_fd >= 0 && i < REGION_COUNT; i++)
        unlinkat(r->directory_fd, region_names[i], 0);
}

int regions_reset(const char *dir, char *ret_why)
{
    struct regions r;
    regions_clear(&r);
    int rc = use_directory(&r, dir, ret_why);
    regions_remove(&r);
    regions_close(&r);
    return rc;
}

void regions_remove_made(struct regions *r)
{
    for (int i = 0; r->directory_fd >= 0 && i < REGION_COUNT; i++)
        if (r->fd[i] >= 0)
            unlinkat(r->directory_fd, region_names[i], 0);
}

int region_back(const struct regions *r, int which, uint64_t at, uint64_t bytes)
{
    int rc;
    do
        rc = fallocate(r->fd[which], FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)bytes);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return errno == ENOSPC || errno == ENOMEM || errno == EDQUOT ? -ENOMEM : -errno;
    return 0;
}

int region_return(const struct regions *r, int which, uint64_t at, uint64_t bytes)
{
    int rc;
    do
        rc = fallocate(r->fd[which], FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)at, (off_t)bytes);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? -errno : 0;
}

/* A file that was cut off has its size again; 1 if it had been. */
static int lengthen(const struct regions *r, int which)
{
    struct stat st;
    if (fstat(r->fd[which], &st) < 0)
        return -errno;
    if ((uint64_t)st.st_size >= r->bytes[which])
        return 0;
    return ftruncate(r->fd[which], (off_t)r->bytes[which]) < 0 ? -errno : 1;
}

int regions_mend(struct regions *r, const struct heap *h)
{
    if (!r->directory)
        return 0;
    uint64_t hits = sigbus_hits(), words_at = (uint64_t)((uint8_t *)h->words - h->hints);
    int heap = lengthen(r, REGION_HEAP), state = lengthen(r, REGION_STATE), rc = 0;
    if (heap < 0 || state < 0)
        return heap < 0 ? heap : state;
    if (state == 0 && hits == r->sigbus_seen)
        return heap;
    if (h->header->top)
        rc = region_back(r, REGION_STATE, 0, h->header->top);
    uint64_t tickets_at = (uint64_t)((uint8_t *)h->tickets - h->hints);
    if (rc == 0)
        rc = region_back(r, REGION_STATE, tickets_at, words_at - tickets_at);
    if (rc == 0 && r->state_backed_to)
        rc = region_back(r, REGION_STATE, words_at, r->state_backed_to * UNIT_BYTES);
    if (rc == 0 && mmap(r->mapped[REGION_STATE], r->bytes[REGION_STATE], PROT_READ | PROT_WRITE,
                        MAP_SHARED | MAP_NORESERVE | MAP_FIXED, r->fd[REGION_STATE], 0) == MAP_FAILED)
        rc = -errno;
    if (rc < 0)
        return rc;
    r->sigbus_seen = hits;
    return 1;
}

int regions_back_again(const struct regions *r, const struct heap *h)
{
    enum { PIECE = 1024 };
    uint64_t top = load_acquire(&h->header->top), page = 1; /* [TP1] */
    while (page < top) {
        uint64_t from = page;
        while (page < top && page - from < PIECE && load_relaxed(&h->pages[page]) != PAGE_COLD)
            page++;
        int rc = page > from ? region_back(r, REGION_HEAP, from << PAGE_SHIFT, (page - from) << PAGE_SHIFT) : 0;
        if (rc < 0)
            return rc;
        page += page == from;
    }
    return 0;
}

uint64_t region_held(const struct regions *r, int which)
{
    struct stat st;
    return fstat(r->fd[which], &st) < 0 ? 0 : (uint64_t)st.st_blocks * 512;
}

/* ---- what may still be had ----------------------------------------------------------------------------------------------------- */

static uint64_t read_number(const char *path) /* UINT64_MAX: no such file, or "max" */
{
    unsigned long long value;
    FILE *f = fopen(path, "re");
    if (!f)
        return UINT64_MAX;
    int n = fscanf(f, "%llu", &value);
    fclose(f);
    return n == 1 ? value : UINT64_MAX;
}

/* The least of limit - usage of a cgroup and all above it, as far as this mount shows them. */
static uint64_t cgroup_room(const char *mount, char *group, const char *limit, const char *usage)
{
    uint64_t least = UINT64_MAX;
    for (;;) {
        char path[4096];
        snprintf(path, sizeof path, "%s%s/%s", mount, group, limit);
        uint64_t max = read_number(path);
        snprintf(path, sizeof path, "%s%s/%s", mount, group, usage);
        uint64_t used = read_number(path);
        if (max < (1ULL << 60) && used != UINT64_MAX) {
            uint64_t room = max > used ? max - used : 0;
            least = room < least ? room : least;
        }
        char *slash = strrchr(group, '/');
        if (!slash || group[0] == 0)
            return least;
        *slash = 0;
    }
}

/* Where a hierarchy is mounted: cgroup2, or the cgroup that has the memory controller. "" if nowhere. */
static void find_mount(bool v2, char *out, size_t capacity)
{
    char line[4096], device[256], where[2048], type[64], options[1024];
    FILE *f = fopen("/proc/self/mounts", "re");
    out[0] = 0;
    while (f && !out[0] && fgets(line, sizeof line, f))
        if (sscanf(line, "%255s %2047s %63s %1023s", device, where, type, options) == 4 &&
            (v2 ? strcmp(type, "cgroup2") == 0 : strcmp(type, "cgroup") == 0 && strstr(options, "memory")))
            snprintf(out, capacity, "%s", where);
    if (f)
        fclose(f);
}

static uint64_t cgroups_room(void)
{
    char line[4096], mount[2048];
    uint64_t least = UINT64_MAX;
    FILE *f = fopen("/proc/self/cgroup", "re");
    while (f && fgets(line, sizeof line, f)) {
        char *controllers = strchr(line, ':'), *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group)
            continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        if (strcmp(group, "/") == 0)
            group[0] = 0;
        bool v2 = controllers[1] == 0;
        if (!v2 && !strstr(controllers + 1, "memory"))
            continue;
        find_mount(v2, mount, sizeof mount);
        if (!mount[0])
            continue;
        uint64_t room = v2 ? cgroup_room(mount, group, "memory.max", "memory.current")
                           : cgroup_room(mount, group, "memory.limit_in_bytes", "memory.usage_in_bytes");
        least = room < least ? room : least;
    }
    if (f)
        fclose(f);
    return least;
}

static uint64_t memory_available(void)
{
    char line[256];
    unsigned long long kib = UINT64_MAX >> 10;
    FILE *f = fopen("/proc/meminfo", "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (uint64_t)kib << 10;
}

uint64_t memory_allowance(uint64_t reserve_bytes, const char *dir)
{
    struct statfs fs;
    uint64_t machine = memory_available(), group = cgroups_room(), least = machine < group ? machine : group;
    least = least > reserve_bytes ? least - reserve_bytes : 0;
    if (dir && statfs(dir, &fs) == 0 && fs.f_blocks) {
        uint64_t room = (uint64_t)fs.f_bavail * (uint64_t)fs.f_bsize;
        least = room < least ? room : least;
    }
    return least >> PAGE_SHIFT;
}
