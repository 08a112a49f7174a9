/* How long a daemon takes to know again all that it knew: core_start() over a heap of as many spans as the argument says
 * (a million), of small classes, half of their objects published, a tenth of them leased to a client. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "daemon/core/core.h"
#include "shm/assert.h"

static int never(void *context, uint64_t first, uint64_t pages) { return (void)context, (void)first, (void)pages, -ENOMEM; }
static uint64_t nothing(void *context) { return (void)context, 0; }

static uint64_t now_ns(clockid_t clock)
{
    struct timespec ts;
    clock_gettime(clock, &ts);
    return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void *map_all(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    ASSERT(p != MAP_FAILED);
    return p;
}

int main(int argc, char **argv)
{
    static struct core core;
    const struct backing backing = {NULL, never, nothing, never, never};
    const struct limits limits = {0};
    uint64_t spans = argc > 1 ? strtoull(argv[1], NULL, 10) : 1000000, page = 1, unit = 1, words = 0;
    const uint8_t id[16] = {1};
    struct geometry g;
    struct heap h;
    char why[256] = "";
    ASSERT(spans && geometry_init(&g, (spans * 2 + 1000) * PAGE_SIZE < HEAP_MIN ? HEAP_MIN : (spans * 2 + 1000) * PAGE_SIZE, 1024) == 0);
    heap_view(&h, &g, NULL, map_all(g.map_bytes), map_all(g.state_bytes));
    heap_format(&h, &g, id, 0);
    h.header->tag_top = 2;
    const struct tag client = {.state = TAG_CLIENT, .pid = 1};
    tag_write(&h, 1, &client);
    for (uint64_t i = 0; i < spans; i++) {
        unsigned c = SPAN_CLASS(4 + i % 8, i % 2); /* 16 to 128 bytes */
        uint32_t objects = class_table[c].objects;
        for (uint32_t k = 0; k < objects; k += 2)
            h.words[unit * UNIT_WORDS + k] = WORD_SHARED;
        span_write(&h, page, class_table[c].pages, c, (uint32_t)unit, i % 10 == 0, i % 10 == 0, 1000);
        page += class_table[c].pages;
        unit += span_units(objects);
        words += objects;
    }
    h.header->top = page;
    uint64_t from = now_ns(CLOCK_MONOTONIC), cpu_from = now_ns(CLOCK_PROCESS_CPUTIME_ID);
    int rc = core_start(&core, &h, &backing, &limits, from, why);
    uint64_t took = now_ns(CLOCK_MONOTONIC) - from, cpu = now_ns(CLOCK_PROCESS_CPUTIME_ID) - cpu_from;
    if (rc < 0) {
        fprintf(stderr, "%s\n", why);
        return 1;
    }
    ASSERT(core.spans == spans);
    printf("%llu spans, %llu state words: rebuilt in %llu ms, %llu ms of them on a CPU\n", (unsigned long long)spans, (unsigned long long)words,
           (unsigned long long)(took / 1000000), (unsigned long long)(cpu / 1000000));
    core_stop(&core);
    return 0;
}
