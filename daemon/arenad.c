/* main(): the order of start and stop.
 *
 *   options, config -> socket (given by a service manager, or bound here) -> regions (from the fd store, from files, or
 *   new) -> background, keeper -> server_start (rebuild) -> READY -> loop -> STOPPING -> socket removed
 */
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/os/keeper.h"
#include "daemon/os/kept.h"
#include "daemon/os/listen.h"
#include "daemon/os/log.h"
#include "daemon/os/pidfile.h"
#include "daemon/os/refuse.h"
#include "daemon/shell/server.h"
#include "daemon/os/signals.h"

/* Else the first files that are opened would be these, and the heap's socket would be taken for a standard stream. */
static int standard_streams(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDWR) != fd)
            return -EBADF;
    return 0;
}

/* ---- what a service manager handed over -------------------------------------------------------------------------------------- */

struct handed {
    int listen_fd;
    int region[REGION_COUNT];
};

static void take_handed(struct handed *h)
{
    char **names = NULL;
    *h = (struct handed){-1, {-1, -1, -1}};
    int count = sd_listen_fds_with_names(1, &names);
    for (int i = 0; i < count; i++) {
        int fd = SD_LISTEN_FDS_START + i, taken = 0;
        if (sd_is_socket_unix(fd, SOCK_SEQPACKET, 1, NULL, 0) > 0 && h->listen_fd < 0) {
            h->listen_fd = fd;
            taken = 1;
            fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
        }
        for (int r = 0; names && r < REGION_COUNT; r++)
            if (!taken && strcmp(names[i], region_names[r]) == 0 && h->region[r] < 0) {
                h->region[r] = fd;
                taken = 1;
            }
        if (!taken && names && strcmp(names[i], KEPT_NAME) == 0) {
            kept_adopt(fd);
            taken = 1;
        }
        if (!taken)
            close(fd);
        free(names ? names[i] : NULL);
    }
    free(names);
}

/* The path is the manager's, whatever the configuration says. */
static void name_handed_socket(struct config *config, int listen_fd)
{
    struct sockaddr_un address = {0};
    socklen_t length = sizeof address - 1;
    if (getsockname(listen_fd, (struct sockaddr *)&address, &length) < 0 || !address.sun_path[0])
        return;
    char *path = strdup(address.sun_path);
    if (!path)
        return;
    free(config->socket);
    config->socket = path;
}

static int store_regions(const struct regions *r)
{
    for (int i = 0; i < REGION_COUNT; i++) {
        char state[64];
        /* of a daemon that was killed while it stored: two under one name would be mixed */
        sd_notifyf(0, "FDSTOREREMOVE=1\nFDNAME=%s", region_names[i]);
        snprintf(state, sizeof state, "FDSTORE=1\nFDNAME=%s\nFDPOLL=0", region_names[i]);
        int rc = sd_pid_notify_with_fds(0, 0, state, &r->fd[i], 1);
        if (rc <= 0)
            return rc;
    }
    return sd_notify_barrier(0, 5000000);
}

/* ---- regions ----------------------------------------------------------------------------------------------------------------------- */

static int new_heap(struct config *config, struct regions *r, const char *dir, char *why)
{
    struct geometry g;
    struct heap heap;
    uint8_t id[16];
    int rc = geometry_init(&g, config->max, (uint32_t)config->map_roots);
    if (rc < 0)
        return rc;
    if (getrandom(id, sizeof id, 0) != sizeof id)
        return -EIO;
    rc = regions_create(r, &g, dir, why);
    if (rc < 0 && dir)
        regions_remove_made(r); /* half a heap would stand in the way of the next start */
    if (rc < 0)
        return rc;
    heap_view(&heap, &g, NULL, r->mapped[REGION_MAP], r->mapped[REGION_STATE]);
    if (getrandom(heap.header->root_key, sizeof heap.header->root_key, 0) != sizeof heap.header->root_key)
        return -EIO;
    heap_format(&heap, &g, id, config->base);
    return 0;
}

/* Two daemons on one heap, each on a socket of its own, would give the same pages away twice. The descriptor is never
 * closed: the lock ends with the last process that has it, and that is the one that serves (no keeper holds files). */
