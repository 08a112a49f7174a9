#!/bin/bash
# The manual says what the programs, the configuration, the header and the protocol say, and no
# more. What is compared is the pages' source, packaging/man/*.scd; each line that this prints
# names the page and what is to be written there:
#
#   an option of a program    a line  *--option* _UNIT_  and behind it, indented by a tab, what it does and its default
#   an event of the log       its name behind "Events:" in arenad.8
#   a configuration key       a line  *key* = _UNIT_     in arenad.conf.5 with its default and _(reload)_ if it may change,
#                             the option in arenad.8, and  #key = default  in packaging/default.conf
#   a function                its name in a NAME section, its declaration as in arena.h in a SYNOPSIS block of that page
#   a constant of arena.h     its name in bold in a page of section 3
#   a variable ARENA_*        its name in bold in the page of the function that reads it
#   a figure (proto/stats.h)  a line  *name*  in arena_stats.3
#   a message, a field        a line  *NAME* number (fields)  and a line  name KIND least..most  in arena-protocol.7
#   a command of arenactl     a line  *command* ...  under COMMANDS in arenactl.1
#
# And scdoc makes a page of each source. Needs the built programs and scdoc, and no manual reader.
set -u
export LC_ALL=C
cd "$(dirname "$0")/../.."
build=${ARENA_BUILD:-build}
man=packaging/man
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
faults=0
fault() { echo "$1: $2"; faults=$(( faults + 1 )); }

for page in "$man"/*.scd; do
    scdoc <"$page" >"$work/page" 2>"$work/why" || fault "$page" "$(cat "$work/why")"
    [ -s "$work/page" ] || fault "$page" "is an empty page"
done

compare() { # PAGE WHAT IN-PAGE IN-SOURCE: two files, a word on each line
    local word
    [ -s "$4" ] || fault "$1" "nothing was found to compare its $2s with"
    while read -r word; do fault "$man/$1.scd" "lacks the $2 $word"; done < <(comm -13 <(sort -u "$3") <(sort -u "$4"))
    while read -r word; do fault "$man/$1.scd" "has the $2 $word, which is not there any more"; done \
        < <(comm -23 <(sort -u "$3") <(sort -u "$4"))
}
# the text under a heading of a page
section() { awk -v want="# $2" '/^# / { on = $0 == want; next } on' "$man/$1.scd"; }

# ---- options -----------------------------------------------------------------------------------
"$build/arenad" --help >"$work/help"
grep -v '^usage\|^Sizes' "$work/help" | grep -oE '^ +--[a-z-]+(, --[a-z-]+)?' | grep -oE -- '--[a-z-]+' >"$work/is"
section arenad.8 OPTIONS | grep -oE '^\*--[a-z-]+' | tr -d '*' >"$work/page"
compare arenad.8 option "$work/page" "$work/is"

"$build/arenactl" --help >"$work/help"
grep -oE '^ +--[a-z-]+' "$work/help" | tr -d ' ' >"$work/is"
section arenactl.1 OPTIONS | grep -oE '^\*--[a-z-]+' | tr -d '*' >"$work/page"
compare arenactl.1 option "$work/page" "$work/is"
awk '/^commands/ { on = 1; next } /^[a-z]/ { on = 0 } on { print $1 }' "$work/help" >"$work/is"
section arenactl.1 COMMANDS | grep -oE '^\*[a-z]+\*' | tr -d '*' >"$work/page"
compare arenactl.1 command "$work/page" "$work/is"
while read -r command; do # each command's own options stand on its line
    "$build/arenactl" "$command" --help | sed -n 's/^usage: arenactl \[--socket PATH\] [a-z]*//p' |
        grep -oE -- '--[a-z-]+' | sort -u >"$work/own"
    section arenactl.1 COMMANDS | grep -E "^\*$command\*" | grep -oE -- '\*--[a-z-]+\*' | tr -d '*' | sort -u >"$work/line"
    cmp -s "$work/own" "$work/line" ||
        fault "$man/arenactl.1.scd" "$command takes $(paste -sd' ' "$work/own"), its line has $(paste -sd' ' "$work/line")"
done <"$work/is"

# ---- events: the first strings of log_event() ----------------------------------------------------
cat daemon/*.c daemon/*/*.c | tr '\n' ' ' | grep -oE 'log_event\(LOG_LEVEL_[^"]*"[a-z-]+"( : "[a-z-]+")?' | grep -oE '"[a-z-]+"' |
    tr -d '"' >"$work/is"
awk '/^Events: / { on = 1 } on && /^$/ { exit } on' "$man/arenad.8.scd" | sed 's/^Events: //' | grep -oE '[a-z-]+' >"$work/page"
compare arenad.8 event "$work/page" "$work/is"

