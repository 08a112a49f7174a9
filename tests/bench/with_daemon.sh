#!/bin/bash
# with_daemon.sh MAX COMMAND...: runs a command with a daemon of its own, of that size, on $ARENA_SOCKET.
set -eu
build=${ARENA_BUILD:-build}
max=$1
shift
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-bench-XXXXXX")
daemon=
trap '[ -z "$daemon" ] || kill "$daemon" 2>/dev/null || true; wait; rm -rf "$work"' EXIT
export ARENA_SOCKET=$work/s
"$build/arenad" --foreground --socket "$ARENA_SOCKET" --max "$max" 2>"$work/log" &
daemon=$!
until "$build/arenactl" stat >/dev/null 2>&1; do kill -0 "$daemon"; done
"$@"
