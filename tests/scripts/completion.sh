#!/bin/bash
# Bash completion offers what --help shows, for both programs, each command of arenactl and each of its options, and
# nothing else. The completion functions are called as bash calls them.
set -u
build=$(cd "${ARENA_BUILD:-build}" && pwd) || exit 1
failed=0
fault() { echo "FAULT: $*"; failed=1; }
source packaging/completion/arenactl || exit 1
source packaging/completion/arenad || exit 1
[[ $(complete -p arenactl) == "complete -F _arenactl arenactl" ]] || fault "arenactl has no completion"
[[ $(complete -p arenad) == "complete -F _arenad arenad" ]] || fault "arenad has no completion"
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-completion-XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# offers FUNCTION WORD...: what is offered for the last word
offers() {
    local function=$1
    shift
    COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
    "$function" 2>/dev/null
    printf '%s\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"} | sort
}
# same WHAT EXPECTED OFFERED
same() { [ "$2" = "$3" ] || fault "$1: expected '$(echo $2)', offered '$(echo $3)'"; }

ctl=$build/arenactl ad=$build/arenad
commands=$("$ctl" --help | sed -n '/^commands:/,/^options/s/^  \([a-z-]*\) .*/\1/p' | sort)
[ "$(wc -l <<<"$commands")" -ge 12 ] || fault "few commands in --help: $commands"
same "commands" "$commands" "$(offers _arenactl "$ctl" '')"
same "commands behind --socket x" "$commands" "$(offers _arenactl "$ctl" --socket x '')"
same "cl" "$(grep ^cl <<<"$commands")" "$(offers _arenactl "$ctl" cl)"
same "global options" "$("$ctl" --help | grep -oE '^  --[a-z-]+' | tr -d ' ' | sort)" "$(offers _arenactl "$ctl" --)"
for command in $commands; do
    options=$("$ctl" "$command" --help | sed -n 's/^usage: //p' | grep -oE '\[--[a-z-]+' | tr -d '[' | grep -v '^--$')
    same "$command --" "$(printf '%s\n' --help --version $options | sort)" "$(offers _arenactl "$ctl" "$command" --)"
    [ "$command" = exec ] || [ "$command" = inspect ] || same "$command and nothing" "" "$(offers _arenactl "$ctl" "$command" '')"
done
: >"$work/picture.svg"
same "--svg FILE" "$work/picture.svg" "$(offers _arenactl "$ctl" map --svg "$work/pic")"
same "--socket PATH" "$work/picture.svg" "$(offers _arenactl "$ctl" --socket "$work/pic")"
mkdir "$work/dir"
views=$(printf '%s\n' check clients roots spans word)
same "inspect DIRECTORY" "$work/dir" "$(offers _arenactl "$ctl" inspect "$work/")"
same "inspect DIRECTORY what" "$views" "$(offers _arenactl "$ctl" inspect "$work/dir" '')"
same "inspect --core FILE" "$work/picture.svg" "$(offers _arenactl "$ctl" inspect --core "$work/pic")"
same "inspect --core FILE what" "$views" "$(offers _arenactl "$ctl" inspect --core "$work/dir" '')"
same "inspect --json DIRECTORY r" roots "$(offers _arenactl "$ctl" inspect --json "$work/dir" r)"
same "inspect DIRECTORY word ADDRESS" "" "$(offers _arenactl "$ctl" inspect "$work/dir" word '')"
same "--count N" "" "$(offers _arenactl "$ctl" top --count '')"
same "exec -- COMMAND" "$(compgen -c true | sort)" "$(offers _arenactl "$ctl" exec --max 1M -- true)"
same "exec COMMAND" "$(compgen -c true | sort)" "$(offers _arenactl "$ctl" exec true)"
same "exec -- ls FILE" "$work/picture.svg" "$(offers _arenactl "$ctl" exec -- ls "$work/pic")"

options=$("$ad" --help | grep -oE '^  --[a-z-]+(, --[a-z-]+)*' | tr -d ' ,' | sed 's/--/\n--/g' | grep . | sort)
[ "$(wc -l <<<"$options")" -ge 20 ] || fault "few options in arenad --help: $options"
same "arenad --" "$options" "$(offers _arenad "$ad" --)"
same "arenad --limit-user-" "$(grep ^--limit-user- <<<"$options")" "$(offers _arenad "$ad" --limit-user-)"
same "arenad --keeper=" "$(printf 'no\nyes')" "$(offers _arenad "$ad" --keeper = '')"
same "arenad --log-level w" "warning" "$(offers _arenad "$ad" --log-level w)"
same "arenad --backing mem" "memfd" "$(offers _arenad "$ad" --backing memf)"
same "arenad --config" "$work/picture.svg" "$(offers _arenad "$ad" --config "$work/pic")"
same "arenad --max" "" "$(offers _arenad "$ad" --max '')"
exit $failed
