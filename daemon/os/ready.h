/* The order of service: who has something to say stands in a line, and is served once when its turn comes.
 *
 *     add --> front  --+
 *       \---> line   --+--> take        front first, then line; when both are empty the round is over,
 *        \--> next   --/                 and next becomes line
 *
 *   1. Who has been served in this round goes to next: nobody is served twice in a round.
 *   2. Who was served neither in this round nor in the one before goes to the front: it waits for no flood.
 *   3. Others go to the end of the line.
 *
 * Theorem: nobody is served twice while another that stands there waits. Let X stand from a moment in round r on.
 *   a. X was not served in r: it stands in front or in line, and is served in r. In what is left of r nobody is served twice.
 *   b. X was served in r: it is served in r + 1. Who is served in the rest of r stands behind X in next, or comes back in
 *      r + 1: by 3 behind X in the line. Who was not served in the rest of r is served once in r + 1 before X, at most.
 * tests/daemon/os/ready_test.c tries it with random arrivals. No allocation; loop thread. */
#ifndef DAEMON_READY_H
#define DAEMON_READY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct ready_list;
struct ready {
    struct ready *next, *prev;
    struct ready_list *list; /* on which it stands; NULL: on none */
    uint64_t served;         /* the round in which it was last; 0: never */
};
struct ready_list {
    struct ready *first, *last;
};
struct ready_line {
    struct ready_list front, line, after;
    uint64_t round; /* 2 at first, so that never is neither this one nor the one before */
};

void ready_init(struct ready_line *line);
void ready_add(struct ready_line *line, struct ready *r); /* nothing if it stands there */
void ready_remove(struct ready *r);                       /* likewise if it does not */
struct ready *ready_take(struct ready_line *line);        /* whose turn it is; NULL: nobody stands there */
static inline bool ready_waits(const struct ready_line *line)
{
    return line->front.first || line->line.first || line->after.first;
}

#endif
