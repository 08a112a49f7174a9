#include "proto/call.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>

#include "proto/packet.h"
#include "shm/layout.h"

struct msg call_hello(unsigned flags, uint32_t image)
{
    return MSG(hello, .version_min = PROTO_VERSION, .version = PROTO_VERSION, .layout = LAYOUT_VERSION, .flags = flags,
               .image = image);
}

/* 0 also where the other side has closed: its reason may be there to be read. */
static int send_request(struct call *c, const struct msg *request)
{
    int bytes = msg_encode(request, c->packet, sizeof c->packet), rc = c->wait(c->context, CALL_SENDS);
    if (bytes < 0)
        return bytes;
    while (rc == 0 && (rc = packet_send(c->fd, c->packet, (size_t)bytes, NULL, 0, 0)) == -EAGAIN)
        rc = c->wait(c->context, CALL_SILENT);
    return rc == -EPIPE || rc == -ECONNRESET ? 0 : rc;
}

/* The next packet in c->in. A daemon that refuses closes at once, and that may be noticed before its reason is read. */
static int receive(struct call *c)
{
    bool reset = false;
    for (;;) {
        int rc = c->wait(c->context, CALL_RECEIVES);
        if (rc != 0)
            return rc;
        ssize_t got = packet_receive(c->fd, c->packet, sizeof c->packet, NULL, 0, NULL, 0);
        if (got > 0)
            return msg_decode(&c->in, &c->space, c->packet, (size_t)got, c->why);
        if (got == -EAGAIN && (rc = c->wait(c->context, CALL_SILENT)) != 0)
            return rc;
        if (got != -EAGAIN && (got != -ECONNRESET || reset))
            return -EPIPE;
        reset = reset || got == -ECONNRESET;
    }
}

static bool is_reply(const struct msg *in, const struct msg *request)
{
    return in->type == msg_reply(request->type) || (request->type == MSG_HELLO && in->type == MSG_OK);
}

int call(struct call *c, struct msg request)
{
    request.id = ++c->last_id;
    c->in.type = MSG_NONE;
    int rc = send_request(c, &request);
    while (rc == 0 && (rc = receive(c)) == 0) {
        if (c->in.type == MSG_ERROR && (c->in.id == request.id || c->in.id == 0)) /* 0: whatever was asked */
            return -(int)c->in.error.error;
        if (c->in.id != request.id)
            continue;
        if (is_reply(&c->in, &request))
            return 0;
        snprintf(c->why, sizeof c->why, "%s is no answer to %s", msg_name(c->in.type), msg_name(request.type));
        return -EPROTO;
    }
    return rc;
}
