/* Regions in a core file. The note NT_FILE names the files that were mapped, and where; a segment has what they held. */
#include "client/ctl/inspect.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

enum { NOTES_MAX = 64 << 20, SEGMENTS_MAX = 1 << 20 };

struct core {
    const char *name;
    int fd;
    uint64_t file_bytes;
    Elf64_Phdr *segments;
    size_t segment_count;
};

static bool read_at(const struct core *core, void *out, size_t bytes, uint64_t at)
{
    return at <= core->file_bytes && bytes <= core->file_bytes - at && pread(core->fd, out, bytes, (off_t)at) == (ssize_t)bytes;
}

static int read_segments(struct core *core)
{
    Elf64_Ehdr elf;
    Elf64_Shdr section;
    if (!read_at(core, &elf, sizeof elf, 0) || memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 || elf.e_type != ET_CORE ||
        elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_phentsize != sizeof *core->segments)
        return inspect_fail(core->name, "it is no core file of a 64-bit process");
    core->segment_count = elf.e_phnum;
    if (elf.e_phnum == PN_XNUM) { /* there are too many for the header */
        if (!read_at(core, &section, sizeof section, elf.e_shoff))
            return inspect_fail(core->name, "it is cut off");
        core->segment_count = section.sh_info;
    }
    if (core->segment_count > SEGMENTS_MAX)
        return inspect_fail(core->name, "it has too many segments");
    core->segments = calloc(core->segment_count + 1, sizeof *core->segments);
    if (!core->segments || !read_at(core, core->segments, core->segment_count * sizeof *core->segments, elf.e_phoff))
        return inspect_fail(core->name, "it is cut off");
    return 0;
}

/* A mapping of a file from its beginning on, if the file bears a region's name. */
static int add_mapping(struct parts *parts, const struct core *core, uint64_t start, uint64_t end, const char *file)
{
    struct part part = {.fd = core->fd, .start = start, .size = end - start};
    part.kind = part_kind(file, part.from, sizeof part.from);
    if (part.kind < 0 || end < start)
        return 0;
    for (size_t i = 0; i < core->segment_count; i++) {
        const Elf64_Phdr *s = &core->segments[i];
        if (s->p_type != PT_LOAD || s->p_vaddr != start)
            continue;
        if (s->p_offset > core->file_bytes || s->p_filesz > core->file_bytes - s->p_offset)
            return inspect_fail(core->name, "it is cut off");
        part.at = s->p_offset;
        part.bytes = s->p_filesz < part.size ? s->p_filesz : part.size;
    }
    parts_add(parts, &part);
    return 0;
}

/* NT_FILE: count, page size, count times {start, end, offset in pages}, then as many names with their NULs. */
static int read_mappings(struct parts *parts, const struct core *core, const uint8_t *note, size_t bytes)
{
    uint64_t head[2], range[3];
    if (bytes < sizeof head)
        return 0;
    memcpy(head, note, sizeof head);
    if (head[0] > (bytes - sizeof head) / sizeof range)
        return inspect_fail(core->name, "its list of mapped files is cut off");
    const char *file = (const char *)note + sizeof head + head[0] * sizeof range, *end = (const char *)note + bytes;
    int rc = 0;
    for (uint64_t i = 0; rc == 0 && i < head[0]; i++) {
        memcpy(range, note + sizeof head + i * sizeof range, sizeof range);
        const char *nul = memchr(file, 0, (size_t)(end - file));
        if (!nul)
            return inspect_fail(core->name, "its list of mapped files is cut off");
        if (range[2] == 0)
            rc = add_mapping(parts, core, range[0], range[1], file);
        file = nul + 1;
    }
    return rc;
}

static size_t padded(size_t bytes) { return (bytes + 3) & ~(size_t)3; }

static int read_notes(struct parts *parts, const struct core *core, const Elf64_Phdr *segment)
{
    uint8_t *notes = segment->p_filesz <= NOTES_MAX ? malloc(segment->p_filesz + 1) : NULL;
    int rc = 0;
    if (!notes || !read_at(core, notes, segment->p_filesz, segment->p_offset)) {
        free(notes);
        return inspect_fail(core->name, "its notes cannot be read");
    }
    for (size_t at = 0, bytes = segment->p_filesz; rc == 0 && bytes - at >= sizeof(Elf64_Nhdr);) {
        Elf64_Nhdr note;
        memcpy(&note, notes + at, sizeof note);
        size_t body = at + sizeof note + padded(note.n_namesz), next = body + padded(note.n_descsz);
        if (body > bytes || note.n_descsz > bytes - body)
            break;
        if (note.n_type == NT_FILE)
            rc = read_mappings(parts, core, notes + body, note.n_descsz);
        if (next > bytes)
            break;
        at = next;
    }
    free(notes);
    return rc;
}

/* Nothing of the heap was written: the library keeps it out of dumps, and the kernel leaves out files. */
static bool is_left_out(const struct parts *parts)
{
    bool map = false, some = false;
    for (int i = 0; i < parts->count; i++)
        if (parts->part[i].kind == PART_MAP) {
            map = true;
            some |= parts->part[i].bytes != 0;
        }
    return map && !some;
}

int inspect_open_core(struct inspected *in, const char *file)
{
    static struct parts parts;
    struct stat st;
    struct core core = {.name = file, .fd = open(file, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK)};
    if (core.fd < 0 || fstat(core.fd, &st) < 0)
        return inspect_fail(file, "%s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return inspect_fail(file, "it is no regular file");
    core.file_bytes = (uint64_t)st.st_size;
    parts.name = file;
    int rc = read_segments(&core);
    for (size_t i = 0; rc == 0 && i < core.segment_count; i++)
        if (core.segments[i].p_type == PT_NOTE)
            rc = read_notes(&parts, &core, &core.segments[i]);
    free(core.segments);
    if (rc == 0 && is_left_out(&parts))
        return inspect_fail(file, "it has nothing of the heap: a process dumps it with ARENA_DEBUG=core");
    return rc == 0 ? parts_copy(in, &parts) : rc;
}
