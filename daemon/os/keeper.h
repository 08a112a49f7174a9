/* The keeper: a parent process that holds the regions and the listening socket, and starts the daemon again when it
 * dies. As the first process of a pid namespace it also waits for whoever was left to it. For daemons that run by hand or in a container on memfds: with a service manager the fd store does it, with
 * files the directory does. It does nothing else, so that it has no reason to die. */
#ifndef DAEMON_KEEPER_H
#define DAEMON_KEEPER_H

#include <stdbool.h>

#include "daemon/os/listen.h"
#include "daemon/os/pidfile.h"

/* Forks. In the child (the daemon) it returns 0, all descriptors open and the held signals still held; in the keeper it
 * never returns: it passes signals on and exits with the daemon's status when that ends by itself. If the daemon is killed
 * while it was to stop, the keeper removes the socket's file and the pid file, if they are those that were made there. A negative errno: no process is to be
 * had; the caller serves without a keeper. In the background the keeper lets go of the standard streams once it has
 * started the first daemon, which keeps them until it serves. */
int keeper_run(const struct listener *listener, const struct pid_file *pid_file, bool background);

#endif
