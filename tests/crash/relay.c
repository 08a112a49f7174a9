#include "tests/crash/relay.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "proto/packet.h"

static struct {
    _Atomic uint32_t type, what;
    const struct daemon *daemon;
    struct relay_board *board;
    int listener;
} relay;

struct line {
    int client, daemon;
    struct msg m;
    struct msg_space space;
    uint8_t packet[MSG_MAX];
};

static int to_daemon(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, relay.daemon->socket);
    for (;;) {
        int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
        if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
            return fd;
        close(fd);
        pause_us(1000);
    }
}

/* One packet with its descriptors: its message's type, 0 when the connection has ended. to -1: nowhere. */
static uint32_t pass(struct line *l, int from, int to)
{
    char why[MSG_TEXT_MAX + 1];
    int fds[4], count = 0;
    ssize_t got = packet_receive(from, l->packet, sizeof l->packet, fds, 4, &count, 0);
    if (got <= 0 || msg_decode(&l->m, &l->space, l->packet, (size_t)got, why) < 0)
        return 0;
    if (to >= 0)
        packet_send(to, l->packet, (size_t)got, fds, count, 0);
    while (count > 0)
        close(fds[--count]);
    return l->m.type;
}

/* Keeps the answer to the request of this id. */
static void lose(struct line *l, uint32_t id, enum relay_what what)
{
    uint32_t type;
    while ((type = pass(l, l->daemon, -1)) != 0 && l->m.id != id)
        ;
    if (!type)
        return;
    atomic_fetch_add(&relay.board->answered, 1);
    if (what == RELAY_SILENT) /* until the client gives up */
        while (pass(l, l->client, -1))
            ;
    else
        while (!atomic_load(&relay.board->cut))
            pause_us(1000);
}

static void *line_main(void *argument)
{
    struct line *l = argument;
    l->daemon = to_daemon();
    struct pollfd poll_fds[2] = {{.fd = l->client, .events = POLLIN}, {.fd = l->daemon, .events = POLLIN}};
    for (;;) {
        if (poll(poll_fds, 2, -1) < 0)
            continue;
        if (poll_fds[1].revents && !pass(l, l->daemon, l->client))
            break;
        if (!poll_fds[0].revents)
            continue;
        uint32_t type = pass(l, l->client, l->daemon);
        if (!type)
            break;
        if (type != atomic_load(&relay.type))
            continue;
        enum relay_what what = atomic_exchange(&relay.what, RELAY_PASS);
        atomic_fetch_add(&relay.board->passed, 1);
        if (what == RELAY_PASS)
            continue;
        lose(l, l->m.id, what);
        break;
    }
    close(l->client);
    close(l->daemon);
    free(l);
    return NULL;
}

static void *relay_main(void *unused)
{
    (void)unused;
    for (;;) {
        pthread_t thread;
        struct line *l = calloc(1, sizeof *l);
        l->client = accept4(relay.listener, NULL, NULL, SOCK_CLOEXEC);
        assert_int_equal(pthread_create(&thread, NULL, line_main, l), 0);
        pthread_detach(thread);
    }
    return NULL;
}

void relay_start(const struct daemon *d, struct relay_board *board, char *path, size_t capacity)
{
    pthread_t thread;
    relay.daemon = d;
    relay.board = board;
    snprintf(path, capacity, "%s/relay", d->dir);
    relay.listener = bind_socket(path, SOCK_SEQPACKET);
    assert_int_equal(pthread_create(&thread, NULL, relay_main, NULL), 0);
    pthread_detach(thread);
}

void relay_lose(uint32_t type, enum relay_what what)
{
    atomic_store(&relay.type, type);
    atomic_store(&relay.what, what);
}
