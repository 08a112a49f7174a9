/* Goal: a page that was taken away reads as zeros and can be written, and the file is whole again afterwards. Method: a
 * mapped file is cut off under the test; a region is cut off, punched and mended. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "daemon/os/sigbus.h"
#include "daemon/os/region.h"

static void a_page_that_is_cut_off_reads_as_zeros(void **state)
{
    char path[] = "/tmp/arena-sigbus-XXXXXX";
    (void)state;
    int fd = mkstemp(path);
    unlink(path);
    assert_int_equal(ftruncate(fd, 16 * 4096), 0);
    volatile uint8_t *p = mmap(NULL, 16 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    memset((void *)(uintptr_t)p, 7, 16 * 4096);
    assert_int_equal(sigbus_add((void *)(uintptr_t)p, 16 * 4096, 4096), 0);
    uint64_t before = sigbus_hits();
    assert_int_equal(ftruncate(fd, 4096), 0);
    assert_int_equal(p[100], 7);
    assert_int_equal(p[5 * 4096 + 9], 0);
    p[6 * 4096] = 3;
    assert_int_equal(p[6 * 4096], 3);
    assert_int_equal(sigbus_hits() - before, 2);
    sigbus_remove((void *)(uintptr_t)p);
    munmap((void *)(uintptr_t)p, 16 * 4096);
    close(fd);
}

static void elsewhere_a_bus_error_is_what_it_was(void **state)
{
    int status;
    (void)state;
    pid_t pid = fork();
    if (pid == 0) {
        char path[] = "/tmp/arena-sigbus-XXXXXX";
        int fd = mkstemp(path);
        unlink(path);
        signal(SIGBUS, SIG_DFL); /* a sanitizer's would report and exit */
        volatile uint8_t *p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
        static uint8_t other[8];
        if (sigbus_add(other, sizeof other, 4096) < 0)
            _exit(1);
        _exit(p[0] + 2); /* the file is empty */
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
}

static void regions_that_were_cut_and_punched_are_whole_again(void **state)
{
    char dir[] = "/tmp/arena-sigbus-XXXXXX", why[512] = "", command[64];
    struct geometry g;
    struct regions r;
    struct heap h;
    struct stat st;
    const uint8_t id[16] = {1};
    (void)state;
    assert_non_null(mkdtemp(dir));
    assert_int_equal(geometry_init(&g, 1 << 20, 64), 0);
    assert_int_equal(regions_create(&r, &g, dir, why), 0);
    heap_view(&h, &g, NULL, r.mapped[REGION_MAP], r.mapped[REGION_STATE]);
    heap_format(&h, &g, id, 0);
    assert_int_equal(regions_mend(&r, &h), 0);
    assert_int_equal(region_back(&r, REGION_STATE, 0, g.state_bytes), 0);
    memset(h.words, 5, g.unit_count * UNIT_BYTES);
    assert_int_equal(ftruncate(r.fd[REGION_STATE], 4096), 0);
    assert_int_equal(ftruncate(r.fd[REGION_HEAP], 0), 0);
    volatile uint16_t *words = h.words;
    assert_int_equal(words[70000], 0);
    words[70000] = 9; /* lost when the file takes its place */
    assert_int_equal(regions_mend(&r, &h), 1);
    for (int i = 0; i < REGION_COUNT; i++) {
        assert_int_equal(fstat(r.fd[i], &st), 0);
        assert_int_equal(st.st_size, r.bytes[i]);
    }
    assert_int_equal(words[70000], 0);
    words[70000] = 4;
    assert_int_equal(pread(r.fd[REGION_STATE], why, 2, (off_t)(g.words_at + 140000)), 2);
    assert_int_equal(why[0], 4); /* the mapping is the file's again */
    assert_int_equal(regions_mend(&r, &h), 0);
    regions_remove(&r);
    regions_close(&r);
    snprintf(command, sizeof command, "rmdir %s", dir);
    assert_int_equal(system(command), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_page_that_is_cut_off_reads_as_zeros),
        cmocka_unit_test(elsewhere_a_bus_error_is_what_it_was),
        cmocka_unit_test(regions_that_were_cut_and_punched_are_whole_again),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
