#include "tests/crash/step.h"

#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static int wait_for(pid_t pid)
{
    int status;
    while (waitpid(pid, &status, __WALL) < 0)
        if (errno != EINTR)
            return -1;
    return status;
}

const char *step_place(uint64_t ip)
{
    static char text[200];
    Dl_info info;
    void *address = (void *)(uintptr_t)ip;
    if (!dladdr(address, &info) || !info.dli_fname)
        snprintf(text, sizeof text, "%#llx", (unsigned long long)ip);
    else if (info.dli_sname)
        snprintf(text, sizeof text, "%s+%#llx (%s+%#llx)", info.dli_sname,
                 (unsigned long long)(ip - (uint64_t)(uintptr_t)info.dli_saddr), info.dli_fname,
                 (unsigned long long)(ip - (uint64_t)(uintptr_t)info.dli_fbase));
    else
        snprintf(text, sizeof text, "%s+%#llx", info.dli_fname,
                 (unsigned long long)(ip - (uint64_t)(uintptr_t)info.dli_fbase));
    return text;
}

#if defined(__x86_64__)

/* A forked process has the tracer's code where the tracer has it. */
static const uint8_t *code_at(uint64_t ip)
{
    return (const uint8_t *)(uintptr_t)ip;
}

static void look(struct stepper *s)
{
    struct user_regs_struct regs;
    if (ptrace(PTRACE_GETREGS, s->pid, NULL, &regs) == 0)
        s->ip = regs.rip;
}

static void note_end(struct stepper *s, int status)
{
    s->status = status;
    if (s->process == s->pid)
        s->process = 0;
    s->pid = 0;
}

struct body {
    void (*fn)(void *);
    void *argument;
};

static void *traced(void *argument)
{
    const struct body *body = argument;
    if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) < 0)
        _exit(126);
    body->fn(body->argument);
    return NULL;
}

static bool launch(struct stepper *s, const struct body *body, bool in_thread)
{
    cpu_set_t here;
    *s = (struct stepper){0};
    CPU_ZERO(&here);
    CPU_SET(sched_getcpu(), &here);
    fflush(NULL);
    s->pid = fork();
    if (s->pid == 0) {
        pthread_t thread;
        sched_setaffinity(0, sizeof here, &here);
        if (in_thread) {
            pthread_create(&thread, NULL, traced, (void *)(uintptr_t)body);
            pthread_join(thread, NULL);
        } else
            traced((void *)(uintptr_t)body);
        _exit(0);
    }
    s->process = s->pid;
    if (s->pid < 0) {
        s->pid = 0;
        return false;
    }
    sched_setaffinity(0, sizeof here, &here);
    int status;
    if (in_thread) /* which thread it is, its first stop tells */
        s->pid = waitpid(-1, &status, __WALL);
    else
        status = wait_for(s->pid);
    while (WIFSTOPPED(status) && WSTOPSIG(status) != SIGTRAP) {
        ptrace(PTRACE_CONT, s->pid, NULL, (void *)(uintptr_t)WSTOPSIG(status));
        status = wait_for(s->pid);
    }
    if (!WIFSTOPPED(status)) {
        note_end(s, status);
        return false;
    }
    ptrace(PTRACE_SETOPTIONS, s->pid, NULL, (void *)(uintptr_t)PTRACE_O_EXITKILL);
    look(s);
    return true;
}

bool step_start(struct stepper *s, void (*fn)(void *), void *argument)
{
    return launch(s, &(struct body){fn, argument}, false);
}

bool step_start_thread(struct stepper *s, void (*fn)(void *), void *argument)
{
    return launch(s, &(struct body){fn, argument}, true);
}

bool step_at_system_call(const struct stepper *s)
{
    const uint8_t *code = code_at(s->ip);
    return code[0] == 0x0f && code[1] == 0x05;
}

enum step step_one(struct stepper *s)
{
    bool system_call = step_at_system_call(s);
    if (*code_at(s->ip) == 0xcc)
        return STEP_MARKED;
    int signal = 0;
    for (;;) {
        if (ptrace(PTRACE_SINGLESTEP, s->pid, NULL, (void *)(uintptr_t)signal) < 0) {
            note_end(s, wait_for(s->pid));
            return STEP_GONE;
        }
        int status = wait_for(s->pid);
        if (!WIFSTOPPED(status)) {
            note_end(s, status);
            return STEP_GONE;
        }
        if (WSTOPSIG(status) == SIGTRAP)
            break;
        signal = WSTOPSIG(status); /* its own: passed on */
    }
    s->steps++;
    look(s);
    return system_call ? STEP_SYSTEM_CALL : STEP_PLAIN;
}

#else

bool step_start(struct stepper *s, void (*fn)(void *), void *argument)
{
    return (void)s, (void)fn, (void)argument, false;
}
bool step_start_thread(struct stepper *s, void (*fn)(void *), void *argument)
{
    return step_start(s, fn, argument);
}
bool step_at_system_call(const struct stepper *s)
{
    return (void)s, false;
}
enum step step_one(struct stepper *s)
{
    return (void)s, STEP_GONE;
}

#endif

static void wait_end(struct stepper *s, pid_t pid)
{
    int status = wait_for(pid);
    while (status >= 0 && WIFSTOPPED(status)) /* a stop that was on its way */
        status = wait_for(pid);
    s->status = status;
}

void step_kill(struct stepper *s)
{
    if (s->process <= 0)
        return;
    kill(s->process, SIGKILL);
    if (s->pid && s->pid != s->process)
        wait_end(s, s->pid);
    wait_end(s, s->process);
    s->pid = s->process = 0;
}

static void try_it(void *unused)
{
    (void)unused;
    STEP_MARK();
    STEP_MARK();
}

/* NULL, or why this machine does not allow it. */
static const char *refused(void)
{
#if !defined(__x86_64__)
    return "single steps are decoded for x86-64 only";
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    return "not under a sanitizer: its instructions are not the product's";
#else
    struct stepper s;
    if (!step_start(&s, try_it, NULL))
        return "ptrace is refused here";
    enum step step = step_one(&s);
    step_kill(&s);
    return step == STEP_GONE ? "single steps are refused here" : NULL;
#endif
}

bool step_all;
uint64_t step_seed;

int step_main(const char *group, struct CMUnitTest *tests, unsigned count, CMFixtureFunction setup,
              CMFixtureFunction teardown)
{
    const char *only = getenv("ONLY"), *crash = getenv("CRASH"), *why = refused();
    unsigned n = 0;
    if (why) {
        printf("skipped: %s\n", why);
        return 77;
    }
    for (unsigned i = 0; i < count; i++)
        if (!only || i == count - 1 || strstr(tests[i].name, only))
            tests[n++] = tests[i];
    step_all = crash && strcmp(crash, "all") == 0;
    step_seed = seed_get();
    return _cmocka_run_group_tests(group, tests, n, setup, teardown);
}
