/* What the daemon is told: options, a config file (INI, the same names), the environment of a service manager. The table
 * CONFIG_KEYS is all of it; arenad(8) and arenad.conf(5) are checked against it. */
#ifndef DAEMON_CONFIG_H
#define DAEMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/core/core.h"

enum { CONFIG_UIDS_MAX = 64 };

struct config {
    char *name, *config, *socket, *socket_group, *backing, *log_level, *log_file, *pid_file;
    uint32_t socket_mode;
    int64_t socket_gid; /* -1: none */
    int ready_fd; /* -1: none */
    bool foreground, keeper, pidfd_fallback, reset;
    uint64_t max, base, reserve, memory_reserve, map_roots;
    uint64_t return_after_ms, hello_timeout_ms, trim_timeout_ms;
    struct limits limits;
    uint32_t allow_uid[CONFIG_UIDS_MAX], allow_gid[CONFIG_UIDS_MAX];
    uint32_t allow_uid_count, allow_gid_count;
    bool allow_any;
    bool base_by_name; /* base was not given: another place does as well */
    bool socket_decides; /* a service manager's socket: with no allow list its mode says who may attach */
};

/* KEY(name, kind, member, changes at a reload, default as text, what it is).
 * Kinds: STRING, SIZE (bytes, with K, M, G, T), COUNT, MS (milliseconds), BOOL, OCTAL, ADDRESS, USERS, GROUPS. */
#define CONFIG_KEYS(KEY)                                                                                               \
    KEY("name", STRING, name, 0, "default", "name of the heap")                                                        \
    KEY("socket", STRING, socket, 0, "", "path to listen on")                                                          \
    KEY("socket-mode", OCTAL, socket_mode, 0, "0600", "mode of the socket")                                            \
    KEY("socket-group", STRING, socket_group, 0, "", "group of the socket")                                            \
    KEY("max", SIZE, max, 0, "", "bytes that the heap may grow to; default: half the RAM")                             \
    KEY("backing", STRING, backing, 0, "memfd", "memfd, or a directory for the regions' files")                        \
    KEY("base", ADDRESS, base, 0, "", "address that every process maps the heap at; default: by name")                 \
    KEY("keeper", BOOL, keeper, 0, "yes", "with memfd and no service manager: a parent keeps the regions")             \
    KEY("root-slots", COUNT, map_roots, 0, "131072", "slots of the root table")                                        \
    KEY("reserve", SIZE, reserve, 1, "1M", "free memory that is kept and not returned")                                \
    KEY("return-after", MS, return_after_ms, 1, "500", "how long free memory is kept before it is returned")           \
    KEY("memory-reserve", SIZE, memory_reserve, 1, "64M", "of the machine's and the cgroup's memory, left alone")      \
    KEY("hello-timeout", MS, hello_timeout_ms, 1, "10000", "how long one may say nothing, or read nothing")            \
    KEY("trim-timeout", MS, trim_timeout_ms, 1, "100", "how long a full heap waits for clients to trim")               \
    KEY("allow-users", USERS, allow_uid, 1, "", "users that may attach, names or numbers; * for any")                  \
    KEY("allow-groups", GROUPS, allow_gid, 1, "", "groups whose members may attach")                                   \
    KEY("limit-client-bytes", SIZE, limits.client_bytes, 1, "0", "spans charged to one client; 0: no limit")           \
    KEY("limit-user-bytes", SIZE, limits.uid_bytes, 1, "0", "spans charged to one user; 0: no limit")                  \
    KEY("limit-client-spans", COUNT, limits.client_spans, 1, "0", "number of spans charged to one client")             \
    KEY("limit-user-spans", COUNT, limits.uid_spans, 1, "0", "number of spans charged to one user")                    \
    KEY("limit-clients", COUNT, limits.clients, 1, "8192", "clients")                                                  \
    KEY("limit-user-clients", COUNT, limits.uid_clients, 1, "4096", "clients of one user")                             \
    KEY("limit-connections", COUNT, limits.connections, 1, "0", "connections; 0: limit-clients and 64")               \
    KEY("limit-user-connections", COUNT, limits.uid_connections, 1, "0", "connections of one user; 0: its clients and 32")   \
    KEY("limit-roots", COUNT, limits.roots, 1, "65536", "named roots")                                                 \
    KEY("limit-user-roots", COUNT, limits.uid_roots, 1, "65536", "named roots made by one user")                       \
    KEY("limit-client-transactions", COUNT, limits.client_transactions, 1, "1024", "tags for transactions of one client") \
    KEY("limit-user-transactions", COUNT, limits.uid_transactions, 1, "8192", "tags for transactions of one user")       \
    KEY("limit-transactions", COUNT, limits.transactions, 1, "24576", "tags for transactions")                         \
    KEY("log-level", STRING, log_level, 1, "info", "error, warning, info or debug")                                    \
    KEY("log-file", STRING, log_file, 0, "", "file that the log is added to; opened again by a reload")                 \
    KEY("pid-file", STRING, pid_file, 0, "", "file for the pid that is to be signalled")                                \
    KEY("pidfd-fallback", BOOL, pidfd_fallback, 0, "no", "for tests: do not use SO_PEERPIDFD")

/* Options only: --config FILE, --foreground, --ready-fd N, --reset, --help, --version. */

/* Reads options, then the config file that they name or the default one, options over file. 0, 1: it printed help or the
 * version, or a negative errno after one line on standard error, with file and line number or the option. */
int config_parse(struct config *config, int argc, char **argv);

/* Reads the file again for what may change; the rest that differs is named in the log, and so is why nothing is taken over:
 * the values in force are kept. */
int config_reload(struct config *config);

/* The last such line; "": there was none. */
const char *config_complaint(void);
void config_free(struct config *config);

/* The nth place that a heap of that name may be mapped at: the first is chosen by the name. 0: there are no more. */
uint64_t config_base_place(const char *name, uint64_t max, uint64_t nth);

/* "64M" -> bytes: 0 or -EINVAL */
int size_parse(const char *text, uint64_t *ret);

#endif
