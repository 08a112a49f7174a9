/* Call sites: where in the program something was allocated, as the program counters of the calls
 * that led there. The unwinder is the compiler's own (libgcc), which every program has; names are
 * looked up only when somebody wants to read them. Private memory. */
#ifndef CLIENT_SITE_H
#define CLIENT_SITE_H

#include <stddef.h>
#include <stdint.h>

enum { SITE_DEPTH = 24 };

/* A walk up the stack from the first caller outside the library. */
struct trace {
    unsigned count;
    uintptr_t pc[SITE_DEPTH];  /* inside the call instruction */
    uintptr_t cfa[SITE_DEPTH]; /* of the frame that pc is in: the same for two walks if it is the
                                  same activation, or one that took its place */
};

struct site {
    uint32_t id; /* 1, 2, ... in the order in which they were met */
    unsigned count;
    uint64_t hash;
    struct site *next; /* in its bucket */
    uintptr_t pc[SITE_DEPTH];
};

void trace_take(struct trace *ret);

/* The site of a trace; the same for the same one. NULL: out of memory. Any thread. */
struct site *site_of(const struct trace *trace);

void sites_after_fork(void); /* whatever another thread was doing */

/* "name+0x1c (/path/of/module+0x123c)", without the name where there is none. */
void site_print_pc(uintptr_t pc, char *text, size_t capacity);

/* The module that pc is in, and where in it: for whoever looks it up later, in another process.
 * NULL: in none. */
const char *site_module(uintptr_t pc, uintptr_t *ret_offset, const char **ret_name);

#endif
