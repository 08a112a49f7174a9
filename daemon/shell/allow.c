/* Who may attach: root, the daemon's own user, and whom allow-users and allow-groups name. A process's groups are those
 * that it had when it connected (SO_PEERGROUPS), however many, and not those that a directory of users says.
 *
 * A number of a user that has none in the daemon's user namespace is shown as the overflow number (65534), which all such
 * users share, and which says nothing: neither that it is the daemon's own user, though that one be shown so too, nor that
 * it is nobody. Only an administrator who writes it down admits them. */
#include "daemon/shell/connection.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#ifndef SO_PEERGROUPS
#define SO_PEERGROUPS 59
#endif

static uint32_t overflow_number(bool user)
{
    unsigned number = 65534;
    FILE *f = fopen(user ? "/proc/sys/kernel/overflowuid" : "/proc/sys/kernel/overflowgid", "re");
    if (f && fscanf(f, "%u", &number) != 1)
        number = 65534;
    if (f)
        fclose(f);
    return number;
}

/* Does the number stand for all that have none here? If it is mapped it is somebody's. What cannot be read is not. */
static bool is_unmapped(bool user, uint32_t id)
{
    unsigned inside, outside, count;
    bool mapped = false;
    if (id != overflow_number(user))
        return false;
    FILE *f = fopen(user ? "/proc/self/uid_map" : "/proc/self/gid_map", "re");
    while (f && !mapped && fscanf(f, "%u %u %u", &inside, &outside, &count) == 3)
        mapped = id >= inside && id - inside < count;
    if (f)
        fclose(f);
    return !mapped;
}

static bool is_listed(const uint32_t *ids, uint32_t count, uint32_t id)
{
    for (uint32_t i = 0; i < count; i++)
        if (ids[i] == id)
            return true;
    return false;
}

static bool is_group_allowed(const struct config *config, uint32_t gid)
{
    return is_listed(config->allow_gid, config->allow_gid_count, gid) && !is_unmapped(false, gid);
}

/* The groups beside the one of SO_PEERCRED. */
static bool has_allowed_group(const struct config *config, int fd)
{
    gid_t few[64], *groups = few, *more = NULL;
    socklen_t bytes = sizeof few;
    bool found = false;
    int rc;
    while ((rc = getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups, &bytes)) < 0 && errno == ERANGE) {
        groups = realloc(more, bytes); /* as many as there are, says the kernel */
        if (!groups)
            break;
        more = groups;
    }
    for (socklen_t i = 0; rc == 0 && i < bytes / sizeof *groups && !found; i++)
        found = is_group_allowed(config, groups[i]);
    free(more);
    return found;
}

const char *allow_refuses(const struct config *config, const struct connection *c)
{
    if (config->allow_any || is_listed(config->allow_uid, config->allow_uid_count, c->uid))
        return NULL;
    if (is_unmapped(true, c->uid))
        return "this user is not allowed: it has no number in the daemon's user namespace; the number that stands for such "
               "users in allow-users would admit them all";
    if (c->uid == 0 || c->uid == geteuid())
        return NULL;
    if (config->socket_decides && !config->allow_uid_count && !config->allow_gid_count)
        return NULL;
    if (config->allow_gid_count && (is_group_allowed(config, c->gid) || has_allowed_group(config, c->fd)))
        return NULL;
    return "this user is not allowed: see allow-users and allow-groups in arenad.conf(5)";
}
