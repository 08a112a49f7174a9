/* For tests that drive the core without a loop: a backing that answers later. What the core asks of
 * it is kept, in the order in which it was asked, until the test takes one of them and answers it:
 * at any time, in any order, with any error. */
#ifndef TESTS_DAEMON_FIXTURE_H
#define TESTS_DAEMON_FIXTURE_H

#include <string.h>

#include "daemon/core/core.h"
#include "shm/assert.h"

enum { ASKED_MAX = 4096 };

struct asked {
    uint64_t first, pages;
    bool grow; /* else return */
};

struct later {
    struct asked asked[ASKED_MAX];
    size_t count;
    uint64_t allowance; /* pages */
};

static inline int later_ask(struct later *later, uint64_t first, uint64_t pages, bool grow)
{
    ASSERT(later->count < ASKED_MAX);
    later->asked[later->count++] = (struct asked){first, pages, grow};
    return 0;
}

static inline int later_grow(void *later, uint64_t first, uint64_t pages)
{
    return later_ask(later, first, pages, true);
}

static inline int later_give_back(void *later, uint64_t first, uint64_t pages)
{
    return later_ask(later, first, pages, false);
}

static inline uint64_t later_allowance(void *later)
{
    return ((struct later *)later)->allowance;
}

static inline int later_back_units(void *later, uint64_t first, uint64_t units)
{
    return (void)later, (void)first, (void)units, 0;
}

static inline struct backing later_backing(struct later *later)
{
    return (struct backing){later, later_grow, later_allowance, later_give_back, later_back_units};
}

/* The i-th of what was asked and is not answered. */
static inline struct asked later_take(struct later *later, size_t i)
{
    ASSERT(i < later->count);
    struct asked asked = later->asked[i];
    later->count--;
    memmove(&later->asked[i], &later->asked[i + 1], (later->count - i) * sizeof asked);
    return asked;
}

static inline void later_answer(struct core *core, struct asked asked, int error)
{
    if (asked.grow)
        core_grown(core, asked.first, asked.pages, error, core->now_ns);
    else
        core_returned(core, asked.first, asked.pages, error);
}

/* The state words of the span that begins at page `first`. */
static inline uint16_t *words_of(const struct heap *h, uint32_t first)
{
    struct span_info span = {0};
    ASSERT(span_at(h, first, &span));
    return span.words;
}

/* A client without a process. */
static inline struct client *attach(struct core *core, uint32_t pid, uint32_t uid)
{
    struct client *client;
    ASSERT(client_attach(core, &(struct tag){.pid = pid, .uid = uid}, &client) == 0);
    return client;
}

#endif
