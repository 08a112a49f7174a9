/* arenactl inspect: a heap that nobody serves.
 *
 * Goal: whatever holds the regions - a directory, a keeper, a core file - shows the same heap, and nothing of it is changed; each
 * heap that a daemon refuses is told broken with the daemon's own words; what is no heap is refused in one line. Method: a heap
 * with a root, owned and published objects, left in each of the places; one damage of its map at a time.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include "shm/layout.h"
#include "tests/e2e/harness.h"

enum { OBJECT = 100, LARGE = 40000 };

static char out[65536], dir[80], backing[128];
static struct daemon d;

static int inspect(const char *format, ...) __attribute__((format(printf, 1, 2)));
static int inspect(const char *format, ...)
{
    char line[512];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    return run(out, sizeof out, "%s/arenactl inspect %s", programs_dir(), line);
}

static void has(const char *what)
{
    if (!strstr(out, what))
        fail_msg("no '%s' in: %s", what, out);
}

static void is_one_line_with(const char *what)
{
    has(what);
    if (strchr(out, '\n') != out + strlen(out) - 1)
        fail_msg("not one line: %s", out);
}

struct made {
    char socket[128], debug[16];
    uint64_t published, owned; /* references */
    void *address;             /* of the published one */
    _Atomic uint64_t ready;
};

static struct made *made; /* by a client, in memory that it shares with the test */
static pid_t client;

static int fill(void)
{
    arena_t *a;
    if (arena_open(&a, made->socket, NULL) < 0)
        return 1;
    char *p = arena_alloc(a, OBJECT), *q = arena_alloc(a, LARGE);
    if (!p || !q || arena_publish(a, p) < 0 || arena_root_set(a, "x", arena_ref(a, p)) < 0)
        return 1;
    made->published = arena_ref(a, p);
    made->owned = arena_ref(a, q);
    made->address = p;
    made->ready = 1;
    return 0;
}

static int fills_and_holds(void *argument)
{
    (void)argument;
    for (int rc = fill(); rc == 0;)
        pause();
    return 1;
}

/* A client of d that has filled its heap and lives: it would wait for the daemon if it ended by itself. */
static void client_start(void)
{
    made->ready = 0;
    snprintf(made->socket, sizeof made->socket, "%s", d.socket);
    client = spawn(fills_and_holds, NULL);
    await_counter(&made->ready, 1, client);
}

static void client_kill(void)
{
    kill(client, SIGKILL);
    assert_int_equal(reap(client), 128 + SIGKILL);
}

static void shows_the_heap(const char *place)
{
    if (inspect("%s", place) != 0)
        fail_msg("%s", out);
    has("ok: every invariant holds");
    assert_int_equal(inspect("--json %s check", place), 0);
    has("\"ok\":\ttrue");
    assert_int_equal(inspect("--json %s roots", place), 0);
    has("\"name\":\"x\"");
    assert_int_equal(inspect("%s spans", place), 0);
    has("40K        1        1        0"); /* one object, owned */
    assert_int_equal(inspect("--json %s clients", place), 0);
    has("\"holder\":\"client\"");
    assert_int_equal(inspect("%s word %p", place, made->address), 0);
    has("word     0x0001: shared");
    assert_int_equal(inspect("--json %s word %llu", place, (unsigned long long)made->owned + 77), 0);
    has("\"state\":\t\"owned\"");
    has("\"offset\":\t77");
    has("\"holder\":\t\"client\"");
    assert_int_equal(inspect("%s word 5", place), 1);
    is_one_line_with("is in no object: page 0");
    assert_int_equal(inspect("%s word 0x7fffffff0000", place), 2);
    is_one_line_with("is not in the heap");
}

/* Bytes and blocks of a file; the sum of both. */
static uint64_t fingerprint(const char *name)
{
    char path[160];
    static uint8_t buf[1 << 16];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", backing, name);
    int fd = open(path, O_RDONLY);
    assert_true(fd >= 0 && fstat(fd, &st) == 0);
    uint64_t sum = (uint64_t)st.st_blocks * 0x9e3779b97f4a7c15ULL;
    for (ssize_t n; (n = read(fd, buf, sizeof buf)) > 0;)
        for (ssize_t i = 0; i < n; i++)
            sum = (sum ^ buf[i]) * 0x100000001b3ULL;
    close(fd);
    return sum;
}

/* ---- a directory ------------------------------------------------------------------------------------------------------------ */

