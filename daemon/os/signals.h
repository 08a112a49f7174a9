/* SIGTERM, SIGINT and SIGHUP between main()'s first line and the moment when somebody handles them: they are held, so one
 * that comes early is neither lost nor kills a daemon that would leave its socket behind. */
#ifndef DAEMON_SIGNALS_H
#define DAEMON_SIGNALS_H

#include <signal.h>

/* The three. */
void signals_set(sigset_t *ret);

/* Held by this thread, and by what it starts, until they are released. */
void signals_hold(void);

/* What was held is delivered now. Also undoes a mask that this process was started with. */
void signals_release(void);

#endif
