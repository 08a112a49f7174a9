#include "client/ctl/inspect.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

static const char *const kinds[PART_KINDS] = {"heap", "map", "state"};

int inspect_fail(const char *name, const char *format, ...)
{
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    fprintf(stderr, "arenactl: cannot inspect %s: %s\n", clean(name, false), text);
    return CTL_UNREACHABLE;
}

/* ---- copying ------------------------------------------------------------------------------------------------------------ */

static bool is_zero(const uint8_t *at, size_t bytes)
{
    return bytes == 0 || (at[0] == 0 && memcmp(at, at + 1, bytes - 1) == 0);
}

/* A piece of a file that has data. Pages of zeros stay holes of the copy. 0, or an errno. */
static int copy_piece(const struct part *part, uint64_t from, uint64_t to, uint8_t *out)
{
    static uint8_t buf[1 << 20];
    enum { STEP = 4096 };
    while (from < to) {
        size_t want = to - from < sizeof buf ? (size_t)(to - from) : sizeof buf;
        ssize_t got = pread(part->fd, buf, want, (off_t)(part->at + from));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return errno;
        if (got == 0) /* it has been cut off since */
            return ENODATA;
        for (size_t i = 0; i < (size_t)got; i += STEP) {
            size_t n = (size_t)got - i < STEP ? (size_t)got - i : STEP;
            if (!is_zero(buf + i, n))
                memcpy(out + from + i, buf + i, n);
        }
        from += (uint64_t)got;
    }
    return 0;
}

