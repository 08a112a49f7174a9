/* The rows that have a daemon in them; of other peers they are not.
 *
 * attach/SIZE: a fresh process's arena_open to its first block, for a heap of that size: the median
 * of 200; and of as many, in turn with them, of a client without the library that does no more than
 * it must.
 *
 * reclaim/WHAT: how long another client waits for a refill while the daemon is busy. It asks over
 * and over: it gives back all that it caches, then times an allocation, which takes a round trip.
 * WHAT the daemon does meanwhile: quiet      nothing death      frees what a killed client owned, 1
 * million objects of 64 B: reclaim_ms is until the last is free backing    gives one client 1 GiB
 * of fresh memory in blocks of 4 MiB returning  takes it back, and gives it back to the system */
#include "tests/bench/rows.h"

#include <string.h>

#ifndef PEER_ARENA

int service_run(const struct run *run)
{
    return strncmp(run->row, "attach/", 7) == 0 || strncmp(run->row, "reclaim/", 8) == 0 ||
                   strncmp(run->row, "flood/", 6) == 0 ? 77 : 2;
}

#else

#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "client/arena.h"
#include "proto/call.h"
#include "proto/msg.h"
#include "proto/packet.h"
#include "shm/layout.h"
#include "tests/bench/daemon.h"
#include "tests/bench/peer.h"

enum { ATTACH_SAMPLES = 200, PROBES_MAX = 1 << 20, PROBES_QUIET = 2000, VICTIM_OBJECTS = 1000000 };
enum { BLOCK_BYTES = 4 << 20, BLOCKS = 256 };

static void *shared_memory(size_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        _Exit(1);
    }
    return p;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double percentile(double *values, unsigned count, double share)
{
    qsort(values, count, sizeof *values, by_value);
    unsigned at = (unsigned)(share * count);
    return count ? values[at < count ? at : count - 1] : 0;
}

static void line(const struct run *run, const char *metric, double value)
{
    printf("%s\t%s\t%.4f\t0\t0\n", run->row, metric, value);
}

/* ---- attach ---- */

static struct msg m; /* what came last */
static struct msg_space space;
static uint8_t bytes[MSG_MAX];

static bool say(int fd, uint32_t id, struct msg message)
{
    message.id = id;
    int n = msg_encode(&message, bytes, sizeof bytes);
    return n > 0 && packet_send(fd, bytes, (size_t)n, NULL, 0, 0) == 0;
}

/* The type of the next packet that is no notice; 0: there is none any more. */
static uint32_t hear(int fd, int *fds, int *count)
{
    char why[MSG_TEXT_MAX + 1];
    do {
        ssize_t got = packet_receive(fd, bytes, sizeof bytes, fds, fds ? PACKET_FDS_MAX : 0, count, 0);
        if (got <= 0 || msg_decode(&m, &space, bytes, (size_t)got, why) != 0)
            return 0;
    } while (m.type == MSG_NOTICE);
    return m.type;
}

/* Connects as a client: the socket and the descriptors of the regions; -1. */
static int connect_raw(const char *socket_path, int *fds, int *count)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", socket_path);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) != 0 || !say(fd, 1, call_hello(0, 0)) ||
        hear(fd, fds, count) != MSG_WELCOME)
        return -1;
    return fd;
}

static bool ask_spans(int fd, uint32_t epoch, unsigned span_class, uint32_t pages, const uint32_t *back, uint32_t count)
{
    return say(fd, 2, MSG(lease, .epoch = epoch, .span_class = span_class, .pages = pages, .list = back, .list_count = count));
}

/* What no client can do without, and nothing else: connects, gets the regions and maps them, has a
 * span leased and writes to it. */
