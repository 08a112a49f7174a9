#include "client/debug/site.h"

#include <dlfcn.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unwind.h>

enum { BUCKETS = 4096 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct site *buckets[BUCKETS]; /* sync: lock */
static uint32_t site_count;           /* sync: lock */

/* ---- where the library itself is ------------------------------------------------------------ */

struct range {
    uintptr_t from, to;
};
static struct range own; /* of the library's code; empty where it is linked into the program */
static pthread_once_t own_once = PTHREAD_ONCE_INIT;

static int find_own(struct dl_phdr_info *info, size_t size, void *argument)
{
    (void)size;
    uintptr_t here = *(const uintptr_t *)argument;
    if (!info->dlpi_name || !*info->dlpi_name) /* the program */
        return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *p = &info->dlpi_phdr[i];
        uintptr_t from = info->dlpi_addr + p->p_vaddr;
        if (p->p_type == PT_LOAD && here >= from && here < from + p->p_memsz) {
            own = (struct range){from, from + p->p_memsz};
            return 1;
        }
    }
    return 0;
}

static void own_init(void)
{
    uintptr_t here = (uintptr_t)&trace_take;
    dl_iterate_phdr(find_own, &here);
}

/* ---- walks ---------------------------------------------------------------------------------- */

static _Unwind_Reason_Code on_frame(struct _Unwind_Context *context, void *argument)
{
    struct trace *t = argument;
    int before = 0;
    uintptr_t pc = _Unwind_GetIPInfo(context, &before);
    if (!before && pc)
        pc--;
    if (t->count == 0 && pc >= own.from && pc < own.to)
        return _URC_NO_REASON;
    if (!pc || t->count == SITE_DEPTH)
        return _URC_END_OF_STACK;
    t->pc[t->count] = pc;
    t->cfa[t->count++] = _Unwind_GetCFA(context);
    return _URC_NO_REASON;
}

void trace_take(struct trace *ret)
{
    pthread_once(&own_once, own_init);
    ret->count = 0;
    ret->cfa[0] = 0;
    _Unwind_Backtrace(on_frame, ret);
}

/* ---- sites ---------------------------------------------------------------------------------- */

static uint64_t hash_of(const struct trace *t)
{
    uint64_t hash = t->count;
    for (unsigned i = 0; i < t->count; i++)
        hash = (hash ^ t->pc[i]) * 0x9e3779b97f4a7c15ULL, hash ^= hash >> 29;
    return hash;
}

static struct site *add(const struct trace *t, uint64_t hash)
{
    struct site *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->id = ++site_count;
    s->count = t->count;
    s->hash = hash;
    memcpy(s->pc, t->pc, t->count * sizeof *s->pc);
    s->next = buckets[hash % BUCKETS];
    buckets[hash % BUCKETS] = s;
    return s;
}

struct site *site_of(const struct trace *t)
{
    uint64_t hash = hash_of(t);
    pthread_mutex_lock(&lock);
    struct site *s = buckets[hash % BUCKETS];
    while (s && (s->hash != hash || s->count != t->count ||
                 memcmp(s->pc, t->pc, t->count * sizeof *s->pc) != 0))
        s = s->next;
    if (!s)
        s = add(t, hash);
    pthread_mutex_unlock(&lock);
    return s;
}

void sites_after_fork(void)
{
    pthread_mutex_init(&lock, NULL);
}

const char *site_module(uintptr_t pc, uintptr_t *ret_offset, const char **ret_name)
{
    Dl_info info;
    struct link_map *map = NULL;
    if (!dladdr1((void *)pc, &info, (void **)&map, RTLD_DL_LINKMAP) || !map)
        return NULL;
    *ret_offset = pc - map->l_addr; /* as the file's own tables have it */
    *ret_name = info.dli_sname;
    return map->l_name && *map->l_name ? map->l_name : "/proc/self/exe";
}

void site_print_pc(uintptr_t pc, char *text, size_t capacity)
{
    Dl_info info;
    uintptr_t offset;
    const char *name, *module = site_module(pc, &offset, &name);
    if (!module)
        snprintf(text, capacity, "%#lx", (unsigned long)pc);
    else if (name && dladdr((void *)pc, &info))
        snprintf(text, capacity, "%s+%#lx (%s+%#lx)", name,
                 (unsigned long)(pc - (uintptr_t)info.dli_saddr), info.dli_fname,
                 (unsigned long)offset);
    else
        snprintf(text, capacity, "%s+%#lx", dladdr((void *)pc, &info) ? info.dli_fname : module,
                 (unsigned long)offset);
}