# ---- configuration: KEY("name", KIND, member, reloads, "default", "text") in daemon/os/config.h ---
sed -n 's/^ *KEY("\([^"]*\)", \([A-Z]*\), [a-z_.]*, \([01]\), "\([^"]*\)", .*/\1 \2 \3 \4/p' daemon/os/config.h >"$work/keys"
cut -d' ' -f1 "$work/keys" >"$work/is"
[ "$(wc -l <"$work/is")" = "$(grep -c '^ *KEY("' daemon/os/config.h)" ] || fault daemon/os/config.h "a key cannot be read"
grep -oE '^\*[a-z-]+\* = ' $man/arenad.conf.5.scd | tr -d '*= ' >"$work/page"
compare arenad.conf.5 key "$work/page" "$work/is"
while read -r key kind reloads initial; do
    case $kind in
        SIZE) unit=_SIZE_ ;; COUNT) unit=_NUMBER_ ;; MS) unit=_MILLISECONDS_ ;; BOOL) unit='*yes*|*no*' ;;
        OCTAL) unit=_MODE_ ;; ADDRESS) unit=_ADDRESS_ ;; USERS) unit=_USERS_ ;; GROUPS) unit=_GROUPS_ ;; *) unit= ;;
    esac
    entry=$(awk -v key="*$key* = " 'index($0, key) == 1 { on = 1 } /^\*/ && index($0, key) != 1 { on = 0 } /^#/ { on = 0 } on' \
        $man/arenad.conf.5.scd | tr '\n\t' '  ')
    option=$(awk -v key="--$key*" 'index($0, "*" key) == 1 { on = 1; print; next } /^\*/ { on = 0 } /^#/ { on = 0 } on' \
        $man/arenad.8.scd | tr '\n\t' '  ')
    [ -n "$entry" ] || continue # named above
    [[ -z $unit || $entry == "*$key* = $unit "* ]] || fault $man/arenad.conf.5.scd "$key is not '= $unit'"
    [[ $entry == *"Default: ${initial:-}"* ]] || fault $man/arenad.conf.5.scd "$key lacks 'Default: $initial'"
    [[ $option == *"Default: ${initial:-}"* ]] || fault $man/arenad.8.scd "--$key lacks 'Default: $initial'"
    if [ "$reloads" = 1 ]; then
        [[ $entry == *"_(reload)_"* ]] || fault $man/arenad.conf.5.scd "$key lacks '_(reload)_'"
    else
        [[ $entry != *"_(reload)_"* ]] || fault $man/arenad.conf.5.scd "$key does not change at a reload"
    fi
    if [ -n "$initial" ]; then
        grep -qx -- "#$key = $initial" packaging/default.conf || fault packaging/default.conf "lacks '#$key = $initial'"
    else
        grep -q -- "^#$key =" packaging/default.conf || fault packaging/default.conf "lacks '#$key ='"
    fi
done <"$work/keys"
grep -oE '^#[a-z-]+ =' packaging/default.conf | tr -d '#= ' | sort >"$work/page"
while read -r key; do fault packaging/default.conf "has the key $key, which is not there any more"; done \
    < <(comm -23 "$work/page" <(sort "$work/is"))

# ---- the API: declarations of the public headers, in one line each ---------------------------------
declarations() { # of text on standard input: comments, attributes, bodies and preprocessor lines away
    awk '{ gsub(/\/\*([^*]|\*[^\/])*\*\//, ""); while (1) {
              if (skip) { i = index($0, "*/"); if (!i) { $0 = ""; break } $0 = substr($0, i + 2); skip = 0 }
              i = index($0, "/*"); if (!i) break
              rest = substr($0, i + 2); j = index(rest, "*/")
              if (j) { $0 = substr($0, 1, i - 1) substr(rest, j + 2) } else { $0 = substr($0, 1, i - 1); skip = 1; break } }
           if ($0 ~ /^#/) next; print }' |
        sed 's/__attribute__((.*))//' | tr '\n' ' ' | sed 's/;/;\n/g; s/{/;\n{/g; s/}/}\n/g' |
        grep -oE '(static inline )?[a-z_]+[a-z_ ]*[ *]+arena_[a-z_]+\([^;{]*\) *;' |
        grep -v '^return\|^typedef\|= ' | sed 's/  */ /g; s/ *; *$//; s/^ //' | sort -u
}
headers=$(ls client/arena*.h | grep -v inline)
cat $headers | declarations >"$work/declared"
for page in "$man"/arena*.3.scd; do
    section "$(basename "$page" .scd)" SYNOPSIS | sed '/^```/d' | declarations
