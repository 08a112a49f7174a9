/* A robust mutex in a heap object: several processes count together; one dies inside, and the next repairs and goes on. */
#include <arena.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct counter {
    pthread_mutex_t mutex;
    long value, repaired;
};

static struct counter *make(arena_t *a)
{
    struct counter *c = arena_calloc(a, 1, sizeof *c);
    pthread_mutexattr_t attr;
    if (!c)
        return NULL;
    pthread_mutexattr_init(&attr);
    pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&c->mutex, &attr);
    return arena_publish(a, c) == 0 ? c : NULL; /* it outlives its maker */
}

static void lock(struct counter *c)
{
    if (pthread_mutex_lock(&c->mutex) == EOWNERDEAD) { /* its owner died: what it guards may be half done */
        c->repaired++;
        pthread_mutex_consistent(&c->mutex);
    }
}

static void add(struct counter *c, int die)
{
    lock(c);
    c->value++;
    if (die)
        _exit(0);
    pthread_mutex_unlock(&c->mutex);
}

int main(void)
{
    arena_t *a;
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0) {
        fprintf(stderr, "arena_open: %s\n", strerror(-rc));
        return 1;
    }
    struct counter *c = make(a);
    if (!c)
        return 1;
    for (int process = 0; process < 4; process++)
        if (fork() == 0) {
            for (int i = 0; i < 1000; i++)
                add(c, process == 0 && i == 500);
            _exit(0);
        }
    while (wait(NULL) > 0)
        ;
    lock(c); /* the one that died may have been the last to hold it */
    pthread_mutex_unlock(&c->mutex);
    printf("%ld counted, %ld repaired\n", c->value, c->repaired);
    rc = c->value == 3501 && c->repaired == 1 ? 0 : 1;
    arena_free(a, c);
    arena_close(a);
    return rc;
}
