/* Goal: what other users can put in the way of the daemon and of arenactl - files, links, second names, a cleaner - costs
 * nobody's files and nobody's heap. Method: each is put there first; or taken away while the daemon serves. Files are told
 * apart by device and inode. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/e2e/harness.h"

enum { NOBODY = 65534 };

static struct daemon d;
static char dir[96], out[16384];

static int setup(void **state)
{
    (void)state;
    temp_dir(dir, sizeof dir, "files");
    memset(&d, 0, sizeof d);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    if (d.dir[0])
        daemon_clean(&d);
    return temp_dir_remove(dir);
}

static struct stat look(const char *path)
{
    struct stat st;
    if (lstat(path, &st) < 0)
        memset(&st, 0, sizeof st);
    return st;
}

static bool is_same(const struct stat *a, const struct stat *b)
{
    return a->st_ino && a->st_ino == b->st_ino && a->st_dev == b->st_dev;
}

/* Waits until the socket is another file than `old`. */
static struct stat await_socket(const struct stat *old)
{
    for (;;) {
        struct stat now = look(d.socket);
        if (now.st_ino && !is_same(&now, old))
            return now;
        assert_int_equal(kill(d.pid, 0), 0);
        pause_us(5000);
    }
}

/* ---- the socket ------------------------------------------------------------------------------------------------------------- */

static void a_socket_that_a_cleaner_took_is_made_again_and_serves(void **state)
{
    char lock[120];
    struct stat socket_was, lock_was, none = {.st_ino = 0};
    (void)state;
    daemon_start(&d, "16M", "--socket-mode", "0640", NULL);
    snprintf(lock, sizeof lock, "%s.lock", d.socket);
    arena_t *a = open_heap(&d);
    void *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    assert_int_equal(arena_root_set(a, "kept", arena_ref(a, p)), 0);
    for (int round = 0; round < 3; round++) { /* the third: after the daemon was killed, its keeper's next one */
        int keep_lock = round == 1;
        socket_was = look(d.socket);
        lock_was = look(lock);
        if (round == 2)
            kill(daemon_serving(&d), SIGKILL);
        unlink(d.socket);
        if (!keep_lock)
            unlink(lock);
        struct stat socket_now = await_socket(round < 2 ? &socket_was : &none);
        assert_int_equal(socket_now.st_mode & 0777, 0640);
        assert_int_equal(figure_of(&d, "stat", "roots"), 1);
        struct stat lock_now = look(lock);
        assert_true(lock_now.st_ino != 0);
        if (round < 2) /* of one whose holder is dead the inode may be had again */
            assert_true(is_same(&lock_now, &lock_was) == keep_lock);
        assert_int_equal(run(out, sizeof out, "timeout 20 %s/arenad --foreground --socket %s --max 16M", programs_dir(), d.socket), 1);
        assert_non_null(strstr(out, "another daemon serves"));
    }
    arena_close(a);
    assert_int_equal(daemon_stop(&d), 0);
    assert_int_equal(look(d.socket).st_ino, 0);
}

/* One that was made anew by one daemon is not what the next one, from the keeper, listens on. */
static void a_daemon_that_follows_makes_the_socket_its_own(void **state)
{
    struct stat was;
    (void)state;
    daemon_start(&d, "16M", NULL);
    was = look(d.socket);
    unlink(d.socket);
    await_socket(&was);
    arena_t *a = open_heap(&d);
    kill(daemon_serving(&d), SIGKILL);
    while (arenactl(&d, out, sizeof out, "stat") != 0)
        pause_us(5000);
    assert_int_equal(stat_of(&d, "epoch"), 2);
    arena_close(a);
    assert_int_equal(check_of(&d), 0);
    assert_int_equal(daemon_stop(&d), 0);
    assert_int_equal(look(d.socket).st_ino, 0);
}

static void what_stands_in_the_sockets_place_is_left_alone(void **state)
{
    struct stat was;
    (void)state;
    daemon_start(&d, "16M", NULL);
    unlink(d.socket);
    int other = bind_socket(d.socket, SOCK_SEQPACKET); /* another daemon's: it answers */
    was = look(d.socket);
    while (run(out, sizeof out, "grep -c 'event=socket .*another daemon serves' %s", d.log) != 0)
        pause_us(5000);
    assert_int_equal(daemon_stop(&d), 0);
    struct stat now = look(d.socket);
    assert_true(is_same(&now, &was));
    close(other);
    unlink(d.socket);
}

/* Root's daemon, and a directory of somebody who exchanges the socket for a link while it gets its group. */
static int exchanges(void *argument)
{
    char link_path[140];
    if (setgid(NOBODY) < 0 || setuid(NOBODY) < 0)
        return 9;
    snprintf(link_path, sizeof link_path, "%s.l", d.socket);
    if (symlink(argument, link_path) < 0)
        return 8;
    for (;;)
        if (renameat2(AT_FDCWD, d.socket, AT_FDCWD, link_path, RENAME_EXCHANGE) == 0)
            return 0;
}