static bool attach_raw(const char *socket_path)
{
    int fds[PACKET_FDS_MAX], count = 0, fd = connect_raw(socket_path, fds, &count);
    if (fd < 0 || count < 3)
        return false;
    char *heap = mmap((void *)(uintptr_t)m.welcome.base, m.welcome.heap_bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_NORESERVE | MAP_FIXED_NOREPLACE, fds[0], 0);
    void *map = mmap(NULL, m.welcome.map_bytes, PROT_READ, MAP_SHARED, fds[1], 0);
    void *state = mmap(NULL, m.welcome.state_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fds[2], 0);
    if (heap == MAP_FAILED || map == MAP_FAILED || state == MAP_FAILED ||
        !ask_spans(fd, m.welcome.epoch, 14, 1, NULL, 0) || /* 64 bytes, scan */
        hear(fd, NULL, NULL) != MSG_GRANT || m.grant.list_count == 0)
        return false;
    block_mark(heap + ((uint64_t)m.grant.list[0] << PAGE_SHIFT), 64, 0, false);
    return true;
}

/* In a process of its own: microseconds into *ret. */
static bool attach_once(const struct run *run, bool raw, double *ret)
{
    int status;
    pid_t pid = fork();
    if (pid == 0) {
        pin(run->cpu);
        uint64_t from = now_ns();
        if (raw) {
            if (!attach_raw(peer_daemon(0)->socket))
                _exit(1);
        } else {
            peer_t h = peer_enter(0);
            void *p = h ? arena_alloc(h, 64) : NULL;
            if (!p)
                _exit(1);
            block_mark(p, 64, 0, false);
        }
        *ret = (double)(now_ns() - from) / 1e3;
        _exit(0);
    }
    return waitpid(pid, &status, 0) == pid && status == 0;
}

static int attach_run(const struct run *run, const char *max)
{
    double *us = shared_memory(ATTACH_SAMPLES * sizeof *us);
    double *raw_us = shared_memory(ATTACH_SAMPLES * sizeof *raw_us);
    if (peer_setup(1, max) != 0)
        return 1;
    for (unsigned i = 0; i < ATTACH_SAMPLES; i++)
        if (!attach_once(run, false, &us[i]) || !attach_once(run, true, &raw_us[i]))
            return 1;
    line(run, "attach_p10_us",
         percentile(us, ATTACH_SAMPLES, 0.1)); /* about what it takes on an idle machine */
    line(run, "attach_us", percentile(us, ATTACH_SAMPLES, 0.5));
    line(run, "attach_p99_us", percentile(us, ATTACH_SAMPLES, 0.99));
    line(run, "attach_raw_us", percentile(raw_us, ATTACH_SAMPLES, 0.5));
    return 0;
}

/* ---- reclaim ---- */

/* What a second client does, told by its order; it says when it has begun and when it is through.
 */
struct other {
    _Atomic int order, done;
};
enum { GROW = 1, SHRINK, LEAVE };

static void await(_Atomic int *at, int value)
{
    struct timespec pause_for = {.tv_nsec = 200000};
    while (atomic_load(at) != value)
        nanosleep(&pause_for, NULL);
}

static void other_main(struct other *o, unsigned cpu, bool victim)
{
    static void *blocks[BLOCKS];
    pin(cpu);
    peer_t h = peer_enter(0);
    await(&o->order, GROW);
    if (victim)
        for (unsigned i = 0; i < VICTIM_OBJECTS; i++)
            block_mark(block_need(arena_alloc(h, 64)), 64, i, false);
    else
        for (unsigned i = 0; i < BLOCKS; i++)
            block_mark(blocks[i] = block_need(arena_alloc(h, BLOCK_BYTES)), BLOCK_BYTES, i, false);
    atomic_store(&o->done, GROW);
    await(&o->order, SHRINK);
    for (unsigned i = 0; i < BLOCKS; i++) {
        block_check(blocks[i], BLOCK_BYTES, i, false);
        arena_free(h, blocks[i]);
    }
    arena_trim(h);
    atomic_store(&o->done, SHRINK);
    await(&o->order, LEAVE);
}

struct probes {
    double *us;
    unsigned count;
};

