/* Heaps come and go: arena_open, arena_close, what a forked child makes new, and the hooks by which lower layers call higher ones.
 * The uppermost file: it knows every layer, and none knows it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "client/alloc/large.h"
#include "client/alloc/lease.h"
#include "client/alloc/mcache.h"
#include "client/alloc/mcaches.h"
#include "client/alloc/thread.h"
#include "client/debug/escape.h"
#include "client/debug/pinned.h"
#include "client/debug/profile.h"
#include "client/debug/site.h"
#include "client/debug/watch.h"
#include "client/extra/pins.h"
#include "client/extra/stack.h"
#include "client/heap.h"
#include "client/link/attach.h"
#include "client/link/cancel.h"
#include "client/link/environ.h"
#include "client/link/fork.h"
#include "client/link/hooks.h"
#include "client/link/reason.h"
#include "client/link/registry.h"
#include "client/link/socket.h"
#include "client/own/tx.h"
#include "shm/ticket.h"

enum { SOCKET_PATH_MAX = sizeof((struct sockaddr_un *)0)->sun_path };

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

/* In a forked child, whatever other threads of its parent were in the middle of is left as it is: neither walked nor freed. */
static void arena_free_struct(struct arena *a)
{
    bool foreign = forked(a);
    attach_unmap(a);
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
        if (registry_heaps[i] && registry_heaps[i]->read_only == read_only &&
            memcmp(registry_heaps[i]->heap.header->heap_id, heap_id, 16) == 0 && !heap_is_stale(registry_heaps[i]))
            return registry_heaps[i];
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

/* Maps what the daemon's WELCOME brought. */
static int settle(struct arena *a, int fds[3])
{
    int rc = attach_map(a, &a->conn.in.welcome, fds);
    attach_close_fds(fds, 3);
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
        if (!registry_heaps[i] && !(stale >> i & 1)) {
            a->index = i;
            a->tls_at = (uint64_t)((char *)&tls_mcaches[i] - thread_pointer());
            a->opens = 1;
            store_release(&registry_heaps[i], a); /* [FK3] */
            return 0;
        }
    return -EMFILE;
}

/* What a HELLO for a new client says. Whoever the daemon takes for this library's client of this kind is gone: its BYE or its
 * WELCOME was lost with a daemon. But not one whose heap is of the past here and still open: its objects may be in use. */
static uint32_t copy_of(const uint8_t heap_id[16], bool read_only)
{
    bool of_the_past = false;
    registry_enter();
    for (int i = 0; i < HEAPS_MAX; i++)
        of_the_past |= registry_heaps[i] && registry_heaps[i]->read_only == read_only && heap_is_stale(registry_heaps[i]) &&
                       memcmp(registry_heaps[i]->heap.header->heap_id, heap_id, 16) == 0;
    pthread_mutex_unlock(&registry_lock);
    return of_the_past ? 0 : process_copy();
}

/* The heap is not open yet, and it is this thread's turn. -ESTALE: another one is there by now. */
static int open_new(struct arena *a, const uint8_t heap_id[16], struct patience *patience)
{
    int fds[3] = {-1, -1, -1}, rc = attach_hello(&a->conn, attach_flags(a), copy_of(heap_id, a->read_only), fds, patience);
    if (rc < 0)
        return rc;
    a->tag = (uint16_t)a->conn.in.welcome.tag;
    a->conn.epoch = a->conn.in.welcome.epoch;
    if (memcmp(a->conn.in.welcome.heap_id, heap_id, 16) != 0) {
        attach_close_fds(fds, 3);
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
        attach_bye(a);
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
        rc = attach_greet(a, false, HELLO_LOOK, 0, NULL, &patience);
        if (rc < 0)
            return rc;
        memcpy(heap_id, a->conn.in.welcome.heap_id, 16);
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
    } while (attach_tries_again(&patience));
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
    if (!report_may_close(a))
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
    registry_heaps[a->index] = NULL;
    while (a->busy)
        registry_wait();
    threads_forget(a->index);
    stack_forget(a);
    pthread_mutex_unlock(&registry_lock);
    if (!foreign) {
        profile_fini(a);
        if (!a->read_only)
            ticket_goodbye(&a->heap, a->tag); /* if nobody reads the BYE, hanging up says it */
        attach_bye(a);
    }
    registry_enter();
    turn_end(&turn);
    pthread_mutex_unlock(&registry_lock);
    mcaches_unmap(a);
    arena_free_struct(a);
    cancel_on();
    return 0;
}

/* ---- fork ------------------------------------------------------------------------------------------------------------ */

/* The places of the heaps that are open, a bit each. */
static uint32_t opens_after_fork(void)
{
    uint32_t open = 0;
    turns = NULL;
    for (uint32_t i = 0; i < HEAPS_MAX; i++)
        if (load_acquire(&registry_heaps[i])) { /* [FK3] */
            registry_heaps[i]->busy = 0;
            open |= 1u << i;
        }
    return open;
}

static void begin_anew(bool forking)
{
    registry_after_fork();
    forking = threads_after_fork(forking, opens_after_fork());
    stacks_after_fork(forking);
    sites_after_fork();
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

static int attached(struct arena *a, bool same)
{
    if (same)
        return settle_again(a);
    mcaches_forget(a);
    return -ESTALE;
}

static void thread_exit(struct arena *a, struct thread *t, struct mcache *mc)
{
    stack_thread_exit(a, t);
    if (mc && mc->tx)
        tx_thread_exit(mc);
}

static void trim(struct arena *a)
{
    stack_collect(a); /* or it is as it was */
}

/* ---- hooks ----------------------------------------------------------------------------------------------------------- */

/* Before main(), so that handlers of the program's are behind ours, and a fork before the first arena_open is one of a process
 * that has nothing. */
__attribute__((constructor)) static void on_load(void)
{
    hooks = (struct hooks){
        .begin_anew = begin_anew,
        .forked = thread_has_forked,
        .stale = mcaches_expire,
        .attached = attached,
        .thread_exit = thread_exit,
        .thread_forget = stack_forget_own,
        .trim = trim,
        .late = late_settle,
        .alloc_pinned = pinned_alloc,
        .watch_alloc = watch_alloc,
        .unpin = pins_unpin,
        .used = pinned_look,
        .sample_freed = profile_freed,
        .sample_published = profile_published,
        .frame_object = escape_note_frame,
        .frame_pop = escape_check_pop,
    };
    fork_start();
    threads_start();
}
