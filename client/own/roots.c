/* Named roots: a get reads the map; a change is the daemon's; a wait sleeps on a word of the map. */
#include <limits.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/conn.h"
#include "client/link/fork.h"
#include "client/link/reason.h"
#include "client/link/socket.h"
#include "client/own/object.h"
#include "shm/root.h"

static int refused_name(void)
{
    return refused(-EINVAL, "a root's name has 1 to %d bytes, none of them a control character", ROOT_NAME - 1);
}

PUBLIC int arena_root_get(arena_t *a, const char *name, arena_ref_t *ref)
{
    uint64_t found;
    struct patience patience = {0, 0};
    if (!ref || root_name_check(name) < 0)
        return refused_name();
    if (heap_is_stale(a))
        return -ESTALE;
    for (unsigned tries = 0;; tries++) {
        int rc = root_lookup(&a->heap, name, &found);
        if (rc == 0)
            *ref = found;
        if (rc != -EAGAIN)
            return rc;
        if (tries < 1000)
            continue;
        if (tries == 1000) /* a daemon that died within an update: its successor puts it right */
            patience = conn_patience(a);
        else if (!conn_waits(&patience))
            return -ENOTCONN;
        sched_yield();
    }
}

static int root_call(arena_t *a, const char *name, unsigned mode, arena_ref_t expected, arena_ref_t desired)
{
    if (root_name_check(name) < 0)
        return refused_name();
    if (a->read_only)
        return refused(-EACCES, "a reader sets no root");
    if (forked(a)) {
        int rc = arena_reattach(a);
        if (rc < 0)
            return rc;
    }
    conn_lock(a);
    fence_release(); /* [RT1] what the object holds is written before the root leads to it */
    int rc = conn_call(a, MSG(root, .name = name, .mode = mode, .expected = expected, .desired = desired));
    conn_unlock(a);
    if (rc == -EINVAL)
        refused_root(a, name, desired, 0);
    return rc;
}

PUBLIC int arena_root_set(arena_t *a, const char *name, arena_ref_t ref)
{
    return root_call(a, name, ROOT_MODE_SET, 0, ref);
}

PUBLIC int arena_root_cas(arena_t *a, const char *name, arena_ref_t expected, arena_ref_t desired)
{
    return root_call(a, name, ROOT_MODE_CAS, expected, desired);
}

/* Once a second of a long wait: is the daemon there, and is it still this heap's? A wait on the map alone would never
 * learn that the heap is of the past. */
static int daemon_answers(arena_t *a, int64_t left_ms)
{
    struct patience patience = conn_patience(a);
    patience.left_ms = left_ms < patience.left_ms ? left_ms : patience.left_ms;
    struct pollfd poll_fd = {.events = 0};
    if (forked(a))
        return arena_reattach(a);
    if (!conn_trylock(a))
        return 0; /* another thread is finding out */
    int rc = 0;
    poll_fd.fd = conn_is_there(&a->conn) ? a->conn.fd : -1;
    if (poll_fd.fd < 0 || (poll(&poll_fd, 1, 0) == 1 && (poll_fd.revents & (POLLHUP | POLLERR | POLLNVAL))))
        rc = conn_call_within(a, MSG(ping), patience);
    conn_unlock(a);
    return rc == -ESTALE || rc == -ENOTCONN ? rc : 0;
}

PUBLIC int arena_root_wait(arena_t *a, const char *name, arena_ref_t old, int timeout_ms, arena_ref_t *ref)
{
    if (!ref || root_name_check(name) < 0 || timeout_ms < -1)
        return -EINVAL;
    uint32_t *gen = &a->heap.root_gens[root_hash(name) % ROOT_GENS];
    int64_t deadline = timeout_ms < 0 ? INT64_MAX : now_ms() + timeout_ms;
    for (;;) {
        uint32_t seen = load_acquire(gen); /* [RT2] before the root is read */
        arena_ref_t now = 0;
        int rc = arena_root_get(a, name, &now);
        if (rc < 0 && rc != -ENOENT)
            return rc;
        if (now != old) {
            *ref = now;
            return 0;
        }
        int64_t left = deadline - now_ms();
        if (left <= 0)
            return -ETIMEDOUT;
        int64_t nap = left > 1000 ? 1000 : left; /* a heap that is stale is not woken up any more */
        struct timespec wait = {nap / 1000, nap % 1000 * 1000000};
        if (syscall(SYS_futex, gen, FUTEX_WAIT, seen, &wait, NULL, 0) == 0 || errno != ETIMEDOUT || nap == left)
            continue;
        rc = daemon_answers(a, left - nap);
        if (rc == -ESTALE || (rc == -ENOTCONN && now_ms() < deadline))
            return rc;
    }
}