static void probe(struct probes *p, peer_t h)
{
    arena_trim(h);
    uint64_t from = now_ns();
    void *object = block_need(arena_alloc(h, 64));
    uint64_t ns = now_ns() - from;
    block_mark(object, 64, 1, false);
    arena_free(h, object);
    if (p->count < PROBES_MAX)
        p->us[p->count++] = (double)ns / 1e3;
}

static const struct tag *tags_of(const struct map_header *map)
{
    struct geometry g;
    if (geometry_init(&g, map->heap_max, map->root_slots) < 0)
        _Exit(1);
    return (const struct tag *)((const char *)map + g.tags_at);
}

static const struct tag *tag_of(const struct map_header *map, pid_t pid)
{
    const struct tag *tags = tags_of(map);
    for (unsigned t = 1; t < map->tag_top; t++)
        if (load_relaxed(&tags[t].state) == TAG_CLIENT && tags[t].pid == (uint32_t)pid)
            return &tags[t];
    fprintf(stderr, "process %d is no client\n", (int)pid);
    _Exit(1);
}

static bool is_given_back(void)
{
    return peer_region_bytes("heap") < (uint64_t)BLOCKS * BLOCK_BYTES / 2;
}

static int reclaim_run(const struct run *run, const char *what)
{
    const bool death = strcmp(what, "death") == 0, backing = strcmp(what, "backing") == 0,
               returning = strcmp(what, "returning") == 0;
    struct other *o = shared_memory(sizeof *o);
    struct probes p = {.us = shared_memory(PROBES_MAX * sizeof(double))};
    if (!death && !backing && !returning && strcmp(what, "quiet") != 0)
        return 2;
    if (peer_setup(1, "8G") != 0)
        return 1;
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() == parent)
            other_main(o, run->cpu + 1, death);
        _exit(0);
    }
    pin(run->cpu);
    peer_t h = peer_enter(0);
    const struct map_header *map = peer_map(0);
    uint64_t from = now_ns(), end = from + 10000000000ULL;
    if (death) {
        atomic_store(&o->order, GROW);
        await(&o->done, GROW);
        const struct tag *tag = tag_of(map, pid);
        for (unsigned i = 0; i < 50; i++)
            probe(&p, h);
        p.count = 0;
        from = now_ns();
        kill(pid, SIGKILL);
        while (tag->pid == (uint32_t)pid && load_relaxed(&tag->state) != TAG_FREE && now_ns() < end)
            probe(&p, h);
        line(run, "reclaim_ms", (double)(now_ns() - from) / 1e6);
    } else if (backing) {
        atomic_store(&o->order, GROW);
        while (atomic_load(&o->done) != GROW && now_ns() < end)
            probe(&p, h);
        line(run, "backing_ms", (double)(now_ns() - from) / 1e6);
    } else if (returning) {
        atomic_store(&o->order, GROW);
        await(&o->done, GROW);
        from = now_ns();
        atomic_store(&o->order, SHRINK);
        for (unsigned n = 0; now_ns() < end; n++) {
            probe(&p, h);
            if (n % 64 == 0 && is_given_back())
                break;
        }
        line(run, "returning_ms", (double)(now_ns() - from) / 1e6);
    } else
        while (p.count < PROBES_QUIET)
            probe(&p, h);
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    line(run, "refill_p50_us", percentile(p.us, p.count, 0.5));
    line(run, "refill_p99_us", percentile(p.us, p.count, 0.99));
    line(run, "refill_max_us", percentile(p.us, p.count, 1));
    return now_ns() < end + 1000000000ULL ? 0 : 1;
}

/* ---- floods ---- */

enum { FLOOD_LEASES = 3, FLOOD_ROOTS = 256, QUEUED = 4, FLOOD_PROBES = 2000 };

