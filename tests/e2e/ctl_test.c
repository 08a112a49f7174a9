/* Goal: what arenactl says is so. Method: live clients that hold known memory and wait; the figures
 * are compared with a recount of the state words by this process, with stat and with one another;
 * all JSON is parsed; pictures and metrics are read by small checkers. */
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cjson/cJSON.h>

#include "client/heap.h"
#include "tests/e2e/ctl_answers.h"

/* ---- JSON ------------------------------------------------------------------------------------ */

static cJSON *parse(const char *text)
{
    const char *end = NULL;
    cJSON *value = cJSON_ParseWithOpts(text, &end, 0);
    if (!value || !is_utf8(text))
        fail_msg("not JSON: %.200s", end ? end : text);
    for (; *end; end++)
        if (!isspace((unsigned char)*end))
            fail_msg("behind the JSON: %.200s", end);
    return value;
}

static cJSON *ctl_json(const struct daemon *d, const char *command)
{
    int status = ctl(d, command);
    if (status != 0)
        fail_msg("arenactl %s: %d: %.400s", command, status, out);
    return parse(out);
}

static uint64_t number(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    if (!cJSON_IsNumber(item))
        fail_msg("no number %s", name);
    return (uint64_t)item->valuedouble; /* below 2^53 in these tests */
}

static const char *string(const cJSON *row, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(row, name);
    if (!cJSON_IsString(item))
        fail_msg("no text %s", name);
    return item->valuestring;
}

static const cJSON *row_of_pid(const cJSON *rows, pid_t pid)
{
    const cJSON *row;
    cJSON_ArrayForEach(row, rows) if (number(row, "pid") == (uint64_t)pid) return row;
    fail_msg("no client with pid %d", (int)pid);
    return NULL;
}

/* The heap's figures that its daemon may still change in the background when no client does
 * anything. */
static const char *const moving[] = {
    "heap_in_use",    "bytes_leased",  "pages_free",     "pages_free_run", "spans",
    "objects_shared", "objects_owned", "objects_cached", "bytes_used",     "clients"};

/* Runs `look` between two looks at stat until those are the same: then what it saw is of a heap at
 * rest. Returns stat. */
static cJSON *at_rest(const struct daemon *d, void (*look)(const struct daemon *d, void *context),
                      void *context)
{
    for (int tries = 0; tries < 3000; tries++) {
        cJSON *before = ctl_json(d, "stat --json");
        look(d, context);
        cJSON *after = ctl_json(d, "stat --json");
        bool same = true;
        for (size_t i = 0; i < sizeof moving / sizeof moving[0]; i++)
            same &= number(before, moving[i]) == number(after, moving[i]);
        cJSON_Delete(before);
        if (same)
            return after;
        cJSON_Delete(after);
    }
    fail_msg("the heap does not come to rest");
    return NULL;
}

/* ---- clients that hold memory ---------------------------------------------------------------- */

struct holder {
    const struct daemon *d;
    unsigned objects, seed;
    const char *name;
    pid_t pid;
    int ready[2], go[2];
};

/* Allocates, publishes, frees, keeps a transaction open; then waits until its parent lets it go. */
static int hold(void *argument)
{
    struct holder *h = argument;
    uint64_t state = h->seed * 2 + 1;
    arena_t *a;
    char byte = 'r';
    close(h->go[1]);
    close(h->ready[0]);
    if (h->name)
        prctl(PR_SET_NAME, h->name);
    if (arena_open(&a, h->d->socket, NULL) != 0)
        return 1;
    void **p = calloc(h->objects, sizeof *p);
    for (unsigned i = 0; i < h->objects; i++) {
        uint64_t dice = rnd(&state);
        p[i] = arena_alloc_flags(a, dice % 100 == 0 ? 40000 + dice % 300000 : dice % 3000,
                                 dice >> 20 & ARENA_NOSCAN);
        if (!p[i] || (dice >> 32) % 4 == 0)
            arena_publish(a, p[i]);
    }
    for (unsigned i = 0; i < h->objects; i++)
        if (rnd(&state) % 3 == 0)
            arena_free(a, p[i]);
    if (arena_tx_begin(a) != 0)
        return 2;
    for (int i = 0; i < 50; i++)
        arena_alloc(a, 100 + (size_t)i * 50);
    if (write(h->ready[1], &byte, 1) != 1 || read(h->go[0], &byte, 1) < 0)
        return 3;
    return 0; /* as if killed: no goodbye */
}

