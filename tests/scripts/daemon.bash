# For tests that are scripts: `. tests/scripts/daemon.bash`, then daemon_start OPTION... starts an arenad in the foreground
# that is killed when the script ends, and returns when it serves; daemon_pid is its pid. $work is a directory of the
# script's own, removed at the end.
build=${ARENA_BUILD:-build}
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-script-XXXXXX") || exit 1
daemon_pid=
trap '[ -z "$daemon_pid" ] || kill "$daemon_pid" 2>/dev/null; rm -rf "$work"' EXIT

daemon_start() {
    local byte
    mkfifo "$work/ready"
    "$build/arenad" --foreground --ready-fd 9 "$@" 9>"$work/ready" 2>"$work/log" &
    daemon_pid=$!
    if ! read -r byte <"$work/ready"; then
        cat "$work/log"
        echo "arenad $* did not serve"
        exit 1
    fi
    rm "$work/ready"
}

daemon_stop() { # its exit status
    local rc
    kill "$daemon_pid"
    wait "$daemon_pid"
    rc=$?
    daemon_pid=
    return $rc
}
