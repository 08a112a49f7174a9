/* A thread that is cancelled would leave behind what it holds, locks above all, so cancelling waits between cancel_off() and
 * cancel_on(): around whatever may reach a cancellation point and holds something. They nest. Memory: the thread's own. */
#ifndef CLIENT_CANCEL_H
#define CLIENT_CANCEL_H

#include <pthread.h>
#include <stdint.h>

/* sync: its thread */
struct cancel_hold {
    uint32_t depth;
    int before; /* the state that the outermost found */
};
extern __thread struct cancel_hold cancel_hold;

static inline void cancel_off(void)
{
    int before;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before);
    if (cancel_hold.depth++ == 0)
        cancel_hold.before = before;
}

static inline void cancel_on(void)
{
    if (--cancel_hold.depth == 0)
        pthread_setcancelstate(cancel_hold.before, NULL);
}

#endif
