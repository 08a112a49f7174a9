#include "tests/model/faults.h"

#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <limits.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/model/worker.h"

struct fault_counts faults;

static pid_t pids[CHILD_INDEX];
static pid_t stopped; /* 0: nobody stands still */
static uint64_t stopped_until;

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

/* ---- the daemon ---------------------------------------------------------------------------------------------------- */

static void daemon_options(const char *options[10])
{
    int n = 0;
    options[n++] = "--trim-timeout"; /* a full heap is met often */
    options[n++] = "10";
    if (R->set.backing) {
        options[n++] = "--backing";
        options[n++] = R->set.directory;
    }
    if (R->set.limits) {
        options[n++] = "--limit-user-clients";
        options[n++] = "8";
        options[n++] = "--limit-user-roots";
        options[n++] = "20";
    }
}

void model_daemon_start(struct daemon *d)
{
    const char *o[10] = {NULL};
    temp_dir(R->set.directory, sizeof R->set.directory, "model");
    daemon_options(o);
    daemon_start(d, R->set.max, o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], NULL);
    snprintf(R->set.socket, sizeof R->set.socket, "%s", d->socket);
}

void model_daemon_again(struct daemon *d)
{
    const char *o[10] = {NULL};
    daemon_options(o);
    daemon_again(d, R->set.max, o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7], NULL);
}

static void daemon_killed(struct daemon *d)
{
    pid_t serving = daemon_serving(d);
    if (serving <= 0 || (serving == d->pid && !R->set.backing))
        return; /* the keeper has not started the next one yet */
    if (R->set.backing) {
        daemon_kill(d);
        model_daemon_again(d);
    } else
        kill(serving, SIGKILL);
    faults.daemon_kills++;
}

/* ---- processes ------------------------------------------------------------------------------------------------------ */

static int process_main(void *argument)
{
    char number[16], fd[16];
    snprintf(number, sizeof number, "%d", (int)(intptr_t)argument);
    snprintf(fd, sizeof fd, "%d", shadow_fd);
    execl(model_path, model_path, "worker", number, fd, (char *)NULL);
    return 127;
}

static void process_start(int i, uint64_t *seed)
{
    R->process[i].seed = rnd(seed);
    pids[i] = spawn(process_main, (void *)(intptr_t)i);
}

void processes_start(uint64_t *seed)
{
    for (int i = 0; i < CHILD_INDEX; i++)
        process_start(i, seed);
}

/* Whoever has ended without being told to has found something. Children whose parents were killed end here. */
static void look_after(struct daemon *d)
{
    siginfo_t info = {.si_pid = 0};
    while (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid) {
        pid_t pid = info.si_pid;
        for (int i = 0; i < CHILD_INDEX; i++)
            if (pid == pids[i])
                fail_msg("process %d (pid %d) ended by itself: %s %d", i, (int)pid, info.si_code == CLD_EXITED ? "status" : "signal",
                         info.si_status);
        if (pid == d->pid)
            fail_msg("the daemon ended by itself: %d", info.si_status);
        int status = reap(pid);
        shadow_bury_pid(pid);
        if (status != 0 && status != 128 + SIGKILL && status != 128 + SIGALRM && status != 127)
            fail_msg("a child whose parent was killed ended with %d", status);
        info.si_pid = 0;
    }
    if (atomic_load(&R->failures))
        fail_msg("see above");
}

static void process_killed(int i, uint64_t *seed)
{
    kill(pids[i], SIGKILL);
    int status = reap(pids[i]);
    if (status != 128 + SIGKILL)
        fail_msg("process %d had ended by itself: %d", i, status);
    shadow_bury(&R->process[i]);
    process_start(i, seed);
    faults.client_kills++;
}

/* ---- stops ---------------------------------------------------------------------------------------------------------- */

static void stop(pid_t pid, uint64_t ms)
{
    if (pid <= 0 || stopped)
        return;
    atomic_fetch_add(&R->stopped, 1);
    stopped = pid;
    stopped_until = now_ms() + ms;
    kill(pid, SIGSTOP);
}

static void end_stop(void)
{
    if (!stopped)
        return;
    kill(stopped, SIGCONT);
    stopped = 0;
    atomic_fetch_sub(&R->stopped, 1);
}

/* ---- what happens next ------------------------------------------------------------------------------------------------ */

