/* Attaching: HELLO, the regions, the mapping at the common address; and what a forked child does at its first call. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/client.h"
#include "client/link/environ.h"
#include "client/debug/escape.h"
#include "client/debug/profile.h"
#include "client/extra/stack.h"
#include "proto/packet.h"

enum { SOCKET_PATH_MAX = sizeof((struct sockaddr_un *)0)->sun_path };

static struct arena *heaps[HEAPS_MAX]; /* sync: registry_lock; atomic, for who begins anew after a fork */

/* ---- HELLO ------------------------------------------------------------------------------------------------------------------------------ */

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
static int hello(struct connection *c, unsigned flags, int fds[3], struct patience *patience)
{
    char why[MSG_TEXT_MAX + 1];
    int count = 0, expected = flags & HELLO_LOOK ? 0 : 3;
    c->out.type = MSG_HELLO;
    c->out.id = ++c->next_id;
    c->out.version_min = c->out.version = PROTO_VERSION;
    c->out.layout = LAYOUT_VERSION;
    c->out.flags = flags;
    c->out.heap_id_bytes = 0;
    c->out.tag = 0;
    c->out.image = process_image();
    int bytes = msg_encode(&c->out, c->packet, sizeof c->packet);
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
    rc = msg_decode(&c->in, c->packet, (size_t)got, why);
    if (rc == 0 && c->in.type == MSG_ERROR) {
        reason_set(c->in.text);
        rc = -(int)c->in.error;
    }
    else if (rc == 0 && (c->in.type != MSG_WELCOME || count != expected || c->in.heap_id_bytes != 16))
        rc = -EPROTO;
    if (rc < 0)
        while (count > 0)
            close(fds[--count]);
    return rc < 0 ? rc : count;
}

/* A pause before the next try; false: there is no patience any more. */
static bool tries_again(struct patience *patience)
{
    struct timespec pause = {.tv_nsec = 5000000};
    if (!conn_waits(patience))
        return false;
    nanosleep(&pause, NULL);
    return true;
}

/* Connects and says HELLO, on and on while connections are lost - a daemon that is being started again, or one that was stopped
 * for long - and, if there was a daemon before, also while nobody is there; as long as there is patience. As hello(). */
static int greet(struct arena *a, bool was_there, unsigned flags, int fds[3], struct patience *patience)
{
    do {
        int rc = conn_connect(a->socket);
        if (rc < 0 && rc != -EAGAIN && !(was_there && (rc == -ENOENT || rc == -ECONNREFUSED)))
            return rc;
        conn_init(&a->conn, rc < 0 ? -1 : rc);
        if (rc >= 0) {
            rc = hello(&a->conn, flags, fds, patience);
            if (rc != -EPIPE)
                return rc;
            conn_forget(&a->conn);
        }
    } while (tries_again(patience));
    return -ENOTCONN;
}

static unsigned hello_flags(const struct arena *a) { return a->read_only ? HELLO_READ_ONLY : 0; }

static void close_fds(int *fds, int count)
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

/* A dump would read every page that nobody has backed, and so make memory of it, for good and for all. */
static void keep_out_of_dumps(struct arena *a)
{
    if (a->debug & DEBUG_CORE)
        return;
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

static int map_regions(struct arena *a, const struct msg *welcome, const int *fds)
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
    keep_out_of_dumps(a);
    return 0;
no_heap:
    munmap(state, welcome->state_bytes);
no_state:
    munmap(map, welcome->map_bytes);
    return rc;
}

static void unmap_regions(struct arena *a)
{
    if (!a->base)
        return;
    munmap(a->base, a->heap_bytes);
    munmap(a->heap.header, a->map_bytes);
    munmap(a->heap.hints, a->state_bytes);
}

/* ---- what the environment asks for --------------------------------------------------------------------------------- */

/* Names what cannot be used: in arena_reason(), and on one line of standard error - the error handler's place, which nobody
 * can have set yet - where it is not what this process was told last. */
static void say_complaint(const struct environment *e)
{
    static uint64_t said; /* sync: atomic */
    uint64_t hash = 14695981039346656037ULL;
    if (!*e->complaint)
        return;
    for (const char *at = e->complaint; *at; at++)
        hash = (hash ^ (unsigned char)*at) * 1099511628211ULL;
    reason_set(e->complaint);
    if (exchange_relaxed(&said, hash) != hash)
        dprintf(STDERR_FILENO, "arena: %s\n", e->complaint);
}

static void environ_apply(struct arena *a, struct environment *e)
{
    environ_read(e);
    a->debug = e->debug;
    a->watched = (a->debug & DEBUG_ESCAPE) != 0;
    a->stack_max = e->stack_max ? e->stack_max : STACK_MAX_FIRST;
    profile_init(a, e);
    say_complaint(e);
}

/* ---- open and close ------------------------------------------------------------------------------------------------------------------- */

struct arena *heap_at(uint32_t index) { return heaps[index]; }

