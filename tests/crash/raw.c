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
static struct msg_space space;

int raw_connect(const char *socket_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    strncpy(address.sun_path, socket_path, sizeof address.sun_path - 1);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

int raw_send(int fd, uint32_t id, struct msg message)
{
    message.id = id;
    int bytes = msg_encode(&message, packet, sizeof packet);
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
        assert_int_equal(msg_decode(&m, &space, packet, (size_t)got, why), 0);
    } while (m.type == MSG_NOTICE);
    return m.type;
}

#define TAKE_U32(name, field)    message.name.field = v->field;
#define TAKE_OPT32(name, field)  TAKE_U32(name, field)
#define TAKE_U64(name, field)    TAKE_U32(name, field)
#define TAKE_STR(name, field)    TAKE_U32(name, field)
#define TAKE_BIN(name, field)    TAKE_U32(name, field) TAKE_U32(name, field##_bytes)
#define TAKE_LIST(name, field)   TAKE_U32(name, field) TAKE_U32(name, field##_count)
#define TAKE_JOB(name, field)
#define TAKE_PAD(name, field)
#define TAKE(name, field, kind, least, most) TAKE_##kind(name, field)
#define TAKE_ALL(NAME, name, number, sender, reply, fields) case MSG_##NAME: MSG_EACH(TAKE, name, fields) break;

struct msg raw_message(uint32_t type, const struct raw_values *v)
{
    struct msg message = {.type = type};
    switch (type) {
        MSG_TABLE(TAKE_ALL)
    }
    return message;
}

struct msg raw_hello_again(unsigned flags, const uint8_t *heap_id, unsigned tag)
{
    struct msg message = call_hello(flags, 0);
    message.hello.heap_id = heap_id;
    message.hello.heap_id_bytes = HEAP_ID_BYTES;
    message.hello.tag = tag;
    return message;
}

void raw_greet(struct raw *r, const char *socket_path)
{
    memset(r, 0, sizeof *r);
    r->fd = raw_connect(socket_path);
    assert_int_equal(raw_send(r->fd, 1, call_hello(0, 0)), 0);
    assert_int_equal(raw_receive(r), MSG_WELCOME);
    assert_int_equal(r->fd_count, 3);
    r->tag = m.welcome.tag;
    r->epoch = m.welcome.epoch;
}

void raw_open(struct raw *r, const char *socket_path)
{
    const char *why;
    raw_greet(r, socket_path);
    void *map = mmap(NULL, m.welcome.map_bytes, PROT_READ, MAP_SHARED, r->fds[1], 0);
    void *state = mmap(NULL, m.welcome.state_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, r->fds[2], 0);
    assert_true(map != MAP_FAILED && state != MAP_FAILED);
    assert_int_equal(heap_check_header(map, m.welcome.map_bytes, m.welcome.state_bytes, &r->g, &why), 0);
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
