#!/bin/bash
# arena.h compiles alone as C11 and as C++; README's first program compiles as shown and does what it says; the table of
# size classes is what its generator writes.
set -eu
build=${ARENA_BUILD:-build}
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-readme-XXXXXX")
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; rm -rf "$work"' EXIT
echo '#include <arena.h>' >"$work/alone.c"
cc -std=c11 -pedantic -Wall -Wextra -Werror -Iclient -c -o "$work/alone.o" "$work/alone.c"
if command -v c++ >/dev/null; then
    cp "$work/alone.c" "$work/alone.cc"
    c++ -std=c++11 -pedantic -Wall -Wextra -Werror -Iclient -c -o "$work/alone.o" "$work/alone.cc"
fi
awk '/^```c$/ && !done { on = 1; next } /^```$/ && on { on = 0; done = 1 } on' README.md >"$work/first.c"
cmp "$work/first.c" client/examples/first.c
cc -std=gnu11 -Wall -Wextra -Werror -Iclient -o "$work/first" "$work/first.c" -L"$build" -larena -Wl,-rpath,"$PWD/$build"
"$build/arenad" --foreground --socket "$work/s" --max 64M 2>/dev/null &
daemon=$!
export ARENA_SOCKET=$work/s
until "$build/arenactl" stat >/dev/null 2>&1; do kill -0 "$daemon"; done
[ "$("$work/first")" = "" ]
[ "$("$work/first")" = "hello from the process before" ]
[ "$("$build/examples/mutex")" = "3501 counted, 1 repaired" ]
"$build/arenactl" check >/dev/null
cc -O1 -o "$work/mk" shm/gen/mksizeclasses.c
"$work/mk" | cmp - shm/sizeclass_table.h
