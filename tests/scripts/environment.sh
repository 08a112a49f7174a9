#!/bin/bash
# The environment is read in one place of the library and of arenactl, and never on behalf of who may not be believed.
set -u
faults=$(
    grep -nE '\b(secure_)?getenv *\(' client/*.h client/*/*.[ch] client/ctl/*.[ch] | grep -v '^client/link/environ\.c:'
    grep -nE '(^|[^_])\bgetenv *\(' client/link/environ.c daemon/*.c daemon/*/*.[ch] shm/*.[ch] proto/*.[ch]
    grep -nE '\bextern char \*\*environ\b|\b__environ\b' client/*/*.c daemon/*.c daemon/*/*.c)
[ -n "$faults" ] || exit 0
echo "$faults"
echo "the library reads the environment by client/link/environ.h, and the daemon by secure_getenv()"
exit 1
