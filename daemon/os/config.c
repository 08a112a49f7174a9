#include "daemon/os/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <limits.h>
#include <ini.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdarg.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "daemon/os/log.h"
#include "proto/text.h"
#include "shm/fnv.h"

enum {
    FILE_LINE_MAX = 190,                  /* inih takes lines in pieces of this size */
    MS_MAX = 1000 * 60 * 60 * 24 * 7,     /* a week */
};

enum kind { STRING, SIZE, COUNT, MS, BOOL, OCTAL, ADDRESS, USERS, GROUPS };

struct key {
    const char *name;
    enum kind kind;
    size_t at;
    bool reloads;
    const char *initial, *text;
};

static const struct key keys[] = {
#define KEY(name, kind, member, reloads, initial, text) {name, kind, offsetof(struct config, member), reloads, initial, text},
    CONFIG_KEYS(KEY)
#undef KEY
};
enum { KEY_COUNT = sizeof keys / sizeof keys[0] };

/* ---- what is wrong ------------------------------------------------------------------------------------------------------------ */

static char complaint[1024];
static bool reloading;

const char *config_complaint(void) { return complaint; }

/* One line: on standard error, which in the background leads nowhere, or at a reload in the log. -EINVAL */
static int __attribute__((format(printf, 1, 2))) complain(const char *format, ...)
{
    char quoted[sizeof complaint];
    va_list args;
    va_start(args, format);
    vsnprintf(complaint, sizeof complaint, format, args);
    va_end(args);
    if (reloading)
        log_event(LOG_LEVEL_ERROR, "reload", "result=refused error=\"%s\" kept=\"the values in force\"",
                  log_quote(quoted, sizeof quoted, complaint));
    else
        fprintf(stderr, "arenad: %s\n", text_escape(quoted, sizeof quoted, complaint));
    return -EINVAL;
}

/* ---- values -------------------------------------------------------------------------------------------------------------------- */

int size_parse(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)*text) || (text[0] == '0' && isdigit((unsigned char)text[1]))) /* not octal by surprise */
        return -EINVAL;
    unsigned long long value = strtoull(text, &end, 0);
    unsigned shift = 0;
    switch (*end) {
    case 'T': case 't': shift += 10; /* fall through */
    case 'G': case 'g': shift += 10; /* fall through */
    case 'M': case 'm': shift += 10; /* fall through */
    case 'K': case 'k': shift += 10; end++; break;
    default: break;
    }
    if (shift && strcasecmp(end, "iB") == 0)
        end += 2;
    else if (shift && strcasecmp(end, "B") == 0)
        end++;
    if (errno || *end || (shift && value >> (64 - shift)))
        return -EINVAL;
    *ret = (uint64_t)value << shift;
    return 0;
}

static const char *parse_ids(struct config *config, bool users, const char *text)
{
    uint32_t *ids = users ? config->allow_uid : config->allow_gid, count = 0;
    char copy[1024], *save = NULL;
    bool any = false;
    if (strlen(text) >= sizeof copy)
        return "is too long";
    strcpy(copy, text);
    for (char *word = strtok_r(copy, ", \t", &save); word; word = strtok_r(NULL, ", \t", &save)) {
        char *end;
        errno = 0;
        unsigned long long id = strtoull(word, &end, 10);
        if (users && strcmp(word, "*") == 0) {
            any = true;
            continue;
        }
        if (*end || !isdigit((unsigned char)*word)) {
            struct passwd *pw = users ? getpwnam(word) : NULL;
            struct group *gr = users ? NULL : getgrnam(word);
            if (!pw && !gr)
                return users ? "names a user that is not there" : "names a group that is not there";
            id = pw ? pw->pw_uid : gr->gr_gid;
        } else if (errno || id >= UINT32_MAX)
            return users ? "has a number that no user has" : "has a number that no group has"; else if (errno || id >= UINT32_MAX) /* the last one is the system's word for none */
            return "has a number that no user or group can have: 0 to 4294967294";
        if (count == CONFIG_UIDS_MAX)
            return "has more than 64 entries";
        ids[count++] = (uint32_t)id;
    }
    *(users ? &config->allow_uid_count : &config->allow_gid_count) = count;
    if (users)
        config->allow_any = any;
    return NULL;
}

