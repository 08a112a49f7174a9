#!/bin/bash
# A daemon, two processes and arenactl of another instruction set, under the emulator: what was given is taken, and the heap
# is whole and empty afterwards. $ARENA_BUILD: its build folder, $TEST_RUNNER: what runs its programs.
set -u
build=${ARENA_BUILD:?} run=${TEST_RUNNER:?}
work=$(mktemp -d) || exit 2
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null; wait; rm -rf "$work"' EXIT
fail() { echo "$1"; cat "$work/log"; exit 1; }
export ARENA_SOCKET=$work/s

mkfifo "$work/ready"
$run "$build/arenad" --foreground --keeper=no --socket "$ARENA_SOCKET" --max 64M --ready-fd 3 3>"$work/ready" 2>"$work/log" &
daemon=$!
read -r _ <"$work/ready" || fail "the daemon does not serve"

$run "$build/tests/aarch64/pair" take &
taker=$!
$run "$build/tests/aarch64/pair" give || fail "giving failed"
wait $taker || fail "taking failed"

# both have gone without a goodbye
until $run "$build/arenactl" clients | grep -q '^0 clients'; do kill -0 "$daemon" || fail "the daemon is gone"; done
$run "$build/arenactl" check || fail "arenactl check"
$run "$build/arenactl" stat --json | grep -qE '"objects_(shared|owned)": *[1-9]' && fail "something is left: $($run "$build/arenactl" stat)"
kill "$daemon" && wait "$daemon" || fail "the daemon ended with $?"
daemon=
