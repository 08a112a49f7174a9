#include "tests/crash/raw.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

#include "proto/packet.h"

struct msg m;
uint8_t packet[MSG_MAX];

int raw_connect(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

int raw_send(int fd, uint32_t type, uint32_t id)
{
    m.type = type;
    m.id = id;
    int bytes = msg_encode(&m, packet, sizeof packet);
    assert_true(bytes > 0);
    return packet_send(fd, packet, (size_t)bytes, NULL, 0, 0);
}

uint32_t raw_receive(struct raw *r)
{
    char why[MSG_TEXT_MAX + 1];
    do {
        ssize_t got = packet_receive(r->fd, packet, sizeof packet, r->fds, 4, &r->fd_count, 0);
        if (got <= 0)
            return 0;
        assert_int_equal(msg_decode(&m, packet, (size_t)got, why), 0);
    } while (m.type == MSG_NOTICE);
    return m.type;
}

void hello_fields(uint32_t flags)
{
    memset(&m, 0, sizeof m);
    m.version_min = m.version = PROTO_VERSION;
    m.layout = LAYOUT_VERSION;
    m.flags = flags;
}

void raw_greet(struct raw *r, const char *socket_path)
{
    memset(r, 0, sizeof *r);
    r->fd = raw_connect(socket_path);
    hello_fields(0);
    assert_int_equal(raw_send(r->fd, MSG_HELLO, 1), 0);
    assert_int_equal(raw_receive(r), MSG_WELCOME);
    assert_int_equal(r->fd_count, 3);
    r->tag = m.tag;
    r->epoch = m.epoch;
}

void raw_open(struct raw *r, const char *socket_path)
{
    const char *why;
    raw_greet(r, socket_path);
    void *map = mmap(NULL, m.map_bytes, PROT_READ, MAP_SHARED, r->fds[1], 0);
    void *state = mmap(NULL, m.state_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fds[2], 0);
    assert_true(map != MAP_FAILED && state != MAP_FAILED);
    assert_int_equal(heap_check_header(map, m.map_bytes, m.state_bytes, &r->g, &why), 0);
    heap_view(&r->h, &r->g, NULL, map, state);
}

void raw_close_fds(struct raw *r)
{
    for (int i = 0; i < 3; i++) {
        if (r->fds[i] > 0)
            close(r->fds[i]);
        r->fds[i] = 0;
    }
}

void raw_close(struct raw *r)
{
    if (r->h.header) {
        munmap(r->h.header, r->g.map_bytes);
        munmap(r->h.hints, r->g.state_bytes);
    }
    raw_close_fds(r);
    close(r->fd);
}