static const char *parse_number(const struct key *key, char *at, const char *text)
{
    uint64_t value;
    char *end;
    errno = 0;
    switch (key->kind) {
    case SIZE:
    case COUNT:
    case MS:
        if (!*text)
            return "needs a value";
        if (size_parse(text, &value) < 0)
            return key->kind == SIZE ? "is not a size such as 512M or 8G" : "is not a number";
        if (key->at == offsetof(struct config, max) && (value < HEAP_MIN || value > HEAP_MAX))
            return "must be from 1M to 1T";
        if (key->at == offsetof(struct config, map_roots) && (value < 16 || value > ROOT_SLOTS_MAX))
            return "must be from 16 to 1M";
        if (key->at == offsetof(struct config, hello_timeout_ms) && (value < 100 || value > MS_MAX))
            return "must be from 100 to 604800000 (a week)";
        if (key->kind == MS && value > MS_MAX)
            return "must be at most 604800000 (a week)";
        if (key->kind == COUNT && key->at != offsetof(struct config, map_roots)) {
            if (value > UINT32_MAX)
                return "is too large";
            *(uint32_t *)(void *)at = (uint32_t)value;
        } else
            *(uint64_t *)(void *)at = value;
        return NULL;
    case ADDRESS:
        value = *text ? strtoull(text, &end, 0) : 0;
        if (*text && (errno || *end || !isdigit((unsigned char)*text) || value == 0 || value % (2 << 20)))
            return "is not an address that is a multiple of 2M";
        *(uint64_t *)(void *)at = value;
        return NULL;
    case OCTAL:
        value = strtoull(text, &end, 8);
        if (!isdigit((unsigned char)*text) || *end || value > 0777)
            return "is not an octal mode such as 0660";
        *(uint32_t *)(void *)at = (uint32_t)value;
        return NULL;
    default:
        return "is unknown";
    }
}

/* A group by name or number: 0, or -ENOENT. */
static int group_parse(const char *text, int64_t *ret)
{
    char *end;
    errno = 0;
    unsigned long long id = strtoull(text, &end, 10);
    struct group *group = getgrnam(text);
    if (group)
        *ret = group->gr_gid;
    else if (!errno && isdigit((unsigned char)*text) && !*end && id < UINT32_MAX)
        *ret = (int64_t)id;
    else
        return -ENOENT;
    return 0;
}

static const char *parse_value(struct config *config, const struct key *key, const char *text)
{
    char *at = (char *)config + key->at;
    switch (key->kind) {
    case STRING: {
        if (key->at == offsetof(struct config, socket_group)) {
            config->socket_gid = -1;
            if (*text && group_parse(text, &config->socket_gid) < 0)
                return "names a group that is not there";
        }
        char *copy = strdup(text);
        if (!copy)
            return "does not fit into memory";
        free(*(char **)(void *)at);
        *(char **)(void *)at = copy;
        return NULL;
    }
    case BOOL:
        if (strcmp(text, "yes") == 0 || strcmp(text, "true") == 0 || strcmp(text, "1") == 0 || !*text)
            *(bool *)at = true;
        else if (strcmp(text, "no") == 0 || strcmp(text, "false") == 0 || strcmp(text, "0") == 0)
            *(bool *)at = false;
        else
            return "is neither yes nor no";
        return NULL;
    case USERS:
    case GROUPS:
        return parse_ids(config, key->kind == USERS, text);
    default:
        return parse_number(key, at, text);
    }
}

