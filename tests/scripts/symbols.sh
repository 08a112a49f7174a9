#!/bin/bash
# What the library once exported, it exports: packaging/debian/libarena1.symbols is the list, each
# with the version that brought it. A symbol that is missing fails; a new one is named, and `make
# symbols` notes it.
#
#   symbols.sh [--write LIBRARY VERSION]
set -u
cd "$(dirname "$0")/../.."
list=packaging/debian/libarena1.symbols
exported() {
    nm -D --defined-only --with-symbol-versions "$1" |
        awk '$2 ~ /[TDBRVW]/ && $3 ~ /@/ { sub("@@", "@", $3); print $3 }' | sort
}

if [ "${1-}" = --write ]; then
    {
        echo 'libarena.so.1 libarena1 #MINVER#'
        # versions that are there stay; a new symbol has this one, and so has the version node on
        # its first day
        { echo ARENA_1@ARENA_1; exported "$2"; } | sort -u | while read -r symbol; do
            since=$(awk -v s="$symbol" '$1 == s { print $2 }' "$list" 2>/dev/null)
            echo " $symbol ${since:-$3}"
        done
    } >"$list.new" && mv "$list.new" "$list"
    exit
fi
library=${ARENA_BUILD:-build}/libarena.so.1
before=$(awk '/^ / && $1 != "ARENA_1@ARENA_1" { print $1 }' "$list" | sort)
now=$(exported "$library" | grep -vx ARENA_1@ARENA_1)
[ -n "$before" ] && [ -n "$now" ] || { echo "nothing to compare"; exit 1; }
missing=$(comm -23 <(echo "$before") <(echo "$now"))
new=$(comm -13 <(echo "$before") <(echo "$now"))
[ -z "$new" ] || echo "new, to be noted by make symbols:" $new
[ -z "$missing" ] || { echo "exported once, and no longer:" $missing; exit 1; }
# threads that end call back into it: it stays, also when a plugin that links it goes
readelf -d "$library" | grep -q 'FLAGS_1.*NODELETE' || { echo "$library may be unloaded"; exit 1; }