static int make_heap(void **state)
{
    (void)state;
    temp_dir(dir, sizeof dir, "inspect");
    snprintf(backing, sizeof backing, "%s/b", dir);
    return mkdir(backing, 0700);
}

static int remove_heap(void **state)
{
    (void)state;
    return temp_dir_remove(dir);
}

static void a_directory_is_shown_and_not_changed(void **state)
{
    uint64_t map, words;
    (void)state;
    daemon_start(&d, "8M", "--backing", backing, "--keeper=no", NULL);
    client_start();
    shows_the_heap(backing); /* while it is served and nobody changes it */
    daemon_kill(&d);
    map = fingerprint("map");
    words = fingerprint("state");
    shows_the_heap(backing);
    assert_true(map == fingerprint("map") && words == fingerprint("state"));
    daemon_clean(&d);
    client_kill();
}

/* ---- a heap that a daemon refuses ---------------------------------------------------------------------------------------------- */

struct damage {
    const char *fault; /* what both say */
    void (*apply)(struct heap *h);
};

static void tag_state_wrong(struct heap *h) { h->tags[1].state = 99; }
static void root_beyond(struct heap *h) { h->roots[0].ref = h->heap_bytes; }
static void root_lost(struct heap *h) { memset(h->root_buckets, 0, h->root_slots * sizeof h->root_buckets[0]); }
static void top_wrong(struct heap *h) { h->header->top = h->page_count + 1; }
static void tags_wrong(struct heap *h) { h->header->tag_top = TAG_COUNT + 1; }
static void magic_wrong(struct heap *h) { h->header->magic++; }
static void version_wrong(struct heap *h) { h->header->version++; }
static void classes_wrong(struct heap *h) { h->header->class_digest++; }
static void size_wrong(struct heap *h) { h->header->heap_max *= 2; }
static struct span *first_span(struct heap *h)
{
    uint64_t page = 1;
    while (!h->spans[page].span_class && page < h->page_count - 1)
        page++;
    return &h->spans[page];
}
static void pages_wrong(struct heap *h) { first_span(h)->page_count = (uint32_t)h->page_count; }
static void units_wrong(struct heap *h) { first_span(h)->unit = UINT32_MAX; }
static void lessee_wrong(struct heap *h) { first_span(h)->lessee = 0xffff; }
static void entry_wrong(struct heap *h) { h->pages[first_span(h) - h->spans]++; }
static const struct damage damages[] = {
    {"a tag in a state that there is not", tag_state_wrong},
    {"refers beyond the heap", root_beyond},
    {"not in the chain of its name", root_lost},
    {"more pages were used than there are", top_wrong},
    {"more tags were used than there are", tags_wrong},
    {"more pages than the heap has", pages_wrong},
    {"state words out of range", units_wrong},
    {"lessee out of range", lessee_wrong},
    {"a page entry disagrees with the span's record", entry_wrong},
};
static const struct damage no_heaps[] = {
    {"not the map of a heap (wrong magic)", magic_wrong},
    {"a heap of another layout version", version_wrong},
    {"a heap with another size class table", classes_wrong},
    {"regions that are shorter than their header says", size_wrong},
};
enum { DAMAGES = sizeof damages / sizeof damages[0], NO_HEAPS = sizeof no_heaps / sizeof no_heaps[0] };

/* A map by its descriptor, with the view of it; the state region is not touched. */
static void damage(int fd, const struct damage *damage)
{
    struct map_header header;
    struct geometry g;
    struct heap h;
    assert_int_equal(pread(fd, &header, sizeof header, 0), sizeof header);
    assert_int_equal(geometry_init(&g, header.heap_max, header.root_slots), 0);
    void *map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(map != MAP_FAILED);
    heap_view(&h, &g, NULL, map, NULL);
    damage->apply(&h);
    munmap(map, g.map_bytes);
    close(fd);
}

static int open_map(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/map", backing);
    return open(path, O_RDWR | O_CLOEXEC);
}

static void is_refused_with(const char *fault)
{
    int status = run(out, sizeof out, "timeout 60 %s/arenad --foreground --keeper=no --socket %s/s --max 8M --backing %s",
                     programs_dir(), dir, backing);
    if (status != 1)
        fail_msg("status %d, should be refused with '%s': %s", status, fault, out);
    has(fault);
}

