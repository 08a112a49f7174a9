#include "tests/model/shadow.h"

#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <stdarg.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "tests/model/operations.h"

struct run *run_shadow;

int shadow_make(void)
{
    int low = memfd_create("model", 0), fd = fcntl(low, F_DUPFD, 100); /* survives exec, and is in nobody's way */
    close(low);
    if (fd < 0 || ftruncate(fd, sizeof(struct run)) < 0)
        return -1;
    return fd;
}

void shadow_attach(int fd)
{
    R = mmap(NULL, sizeof *R, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (R == MAP_FAILED)
        _exit(99);
}

void shadow_reset(void)
{
    struct settings set = R->set;
    pthread_mutexattr_t robust;
    memset(R, 0, sizeof *R);
    R->set = set;
    pthread_mutexattr_init(&robust);
    pthread_mutexattr_setpshared(&robust, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&robust, PTHREAD_MUTEX_ROBUST);
    for (int i = 0; i < ROOTS; i++)
        pthread_mutex_init(&R->root[i].lock, &robust);
    pthread_mutex_init(&R->board_lock.lock, &robust);
    pthread_mutexattr_destroy(&robust);
}

void model_fail(const char *file, int line, const char *format, ...)
{
    char text[1000];
    void *frames[32];
    va_list args;
    int n = snprintf(text, sizeof text, "FAIL %s:%d: process %d (pid %d), operation %s: ", file, line, self_index(), (int)getpid(),
                     self_operation());
    va_start(args, format);
    n += vsnprintf(text + n, sizeof text - (size_t)n - 2, format, args);
    va_end(args);
    n = n > (int)sizeof text - 2 ? (int)sizeof text - 2 : n;
    text[n++] = '\n';
    atomic_fetch_add(&R->failures, 1);
    (void)!write(2, text, (size_t)n);
    backtrace_symbols_fd(frames, backtrace(frames, 32), 2);
    _exit(70);
}

/* ---- patterns ----------------------------------------------------------------------------------------------------- */

enum { LONG = 64 << 10, ENDS = 64, STRIDE = 509 };

/* No reference and no pointer: the uppermost bit is set. */
static uint64_t pattern_word(uint64_t id, size_t at)
{
    uint64_t x = id * 0x9e3779b97f4a7c15ULL + at * 0xbf58476d1ce4e5b9ULL;
    return (x ^ x >> 29) | 1ULL << 63;
}

/* The word after `at` that is looked at, of `words`. */
static size_t word_after(size_t at, size_t words)
{
    size_t tail = words > ENDS ? words - ENDS : 0;
    if (words <= LONG / 8 || at < ENDS || at >= tail)
        return at + 1;
    return at + STRIDE < tail ? at + STRIDE : tail;
}

void pattern_fill(void *p, size_t from, size_t size, uint64_t id)
{
    size_t words = size / 8;
    for (size_t at = from / 8; at < words; at = word_after(at, words)) {
        uint64_t word = pattern_word(id, at);
        memcpy((char *)p + at * 8, &word, 8);
    }
    uint64_t last = pattern_word(id, words);
    if (size > from)
        memcpy((char *)p + words * 8, &last, size % 8);
}

bool pattern_holds(const void *p, size_t from, size_t size, uint64_t id, size_t *ret_at)
{
    size_t words = size / 8;
    for (size_t at = from / 8; at < words; at = word_after(at, words)) {
        uint64_t word = pattern_word(id, at);
        if (memcmp((const char *)p + at * 8, &word, 8) != 0) {
            *ret_at = at * 8;
            return false;
        }
    }
    uint64_t last = pattern_word(id, words);
    *ret_at = words * 8;
    return size <= from || memcmp((const char *)p + words * 8, &last, size % 8) == 0;
}

void object_fill(void *p, size_t size, uint64_t id)
{
    size_t from = is_headed(size) ? sizeof(struct head) : 0;
    if (from)
        *(struct head *)p = (struct head){.id = id, .marked_size = size | MARK, .graph = id, .count = 1};
    pattern_fill(p, from, size, id);
}

static uint64_t word_at(const void *p, size_t at)
{
    uint64_t word;
    memcpy(&word, (const char *)p + (at & ~(size_t)7), 8);
    return word;
}

void object_verify(const void *p, size_t size, uint64_t id, const char *where)
{
    size_t from = is_headed(size) ? sizeof(struct head) : 0, at;
    const struct head *head = p;
    if (from && (head->id != id || head_size(head) != size))
        FAIL("%s: the object at %p should be %llu of %zu bytes and is %llu of %llu", where, p, (unsigned long long)id, size,
             (unsigned long long)head->id, (unsigned long long)head_size(head));
    if (!pattern_holds(p, from, size, id, &at))
        FAIL("%s: object %llu of %zu bytes at %p was overwritten from byte %zu on: %llx", where, (unsigned long long)id, size, p, at,
             (unsigned long long)(at + 8 <= size ? word_at(p, at) : 0));
}

const struct head *node_verify(const void *p, uint64_t graph, const char *where)
{
    const struct head *head = p;
    size_t at;
    if (!p || head->graph != graph || head_size(head) < sizeof *head || head_size(head) > R->set.heap_bytes || head->number >= head->count)
        FAIL("%s: the node at %p should be of graph %llu and is of %llu: object %llu of %llu bytes, %llu of %llu", where, p,
             (unsigned long long)graph, p ? (unsigned long long)head->graph : 0, p ? (unsigned long long)head->id : 0,
             p ? (unsigned long long)head_size(head) : 0, p ? (unsigned long long)head->number : 0, p ? (unsigned long long)head->count : 0);
    if (!pattern_holds(p, sizeof *head, head_size(head), head->id, &at))
        FAIL("%s: node %llu of %llu bytes at %p was overwritten from byte %zu on", where, (unsigned long long)head->id,
             (unsigned long long)head_size(head), p, at);
    return head;
}

/* ---- parking ------------------------------------------------------------------------------------------------------ */

void park(_Atomic uint32_t *parked)
{
    while (atomic_load(&R->pause)) {
        atomic_store(parked, 1);
        while (atomic_load(&R->pause))
            syscall(SYS_futex, &R->pause, FUTEX_WAIT, 1, NULL, NULL, 0);
        atomic_store(parked, 0); /* and looks again: it may have been paused anew meanwhile */
    }
}

/* ---- deaths ------------------------------------------------------------------------------------------------------- */

void orphan_add(struct orphan orphan)
{
    uint32_t at = atomic_fetch_add(&R->orphan_count, 1);
    CHECK(at < ORPHANS, "more orphans than there is room for");
    R->orphan[at] = orphan;
}

static void bury_thread(struct thread_shadow *t)
{
    for (int i = 0; i < SLOTS; i++) {
        struct slot *s = &t->slots[i];
        uint32_t state = slot_state(s);
        if (state == SLOT_UNSURE || state == SLOT_SHARED || state == SLOT_HELD)
            orphan_add((struct orphan){ORPHAN_OBJECT, s->ref, s->id, s->size, 0});
        slot_set(s, SLOT_EMPTY);
    }
    arena_ref_t at = atomic_load(&t->taking.at), intact = atomic_load(&t->taking.intact);
    if (at && at != intact)
        orphan_add((struct orphan){ORPHAN_NODE, at, 0, 0, t->taking.graph});
    if (at && intact)
        orphan_add((struct orphan){ORPHAN_GRAPH, intact, 0, 0, t->taking.graph});
    atomic_store(&t->taking.at, 0);
    atomic_fetch_add(&R->turns_unsure, atomic_exchange(&t->turning, 0));
    atomic_fetch_add(&R->unknown, atomic_exchange(&t->unknown, 0));
    atomic_store(&t->parked, 0);
}

void shadow_bury(struct process_shadow *p)
{
    for (int i = 0; i < THREADS; i++)
        bury_thread(&p->thread[i]);
    atomic_store(&p->live_bytes, 0);
    atomic_store(&p->attached, 0);
    atomic_store(&p->main_parked, 0);
    atomic_store(&p->threads, 0);
    atomic_store(&p->pid, 0);
    atomic_store(&p->state, PROCESS_FREE);
}

bool shadow_bury_pid(int32_t pid)
{
    for (int i = 0; i < PROCESSES; i++)
        if (atomic_load(&R->process[i].state) == PROCESS_ALIVE && atomic_load(&R->process[i].pid) == pid) {
            shadow_bury(&R->process[i]);
            return true;
        }
    return false;
}

/* ---- roots -------------------------------------------------------------------------------------------------------- */

int root_trylock(struct root_shadow *root)
{
    int rc = pthread_mutex_trylock(&root->lock);
    if (rc == EOWNERDEAD) {
        pthread_mutex_consistent(&root->lock);
        rc = 0;
    }
    if (rc == 0)
        RECEIVE();
    CHECK(rc == 0 || rc == EBUSY, "the lock of a root: %s", strerror(rc));
    return rc;
}

void root_unlock(struct root_shadow *root)
{
    PASS_ON();
    pthread_mutex_unlock(&root->lock);
}