void fault_next(struct daemon *d, uint64_t *seed)
{
    uint64_t what = rnd(seed) % 100;
    int i = (int)(rnd(seed) % CHILD_INDEX);
    pause_us((unsigned)(5 + rnd(seed) % 60) * 1000);
    look_after(d);
    if (stopped && now_ms() >= stopped_until)
        end_stop();
    if (what < 40 && R->set.kills && pids[i] != stopped)
        process_killed(i, seed);
    else if (what < 46 && R->set.kills && !stopped)
        daemon_killed(d);
    else if (what < 66 && R->set.stops && !stopped) {
        stop(daemon_serving(d), 10 + rnd(seed) % (rnd(seed) % 4 ? 150 : 1500));
        faults.daemon_stops++;
    } else if (what < 70 && R->set.stops && !stopped) {
        stop(pids[i], 50 + rnd(seed) % 3000);
        faults.client_stops++;
    } else if (what < 72 && !stopped) { /* else it would not be answered */
        char out[4096];
        arenactl(d, out, sizeof out, "trim");
        faults.trims++;
    } else if (R->set.collector && !stopped) {
        char out[4096]; /* refused where a child has declared nothing yet */
        arenactl(d, out, sizeof out, "gc");
        faults.collections++;
    }
}

/* ---- all rest ---------------------------------------------------------------------------------------------------------- */

static bool is_known(pid_t pid, const struct daemon *d)
{
    for (int i = 0; i < CHILD_INDEX; i++)
        if (pid == pids[i])
            return true;
    return pid == d->pid;
}

/* The place of a child whose parent is dead, and no such child lives: it was never born, or its parent was killed before it
 * noted that it had ended. */
static void forget_gone(struct process_shadow *p, const struct daemon *d)
{
    char path[64];
    long pid;
    bool strange = false;
    snprintf(path, sizeof path, "/proc/self/task/%d/children", (int)getpid());
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    while (fscanf(f, "%ld", &pid) == 1)
        strange |= !is_known((pid_t)pid, d);
    fclose(f);
    if (!strange)
        shadow_bury(p);
}

static bool is_at_rest(const struct process_shadow *p)
{
    if (atomic_load(&p->state) != PROCESS_ALIVE || !atomic_load(&p->attached) || !atomic_load(&p->main_parked))
        return false;
    for (int i = 0; i < (p - R->process < READER_INDEX ? THREADS : 1); i++)
        if (!atomic_load(&p->thread[i].parked))
            return false;
    return true;
}

static bool all_rest(const struct daemon *d)
{
    for (int i = 0; i < CHILD_INDEX; i++)
        if (!is_at_rest(&R->process[i]))
            return false;
    bool rest = true;
    for (int i = CHILD_INDEX; i < PROCESSES; i++) {
        uint32_t state = atomic_load(&R->process[i].state);
        if (state != PROCESS_FREE)
            forget_gone(&R->process[i], d);
        rest &= state == PROCESS_FREE;
    }
    return rest;
}

static void say_who_is_awaited(void)
{
    for (int i = 0; i < PROCESSES; i++) {
        const struct process_shadow *p = &R->process[i];
        if (atomic_load(&p->state) == PROCESS_FREE || (i < CHILD_INDEX && is_at_rest(p)))
            continue;
        fprintf(stderr, "awaited: process %d, pid %d, state %u, attached %u, main %u; threads:", i, (int)atomic_load(&p->pid),
                atomic_load(&p->state), atomic_load(&p->attached), atomic_load(&p->main_parked));
        for (int k = 0; k < THREADS; k++)
            fprintf(stderr, " %s%s", operation_name(p->thread[k].operation), atomic_load(&p->thread[k].parked) ? " (rests)" : "");
        fprintf(stderr, "\n");
    }
}

/* Waits as long as it takes, and says now and then for whom. */
static void await(bool (*done)(const struct daemon *d), struct daemon *d)
{
    for (uint64_t said = now_ms(); !done(d);) {
        look_after(d);
        pause_us(500);
        if (now_ms() - said > 30000) {
            say_who_is_awaited();
            said = now_ms();
        }
    }
}

void quiesce(struct daemon *d)
{
    end_stop();
    atomic_store(&R->pause, 1);
    await(all_rest, d);
}

void go_on(void)
{
    atomic_store(&R->pause, 0);
    syscall(SYS_futex, &R->pause, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static bool all_ended(const struct daemon *d)
{
    bool ended = true;
    for (int i = 0; i < CHILD_INDEX; i++) {
        siginfo_t info = {.si_pid = 0};
        if (pids[i] && waitid(P_PID, (id_t)pids[i], &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid == pids[i]) {
            int status = reap(pids[i]);
            if (status)
                fail_msg("process %d (pid %d) ended with %d", i, (int)pids[i], status);
            shadow_bury(&R->process[i]);
            pids[i] = 0;
        }
        ended &= pids[i] == 0;
    }
    (void)d;
    return ended;
}

/* Its own wait: those that end are no failures here. */
void processes_end(struct daemon *d)
{
    end_stop();
    atomic_store(&R->stop, 1);
    for (uint64_t said = now_ms(); !all_ended(d);) {
        pause_us(1000);
        if (atomic_load(&R->failures))
            fail_msg("see above");
        if (now_ms() - said > 30000) {
            say_who_is_awaited();
            said = now_ms();
        }
    }
}
