/* Attaching: HELLO, the regions, the mapping at the common address; and a forked child that becomes a client of its own at its
 * first slow path. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/cancel.h"
#include "client/link/conn.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/registry.h"
#include "client/link/socket.h"
#include "proto/call.h"
#include "proto/packet.h"

/* ---- HELLO ----------------------------------------------------------------------------------------------------------- */

/* The next packet. A daemon that refuses closes at once, and that may be noticed before its reason is read. */
static ssize_t receive(struct connection *c, int fds[3], int *ret_count, struct patience *patience)
{
    bool reset = false;
    for (;;) {
        if (!conn_is_there(c)) /* the program has closed what it does not know */
            return -EPIPE;
        ssize_t got = packet_receive(c->fd, c->packet, sizeof c->packet, fds, 3, ret_count, 0);
        if (got == -ECONNRESET && !reset)
            reset = true;
        else if (got != -EAGAIN)
            return got == 0 || got == -ECONNRESET || got == -EBADF || got == -ENOTSOCK ? -EPIPE : got;
        else if (!conn_waits(patience))
            return -ENOTCONN;
    }
}

/* Sends HELLO, as a new client or (HELLO_LOOK) to learn which heap is there, and takes the reply with its descriptors: three of
 * a client. Their number, -EPIPE: the connection was lost, or another negative errno. */
int attach_hello(struct connection *c, unsigned flags, uint32_t copy, int fds[3], struct patience *patience)
{
    char why[MSG_TEXT_MAX + 1];
    int count = 0, expected = flags & HELLO_LOOK ? 0 : 3;
    struct msg request = call_hello(flags, process_image());
    request.hello.copy = copy;
    request.id = conn_next_id(c);
    int bytes = msg_encode(&request, c->packet, sizeof c->packet);
    if (bytes < 0)
        return bytes;
    int rc = conn_is_there(c) ? packet_send(c->fd, c->packet, (size_t)bytes, NULL, 0, 0) : -EPIPE;
    if (rc == -EBADF || rc == -ENOTSOCK)
        return -EPIPE;
    if (rc < 0 && rc != -EPIPE && rc != -ECONNRESET) /* lost: its reason may be there to be read */
        return rc;
    ssize_t got = receive(c, fds, &count, patience);
    if (got < 0)
        return (int)got;
    rc = msg_decode(&c->in, &c->space, c->packet, (size_t)got, why);
    if (rc == 0 && c->in.type == MSG_ERROR) {
        reason_set(c->in.error.text);
        rc = -(int)c->in.error.error;
    }
    else if (rc == 0 && (c->in.type != MSG_WELCOME || count != expected || c->in.welcome.heap_id_bytes != HEAP_ID_BYTES))
        rc = -EPROTO;
    if (rc < 0)
        while (count > 0)
            close(fds[--count]);
    return rc < 0 ? rc : count;
}

/* A pause before the next try; false: there is no patience any more. */
bool attach_tries_again(struct patience *patience)
{
    struct timespec pause = {.tv_nsec = 5000000};
    if (!conn_waits(patience))
        return false;
    nanosleep(&pause, NULL);
    return true;
}

/* Connects and says HELLO, on and on while connections are lost - a daemon that is being started again, or one that was stopped
 * for long - and, if there was a daemon before, also while nobody is there; as long as there is patience. As attach_hello(). */
int attach_greet(struct arena *a, bool was_there, unsigned flags, uint32_t copy, int fds[3], struct patience *patience)
{
    do {
        int rc = conn_connect(a->socket);
        if (rc < 0 && rc != -EAGAIN && !(was_there && (rc == -ENOENT || rc == -ECONNREFUSED)))
            return rc;
        conn_init(&a->conn, rc < 0 ? -1 : rc);
        if (rc >= 0) {
            rc = attach_hello(&a->conn, flags, copy, fds, patience);
            if (rc != -EPIPE)
                return rc;
            conn_forget(&a->conn);
        }
    } while (attach_tries_again(patience));
    return -ENOTCONN;
}

