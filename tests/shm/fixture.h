/* For the unit tests of shm/: a heap of zeroed private memory. */
#ifndef TESTS_SHM_FIXTURE_H
#define TESTS_SHM_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "shm/layout.h"
#include "tests/random.h"

struct fixture {
    struct geometry g;
    struct heap h;
    void *map, *state;
};

static inline void *fixture_map(uint64_t bytes)
{
    void *m = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    assert_true(m != MAP_FAILED);
    return m;
}

/* A formatted heap without object memory: no function of shm/ looks at that. */
static inline void fixture_init(struct fixture *f, uint64_t heap_bytes, uint32_t root_slots)
{
    static const uint8_t id[16] = "0123456789abcde";
    assert_int_equal(geometry_init(&f->g, heap_bytes, root_slots), 0);
    f->map = fixture_map(f->g.map_bytes);
    f->state = fixture_map(f->g.state_bytes);
    heap_view(&f->h, &f->g, NULL, f->map, f->state);
    heap_format(&f->h, &f->g, id, 0x550000000000);
}

static inline void fixture_fini(struct fixture *f)
{
    munmap(f->map, f->g.map_bytes);
    munmap(f->state, f->g.state_bytes);
}

#endif