static const struct key *key_of(const char *name)
{
    for (int i = 0; i < KEY_COUNT; i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

/* ---- the file ---------------------------------------------------------------------------------------------------------------- */

/* What the file said, by key: a reload tells by it what it cannot change. NULL: nothing. */
static char *file_text[KEY_COUNT];

/* Where each key's value came from. */
static struct {
    bool option;
    int line; /* of the file; 0: it is not there */
} given_at[KEY_COUNT];
static char file_path[512];

/* "PATH:3: max = 5" or "--max 5": what a complaint about a key begins with. */
static const char *where(const struct key *key, const char *value)
{
    static char text[700];
    int line = given_at[key - keys].line;
    if (!given_at[key - keys].option && line)
        snprintf(text, sizeof text, "%s:%d: %s%s%s", file_path, line, key->name, *value ? " = " : "", value);
    else
        snprintf(text, sizeof text, "--%s%s%s", key->name, *value ? " " : "", value);
    return text;
}

struct reading {
    struct config *config;
    const bool *given;  /* by key: an option has it already */
    char **text;
    FILE *file;
    int line;
    int seen[KEY_COUNT]; /* line */
    char why[256];
};

/* A value may be empty where nothing is one: no group, nobody. */
static bool may_be_empty(const struct key *key)
{
    return key->kind == USERS || key->kind == GROUPS || key->kind == ADDRESS || key->at == offsetof(struct config, socket_group);
}

static int on_key(void *user, const char *section, const char *name, const char *value)
{
    struct reading *r = user;
    const struct key *key = key_of(name);
    const char *why = NULL;
    if (r->why[0])
        return 0;
    if (*section && strcmp(section, "arenad") != 0)
        why = "there is only the section [arenad]";
    else if (!key)
        why = "unknown key";
    else if (r->seen[key - keys])
        snprintf(r->why, sizeof r->why, "%s is there twice, first on line %d", name, r->seen[key - keys]);
    else {
        struct config scratch = {.socket_gid = -1}; /* also what an option overrides must be right */
        r->seen[key - keys] = r->line;
        why = !*value && !may_be_empty(key) ? "needs a value"
                                            : parse_value(r->given[key - keys] ? &scratch : r->config, key, value);
        config_free(&scratch);
        if (!why && r->given[key - keys])
            return 1;
        given_at[key - keys].line = r->line;
    }
    if (r->why[0])
        return 0;
    if (!why) {
        free(r->text[key - keys]);
        r->text[key - keys] = strdup(value);
        return 1;
    }
    snprintf(r->why, sizeof r->why, "%s%s%s %s", name, *value ? " = " : "", value, why);
    return 0;
}

/* The next line for inih, counted. One that is longer than it takes would be read as two. */
static char *next_line(char *out, int capacity, void *context)
{
    struct reading *r = context;
    char line[FILE_LINE_MAX + 2];
    if (r->why[0] || !fgets(line, sizeof line, r->file))
        return NULL;
    r->line++;
    size_t n = strlen(line);
    if (n > FILE_LINE_MAX || (int)n >= capacity)
        snprintf(r->why, sizeof r->why, "is longer than %d bytes, or holds a NUL", FILE_LINE_MAX);
    else if (n && line[n - 1] != '\n' && !feof(r->file))
        snprintf(r->why, sizeof r->why, "holds a NUL");
    return r->why[0] ? NULL : strcpy(out, line);
}

static int read_file(struct config *config, const char *path, const bool *given, char **text, bool must)
{
    struct stat st;
    struct reading r = {.config = config, .given = given, .text = text};
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY); /* a pipe is no file to wait for */
    if (fd < 0 && errno == ENOENT && !must)
        return 0;
    if (fd < 0 || fstat(fd, &st) < 0)
        return complain("cannot read %s: %s", path, strerror(errno));
    if (S_ISFIFO(st.st_mode) && !reloading)
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK); /* --config <(...): its writer may come later */
    r.file = fdopen(fd, "r");
    if (!r.file)
        return complain("cannot read %s: %s", path, strerror(errno));
    snprintf(file_path, sizeof file_path, "%s", path);
    errno = 0;
    int line = ini_parse_stream(next_line, &r, on_key, &r), error = ferror(r.file) ? (errno ? errno : EIO) : 0;
    fclose(r.file);
    if (error) /* a directory can be opened, and not be read */
        return complain("cannot read %s: %s", path, strerror(error));
    if (line == 0 && !r.why[0])
        return 0;
    return complain("%s:%d: %s", path, r.why[0] ? r.line : line, r.why[0] ? r.why : "not a line 'key = value'");
}

/* ---- options --------------------------------------------------------------------------------------------------------------------- */

static void usage(void)
{
    printf("usage: arenad [option...]\n"
           "  --config FILE          read keys from FILE (default /etc/arenad/NAME.conf if it is there)\n"
           "  --foreground           stay in the foreground\n"
           "  --ready-fd N           write a newline to descriptor N, and close it, when it serves\n"
           "  --reset                with --backing DIR: throw away the heap that is there\n");
    for (int i = 0; i < KEY_COUNT; i++)
        printf("  --%-20s %s%s%s%s\n", keys[i].name, keys[i].text, keys[i].initial[0] ? " (" : "", keys[i].initial,
               keys[i].initial[0] ? ")" : "");
    printf("  --help, --version\nSizes are written 64K, 512M, 8G. See arenad(8).\n");
}

