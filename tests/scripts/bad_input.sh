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
# every kind of wrong file: what, file and line
wrong_file() { # PATTERN LINE...
    local pattern=$1
    shift
    printf '%s\n' "$@" >"$work/bad.conf"
    one_line 2 "$pattern" "$ad" --config "$work/bad.conf" --foreground --socket "$work/s2"
}
wrong_file 'bad.conf:2: socket-group = no-such-group names a group that is not there' '' 'socket-group = no-such-group'
wrong_file 'bad.conf:1: allow-groups = no-such-group names a group' 'allow-groups = no-such-group'
wrong_file 'bad.conf:1: allow-users = root, 4294967296 has a number that no user has' 'allow-users = root, 4294967296'
wrong_file 'bad.conf:1: allow-users = 4294967295 has a number' 'allow-users = 4294967295'
wrong_file 'bad.conf:1: allow-groups = 99999999999999999999 has a number that no group has' 'allow-groups = 99999999999999999999'
wrong_file 'bad.conf:3: max is there twice, first on line 1' 'max = 64M' '# that is' 'max = 64M'
wrong_file 'bad.conf:2: reserve = 134217728 is more than max: 67108864' 'max = 64M' 'reserve = 128M'
wrong_file 'bad.conf:1: reserve = .* is more than max' 'reserve = 1T' 'max = 64M'
wrong_file 'bad.conf:1: limit-roots = 100 is more than root-slots: 16' 'limit-roots = 100' 'root-slots = 16'
wrong_file 'bad.conf:1: limit-user-connections = 9 is more than limit-connections: 5' 'limit-user-connections = 9' 'limit-connections = 5'
wrong_file 'bad.conf:1: limit-user-clients = 9 is more than limit-clients: 5' 'limit-user-clients = 9' 'limit-clients = 5'
wrong_file 'bad.conf:1: hello-timeout = 0 must be' 'hello-timeout = 0'
wrong_file 'bad.conf:1: trim-timeout = 99999999999 must be' 'trim-timeout = 99999999999'
wrong_file 'bad.conf:1: limit-clients = 4294967296 is too large' 'limit-clients = 4294967296'
wrong_file 'bad.conf:1: limit-clients = -1 is not' 'limit-clients = -1'
wrong_file 'bad.conf:1: max = 064M is not' 'max = 064M'
wrong_file 'bad.conf:1: base = 0x7ffffffe00000 leaves no room|base = .* leaves no room' 'base = 0x7fffffe00000'
wrong_file 'bad.conf:1: socket-mode = -1 is not' 'socket-mode = -1'
wrong_file 'bad.conf:1: socket needs a value' 'socket ='
wrong_file 'bad.conf:1: keeper needs a value' 'keeper ='
wrong_file 'bad.conf:1: log-level = loud is none of|log-level' 'log-level = loud'
wrong_file 'bad.conf:2: is longer than 190 bytes' '' "allow-users = $(seq -s , 1 200)"
printf 'max = 64M\nreserve = 1M\0\n' >"$work/bad.conf"
one_line 2 'bad.conf:2: .*holds a NUL' "$ad" --config "$work/bad.conf"
for option in --socket --name --backing --log-level --log-file --pid-file --config; do
    one_line 2 "$option needs a value" "$ad" --foreground "$option" ''
done
one_line 1 'cannot open the log file' "$ad" --socket "$work/s2" --max 1M --log-file /nowhere/log
if [ "$(id -u)" = 0 ] && setpriv --reuid=65534 true 2>/dev/null; then
    install -m 600 /dev/null "$work/unreadable.conf"
    chmod 755 "$work"
    one_line 2 'cannot read .*/unreadable.conf: Permission denied' setpriv --reuid=65534 --clear-groups "$ad" \
        --config "$work/unreadable.conf" --socket "$work/s2"
fi
printf 'just words\n' >"$work/bad.conf"
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
