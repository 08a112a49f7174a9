/* The keeper: a parent process that holds the regions and the listening socket, and starts the daemon again when it
 * dies. For daemons that run by hand or in a container on memfds: with a service manager the fd store does it, with
 * files the directory does. It does nothing else, so that it has no reason to die. */
#ifndef DAEMON_KEEPER_H
#define DAEMON_KEEPER_H

#include "daemon/region.h"

/* Forks. In the child (the daemon) it returns 0 and the descriptors are its own; in the keeper it never returns: it
 * exits with the daemon's status when that ends by itself. ready_fd: a byte there says that the daemon serves; >= 0. */
int keeper_run(const struct regions *regions, int listen_fd);

#endif