static void the_group_is_given_to_no_file_that_a_link_names(void **state)
{
    char victim[128], theirs[128];
    (void)state;
    if (geteuid() != 0) {
        print_message("skipped: needs root\n");
        skip();
    }
    snprintf(victim, sizeof victim, "%s/victim", dir);
    close(open(victim, O_CREAT | O_WRONLY, 0600));
    chmod(dir, 0755);
    for (int i = 0; i < 12; i++) {
        snprintf(theirs, sizeof theirs, "%s/theirs%d", dir, i);
        mkdir(theirs, 0777);
        assert_int_equal(chown(theirs, NOBODY, NOBODY), 0);
        assert_true(snprintf(d.socket, sizeof d.socket, "%s/s", theirs) < (int)sizeof d.socket);
        pid_t pid = spawn(exchanges, victim);
        int alive[2];
        assert_int_equal(pipe(alive), 0);
        run(out, sizeof out, "{ timeout 20 %s/arenad --foreground --keeper=no --socket %s --socket-mode 0660 --socket-group nogroup --max 1M "
            "--ready-fd %d %d>&%d & p=$!; exec %d>&-; timeout 10 head -c 1 <&%d >/dev/null; kill $p; wait; }", programs_dir(), d.socket,
            alive[1], alive[1], alive[1], alive[1], alive[0]);
        kill(pid, SIGKILL);
        reap(pid);
        close(alive[0]);
        close(alive[1]);
        assert_int_equal(look(victim).st_gid, 0);
        assert_int_equal(look(victim).st_mode & 0777, 0600);
    }
}

/* ---- the backing directory ---------------------------------------------------------------------------------------------------- */

/* Starts a daemon over `backing`: 1 after one line that has `says`; nothing there is changed. */
static void refused(const char *backing, const char *says)
{
    int status = run(out, sizeof out, "timeout 20 %s/arenad --foreground --socket %s/s --max 1M --backing %s", programs_dir(), dir,
                     backing);
    char *end = strchr(out, '\n');
    if (status != 1 || !strstr(out, says) || !end || end[1])
        fail_msg("%s: status %d, not one line with '%s': %s", backing, status, says, out);
}

/* A heap in `backing`, left by a daemon that has served it. */
static void make_heap(const char *backing)
{
    mkdir(backing, 0700);
    daemon_start(&d, "1M", "--backing", backing, NULL);
    daemon_clean(&d);
    d.dir[0] = 0;
}

static void a_directory_that_others_write_to_is_refused(void **state)
{
    static const int modes[] = {01777, 0777, 0770, 0702};
    char backing[128], link_path[128];
    (void)state;
    snprintf(backing, sizeof backing, "%s/b", dir);
    make_heap(backing);
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        assert_int_equal(chmod(backing, (mode_t)modes[i]), 0);
        refused(backing, "may be written by others");
    }
    chmod(backing, 0700);
    snprintf(link_path, sizeof link_path, "%s/l", dir);
    assert_int_equal(symlink(backing, link_path), 0);
    refused(link_path, "is a link");
    strcat(link_path, "/");
    refused(link_path, "is a link");
    if (geteuid() == 0) {
        assert_int_equal(chown(backing, NOBODY, NOBODY), 0);
        refused(backing, "is another user's");
    }
    assert_int_equal(chown(backing, geteuid(), getegid()), 0);
    daemon_start(&d, "1M", "--backing", backing, NULL); /* put right, it is served */
}

static void a_file_that_others_could_have_made_is_refused(void **state)
{
    static const char *const names[] = {"heap", "map", "state"};
    char backing[128], path[160], aside[160];
    (void)state;
    snprintf(backing, sizeof backing, "%s/b", dir);
    make_heap(backing);
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s/%s", backing, names[i]);
        snprintf(aside, sizeof aside, "%s/aside", dir);
        assert_int_equal(chmod(path, 0620), 0);
        refused(backing, "may be written by others");
        assert_int_equal(chmod(path, 0602), 0);
        refused(backing, "may be written by others");
        assert_int_equal(chmod(path, 0600), 0);
        assert_int_equal(link(path, aside), 0);
        refused(backing, "has another name");
        unlink(path);
        assert_int_equal(symlink(aside, path), 0);
        refused(backing, "is no regular file");
        unlink(path);
        assert_int_equal(mkfifo(path, 0600), 0);
        refused(backing, "is no regular file");
        unlink(path);
        assert_int_equal(mkdir(path, 0700), 0);
        refused(backing, "is no regular file");
        rmdir(path);
        assert_int_equal(rename(aside, path), 0);
        if (geteuid() == 0) {
            assert_int_equal(chown(path, NOBODY, NOBODY), 0);
            refused(backing, "is another user's");
            assert_int_equal(chown(path, 0, 0), 0);
        }
    }
    daemon_start(&d, "1M", "--backing", backing, NULL);
}

