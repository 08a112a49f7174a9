/* A client for the tests of the service: holds objects, and says on request whether it has lost
 * any.
 *
 *   holder [OBJECTS]     attaches by $ARENA_SOCKET, allocates objects of its own and published
 * ones, says "ready", then answers each line of its input: "check" compares all of them with what
 * was written and makes round trips; "quit" frees what it owns and closes.
 *
 * Exit status 0: nothing was lost. */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/arena.h"

struct object {
    uint64_t number;
    arena_ref_t next; /* of the published ones: a list from the root "held" */
    unsigned char bytes[];
};

static arena_t *a;
static struct object **own;
static uint64_t objects = 2000;

static size_t size_of(uint64_t number)
{
    return sizeof(struct object) + number * 37 % 1500;
}

static void fill(struct object *o, uint64_t number)
{
    o->number = number;
    memset(o->bytes, (int)(number % 251), size_of(number) - sizeof *o);
}

static int is_whole(const struct object *o, uint64_t number)
{
    if (o->number != number)
        return 0;
    for (size_t i = 0; i < size_of(number) - sizeof *o; i++)
        if (o->bytes[i] != number % 251)
            return 0;
    return 1;
}

static int hold(void)
{
    arena_ref_t head = 0;
    own = calloc(objects, sizeof *own);
    for (uint64_t i = 0; i < objects; i++) {
        own[i] = arena_alloc(a, size_of(i));
        struct object *published = arena_alloc(a, size_of(i));
        if (!own[i] || !published)
            return -errno;
        fill(own[i], i);
        fill(published, i);
        published->next = head;
        head = arena_ref(a, published);
        int rc = arena_publish(a, published);
        if (rc < 0)
            return rc;
    }
    return arena_root_set(a, "held", head);
}

/* The figures are a round trip, and so is most of the rest: the daemon is there, and knows this
 * client. */
static const char *check(void)
{
    struct arena_stats stats = {.size = sizeof stats};
    arena_ref_t ref;
    int rc = arena_stats(a, &stats);
    void *p = rc == 0 ? arena_alloc(a, 4 << 20) : NULL;
    if (!p)
        return strerror(rc < 0 ? -rc : errno);
    arena_free(a, p);
    for (int i = 0; i < 1000; i++) {
        if (!(p = arena_alloc(a, 100)))
            return strerror(errno);
        arena_free(a, p);
    }
    for (uint64_t i = 0; i < objects; i++)
        if (!is_whole(own[i], i))
            return "an own object is not what it was";
    rc = arena_root_get(a, "held", &ref);
    if (rc < 0)
        return strerror(-rc);
    for (uint64_t i = objects; i-- > 0;) {
        const struct object *o = arena_ptr(a, ref);
        if (!o || !is_whole(o, i))
            return "a published object is not what it was";
        ref = o->next;
    }
    return ref ? "the list does not end" : NULL;
}

int main(int argc, char **argv)
{
    char line[64];
    struct arena_options options = ARENA_OPTIONS_INIT;
    options.timeout_ms = -1; /* the machine may be busy with other tests */
    int rc = arena_open(&a, NULL, &options);
    if (argc > 1)
        objects = strtoull(argv[1], NULL, 10);
    if (rc == 0)
        rc = hold();
    if (rc < 0) {
        printf("%s\n", strerror(-rc));
        return 1;
    }
    printf("ready\n");
    while (fflush(stdout) == 0 && fgets(line, sizeof line, stdin)) {
        const char *why = strcmp(line, "check\n") == 0 ? check() : NULL;
        if (strcmp(line, "quit\n") == 0)
            break;
        printf("%s\n", why ? why : "whole");
        if (why) {
            fflush(stdout);
            return 1;
        }
    }
    for (uint64_t i = 0; i < objects; i++)
        arena_free(a, own[i]);
    return arena_close(a) < 0;
}
