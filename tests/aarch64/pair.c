/* Two processes of another instruction set and a daemon of it: what one publishes, the other finds by its root, claims, frees.
 *
 *   pair give    allocates, publishes, sets the root; transactions, threads, a buffer, a large object
 *   pair take    finds all of it, claims and frees it
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/arena_inline.h" /* there it is arena.h */

enum { NODES = 5000, THREADS = 3, ROUNDS = 20000, BIG = 1 << 20 };

struct node {
    struct node *next;
    unsigned char text[40];
};

static arena_t *a;

#define MUST(condition)                                                                                                \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: %s does not hold (%s)\n", __FILE__, __LINE__, #condition, arena_reason());         \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static void *churn(void *seed)
{
    unsigned long random = (unsigned long)seed;
    unsigned char *held[64] = {0};
    for (int i = 0; i < ROUNDS; i++) {
        random = random * 6364136223846793005UL + 1442695040888963407UL;
        unsigned slot = random >> 33 & 63, size = 1 + (random >> 40 & 4095);
        if (held[slot])
            MUST(held[slot][0] == slot);
        arena_free(a, held[slot]);
        held[slot] = arena_alloc(a, size);
        MUST(held[slot]);
        memset(held[slot], (int)slot, size);
    }
    for (int i = 0; i < 64; i++)
        arena_free(a, held[i]);
    return NULL;
}

static void give(void)
{
    struct node *first = NULL;
    pthread_t threads[THREADS];
    for (unsigned long i = 0; i < THREADS; i++)
        MUST(pthread_create(&threads[i], NULL, churn, (void *)(i + 1)) == 0);
    MUST(arena_tx_begin(a) == 0);
    for (int i = 0; i < NODES; i++) {
        struct node *n = arena_alloc(a, sizeof *n);
        MUST(n);
        memset(n->text, i, sizeof n->text);
        n->next = first;
        first = n;
    }
    MUST(arena_tx_commit(a, "list", 0, arena_ref(a, first)) == 0);
    unsigned char *big = arena_alloc_flags(a, BIG, ARENA_ZERO);
    MUST(big && big[BIG - 1] == 0);
    memset(big, 7, BIG);
    MUST(arena_publish(a, big) == 0 && arena_root_set(a, "big", arena_ref(a, big)) == 0);
    MUST(arena_tx_begin(a) == 0 && arena_alloc(a, 100) && arena_tx_abort(a) == 0);
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

static void take(void)
{
    arena_ref_t list, big;
    int i = NODES;
    MUST(arena_root_wait(a, "big", 0, -1, &big) == 0 && arena_root_get(a, "list", &list) == 0);
    MUST(arena_root_set(a, "list", 0) == 0 && arena_root_set(a, "big", 0) == 0);
    for (struct node *n = arena_ptr(a, list), *next; n; n = next) {
        i--;
        MUST(n->text[0] == (unsigned char)i && n->text[sizeof n->text - 1] == (unsigned char)i);
        MUST(arena_claim(a, n) == 0 && arena_claim(a, n) != 0);
        next = n->next;
        arena_free(a, n);
    }
    MUST(i == 0);
    unsigned char *p = arena_ptr(a, big);
    MUST(p && p[0] == 7 && p[BIG - 1] == 7);
    arena_free(a, p);
}

int main(int argc, char **argv)
{
    MUST(argc == 2 && arena_open(&a, NULL, NULL) == 0);
    MUST(arena_same_address(a));
    strcmp(argv[1], "give") == 0 ? give() : take();
    return 0; /* without a goodbye */
}