/* Has QUEUED requests for spans of 4 B objects queued, always; each gives back what an earlier one has got. */
static void flood_leases(const char *socket_path)
{
    static uint32_t spans[QUEUED][MSG_LIST_MAX], count[QUEUED];
    int fds[PACKET_FDS_MAX], fd_count = 0, fd = connect_raw(socket_path, fds, &fd_count);
    uint32_t epoch = m.welcome.epoch;
    for (unsigned n = 0; fd >= 0; n++) {
        unsigned at = n % QUEUED;
        if (n >= QUEUED) {
            if (hear(fd, NULL, NULL) != MSG_GRANT)
                return;
            count[at] = m.grant.list_count;
            memcpy(spans[at], m.grant.list, m.grant.list_count * sizeof m.grant.list[0]);
        }
        if (!ask_spans(fd, epoch, 3, 1024, spans[at], count[at]))
            return;
    }
}

/* Has requests queued on many connections, always. */
static void flood_roots(const char *socket_path)
{
    int fd[FLOOD_ROOTS], fds[PACKET_FDS_MAX], count;
    for (int i = 0; i < FLOOD_ROOTS; i++) {
        count = 0;
        if ((fd[i] = connect_raw(socket_path, fds, &count)) < 0)
            return;
        while (count > 0)
            close(fds[--count]);
    }
    struct msg root = MSG(root, .mode = ROOT_MODE_SET, .name = "missing"); /* removes what is not there */
    root.id = 2;
    uint8_t request[256];
    int n = msg_encode(&root, request, sizeof request);
    for (unsigned round = 0;; round++)
        for (int i = 0; i < FLOOD_ROOTS; i++) {
            if (round >= QUEUED && hear(fd[i], NULL, NULL) == 0)
                return;
            if (packet_send(fd[i], request, (size_t)n, NULL, 0, 0) != 0)
                return;
        }
}

static int flood_run(const struct run *run, const char *what)
{
    const bool leases = strcmp(what, "leases") == 0, roots = strcmp(what, "roots") == 0;
    int fds[PACKET_FDS_MAX], count = 0, floods = leases ? FLOOD_LEASES : roots ? 1 : 0;
    pid_t pids[FLOOD_LEASES], parent = getpid();
    static double us[FLOOD_PROBES];
    struct timespec pause_for = {.tv_nsec = 1000000};
    if (!leases && !roots && strcmp(what, "quiet") != 0)
        return 2;
    if (peer_setup(1, "1G") != 0)
        return 1;
    const char *socket_path = peer_daemon(0)->socket;
    for (int i = 0; i < floods; i++)
        if ((pids[i] = fork()) == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            pin(run->cpu + 1);
            if (getppid() == parent)
                leases ? flood_leases(socket_path) : flood_roots(socket_path);
            _exit(1); /* it never ends by itself */
        }
    pin(run->cpu);
    int fd = connect_raw(socket_path, fds, &count);
    for (int i = -100; fd >= 0 && i < FLOOD_PROBES; i++) { /* the floods have begun by then */
        nanosleep(&pause_for, NULL);
        uint64_t from = now_ns();
        if (!say(fd, 3, MSG(trimmed, .serial = 1)) || hear(fd, NULL, NULL) != MSG_OK)
            fd = -1;
        if (i >= 0)
            us[i] = (double)(now_ns() - from) / 1e3;
    }
    for (int i = 0; i < floods; i++) {
        int status;
        if (waitpid(pids[i], &status, WNOHANG) == pids[i])
            fd = -1; /* there was no flood */
        else
            kill(pids[i], SIGKILL), waitpid(pids[i], &status, 0);
    }
    line(run, "round_trip_p50_us", percentile(us, FLOOD_PROBES, 0.5));
    line(run, "round_trip_p99_us", percentile(us, FLOOD_PROBES, 0.99));
    line(run, "round_trip_max_us", percentile(us, FLOOD_PROBES, 1));
    return fd < 0;
}

int service_run(const struct run *run)
{
    if (strncmp(run->row, "flood/", 6) == 0)
        return flood_run(run, run->row + 6);
    if (strncmp(run->row, "attach/", 7) == 0)
        return attach_run(run, run->row + 7);
    if (strncmp(run->row, "reclaim/", 8) == 0)
        return reclaim_run(run, run->row + 8);
    return 2;
}

#endif
