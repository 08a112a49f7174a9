/* What the environment asks of the library. Nothing else in client/ reads it.
 *
 * A program that runs with more rights than whoever started it - setuid, setgid, capabilities of its file - is not told by
 * the environment: every variable counts as unset. So does one that is empty.
 *
 * A variable that cannot be used counts as unset too, and `complaint` names it, what it says and what it could say.
 * Complaints of one look are one line, without control characters. Memory is the caller's; no locks. */
#ifndef CLIENT_ENVIRON_H
#define CLIENT_ENVIRON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Words of $ARENA_DEBUG. A word that is added stands in environ.c's table too. */
enum { DEBUG_STACK = 1, DEBUG_ESCAPE = 2, DEBUG_PINS = 4, DEBUG_CORE = 8 };

/* What $ARENA_STACK_MAX may say, and what is without it; what ARENA_PROFILE=on means: one allocation in so many. */
#define STACK_FIRST 2048 /* bytes */
#define STACK_MAX_MAX (1ULL << 39)
#define STACK_MAX_FIRST (1ULL << 30)
#define PROFILE_RATE 65536

struct environment {
    unsigned debug;          /* DEBUG_*, of $ARENA_DEBUG */
    uint64_t stack_max;      /* bytes, of $ARENA_STACK_MAX; 0: not said */
    uint64_t profile_rate;   /* of $ARENA_PROFILE; 0: nothing is sampled */
    const char *profile_dir; /* $ARENA_PROFILE_DIR, else $XDG_RUNTIME_DIR, else /tmp; the environment's memory */
    char complaint[512];     /* "": none */
};

/* ret->complaint is kept, and added to. */
void environ_read(struct environment *ret);

/* The socket: `given`, else $ARENA_SOCKET, else $XDG_RUNTIME_DIR/arenad/default.sock if it is there, else the system's.
 * One that is too long is named in ret->complaint and returned all the same: connecting says -ENAMETOOLONG. */
const char *environ_socket(struct environment *ret, const char *given, char *buf, size_t capacity);

/* Another's variable, such as PATH. NULL: unset, empty, or not to be believed. */
const char *environ_get(const char *name);

#endif
