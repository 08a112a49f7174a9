#!/bin/bash
# Every order stronger than relaxed bears a label, such as [ST1], on its line, and each label stands at both of its ends: at
# least once where something is released, and once where it is acquired. A swap and a full fence are both. So nobody
# orders something for a partner that is not there, or was taken away.
set -u
files=$(ls {shm,proto,client,client/*,daemon,daemon/*}/*.[ch] 2>/dev/null | grep -v '^client/examples/\|^shm/atomic\.h$')
awk '
/^[[:space:]]*#[[:space:]]*define/ { next }
{
    code = $0
    sub(/\/\*.*/, "", code) # an operation that a comment names is none
    sub(/^ \*.*/, "", code)
    sub(/\/\/.*/, "", code)
    releases = code ~ /(^|[^_[:alnum:]])(store_release|fence_release|fetch_add_release)[[:space:]]*\(/
    acquires = code ~ /(^|[^_[:alnum:]])(load_acquire|fence_acquire)[[:space:]]*\(/
    both = code ~ /(^|[^_[:alnum:]])(exchange_acq_rel|cas_acq_rel|fence_seq_cst)[[:space:]]*\(/
    raw = code ~ /__atomic_|__sync_|atomic_(load|store|exchange|compare|fetch|thread_fence)/
    line = $0
    labels = 0
    while (match(line, /\[[A-Z][A-Z][0-9]\]/)) {
        label = substr(line, RSTART, RLENGTH)
        line = substr(line, RSTART + RLENGTH)
        seen[label] = FILENAME ":" FNR
        labels++
        released[label] += releases || both
        acquired[label] += acquires || both
        ends[label] += releases || acquires || both
    }
    if ((releases || acquires || both) && !labels) {
        print FILENAME ":" FNR ": an order without a label: " $0
        faults++
    }
    if (raw && FILENAME != "client/arena_inline.h") {
        print FILENAME ":" FNR ": not by a name of shm/atomic.h: " $0
        faults++
    }
}
END {
    for (label in seen) {
        count++
        if (!released[label] || !acquired[label] || ends[label] < 2) {
            print seen[label] ": " label " has " released[label] + 0 " ends that release and " acquired[label] + 0 " that acquire"
            faults++
        }
    }
    if (count < 5) {
        print "found hardly any labels: is this the right folder?"
        faults++
    }
    exit faults != 0
}' $files
