/* Packets over a SOCK_SEQPACKET socket, with file descriptors beside them. */
#ifndef PROTO_PACKET_H
#define PROTO_PACKET_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PACKET_FDS_MAX 4

/* Sends one packet: 0, -EAGAIN (only with MSG_DONTWAIT in flags), or another negative errno. Never raises SIGPIPE. */
int packet_send(int socket, const void *bytes, size_t count, const int *fds, int fd_count, int flags);

/* Receives one packet into buf: its length, 0 at the end of the connection, -EAGAIN, -EMSGSIZE for one that is longer
 * than capacity or brings more than fd_max descriptors (they are closed), -EMFILE where this process may not open what it
 * brings (what came is closed), or another negative errno. fd_max: at most PACKET_FDS_MAX. Received
 * descriptors are close-on-exec and the caller's; ret_fd_count may be NULL if fd_max is 0. */
ssize_t packet_receive(int socket, void *buf, size_t capacity, int *ret_fds, int fd_max, int *ret_fd_count, int flags);

#endif