/* In a forked child, whatever other threads of its parent were in the middle of is left as it is: neither walked nor freed. */
static void arena_free_struct(struct arena *a)
{
    bool foreign = forked(a);
    unmap_regions(a);
    conn_forget(&a->conn);
    if (foreign) {
        profile_forget(a);
        if (a->leases)
            munmap(a->leases, a->heap.page_count * sizeof *a->leases);
    } else {
        lease_fini(a);
        pins_fini(a);
        profile_fini(a);
        escape_fini(a);
    }
    free(a->socket);
    free(a);
}

/* Also one that a parent had open before the fork: its mapping is here, at the common address. */
static struct arena *find_open(const uint8_t heap_id[16], bool read_only)
{
    for (int i = 0; i < HEAPS_MAX; i++)
        if (heaps[i] && heaps[i]->read_only == read_only &&
            memcmp(heaps[i]->heap.header->heap_id, heap_id, 16) == 0 && !heap_is_stale(heaps[i]))
            return heaps[i];
    return NULL;
}

/* A heap that a thread opens, or says goodbye to, as one kind of client. Others that want to open it wait: so that a second
 * open finds the first, and does not find the limits used up by a client that is about to go. sync: registry_lock */
struct turn {
    const uint8_t *heap_id;
    bool read_only;
    struct turn *next;
};
static struct turn *turns;

static bool is_taken(const struct turn *t)
{
    for (const struct turn *other = turns; other; other = other->next)
        if (other->read_only == t->read_only && memcmp(other->heap_id, t->heap_id, 16) == 0)
            return true;
    return false;
}

static void turn_take(struct turn *t)
{
    t->next = turns;
    turns = t;
}

static void turn_end(struct turn *t)
{
    struct turn **at = &turns;
    while (*at != t)
        at = &(*at)->next;
    *at = t->next;
    pthread_cond_broadcast(&registry_changed);
}

/* Waits for another thread that has registry_lock for something; looks up now and then. */
static void registry_wait(void)
{
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 100000000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_cond_timedwait(&registry_changed, &registry_lock, &until);
}

/* This client goes away at once, not only when the process ends. */
static void say_bye(struct arena *a)
{
    conn_lock(a);
    a->conn.out.flags = 0;
    if (!heap_is_stale(a))
        conn_call(a, MSG_BYE, MSG_OK);
    conn_unlock(a);
}

/* Maps what the daemon's WELCOME brought. */
static int settle(struct arena *a, int fds[3])
{
    int rc = map_regions(a, &a->conn.in, fds);
    close_fds(fds, 3);
    if (rc < 0 || (rc = lease_init(a)) < 0 || (rc = pins_init(a)) < 0)
        return rc;
    large_init(a);
    a->classes = size_classes;
    return 0;
}

/* Gives the heap a place among those of this process. With registry_lock. */
static int place(struct arena *a)
{
    uint32_t stale = threads_stale();
    for (uint32_t i = 0; i < HEAPS_MAX; i++)
        if (!heaps[i] && !(stale >> i & 1)) {
            a->index = i;
            a->tls_at = (uint64_t)((char *)&tls_mcaches[i] - thread_pointer());
            a->opens = 1;
            store_release(&heaps[i], a); /* [FK3] */
            return 0;
        }
    return -EMFILE;
}

/* The heap is not open yet, and it is this thread's turn. -ESTALE: another one is there by now. */
static int open_new(struct arena *a, const uint8_t heap_id[16], struct patience *patience)
{
    int fds[3] = {-1, -1, -1}, rc = hello(&a->conn, hello_flags(a), fds, patience);
    if (rc < 0)
        return rc;
    a->tag = (uint16_t)a->conn.in.tag;
    a->conn.epoch = a->conn.in.epoch;
    if (memcmp(a->conn.in.heap_id, heap_id, 16) != 0) {
        close_fds(fds, 3);
        rc = -ESTALE;
    } else
        rc = settle(a, fds);
    if (rc == 0 && a->profile)
        profile_start(a);
    if (rc == 0) {
        threads_reap(false); /* for their places */
        registry_enter();
        rc = place(a);
        pthread_mutex_unlock(&registry_lock);
    }
    if (rc < 0)
        say_bye(a);
    return rc;
}

/* Looks which heap is there. If it is open in this process, that is it; else it is opened. One thread at a time for each
 * heap; threads that open different ones do not wait for one another. */
static int open_heap(struct arena *a, struct arena **ret)
{
    struct patience patience = conn_patience(a);
    uint8_t heap_id[16];
    int rc;
    do {
        rc = greet(a, false, HELLO_LOOK, NULL, &patience);
        if (rc < 0)
            return rc;
        memcpy(heap_id, a->conn.in.heap_id, 16);
        struct turn turn = {.heap_id = heap_id, .read_only = a->read_only};
        registry_enter();
        while (is_taken(&turn)) {
            if (!conn_waits(&patience)) {
                pthread_mutex_unlock(&registry_lock);
                return -ENOTCONN;
            }
            registry_wait();
        }
        struct arena *found = find_open(heap_id, a->read_only);
        if (found)
            found->opens++;
        else
            turn_take(&turn);
        pthread_mutex_unlock(&registry_lock);
        *ret = found ? found : a;
        if (found)
            return 0;
        rc = open_new(a, heap_id, &patience);
        registry_enter();
        turn_end(&turn);
        pthread_mutex_unlock(&registry_lock);
        if (rc == 0 || (rc != -EPIPE && rc != -ESTALE))
            return rc;
        conn_forget(&a->conn); /* it was lost between the two, or has come to another heap: look again */
    } while (tries_again(&patience));
    return -ENOTCONN;
}

