/* HELLO, RESUME and BYE: a client comes, comes back, and goes. */
#ifndef DAEMON_HELLO_H
#define DAEMON_HELLO_H

#include <stdbool.h>
#include <stdint.h>

#include "proto/msg.h"

struct connection;
struct server;

void on_hello(struct connection *c, uint32_t id, const struct msg_hello *m);
void on_resume(struct connection *c, uint32_t id, const struct msg_resume *m);
void on_bye(struct connection *c, uint32_t id);

/* A turn's work for clients that come back; true: there is more. */
bool connections_resume(struct server *s);
/* The connection closes. */
void connection_resume_forget(struct connection *c);

#endif
