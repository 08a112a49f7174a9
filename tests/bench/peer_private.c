/* malloc and free of the library that was linked in front of the C library. PEER_LIBRARY is part of
 * its file's name, and what malloc() resolves to must lie in it: otherwise another allocator was
 * measured under its name. */
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdio.h>
#include <string.h>

#include "tests/bench/peer.h"

const bool peer_is_shared = false, peer_only_passes = false, peer_is_arena = false;

int peer_setup(unsigned heaps, const char *max)
{
    Dl_info info;
    void *(*volatile function)(size_t) = malloc;
    (void)heaps, (void)max;
    if (!dladdr((void *)(uintptr_t)function, &info) || !strstr(info.dli_fname, PEER_LIBRARY)) {
        fprintf(stderr, "malloc is not of %s\n", PEER_LIBRARY);
        return ENOENT;
    }
    return 0;
}

peer_t peer_enter(unsigned heap)
{
    return (int)heap;
}

/* Each library's own way, looked up so that one source serves all. */
void peer_trim(peer_t h)
{
    union {
        void *symbol;
        void (*release)(void);
        void (*collect)(bool force);
        int (*mallctl)(const char *name, void *old, size_t *old_bytes, void *new, size_t new_bytes);
    } f;
    (void)h;
    if ((f.symbol = dlsym(RTLD_DEFAULT, "MallocExtension_ReleaseFreeMemory")) != NULL)
        f.release();
    else if ((f.symbol = dlsym(RTLD_DEFAULT, "mi_collect")) != NULL)
        f.collect(true);
    else if ((f.symbol = dlsym(RTLD_DEFAULT, "mallctl")) != NULL) {
        f.mallctl("thread.tcache.flush", NULL, NULL, NULL, 0);
        f.mallctl("arena.4096.purge", NULL, NULL, NULL, 0); /* MALLCTL_ARENAS_ALL */
    } else
        malloc_trim(0);
}

uint64_t peer_shared_bytes(peer_t h)
{
    return (void)h, 0;
}
uint64_t peer_round_trips(peer_t h)
{
    return (void)h, 0;
}
int peer_crowd(unsigned count)
{
    return (void)count, 0;
}
uint64_t peer_daemon_ns(void)
{
    return 0;
}
