#!/bin/bash
# The example of arena_gc(3) compiles without a warning and does what it says.
set -u
. tests/scripts/daemon.bash
awk '/^# / { on = $0 == "# EXAMPLE"; next } on && /^```/ { in_code = !in_code; next } on && in_code' \
    packaging/man/arena_gc.3.scd >"$work/example.c"
"${CC:-cc}" -std=gnu11 -Wall -Wextra -Werror -Iclient -o "$work/example" "$work/example.c" -L"$build" -larena \
    -Wl,-rpath,"$PWD/$build" -pthread || exit 1
daemon_start --keeper=no --socket "$work/s" --max 64M
wanted='took 3, freed it
took 2, lost it
collected 1
took 1'
got=$(ARENA_SOCKET=$work/s "$work/example") || { echo "the example ended with $?"; exit 1; }
[ "$got" = "$wanted" ] || { echo "it said: $got"; exit 1; }
# and it keeps the rules that ARENA_DEBUG=pins looks at; what a lock keeps is not to be seen, and is pinned all the same
said=$(ARENA_DEBUG=pins ARENA_SOCKET=$work/s "$work/example" 2>&1 >/dev/null)
[ -z "$said" ] || { echo "ARENA_DEBUG=pins said: $said"; exit 1; }
