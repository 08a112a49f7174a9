#!/bin/bash
# What was built with other flags is built anew, and with the same flags nothing is; flags that are given are added to those
# that the tree needs; compile_commands.json has a call for each source file of product and tests.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/tree"
cp -r Makefile shm proto client daemon tests packaging "$work/tree"
cd "$work/tree"
build() { make --no-print-directory B=build "$@" build/obj/shm/span.o build/pic/shm/span.o; }
old() { ! build -q "$@" >/dev/null 2>&1; }
unset MAKEFLAGS MFLAGS CFLAGS CPPFLAGS LDFLAGS
build CFLAGS=-O0 >/dev/null
! old CFLAGS=-O0 || { echo "the same flags, and something is to be built"; exit 1; }
for other in CFLAGS=-O1 CPPFLAGS=-DX LDFLAGS=-Wl,-z,now EXTRA_CFLAGS=-g0 SANITIZE=undefined CC='gcc -pipe' HARDEN=; do
    old CFLAGS=-O0 "$other" || { echo "$other: nothing is to be built"; exit 1; }
done
build CFLAGS=-O0 CPPFLAGS=-DX >/dev/null
! old CFLAGS=-O0 CPPFLAGS=-DX WERROR=-Werror || { echo "WERROR is taken for a change"; exit 1; }
make --no-print-directory compile_commands.json
find shm proto client daemon tests packaging -name '*.c' ! -path 'shm/gen/*' | sort >"$work/files"
sed -n 's/.*"file": "\([^"]*\)".*/\1/p' compile_commands.json | sort | diff - "$work/files"
make --no-print-directory help | grep -q '^compile_commands.json '