static void holder_start(struct holder *h)
{
    char byte;
    assert_int_equal(pipe2(h->ready, O_CLOEXEC), 0);
    assert_int_equal(pipe2(h->go, O_CLOEXEC), 0);
    h->pid = spawn(hold, h);
    close(h->ready[1]);
    close(h->go[0]);
    assert_int_equal(read(h->ready[0], &byte, 1), 1);
}

static void holder_end(struct holder *h)
{
    assert_int_equal(write(h->go[1], "g", 1), 1); /* other children have its end too */
    close(h->go[1]);
    close(h->ready[0]);
    assert_int_equal(reap(h->pid), 0);
}

/* ---- a recount from map and state words ------------------------------------------------------ */

struct recount {
    uint64_t owned[TAG_COUNT], cached[TAG_COUNT], leased[TAG_COUNT], leased_free[TAG_COUNT];
    uint64_t spans, pages, shared, used_bytes;
};
static struct recount recounted;

static void recount(const struct heap *h)
{
    struct recount *n = &recounted;
    memset(n, 0, sizeof *n);
    for (uint64_t page = 0; page < h->page_count;) {
        struct span_info span;
        if (!span_at(h, page, &span)) {
            page++;
            continue;
        }
        uint64_t size = span.size ? span.size : (uint64_t)span.page_count << PAGE_SHIFT;
        unsigned lessee = load_relaxed(&h->spans[page].lessee);
        n->spans++;
        n->pages += span.page_count;
        n->leased[lessee] += (uint64_t)span.page_count << PAGE_SHIFT;
        for (uint32_t i = 0; i < span.objects; i++) {
            uint16_t word = load_relaxed(&span.words[i]);
            unsigned tag = word_tag(word);
            bool shared = word == WORD_SHARED || (word_is_owned(word) && tag_is_committed(h, tag));
            if (word == WORD_FREE)
                n->leased_free[lessee] += size;
            else if (shared)
                n->shared++;
            else if (word_is_cached(word))
                n->cached[tag] += size;
            else
                n->owned[tag_state(h, tag) == TAG_TX ? h->tags[tag].owner : tag] += size;
            n->used_bytes += word != WORD_FREE && (shared || !word_is_cached(word)) ? size : 0;
        }
        page += span.page_count;
    }
}

struct seen {
    const struct heap *heap;
    cJSON *rows;
};

static void look_at_clients(const struct daemon *d, void *context)
{
    struct seen *seen = context;
    cJSON_Delete(seen->rows);
    seen->rows = ctl_json(d, "clients --json");
    recount(seen->heap);
}

static void clients_are_what_a_recount_of_the_words_says(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "256M", NULL);
    struct holder big = {.d = &d, .objects = 6000, .seed = 11},
                  small = {.d = &d, .objects = 700, .seed = 12};
    holder_start(&big);
    holder_start(&small);
    arena_t *a = open_heap(&d);
    struct seen seen = {.heap = &a->heap};
    cJSON *stat = at_rest(&d, look_at_clients, &seen), *rows = seen.rows;
    assert_int_equal(cJSON_GetArraySize(rows), 3);
    const cJSON *row;
    uint64_t last = UINT64_MAX, leased = 0;
    cJSON_ArrayForEach(row, rows)
    {
        uint64_t tag = number(row, "tag"), held;
        assert_int_equal(number(row, "bytes_owned"), recounted.owned[tag]);
        assert_int_equal(number(row, "bytes_cached"), recounted.cached[tag]);
        assert_int_equal(number(row, "bytes_leased"), recounted.leased[tag]);
        held = recounted.owned[tag] + recounted.cached[tag] + recounted.leased_free[tag];
        assert_int_equal(number(row, "bytes_held"), held);
        assert_int_equal(number(row, "uid"), getuid());
        assert_true(held <= last); /* the largest first */
        last = held;
        leased += recounted.leased[tag];
    }
    assert_true(number(row_of_pid(rows, big.pid), "bytes_owned") > 50 * 100);
    assert_true(number(row_of_pid(rows, big.pid), "transactions") > 0);
    assert_int_equal(number(stat, "bytes_leased"), leased);
    assert_int_equal(number(stat, "spans"), recounted.spans);
    assert_int_equal(number(stat, "heap_in_use"), recounted.pages << PAGE_SHIFT);
    assert_int_equal(number(stat, "objects_shared"), recounted.shared);
    assert_int_equal(number(stat, "bytes_used"), recounted.used_bytes);
    cJSON_Delete(rows);
    cJSON_Delete(stat);
    assert_int_equal(ctl(&d, "clients"), 0);
    assert_non_null(strstr(out, "3 clients hold "));
    arena_close(a);
    holder_end(&big);
    holder_end(&small);
    assert_int_equal(daemon_stop(&d), 0);
    daemon_clean(&d);
}