static int lock_backing(const char *dir, char why[512])
{
    int fd = regions_directory(dir, why);
    if (fd < 0) {
        fprintf(stderr, "arenad: %s\n", why);
        return fd;
    }
    if (flock(fd, LOCK_EX | LOCK_NB) == 0)
        return 0;
    if (errno == EWOULDBLOCK) {
        snprintf(why, 512, "another daemon serves the heap in %.400s: stop it, or choose another --backing", dir);
        fprintf(stderr, "arenad: %s\n", why);
        close(fd);
        return -EADDRINUSE;
    }
    log_event(LOG_LEVEL_WARNING, "start", "what=\"lock of %s\" error=\"%s\" advice=\"see to it that no second daemon is "
              "started there\"", dir, strerror(errno));
    close(fd);
    return 0;
}

static int open_regions(struct config *config, struct regions *r, const struct handed *handed, bool *ret_kept, char why[512])
{
    const char *dir = strcmp(config->backing, "memfd") == 0 ? NULL : config->backing;
    struct geometry g;
    int rc = -ENOENT;
    *ret_kept = false;
    bool is_handed = handed->region[REGION_MAP] >= 0 && handed->region[REGION_HEAP] >= 0 && handed->region[REGION_STATE] >= 0;
    int locked = dir && !is_handed ? lock_backing(dir, why) : 0;
    if (locked < 0)
        return locked;
    if (is_handed)
        rc = regions_adopt(r, handed->region, NULL, &g, why);
    else if (dir && !config->reset)
        rc = regions_adopt(r, NULL, dir, &g, why);
    else if (dir && (rc = regions_reset(dir, why)) == 0)
        rc = -ENOENT;
    *ret_kept = rc == 0;
    if (rc == -ENOENT && dir && !config->reset)
        regions_close(r); /* what was begun of them */
    if (rc == -ENOENT)
        rc = new_heap(config, r, dir, why);
    if (rc < 0)
        fprintf(stderr, "arenad: %s%s\n", why[0] ? why : strcpy(why, strerror(-rc)),
                rc == -EUCLEAN ? "; kept for inspection, --reset throws it away" : "");
    return rc;
}

/* ---- background ------------------------------------------------------------------------------------------------------------------------ */

static int launcher_fd = -1; /* the process that was started waits there for a byte */

/* The process that was started ends with 0 when the daemon serves; a signal to it until then is the daemon's. */
static void await_daemon(pid_t pid, int fd)
{
    sigset_t set;
    signals_set(&set);
    struct pollfd polled[2] = {{fd, POLLIN, 0}, {signalfd(-1, &set, SFD_CLOEXEC), POLLIN, 0}};
    for (;;) {
        struct signalfd_siginfo info;
        char byte;
        if (poll(polled, 2, -1) < 0)
            continue;
        if (polled[1].revents && read(polled[1].fd, &info, sizeof info) == sizeof info)
            kill(pid, (int)info.ssi_signo);
        if (polled[0].revents)
            _exit(read(fd, &byte, 1) == 1 ? 0 : 1);
    }
}

/* Whoever started it has descriptors of its own, and may wait for the end of one of them. */
static void close_inherited(const struct config *config)
{
    int handed = sd_listen_fds(0), from = SD_LISTEN_FDS_START + (handed > 0 ? handed : 0);
    if (config->ready_fd >= from) {
        if (config->ready_fd > from)
            close_range((unsigned)from, (unsigned)config->ready_fd - 1, 0);
        from = config->ready_fd + 1;
    }
    close_range((unsigned)from, ~0u, 0);
}

static void to_background(const struct config *config)
{
    int fds[2];
    if (pipe2(fds, O_CLOEXEC) < 0)
        return;
    pid_t pid = fork();
    if (pid > 0) {
        close(fds[1]);
        await_daemon(pid, fds[0]);
    }
    close(fds[0]);
    launcher_fd = fds[1];
    setsid();
    if (config->socket[0] == '/' && chdir("/") < 0)
        log_event(LOG_LEVEL_WARNING, "start", "what=\"leaving the directory\" error=\"%s\"", strerror(errno));
}

/* A manager has given the socket, and whoever waits there is told at once why nobody serves it. With a heap that the manager
 * keeps, this start must not be the last: the heap would go. So the next one comes later, and reads the configuration again. */
static int cannot_start(const struct handed *handed, const char *why, int status)
{
    enum { AGAIN_MS = 5000 };
    char text[400];
    bool heap = handed->region[REGION_MAP] >= 0;
    snprintf(text, sizeof text, "the daemon cannot start: %s", why);
    if (handed->listen_fd >= 0)
        refuse_waiting(handed->listen_fd, ECONNREFUSED, text, heap ? AGAIN_MS : 0);
    return heap ? 1 : status;
}

