/* The server: the loop, the sockets, and the requests that come through them. Only it and what it is made of
 * (connection.c, collector.c, backing.c) know libuv; what it is asked to do is done by the core. */
#ifndef DAEMON_SERVER_H
#define DAEMON_SERVER_H

#include <uv.h>

#include "daemon/passes/census.h"
#include "daemon/os/config.h"
#include "daemon/core/core.h"
#include "daemon/os/ready.h"
#include "daemon/os/listen.h"
#include "daemon/os/region.h"
#include "daemon/shell/strays.h"
#include "proto/msg.h"
#include "proto/packet.h"

enum { TICK_MS = 50 }; /* the loop's clock */

struct connection;
struct pending;
struct info;
struct collector;
struct backer;

struct server {
    uv_loop_t loop;
    uv_poll_t listen_poll;
    uv_timer_t tick;
    uv_idle_t idle; /* runs while there is work by turns */
    uv_signal_t sigterm, sigint, sighup;
    struct listener *listener;
    int listen_fd; /* the listener's */
    bool idle_on, stopping;
    struct config *config;
    struct core core;
    struct regions regions;
    struct connection *connections;
    uint32_t connection_count;
    struct pending *pending_first, *pending_last; /* requests that wait for memory, oldest first */
    uint64_t pending_progress;                    /* core.progress when they were last tried */
    uint64_t refused_progress;                    /* and when one was last refused: nothing has changed since, */
    uint64_t refused_ns;                          /* so others need not wait either */
    struct info *info;                            /* what monitors ask for */
    uint64_t unread;                              /* bytes of replies to INFO that nobody has read yet */
    struct collector *collector;
    struct backer *backer;
    uint64_t allowance_pages, allowance_at_ns;
    uint32_t works;                               /* of other threads, that will be answered */
    uint64_t work_pages;                          /* pages of theirs that are being backed or returned */
    struct strays strays;
    uint64_t trim_sent_ns, notice_sent_ns; /* when clients were last asked to trim; by a notice */
    struct connection *notice_at;           /* the next one that is to be told to trim; NULL: all have been */
    bool notice_again;                      /* then once more */
    const struct connection *notice_except; /* who asked for it */
    uint64_t ticks;
    uint64_t watchdog_ms;
    uint64_t pid_namespace; /* the inode that names it; 0: not to be seen */
    int keeper_pid;  /* 0: there is none, or no longer */
    bool managed;    /* a service manager has started it */
    uint64_t reloads, reloads_refused;
    int fd_reserve; /* closed to accept one more connection, just to refuse it when descriptors run out */
    uv_prepare_t turn; /* runs once a turn, before the sockets */
    uv_check_t serve;  /* and this behind them */
    struct ready_line ready;
    struct ready newcomers; /* the listening socket's place in it */
    struct connection *resume_first, *resume_last; /* whose leases are being looked through */
    bool mending;      /* the heap's pages are being backed again */
    bool trim_wanted;  /* all free memory is to be returned, a few pieces at a time */
    uint32_t pending_count;
    bool pids_are_ours;       /* the pids in the tag table were read in this pid namespace */
    uint64_t look_at_tick;    /* when clients whose process cannot be told are looked at again; 0: there are none */
    uint64_t look_every;      /* ticks, doubled each time */
    uint32_t look_tag, look_untold; /* such a look has come to this tag, and found so many */
    char untrusted[256]; /* what is wrong with the heap, after a start that failed with -EUCLEAN */
};

/* regions are open; the listener listens. 0, or a negative errno after a log line; -EUCLEAN: the heap cannot be trusted,
 * s->untrusted says why. */
int server_start(struct server *s, struct config *config, struct listener *listener);
int server_run(struct server *s); /* until SIGTERM */
void server_stop(struct server *s);

/* Free memory is to be returned soon, and not only what is idle: a trim. Done by ticks and turns. */
void server_trim(struct server *s);

struct backing server_backing(struct server *s);

#endif
