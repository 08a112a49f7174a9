/* Goal: out of memory is an error. Method: heaps that are full because of their maximum, a small file system, a memory
 * cgroup or a quota; each is filled to the end, emptied, and filled again, in small objects and in one piece. */
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

/* Fills with objects of `size`, touching each byte's page; frees all. How many bytes it got. */
static uint64_t fill_and_free(arena_t *a, size_t size, int expect)
{
    struct node {
        struct node *next;
    } *list = NULL, *p;
    uint64_t bytes = 0;
    errno = 0;
    while ((p = arena_alloc(a, size)) != NULL) {
        for (size_t at = 0; at < size; at += 4096)
            ((char *)p)[at] = 1;
        p->next = list;
        list = p;
        bytes += size;
    }
    assert_int_equal(errno, expect);
    while ((p = list) != NULL) {
        list = p->next;
        arena_free(a, p);
    }
    return bytes;
}

/* `says` is in the reason that the last refusal gave. */
static void fill_all_ways(struct daemon *d, uint64_t least, size_t one_piece, int expect, const char *says)
{
    arena_t *a = open_heap(d);
    static const size_t sizes[] = {64, 1000, 8192, 30000, 300000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint64_t bytes = fill_and_free(a, sizes[i], expect);
        if (!strstr(arena_reason(), says))
            fail_msg("objects of %zu: should say '%s', says: %s", sizes[i], says, arena_reason());
        if (bytes < least)
            fail_msg("only %llu bytes in objects of %zu", (unsigned long long)bytes, sizes[i]);
        void *p = arena_alloc(a, one_piece);
        if (!p)
            fail_msg("after objects of %zu: no %zu bytes in one piece: %s (%s)", sizes[i], one_piece, strerror(errno), arena_reason());
        memset(p, 1, one_piece);
        arena_free(a, p);
    }
    assert_int_equal(check_of(d), 0);
    arena_close(a);
    stat_await(d, "spans", 0);
}

static void a_heap_of_64_mib_is_filled_to_the_end_again_and_again(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", NULL);
    fill_all_ways(&d, 56 << 20, (64 << 20) - 8192, ENOMEM, "the heap is full: ");
    daemon_clean(&d);
}

static int fills_and_waits(void *argument)
{
    struct daemon *d = argument;
    arena_t *a = open_heap(d);
    while (arena_alloc(a, 1000))
        ;
    raise(SIGSTOP);
    return 0;
}

static void what_a_dead_client_held_can_be_had_at_once(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", NULL);
    for (int i = 0; i < 20; i++) {
        pid_t pid = spawn(fills_and_waits, &d);
        arena_t *a = open_heap(&d);
        while (stat_of(&d, "bytes_used") < 50 << 20)
            ;
        kill(pid, SIGKILL);
        assert_int_equal(reap(pid), 128 + SIGKILL);
        stat_await(&d, "clients", 1);
        void *p = arena_alloc(a, 60 << 20); /* waits for the pass; no ENOMEM */
        assert_non_null(p);
        arena_close(a);
    }
    daemon_clean(&d);
}

static void a_small_tmpfs_behind_a_backing_directory_is_the_limit(void **state)
{
    struct daemon d;
    char mount_dir[128];
    (void)state;
    temp_dir(mount_dir, sizeof mount_dir, "tmpfs");
    if (unshare(CLONE_NEWNS) < 0 || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0 || /* gone with this process */
        mount("arena-test", mount_dir, "tmpfs", 0, "size=64m,mode=0700") < 0) {
        rmdir(mount_dir);
        print_message("skipped: a tmpfs cannot be mounted (%s): needs root\n", strerror(errno));
        skip();
    }
    daemon_start(&d, "1G", "--backing", mount_dir, "--memory-reserve", "1M", "--root-slots", "64", NULL);
    fill_all_ways(&d, 40 << 20, 40 << 20, ENOMEM, "the machine has no memory: ");
    daemon_clean(&d);
    umount(mount_dir);
    rmdir(mount_dir);
}

static void a_memory_cgroup_is_the_limit_and_nobody_is_killed(void **state)
{
    struct daemon d;
    struct memory_cgroup group;
    (void)state;
    if (!memory_cgroup_make(&group, "200M")) {
        print_message("skipped: no memory cgroup can be made: needs root, and a memory controller\n");
        skip();
    }
    daemon_start(&d, "1G", "--memory-reserve", "32M", NULL);
    memory_cgroup_enter(&group, d.pid);
    memory_cgroup_enter(&group, daemon_serving(&d));
    fill_all_ways(&d, 100 << 20, 100 << 20, ENOMEM, "the machine has no memory: ");
    assert_int_equal(stat_of(&d, "epoch"), 1); /* a keeper would hide that the daemon was killed */
    daemon_clean(&d);
    memory_cgroup_remove(&group);
}

static void a_machine_that_gives_nothing_is_no_full_heap(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", "--memory-reserve", "1000T", NULL);
    arena_t *a = open_heap(&d);
    static const size_t sizes[] = {64, 30000, 300000};
    for (size_t i = 0; i < 3; i++) {
        assert_null(arena_alloc(a, sizes[i]));
        assert_int_equal(errno, ENOMEM);
        assert_string_equal(arena_reason(), "the machine has no memory: 63 MiB of the heap are free, but the machine and its "
                                            "cgroups would give 0 MiB beyond memory-reserve");
    }
    arena_close(a);
    daemon_clean(&d);
}

static void a_quota_is_edquot(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "256M", "--limit-client-bytes", "32M", NULL);
    fill_all_ways(&d, 24 << 20, 28 << 20, EDQUOT, "limit-client-bytes");
    daemon_clean(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_heap_of_64_mib_is_filled_to_the_end_again_and_again),
        cmocka_unit_test(what_a_dead_client_held_can_be_had_at_once),
        cmocka_unit_test(a_small_tmpfs_behind_a_backing_directory_is_the_limit),
        cmocka_unit_test(a_memory_cgroup_is_the_limit_and_nobody_is_killed),
        cmocka_unit_test(a_machine_that_gives_nothing_is_no_full_heap),
        cmocka_unit_test(a_quota_is_edquot),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
