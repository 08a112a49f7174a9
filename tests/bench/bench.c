#include "tests/bench/bench.h"

#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

void block_is_wrong(const void *p, size_t at)
{
    fprintf(stderr, "block %p: byte %zu is not what its holder wrote\n", p, at);
    _Exit(3);
}

void sizes_fill(uint32_t *sizes, uint32_t least, uint32_t most, bool logarithmic, uint64_t seed)
{
    for (unsigned i = 0; i < SIZES; i++) {
        double u = (double)(chance(&seed) >> 11) / (double)(1ULL << 53);
        double size = logarithmic ? least * exp(u * log((double)most / least))
                                  : least + u * (most - least + 1);
        sizes[i] = size > most ? most : (uint32_t)size;
    }
}

/* ---- workers ---- */

/* The n-th of the CPUs that this process may use, round and round. */
void pin(unsigned cpu)
{
    static cpu_set_t allowed;
    static bool known;
    cpu_set_t one;
    if (!known)
        known = sched_getaffinity(0, sizeof allowed, &allowed) == 0;
    unsigned nth = cpu % (unsigned)CPU_COUNT(&allowed);
    for (int c = 0; c < CPU_SETSIZE; c++)
        if (CPU_ISSET(c, &allowed) && nth-- == 0) {
            CPU_ZERO(&one);
            CPU_SET(c, &one);
            sched_setaffinity(0, sizeof one, &one);
            return;
        }
}

uint64_t waited_ns(void)
{
    char text[96] = "";
    unsigned long long waited = 0;
    int fd = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    if (read(fd, text, sizeof text - 1) <= 0 || sscanf(text, "%*u %llu", &waited) != 1)
        waited = 0;
    close(fd);
    return waited;
}

void workers_meet(struct worker *w, unsigned count)
{
    unsigned before = atomic_fetch_add(&w->shared->arrived, 1), all = (before / count + 1) * count;
    while (atomic_load(&w->shared->arrived) < all)
        ;
}

struct start {
    worker_fn *fn;
    struct worker *worker;
};

static void *thread_main(void *argument)
{
    struct start *s = argument;
    pin(s->worker->cpu);
    s->fn(s->worker);
    return NULL;
}

/* A worker that ends early takes the others along, which wait for it. */
static bool processes_reap(pid_t *pids, unsigned count)
{
    bool ok = true;
    for (unsigned left = count; left; left--) {
        int status;
        pid_t pid = wait(&status);
        for (unsigned i = 0; i < count; i++)
            if (pids[i] == pid) {
                pids[i] = 0;
                if (status != 0 && ok)
                    for (unsigned k = 0; k < count; k++)
                        if (pids[k] > 0)
                            kill(pids[k], SIGKILL);
                ok = ok && status == 0;
                break;
            } else if (i + 1 == count)
                left++; /* another child: a daemon */
    }
    return ok;
}

static bool processes_run(struct start *starts, unsigned count)
{
    pid_t pids[WORKERS_MAX], parent = getpid();
    for (unsigned i = 0; i < count; i++) {
        pids[i] = fork();
        if (pids[i] == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            thread_main(&starts[i]);
            _exit(0);
        }
    }
    return processes_reap(pids, count);
}

double workers_run(const struct run *run, worker_fn *fn, const void *argument, unsigned count,
                   enum how how, bool whole)
{
    struct shared *shared =
        mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    struct start starts[WORKERS_MAX];
    pthread_t threads[WORKERS_MAX];
    double mops = 0;
    bool ok = true;
    for (unsigned i = 0; i < count; i++) {
        shared->workers[i] = (struct worker){.index = i,
                                             .cpu = run->cpu + i,
                                             .ms = whole ? 1 : run->ms,
                                             .whole = whole,
                                             .seed = run->seed * 2654435761u + i + 1,
                                             .shared = shared,
                                             .argument = argument};
        starts[i] = (struct start){fn, &shared->workers[i]};
    }
    if (how == PROCESSES)
        ok = processes_run(starts, count);
    else {
        for (unsigned i = 1; i < count; i++)
            if (pthread_create(&threads[i], NULL, thread_main, &starts[i]) != 0)
                _Exit(1);
        thread_main(&starts[0]);
        for (unsigned i = 1; i < count; i++)
            pthread_join(threads[i], NULL);
    }
    for (unsigned i = 0; i < count; i++)
        if (shared->workers[i].busy_ns)
            mops +=
                (double)shared->workers[i].operations * 1e3 / (double)shared->workers[i].busy_ns;
    munmap(shared, sizeof *shared);
    return ok ? mops : -1;
}

/* ---- how far the CPUs are from one another ---- */

enum { TRIPS = 2000, TURNS = 5 };

struct pingpong {
    _Alignas(128) _Atomic unsigned ping;
    _Alignas(128) _Atomic unsigned pong;
    unsigned cpu;
};

static void *pong_main(void *argument)
{
    struct pingpong *p = argument;
    pin(p->cpu);
    for (unsigned n = 1; n <= TRIPS * TURNS; n++) {
        while (atomic_load_explicit(&p->ping, memory_order_acquire) < n)
            ;
        atomic_store_explicit(&p->pong, n, memory_order_release);
    }
    return NULL;
}

static double ping(struct pingpong *p)
{
    double best = 1e18;
    for (unsigned turn = 0, n = 1; turn < TURNS; turn++) {
        uint64_t from = now_ns();
        for (unsigned k = 0; k < TRIPS; k++, n++) {
            atomic_store_explicit(&p->ping, n, memory_order_release);
            while (atomic_load_explicit(&p->pong, memory_order_acquire) < n)
                ;
        }
        double ns = (double)(now_ns() - from) / TRIPS;
        best = ns < best ? ns : best;
    }
    return best;
}

double round_trip_ns(const struct run *run)
{
    struct pingpong p = {.cpu = run->cpu + 1};
    pthread_t other;
    if (pthread_create(&other, NULL, pong_main, &p) != 0)
        return 0;
    pin(run->cpu);
    double best = ping(&p);
    pthread_join(other, NULL);
    return best;
}

double round_trip_near(const struct run *run)
{
    uint64_t until = now_ns() + (uint64_t)run->wait_ms * 1000000;
    for (;;) {
        double ns = round_trip_ns(run);
        struct timespec pause = {.tv_nsec = 20000000};
        if (ns < NEAR_NS || now_ns() >= until)
            return ns;
        nanosleep(&pause, NULL);
    }
}
