/* The rows of memory.
 *
 * space/{wide,tiny}: 200 MB live, of wide (8 B..32 KiB log-uniform) or tiny (8..256 B) blocks; each
 * is replaced 4 times by one of another size; then 95 % are freed at random. Bytes held, per byte
 * that was asked for: the shared regions as the kernel counts them, this client's segment, what is
 * private to this process beyond the bench's own arrays, and what became private to the daemon
 * meanwhile. After 2 s of doing nothing, and after a trim, what share was given back.
 *
 * growth/SIZE: 1 GiB of fresh blocks: ns a block, and round trips a MiB. Each block holds the
 * address of the one before; in the end that chain is walked. */
#include <dirent.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "tests/bench/rows.h"
#include "tests/bench/peer.h"

enum { LIVE_BYTES = 200 << 20, GROWTH_BYTES = 1 << 30 };

struct holding {
    void **blocks;
    uint32_t *sizes; /* requested; 0: freed */
    uint32_t table[SIZES];
    uint64_t count, live_bytes;
};

/* Memory that no allocator under measure sees, written to, so that it is there before the first
 * measure. */
static void *array(uint64_t bytes)
{
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE,
                   -1, 0);
    if (p == MAP_FAILED) {
        perror("mmap");
        _Exit(1);
    }
    return p;
}

uint64_t rollup_bytes(int pid, const char *field)
{
    char path[64], line[160], format[32];
    unsigned long long kib = 0;
    if (pid)
        snprintf(path, sizeof path, "/proc/%d/smaps_rollup", pid);
    else
        snprintf(path, sizeof path, "/proc/self/smaps_rollup");
    snprintf(format, sizeof format, "%s: %%llu kB", field);
    FILE *f = fopen(path, "re");
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, format, &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib * 1024;
}

/* Pages marked with MADV_FREE are the kernel's to take, and so given back. */
static uint64_t held_bytes(peer_t h)
{
    return rollup_bytes(0, "Pss_Anon") - rollup_bytes(0, "LazyFree") + peer_shared_bytes(h);
}

static void put(struct holding *o, peer_t h, uint64_t i, uint32_t size)
{
    void *p = block_need(peer_alloc(h, size));
    block_mark(p, size, i, false);
    memset((char *)p + 8, (int)i,
           size - 8); /* all of it is used: pages that nobody touches are not there */
    o->blocks[i] = p;
    o->sizes[i] = size;
    o->live_bytes += size;
}

static void drop(struct holding *o, peer_t h, uint64_t i)
{
    block_check(o->blocks[i], o->sizes[i], i, false);
    if (o->sizes[i] > 16 && ((unsigned char *)o->blocks[i])[o->sizes[i] - 1] != (unsigned char)i)
        block_is_wrong(o->blocks[i], o->sizes[i] - 1);
    peer_free(h, o->blocks[i]);
    o->live_bytes -= o->sizes[i];
    o->sizes[i] = 0;
}

static void space_line(const struct run *run, const char *metric, double value)
{
    printf("%s\t%s\t%.4f\t0\t0\n", run->row, metric, value);
}

int space_run(const struct run *run)
{
    const bool wide = strcmp(run->row, "space/wide") == 0;
    struct holding *o = array(sizeof *o);
    uint64_t rng = run->seed * 88172645463325252ULL | 1, most = LIVE_BYTES / (wide ? 2048 : 64);
    if (!wide && strcmp(run->row, "space/tiny") != 0)
        return 2;
    if (peer_only_passes)
        return 77;
    if (peer_setup(1, "4G") != 0)
        return 1;
    pin(run->cpu);
    o->blocks = array(most * sizeof *o->blocks);
    o->sizes = array(most * sizeof *o->sizes);
    sizes_fill(o->table, 8, wide ? 32768 : 256, wide, 362436069);
    peer_t h = peer_enter(0);
    uint64_t empty = held_bytes(h);
    while (o->live_bytes < LIVE_BYTES && o->count < most)
        put(o, h, o->count++, o->table[chance(&rng) % SIZES]);
    for (uint64_t n = o->count * 4; n; n--) {
        uint64_t i = chance(&rng) % o->count;
        drop(o, h, i);
        put(o, h, i, o->table[chance(&rng) % SIZES]);
    }
    double before = (double)(held_bytes(h) - empty);
    space_line(run, "held_per_live", before / (double)o->live_bytes);
    for (uint64_t i = 0; i < o->count; i++)
        if (chance(&rng) % 100 < 95)
            drop(o, h, i);
    space_line(run, "given_back_now", 1 - (double)(held_bytes(h) - empty) / before);
    sleep(2);
    space_line(run, "given_back_2s", 1 - (double)(held_bytes(h) - empty) / before);
    peer_trim(h);
    usleep(200000); /* what a daemon does after it has answered */
    space_line(run, "given_back_trim", 1 - (double)(held_bytes(h) - empty) / before);
    for (uint64_t i = 0; i < o->count; i++)
        if (o->sizes[i])
            drop(o, h, i);
    return 0;
}

int growth_run(const struct run *run)
{
    char *end;
    size_t size = strtoul(run->row + strlen("growth/"), &end, 10);
    uint64_t count = size >= 16 ? GROWTH_BYTES / size : 0, round_trips;
    void *last = NULL;
    if (!count || *end)
        return 2;
    if (peer_only_passes)
        return 77;
    if (peer_setup(1, "4G") != 0)
        return 1;
    pin(run->cpu);
    peer_t h = peer_enter(0);
    peer_free(h, block_need(peer_alloc(h, size)));
    round_trips = peer_round_trips(h);
    uint64_t waited = waited_ns(), from = now_ns();
    for (uint64_t i = 0; i < count; i++) {
        void **p = block_need(peer_alloc(h, size));
        p[0] = last;
        p[1] = (void *)((uintptr_t)i ^ (uintptr_t)p);
        last = p;
    }
    double ns = (double)(now_ns() - from) - (double)(waited_ns() - waited);
    round_trips = peer_round_trips(h) - round_trips;
    for (uint64_t i = count; i--;) {
        void **p = last;
        if (!p || (uintptr_t)p[1] != ((uintptr_t)i ^ (uintptr_t)p))
            block_is_wrong(p, 8);
        last = p[0];
    }
    space_line(run, "ns_per_block", ns / (double)count);
    if (peer_is_arena)
        space_line(run, "round_trips_per_mib", (double)round_trips / (GROWTH_BYTES >> 20));
    return 0;
}