static void a_stopped_client_is_said_to_be_and_a_strange_name_harms_nobody(void **state)
{
    struct daemon d;
    int status;
    (void)state;
    daemon_start(&d, "64M", NULL);
    struct holder h = {.d = &d, .objects = 10, .seed = 1, .name = "a\033[2J\n\"\\\xff\x9b"};
    holder_start(&h);
    kill(h.pid, SIGSTOP);
    assert_int_equal(waitpid(h.pid, &status, WUNTRACED), h.pid);
    cJSON *rows = ctl_json(&d, "clients --json");
    const cJSON *row = row_of_pid(rows, h.pid);
    assert_string_equal(string(row, "process"), "stopped");
    assert_string_equal(string(row, "state"), "live");
    assert_true(is_plain(string(row, "command")));
    assert_true(is_plain(string(row, "command_line")));
    assert_non_null(strstr(string(row, "command_line"), "ctl_test"));
    cJSON_Delete(rows);
    const char *const commands[] = {"clients", "why", "top"};
    for (int i = 0; i < 3; i++) {
        assert_int_equal(ctl(&d, commands[i]), 0);
        assert_true(is_plain(out));
        assert_non_null(strstr(out, "stopped"));
    }
    assert_int_equal(ctl(&d, "metrics"), 0);
    assert_true(is_plain(out));
    kill(h.pid, SIGCONT);
    holder_end(&h);
    daemon_stop(&d);
    daemon_clean(&d);
}

/* ---- pictures -------------------------------------------------------------------------------- */

/* Every element that is begun is ended, in order; attributes are quoted. Returns how many elements
 * there are. */
static int check_xml(const char *text)
{
    const char *names[32];
    size_t lengths[32];
    int depth = 0, count = 0;
    for (const char *p = text; (p = strchr(p, '<')) != NULL;) {
        bool end = p[1] == '/';
        const char *name = p + 1 + end, *close = name;
        for (bool quoted = false; *close && (quoted || *close != '>'); close++) {
            assert_true(*close != '<');
            quoted ^= *close == '"';
        }
        assert_int_equal(*close, '>');
        size_t length = strcspn(name, " />");
        if (end) {
            assert_true(depth > 0 && lengths[depth - 1] == length &&
                        memcmp(names[depth - 1], name, length) == 0);
            depth--;
        } else if (close[-1] != '/') {
            assert_true(depth < 32);
            names[depth] = name;
            lengths[depth++] = length;
        }
        count += !end;
        p = close;
    }
    assert_int_equal(depth, 0);
    return count;
}

static char *slurp(const char *path)
{
    FILE *f = fopen(path, "re");
    assert_non_null(f);
    size_t n = fread(out, 1, sizeof out - 1, f);
    fclose(f);
    out[n] = 0;
    return out;
}

static void look_at_map(const struct daemon *d, void *context)
{
    cJSON **map = context;
    cJSON_Delete(*map);
    *map = ctl_json(d, "map --json");
}

