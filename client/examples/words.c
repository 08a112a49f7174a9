/* The demo: worker processes index the words of text files into the shared heap.
 *
 *   words WORKERS COUNTS-FILE < list of files, NUL-terminated
 *
 * Each worker takes a file, builds its word table - an ordinary pointer structure, uthash, on arena_alloc - in a
 * transaction, and commits it with a root named after the file's number. One worker is killed in the middle of a file:
 * its half-built table is reclaimed, the file is done by another. At the end the parent walks every table, which other
 * processes made and which are dead by then, and writes all counts to COUNTS-FILE. */
#include <arena.h>

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static arena_t *a;

#define uthash_malloc(size)    arena_alloc(a, size)
#define uthash_free(p, size)   arena_free(a, p)
#define uthash_fatal(message)  do { fprintf(stderr, "words: %s\n", message); exit(1); } while (0)
#include <uthash.h>

struct word {
    UT_hash_handle hh;
    unsigned long count;
    char text[];
};

struct table { /* what a file's root leads to */
    struct word *words;
    unsigned long total;
};

enum { FILE_TODO, FILE_TAKEN, FILE_DONE };

struct job {
    _Atomic int state;
    _Atomic int worker;
};

/* In memory shared by fork: only the division of labour. What the workers make is in the heap. */
struct board {
    _Atomic long done, bytes, words;
    struct job jobs[];
};

static struct board *board;
static char **files;
static int file_count;
static int victims_file;

static void die(const char *what, int error)
{
    fprintf(stderr, "words: %s: %s\n", what, strerror(error));
    exit(1);
}

static void count_word(struct table *table, const char *text, size_t length)
{
    struct word *w;
    HASH_FIND(hh, table->words, text, length, w);
    if (!w) {
        w = arena_alloc(a, sizeof *w + length + 1);
        if (!w)
            die("arena_alloc", errno);
        w->count = 0;
        memcpy(w->text, text, length);
        w->text[length] = 0;
        HASH_ADD_KEYPTR(hh, table->words, w->text, length, w);
    }
    w->count++;
    table->total++;
}

/* A word is [A-Za-z]+, in lower case. `until`: stop after so many bytes; the victim's file is never finished. */
static void index_text(struct table *table, const unsigned char *p, size_t size)
{
    char word[256];
    size_t length = 0;
    for (size_t i = 0; i <= size; i++) {
        unsigned char c = i < size ? p[i] : ' ';
        unsigned char lower = c | 0x20;
        if (lower >= 'a' && lower <= 'z' && c < 0x80) {
            if (length < sizeof word)
                word[length] = (char)lower;
            length++;
            continue;
        }
        if (length > 0 && length <= sizeof word)
            count_word(table, word, length);
        else if (length > sizeof word) { /* longer than the buffer: take it from the text */
            char *longer = malloc(length);
            for (size_t k = 0; k < length; k++)
                longer[k] = (char)(p[i - length + k] | 0x20);
            count_word(table, longer, length);
            free(longer);
        }
        length = 0;
    }
}

static unsigned char *read_file(const char *path, size_t *ret_size)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0)
        die(path, errno);
    *ret_size = (size_t)st.st_size;
    unsigned char *p = st.st_size ? mmap(NULL, *ret_size, PROT_READ, MAP_PRIVATE, fd, 0) : (unsigned char *)"";
    if (p == MAP_FAILED)
        die(path, errno);
    close(fd);
    return p;
}

static void index_file(int number, int victim_pipe)
{
    size_t size;
    char name[32];
    unsigned char *text = read_file(files[number], &size);
    int rc = arena_tx_begin(a);
    if (rc < 0)
        die("arena_tx_begin", -rc);
    struct table *table = arena_calloc(a, 1, sizeof *table);
    if (!table)
        die("arena_calloc", errno);
    if (victim_pipe >= 0) {
        index_text(table, text, size / 2);
        if (write(victim_pipe, "k", 1) == 1) /* in the middle of a file: the parent kills this process here */
            for (;;)
                pause();
    }
    index_text(table, text, size);
    snprintf(name, sizeof name, "file-%d", number);
    long words = (long)table->total;
    rc = arena_tx_commit(a, name, 0, arena_ref(a, table));
    if (rc < 0)
        die("arena_tx_commit", -rc);
    if (size)
        munmap(text, size);
    board->bytes += (long)size;
    board->words += words;
    board->done++;
    board->jobs[number].state = FILE_DONE;
}

/* Takes files until none is left; a file that a dead worker had taken is there again. The victim, the one with a pipe, has
 * one of them to itself, which it begins after three others. */
static void work(int worker, int victim_pipe)
{
    int taken = 0;
    for (int again = 1; again;) {
        again = 0;
        for (int i = 0; i < file_count && !(victim_pipe >= 0 && taken >= 3); i++) {
            int todo = FILE_TODO;
            if (!atomic_compare_exchange_strong(&board->jobs[i].state, &todo, FILE_TAKEN))
                continue;
            board->jobs[i].worker = worker;
            index_file(i, -1);
            taken++;
            again = 1;
        }
        if (victim_pipe >= 0)
            index_file(victims_file, victim_pipe);
    }
}

/* One that is long enough to die in the middle of. */
static int choose_victims_file(void)
{
    struct stat st;
    for (int i = 0; i < file_count; i++)
        if (stat(files[i], &st) == 0 && st.st_size > 1000)
            return i;
    return 0;
}

