#include "daemon/config.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <ini.h>
#include <pwd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "daemon/log.h"

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

int size_parse(const char *text, uint64_t *ret)
{
    char *end;
    errno = 0;
    if (!isdigit((unsigned char)*text))
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
        } else if (errno || id >= UINT32_MAX) /* the last one is the system's word for none */
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
        if (key->kind == COUNT && key->at != offsetof(struct config, map_roots)) {
            if (value > UINT32_MAX)
                return "is too large";
            *(uint32_t *)(void *)at = (uint32_t)value;
        } else
            *(uint64_t *)(void *)at = value;
        return NULL;
    case ADDRESS:
        value = *text ? strtoull(text, &end, 0) : 0;
        if (*text && (errno || *end || value % (2 << 20)))
            return "is not an address that is a multiple of 2M";
        *(uint64_t *)(void *)at = value;
        return NULL;
    case OCTAL:
        value = strtoull(text, &end, 8);
        if (!*text || *end || value > 0777)
            return "is not an octal mode such as 0660";
        *(uint32_t *)(void *)at = (uint32_t)value;
        return NULL;
    default:
        return "is unknown";
    }
}

static const char *parse_value(struct config *config, const struct key *key, const char *text)
{
    char *at = (char *)config + key->at;
    switch (key->kind) {
    case STRING: {
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

struct reading {
    struct config *config;
    const bool *given;  /* by key: an option has it already */
    char **text;
    char why[256];
};

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
    else if (r->given[key - keys])
        return 1;
    else
        why = parse_value(r->config, key, value);
    if (!why) {
        free(r->text[key - keys]);
        r->text[key - keys] = strdup(value);
        return 1;
    }
    snprintf(r->why, sizeof r->why, "%s%s%s %s", name, *value ? " = " : "", value, why);
    return 0;
}

static int read_file(struct config *config, const char *path, const bool *given, char **text, bool must)
{
    struct reading r = {.config = config, .given = given, .text = text};
    FILE *f = fopen(path, "re");
    if (!f) {
        if (errno == ENOENT && !must)
            return 0;
        fprintf(stderr, "arenad: cannot read %s: %s\n", path, strerror(errno));
        return -EINVAL;
    }
    errno = 0;
    int line = ini_parse_file(f, on_key, &r), error = ferror(f) ? (errno ? errno : EIO) : 0;
    fclose(f);
    if (error) { /* a directory can be opened, and not be read */
        fprintf(stderr, "arenad: cannot read %s: %s\n", path, strerror(error));
        return -EINVAL;
    }
    if (line == 0)
        return 0;
    fprintf(stderr, "arenad: %s:%d: %s\n", path, line, r.why[0] ? r.why : "not a line 'key = value'");
    return -EINVAL;
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
        if (option == ':' || option == '?') {
            fprintf(stderr, "arenad: %s %s; see arenad --help\n", argv[optind - 1],
                    option == ':' ? "needs a value" : "is not an option");
            return -EINVAL;
        }
        if (option == OPT_HELP || option == OPT_VERSION) {
            if (option == OPT_HELP)
                usage();
            else
                printf("arenad %s\n", ARENA_VERSION);
            return 1;
        }
        if (option == OPT_CONFIG) {
            free(config->config);
            config->config = strdup(optarg);
        } else if (option == OPT_READY_FD) {
            char *end;
            long fd = strtol(optarg, &end, 10);
            if (!isdigit((unsigned char)*optarg) || *end || fd > 65535 || fcntl((int)fd, F_GETFD) < 0) {
                fprintf(stderr, "arenad: --ready-fd %s is not an open descriptor's number\n", optarg);
                return -EINVAL;
            }
            config->ready_fd = (int)fd;
            fcntl(config->ready_fd, F_SETFD, FD_CLOEXEC);
        } else if (option == OPT_FOREGROUND)
            config->foreground = true;
        else if (option == OPT_RESET)
            config->reset = true;
        else {
            const char *value = optarg ? optarg : "", *why = parse_value(config, &keys[option], value);
            if (why) {
                fprintf(stderr, "arenad: --%s%s%s %s\n", keys[option].name, *value ? " " : "", value, why);
                return -EINVAL;
            }
            given[option] = true;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "arenad: %s: no arguments are wanted; see arenad --help\n", argv[optind]);
        return -EINVAL;
    }
    return 0;
}

/* ---- checks and defaults ------------------------------------------------------------------------------------------------------------ */

static int refuse(const char *what, const char *value, const char *why)
{
    fprintf(stderr, "arenad: %s %s %s\n", what, value, why);
    return -EINVAL;
}

static int default_socket(struct config *config)
{
    const char *dir = secure_getenv("XDG_RUNTIME_DIR");
    if (config->socket[0])
        return 0;
    if (!(dir && *dir) && geteuid() != 0 && !secure_getenv("LISTEN_FDS")) { /* a handed socket has its path */
        fprintf(stderr, "arenad: XDG_RUNTIME_DIR is not set: say where to listen with --socket PATH\n");
        return -EINVAL;
    }
    free(config->socket);
    if (asprintf(&config->socket, "%s/arenad/%s.sock", dir && *dir ? dir : "/run", config->name) < 0)
        return -ENOMEM;
    return 0;
}

/* 0x550000000000 to 0x555555554000, where PIE programs begin, was free under every sanitizer and valgrind: 341 GiB. It is
 * divided into places of the heap's size; the heap "default" has the first, another one is chosen by its name. */
static uint64_t default_base(const char *name, uint64_t max)
{
    const uint64_t from = 0x550000000000ULL, to = 0x555555554000ULL;
    uint64_t size = 1ULL << 30, places;
    uint32_t hash = 2166136261u;
    while (size < max)
        size *= 2;
    places = (to - from) / size;
    if (places == 0)
        return 0x600000000000ULL; /* larger than that range: free in ordinary processes, not under sanitizers */
    if (strcmp(name, "default") == 0 || places == 1)
        return from;
    for (const char *p = name; *p; p++)
        hash = (hash ^ (unsigned char)*p) * 16777619u;
    return from + (1 + hash % (places - 1)) * size;
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
    if (config->socket_group[0] && !getgrnam(config->socket_group))
        return refuse("socket-group", config->socket_group, "names a group that is not there");
    if (config->base == 0)
        config->base = default_base(config->name, config->max);
    if (log_level_parse(config->log_level) < 0)
        return refuse("log-level", config->log_level, "is none of error, warning, info, debug");
    return default_socket(config);
}

static int defaults(struct config *config)
{
    memset(config, 0, sizeof *config);
    config->ready_fd = -1;
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

int config_reload(struct config *config)
{
    struct config fresh;
    char *text[KEY_COUNT] = {NULL};
    int rc = defaults(&fresh);
    if (rc == 0)
        rc = read_config_file(config, &fresh, given, text);
    if (rc == 0 && log_level_parse(fresh.log_level) < 0)
        rc = refuse("log-level", fresh.log_level, "is none of error, warning, info, debug");
    if (rc == 0)
        take_over(config, text);
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
