#!/bin/bash
# arena.h and arena_inline.h compile alone as C11 and as C++; a program of the second needs a library of its layout; README's first program compiles as shown and does what it says; the table of
# size classes is what its generator writes.
set -eu
. tests/scripts/daemon.bash
echo '#include <arena.h>' >"$work/alone.c"
${CC:-cc} -std=c11 -pedantic -Wall -Wextra -Werror -Iclient -c -o "$work/alone.o" "$work/alone.c"
if command -v "${CXX:-c++}" >/dev/null; then
    cp "$work/alone.c" "$work/alone.cc"
    ${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -Werror -Iclient -c -o "$work/alone.o" "$work/alone.cc"
fi
cat >"$work/inline.c" <<'C'
#include <arena_inline.h>
int main(void)
{
    arena_t *a;
    if (arena_open(&a, 0, 0) != 0)
        return 1;
    char *p = (char *)arena_alloc(a, 100), *q = (char *)(arena_alloc)(a, 100);
    *p = *q = 1;
    arena_free(a, p);
    (arena_free)(a, q);
    return arena_alloc(a, 100) == q ? arena_close(a) : 2;
}
C
${CC:-cc} -std=c11 -pedantic -Wall -Wextra -Werror -Iclient -O2 -o "$work/inline" "$work/inline.c" -L"$build" -larena \
    -Wl,-rpath,"$PWD/$build"
if command -v "${CXX:-c++}" >/dev/null; then
    cp "$work/inline.c" "$work/inline.cc"
    ${CXX:-c++} -std=c++11 -pedantic -Wall -Wextra -Werror -Iclient -c -o "$work/inline.o" "$work/inline.cc"
fi
if [ "$(uname -m)" = x86_64 ]; then
    nm -D --undefined-only "$work/inline" | grep -q ' arena_inline_layout_2\(@\|$\)'
fi
awk '/^```c$/ && !done { on = 1; next } /^```$/ && on { on = 0; done = 1 } on' README.md >"$work/first.c"
cmp "$work/first.c" client/examples/first.c
${CC:-cc} -std=gnu11 -Wall -Wextra -Werror -Iclient -o "$work/first" "$work/first.c" -L"$build" -larena -Wl,-rpath,"$PWD/$build"
daemon_start --socket "$work/s" --max 64M
export ARENA_SOCKET=$work/s
[ "$("$work/first")" = "" ]
[ "$("$work/first")" = "hello from the process before" ]
"$work/inline"
[ "$("$build/examples/mutex")" = "3501 counted, 1 repaired" ]
"$build/arenactl" check >/dev/null
${CC:-cc} -O1 -o "$work/mk" shm/gen/mksizeclasses.c
"$work/mk" | cmp - shm/sizeclass_table.h