done | sort -u >"$work/page"
[ "$(wc -l <"$work/declared")" -gt 20 ] || fault client/arena.h "its declarations cannot be read"
while read -r line; do fault "$man/*.3.scd" "no SYNOPSIS has: $line;"; done < <(comm -13 "$work/page" "$work/declared")
while read -r line; do fault "$man/*.3.scd" "a SYNOPSIS has, and arena.h has not: $line;"; done \
    < <(comm -23 "$work/page" "$work/declared")
name_of() { grep -oE 'arena_[a-z_]+\(' | tr -d '(' | sort -u; }
sed 's/(.*/(/' "$work/declared" | name_of >"$work/is"
for page in "$man"/arena*.3.scd; do section "$(basename "$page" .scd)" NAME; done | sed 's/ - .*//' | tr ', ' '\n\n' |
    grep . | sort -u >"$work/page"
comm -13 "$work/page" "$work/is" | while read -r name; do echo "$man/*.3.scd: no NAME section has $name"; done
comm -23 "$work/page" "$work/is" | while read -r name; do echo "$man/*.3.scd: a NAME section has $name, which arena.h has not"; done
cmp -s "$work/page" "$work/is" || faults=$(( faults + 1 ))
nm -D --defined-only "$build/libarena.so" 2>/dev/null | awk '$2 == "T" { sub("@.*", "", $3); print $3 }' | sort |
    comm -23 - "$work/is" >"$work/exported"
[ ! -s "$work/exported" ] || fault client/arena.h "exported and not declared: $(paste -sd' ' "$work/exported")"

# constants
grep -ohE '\bARENA_[A-Z_]+ =' $headers | tr -d '= ' | sort -u | while read -r name; do
    grep -qE "\*$name\*" "$man"/*.3.scd || echo "$man/*.3.scd: no page has *$name*"
done >"$work/constants"
[ ! -s "$work/constants" ] || fault "$man" "$(cat "$work/constants")"

# what the library reads of the environment
grep -oE '"(ARENA|XDG|NO|TERM|TMPDIR|PATH)[A-Z_]*"' client/link/environ.c | tr -d '"' | sort -u |
    while read -r name; do
        grep -qE "\*$name\*" "$man"/*.scd || echo "$man/*.scd: no page has *$name*"
    done >"$work/environment"
[ ! -s "$work/environment" ] || fault "$man" "$(cat "$work/environment")"

# ---- figures -----------------------------------------------------------------------------------
sed -n 's/^ *X(\([a-z_]*\),.*/\1/p' proto/stats.h >"$work/is"
section arena_stats.3 DESCRIPTION | grep -oE '^\*[a-z_]+\*$' | tr -d '*' >"$work/page"
compare arena_stats.3 figure "$work/page" "$work/is"

# ---- the protocol: the tables of proto/msg.h ---------------------------------------------------
tr -d '\\\n' <proto/msg.h | sed 's/MSG_JOB(\([0-9]*\), \([0-9]*\))/\1.\2/g' |
    grep -oE 'MESSAGE\([A-Z_]+, [a-z_]+, [0-9.]+, [A-Z]+, [A-Z]+, *\([^)]*\)\)' |
    sed 's/MESSAGE(\([A-Z_]*\), [a-z_]*, \([0-9.]*\), [A-Z]*, [A-Z]*, *(\(.*\)))/*\1* \2 (\3)/; s/,  */, /g' >"$work/is"
grep -E '^\*[A-Z_]+\* [0-9.]+ \(' $man/arena-protocol.7.scd >"$work/page"
compare arena-protocol.7 message "$work/page" "$work/is"
number() { awk -v name="$1" '$1 == "#define" && $2 == name { print $3 }' proto/msg.h; }
sed -n 's/^#define MSG_FIELD_\([a-z_]*\) *\([A-Z0-9]*\), \([0-9]*\), \([A-Z0-9_]*\).*/\1 \2 \3 \4/p' proto/msg.h |
    while read -r name kind least most; do
        case $most in
            UINT32_MAX) most=4294967295 ;; UINT64_MAX) most=18446744073709551615 ;; [A-Z]*) most=$(number "$most") ;;
        esac
        echo "$name $kind $least..$most"
    done >"$work/is"
grep -oE '^[a-z_]+ +[A-Z0-9]+ +[0-9]+\.\.[0-9]+' $man/arena-protocol.7.scd | sed 's/  */ /g' >"$work/page"
compare arena-protocol.7 field "$work/page" "$work/is"

(( faults == 0 )) || { echo "the comment at the top of $0 says how each is written"; exit 1; }