/* A heap with a root and a span, which no daemon serves. */
static void leave_a_heap(void)
{
    run(out, sizeof out, "rm -f %s/*", backing);
    daemon_start(&d, "8M", "--backing", backing, "--keeper=no", NULL);
    client_start();
    daemon_kill(&d);
    daemon_clean(&d);
    client_kill();
}

static void what_a_daemon_refuses_is_told_with_the_same_words(void **state)
{
    (void)state;
    for (int i = 0; i < DAMAGES; i++) {
        leave_a_heap();
        damage(open_map(), &damages[i]);
        int status = inspect("%s", backing); /* before a daemon repairs what it can */
        if (status != 1)
            fail_msg("status %d, should tell '%s': %s", status, damages[i].fault, out);
        has(damages[i].fault);
        is_refused_with(damages[i].fault);
        assert_int_equal(inspect("--json %s check", backing), 1);
        has("\"ok\":\tfalse");
        has(damages[i].fault);
        assert_int_equal(inspect("%s spans", backing), 0);
        assert_int_equal(inspect("%s roots", backing), 0);
        assert_int_equal(inspect("%s clients", backing), 0);
        inspect("%s word 0x2000", backing);
    }
}

static void what_is_no_heap_is_refused_in_one_line(void **state)
{
    char path[160];
    (void)state;
    for (int i = 0; i < NO_HEAPS; i++) {
        leave_a_heap();
        damage(open_map(), &no_heaps[i]);
        is_refused_with(no_heaps[i].fault);
        assert_int_equal(inspect("%s", backing), 3);
        is_one_line_with(no_heaps[i].fault);
    }
    static const char *const names[] = {"heap", "map", "state"};
    for (int i = 0; i < 3; i++) {
        leave_a_heap();
        snprintf(path, sizeof path, "%s/%s", backing, names[i]);
        assert_int_equal(truncate(path, 100000), 0);
        assert_int_equal(inspect("%s", backing), 3);
        is_one_line_with("shorter than");
        assert_int_equal(unlink(path), 0);
        assert_int_equal(inspect("%s", backing), 3);
        is_one_line_with("No such file or directory");
        assert_int_equal(mkfifo(path, 0600), 0);
        assert_int_equal(inspect("%s", backing), 3);
        is_one_line_with("no regular file");
    }
    static const struct {
        const char *line, *says;
        int status;
    } wrong[] = {
        {"", "needs a directory, a process or --core", 2},
        {"/nowhere", "No such file or directory", 3},
        {"/dev/null", "no directory", 3},
        {"/dev/null spins", "neither check", 2},
        {"/dev/null word", "needs an address", 2},
        {"/dev/null word 1 2", "too much", 2},
        {"--core /nowhere", "No such file or directory", 3},
        {"--core /dev/null", "no regular file", 3},
        {"--core /bin/sh", "no core file", 3},
        {"--core /etc/passwd roots", "no core file", 3},
        {"4194305", "there is none", 3}, /* above every pid */
    };
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        int status = inspect("%s", wrong[i].line);
        if (status != wrong[i].status)
            fail_msg("%s: status %d: %s", wrong[i].line, status, out);
        is_one_line_with(wrong[i].says);
    }
    snprintf(path, sizeof path, "%d", (int)getpid());
    assert_int_equal(inspect("%s", path), 3);
    is_one_line_with("it has no heap");
}

static void what_a_death_cut_short_is_suspicious_and_no_fault(void **state)
{
    (void)state;
    leave_a_heap();
    int fd = open_map();
    struct redo redo = {.valid = 1, .tag = 0, .root_slot = 1, .root_ref = PAGE_SIZE, .root_name = "late"};
    assert_int_equal(pwrite(fd, &redo, sizeof redo, offsetof(struct map_header, redo)), sizeof redo);
    close(fd);
    assert_int_equal(inspect("%s", backing), 0);
    has("suspicious: header: the move of a root was cut short");
    assert_int_equal(inspect("%s roots", backing), 0);
    has("late");
}

/* ---- a keeper -------------------------------------------------------------------------------------------------------------------- */

/* The first descriptor of a process that is a memfd of this name, opened anew. */
static int open_memfd(pid_t pid, const char *name)
{
    char path[300], target[256];
    struct dirent *entry;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)pid);
    DIR *fds = opendir(path);
    assert_non_null(fds);
    int fd = -1;
    while (fd < 0 && (entry = readdir(fds)) != NULL) {
        snprintf(path, sizeof path, "/proc/%d/fd/%.20s", (int)pid, entry->d_name);
        ssize_t n = readlink(path, target, sizeof target - 1);
        target[n < 0 ? 0 : n] = 0;
        if (strstr(target, name))
            fd = open(path, O_RDWR | O_CLOEXEC);
    }
    closedir(fds);
    return fd;
}

