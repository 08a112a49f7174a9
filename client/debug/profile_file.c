/* The profile's file: lines of tab-separated fields, for `arenactl escape`. Numbers of objects and
 * bytes are scaled to what the process did in all. Addresses are given by module, so that they can
 * be looked up when the process is gone.
 *
 *   arena-profile 1
 *   process PID COMMAND CLIENT RATE SCALE SECONDS SAMPLES DROPPED
 *   site ID OBJECTS BYTES ENDED LIFE_NS owned frame thread process shared published crossed lost
 *   frames ID n0 n1 ...            of `frame` and `thread`: the innermost caller that had not
 * returned when it was freed to ID CLIENT PID COMMAND OBJECTS pc ID MODULE OFFSET NAME callers,
 * innermost first
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "client/debug/profile.h"
#include "client/debug/site.h"
#include "client/heap.h"
#include "client/link/cancel.h"

static void put_text(FILE *f, const char *text)
{
    for (; *text; text++)
        fputc((unsigned char)*text < ' ' ? '?' : *text, f);
}

static void put_process(FILE *f, const struct profile *p, double scale)
{
    const struct arena *a = p->arena;
    char command[sizeof a->heap.tags->command];
    memcpy(command, a->heap.tags[a->tag].command, sizeof command);
    command[sizeof command - 1] = 0;
    double samples = 0;
    for (const struct tally *t = p->tallies; t; t = t->next)
        samples += t->objects;
    fprintf(f, "arena-profile 1\nprocess\t%d\t", (int)getpid());
    put_text(f, command);
    fprintf(f, "\t%u\t%llu\t%.3f\t%.3f\t%.0f\t%u\n", a->tag, (unsigned long long)p->rate, scale,
            (double)(profile_now_ns() - p->started_ns) / 1e9, samples, p->dropped);
}

static void put_tally(FILE *f, const struct tally *t, double scale)
{
    uint32_t id = t->site->id;
    fprintf(f, "site\t%u\t%.0f\t%.0f\t%.0f\t%.0f", id, t->objects * scale, t->bytes * scale,
            t->ended * scale, t->ended > 0 ? t->life_ns / t->ended : 0);
    for (int i = 0; i < FATE_COUNT; i++)
        fprintf(f, "\t%.0f", t->fates[i] * scale);
    fprintf(f, "\nframes\t%u", id);
    for (int i = 0; i < PROFILE_FRAMES; i++)
        fprintf(f, "\t%.0f", t->frames[i] * scale);
    fputc('\n', f);
    for (unsigned i = 0; i < t->to_count; i++) {
        fprintf(f, "to\t%u\t%u\t%u\t", id, t->to[i].tag, t->to[i].pid);
        put_text(f, t->to[i].command);
        fprintf(f, "\t%.0f\n", t->to[i].objects * scale);
    }
    for (unsigned i = 0; i < t->site->count; i++) {
        uintptr_t offset = 0;
        const char *name = NULL, *module = site_module(t->site->pc[i], &offset, &name);
        char path[4096];
        if (module && strcmp(module, "/proc/self/exe") == 0) {
            ssize_t n = readlink(module, path, sizeof path - 1);
            path[n > 0 ? n : 0] = 0;
            module = path;
        }
        fprintf(f, "pc\t%u\t", id);
        put_text(f, module ? module : "?");
        fprintf(f, "\t%#lx\t", (unsigned long)(module ? offset : t->site->pc[i]));
        put_text(f, name ? name : "");
        fputc('\n', f);
    }
}

static void put_all(FILE *f, struct profile *p)
{
    pthread_mutex_lock(&p->lock);
    profile_look(p);
    uint64_t now = profile_now_ns();
    double open = (double)(p->open_ns + (p->open ? now - p->opened_ns : 0)),
           scale = (double)p->every;
    uint32_t threads = load_relaxed(&p->arena->mcache_count);
    double working = open - (double)p->sampling_ns / (threads ? threads : 1);
    if (p->windows && open > 0)
        scale *= (double)(now - p->started_ns) / (working > open / 100 ? working : open / 100);
    put_process(f, p, scale);
    for (const struct tally *t = p->tallies; t; t = t->next)
        put_tally(f, t, scale);
    pthread_mutex_unlock(&p->lock);
}

/* Called with cancelling off and file_lock held: two threads that write one profile would meet in its unfinished file. */
static int write_file(struct profile *p, const char *path)
{
    char name[4096], unfinished[4200];
    if (!path) {
        snprintf(name, sizeof name, "%s/arena-%d.prof", p->dir, (int)getpid());
        path = name;
    }
    snprintf(unfinished, sizeof unfinished, "%s.%d", path, (int)getpid());
    unlink(unfinished);
    int fd = open(unfinished, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return -errno;
    FILE *f = fdopen(fd, "w");
    if (!f) {
        close(fd);
        return -ENOMEM;
    }
    put_all(f, p);
    int failed = ferror(f);
    failed |= fclose(f) != 0;
    if (failed || rename(unfinished, path) < 0) {
        int rc = failed ? -EIO : -errno;
        unlink(unfinished);
        return rc;
    }
    return 0;
}

int profile_write(struct profile *p, const char *path)
{
    cancel_off();
    pthread_mutex_lock(&p->file_lock);
    int rc = write_file(p, path);
    pthread_mutex_unlock(&p->file_lock);
    cancel_on();
    return rc;
}
