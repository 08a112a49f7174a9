#include <arena.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

int main(void)
{
    arena_t *a;
    arena_ref_t ref;
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    if (arena_root_get(a, "greeting", &ref) == -ENOENT) { /* the first process leaves a text */
        char *text = arena_alloc(a, 64);
        strcpy(text, "hello from the process before");
        arena_publish(a, text);
        arena_root_set(a, "greeting", arena_ref(a, text));
    } else /* the next one finds it, though the first is gone */
        puts(arena_ptr(a, ref));
    return arena_close(a);
}
