#!/bin/bash
# Whatever is wrong in an option, a config file, a socket path or a packet gets one line that says what and where; a
# client that sends garbage loses its connection and disturbs nobody; a second daemon on a socket says so.
set -u
. tests/scripts/daemon.bash
failed=0
fault() { echo "FAULT: $*"; failed=1; }

# one_line STATUS PATTERN COMMAND...: ends with STATUS and prints exactly one line, which matches
one_line() {
    local status=$1 pattern=$2 out rc
    shift 2
    out=$("$@" 2>&1 </dev/null)
    rc=$?
    [ "$rc" = "$status" ] || fault "$*: status $rc, not $status: $out"
    [ "$(printf '%s\n' "$out" | wc -l)" = 1 ] || fault "$*: not one line: $out"
    [[ $out =~ $pattern ]] || fault "$*: does not say '$pattern': $out"
}
ad=$build/arenad ctl=$build/arenactl
one_line 2 '--nonsense is not an option' "$ad" --nonsense
one_line 2 '--max .* is not a size' "$ad" --max 12Q
one_line 2 '--max 5 must be from 1M to 1T' "$ad" --max 5
one_line 2 '--max 0 must be from 1M to 1T' "$ad" --max=0
one_line 2 '--max needs a value' "$ad" --max=
one_line 2 '--root-slots 3 must be from 16 to 1M' "$ad" --root-slots 3
one_line 2 'socket-group no-such-group names a group that is not there' "$ad" --socket-group=no-such-group \
    --socket "$work/s2"
one_line 2 '--reset needs --backing DIR' "$ad" --reset --socket "$work/s2"
one_line 2 "cannot read $work: Is a directory" "$ad" --config="$work" --socket "$work/s2"
mkdir "$work/files"
one_line 1 'cannot size region heap: File too large' bash -c 'ulimit -f 100; exec "$@"' - "$ad" --socket "$work/s2" --max 1M \
    --backing "$work/files"
[ -z "$(ls "$work/files")" ] || fault "half a heap is left: $(ls "$work/files")"
one_line 2 '--max needs a value' "$ad" --max
one_line 2 'no arguments are wanted' "$ad" stray
one_line 2 'multiple of 2M' "$ad" --base 12345
one_line 2 'octal mode' "$ad" --socket-mode 999
one_line 2 'names a user that is not there' "$ad" --allow-users nobody-of-that-name
one_line 2 'letters' "$ad" --name 'a/b'
one_line 2 'log-level' "$ad" --log-level loud
one_line 2 'cannot read /nowhere' "$ad" --config /nowhere
printf '[arenad]\nmax = 64M\nmaximum = 5\n' >"$work/bad.conf"
one_line 2 'bad.conf:3: maximum = 5 unknown key' "$ad" --config "$work/bad.conf"
printf 'max = lots\n' >"$work/bad.conf"
one_line 2 'bad.conf:1: max = lots is not a size' "$ad" --config "$work/bad.conf"
printf 'max =\n' >"$work/bad.conf"
one_line 2 'bad.conf:1: max needs a value' "$ad" --config "$work/bad.conf"
printf '\nkeeper = maybe\n' >"$work/bad.conf"
one_line 2 'bad.conf:2: keeper = maybe is neither' "$ad" --config "$work/bad.conf"
printf '[other]\nmax = 1M\n' >"$work/bad.conf"
one_line 2 'bad.conf:2: .*only the section' "$ad" --config "$work/bad.conf"
printf 'just words\n' >"$work/bad.conf"
one_line 2 'bad.conf:1: not a line' "$ad" --config "$work/bad.conf"
one_line 1 'is not a socket' "$ad" --socket "$work/bad.conf" --max 1M
one_line 1 'longer than' "$ad" --socket "$work/$(printf 'x%.0s' {1..150})" --max 1M
one_line 1 'cannot open the backing directory /nowhere: No such file' "$ad" --socket "$work/s2" --max 1M --backing /nowhere
one_line 3 'no daemon at' "$ctl" --socket "$work/none" stat
one_line 2 'is not a command' "$ctl" frobnicate
one_line 2 'is not an option' "$ctl" stat --what
one_line 2 'takes no argument' "$ctl" stat more

daemon_start --socket "$work/s" --max 64M
one_line 1 'another daemon serves' "$ad" --foreground --socket "$work/s" --max 64M
"$ctl" --socket "$work/s" check >/dev/null || fault "check after the second daemon"
daemon_stop || fault "the daemon ended with $?"
[ ! -e "$work/s" ] || fault "the socket is left behind"

# to the background: its start returns when it serves; its parent is not this script, so it is found by its command line
"$ad" --socket "$work/s" --max 64M || fault "to the background: $?"
"$ctl" --socket "$work/s" stat >/dev/null || fault "it does not serve when its start returned"
found=
for dir in /proc/[0-9]*; do
    [ "$(tr '\0' ' ' <"$dir/cmdline" 2>/dev/null)" = "$ad --socket $work/s --max 64M " ] || continue
    found=1
    kill "${dir#/proc/}"
done
[ "$found" ] || fault "nothing to stop"
while [ -e "$work/s" ]; do sleep 0.02; done
exit $failed