enum { OPT_CONFIG = 1000, OPT_FOREGROUND, OPT_READY_FD, OPT_RESET, OPT_HELP, OPT_VERSION };

static int parse_options(struct config *config, int argc, char **argv, bool *given)
{
    struct option options[KEY_COUNT + 7];
    int option;
    for (int i = 0; i < KEY_COUNT; i++)
        options[i] = (struct option){keys[i].name, keys[i].kind == BOOL ? optional_argument : required_argument, NULL, i};
    options[KEY_COUNT] = (struct option){"config", required_argument, NULL, OPT_CONFIG};
    options[KEY_COUNT + 1] = (struct option){"foreground", no_argument, NULL, OPT_FOREGROUND};
    options[KEY_COUNT + 2] = (struct option){"reset", no_argument, NULL, OPT_RESET};
    options[KEY_COUNT + 3] = (struct option){"help", no_argument, NULL, OPT_HELP};
    options[KEY_COUNT + 4] = (struct option){"version", no_argument, NULL, OPT_VERSION};
    options[KEY_COUNT + 5] = (struct option){"ready-fd", required_argument, NULL, OPT_READY_FD};
    options[KEY_COUNT + 6] = (struct option){NULL, 0, NULL, 0};
    opterr = 0;
    optind = 0;
    while ((option = getopt_long(argc, argv, ":", options, NULL)) != -1) {
        if (option == ':' || option == '?')
            return complain("%s %s; see arenad --help", argv[optind - 1], option == ':' ? "needs a value" : "is not an option");
        if (option == OPT_HELP || option == OPT_VERSION) {
            if (option == OPT_HELP)
                usage();
            else
                printf("arenad %s\n", PRODUCT_VERSION);
            return 1;
        }
        if (option == OPT_CONFIG && !*optarg)
            return complain("--config needs a value");
        if (option == OPT_CONFIG) {
            free(config->config);
            config->config = strdup(optarg);
        } else if (option == OPT_READY_FD) {
            char *end;
            long fd = strtol(optarg, &end, 10);
            if (!isdigit((unsigned char)*optarg) || *end || fd > 65535 || fcntl((int)fd, F_GETFD) < 0)
                return complain("--ready-fd %s is not an open descriptor's number", optarg);
            config->ready_fd = (int)fd;
            fcntl(config->ready_fd, F_SETFD, FD_CLOEXEC);
        } else if (option == OPT_FOREGROUND)
            config->foreground = true;
        else if (option == OPT_RESET)
            config->reset = true;
        else {
            const char *value = optarg ? optarg : "", *why = NULL;
            if (optarg && !*value && !may_be_empty(&keys[option]))
                why = "needs a value";
            else
                why = parse_value(config, &keys[option], value);
            given[option] = given_at[option].option = true;
            if (why)
                return complain("%s %s", where(&keys[option], value), why);
        }
    }
    if (optind < argc)
        return complain("%s: no arguments are wanted; see arenad --help", argv[optind]);
    return 0;
}

/* ---- checks and defaults ------------------------------------------------------------------------------------------------------------ */

static int refuse(const char *name, const char *value, const char *why)
{
    const struct key *key = key_of(name);
    return key ? complain("%s %s", where(key, value), why) : complain("%s %s %s", name, value, why);
}

static bool is_given(const char *name)
{
    const struct key *key = key_of(name);
    return given_at[key - keys].option || given_at[key - keys].line;
}

static int refuse_size(const char *name, uint64_t bytes, const char *format, uint64_t than)
{
    char value[32], why[160];
    snprintf(value, sizeof value, "%llu", (unsigned long long)bytes);
    snprintf(why, sizeof why, format, (unsigned long long)than);
    return refuse(name, value, why);
}

