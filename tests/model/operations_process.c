/* What concerns the process: figures, trims, second opens, forks, another program in its place. */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "tests/model/operations.h"
#include "tests/model/worker.h"

static void figures(struct ctx *c)
{
    struct arena_stats stats = {.size = sizeof stats};
    int rc = arena_version() == ARENA_VERSION ? arena_stats(c->a, &stats) : -EINVAL;
    if (rc < 0) {
        may_fail(c, -rc, "arena_stats");
        return;
    }
    CHECK(stats.heap_max >= R->set.heap_bytes && stats.clients > 0 && stats.objects_used == stats.objects_owned + stats.objects_shared,
          "the heap's figures do not agree");
    CHECK(arena_same_address(c->a) == 0 || arena_same_address(c->a) == 1, "the same address");
}

static void trim(struct ctx *c)
{
    int rc = arena_trim(c->a);
    if (rc < 0)
        may_fail(c, -rc, "arena_trim");
}

static void second_open(struct ctx *c)
{
    arena_t *again = NULL;
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = R->set.timeout_ms;
    int rc = arena_open(&again, R->set.socket, &options);
    if (rc == -ENOENT || rc == -ECONNREFUSED) /* a daemon that is being started */
        return;
    if (rc < 0) {
        may_fail(c, -rc, "a second open");
        return;
    }
    CHECK(again == c->a, "a second open of the heap is another one");
    CHECK(arena_on_error(again, error_handler, NULL) == 0, "arena_on_error");
    rc = arena_close(again);
    CHECK(rc == 0, "the close of a second open: %s", strerror(-rc));
}

static void profile_written(struct ctx *c)
{
    char path[160];
    snprintf(path, sizeof path, "%.100s/%d.prof", R->set.directory, (int)getpid()); /* its threads' */
    int rc = arena_profile_write(c->a, path);
    CHECK(rc == (R->set.profile[0] ? 0 : -ENOENT), "the profile: %s", strerror(-rc));
}

static void forked(struct ctx *c)
{
    if (SANITIZED) /* a sanitizer's allocator is not whole in a child that was forked beside other threads */
        return;
    fork_and_wait(rnd(&c->seed), c->a);
    atomic_fetch_add(&R->count.forks, 1);
}

/* Its other threads are anywhere; what they had is as if they had been killed. */
static void executed(struct ctx *c)
{
    atomic_fetch_add(&R->count.execs, 1);
    worker_exec_again((int)(c->p - R->process));
}

static void spelled_out(struct ctx *c)
{
    CHECK(arena_reason() != NULL, "no reason");
    CHECK(arena_open(NULL, NULL, NULL) == -EINVAL || c, "an open of nothing");
}

const struct operation process_operations[] = {
    {"figures", figures, 3, FOR_WORKERS | FOR_CHILDREN},
    {"trim", trim, 3, FOR_WORKERS | FOR_CHILDREN},
    {"second_open", second_open, 4, FOR_WORKERS | FOR_CHILDREN},
    {"profile_written", profile_written, 2, FOR_WORKERS},
    {"forked", forked, 3, FOR_WORKERS},
    {"executed", executed, 1, FOR_WORKERS},
    {"spelled_out", spelled_out, 1, FOR_WORKERS | FOR_CHILDREN},
    {NULL, NULL, 0, 0},
};
