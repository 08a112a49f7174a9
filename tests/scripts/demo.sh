#!/bin/bash
# The demo's own promises: it kills a worker and every count is right all the same; too little input is an error; a count
# that differs is one too.
set -u
. tests/scripts/daemon.bash
failed=0
fault() { echo "FAULT: $*"; failed=1; }
mkdir "$work/many" "$work/few" "$work/bin"
for i in {1..1100}; do
    printf 'file %s says: the quick brown Fox, jumps over %s lazy dogs; fox%s!\n' "$i" $(( i % 7 )) "$i" >"$work/many/$i.txt"
    (( i > 20 )) || { for _ in {1..200}; do cat "$work/many/$i.txt"; done; } >"$work/many/long-$i"
done
cp "$work/many/"{1..9}.txt "$work/few"

demo() { DIR=$1 WORKERS=3 client/examples/demo.sh >"$work/out" 2>&1 </dev/null; }
demo "$work/many" || { fault "status $?"; cat "$work/out"; }
for what in '1120 files' 'killing worker 0' 'event=death' 'the 20 most frequent' 'ok: every invariant holds' \
            'counts are the same'; do
    grep -q "$what" "$work/out" || fault "it does not say '$what'"
done
demo "$work/few" && fault "nine files are enough?"
grep -q 'less than 1,000 files' "$work/out" || fault "it does not say that the input is too small"

printf '#!/bin/sh\n%s "$@" | sed "1s/^[0-9]*/77777/"\n' "$(command -v awk)" >"$work/bin/awk" # the tools' first count is wrong
chmod +x "$work/bin/awk"
PATH=$work/bin:$PATH demo "$work/many" && fault "a count that differs is no error"
grep -q 'the counts differ' "$work/out" || fault "it does not say that counts differ"
exit $failed