static void the_map_shares_out_the_pages_as_stat_counts_them(void **state)
{
    struct daemon d;
    char command[200], path[120];
    (void)state;
    daemon_start(&d, "256M", NULL);
    struct holder h = {.d = &d, .objects = 5000, .seed = 5},
                  gone = {.d = &d, .objects = 3000, .seed = 6};
    holder_start(&gone);
    holder_start(&h);
    holder_end(&gone); /* leaves what it published, and holes */
    cJSON *map = NULL, *stat = at_rest(&d, look_at_map, &map);
    const cJSON *kinds = cJSON_GetObjectItemCaseSensitive(map, "kinds"), *run_row;
    uint64_t leased = number(kinds, "leased") + number(kinds, "large_leased");
    uint64_t spans = leased + number(kinds, "full") + number(kinds, "partial") +
                     number(kinds, "hollow") + number(kinds, "large");
    uint64_t free_pages =
                 number(kinds, "free") + number(kinds, "returned") + number(kinds, "untouched"),
             next = 1;
    assert_int_equal(spans << PAGE_SHIFT, number(stat, "heap_in_use"));
    assert_int_equal(leased << PAGE_SHIFT, number(stat, "bytes_leased"));
    assert_int_equal(free_pages, number(stat, "pages_free"));
    assert_int_equal(spans + free_pages, number(map, "pages"));
    assert_int_equal(number(map, "longest_free_run"), number(stat, "pages_free_run"));
    cJSON_ArrayForEach(run_row, cJSON_GetObjectItemCaseSensitive(map, "runs"))
    {
        assert_int_equal(number(run_row, "page"), next);
        next += number(run_row, "pages");
    }
    assert_int_equal(next, number(map, "pages") + 1);
    cJSON_Delete(map);
    cJSON_Delete(stat);

    assert_int_equal(ctl(&d, "map --ascii"), 0);
    assert_true(is_plain(out));
    for (char *p = out; *p; p++)
        assert_true((unsigned char)*p < 0x80);
    assert_non_null(strstr(out, "span leased to a client"));
    assert_int_equal(run(out, sizeof out, "LC_ALL=C.UTF-8 %s/arenactl --socket %s map",
                         programs_dir(), d.socket),
                     0);
    assert_true(is_plain(out)); /* no colours: it is no terminal */
    snprintf(path, sizeof path, "%s/map.svg", d.dir);
    snprintf(command, sizeof command, "map --svg %s", path);
    assert_int_equal(ctl(&d, command), 0);
    assert_string_equal(out, "");
    slurp(path);
    assert_true(is_plain(out));
    assert_int_equal(strncmp(out, "<svg ", 5), 0);
    assert_true(check_xml(out) > 100);
    assert_int_equal(ctl(&d, "map --svg /nowhere/map.svg"), 4);
    assert_line("cannot write /nowhere/map.svg: No such file or directory");
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(ctl(&d, "map --svg /dev/full"), 4);
        assert_line("cannot write /dev/full");
        assert_int_equal(run(out, sizeof out, "{ %s/arenactl --socket %s map >/dev/full; }",
                             programs_dir(), d.socket),
                         4);
        assert_line("cannot write the output");
    }
    holder_end(&h);
    daemon_stop(&d);
    daemon_clean(&d);
}

/* ---- metrics --------------------------------------------------------------------------------- */

struct family {
    char name[100], type[16], unit[16];
    bool help;
    int samples;
};

static bool is_name(const char *text, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (!(isalpha((unsigned char)text[i]) || text[i] == '_' ||
              (i && isdigit((unsigned char)text[i]))))
            return false;
    return length > 0;
}

/* A sample line of family f: the name with the type's suffix, labels, a number. */
static void check_sample(const struct family *f, const char *line)
{
    size_t length = strcspn(line, "{ "), base = strlen(f->name);
    const char *suffix = strcmp(f->type, "counter") == 0 ? "_total" : "", *p = line + length;
    char *end;
    assert_true(length == base + strlen(suffix) && memcmp(line, f->name, base) == 0);
    assert_memory_equal(line + base, suffix, strlen(suffix));
    assert_int_equal(*p, '{');
    do {
        size_t name = strcspn(++p, "=");
        assert_true(is_name(p, name));
        p += name + 1;
        assert_int_equal(*p++, '"');
        for (; *p != '"'; p++) {
            assert_true(*p != 0 && *p != '\n');
            if (*p == '\\')
                assert_non_null(strchr("\\\"n", *++p));
        }
    } while (*++p == ',');
    assert_int_equal(*p++, '}');
    assert_int_equal(*p++, ' ');
    errno = 0;
    strtod(p, &end);
    assert_true(end != p && *end == 0 && errno == 0);
}

/* OpenMetrics: metadata first, then the family's samples together; families, and samples in them,
 * once; # EOF. */
