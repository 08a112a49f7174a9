#include "daemon/shell/strays.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statfs.h>
#include <unistd.h>

#include "daemon/shell/backing.h"
#include "daemon/shell/collector.h"
#include "daemon/os/log.h"
#include "daemon/shell/server.h"

enum {
    STRAY_MIN = 128,        /* pages: 1 MiB. Less is not worth a pass */
    STRAY_FLIGHT = 4096,    /* pages: 32 MiB, some 10 ms of the worker */
    STRAY_STEPS = 4096,     /* of one turn */
    REST_TICKS_MAX = 640,   /* 32 s */
    QUIET_TICKS = 1200,     /* a minute, after which it is told again */
    SUSPECTS_MAX = 256,     /* processes that are looked at */
};

void strays_start(struct server *s)
{
    struct statfs fs;
    s->strays = (struct strays){.off = fstatfs(s->regions.fd[REGION_HEAP], &fs) < 0 || fs.f_bsize > (long)PAGE_SIZE};
}

bool strays_busy(const struct server *s)
{
    return s->strays.on && s->strays.in_flight < STRAY_FLIGHT && !collector_holds_pages(s);
}

/* ---- the account ---------------------------------------------------------------------------------------------------------- */

static uint64_t beyond(uint64_t held, uint64_t account) { return held > account ? held - account : 0; }

uint64_t strays_pages(const struct server *s)
{
    if (s->strays.off)
        return 0;
    /* of what is in flight some has memory */
    return beyond(region_held(&s->regions, REGION_HEAP) >> PAGE_SHIFT, core_backed_pages(&s->core) + s->work_pages);
}

/* Of map and state: bytes. */
static uint64_t outside_heap(const struct server *s)
{
    const struct heap *h = &s->core.heap;
    uint64_t top = load_relaxed(&h->header->top);
    uint64_t map = (uint64_t)((uint8_t *)h->pages - (uint8_t *)h->header) + top * (sizeof *h->pages + sizeof *h->spans);
    uint64_t state = (uint64_t)((uint8_t *)h->words - (uint8_t *)h->tickets) + top + s->regions.state_backed_to * UNIT_BYTES;
    uint64_t growing = s->work_pages * (sizeof *h->pages + sizeof *h->spans + 1);
    return beyond(region_held(&s->regions, REGION_MAP), map + growing) + beyond(region_held(&s->regions, REGION_STATE), state + growing);
}

/* ---- who it may be ------------------------------------------------------------------------------------------------------- */

/* Shared memory that a process has in its page tables, in KiB; 0: not to be seen. */
static uint64_t shared_kib(uint32_t pid)
{
    char path[64], line[128];
    unsigned long long kib = 0;
    snprintf(path, sizeof path, "/proc/%u/status", pid);
    FILE *f = pid ? fopen(path, "re") : NULL;
    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "RssShmem: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return kib;
}

/* Whoever has the most in its page tables, if that is enough to be it. */
static const struct client *suspect(const struct server *s, uint64_t bytes)
{
    const struct client *most = NULL;
    uint64_t most_kib = bytes >> 11;
    uint32_t looked = 0;
    for (unsigned tag = 1; tag < s->core.heap.header->tag_top && looked < SUSPECTS_MAX; tag++) {
        const struct client *client = s->core.clients[tag];
        uint64_t kib = client ? shared_kib(client->pid) : 0;
        looked += client != NULL;
        if (kib > most_kib) {
            most_kib = kib;
            most = client;
        }
    }
    return most;
}

static void tell(struct server *s, uint64_t bytes)
{
    const struct client *client = suspect(s, bytes);
    uint32_t pid = client ? client->pid : 0;
    char command[17] = "", quoted[40];
    if (s->strays.told && (pid == 0 || pid == s->strays.told_pid))
        return;
    s->strays.told = true;
    s->strays.told_pid = pid;
    if (client)
        memcpy(command, s->core.heap.tags[client->tag].command, 16);
    log_event(LOG_LEVEL_WARNING, "stray", "bytes=%llu suspect=%s pid=%u uid=%d command=\"%s\" why=\"pages that nobody backed were "
              "read or written: a core dump, mlockall without MCL_ONFAULT, a walk over all of the heap\" result=\"taken back\"",
              (unsigned long long)bytes, client ? "client" : "unknown", pid, client ? (int)client->uid : -1,
              log_quote(quoted, sizeof quoted, command));
}

/* ---- the pass -------------------------------------------------------------------------------------------------------------- */

static uint64_t has_memory(void *context, uint64_t first, uint64_t pages)
{
    const struct server *s = context;
    off_t at = lseek(s->regions.fd[REGION_HEAP], (off_t)(first << PAGE_SHIFT), SEEK_DATA);
    uint64_t page = at < 0 ? UINT64_MAX : (uint64_t)at >> PAGE_SHIFT;
    return page < first + pages ? page : first + pages;
}

static int clear(void *context, uint64_t first, uint64_t pages)
{
    struct server *s = context;
    int rc = backing_clear(s, first, pages);
    if (rc == 0)
        s->strays.in_flight += pages;
    return rc;
}

void strays_cleared(struct server *s, uint64_t pages) { s->strays.in_flight -= pages; }

static void begin(struct server *s)
{
    s->strays.on = true;
    s->strays.cursor = 0;
    s->strays.found = 0;
}

bool strays_turn(struct server *s)
{
    const struct stray_ops ops = {s, has_memory, clear};
    struct strays *strays = &s->strays;
    uint64_t asked;
    if (!strays_busy(s))
        return false;
    bool end = scavenge_strays(&s->core, &ops, &strays->cursor, STRAY_STEPS, STRAY_FLIGHT - strays->in_flight, &asked);
    strays->found += asked;
    if (end) {
        strays->on = false;
        strays->rest_ticks = strays->found             ? 0
                             : strays->rest_ticks == 0 ? 20
                             : strays->rest_ticks < REST_TICKS_MAX ? strays->rest_ticks * 2 : REST_TICKS_MAX;
        strays->pause_ticks = strays->rest_ticks;
    }
    return strays_busy(s);
}

void strays_tick(struct server *s)
{
    struct strays *strays = &s->strays;
    if (strays->off)
        return;
    uint64_t pages = strays_pages(s), bytes = outside_heap(s);
    bool any = pages >= STRAY_MIN || bytes >= (STRAY_MIN << PAGE_SHIFT);
    strays->quiet_ticks = any ? 0 : strays->quiet_ticks + 1;
    if (strays->quiet_ticks >= QUIET_TICKS)
        strays->told = false;
    if (strays->pause_ticks) {
        strays->pause_ticks--;
        return;
    }
    if (!any)
        return;
    tell(s, (pages << PAGE_SHIFT) + bytes);
    if (pages >= STRAY_MIN && !strays->on)
        begin(s);
    if (bytes >= (STRAY_MIN << PAGE_SHIFT) && !strays->tidying)
        strays->tidying = backing_tidy(s) == 0;
}

void strays_now(struct server *s)
{
    s->strays.pause_ticks = s->strays.rest_ticks = 0;
    if (!s->strays.on && strays_pages(s))
        begin(s);
}