static void read_list(void)
{
    size_t capacity = 0;
    char *line = NULL;
    size_t line_capacity = 0;
    while (getdelim(&line, &line_capacity, 0, stdin) > 0) {
        if ((size_t)file_count == capacity)
            files = realloc(files, (capacity = capacity ? capacity * 2 : 1024) * sizeof *files);
        files[file_count++] = strdup(line);
    }
    free(line);
}

static pid_t start_worker(int worker, int victim_pipe)
{
    pid_t pid = fork();
    if (pid == 0) {
        work(worker, victim_pipe);
        int rc = arena_close(a);
        _exit(rc == 0 ? 0 : 1);
    }
    return pid;
}

static void progress(const char *end)
{
    fprintf(stderr, "\r%ld of %d files, %.1f MB, %ld words%s", (long)board->done, file_count, (double)board->bytes / 1e6,
            (long)board->words, end);
}

/* ---- the parent's walk -------------------------------------------------------------------------------------------------- */

struct sum {
    struct sum *next;
    const char *text;
    unsigned long count;
};
enum { BUCKETS = 1 << 18 };
static struct sum *buckets[BUCKETS];

static void add_up(const struct word *w)
{
    unsigned long hash = 5381;
    for (const char *p = w->text; *p; p++)
        hash = hash * 33 + (unsigned char)*p;
    struct sum *s = buckets[hash % BUCKETS];
    while (s && strcmp(s->text, w->text) != 0)
        s = s->next;
    if (!s) {
        s = calloc(1, sizeof *s);
        *s = (struct sum){buckets[hash % BUCKETS], w->text, 0};
        buckets[hash % BUCKETS] = s;
    }
    s->count += w->count;
}

static int by_count(const void *x, const void *y)
{
    const struct sum *const *p = x, *const *q = y;
    if ((*p)->count != (*q)->count)
        return (*p)->count < (*q)->count ? 1 : -1;
    return strcmp((*p)->text, (*q)->text);
}

static void write_counts(const char *path)
{
    size_t count = 0, at = 0;
    for (int i = 0; i < file_count; i++) {
        char name[32];
        arena_ref_t ref;
        snprintf(name, sizeof name, "file-%d", i);
        int rc = arena_root_get(a, name, &ref);
        if (rc < 0)
            die(name, -rc);
        for (struct word *w = ((struct table *)arena_ptr(a, ref))->words; w; w = w->hh.next)
            add_up(w);
    }
    for (int i = 0; i < BUCKETS; i++)
        for (struct sum *s = buckets[i]; s; s = s->next)
            count++;
    struct sum **all = malloc(count * sizeof *all);
    for (int i = 0; i < BUCKETS; i++)
        for (struct sum *s = buckets[i]; s; s = s->next)
            all[at++] = s;
    qsort(all, count, sizeof *all, by_count);
    FILE *f = fopen(path, "w");
    if (!f)
        die(path, errno);
    for (size_t i = 0; i < count; i++)
        fprintf(f, "%lu %s\n", all[i]->count, all[i]->text);
    fclose(f);
    printf("%zu different words; the 20 most frequent:\n", count);
    for (size_t i = 0; i < count && i < 20; i++)
        printf("  %8lu %s\n", all[i]->count, all[i]->text);
}

int main(int argc, char **argv)
{
    int workers = argc == 3 ? atoi(argv[1]) : 0, fds[2], victim = 0, running = 0;
    if (workers < 2 || workers > 64) {
        fprintf(stderr, "usage: words WORKERS COUNTS-FILE < files; 2 to 64 workers\n");
        return 2;
    }
    read_list();
    int rc = arena_open(&a, NULL, NULL);
    if (rc < 0)
        die("arena_open", -rc);
    if (!arena_same_address(a))
        fprintf(stderr, "words: the heap is not at its address here\n");
    size_t bytes = sizeof *board + (size_t)file_count * sizeof *board->jobs;
    board = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (board == MAP_FAILED || pipe(fds) < 0)
        die("shared memory", errno);
    victims_file = choose_victims_file();
    board->jobs[victims_file].state = FILE_TAKEN;
    board->jobs[victims_file].worker = 0;
    pid_t victim_pid = start_worker(0, fds[1]);
    running = 1;
    for (int w = 1; w < workers; w++, running++)
        start_worker(w, -1);
    close(fds[1]);
    char byte;
    if (read(fds[0], &byte, 1) == 1) {
        progress("\n");
        fprintf(stderr, "killing worker 0 (pid %d) in the middle of a file\n", (int)victim_pid);
        kill(victim_pid, SIGKILL);
        victim = 1;
    }
    while (running > 0) {
        int status;
        pid_t pid = waitpid(-1, &status, WNOHANG);
        if (pid == 0) {
            struct timespec tenth = {.tv_nsec = 100000000};
            progress("");
            nanosleep(&tenth, NULL);
            continue;
        }
        running--;
        if (pid == victim_pid && victim) { /* what it had taken is to be done again, by a worker that lives */
            for (int i = 0; i < file_count; i++)
                if (board->jobs[i].state == FILE_TAKEN && board->jobs[i].worker == 0)
                    board->jobs[i].state = FILE_TODO;
            start_worker(workers, -1);
            running++;
        } else if (status != 0) {
            fprintf(stderr, "words: a worker ended with status %x\n", status);
            return 1;
        }
    }
    progress("\n");
    printf("files %d, MB %.1f, words %ld\n", file_count, (double)board->bytes / 1e6, (long)board->words);
    write_counts(argv[2]);
    return victim ? 0 : 1;
}
