#!/bin/bash
# profile.sh PROGRAM: a profile's cost at its default rate, in percent of a program that only allocates and frees. Runs with
# and without take turns; of each the least is taken, since all else that the machine does only adds.
set -eu
program=$1 rounds=${ROUNDS:-15}
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-profile-XXXXXX")
trap 'rm -rf "$work"' EXIT
export ARENA_PROFILE_DIR=$work
for (( i = 0; i < rounds; i++ )); do
    ARENA_PROFILE= "$program" >>"$work/off"
    ARENA_PROFILE=on "$program" >>"$work/on"
done
off=$(sort -n "$work/off" | head -n 1) on=$(sort -n "$work/on" | head -n 1)
awk -v off="$off" -v on="$on" -v rounds="$rounds" 'BEGIN {
    printf "64 bytes by the 100, CPU ns for alloc + free, best of %d\n  without %8.3f\n  ARENA_PROFILE=on %.3f (%+.1f %%)\n",
        rounds, off, on, (on / off - 1) * 100 }'
