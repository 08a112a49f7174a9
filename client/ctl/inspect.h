/* A heap that nobody need serve, opened from outside: `arenactl inspect`.
 *
 *   inspect_open.c   from a directory or a process's descriptors: what its map and state regions hold, copied
 *   inspect_core.c   the same from a core file
 *   inspect.c        what is shown of it
 *
 * The copy is this process's own. Nothing of the regions is mapped: reading a hole of a mapped memfd would give it memory, and
 * a file that is cut off meanwhile would be a SIGBUS. Objects are not copied. */
#ifndef CLIENT_CTL_INSPECT_H
#define CLIENT_CTL_INSPECT_H

#include <stdbool.h>
#include <stdint.h>

#include "shm/layout.h"

enum { PART_HEAP, PART_MAP, PART_STATE, PART_KINDS };

/* Where a region lies, or something that bears its name. */
struct part {
    int kind;
    char from[512];  /* what parts of one heap have in common: "memfd", or the folder of files */
    int fd;
    uint64_t at;     /* in the file of fd */
    uint64_t bytes;  /* that are there */
    uint64_t size;   /* of the region, as it is mapped */
    uint64_t start;  /* in a core: the address; else 0 */
    uint64_t inode;  /* the same file twice; 0: not known */
};

enum { PARTS_MAX = 128 };
struct parts {
    struct part part[PARTS_MAX];
    int count;
    const char *name; /* of the place, for messages */
};

struct inspected {
    struct heap h; /* its base is NULL */
    uint64_t base; /* the address of the heap region in processes */
};

/* 0, or CTL_UNREACHABLE after one line. `place`: a directory, or a pid. */
int inspect_open(struct inspected *in, const char *place);
int inspect_open_core(struct inspected *in, const char *file);

/* "/memfd:arena-map (deleted)", "/a/folder/map": which region, and `from`; -1: none. */
int part_kind(const char *name, char *ret_from, size_t capacity);
/* Adds one; what is too many is left out. */
void parts_add(struct parts *parts, const struct part *part);
/* The one heap that they are of, copied: as inspect_open(). */
int parts_copy(struct inspected *in, const struct parts *parts);

/* Says one line: CTL_UNREACHABLE. */
int inspect_fail(const char *name, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