unsigned attach_flags(const struct arena *a) { return a->read_only ? HELLO_READ_ONLY : 0; }

void attach_close_fds(int *fds, int count)
{
    for (int i = 0; i < count; i++)
        if (fds[i] >= 0)
            close(fds[i]);
}

/* ---- the regions --------------------------------------------------------------------------------------------------------------------- */

/* Elsewhere, but aligned as the common address is, up to ALIGN_MAX, where there are addresses enough: so that an object which is
 * aligned in the heap is aligned here. */
static void *map_elsewhere(int fd, uint64_t bytes, uint64_t base, int prot)
{
    enum { ALIGN_MAX = 2 << 20 };
    uint8_t *all = mmap(NULL, bytes + ALIGN_MAX, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED)
        return mmap(NULL, bytes, prot, MAP_SHARED | MAP_NORESERVE, fd, 0);
    uint64_t before = (base - (uint64_t)(uintptr_t)all) % ALIGN_MAX;
    void *got = mmap(all + before, bytes, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
    if (got == MAP_FAILED) {
        int error = errno;
        munmap(all, bytes + ALIGN_MAX);
        errno = error;
        return got;
    }
    if (before)
        munmap(all, before);
    munmap(all + before + bytes, ALIGN_MAX - before);
    return got;
}

/* Maps the heap where every process has it, or elsewhere if something is there. */
static void *map_heap(int fd, uint64_t bytes, uint64_t base, int prot, bool *ret_same)
{
    void *want = (void *)(uintptr_t)base;
    void *got = mmap(want, bytes, prot, MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fd, 0);
    if (got != MAP_FAILED && got != want) { /* a kernel that does not know the flag */
        munmap(got, bytes);
        got = MAP_FAILED;
    }
    *ret_same = got != MAP_FAILED;
    return *ret_same ? got : map_elsewhere(fd, bytes, base, prot);
}

static bool fd_covers(int fd, uint64_t bytes)
{
    struct stat st;
    return fstat(fd, &st) == 0 && (uint64_t)st.st_size >= bytes;
}

/* With ARENA_DEBUG=core. The kernel takes the map for a private mapping of a file, as it is mapped from a descriptor that cannot
 * write, and regions in a backing directory for shared files: both are left out of dumps by default, see core(5). */
static void put_into_dumps(void)
{
    enum { MAPPED_PRIVATE = 1 << 2, MAPPED_SHARED = 1 << 3 };
    char text[32];
    int fd = open("/proc/self/coredump_filter", O_RDWR | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (n > 0) {
        text[n] = 0;
        unsigned long filter = strtoul(text, NULL, 16);
        int length = snprintf(text, sizeof text, "0x%lx", filter | MAPPED_PRIVATE | MAPPED_SHARED);
        n = pwrite(fd, text, (size_t)length, 0); /* what is refused leaves a dump as it was */
    }
    if (fd >= 0)
        close(fd);
}

/* A dump would read every page that nobody has backed, and so make memory of it, for good and for all. */
static void keep_out_of_dumps(struct arena *a)
{
    madvise(a->base, a->heap_bytes, MADV_DONTDUMP);
    madvise(a->heap.header, a->map_bytes, MADV_DONTDUMP);
    madvise(a->heap.hints, a->state_bytes, MADV_DONTDUMP);
}

/* What mmap said of a region: as under ulimit -v. */
static int not_mapped(const char *region, uint64_t bytes)
{
    int error = errno;
    return refused(-error, "cannot map the %s region, %llu KiB of addresses: %s", region, (unsigned long long)(bytes >> 10),
                   strerror(error));
}

int attach_map(struct arena *a, const struct msg_welcome *welcome, const int *fds)
{
    const char *why;
    struct geometry g;
    int prot = a->read_only ? PROT_READ : PROT_READ | PROT_WRITE, rc = -ENOMEM;
    if (!fd_covers(fds[0], welcome->heap_bytes) || !fd_covers(fds[1], welcome->map_bytes) ||
        !fd_covers(fds[2], welcome->state_bytes))
        return -EPROTO;
    void *map = mmap(NULL, welcome->map_bytes, PROT_READ, MAP_SHARED | MAP_NORESERVE, fds[1], 0);
    if (map == MAP_FAILED)
        return not_mapped("map", welcome->map_bytes);
    void *state = mmap(NULL, welcome->state_bytes, prot, MAP_SHARED | MAP_NORESERVE, fds[2], 0);
    if (state == MAP_FAILED) {
        rc = not_mapped("state", welcome->state_bytes);
        goto no_state;
    }
    rc = heap_check_header(map, welcome->map_bytes, welcome->state_bytes, &g, &why);
    if (rc < 0 || g.heap_bytes != welcome->heap_bytes) {
        rc = -EPROTO;
        goto no_heap;
    }
    void *heap = map_heap(fds[0], g.heap_bytes, welcome->base, prot, &a->same_address);
    if (heap == MAP_FAILED) {
        rc = not_mapped("heap", g.heap_bytes);
        goto no_heap;
    }
    heap_view(&a->heap, &g, heap, map, state);
    a->base = heap;
    a->heap_bytes = g.heap_bytes;
    a->pages = a->heap.pages;
    a->words = a->heap.words;
    a->map_bytes = welcome->map_bytes;
    a->state_bytes = welcome->state_bytes;
    if (a->debug & DEBUG_CORE)
        put_into_dumps();
    else
        keep_out_of_dumps(a);
    return 0;
no_heap:
    munmap(state, welcome->state_bytes);
no_state:
    munmap(map, welcome->map_bytes);
    return rc;
}

void attach_unmap(struct arena *a)
{
    if (!a->base)
        return;
    munmap(a->base, a->heap_bytes);
    munmap(a->heap.header, a->map_bytes);
    munmap(a->heap.hints, a->state_bytes);
}

/* ---- a forked child -------------------------------------------------------------------------------------------------- */

/* This client goes away at once, not only when the process ends. */
void attach_bye(struct arena *a)
{
    conn_lock(a);
    if (!heap_is_stale(a))
        conn_call(a, MSG(bye));
    conn_unlock(a);
}

/* The parent's connection, mcaches and leases are not this process's. The mapping is. */
static int attach_again(struct arena *a)
{
    struct patience patience = conn_patience(a);
    int fds[3] = {-1, -1, -1};
    conn_forget(&a->conn);
    int rc = attach_greet(a, true, attach_flags(a), process_copy(), fds, &patience);
    if (rc < 0)
        return rc;
    attach_close_fds(fds, 3);
    a->tag = (uint16_t)a->conn.in.welcome.tag;
    a->conn.epoch = a->conn.in.welcome.epoch;
    if (memcmp(a->conn.in.welcome.heap_id, a->heap.header->heap_id, 16) != 0) {
        attach_bye(a);
        conn_forget(&a->conn);
        hooks.attached(a, false);
        conn_set_stale(a); /* for ever: it is not asked again */
        return -ESTALE;
    }
    rc = hooks.attached(a, true);
    if (rc < 0)
        attach_bye(a);
    return rc;
}

/* By the first slow path of a forked child: one thread attaches, the others wait for it, and take its answer. */
int arena_reattach(struct arena *a)
{
    int rc = 0;
    cancel_off();
    uint32_t now = fork_generation();
    registry_enter();
    if (a->attaching == now) {
        uint32_t before = a->attached;
        while (a->attached == before)
            registry_wait();
        rc = a->attach_error;
    } else if (a->generation != now) {
        a->attaching = now;
        pthread_mutex_unlock(&registry_lock);
        rc = attach_again(a);
        registry_enter();
        a->attaching = 0;
        a->attached++;
        a->attach_error = rc;
        if (rc == 0 || rc == -ESTALE)
            store_release(&a->generation, now); /* [FK2] */
        pthread_cond_broadcast(&registry_changed);
    }
    pthread_mutex_unlock(&registry_lock);
    cancel_on();
    return rc;
}
