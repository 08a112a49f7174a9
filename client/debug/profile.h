/* ARENA_PROFILE: samples of allocations, and what became of them.
 *
 *   closed window: the fast paths, untouched          open window: every allocation takes the slow
 * path and is counted; (63 of 64 parts of the time)                      one in `every`, at random,
 * becomes a sample
 *
 * A thread of the library's opens a window for about a millisecond at random times, and measures
 * for how long windows were open in all; samples are scaled by that. So between windows an
 * allocation costs what it always costs. A rate below 64 keeps the window open; 1 takes every
 * allocation, and its report is exact.
 *
 * A sampled object is OWNED by a tag of its own, one that a transaction might have: so its free and
 * its publication take the slow path, and are noticed, while those of all others take the fast one.
 * After its publication it belongs to others too; what became of it is then read from its state
 * word, when a window opens and at the end. die: like any transaction that was not committed: the
 * pass frees it. */
#ifndef CLIENT_PROFILE_H
#define CLIENT_PROFILE_H

#include "client/heap.h"
#include "client/link/environ.h"
#include "client/debug/site.h"

enum {
    PROFILE_WINDOWS = 64, /* the part of the time in which a window is open: one in so many */
    PROFILE_WINDOW_US = 1000,
    PROFILE_OPEN = 16384,     /* rates below it keep the window open: more samples would fill it with themselves */
    PROFILE_FRAMES = 8,  /* of callers, that are told apart */
    PROFILE_CLIENTS = 8, /* to which objects of one site crossed, that are told apart */
    PROFILE_SAMPLES = 1 << 18,
    PROFILE_BUCKETS = 16384,
};

/* Where an object stands, or ended. */
enum fate {
    FATE_OWNED,     /* not freed, not published */
    FATE_FRAME,     /* freed before the function that allocated it returned */
    FATE_THREAD,    /* freed by its thread */
    FATE_PROCESS,   /* freed by another thread */
    FATE_SHARED,    /* published, and nobody else has taken or freed it so far */
    FATE_PUBLISHED, /* published, and freed by this process */
    FATE_CROSSED,   /* claimed or freed by another client */
    FATE_LOST,      /* published, and freed by nobody knows whom */
    FATE_COUNT
};

struct crossing {
    uint16_t tag;
    uint32_t pid;
    char command[16];
    double objects;
};

/* By site; numbers of samples, not yet scaled. sync: profile.lock */
struct tally {
    struct site *site;
    double objects, bytes;
    double fates[FATE_COUNT];
    double frames[PROFILE_FRAMES]; /* of FATE_FRAME and FATE_THREAD: the innermost caller that had
                                      not returned */
    double ended, life_ns;
    struct crossing to[PROFILE_CLIENTS];
    unsigned to_count;
    uint64_t runs; /* how often the site was sampled in the activation at `cfa` */
    uintptr_t cfa;
    struct tally *next; /* of all */
};

struct sample {
    uintptr_t object;
    uint16_t *word;
    size_t size;
    struct tally *tally;
    const struct mcache *thread;
    uint64_t born_ns, runs;
    enum fate fate; /* FATE_OWNED or FATE_SHARED: not over yet */
    unsigned frames;
    uintptr_t cfa[PROFILE_FRAMES], pc[PROFILE_FRAMES];
    struct sample *next; /* in its bucket */
};

struct profile {
    struct arena *arena;
    char *dir; /* where its file goes */
    uint64_t rate, every;
    bool windows; /* false: always open */
    uint16_t tag; /* of sampled objects; 0: none could be had */
    pthread_mutex_t lock;
    pthread_mutex_t file_lock; /* before `lock`: one thread at a time writes the file */
    struct sample *buckets[PROFILE_BUCKETS];
    uint32_t sample_count, dropped;
    struct tally *tallies;
    uint64_t seed, started_ns, opened_ns, open_ns;
    uint64_t sampling_ns; /* of all threads' time in open windows: spent by the sampling itself */
    bool open, stopping, has_thread;
    pthread_t thread;
    pthread_cond_t wake;
    struct profile *next; /* of all. sync: registry_lock */
};

/* What $ARENA_PROFILE asks for; without memory for it there is no profile. */
void profile_init(struct arena *a, const struct environment *e);
void profile_start(struct arena *a); /* attached, or attached anew in a forked child */
void profile_forget(struct arena *a); /* in a forked child that was no client: neither walked nor freed */
void profile_fini(
    struct arena *a); /* writes the file and ends the thread; nobody else is inside a call */

void profile_alloc(struct mcache *mc, void *object, size_t size);
void profile_freed(struct arena *a, const void *p);
void profile_published(struct arena *a, const void *p);

/* sample.c. profile_look, with profile.lock held: looks at the words of all that was published. */
void profile_look(struct profile *p);
void profile_drop(struct profile *p, struct sample **at);
uint64_t profile_interval(uint64_t *seed, uint64_t mean); /* to the next event, exponential, at least 1 */
uint64_t profile_now_ns(void);

/* profile_file.c. path NULL: in p->dir. */
int profile_write(struct profile *p, const char *path);

#endif