static void tell_ready(const struct config *config)
{
    if (config->ready_fd >= 0) { /* one that nobody reads any more is nobody's concern */
        if (write(config->ready_fd, "\n", 1) == 1)
            close(config->ready_fd);
    }
    if (launcher_fd < 0)
        return;
    log_detach();
    if (write(launcher_fd, "r", 1) == 1)
        close(launcher_fd);
    launcher_fd = -1;
}

/* Two heaps that one process opens want two places: of those that the name may have, the first that no other daemon here has. */
static void choose_base(struct config *config, const struct listener *l)
{
    uint64_t place;
    for (uint64_t nth = 0; config->base_by_name && (place = config_base_place(config->name, config->max, nth)) != 0; nth++)
        if (!listen_base_is_taken(l, place, config->max)) {
            config->base = place;
            return;
        }
}

static int run(struct config *config, struct server *s, struct listener *listener, bool kept)
{
    struct stat st;
    s->managed = secure_getenv("NOTIFY_SOCKET") != NULL;
    s->pid_namespace = stat("/proc/self/ns/pid", &st) == 0 ? st.st_ino : 0;
    int rc = server_start(s, config, listener);
    if (rc == -EUCLEAN && !s->regions.directory) /* nothing else would keep them */
        refuse_run(&s->regions, listener->fd, s->untrusted);
    if (rc < 0)
        return rc;
    log_event(LOG_LEVEL_INFO, kept || s->core.heap.header->epoch > 1 ? "serve-again" : "serve",
              "name=%s socket=%s max=%llu base=0x%llx epoch=%u spans=%llu", config->name, config->socket,
              (unsigned long long)s->core.heap.heap_bytes, (unsigned long long)s->core.heap.header->base,
              s->core.heap.header->epoch, (unsigned long long)s->core.spans);
    listen_note_base(listener, s->core.heap.header->base, s->core.heap.heap_bytes);
    tell_ready(config);
    server_run(s);
    server_stop(s);
    return 0;
}

int main(int argc, char **argv)
{
    static struct server server;
    static struct config config;
    static struct listener listener;
    static struct pid_file pid_file;
    char why[512] = "";
    struct handed handed;
    bool kept;
    if (standard_streams() < 0)
        return 1;
    signals_hold();
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error that is told */
    int rc = config_parse(&config, argc, argv);
    if (rc > 0)
        return 0;
    bool managed = secure_getenv("NOTIFY_SOCKET") != NULL, background = !config.foreground && !managed;
    if (rc == 0 && background)
        close_inherited(&config);
    take_handed(&handed);
    if (rc < 0)
        return cannot_start(&handed, config_complaint(), 2);
    log_set_level(log_level_parse(config.log_level));
    if ((rc = log_set_file(config.log_file)) < 0) {
        fprintf(stderr, "arenad: cannot open the log file %s: %s\n", config.log_file, strerror(-rc));
        return cannot_start(&handed, "its log file cannot be opened", 1);
    }
    if (handed.listen_fd >= 0) {
        config.socket_decides = true;
        name_handed_socket(&config, handed.listen_fd);
        listen_adopt(&listener, handed.listen_fd, config.socket);
    } else if (listen_open(&listener, config.socket, config.socket_mode, config.socket_gid) < 0)
        return 1;
    if (handed.listen_fd < 0)
        choose_base(&config, &listener);
    if (open_regions(&config, &server.regions, &handed, &kept, why) < 0) {
        listen_remove(&listener);
        return cannot_start(&handed, why, 1);
    }
    if (managed && !kept && !server.regions.directory && store_regions(&server.regions) <= 0)
        log_event(LOG_LEVEL_WARNING, "fdstore", "result=refused advice=\"set FileDescriptorStoreMax: without it a crash "
                  "loses the heap\"");
    if (managed)
        kept_by_manager();
    if (background) /* a manager's main process stays the one that it started */
        to_background(&config);
    if (pid_file_write(&pid_file, config.pid_file) < 0) {
        listen_remove(&listener);
        return 1;
    }
    if (config.keeper && !managed && !server.regions.directory && (kept_open(), true) &&
        (rc = keeper_run(&listener, &pid_file, launcher_fd >= 0)) < 0)
        log_event(LOG_LEVEL_WARNING, "keeper", "error=\"%s\" advice=\"a crash loses the heap\"", strerror(-rc));
    server.keeper_pid = server.regions.directory || managed || !config.keeper || rc < 0 ? 0 : getppid();
    rc = run(&config, &server, &listener, kept);
    listen_remove(&listener);
    pid_file_remove(&pid_file);
    regions_close(&server.regions);
    config_free(&config);
    return rc < 0 ? 1 : 0;
}
