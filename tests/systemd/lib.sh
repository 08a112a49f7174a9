# What the tests under a real systemd share. Sourced, inside.
set -u
w=$(mktemp -d)
chmod 755 "$w"
declare -A to from pid_of
failures=0 passed=0 failed=()

fault() { echo "FAULT: $*"; failures=$(( failures + 1 )); }
want() { # WHAT COMMAND...: the command succeeds
    local what=$1
    shift
    "$@" >"$w/want" 2>&1 || { fault "$what: $*: $(tail -n 5 "$w/want")"; return 1; }
}
same() { [ "$2" = "$3" ] || fault "$1: '$2', not '$3'"; }       # WHAT IS WANTED
says() { [[ $2 =~ $3 ]] || fault "$1: '$2' does not say '$3'"; }
until_true() { until "$@" >/dev/null 2>&1; do sleep 0.05; done; } # a hang is ended by the time-out around it all

prop() { systemctl show -P "$2" "$1"; }
unit() { echo "arenad@$1.service"; }
ctl() { ARENA_SOCKET=/run/arenad/$1.sock arenactl "${@:2}"; }
figure() { ctl "$1" stat --json | sed -n "s/.*\"$2\":[[:space:]]*\"\{0,1\}\([^,\"]*\).*/\1/p"; }

hold() { # NAME HEAP OBJECTS [COMMAND...]: a client that holds objects, run by COMMAND
    mkfifo "$w/$1.in" "$w/$1.out"
    ARENA_SOCKET=/run/arenad/$2.sock "${@:4}" holder "$3" <"$w/$1.in" >"$w/$1.out" 2>&1 &
    pid_of[$1]=$!
    exec {in}>"$w/$1.in" {out}<"$w/$1.out"
    to[$1]=$in from[$1]=$out
    rm "$w/$1.in" "$w/$1.out"
    answer=
    read -r -u "$out" answer
}
ask() { # NAME WORD -> $answer
    answer="no answer"
    echo "$2" >&"${to[$1]}"
    read -r -u "${from[$1]}" answer
}
whole() { ask "$1" check; same "the client $1 ${2:-}" "$answer" whole; }
let_go() {
    echo quit >&"${to[$1]}"
    wait "${pid_of[$1]}" || fault "the client $1 ended with $?"
    exec {to[$1]}>&- {from[$1]}<&-
}

# Runs functions, each a test, and counts them in the manner of cmocka, which tests/run understands.
run_tests() {
    local name before
    echo "[==========] Running $# test(s)."
    for name in "$@"; do
        echo "[ RUN      ] $name"
        before=$failures
        "$name"
        if (( failures == before )); then echo "[       OK ] $name"; passed=$(( passed + 1 ))
        else echo "[  FAILED  ] $name"; failed+=("$name"); fi
    done
    echo "[==========] $# test(s) run."
    echo "[  PASSED  ] $passed test(s)."
    if (( ${#failed[@]} )); then printf '[  FAILED  ] %s\n' "${failed[@]}"; return 1; fi
}
