#include "daemon/os/refuse.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include "daemon/os/log.h"
#include "proto/msg.h"
#include "proto/packet.h"

static volatile sig_atomic_t stopping;

static void on_stop(int signum)
{
    (void)signum;
    stopping = 1;
}

void refuse_fd(int fd, int error, const char *text)
{
    static uint8_t buf[MSG_MAX];
    /* what the peer has sent must be read before the close, or that resets the connection and the reply is lost */
    shutdown(fd, SHUT_RD);
    ssize_t got;
    do
        got = packet_receive(fd, buf, sizeof buf, NULL, 0, NULL, MSG_DONTWAIT);
    while (got > 0 || got == -EMSGSIZE || got == -EMFILE);
    struct msg m = MSG(error, .error = (uint32_t)error, .text = text);
    int bytes = msg_encode(&m, buf, sizeof buf);
    if (bytes > 0)
        packet_send(fd, buf, (size_t)bytes, NULL, 0, MSG_DONTWAIT);
    close(fd);
}

static void refuse_one(int listen_fd, const char *why)
{
    char text[400];
    int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    snprintf(text, sizeof text, "the heap is not served, it cannot be trusted: %s", why);
    if (fd >= 0)
        refuse_fd(fd, EUCLEAN, text);
}

static int64_t now_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

void refuse_waiting(int listen_fd, int error, const char *text, int wait_ms)
{
    struct sigaction action = {.sa_handler = on_stop};
    struct pollfd poll_fd = {.fd = listen_fd, .events = POLLIN};
    int64_t until = now_ms() + wait_ms, left;
    sigset_t none;
    sigemptyset(&none);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    do {
        int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
        if (fd >= 0) {
            refuse_fd(fd, error, text);
            continue;
        }
        left = until - now_ms();
        struct timespec wait = {.tv_sec = left / 1000, .tv_nsec = left % 1000 * 1000000};
        if (left <= 0 || (errno != EAGAIN && errno != ECONNABORTED) || ppoll(&poll_fd, 1, &wait, &none) < 0)
            return;
    } while (!stopping);
}

void refuse_run(const struct regions *regions, int listen_fd, const char *why)
{
    uint64_t watchdog_us = 0;
    struct sigaction action = {.sa_handler = on_stop};
    struct timespec wait = {.tv_sec = 1};
    sigset_t stops, waiting;
    sigemptyset(&stops);
    sigaddset(&stops, SIGTERM);
    sigaddset(&stops, SIGINT);
    sigprocmask(SIG_BLOCK, &stops, &waiting); /* let in only while it waits: none is missed */
    sigdelset(&waiting, SIGTERM);
    sigdelset(&waiting, SIGINT);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGINT, &action, NULL);
    signal(SIGHUP, SIG_IGN);
    if (sd_watchdog_enabled(0, &watchdog_us) > 0 && watchdog_us < 2000000)
        wait = (struct timespec){.tv_nsec = (long)watchdog_us * 500};
    log_event(LOG_LEVEL_ERROR, "refuse", "why=\"%s\" heap=\"/proc/%d/fd/%d\" map=\"/proc/%d/fd/%d\" state=\"/proc/%d/fd/%d\"",
              why, (int)getpid(), regions->fd[REGION_HEAP], (int)getpid(), regions->fd[REGION_MAP], (int)getpid(),
              regions->fd[REGION_STATE]);
    sd_notifyf(0, "READY=1\nSTATUS=not served, the heap cannot be trusted: %s", why); /* or it would be started for ever */
    fcntl(listen_fd, F_SETFL, fcntl(listen_fd, F_GETFL) | O_NONBLOCK);
    while (!stopping) {
        struct pollfd poll_fd = {.fd = listen_fd, .events = POLLIN};
        if (ppoll(&poll_fd, 1, &wait, &waiting) > 0)
            refuse_one(listen_fd, why);
        if (watchdog_us)
            sd_notify(0, "WATCHDOG=1");
    }
    sd_notify(0, "STOPPING=1");
}
