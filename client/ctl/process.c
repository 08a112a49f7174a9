/* What /proc says of a process now. Its pid may belong to another by now, or be of another pid
 * namespace: the start time that the daemon noted tells, and nothing is believed of one that does
 * not fit. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "client/ctl/ctl.h"

static ssize_t read_proc(uint64_t pid, const char *name, char *text, size_t capacity)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%llu/%s", (unsigned long long)pid, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t n = read(fd, text, capacity - 1);
    close(fd);
    text[n > 0 ? n : 0] = 0;
    return n;
}

/* State (field 3) and start time (22); false: no such process, or another one. */
static bool is_there(uint64_t pid, uint64_t start_time, char *ret_state)
{
    char text[1024];
    unsigned long long value = 0;
    if (read_proc(pid, "stat", text, sizeof text) <= 0)
        return false;
    const char *p = strrchr(text, ')'); /* the command may hold anything */
    if (!p || p[1] != ' ' || !p[2])
        return false;
    *ret_state = p[2];
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p && sscanf(p, " %llu", &value) == 1 && (uint32_t)value == start_time; /* the lower half is what was noted */
}

const char *process_state(uint64_t pid, uint64_t start_time)
{
    char state;
    if (!is_there(pid, start_time, &state))
        return "unseen";
    switch (state) {
    case 'R':
        return "running";
    case 'S':
    case 'I':
        return "sleeping";
    case 'D':
        return "waiting";
    case 'T':
    case 't':
        return "stopped";
    case 'Z':
    case 'X':
        return "dead";
    default:
        return "alive";
    }
}

const char *process_command(uint64_t pid, uint64_t start_time, const char *otherwise)
{
    char text[1024], state;
    if (!is_there(pid, start_time, &state))
        return clean(otherwise, false);
    ssize_t n = read_proc(pid, "cmdline", text, sizeof text);
    if (n <= 0) /* a kernel thread, a zombie */
        return clean(otherwise, false);
    for (ssize_t i = 0; i + 1 < n; i++)
        if (!text[i])
            text[i] = ' ';
    return clean(text, false);
}
