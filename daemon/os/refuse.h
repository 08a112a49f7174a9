/* What a daemon does with a heap that it cannot trust and that would be gone with it: memfds from a keeper or from a
 * service manager's store. It holds them for inspection and tells every client why it does not serve. */
#ifndef DAEMON_REFUSE_H
#define DAEMON_REFUSE_H

#include "daemon/os/region.h"

/* Answers a connection that is not served with one ERROR, whatever it has sent, and closes it. */
void refuse_fd(int fd, int error, const char *text);

/* Answers each connection that waits, and for wait_ms those that come, with an ERROR of `error` and text, and closes it. Until
 * then, or SIGTERM or SIGINT. */
void refuse_waiting(int listen_fd, int error, const char *text, int wait_ms);

/* Until SIGTERM or SIGINT. Answers each connection with an ERROR of EUCLEAN and `why`, and closes it. */
void refuse_run(const struct regions *regions, int listen_fd, const char *why);

#endif
