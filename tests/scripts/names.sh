#!/bin/bash
# What comments, READMEs and man pages name exists: files (dir/file.c, or file.c of any folder), functions (name(), which is
# declared, defined or called in code) and labels ([XX1], which stand in the product's code).
set -u
list() { git ls-files 2>/dev/null | grep . || find . -name 'build*' -prune -o -name .git -prune -o -type f -print | sed 's/^\.\///'; }
# functions of the system that are spoken of and not called
system="main exit _exit abort fork vfork exec execve clone malloc free realloc calloc mmap munmap malloc_trim pidfd_open
        pthread_create pthread_exit pthread_cancel pthread_atfork sigaction dlclose dlopen closefrom close_range mlockall"
files=$(list | while read -r f; do [ -f "$f" ] && echo "$f"; done)
sources=$(grep -E '\.([ch]|cc|sh|bash|md|scd|mk|awk)$|^Makefile$|^tests/run$|^packaging/install$' <<<"$files" |
          grep -v '^tests/mutants/\|^tests/fuzz/corpus/\|^tests/scripts/names\.sh$')
awk -v files="$files" -v system_names="$system" '
BEGIN {
    count = split(files, file, "\n")
    for (i = 1; i <= count; i++) {
        exists[file[i]] = 1
        base = file[i]
        sub(/.*\//, "", base)
        basename[base] = 1
        part = file[i]
        while (sub(/\/[^\/]*$/, "", part)) # folders, and paths that end a path
            exists[part] = 1
        part = file[i]
        while (sub(/^[^\/]*\//, "", part))
            tail[part] = 1
    }
    count = split(system_names, part_of, /[ \n]+/)
    for (i = 1; i <= count; i++)
        called[part_of[i]] = 1
}
function is_c() { return FILENAME ~ /\.([ch]|cc)$/ }
# comments of a line of C in `comment`, the rest in `code`
function split_c(line,    at, end) {
    code = comment = ""
    while (line != "") {
        if (inside) {
            end = index(line, "*/")
            comment = comment " " (end ? substr(line, 1, end - 1) : line)
            line = end ? substr(line, end + 2) : ""
            inside = !end
        } else {
            at = match(line, /\/\*|\/\/|"([^"\\]|\\.)*"/)
            if (!at) {
                code = code line
                break
            }
            code = code substr(line, 1, at - 1) " "
            if (substr(line, at, 2) == "//") {
                comment = comment " " substr(line, at + 2)
                break
            }
            if (substr(line, at, 2) == "/*") {
                inside = 1
                line = substr(line, at + 2)
            } else
                line = substr(line, at + RLENGTH)
        }
    }
}
function note_code(text,    name) {
    if (match(text, /[A-Za-z_][A-Za-z0-9_]*##[A-Za-z_][A-Za-z0-9_]*[[:space:]]*\(/)) # a macro that makes functions
        pasted[substr(text, RSTART, index(substr(text, RSTART), "##") - 1)] = 1
    while (match(text, /[A-Za-z_][A-Za-z0-9_]*[[:space:]]*\(/)) {
        name = substr(text, RSTART, RLENGTH)
        sub(/[[:space:]]*\($/, "", name)
        called[name] = 1
        text = substr(text, RSTART + RLENGTH)
    }
}
function is_function(name,    prefix) {
    if (name in called)
        return 1
    for (prefix in pasted)
        if (index(name, prefix) == 1)
            return 1
    return 0
}
function say(what) {
    print FILENAME ":" FNR ": " what
    faults++
}
function look(text,    rest, name, before) {
    rest = text
    while (match(rest, /[A-Za-z_][A-Za-z0-9_]*\(\)/)) {
        name = substr(rest, RSTART, RLENGTH - 2)
        rest = substr(rest, RSTART + RLENGTH)
        seen_names++
        if (!is_function(name))
            say("there is no " name "()")
    }
    rest = text
    while (match(rest, /[A-Za-z0-9_.*@%<>${}+-]*(\/[A-Za-z0-9_.*@%<>${}+-]+)*\.(c|h|cc|sh|scd|md|patch|awk|mk)([^A-Za-z0-9_.]|\.?$|\.[^A-Za-z0-9])/)) {
        name = substr(rest, RSTART, RLENGTH)
        before = RSTART > 1 ? substr(rest, RSTART - 1, 1) : ""
        rest = substr(rest, RSTART + RLENGTH)
        sub(/[^A-Za-z0-9_]+$/, "", name)
        if (name ~ /[*@%<>${}+]|[A-Z][A-Z]|(^|\/)X_/ || name ~ /^(file|program|first)\.c$/ || # a pattern, or an example
            name ~ /^\.+[a-z]*$/ || before == "/" || name ~ /^(build|usr|etc|proc|sys)\//)
            continue
        seen_files++
        if (!(name in exists) && !(name in basename) && !(name in tail))
            say("there is no file " name)
    }
    rest = text
    while (match(rest, /\[[A-Z][A-Z][0-9]\]/)) {
        name = substr(rest, RSTART, RLENGTH)
        rest = substr(rest, RSTART + RLENGTH)
        seen_labels++
        if (!(name in label))
            say("there is no label " name)
    }
}
FNR == 1 {
    inside = 0
    pass[FILENAME]++
}
pass[FILENAME] == 1 { # what there is
    if (is_c()) {
        split_c($0)
        note_code(code)
        if (code ~ /(load_acquire|store_release|fence_|exchange_|cas_acq_rel|fetch_[a-z]+_release)/)
            while (match(comment, /\[[A-Z][A-Z][0-9]\]/)) {
                label[substr(comment, RSTART, RLENGTH)] = 1
                comment = substr(comment, RSTART + RLENGTH)
            }
    } else if (FILENAME ~ /\.(sh|bash|awk)$|run$|install$/)
        note_code($0)
    next
}
is_c() {
    split_c($0)
    if (FILENAME !~ /^client\/examples\//)
        look(comment)
    next
}
/\.(md|scd)$/ || FILENAME ~ /\.(md|scd)$/ { look($0); next }
/^[[:space:]]*#/ { look($0) }
END {
    if (seen_names < 50 || seen_files < 50 || seen_labels < 50) {
        print "hardly anything is named: is this the right folder?"
        faults++
    }
    exit faults != 0
}' $sources $sources
