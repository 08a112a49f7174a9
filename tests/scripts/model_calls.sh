#!/bin/bash
# The model calls all of the API: each function that the library exports, and each that a header defines.
set -u
calls=$(cat tests/model/*.c)
exported=$(nm -D --defined-only "${ARENA_BUILD:-build}/libarena.so.1" | awk '$2 == "T" { sub("@.*", "", $3); print $3 }')
inline=$(sed -nE 's/^static inline .*(arena_[a-z_]+)\(.*/\1/p' client/arena.h client/arena_{buf,gc,stack,vec}.h)
[ -n "$exported" ] && [ -n "$inline" ] || { echo "nothing to compare"; exit 1; }
missing=
for name in $exported $inline; do
    case $name in
    arena_frame_alloc_slow | arena_frame_pop_slow) continue ;; # behind arena_frame_alloc and arena_frame_pop
    esac
    grep -qE "\b$name\(" <<<"$calls" || missing="$missing $name"
done
[ -z "$missing" ] || { echo "the model never calls:$missing"; exit 1; }
