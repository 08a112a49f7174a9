#!/bin/bash
# make demo: index the words of every text file below DIR with WORKERS processes over a private heap, kill one of them,
# and compare every count with one made by standard tools.
#
#   DIR=       directories (default: documents and headers that a Debian with a compiler has, the first 40 MB of them)
#   WORKERS=   2 to 64 (default 4)
set -u -o pipefail
export LC_ALL=C
build=${ARENA_BUILD:-build}
workers=${WORKERS:-4}
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-demo-XXXXXX") || exit 1
daemon=
cleanup() {
    [[ $daemon ]] && kill "$daemon" 2>/dev/null && wait "$daemon" 2>/dev/null
    rm -rf "$work"
}
trap cleanup EXIT
say() { printf '\n== %s\n' "$*"; }
fail() { echo "demo: $*" >&2; exit 1; }

# ---- the input ---------------------------------------------------------------------------------
if [[ ${DIR:-} ]]; then read -ra dirs <<<"$DIR"; else dirs=(/usr/share/doc /usr/share/common-licenses /usr/include /usr/share/perl); fi
found=()
for dir in "${dirs[@]}"; do [[ -d $dir ]] && found+=("$dir"); done
(( ${#found[@]} )) || fail "none of ${dirs[*]} is a directory: set DIR="
find "${found[@]}" -type f -size -16M -print0 | sort -z | xargs -0 -r grep -lIZ '' >"$work/files" || fail "no text file below ${found[*]}"
if [[ ! ${DIR:-} ]]; then # a machine with much software has hundreds of MB there: the first 40 MB will do
    xargs -0 stat -c '%s' <"$work/files" | awk '{ sum += $1 } sum <= 40000000 { n++ } END { print n }' >"$work/n"
    head -z -n "$(cat "$work/n")" "$work/files" >"$work/some" && mv "$work/some" "$work/files"
fi
files=$(tr -cd '\0' <"$work/files" | wc -c)
bytes=$(xargs -0 cat <"$work/files" | wc -c)
say "text files below ${found[*]}: $files files, $(( bytes / 1000000 )) MB"
(( files >= 1000 || bytes >= 10000000 )) ||
    fail "that is less than 1,000 files and less than 10 MB: set DIR= to a directory with more"
(( files >= 1000 )) && echo "(at least 1,000 files)" || echo "(at least 10 MB)"

# ---- the heap and the workers --------------------------------------------------------------------
mkfifo "$work/ready"
"$build/arenad" --foreground --ready-fd 9 --socket "$work/demo.sock" --max 4G 9>"$work/ready" 2>"$work/log" &
daemon=$!
export ARENA_SOCKET=$work/demo.sock
read -r _ <"$work/ready" || { cat "$work/log" >&2; fail "the daemon ended"; }
say "indexing with $workers worker processes"
"$build/examples/words" "$workers" "$work/counts" <"$work/files" || { tail -n 20 "$work/log" >&2; fail "indexing failed"; }
say "what the daemon reclaimed"
grep -E 'event=(death|bye)' "$work/log" | sed 's/^arenad: /  /'
"$build/arenactl" stat | grep -E 'reclaimed'
say "the heap"
"$build/arenactl" stat
"$build/arenactl" check || fail "check found a fault"

# ---- the comparison -------------------------------------------------------------------------------
say "comparing with sed | tr | sort | uniq -c"
xargs -0 sed -s '$a\' <"$work/files" | tr -cs 'A-Za-z' '\n' | tr 'A-Z' 'a-z' |
    awk 'NF { n[$0]++ } END { for (w in n) print n[w], w }' | sort -k1,1nr -k2,2 >"$work/expected"
if ! cmp -s "$work/counts" "$work/expected"; then
    diff "$work/counts" "$work/expected" | head -n 20
    fail "the counts differ"
fi
echo "all $(wc -l <"$work/expected") counts are the same"