/* Numbers that make no sense together: what is given is held against what is in force. */
static int check_numbers(const struct config *c)
{
    const uint64_t addresses = 0x7ff000000000ULL;
    if (is_given("reserve") && c->reserve > c->max)
        return refuse_size("reserve", c->reserve, "is more than max: %llu", c->max);
    if (is_given("base") && c->base && (c->base < (1 << 20) || c->base > addresses || c->max > addresses - c->base))
        return refuse_size("base", c->base, "leaves no room for max: %llu", c->max);
    if (is_given("limit-roots") && c->limits.roots > c->map_roots)
        return refuse_size("limit-roots", c->limits.roots, "is more than root-slots: %llu", c->map_roots);
    if (is_given("limit-user-clients") && is_given("limit-clients") && c->limits.clients && c->limits.uid_clients > c->limits.clients)
        return refuse_size("limit-user-clients", c->limits.uid_clients, "is more than limit-clients: %llu", c->limits.clients);
    if (is_given("limit-user-connections") && is_given("limit-connections") && c->limits.connections &&
        c->limits.uid_connections > c->limits.connections)
        return refuse_size("limit-user-connections", c->limits.uid_connections, "is more than limit-connections: %llu",
                           c->limits.connections);
    if (is_given("limit-user-roots") && is_given("limit-roots") && c->limits.roots && c->limits.uid_roots > c->limits.roots)
        return refuse_size("limit-user-roots", c->limits.uid_roots, "is more than limit-roots: %llu", c->limits.roots);
    return 0;
}

static int default_socket(struct config *config)
{
    const char *dir = secure_getenv("XDG_RUNTIME_DIR");
    if (config->socket[0])
        return 0;
    if (!(dir && *dir) && geteuid() != 0 && !secure_getenv("LISTEN_FDS")) { /* a handed socket has its path */
        return complain("XDG_RUNTIME_DIR is not set: say where to listen with --socket PATH");
    }
    free(config->socket);
    if (asprintf(&config->socket, "%s/arenad/%s.sock", dir && *dir ? dir : "/run", config->name) < 0)
        return -ENOMEM;
    return 0;
}

/* 0x550000000000 to 0x555555554000, where PIE programs begin, was free under every sanitizer and valgrind: 341 GiB. It is
 * divided into places of the heap's size; the heap "default" has the first, another one is chosen by its name. Where that
 * range has no place for two, they lie from 0x600000000000 on: free in ordinary processes, not under sanitizers. */
uint64_t config_base_place(const char *name, uint64_t max, uint64_t nth)
{
    uint64_t from = 0x550000000000ULL, to = 0x555555554000ULL, size = 1ULL << 30, first = 0;
    bool is_default = strcmp(name, "default") == 0;
    while (size < max)
        size *= 2;
    if ((to - from) / size < 2 && !(is_default && nth == 0 && max <= to - from))
        from = 0x600000000000ULL, to = 0x7a0000000000ULL;
    uint64_t places = max <= to - from && (to - from) / size == 0 ? 1 : (to - from) / size;
    if (!is_default && places > 1)
        first = 1 + fnv_text(name) % (places - 1);
    return nth < places ? from + (first + nth) % places * size : 0;
}

/* In the background the directory is left. A socket's path stays as it is where it would become too long. */
static int make_absolute(struct config *config)
{
    char **const paths[] = {&config->config, &config->socket, &config->backing, &config->log_file, &config->pid_file};
    char directory[PATH_MAX];
    for (size_t i = 0; i < sizeof paths / sizeof paths[0]; i++) {
        char *path = *paths[i], *whole;
        if (!path || !*path || *path == '/' || (paths[i] == &config->backing && strcmp(path, "memfd") == 0))
            continue;
        if (!getcwd(directory, sizeof directory) || *directory != '/')
            return complain("%s: the directory that it begins in cannot be named", path);
        if (asprintf(&whole, "%s/%s", directory, path) < 0)
            return -ENOMEM;
        if (paths[i] == &config->socket && strlen(whole) >= sizeof((struct sockaddr_un *)NULL)->sun_path)
            free(whole);
        else {
            free(path);
            *paths[i] = whole;
        }
    }
    return 0;
}

