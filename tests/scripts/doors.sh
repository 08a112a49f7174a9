#!/bin/bash
# One door a word: each word that processes share is stored by one module of shm/. A store of it in another file is a fault,
# be it an access of shm/atomic.h that writes, an assignment, or a memset. inspect.c has a copy of a heap for itself.
set -u
files=${*:-$(ls {shm,proto,client,client/*,daemon,daemon/*}/*.[ch] 2>/dev/null | grep -v '^client/examples/\|^client/ctl/inspect\.c$\|^shm/atomic\.h$')}
# what @ who may store it @ how it is written @ how a pointer to it is written
doors='a state word @ ^(shm/state\.h|client/arena_inline\.h)$ @ (^|[^[:alnum:]_])words\[[^]]*\]$ @ (^|[.>])words?( \+.*)?$
a hint @ ^shm/state\.h$ @ (^|[^[:alnum:]_])hints\[[^]]*\]$ @ (^|[.>])hints?( \+.*)?$
a page entry @ ^shm/span\.[ch]$ @ (heap(\.|->)|h->|a->)pages\[[^]]*\]$ @ (heap(\.|->)|h->)pages( \+.*)?$
a field of a span @ ^shm/span\.[ch]$ @ (record|spans\[[^]]*\]|^span)(->|\.)(lessee|charged|returned|span_class|page_count|unit|uid)$ @ ^$
a field of a tag @ ^shm/tag\.[ch]$ @ (tags\[[^]]*\]\.|^t->)(state|owner|read_only|gc_mode|pid|uid|done|image|start_time|since_s|inode|command|pins)(\[.*)?$ @ (tags\[[^]]*\]\.|^t->)command$
a root @ ^shm/root\.c$ @ (root->|roots\[[^]]*\]\.|bucket->|root_buckets\[[^]]*\]\.)(next|uid|ref|used|name|seq|first)$|root_gens\[|root_touched\[ @ ^$
the redo record @ ^shm/redo\.h$ @ redo(->|\.)[a-z_]+$ @ redo(->|\.)root_name$
a ticket @ ^shm/ticket\.h$ @ tickets\[ @ ^ticket$
a hazard @ ^shm/hazard\.h$ @ hazards\[ @ hazards\[
turning @ ^shm/collect\.h$ @ turning\[ @ ^turning$
a flag of the collection @ ^shm/collect\.h$ @ header->(collecting|snapped|collections)$ @ ^$
tag_top @ ^shm/tag\.h$ @ header->tag_top$ @ ^$
the free roots @ ^shm/root\.c$ @ header->root_(top|free)$ @ ^$
top @ ^daemon/core/mheap\.c$ @ header->top$ @ ^$
the number of clients @ ^daemon/core/clients\.c$ @ header->clients$ @ ^$
the epoch @ ^daemon/core/core\.c$ @ header->epoch$ @ ^$
the shortages @ ^daemon/shell/waiting\.c$ @ header->shortages$ @ ^$'
awk -v doors="$doors" '
BEGIN {
    kinds = split(doors, lines, "\n")
    for (k = 1; k <= kinds; k++) {
        split(lines[k], part, " @ ")
        what[k] = part[1]
        who[k] = part[2]
        itself[k] = part[3]
        pointer[k] = part[4]
    }
}
# the text up to the first comma or bracket that closes what was open before it
function first_argument(text,    i, depth, c) {
    for (i = 1; i <= length(text); i++) {
        c = substr(text, i, 1)
        if (c == "(" || c == "[")
            depth++
        if ((c == "," && depth == 0) || ((c == ")" || c == "]") && depth-- == 0))
            break
    }
    return substr(text, 1, i - 1)
}
function stored(text, by_address,    k) {
    gsub(/^[[:space:]]+|[[:space:]]+$/, "", text)
    if (by_address && text ~ /^&/)
        by_address = 0
    else if (!by_address && text ~ /^\*/)
        by_address = 1
    sub(/^[&*][[:space:]]*/, "", text)
    for (k = 1; k <= kinds; k++)
        if (text ~ (by_address ? pointer[k] : itself[k])) {
            if (FILENAME ~ who[k])
                found[k]++
            else {
                print FILENAME ":" FNR ": stores " what[k] ": " $0
                faults++
            }
        }
}
FNR == 1 { comment = 0 }
/^[[:space:]]*#[[:space:]]*define/ && !/arena_inline/ { next }
{
    code = $0
    gsub(/"([^"\\]|\\.)*"/, "\"\"", code)
    if (comment && (end = index(code, "*/")) == 0)
        next
    if (comment)
        code = substr(code, end + 2)
    while ((from = index(code, "/*")) > 0 && (end = index(substr(code, from + 2), "*/")) > 0)
        code = substr(code, 1, from - 1) " " substr(code, from + 2 + end + 1)
    comment = from > 0
    if (comment)
        code = substr(code, 1, from - 1)
    if (code ~ /(^|[^[:alnum:]_])word_swap[[:space:]]*\(/ && FILENAME != "shm/state.h") {
        print FILENAME ":" FNR ": word_swap() is for the transitions of shm/state.h: " $0
        faults++
    }
    rest = code
    while (match(rest, /(store_relaxed|store_release|exchange_[a-z_]+|cas_acq_rel|fetch_[a-z]+_[a-z]+|ARENA_INLINE_STORE|ARENA_INLINE_SWAP|memset|memcpy|memmove)[[:space:]]*\(/)) {
        rest = substr(rest, RSTART + RLENGTH)
        stored(first_argument(rest), 1)
    }
    rest = code
    while (match(rest, /[-+|&^]?=[^=]|\+\+|--/)) {
        lvalue = substr(rest, 1, RSTART - 1)
        rest = substr(rest, RSTART + RLENGTH)
        if (lvalue ~ /[!<>=]$/)
            continue
        sub(/.*[;{(,]/, "", lvalue)
        if (lvalue !~ /[[:alnum:]_][[:space:]]+\*?(const )?[[:alnum:]_]+(\[[^]]*\])*[[:space:]]*$/) # a declaration
            stored(lvalue, 0)
    }
}
END {
    for (k = 1; k <= kinds; k++)
        if (!found[k] && ARGC > 20) {
            print "nobody stores " what[k] ": is this the right folder?"
            faults++
        }
    exit faults != 0
}' $files