static int check_metrics(char *text)
{
    static struct family families[100];
    static char *samples[20000];
    int count = 0, sample_count = 0;
    bool ended = false;
    assert_int_equal(text[strlen(text) - 1], '\n');
    memset(families, 0, sizeof families);
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        char word[8], name[100];
        int at = 0;
        assert_false(ended);
        if (strcmp(line, "# EOF") == 0) {
            ended = true;
        } else if (sscanf(line, "# %7s %99s %n", word, name, &at) == 2) {
            struct family *f = count ? &families[count - 1] : NULL;
            if (!f || strcmp(f->name, name) != 0) {
                for (int i = 0; i < count; i++)
                    assert_string_not_equal(families[i].name, name);
                assert_true(count < 100 && is_name(name, strlen(name)));
                f = &families[count++];
                strcpy(f->name, name);
            }
            assert_int_equal(f->samples, 0);
            if (strcmp(word, "TYPE") == 0)
                snprintf(f->type, sizeof f->type, "%s", line + at);
            else if (strcmp(word, "UNIT") == 0)
                snprintf(f->unit, sizeof f->unit, "%s", line + at);
            else
                f->help = strcmp(word, "HELP") == 0 && line[at];
            assert_true(!f->unit[0] ||
                        (strlen(name) > strlen(f->unit) &&
                         strcmp(name + strlen(name) - strlen(f->unit), f->unit) == 0));
        } else {
            assert_true(count > 0 && families[count - 1].help && sample_count < 20000);
            assert_true(strcmp(families[count - 1].type, "gauge") == 0 ||
                        strcmp(families[count - 1].type, "counter") == 0);
            families[count - 1].samples++;
            check_sample(&families[count - 1], line);
            samples[sample_count++] = line;
        }
    }
    assert_true(ended);
    for (int i = 0; i < sample_count; i++)
        for (int k = 0; k < i; k++) {
            size_t length = (size_t)(strrchr(samples[i], ' ') - samples[i]);
            assert_false(strncmp(samples[i], samples[k], length + 1) == 0);
        }
    return sample_count;
}

static uint64_t sample_value(const char *text, const char *name)
{
    char key[100];
    snprintf(key, sizeof key, "\n%s{heap=\"default\"} ", name);
    const char *at = strstr(text, key);
    if (!at)
        fail_msg("no %s", name);
    return strtoull(at + strlen(key), NULL, 10);
}

static char metrics[1 << 18];

static void look_at_metrics(const struct daemon *d, void *context)
{
    (void)context;
    assert_int_equal(ctl(d, "metrics"), 0);
    assert_true(strlen(out) < sizeof metrics);
    memcpy(metrics, out, strlen(out) + 1);
}

static void metrics_are_openmetrics_and_agree_with_stat(void **state)
{
    struct daemon d;
    char command[200], path[120];
    (void)state;
    daemon_start(&d, "64M", NULL);
    struct holder h = {.d = &d, .objects = 2000, .seed = 7, .name = "q\"u\\o\nte"},
                  other = {.d = &d, .objects = 9, .seed = 8};
    holder_start(&h);
    holder_start(&other);
    cJSON *stat = at_rest(&d, look_at_metrics, NULL);
    assert_int_equal(sample_value(metrics, "arena_heap_used_bytes"), number(stat, "bytes_used"));
    assert_int_equal(sample_value(metrics, "arena_refills_total"), number(stat, "refills"));
    assert_int_equal(sample_value(metrics, "arena_heap_free_bytes"),
                     number(stat, "pages_free") * PAGE_SIZE);
    assert_int_equal(sample_value(metrics, "arena_clients"), 2);
    cJSON_Delete(stat);
    assert_non_null(strstr(metrics, "command=\"ctl_test\"} 1\n"));
    assert_true(check_metrics(metrics) > 50);
    snprintf(path, sizeof path, "%s/arena.prom", d.dir);
    snprintf(command, sizeof command, "metrics --output %s", path);
    assert_int_equal(ctl(&d, command), 0);
    assert_string_equal(out, "");
    slurp(path);
    assert_non_null(strstr(out, "\narena_up{socket=\""));
    assert_true(check_metrics(out) > 50);
    holder_end(&h);
    holder_end(&other);
    daemon_stop(&d);
    assert_int_equal(ctl(&d, command), 3);
    assert_line("no daemon at");
    slurp(path);
    assert_non_null(strstr(out, "\"} 0\n"));
    assert_int_equal(check_metrics(out), 1);
    assert_int_equal(run(out, sizeof out, "ls %s | grep -c prom", d.dir), 0);
    assert_string_equal(out, "1\n"); /* nothing is left beside it */
    assert_int_equal(ctl(&d, "metrics --output /nowhere/x.prom"), 4);
    assert_line("cannot write /nowhere/x.prom");
    daemon_clean(&d);
}