static void a_full_directory_says_how_much_it_lacks(void **state)
{
    char backing[128];
    (void)state;
    snprintf(backing, sizeof backing, "%s/b", dir);
    mkdir(backing, 0700);
    if (mount("arena-test", backing, "tmpfs", 0, "size=64k,mode=0700") < 0) {
        print_message("skipped: a tmpfs cannot be mounted (%s): needs root\n", strerror(errno));
        skip();
    }
    refused(backing, "no room in ");
    assert_non_null(strstr(out, backing));
    assert_non_null(strstr(out, "64 are free"));
    char heap_path[140];
    snprintf(heap_path, sizeof heap_path, "%s/heap", backing);
    struct stat heap = look(heap_path);
    umount(backing);
    assert_int_equal(heap.st_ino, 0);
}

/* ---- arenactl's output ----------------------------------------------------------------------------------------------------------- */

static void a_file_is_replaced_as_a_whole_and_no_link_is_followed(void **state)
{
    char path[128], victim[128];
    (void)state;
    daemon_start(&d, "1M", NULL);
    snprintf(path, sizeof path, "%s/out", dir);
    snprintf(victim, sizeof victim, "%s/victim", dir);
    static const char *const commands[] = {"metrics --output", "map --svg"};
    for (int i = 0; i < 2; i++) {
        FILE *f = fopen(victim, "w");
        fputs("victim", f);
        fclose(f);
        assert_int_equal(symlink(victim, path), 0);
        assert_int_equal(arenactl(&d, out, sizeof out, "%s %s", commands[i], path), 0);
        assert_true(S_ISREG(look(path).st_mode));
        assert_int_equal(look(victim).st_size, 6);
        assert_int_equal(chmod(path, 0640), 0);
        assert_int_equal(link(path, victim) < 0 ? errno : 0, EEXIST);
        unlink(victim);
        assert_int_equal(link(path, victim), 0); /* whoever has the old file open or named keeps it */
        struct stat was = look(path);
        assert_int_equal(arenactl(&d, out, sizeof out, "%s %s", commands[i], path), 0);
        struct stat now = look(path), old = look(victim);
        assert_false(is_same(&was, &now));
        assert_true(is_same(&was, &old));
        assert_int_equal(now.st_mode & 0777, 0640);
        unlink(path);
        assert_int_equal(run(out, sizeof out, "ls -A %s | grep -v victim", dir), 1); /* nothing else is left */
    }
}

static void devices_pipes_and_descriptors_are_written_to(void **state)
{
    char fifo[128];
    (void)state;
    daemon_start(&d, "1M", NULL);
    snprintf(fifo, sizeof fifo, "%s/fifo", dir);
    assert_int_equal(mkfifo(fifo, 0600), 0);
    assert_int_equal(run(out, sizeof out, "cat %s & %s/arenactl --socket %s metrics --output %s; wait", fifo, programs_dir(), d.socket,
                         fifo), 0);
    assert_non_null(strstr(out, "# EOF"));
    assert_true(S_ISFIFO(look(fifo).st_mode));
    assert_int_equal(arenactl(&d, out, sizeof out, "metrics --output /dev/null"), 0);
    assert_true(S_ISCHR(look("/dev/null").st_mode));
    assert_int_equal(arenactl(&d, out, sizeof out, "metrics --output /dev/stdout | cat"), 0);
    assert_non_null(strstr(out, "# EOF"));
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s metrics --output /dev/stdout >%s/to; cat %s/to", programs_dir(),
                         d.socket, dir, dir), 0);
    assert_non_null(strstr(out, "# EOF"));
    assert_true(S_ISLNK(look("/dev/stdout").st_mode));
    char fds[128], third[128]; /* as some machines make /dev/stdout: in steps, the last of them not below /proc */
    snprintf(fds, sizeof fds, "%s/fd", dir);
    snprintf(third, sizeof third, "%s/third", dir);
    assert_int_equal(symlink("/proc/self/fd", fds), 0);
    assert_int_equal(symlink("fd/3", third), 0);
    assert_int_equal(run(out, sizeof out, "%s/arenactl --socket %s metrics --output %s 3>%s/to; cat %s/to", programs_dir(),
                         d.socket, third, dir, dir), 0);
    assert_non_null(strstr(out, "# EOF"));
    assert_true(S_ISLNK(look(third).st_mode));
    assert_int_equal(arenactl(&d, out, sizeof out, "map --svg /dev/full"), 4);
    assert_non_null(strstr(out, "cannot write /dev/full: No space left"));
    assert_int_equal(arenactl(&d, out, sizeof out, "metrics --output %s", dir), 4);
    assert_non_null(strstr(out, "Is a directory"));
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(a_socket_that_a_cleaner_took_is_made_again_and_serves),
        TEST(a_daemon_that_follows_makes_the_socket_its_own),
        TEST(what_stands_in_the_sockets_place_is_left_alone),
        TEST(the_group_is_given_to_no_file_that_a_link_names),
        TEST(a_directory_that_others_write_to_is_refused),
        TEST(a_file_that_others_could_have_made_is_refused),
        TEST(a_full_directory_says_how_much_it_lacks),
        TEST(a_file_is_replaced_as_a_whole_and_no_link_is_followed),
        TEST(devices_pipes_and_descriptors_are_written_to),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
