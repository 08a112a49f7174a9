/* Prints what arena-gdb.py has to know of the layout, as Python: the fields that it reads, {"struct.field": (offset, size)},
 * constants, and the size classes by span class. The build puts it before packaging/gdb/arena-gdb.py. */
#include <stddef.h>
#include <stdio.h>

#include "shm/layout.h"
#include "shm/root.h"
#include "shm/sizeclass.h"
#include "shm/state.h"
#include "shm/tag.h"

#define FIELDS(X)                                                                                                       \
    X(map_header, magic) X(map_header, version) X(map_header, heap_id) X(map_header, heap_max) X(map_header, base)     \
    X(map_header, map_bytes) X(map_header, state_bytes) X(map_header, page_count) X(map_header, root_slots)           \
    X(map_header, class_digest) X(map_header, epoch) X(map_header, tag_top) X(map_header, top) X(map_header, root_top) \
    X(tag, state) X(tag, owner) X(tag, pid) X(tag, uid) X(tag, command)                                                \
    X(root, uid) X(root, ref) X(root, name)                                                                            \
    X(span, lessee) X(span, returned) X(span, span_class) X(span, page_count) X(span, unit) X(span, uid)

#define CONSTANTS(X)                                                                                                    \
    X(LAYOUT_MAGIC) X(LAYOUT_VERSION) X(PAGE_SHIFT) X(UNIT_WORDS) X(TAG_COUNT) X(HAZARD_COUNT) X(ROOT_GENS)           \
    X(ROOT_SLOTS_MAX) X(ROOT_BLOCK) X(CLASS_LARGE) X(SPAN_CLASS_COUNT) X(PAGE_COLD) X(PAGE_WARM) X(WORD_FREE)         \
    X(WORD_SHARED) X(TAG_FREE) X(TAG_CLIENT) X(TAG_CLIENT_DYING) X(TAG_TX) X(TAG_TX_COMMITTED) X(TAG_TX_DYING)        \
    X(TAG_TX_PUBLISHING)

#define STRUCTS(X) X(map_header) X(tag) X(root) X(root_bucket) X(span)

int main(void)
{
    printf("FIELDS = {\n");
#define FIELD(s, f) printf("    '%s.%s': (%zu, %zu),\n", #s, #f, offsetof(struct s, f), sizeof ((struct s *)0)->f);
    FIELDS(FIELD)
    printf("}\nSIZES = {\n");
#define STRUCT(s) printf("    '%s': %zu,\n", #s, sizeof(struct s));
    STRUCTS(STRUCT)
    printf("}\n");
#define CONSTANT(c) printf("%s = %llu\n", #c, (unsigned long long)(c));
    CONSTANTS(CONSTANT)
    printf("CLASS_DIGEST = %u\nCLASSES = {  # span class: (size, pages, objects)\n", size_class_digest());
    for (unsigned c = 2; c < SPAN_CLASS_COUNT; c++)
        printf("    %u: (%u, %u, %u),\n", c, class_table[c].size, class_table[c].pages, class_table[c].objects);
    printf("}\n");
    return 0;
}