static void a_keepers_descriptors_are_shown(void **state)
{
    char place[32];
    (void)state;
    daemon_start(&d, "8M", "--keeper=yes", NULL);
    client_start();
    uint64_t held = stat_of(&d, "heap_backed");
    snprintf(place, sizeof place, "%d", (int)d.pid);
    shows_the_heap(place);
    snprintf(place, sizeof place, "%d", (int)daemon_serving(&d));
    shows_the_heap(place);
    assert_int_equal(stat_of(&d, "heap_backed"), held);
    /* broken, and refused by the daemon that follows: the keeper has it still */
    pid_t serving = daemon_serving(&d);
    int fd = open_memfd(d.pid, "arena-map");
    assert_true(fd >= 0);
    kill(serving, SIGSTOP); /* what is damaged is not put right again */
    damage(fd, &(struct damage){"", pages_wrong});
    kill(serving, SIGKILL);
    snprintf(place, sizeof place, "%d", (int)d.pid);
    assert_int_equal(inspect("%s", place), 1);
    has("more pages than the heap has");
    daemon_kill(&d);
    daemon_clean(&d);
    client_kill();
}

/* ---- a core file -------------------------------------------------------------------------------------------------------------------- */

static int dies_with_a_core(void *argument)
{
    struct rlimit all = {RLIM_INFINITY, RLIM_INFINITY};
    (void)argument;
    if (chdir(dir) < 0 || setrlimit(RLIMIT_CORE, &all) < 0)
        return 77;
    if (made->debug[0])
        setenv("ARENA_DEBUG", made->debug, 1);
    if (fill() != 0)
        return 1;
    signal(SIGABRT, SIG_DFL);
    raise(SIGABRT);
    return 2;
}

/* Where the kernel has put it; "": nowhere that is known. */
static void find_core(char *ret_path, size_t capacity)
{
    struct dirent *entry;
    DIR *all = opendir(dir);
    ret_path[0] = 0;
    while (all && (entry = readdir(all)) != NULL)
        if (strncmp(entry->d_name, "core", 4) == 0)
            snprintf(ret_path, capacity, "--core %s/%.60s", dir, entry->d_name);
    if (all)
        closedir(all);
}

static void a_core_file_is_shown(void **state)
{
    char place[256], path[256];
    (void)state;
    if (LESS > 1)
        skip(); /* a sanitizer's shadow is not for dumps */
    daemon_start(&d, "4M", NULL);
    snprintf(made->socket, sizeof made->socket, "%s", d.socket);
    snprintf(made->debug, sizeof made->debug, "core");
    int status = reap(spawn(dies_with_a_core, NULL));
    find_core(place, sizeof place);
    if (status == 77 || !place[0]) {
        daemon_stop(&d);
        print_message("no core file here: see core(5)\n");
        skip();
    }
    assert_int_equal(status, 128 + SIGABRT);
    shows_the_heap(place);
    snprintf(path, sizeof path, "%s", place + strlen("--core "));
    assert_int_equal(truncate(path, 100000), 0);
    assert_int_equal(inspect("%s", place), 3);
    is_one_line_with("it is cut off");
    unlink(path);
    made->debug[0] = 0; /* the library keeps the heap out */
    assert_int_equal(reap(spawn(dies_with_a_core, NULL)), 128 + SIGABRT);
    find_core(place, sizeof place);
    assert_int_equal(inspect("%s", place), 3);
    is_one_line_with("ARENA_DEBUG=core");
    daemon_stop(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_directory_is_shown_and_not_changed, make_heap, remove_heap),
        cmocka_unit_test_setup_teardown(what_a_daemon_refuses_is_told_with_the_same_words, make_heap, remove_heap),
        cmocka_unit_test_setup_teardown(what_is_no_heap_is_refused_in_one_line, make_heap, remove_heap),
        cmocka_unit_test_setup_teardown(what_a_death_cut_short_is_suspicious_and_no_fault, make_heap, remove_heap),
        cmocka_unit_test(a_keepers_descriptors_are_shown),
        cmocka_unit_test_setup_teardown(a_core_file_is_shown, make_heap, remove_heap),
    };
    made = shared_memory(sizeof *made);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
