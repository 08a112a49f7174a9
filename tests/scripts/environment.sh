#!/bin/bash
# The environment is read in one place of the library and of arenactl, and never on behalf of who may not be believed.
set -u
faults=$(
    grep -nE '\b(secure_)?getenv *\(' client/*.c client/*.h client/ctl/*.[ch] | grep -v '^client/environ\.c:'
    grep -nE '(^|[^_])\bgetenv *\(' client/environ.c daemon/*.c shm/*.[ch] proto/*.[ch]
    grep -nE '\bextern char \*\*environ\b|\b__environ\b' client/*.c daemon/*.c)
[ -n "$faults" ] || exit 0
echo "$faults"
echo "the library reads the environment by client/environ.h, and the daemon by secure_getenv()"
exit 1