static int finish(struct config *config)
{
    uint32_t length = (uint32_t)strlen(config->name);
    if (length == 0 || length > 64 || strspn(config->name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                                           "0123456789_-.@") != length || config->name[0] == '.')
        return refuse("name", config->name, "must be 1..64 letters, digits, '-', '_', '.' or '@'");
    if (config->max == 0) {
        uint64_t half = (uint64_t)sysconf(_SC_PHYS_PAGES) * (uint64_t)sysconf(_SC_PAGESIZE) / 2;
        config->max = half < HEAP_MAX ? half : HEAP_MAX;
    }
    if (config->reset && strcmp(config->backing, "memfd") == 0)
        return refuse("--reset", "needs", "--backing DIR: with memfd a daemon that is started has a new heap anyway");
    int rc = check_numbers(config);
    if (rc < 0)
        return rc;
    config->base_by_name = config->base == 0;
    if (config->base_by_name)
        config->base = config_base_place(config->name, config->max, 0);
    if (log_level_parse(config->log_level) < 0)
        return refuse("log-level", config->log_level, "is none of error, warning, info, debug");
    rc = default_socket(config);
    return rc < 0 ? rc : make_absolute(config);
}

static int defaults(struct config *config)
{
    memset(config, 0, sizeof *config);
    config->ready_fd = -1;
    config->socket_gid = -1;
    for (int i = 0; i < KEY_COUNT; i++) {
        if (keys[i].kind == SIZE && !keys[i].initial[0])
            continue; /* 0 until finish(): nobody can write that */
        const char *why = parse_value(config, &keys[i], keys[i].initial);
        if (why)
            return refuse(keys[i].name, keys[i].initial, why);
    }
    return 0;
}

/* `where` says which file: into `config`, its texts into `text`. */
static int read_config_file(const struct config *where, struct config *config, const bool *given, char **text)
{
    char path[512];
    if (where->config)
        return read_file(config, where->config, given, text, true);
    snprintf(path, sizeof path, "/etc/arenad/%s.conf", where->name);
    return read_file(config, path, given, text, false);
}

static bool given[KEY_COUNT];

int config_parse(struct config *config, int argc, char **argv)
{
    memset(given, 0, sizeof given);
    int rc = defaults(config);
    if (rc == 0)
        rc = parse_options(config, argc, argv, given);
    if (rc == 0)
        rc = read_config_file(config, config, given, file_text);
    if (rc == 0)
        rc = finish(config);
    return rc;
}

/* The whole file is read and checked before anything of it counts. */
static void take_over(struct config *config, char **text)
{
    for (int i = 0; i < KEY_COUNT; i++) {
        const char *now = text[i] ? text[i] : keys[i].initial, *then = file_text[i] ? file_text[i] : keys[i].initial;
        if (given[i])
            continue;
        char quoted[256];
        if (keys[i].reloads)
            parse_value(config, &keys[i], now);
        else if (strcmp(now, then) != 0)
            log_event(LOG_LEVEL_WARNING, "reload", "key=%s value=\"%s\" result=unchanged why=\"it cannot change while the "
                      "heap lives: stop, then start\"", keys[i].name, log_quote(quoted, sizeof quoted, now));
    }
}

/* The numbers as they would be: what the file says over what cannot change, options over the file. */
static int check_reloaded(const struct config *config, const struct config *fresh, char **text)
{
    struct config would = *config;
    (void)fresh;
    for (int i = 0; i < KEY_COUNT; i++)
        if (!given[i] && keys[i].reloads && (keys[i].kind == SIZE || keys[i].kind == COUNT || keys[i].kind == MS))
            parse_value(&would, &keys[i], text[i] ? text[i] : keys[i].initial);
    return check_numbers(&would);
}

int config_reload(struct config *config)
{
    struct config fresh;
    char *text[KEY_COUNT] = {NULL};
    reloading = true;
    complaint[0] = 0;
    for (int i = 0; i < KEY_COUNT; i++)
        given_at[i].line = 0;
    int rc = defaults(&fresh);
    if (rc == 0)
        rc = read_config_file(config, &fresh, given, text);
    if (rc == 0 && log_level_parse(fresh.log_level) < 0)
        rc = refuse("log-level", fresh.log_level, "is none of error, warning, info, debug");
    if (rc == 0)
        rc = check_reloaded(config, &fresh, text);
    if (rc == 0)
        take_over(config, text);
    reloading = false;
    for (int i = 0; i < KEY_COUNT; i++)
        free(text[i]);
    config_free(&fresh);
    return rc;
}

void config_free(struct config *config)
{
    for (int i = 0; i < KEY_COUNT; i++)
        if (keys[i].kind == STRING) {
            char **at = (char **)(void *)((char *)config + keys[i].at);
            free(*at);
            *at = NULL;
        }
    free(config->config);
    config->config = NULL;
}