/* ---- JSON, roots ----------------------------------------------------------------------------- */

static void all_json_is_json(void **state)
{
    static const char *const commands[] = {"stat",  "clients", "classes", "spans", "roots",
                                           "check", "limits",  "trim",    "map",   "why"};
    struct daemon d;
    char command[64];
    (void)state;
    daemon_start(&d, "64M", NULL);
    for (int live = 0; live < 2; live++) {
        struct holder h = {.d = &d, .objects = 3000, .seed = 9};
        if (live)
            holder_start(&h);
        for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++) {
            snprintf(command, sizeof command, "%s --json", commands[i]);
            cJSON_Delete(ctl_json(&d, command));
            snprintf(command, sizeof command, "--json %s", commands[i]);
            cJSON_Delete(ctl_json(&d, command));
            assert_int_equal(ctl(&d, commands[i]), 0);
            assert_true(is_plain(out));
        }
        assert_int_equal(ctl(&d, "top --json --count 3 --interval 0.1"), 0);
        int lines = 0;
        for (char *line = strtok(out, "\n"); line; line = strtok(NULL, "\n"), lines++)
            cJSON_Delete(parse(line));
        assert_int_equal(lines, 3);
        if (live)
            holder_end(&h);
    }
    cJSON *stat = ctl_json(&d, "stat --json");
    assert_int_equal(strlen(string(stat, "heap_id")), 32);
    cJSON_Delete(stat);
    daemon_stop(&d);
    daemon_clean(&d);
}

static void roots_with_odd_names_are_shown_whole_and_safely(void **state)
{
    static const char *const names[] = {
        "plain",
        "with \"quotes\" and \\",
        "gr\xc3\xb6\xc3\x9f"
        "e \xe2\x98\x83",
        "broken \xff\xc3",
        "csi \xc2\x9b"
        "2J",
        " ",
        "{\"a\":1}",
        "123456789012345678901234567890123456789012345678901234567890123"};
    enum { COUNT = sizeof names / sizeof names[0] };
    struct daemon d;
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    void *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    for (int i = 0; i < COUNT; i++)
        assert_int_equal(arena_root_set(a, names[i], arena_ref(a, p)), 0);
    cJSON *rows = ctl_json(&d, "roots --json");
    const cJSON *row;
    int found = 0;
    assert_int_equal(cJSON_GetArraySize(rows), COUNT);
    cJSON_ArrayForEach(row, rows)
    {
        assert_int_equal(number(row, "ref"), arena_ref(a, p));
        for (int i = 0; i < COUNT; i++)
            found += strcmp(string(row, "name"), names[i]) == 0;
    }
    assert_int_equal(
        found, COUNT - 2); /* the two that are not UTF-8, or a control, have their bytes as \xHH */
    cJSON_Delete(rows);
    assert_int_equal(ctl(&d, "roots"), 0);
    assert_true(is_plain(out));
    assert_null(strstr(out, "\xc2\x9b"));
    assert_non_null(strstr(out, "gr\xc3\xb6\xc3\x9f"
                                "e \xe2\x98\x83"));
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);
}

