#!/bin/bash
# gdb's commands for a heap show, in a process that lives and in its core file, what the process has made: objects by address
# and by reference, spans, roots, owners; and the daemon has the same heap. They say what arenactl inspect says.
set -eu
cd "$(dirname "$0")/../.."
command -v gdb >/dev/null || { echo "skipped: there is no gdb"; exit 77; }
. tests/scripts/daemon.bash
commands=$build/arena-gdb.py
[ -e "$commands" ] || { echo "skipped: there is no $commands: make gdb"; exit 77; }
gdb -nx -batch -ex 'python print(1)' 2>/dev/null | grep -qx 1 || { echo "skipped: this gdb has no Python"; exit 77; }
fault() { echo "FAULT: $*"; exit 1; }

cat >"$work/program.c" <<'C'
#include <arena.h>
#include <stdlib.h>
#include <unistd.h>
arena_t *heap;
char *published, *owned, *large, *in_tx;
arena_ref_t reference;
void ready(void) { write(1, "r\n", 2); }
int main(void)
{
    if (arena_open(&heap, NULL, NULL) != 0)
        return 1;
    published = arena_alloc(heap, 100);
    owned = arena_alloc(heap, 1000);
    large = arena_alloc(heap, 40000);
    arena_publish(heap, published);
    reference = arena_ref(heap, published);
    arena_root_set(heap, "a root", reference);
    arena_tx_begin(heap);
    in_tx = arena_alloc(heap, 500);
    ready();
    for (;;)
        pause();
}
C
${CC:-cc} -g -o "$work/program" "$work/program.c" -Iclient -L"$build" -larena -Wl,-rpath,"$PWD/$build"
daemon_start --socket "$work/s" --max 4M --keeper=no
mkfifo "$work/says"
( cd "$work" && ulimit -c unlimited 2>/dev/null; ARENA_SOCKET=$work/s ARENA_DEBUG=core exec ./program >"$work/says" ) &
program=$!
other=
trap 'kill -9 $program $other 2>/dev/null || true; [ -z "$daemon_pid" ] || kill "$daemon_pid" 2>/dev/null; rm -rf "$work"' EXIT
read -r word <"$work/says"
[ "$word" = r ] || fault "the program has not opened the heap"

cat >"$work/look" <<GDB
source $commands
arena heaps
arena roots
arena word published
arena word reference
arena word owned + 7
arena word large + 30000
arena word in_tx
arena span owned
arena word 5
print reference
print \$arena_owner(published)
GDB
look() { # NAME GDB'S ARGUMENTS...
    local name=$1
    shift
    gdb -nx -batch -iex 'set debuginfod enabled off' "$@" -x "$work/look" >"$work/$name" 2>&1 || { cat "$work/$name"; fault "gdb, $name"; }
}
has() { grep -q "$2" "$work/$1" || { cat "$work/$1"; fault "$1: no '$2'"; }; }

look live -p "$program"
ls /proc/$program >/dev/null || fault "gdb has ended the program"
# the kernel's: gdb's own gcore reads addresses that the library has only reserved
kill -ABRT $program
wait $program 2>/dev/null || true
dead=$program program=
core=$(find "$work" -maxdepth 1 -name 'core*' -type f | head -n 1)
views=live
[ -z "$core" ] || { views='live dead'; look dead "$work/program" "$core"; }
for what in $views; do # the pid is in the heap
    has $what '^heap [0-9a-f]\{32\}: 4 MiB at 0x[0-9a-f]*, served 1 times'
    has $what '^a root  *0x[0-9a-f]*  112 bytes, shared'
    [ "$(grep -c '^word     0x0001: shared$' "$work/$what")" = 2 ] || fault "$what: published is not shared"
    has $what '1008 bytes, and 7 into it\|1024 bytes, and 7 into it'
    has $what '40960 bytes, and 30000 into it'
    has $what "^holder   tag [0-9]*, a client: pid $dead, uid $(id -u), program"
    has $what "^holder   tag [0-9]*, a transaction of client [0-9]*: pid $dead, uid $(id -u), program"
    has $what '^[0-9.]*  *owned, tag [0-9]*, a client'
    has $what '0x5 is in no object: page 0 is free, without memory behind it'
    has $what '^\$1 = 0x[0-9a-f]* (112 bytes, shared)'
    has $what '^\$2 = "112 bytes, shared"'
done
# the daemon has map and words mapped, and no objects: references lead there
printf 'source %s\narena roots\narena word 0x%x\n' "$commands" $((1 << 13)) >"$work/look"
look daemon -p "$daemon_pid"
has daemon '^a root  *0x[0-9a-f]*  112 bytes, shared'
# and who has no heap is told so
printf 'source %s\narena roots\n' "$commands" >"$work/look"
sleep 1000 >/dev/null 2>&1 &
other=$!
gdb -nx -batch -iex 'set debuginfod enabled off' -p $other -x "$work/look" >"$work/other" 2>&1 || true
kill $other
other=
has other 'no heap of arenad is mapped here'

# the offline view of the same core says the same
address=$(sed -n 's/^object   \(0x[0-9a-f]*\),.*/\1/p' "$work/live" | sed -n 3p)
[ -n "$core" ] || { echo "skipped: the kernel writes no core file here; a live process is shown"; exit 77; }
"$build/arenactl" inspect --core "$core" word "$address" | grep -E '^(word|object)' >"$work/inspect"
grep -q "^object   $address, reference" "$work/inspect" && grep -q ': owned$' "$work/inspect" || { cat "$work/inspect"; fault "inspect says something else"; }

