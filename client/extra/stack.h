/* The stack inside. Its bytes are one object of the heap; the rest is private memory of the
 * process, and a thread's. Of that a fork's child finds struct arena_stack wiped. */
#ifndef CLIENT_STACK_H
#define CLIENT_STACK_H

#include "client/heap.h"
#include "client/link/environ.h"

enum {
    STACK_BOTTOM = 16,    /* the first frame begins here: a pop of any frame compares as above 0 */
    STACK_QUARANTINE = 16 /* old places that are kept from use in debug mode */
};

/* A handle: | 0x5ac : 12 | number of the stack : 12 | offset : 40 | */
#define HANDLE_BASE(number) (0x5acULL << 52 | ((uint64_t)(number)&0xfff) << 40)

struct site;
struct thread;

/* Where an object of a frame was allocated; in debug mode. */
struct stack_site {
    size_t at, end;
    struct site *site;
};

struct stack {
    struct arena_stack *s; /* what the inline functions see; constant */
    struct arena *arena;   /* NULL: nobody's. sync: registry_lock */
    uint64_t handles;      /* as in s, where a fork wipes it */
    size_t size;        /* of the object at s.base; 0: it is the scratch. sync: its thread writes, atomic */
    /* NULL: no thread's yet. sync: its thread writes, atomic; others look for one that has ended, and only this one
     * ever writes that */
    struct thread *owner;
    struct stack **tls; /* where its thread finds it */
    struct stack *next_spare; /* of those that are nobody's. sync: registry_lock */
    void *kept; /* an object, a copy of the scratch: while a safepoint lasts. sync: registry_lock */
    struct stack_site *sites;
    size_t site_count, site_capacity;
    void *old[STACK_QUARANTINE];
    unsigned old_next;
    char scratch[STACK_BOTTOM + ARENA_FRAME_GUARD]
        __attribute__((aligned(16))); /* of a forked child, until it grows */
};

void stack_thread_exit(struct arena *a, struct thread *t);
/* registry_lock is held */
void stack_forget(struct arena *a); /* the heap is closed */
void stack_forget_own(uint32_t index); /* a heap was closed that this thread had a stack of */
void stacks_after_fork(bool forking);

/* A collection, or what counts as one: this thread's may shrink, and a forked child's comes to the heap. */
int stack_collect(struct arena *a);
/* At a safepoint that this thread declares: what a forked child's other threads have in private memory is copied to the heap,
 * for as long as it lasts. 0 or a negative errno. */
int stacks_keep(struct arena *a);
void stacks_let_go(struct arena *a);

#endif