static void check_ends_with_1_when_an_invariant_is_broken(void **state)
{
    struct daemon d;
    struct object object = {0};
    (void)state;
    daemon_start(&d, "64M", NULL);
    arena_t *a = open_heap(&d);
    void *p = arena_alloc_flags(a, 100, ARENA_SHARED);
    assert_int_equal(ctl(&d, "check"), 0);
    assert_true(object_find(&a->heap, arena_ref(a, p), &object));
    store_relaxed(object.word, WORD_OWNED(TAG_COUNT - 1)); /* as a hostile client may */
    assert_int_equal(ctl(&d, "check"), 1);
    assert_line("a state word bears a tag that nobody has");
    assert_int_equal(ctl(&d, "check --json"), 1);
    cJSON *result = parse(out);
    assert_true(cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(result, "ok")));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(result, "faults")), 1);
    cJSON_Delete(result);
    store_relaxed(object.word, WORD_SHARED);
    assert_int_equal(ctl(&d, "check"), 0);
    assert_string_equal(out, "ok: every invariant holds\n");
    /* suspicious, and not broken: roots that lead to what nobody published */
    assert_int_equal(arena_root_set(a, "gone\xe2\x80\xae", arena_ref(a, p)), 0);
    assert_int_equal(ctl(&d, "check"), 0);
    assert_string_equal(out, "ok: every invariant holds\n");
    arena_free(a, p);
    assert_int_equal(ctl(&d, "check"), 0);
    assert_non_null(strstr(out, "ok: every invariant holds\nsuspicious: root \"gone\\xe2\\x80\\xae\" leads to "));
    assert_true(strstr(out, "an object that was freed") || strstr(out, "no object"));
    void *q = arena_alloc(a, 100); /* takes the place */
    assert_true(q == p);
    assert_int_equal(ctl(&d, "check --json"), 0);
    result = parse(out);
    assert_true(cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(result, "ok")));
    assert_int_equal(cJSON_GetArraySize(cJSON_GetObjectItemCaseSensitive(result, "suspicious")), 1);
    assert_non_null(strstr(out, "an object that is not published"));
    cJSON_Delete(result);
    assert_int_equal(arena_publish(a, q), 0);
    assert_int_equal(ctl(&d, "check"), 0);
    assert_string_equal(out, "ok: every invariant holds\n");
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);
}

/* ---- why ------------------------------------------------------------------------------------- */

static uint64_t fill(arena_t *a, size_t size, int publish)
{
    uint64_t count = 0;
    void *p;
    for (; (p = arena_alloc(a, size)) != NULL; count++)
        if (publish)
            arena_publish(a, p);
    return count;
}

static void why_names_what_stands_in_the_way(void **state)
{
    struct daemon d;
    (void)state;
    daemon_start(&d, "32M", NULL);
    assert_int_equal(ctl(&d, "why"), 0);
    assert_int_equal(strncmp(out, "not full: ", 10), 0);
    arena_t *a = open_heap(&d);
    assert_true(fill(a, 8000, 1) > 3000);
    assert_int_equal(errno, ENOMEM);
    assert_int_equal(ctl(&d, "why"), 0);
    if (strncmp(out, "full: ", 6) != 0 || !strstr(out, "published "))
        fail_msg("%s", out);
    assert_int_equal(ctl(&d, "stat"), 0);
    assert_non_null(strstr(out, "full?              full: "));
    cJSON *why = ctl_json(&d, "why --json");
    assert_true(number(why, "refused_full") > 0);
    assert_int_equal(number(why, "refused_limit"), 0);
    cJSON_Delete(why);
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);

    daemon_start(&d, "64M", "--limit-client-bytes", "8M", NULL);
    a = open_heap(&d);
    assert_true(fill(a, 8000, 0) > 500);
    assert_int_equal(errno, EDQUOT);
    assert_int_equal(ctl(&d, "why"), 0);
    if (strncmp(out, "a limit: client ", 16) != 0 || !strstr(out, "limit-client-bytes"))
        fail_msg("%s", out);
    cJSON *limits = ctl_json(&d, "limits --json");
    const cJSON *user = cJSON_GetArrayItem(cJSON_GetObjectItemCaseSensitive(limits, "users"), 0);
    assert_int_equal(number(cJSON_GetObjectItemCaseSensitive(limits, "limits"), "client_bytes"),
                     8 << 20);
    assert_int_equal(number(user, "uid"), getuid());
    assert_int_equal(number(user, "clients"), 1);
    assert_true(number(user, "bytes_charged") > 4 << 20);
    cJSON_Delete(limits);
    arena_close(a);
    daemon_stop(&d);
    daemon_clean(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(clients_are_what_a_recount_of_the_words_says),
        cmocka_unit_test(a_stopped_client_is_said_to_be_and_a_strange_name_harms_nobody),
        cmocka_unit_test(the_map_shares_out_the_pages_as_stat_counts_them),
        cmocka_unit_test(metrics_are_openmetrics_and_agree_with_stat),
        cmocka_unit_test(all_json_is_json),
        cmocka_unit_test(roots_with_odd_names_are_shown_whole_and_safely),
        cmocka_unit_test(check_ends_with_1_when_an_invariant_is_broken),
        cmocka_unit_test(why_names_what_stands_in_the_way),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
