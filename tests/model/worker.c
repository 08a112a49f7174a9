#include "tests/model/worker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/e2e/harness.h"
#include "tests/model/operations.h"

int shadow_fd;
const char *model_path;

static struct ctx contexts[THREADS];
static pthread_t threads[THREADS];
static _Atomic bool all_end; /* the process's threads come to an end: it is about to close the heap */
static pthread_rwlock_t gate;
static __thread bool may_end_here;

/* ---- the gate: a safepoint is the whole process's ------------------------------------------------------------------ */

static void gate_shared(void)
{
    if (R->set.collector)
        pthread_rwlock_rdlock(&gate);
}

static void gate_leave(void)
{
    if (R->set.collector)
        pthread_rwlock_unlock(&gate);
}

/* From shared to alone, inside an operation. */
void gate_alone(void)
{
    pthread_rwlock_unlock(&gate);
    pthread_rwlock_wrlock(&gate);
}

void gate_shared_again(void)
{
    pthread_rwlock_unlock(&gate);
    pthread_rwlock_rdlock(&gate);
}

static void gate_init(void)
{
    pthread_rwlockattr_t attr;
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&gate, &attr);
    pthread_rwlockattr_destroy(&attr);
}

/* ---- attaching ----------------------------------------------------------------------------------------------------- */

static void wait_a_little(void) { nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL); }

void declare(arena_t *a, int mode)
{
    int rc;
    while ((rc = arena_safepoint(a, mode)) != 0)
        CHECK(rc == -EINPROGRESS || (rc == -ENOTCONN && R->set.stops), "arena_safepoint(%d): %s", mode, strerror(-rc));
}

/* A daemon that is killed is not there for a moment, and one that stands still does not answer. */
arena_t *attach(struct process_shadow *p, unsigned flags)
{
    struct arena_options options = ARENA_OPTIONS_INIT;
    arena_t *a = NULL;
    int rc;
    options.flags = flags;
    options.timeout_ms = R->set.timeout_ms;
    while ((rc = arena_open(&a, R->set.socket, &options)) != 0) {
        CHECK(rc == -ENOENT || rc == -ECONNREFUSED || rc == -ENOMEM || (rc == -ENOTCONN && R->set.stops) || (rc == -EDQUOT && R->set.limits),
              "arena_open: %s: %s", strerror(-rc), arena_reason());
        wait_a_little();
    }
    arena_on_error(a, error_handler, NULL);
    if (R->set.collector)
        declare(a, flags & ARENA_READ_ONLY ? ARENA_SAFEPOINT : ARENA_PINS);
    atomic_store(&p->attached, 1);
    return a;
}

/* ---- a thread ------------------------------------------------------------------------------------------------------ */

void thread_may_end(struct ctx *c)
{
    (void)c;
    may_end_here = true;
    pthread_testcancel();
    may_end_here = false;
}

static void thread_ends(void *argument)
{
    struct ctx *c = argument;
    CHECK(may_end_here, "a thread was cancelled inside an operation");
    gate_leave();
    atomic_fetch_sub(&c->p->threads, 1);
    atomic_store(&c->t->parked, 1); /* it does no more */
}

static void *thread_main(void *argument)
{
    struct ctx *c = argument;
    self_ctx = c;
    c->in_tx = false;
    drop_tx_slots(c); /* of one that was cancelled */
    gate_shared();
    pthread_cleanup_push(thread_ends, c);
    for (uint64_t life = 500 + below(c, 8000); life > 0 && !atomic_load(&R->stop) && !atomic_load(&all_end); life--) {
        thread_may_end(c);
        gate_leave();
        park(&c->t->parked);
        gate_shared();
        operation_run(c, FOR_WORKERS);
    }
    may_end_here = true;
    pthread_cleanup_pop(1);
    return NULL;
}

static void thread_start(struct process_shadow *p, int i)
{
    atomic_store(&p->thread[i].parked, 0);
    atomic_fetch_add(&p->threads, 1);
    int rc = pthread_create(&threads[i], NULL, thread_main, &contexts[i]);
    CHECK(rc == 0, "pthread_create: %s", strerror(rc));
}

static void thread_join(struct process_shadow *p, int i)
{
    void *result;
    atomic_store(&p->main_parked, 1);
    int rc = pthread_join(threads[i], &result);
    CHECK(rc == 0 && (result == NULL || result == PTHREAD_CANCELED), "pthread_join: %s", strerror(rc));
    atomic_store(&p->main_parked, 0);
    park(&p->main_parked);
}

/* ---- a worker ------------------------------------------------------------------------------------------------------ */

static void contexts_init(struct process_shadow *p, arena_t *a)
{
    for (int i = 0; i < THREADS; i++) {
        uint64_t seed = p->seed * 2654435761u + (uint64_t)i * 40503 + 12345;
        contexts[i].a = a;
        contexts[i].p = p;
        contexts[i].t = &p->thread[i];
        contexts[i].seed = contexts[i].seed ? contexts[i].seed : seed | 1;
    }
}