/* A copy that a later chdir does not change; as given where that would be longer than a socket's path may be. */
static char *socket_absolute(const char *path)
{
    char directory[SOCKET_PATH_MAX], whole[SOCKET_PATH_MAX];
    if (*path != '/' && getcwd(directory, sizeof directory) && *directory == '/' &&
        snprintf(whole, sizeof whole, "%s/%s", directory, path) < (int)sizeof whole)
        path = whole;
    return strdup(path);
}

PUBLIC int arena_open(arena_t **out, const char *socket, const struct arena_options *options)
{
    struct arena_options o = ARENA_OPTIONS_INIT;
    struct environment environment = {.complaint = ""};
    char buf[256];
    if (!out || (options && (options->size < sizeof o || (options->flags & ~(unsigned)ARENA_READ_ONLY) || options->timeout_ms < -1)))
        return refused(-EINVAL, "arena_open: no place for the heap, or options that are none");
    if (options)
        o = *options;
    struct arena *a = calloc(1, sizeof *a), *found = NULL;
    if (!a)
        return refused(-ENOMEM, "no private memory for a heap");
    cancel_off();
    a->conn.fd = -1;
    a->read_only = (o.flags & ARENA_READ_ONLY) != 0;
    a->timeout_ms = o.timeout_ms;
    a->socket = socket_absolute(environ_socket(&environment, socket, buf, sizeof buf));
    environ_apply(a, &environment);
    a->generation = fork_generation();
    int rc = a->socket ? open_heap(a, &found) : -ENOMEM;
    if (rc < 0 || found != a)
        arena_free_struct(a);
    if (rc == 0 && forked(found) && (rc = arena_reattach(found)) < 0)
        arena_close(found); /* it stays open as often as it was */
    cancel_on();
    if (rc == 0)
        *out = found;
    return rc;
}

PUBLIC int arena_close(arena_t *a)
{
    if (!a)
        return -EINVAL;
    if (!handler_may_close(a))
        return refused(-EBUSY, "arena_close: the call whose error is being handled goes on with the heap");
    cancel_off();
    bool foreign = forked(a); /* a child that was no client */
    struct turn turn = {.heap_id = a->heap.header->heap_id, .read_only = a->read_only};
    registry_enter();
    if (--a->opens) {
        pthread_mutex_unlock(&registry_lock);
        cancel_on();
        return 0;
    }
    turn_take(&turn);
    heaps[a->index] = NULL;
    while (a->busy)
        registry_wait();
    threads_forget(a->index);
    stack_forget(a);
    pthread_mutex_unlock(&registry_lock);
    if (!foreign) {
        profile_fini(a);
        say_bye(a);
    }
    registry_enter();
    turn_end(&turn);
    pthread_mutex_unlock(&registry_lock);
    mcaches_unmap(a);
    arena_free_struct(a);
    cancel_on();
    return 0;
}

/* ---- fork --------------------------------------------------------------------------------------------------------------------------------- */

uint32_t opens_after_fork(void)
{
    uint32_t open = 0;
    turns = NULL;
    for (uint32_t i = 0; i < HEAPS_MAX; i++)
        if (load_acquire(&heaps[i])) { /* [FK3] */
            heaps[i]->busy = 0;
            open |= 1u << i;
        }
    return open;
}

/* The child's own client, after its WELCOME. What is not made new here is constant, or the parent's for good: never read. */
static int settle_again(struct arena *a)
{
    int rc = lease_init(a);
    if (rc < 0 || (rc = pins_init(a)) < 0)
        return rc;
    a->gc_mode = GC_RUNS;
    large_init(a);
    a->tx_ready_count = a->tx_resolved_count = 0;
    a->escape = NULL;
    mcaches_forget(a);
    if (a->profile)
        profile_start(a);
    return 0;
}

/* The parent's connection, mcaches and leases are not this process's. The mapping is. */
static int attach_again(struct arena *a)
{
    struct patience patience = conn_patience(a);
    int fds[3] = {-1, -1, -1};
    conn_forget(&a->conn);
    int rc = greet(a, true, hello_flags(a), fds, &patience);
    if (rc < 0)
        return rc;
    close_fds(fds, 3);
    a->tag = (uint16_t)a->conn.in.tag;
    a->conn.epoch = a->conn.in.epoch;
    if (memcmp(a->conn.in.heap_id, a->heap.header->heap_id, 16) != 0) {
        say_bye(a);
        conn_forget(&a->conn);
        mcaches_forget(a);
        heap_set_stale(a); /* for ever: it is not asked again */
        return -ESTALE;
    }
    rc = settle_again(a);
    if (rc < 0)
        say_bye(a);
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