/* The first `bytes` of a region, holes as holes: NULL after one line. */
static void *copy_part(const struct parts *parts, const struct part *part, uint64_t bytes)
{
    uint8_t *out = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    int error = out == MAP_FAILED ? errno : 0;
    uint64_t end = part->bytes < bytes ? part->bytes : bytes;
    for (uint64_t at = 0; !error && at < end;) {
        off_t data = lseek(part->fd, (off_t)(part->at + at), SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(part->fd, data, SEEK_HOLE);
        uint64_t from = data < 0 ? at : (uint64_t)data - part->at;
        uint64_t to = hole < 0 || (uint64_t)hole - part->at > end ? end : (uint64_t)hole - part->at;
        if (from >= end)
            break;
        error = copy_piece(part, from, to, out);
        at = to;
    }
    if (!error)
        return out;
    inspect_fail(parts->name, "its %s region cannot be read: %s", kinds[part->kind], strerror(error));
    return NULL;
}

/* ---- which parts are one heap's ------------------------------------------------------------------------------------------- */

int part_kind(const char *name, char *ret_from, size_t capacity)
{
    static const char memfd[] = "/memfd:arena-";
    const char *slash = strrchr(name, '/');
    bool is_memfd = strncmp(name, memfd, sizeof memfd - 1) == 0;
    const char *last = is_memfd ? name + sizeof memfd - 1 : slash ? slash + 1 : name;
    size_t length = strcspn(last, " ");
    for (int kind = 0; kind < PART_KINDS; kind++)
        if (strlen(kinds[kind]) == length && memcmp(kinds[kind], last, length) == 0 &&
            (!last[length] || strcmp(last + length, " (deleted)") == 0)) {
            snprintf(ret_from, capacity, "%.*s", is_memfd ? 5 : (int)(last - name), is_memfd ? "memfd" : name);
            return kind;
        }
    return -1;
}

void parts_add(struct parts *parts, const struct part *part)
{
    if (parts->count < PARTS_MAX)
        parts->part[parts->count++] = *part;
}

static int read_header(const struct part *part, struct map_header *ret)
{
    memset(ret, 0, sizeof *ret);
    if (part->bytes < sizeof *ret)
        return -1;
    return pread(part->fd, ret, sizeof *ret, (off_t)part->at) == (ssize_t)sizeof *ret ? 0 : -1;
}

/* The map of the one heap, or NULL after one line. A map that is none counts only if there is no other. */
static const struct part *find_map(const struct parts *parts, struct map_header *ret)
{
    const struct part *found = NULL, *other = NULL;
    for (int i = 0; i < parts->count; i++) {
        const struct part *part = &parts->part[i];
        struct map_header header;
        if (part->kind != PART_MAP)
            continue;
        if (read_header(part, &header) < 0 || header.magic != LAYOUT_MAGIC) {
            other = part;
            continue;
        }
        if (found && memcmp(header.heap_id, ret->heap_id, sizeof header.heap_id) != 0) {
            inspect_fail(parts->name, "it has more than one heap");
            return NULL;
        }
        if (!found)
            *ret = header;
        found = found ? found : part;
    }
    if (!found && other)
        read_header(found = other, ret);
    if (!found)
        inspect_fail(parts->name, "it has no heap");
    return found;
}

/* Of a memfd, whose name is the same for every heap, the one of the right size. */
static const struct part *find_part(const struct parts *parts, const struct part *map, int kind, uint64_t size)
{
    const struct part *found = NULL;
    for (int i = 0; i < parts->count; i++) {
        const struct part *part = &parts->part[i];
        if (part->kind == kind && strcmp(part->from, map->from) == 0 && (!found || (found->size != size && part->size == size)))
            found = part;
    }
    return found;
}

int parts_copy(struct inspected *in, const struct parts *parts)
{
    struct map_header header;
    struct geometry g;
    const char *why;
    const struct part *map = find_map(parts, &header);
    if (!map)
        return CTL_UNREACHABLE;
    const struct part *heap = find_part(parts, map, PART_HEAP, header.heap_max);
    const struct part *state = find_part(parts, map, PART_STATE, header.state_bytes);
    if (!heap || !state)
        return inspect_fail(parts->name, "it has no %s region", heap ? "state" : "heap");
    if (heap_check_header(&header, map->size, state->size, &g, &why) < 0)
        return inspect_fail(parts->name, "region map: %s", why);
    if (heap->size < g.heap_bytes)
        return inspect_fail(parts->name, "region heap: shorter than its header");
    if (map->start && !state->bytes)
        return inspect_fail(parts->name, "it has the map of a heap and not its words");
    void *map_copy = copy_part(parts, map, g.map_bytes), *state_copy = map_copy ? copy_part(parts, state, g.state_bytes) : NULL;
    if (!state_copy)
        return CTL_UNREACHABLE;
    heap_view(&in->h, &g, NULL, map_copy, state_copy);
    in->base = heap->start ? heap->start : header.base;
    return 0;
}

/* ---- places ----------------------------------------------------------------------------------------------------------------- */

static int open_directory(struct inspected *in, struct parts *parts)
{
    int dir = open(parts->name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0)
        return inspect_fail(parts->name, "%s", errno == ENOTDIR ? "it is no directory; a core file is given with --core" : strerror(errno));
    for (int kind = 0; kind < PART_KINDS; kind++) {
        struct stat st;
        int fd = openat(dir, kinds[kind], O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
        if (fd < 0 || fstat(fd, &st) < 0)
            return inspect_fail(parts->name, "region %s: %s", kinds[kind], strerror(errno));
        if (!S_ISREG(st.st_mode))
            return inspect_fail(parts->name, "region %s: no regular file", kinds[kind]);
        parts_add(parts, &(struct part){.kind = kind, .fd = fd, .bytes = (uint64_t)st.st_size, .size = (uint64_t)st.st_size});
    }
    close(dir);
    return parts_copy(in, parts);
}

static void add_descriptor(struct parts *parts, const char *path)
{
    char target[4096];
    struct stat st;
    struct part part = {.fd = -1};
    ssize_t n = readlink(path, target, sizeof target - 1);
    target[n < 0 ? 0 : n] = 0;
    if ((part.kind = part_kind(target, part.from, sizeof part.from)) < 0 || stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return;
    for (int i = 0; i < parts->count; i++)
        if (parts->part[i].inode == st.st_ino && parts->part[i].kind == part.kind)
            return;
    part.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    part.bytes = part.size = (uint64_t)st.st_size;
    part.inode = st.st_ino;
    if (part.fd >= 0)
        parts_add(parts, &part);
}

/* The descriptors of a keeper, of a daemon, or of a service manager. */
static int open_process(struct inspected *in, struct parts *parts)
{
    char path[300], place[64];
    struct dirent *entry;
    snprintf(path, sizeof path, "/proc/%.20s/fd", parts->name);
    snprintf(place, sizeof place, "process %.20s", parts->name);
    parts->name = place;
    DIR *dir = opendir(path);
    if (!dir)
        return inspect_fail(place, "%s", errno == ENOENT ? "there is none" : strerror(errno));
    size_t length = strlen(path);
    while ((entry = readdir(dir)) != NULL) {
        snprintf(path + length, sizeof path - length, "/%.20s", entry->d_name);
        if (entry->d_name[0] != '.')
            add_descriptor(parts, path);
    }
    closedir(dir);
    return parts_copy(in, parts);
}

int inspect_open(struct inspected *in, const char *place)
{
    static struct parts parts;
    parts.name = place;
    return place[strspn(place, "0123456789")] || !*place ? open_directory(in, &parts) : open_process(in, &parts);
}
