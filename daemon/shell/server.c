#include "daemon/shell/server.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <linux/futex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "daemon/shell/backing.h"
#include "daemon/shell/collector.h"
#include "daemon/shell/connection.h"
#include "daemon/shell/hello.h"
#include "daemon/shell/waiting.h"
#include "daemon/shell/info.h"
#include "daemon/os/log.h"
#include "daemon/os/signals.h"
#include "daemon/shell/strays.h"
#include "daemon/os/sched.h"
#include "shm/assert.h"

static void server_now(struct server *s) { s->core.now_ns = uv_hrtime(); }

/* ---- backing ------------------------------------------------------------------------------------------------------------------- */

/* What the machine would give, asked at most every 20 ms, less what was taken since; what is growing counts as not yet
 * taken, and the caller subtracts it. */
static uint64_t backing_allowance(void *context)
{
    struct server *s = context;
    if (s->core.now_ns - s->allowance_at_ns > 20000000ULL || !s->allowance_at_ns) {
        s->allowance_pages = memory_allowance(s->config->memory_reserve, s->regions.directory);
        s->allowance_at_ns = s->core.now_ns;
    }
    return s->allowance_pages;
}

/* The next `units` units of state words behind those that are backed. */
static int back_units(struct server *s, uint64_t units)
{
    const struct heap *h = &s->core.heap;
    uint64_t from = s->regions.state_backed_to;
    uint64_t at = (uint64_t)((uint8_t *)(h->words + from * UNIT_WORDS) - h->hints);
    backing_claim_units(s, from + units);
    int rc = region_back(&s->regions, REGION_STATE, at, units * UNIT_BYTES);
    if (rc == 0)
        s->regions.state_backed_to = from + units;
    return rc;
}

static int backing_units(void *context, uint64_t unit, uint64_t units)
{
    struct server *s = context;
    while (unit + units > s->regions.state_backed_to) {
        uint64_t step = BACKED_STEP / UNIT_BYTES, left = s->core.heap.unit_count - s->regions.state_backed_to;
        step = step < left ? step : left;
        int rc = back_units(s, step);
        if (rc < 0)
            return rc;
        s->core.turn.backed += step * UNIT_BYTES;
    }
    return 0;
}

/* What an earlier daemon had backed, at once and not by the first packet: up to its last unit in use. Of a file, holes
 * that a client has made meanwhile too; if that cannot be, they are mended as any others. */
static void back_units_again(struct server *s)
{
    uint64_t first, count = s->core.heap.unit_count;
    uint64_t run = pagealloc_prev_run(&s->core.mheap.units, count, count, &first);
    uint64_t used = run && first + run == count ? first : count;
    if (!s->core.mheap.units_used)
        return;
    int rc = back_units(s, used);
    if (rc < 0)
        log_event(LOG_LEVEL_WARNING, "start", "what=\"state words\" error=\"%s\"", strerror(-rc));
    s->regions.state_backed_to = used;
}

struct backing server_backing(struct server *s)
{
    return (struct backing){s, backing_grow, backing_allowance, backing_give_back, backing_units};
}

/* ---- files that clients may cut off --------------------------------------------------------------------------------------- */

struct mending {
    uv_work_t req;
    struct server *server;
    int rc;
};

static void mend_run(uv_work_t *req)
{
    struct mending *w = req->data;
    w->rc = regions_back_again(&w->server->regions, &w->server->core.heap);
}

static void mend_done(uv_work_t *req, int status)
{
    struct mending *w = req->data;
    w->server->works--;
    w->server->mending = false;
    if (status < 0 || w->rc < 0)
        log_event(LOG_LEVEL_ERROR, "mend", "error=\"%s\" lost=\"memory behind the heap: a client may get SIGBUS\"",
                  strerror(-(status < 0 ? status : w->rc)));
    free(w);
}

