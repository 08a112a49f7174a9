#!/bin/bash
# Client and daemon are built in layers: no circle of files, by what they include and by the symbols that their objects need
# of one another; and a file needs only its own folder and those that stand before it in the line "Layers, lowest first:" of
# its tier's README.md. Headers beside the folders, such as heap.h, are for all; a .c there is above all.
set -u
build=${ARENA_BUILD:-build}
strict="client" # tiers in which a fault is an error; in the others it is said

# FILE FILE NAME: the first needs the second, for that name, or as a header that it includes
edges() {
    local tier=$1
    files=$(find "$tier" -name '*.[ch]' ! -path 'client/ctl/*' ! -path 'client/examples/*' | sort)
    grep -H '^#include "' $files | sed -n 's/^\([^:]*\):#include "\('"$tier"'\/[^"]*\)".*/\1 \2 include/p'
    for file in $files; do
        object=$build/pic/${file%.c}.o # of the library; the daemon has others
        [ -e "$object" ] || object=$build/obj/${file%.c}.o
        [ "$file" != "${file%.c}" ] && [ -e "$object" ] && nm -g "$object" | awk -v file="$file" '
            NF == 2 && $1 == "U" { print "needs", file, $2 }
            NF == 3 { print "has", file, $3 }'
    done | awk '
        $1 == "has" { owner[$3] = $2; next }
        { file[++n] = $2; name[n] = $3 }
        END { for (i = 1; i <= n; i++) if (name[i] in owner && owner[name[i]] != file[i]) print file[i], owner[name[i]], name[i] }'
}

look() {
    local tier=$1 layers
    layers=$(sed -n 's/^Layers, lowest first: //p' "$tier/README.md" 2>/dev/null | tr -d '`.' | sed 's/ *< */ /g')
    edges "$tier" | awk -v tier="$tier" -v layers="$layers" '
    function folder(file,   part) { return split(file, part, "/") > 2 ? part[2] : "" }
    function rank(file) { return folder(file) != "" ? place[folder(file)] : file ~ /\.h$/ ? 0 : count + 1 }
    # a file that needs nothing, or is needed by nothing, is on no circle
    function trim(   from, to, e, out, in_, again) {
        do {
            again = 0
            delete out; delete in_
            for (e in left) { split(e, end, " "); out[end[1]]++; in_[end[2]]++ }
            for (e in left) {
                split(e, end, " ")
                if (!(end[1] in in_) || !(end[2] in out)) { delete left[e]; again = 1 }
            }
        } while (again)
    }
    function circle(   e, at, seen, path, n, i) {
        for (e in left) { split(e, end, " "); at = end[1]; break }
        while (!(at in seen)) {
            seen[at] = ++n
            path[n] = at
            for (e in left) { split(e, end, " "); if (end[1] == at) { at = end[2]; break } }
        }
        path[n + 1] = at
        print tier ": a circle of files:"
        for (i = seen[at]; i <= n; i++) print "    " path[i] " needs " path[i + 1] ": " left[path[i] " " path[i + 1]]
    }
    BEGIN {
        count = split(layers, name, " ")
        for (i = 1; i <= count; i++) place[name[i]] = i
        if (!count) { print tier "/README.md has no line \"Layers, lowest first:\""; faults++ }
    }
    {
        key = $1 " " $2
        if (count && $1 ~ /\/.*\// && !(folder($1) in place) && !(folder($1) in told)) {
            told[folder($1)]
            print tier "/README.md names no layer " folder($1)
            faults++
        }
        if (count && rank($2) > rank($1) && rank($1)) {
            print $1 " needs " $2 ", of a higher layer: " $3
            faults++
        }
        if (!index(" " left[key] " ", " " $3 " ")) left[key] = left[key] (left[key] == "" ? "" : " ") $3
        needs++
    }
    END {
        if (needs < 20) { print tier ": hardly any file needs another: is it built?"; faults++ }
        trim()
        for (e in left) { split(e, end, " "); if (!on[end[1]]++) files++ }
        if (files) {
            circle()
            print tier ": " files " files are on circles, or between two of them"
            faults++
        }
        exit faults != 0
    }'
}

rc=0
for tier in client daemon; do
    look "$tier" && continue
    case " $strict " in *" $tier "*) rc=1 ;; *) echo "$tier: not untied yet" ;; esac
done
exit $rc
