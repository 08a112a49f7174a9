#!/bin/bash
# The committed size class table is what its generator writes.
set -eu
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
${CC:-cc} -O1 -o "$work/mksizeclasses" shm/gen/mksizeclasses.c
"$work/mksizeclasses" >"$work/table.h"
diff -u shm/sizeclass_table.h "$work/table.h"