static void mend(struct server *s)
{
    struct heap *h = &s->core.heap;
    int rc = s->mending ? 0 : regions_mend(&s->regions, h);
    if (rc == 0)
        return;
    char directory[512];
    log_event(LOG_LEVEL_ERROR, "mend", "directory=\"%s\" cause=\"a client cut off or punched a file of it\" result=\"%s\"",
              log_quote(directory, sizeof directory, s->regions.directory), rc < 0 ? strerror(-rc) : "what was there is lost");
    struct mending *w = rc > 0 ? calloc(1, sizeof *w) : NULL;
    if (rc > 0)
        store_relaxed(&h->header->cut_off, h->header->cut_off + 1); /* check says so from now on */
    if (!w)
        return;
    *w = (struct mending){.server = s};
    w->req.data = w;
    s->works++;
    s->mending = true;
    if (uv_queue_work(&s->loop, &w->req, mend_run, mend_done) < 0)
        mend_done(&w->req, -ENOMEM);
}

static void wake_root(void *context, uint32_t *gen)
{
    (void)context;
    syscall(SYS_futex, gen, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

/* ---- work by turns ----------------------------------------------------------------------------------------------------------------- */

void server_trim(struct server *s)
{
    sweep_cycle(&s->core);
    s->trim_wanted = true;
    s->core.scavenge_cursor = 0;
    s->core.scavenge_now = true; /* for one cycle of the ticks */
    strays_now(s);
}

/* What was asked for by a trim: as much as the workers take at a time, once the sweep has found what there is. */
static void trim_turn(struct server *s)
{
    enum { TRIM_PAGES = 4096 };
    if (s->trim_wanted && s->works == 0 && mheap_scavenge(&s->core.mheap, 0, TRIM_PAGES, true) == 0 && !s->core.sweep_to_go)
        s->trim_wanted = false;
}

static void on_turn(uv_prepare_t *turn)
{
    struct server *s = turn->data;
    turn_end(&s->core);
    if (s->core.progress != s->pending_progress) /* first: no flood of packets takes the turn from who has waited for memory */
        connections_retry(s);
    connections_notice(s);
    server_pump(s);
}

static void on_serve(uv_check_t *serve) { connections_serve(serve->data); }

static void on_idle(uv_idle_t *idle)
{
    struct server *s = idle->data;
    server_now(s);
    if (collector_busy(s))
        collector_turn(s);
    bool more = core_turn(&s->core); /* a collection that has just ended held the pass up */
    more = info_turn(s) || more;
    more = strays_turn(s) || more;
    more = collector_busy(s) || more;
    more = connections_resume(s) || more;
    more = ready_waits(&s->ready) || s->notice_at || more;
    more = (s->pending_count && s->pending_progress != s->core.progress) || more;
    if (!more) {
        uv_idle_stop(&s->idle);
        s->idle_on = false;
    }
    connections_retry(s);
}

void server_pump(struct server *s)
{
    if (!s->idle_on && (s->core.reclaim.running || s->core.sweep_to_go || info_waits(s) || s->resume_first || collector_busy(s) ||
                        strays_busy(s) || mcentral_entries_wait(&s->core) || ready_waits(&s->ready) || s->notice_at ||
                        (s->pending_count && s->pending_progress != s->core.progress))) {
        uv_idle_start(&s->idle, on_idle);
        s->idle_on = true;
    }
    trim_turn(s);
    if (s->core.progress != s->pending_progress) /* else at the next tick: only time can help */
        connections_retry(s);
}

static void status_notify(struct server *s)
{
    sd_notifyf(0, "STATUS=%u clients, %llu MiB in spans, epoch %u", s->core.client_count,
               (unsigned long long)(s->core.mheap.used_pages >> 7), s->core.heap.header->epoch);
}

/* A file that a cleaner took is made again. */
static void look_at_socket(struct server *s)
{
    int fd = listen_look(s->listener);
    if (fd < 0)
        return;
    uv_poll_stop(&s->listen_poll);
    listen_replace(s->listener, fd);
    uv_poll_start(&s->listen_poll, UV_READABLE, connection_on_listen);
}

/* Without its keeper the daemon goes on: to end would lose the heap. As the first process of a pid namespace it waits for
 * whoever was left to it. */
static void look_at_parent(struct server *s)
{
    if (getpid() == 1)
        while (waitpid(-1, NULL, WNOHANG) > 0)
            continue;
    if (!s->keeper_pid || getppid() == s->keeper_pid)
        return;
    log_event(LOG_LEVEL_WARNING, "keeper", "pid=%d result=gone advice=\"a crash would lose the heap; SIGTERM to pid %d stops it\"",
              s->keeper_pid, (int)getpid());
    s->keeper_pid = 0;
}

static void on_tick(uv_timer_t *timer)
{
    enum { AGE_TICKS = 2, STATUS_TICKS = 100, SOCKET_TICKS = 10 }; /* mheap ticks twice in return-after */
    struct server *s = timer->data;
    server_now(s);
    s->ticks++;
    uint64_t age_every = s->config->return_after_ms / TICK_MS / AGE_TICKS;
    if (s->ticks % (age_every ? age_every : 1) == 0)
        mheap_tick(&s->core.mheap);
    if (s->works == 0)
        mheap_scavenge(&s->core.mheap, AGE_TICKS, 4096, false);
    if ((s->works == 0 || s->core.scavenge_now) && !scavenge_turn(&s->core, TURN_SPANS, TURN_WORDS))
        s->core.scavenge_now = false;
    if (s->core.sweep_to_go == 0 && s->ticks % 2 == 0)
        sweep_cycle(&s->core);
    if (s->watchdog_ms && s->ticks % (s->watchdog_ms / 2 / TICK_MS + 1) == 0)
        sd_notify(0, "WATCHDOG=1");
    if (s->ticks % STATUS_TICKS == 0)
        status_notify(s);
    if (s->ticks % SOCKET_TICKS == 0) {
        look_at_socket(s);
        log_tick();
        look_at_parent(s);
    }
    connections_tick(s);
    mend(s);
    strays_tick(s);
    server_pump(s);
    connections_retry(s);
}

/* ---- start and stop ------------------------------------------------------------------------------------------------------------------ */

static void on_stop_signal(uv_signal_t *handle, int signum)
{
    struct server *s = handle->data;
    log_event(LOG_LEVEL_INFO, "stop", "signal=%d clients=%u", signum, s->core.client_count);
    sd_notify(0, "STOPPING=1");
    s->stopping = true;
    uv_stop(&s->loop);
}

static void on_reload_signal(uv_signal_t *handle, int signum)
{
    struct server *s = handle->data;
    struct timespec now;
    (void)signum;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%llu",
               (unsigned long long)now.tv_sec * 1000000ULL + (unsigned long long)now.tv_nsec / 1000);
    log_reopen();
    if (config_reload(s->config) == 0) {
        s->core.limits = s->config->limits;
        s->core.mheap.reserve_pages = s->config->reserve >> PAGE_SHIFT;
        log_set_level(log_level_parse(s->config->log_level));
        connections_allow_again(s);
        log_event(LOG_LEVEL_INFO, "reload", "result=ok");
        s->reloads++;
    } else /* the log has the reason */
        s->reloads_refused++;
    sd_notify(0, "READY=1");
}

static void raise_fd_limit(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int start_handles(struct server *s)
{
    uint64_t watchdog_us = 0;
    int rc = uv_poll_init(&s->loop, &s->listen_poll, s->listen_fd);
    if (rc < 0)
        return rc;
    s->listen_poll.data = s->turn.data = s->serve.data = s->tick.data = s->idle.data = s->sigterm.data = s->sigint.data = s->sighup.data = s;
    uv_timer_init(&s->loop, &s->tick);
    uv_prepare_init(&s->loop, &s->turn);
    uv_prepare_start(&s->turn, on_turn);
    uv_check_init(&s->loop, &s->serve);
    uv_check_start(&s->serve, on_serve);
    ready_init(&s->ready);
    uv_idle_init(&s->loop, &s->idle);
    uv_signal_init(&s->loop, &s->sigterm);
    uv_signal_init(&s->loop, &s->sigint);
    uv_signal_init(&s->loop, &s->sighup);
    uv_signal_start(&s->sigterm, on_stop_signal, SIGTERM);
    uv_signal_start(&s->sigint, on_stop_signal, SIGINT);
    uv_signal_start(&s->sighup, on_reload_signal, SIGHUP);
    uv_timer_start(&s->tick, on_tick, TICK_MS, TICK_MS);
    if (sd_watchdog_enabled(0, &watchdog_us) > 0)
        s->watchdog_ms = watchdog_us / 1000;
    rc = uv_poll_start(&s->listen_poll, UV_READABLE, connection_on_listen);
    if (rc == 0)
        look_at_socket(s);
    signals_release();
    return rc;
}

int server_start(struct server *s, struct config *config, struct listener *listener)
{
    char *why = s->untrusted;
    struct geometry g;
    const char *static_why;
    struct heap heap;
    s->config = config;
    s->listener = listener;
    s->listen_fd = listener->fd;
    raise_fd_limit();
    int rc = uv_loop_init(&s->loop);
    if (rc < 0)
        return rc;
    s->fd_reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
    rc = heap_check_header(s->regions.mapped[REGION_MAP], s->regions.bytes[REGION_MAP], s->regions.bytes[REGION_STATE], &g,
                           &static_why);
    ASSERT(rc == 0);
    heap_view(&heap, &g, NULL, s->regions.mapped[REGION_MAP], s->regions.mapped[REGION_STATE]);
    struct backing backing = server_backing(s);
    rc = core_start(&s->core, &heap, &backing, &config->limits, uv_hrtime(), why);
    if (rc < 0) {
        log_event(LOG_LEVEL_ERROR, "start", "error=\"%s\" heap=kept advice=\"the heap is not served; inspect its regions, or "
                  "start with --reset to throw it away\"", why);
        return rc;
    }
    s->core.wake_root = wake_root;
    s->core.wake_context = s;
    s->core.mheap.reserve_pages = config->reserve >> PAGE_SHIFT;
    back_units_again(s);
    strays_start(s);
    if ((rc = backing_start(s)) < 0 || (rc = collector_start(s)) < 0)
        return rc;
    connections_find_dead(s);
    rc = start_handles(s);
    if (rc < 0) {
        log_event(LOG_LEVEL_ERROR, "start", "error=\"%s\"", uv_strerror(rc));
        return rc;
    }
    server_pump(s);
    return 0;
}

int server_run(struct server *s)
{
    sched_loop();
    sd_notify(0, "READY=1");
    status_notify(s);
    while (!s->stopping)
        uv_run(&s->loop, UV_RUN_DEFAULT);
    return 0;
}

static void close_handle(uv_handle_t *handle, void *context)
{
    (void)context;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

/* A second SIGTERM - a keeper passes on what a terminal sent to both - must not cut the stop short. */
static void ignore_signals(struct server *s)
{
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    uv_signal_stop(&s->sigterm);
    uv_signal_stop(&s->sigint);
    uv_signal_stop(&s->sighup);
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
    signal(SIGHUP, SIG_IGN);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void server_stop(struct server *s)
{
    ignore_signals(s);
    collector_stop(s);
    connections_close(s);
    backing_stop(s);
    uv_walk(&s->loop, close_handle, NULL);
    while (s->works || uv_loop_alive(&s->loop))
        uv_run(&s->loop, UV_RUN_ONCE);
    connections_free(s);
    uv_loop_close(&s->loop);
    collector_free(s);
    backing_free(s);
    core_stop(&s->core);
    if (s->fd_reserve >= 0)
        close(s->fd_reserve);
    close(s->listen_fd);
}