/* Frees what the threads hold, or leaves to the close what is this process's alone. */
static void let_go(arena_t *a, bool everything)
{
    for (int i = 0; i < THREADS; i++) {
        struct ctx *c = self_ctx = &contexts[i];
        c->in_tx = false;
        drop_tx_slots(c);
        held_free(c);
        for (int k = 0; k < SLOTS; k++) {
            struct slot *s = &c->t->slots[k];
            if (slot_state(s) == SLOT_SHARED || (everything && slot_state(s) != SLOT_EMPTY))
                slot_free(c, s);
            else if (slot_state(s) != SLOT_EMPTY)
                slot_forget(c, s);
        }
        if (everything && c->buf.arena)
            arena_buf_fini(&c->buf);
        memset(&c->buf, 0, sizeof c->buf);
    }
    (void)a;
}

static arena_t *close_and_reopen(struct process_shadow *p, arena_t *a, uint64_t *seed)
{
    let_go(a, rnd(seed) % 2);
    atomic_store(&p->attached, 0);
    int rc = arena_close(a);
    CHECK(rc == 0, "arena_close: %s", strerror(-rc));
    atomic_fetch_add(&R->count.closes, 1);
    a = attach(p, 0);
    contexts_init(p, a);
    return a;
}

static void run_threads(struct process_shadow *p, arena_t *a, uint64_t *seed)
{
    for (int i = 0; i < THREADS; i++)
        thread_start(p, i);
    while (!atomic_load(&R->stop)) {
        int i = (int)(rnd(seed) % THREADS);
        if (rnd(seed) % 4 == 0) {
            thread_cancel(threads[i]);
            atomic_fetch_add(&R->count.cancels, 1);
        }
        thread_join(p, i);
        if (rnd(seed) % 6) {
            thread_start(p, i);
            continue;
        }
        atomic_store(&all_end, true);
        for (int k = 0; k < THREADS; k++)
            if (k != i)
                thread_join(p, k);
        atomic_store(&all_end, false);
        a = close_and_reopen(p, a, seed);
        for (int k = 0; k < THREADS; k++)
            thread_start(p, k);
    }
    for (int i = 0; i < THREADS; i++)
        thread_join(p, i);
    let_go(a, true);
    atomic_store(&p->attached, 0);
    int rc = arena_close(a);
    CHECK(rc == 0, "arena_close: %s", strerror(-rc));
}

/* Of the program that this one replaces: what it had, and the children that its threads waited for. */
static void bury_program(struct process_shadow *p)
{
    for (pid_t pid; (pid = waitpid(-1, NULL, 0)) > 0;)
        shadow_bury_pid(pid);
    shadow_bury(p);
}

static void become(struct process_shadow *p)
{
    if (atomic_load(&p->state) == PROCESS_ALIVE)
        bury_program(p);
    atomic_store(&p->pid, getpid());
    atomic_store(&p->state, PROCESS_ALIVE);
}

/* ---- a reader ------------------------------------------------------------------------------------------------------ */

static void check_refused(arena_t *a)
{
    arena_ref_t ref;
    errno = 0;
    CHECK(!arena_alloc(a, 10) && errno == EACCES, "a reader allocates: %s", strerror(errno));
    CHECK(arena_root_get(a, "turn", &ref) == 0, "a reader finds no root");
    void *p = arena_ptr(a, ref);
    CHECK(arena_publish(a, p) == -EACCES && arena_claim(a, p) == -EACCES && arena_pin(a, p) == -EACCES, "a reader publishes, claims or pins");
    CHECK(arena_gc(a, 0, NULL) == -EACCES && arena_safepoint(a, ARENA_PINS) == -EACCES, "a reader collects");
    self_ctx->expected = EACCES;
    arena_free(a, p);
    CHECK(self_ctx->expected == 0, "a reader frees");
}

static int reader(struct process_shadow *p)
{
    struct ctx *c = self_ctx = &contexts[0];
    atomic_store(&p->main_parked, 1);
    atomic_store(&p->threads, 1);
    while (!atomic_load(&R->stop)) {
        arena_t *a = attach(p, ARENA_READ_ONLY);
        contexts_init(p, a);
        check_refused(a);
        for (uint64_t turns = 1 + below(c, 30); turns > 0 && !atomic_load(&R->stop); turns--) {
            if (R->set.collector)
                declare(a, ARENA_RUNS);
            for (int i = 0; i < 20; i++)
                operation_run(c, FOR_READERS);
            if (R->set.collector)
                declare(a, ARENA_SAFEPOINT);
            park(&c->t->parked);
        }
        atomic_store(&p->attached, 0);
        CHECK(arena_close(a) == 0, "a reader's close");
    }
    return 0;
}

/* Says where; a sanitizer says more. */
static void crashed(int signum, siginfo_t *info, void *context)
{
    (void)context;
    FAIL("signal %d, address %p", signum, info->si_addr);
}

