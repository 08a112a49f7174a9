#!/bin/bash
# What is installed is hardened: position-independent, its tables read-only from the start on, no writable code, guards of the
# stack, checks of the C library, control-flow protection. And the fast paths pay nothing for it: no guard is in them.
set -u
build=${ARENA_BUILD:-build}
command -v readelf >/dev/null && command -v objdump >/dev/null || { echo "no readelf and objdump (binutils)"; exit 77; }
library=$(readlink -f "$build/libarena.so")
faults=0
fault() { echo "$1: $2"; faults=$(( faults + 1 )); }
compiler_knows() { ${CC:-cc} -Werror "$1" -x c -c -o /dev/null /dev/null 2>/dev/null; }

for file in "$build/arenad" "$build/arenactl" "$library"; do
    head=$(readelf -Wh "$file") segments=$(readelf -Wl "$file") dynamic=$(readelf -Wd "$file") symbols=$(readelf -W --dyn-syms "$file")
    [ -n "$dynamic" ] || { fault "$file" "not to be read"; continue; }
    grep -qE 'Type: +DYN' <<<"$head" || fault "$file" "not position-independent"
    [ "$file" = "$library" ] || grep -qE 'FLAGS_1\).*\<PIE\>' <<<"$dynamic" || fault "$file" "no PIE"
    grep -q GNU_RELRO <<<"$segments" || fault "$file" "no RELRO"
    grep -qE 'FLAGS_1\).*\<NOW\>' <<<"$dynamic" || fault "$file" "not bound at its start (BIND_NOW)"
    grep -qE 'GNU_STACK .* RW ' <<<"$segments" || fault "$file" "its stack may be executed"
    grep -qE 'LOAD .* RWE ' <<<"$segments" && fault "$file" "memory is writable and executable"
    grep -qE '\((TEXTREL|RPATH|RUNPATH)\)' <<<"$dynamic" && fault "$file" "$(grep -oE 'TEXTREL|RPATH|RUNPATH' <<<"$dynamic" | paste -sd' ')"
    grep -q ' UND __stack_chk_fail' <<<"$symbols" || fault "$file" "no guards of the stack"
    grep -E ' UND __[a-z]+_chk' <<<"$symbols" | grep -qv __stack_chk || fault "$file" "no checks of the C library (_FORTIFY_SOURCE)"
    # the mark of the whole file needs a C library that was built with it, our own code does not
    if [ "$(uname -m)" = x86_64 ] && compiler_knows -fcf-protection; then
        function=$([ "$file" = "$library" ] && echo arena_open || echo main)
        code=$(objdump -d --no-show-raw-insn --disassemble=$function "$file" | grep '^ ' | head -n 1)
        grep -q endbr64 <<<"$code" || fault "$file" "no control-flow protection: $function begins with${code#*:}"
    fi
done

for function in arena_alloc arena_free; do
    code=$(objdump -d --no-show-raw-insn --disassemble=$function "$library")
    [ "$(grep -c '^ ' <<<"$code")" -gt 20 ] || fault "$library" "$function cannot be read"
    grep -qE '%fs:0x28|__stack_chk' <<<"$code" && fault "$library" "a guard of the stack is in $function"
done
(( faults == 0 ))