static void catch_crashes(void)
{
    struct sigaction action = {.sa_sigaction = crashed, .sa_flags = SA_SIGINFO | SA_RESETHAND};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    sigaction(SIGABRT, &action, NULL);
}

int worker_main(int index)
{
    struct process_shadow *p = &R->process[index];
    uint64_t seed = p->seed | 1;
    if (!SANITIZED)
        catch_crashes();
    become(p);
    operations_index();
    gate_init();
    contexts_init(p, NULL);
    self_ctx = &contexts[0];
    if (index >= READER_INDEX)
        return reader(p);
    arena_t *a = attach(p, 0);
    contexts_init(p, a);
    run_threads(p, a, &seed);
    return 0;
}

void worker_exec_again(int index)
{
    char number[16], fd[16];
    snprintf(number, sizeof number, "%d", index);
    snprintf(fd, sizeof fd, "%d", shadow_fd);
    R->process[index].seed += 1000003;
    execl(model_path, model_path, "worker", number, fd, (char *)NULL);
    FAIL("exec of %s: %s", model_path, strerror(errno));
}

/* ---- a forked child ------------------------------------------------------------------------------------------------ */

/* False: it is no client, by a limit or as nobody answers; so it can free and claim nothing. */
static bool child_attaches(struct ctx *c)
{
    void *own = arena_alloc(c->a, 16);
    int error = errno;
    if (own) {
        arena_free(c->a, own);
        return true;
    }
    may_fail(c, error, "a child's first allocation");
    if (error != ENOMEM) { /* it may be a client by now, if the daemon is there again: so of a place where no object begins */
        int rc = arena_claim(c->a, (char *)arena_ptr(c->a, R->pillar[0]) + 1);
        CHECK(rc == -error || rc == -ENOTCONN || rc == -EDQUOT || rc == -EINVAL, "a claim by a child that is no client: %s",
              strerror(-rc));
    }
    return false;
}

/* It may read what was its parent's, and free nothing of it. Its parent's thread waits, so that is as it was. */
static void check_parents(struct ctx *c, struct thread_shadow *parent)
{
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &parent->slots[i];
        if (slot_state(s) != SLOT_OWNED || below(c, 8))
            continue;
        slot_verify(c, s, "a parent's object");
        c->expected = EPERM;
        arena_free(c->a, slot_object(c, s));
        CHECK(c->expected == 0, "a child frees its parent's object");
        return;
    }
}

static _Noreturn void child_main(struct process_shadow *p, arena_t *a, pid_t parent)
{
    static const char *const other[] = {"/bin/true", NULL};
    struct thread_shadow *parents = self_ctx->t;
    struct ctx c = {.a = a, .p = p, .t = &p->thread[0], .seed = p->seed | 1};
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(127);
    self_ctx = &c;
    become(p);
    if (below(&c, 8) == 0) { /* only that */
        CHECK(arena_close(a) == 0, "a child's close");
        _exit(0);
    }
    if (R->set.kills && below(&c, 3) == 0) /* dies somewhere on its way */
        setitimer(ITIMER_REAL, &(struct itimerval){.it_value = {.tv_usec = 200 + (suseconds_t)below(&c, 20000)}}, NULL);
    if (!child_attaches(&c))
        _exit(0);
    if (R->set.collector)
        declare(a, ARENA_PINS);
    check_parents(&c, parents);
    for (uint64_t i = below(&c, 80); i > 0; i--)
        operation_run(&c, FOR_CHILDREN);
    for (int i = 0; i < SLOTS; i++)
        if (slot_state(&c.t->slots[i]) == SLOT_SHARED)
            slot_free(&c, &c.t->slots[i]);
    if (below(&c, 2))
        CHECK(arena_close(a) == 0, "a child's close");
    if (below(&c, 4) == 0)
        execv(other[0], (char *const *)(uintptr_t)other);
    _exit(0);
}

static struct process_shadow *child_place(void)
{
    for (int i = CHILD_INDEX; i < PROCESSES; i++) {
        uint32_t is_free = PROCESS_FREE;
        if (atomic_compare_exchange_strong(&R->process[i].state, &is_free, PROCESS_FORKING))
            return &R->process[i];
    }
    return NULL;
}

void fork_and_wait(uint64_t seed, arena_t *a)
{
    struct process_shadow *p = child_place();
    pid_t self = getpid();
    int status = 0, cancel;
    if (!p)
        return;
    p->seed = seed;
    pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel); /* waitpid is where a thread may be cancelled */
    pid_t pid = fork();
    if (pid == 0)
        child_main(p, a, self);
    CHECK(pid > 0, "fork: %s", strerror(errno));
    while (waitpid(pid, &status, 0) < 0)
        CHECK(errno == EINTR, "waitpid: %s", strerror(errno));
    CHECK((WIFEXITED(status) && WEXITSTATUS(status) == 0) || (WIFSIGNALED(status) && WTERMSIG(status) == SIGALRM),
          "a forked child ended with %x", (unsigned)status);
    shadow_bury(p);
    pthread_setcancelstate(cancel, &cancel);
}
