#!/bin/bash
# make install puts everything below DESTDIR, with PREFIX in every path that is written into a file;
# a program is built against it by pkg-config alone; an administrator's configuration stays.
set -eu
cd "$(dirname "$0")/../.."
build=${ARENA_BUILD:-build}
work=$(mktemp -d "${TMPDIR:-/tmp}/arena-install-XXXXXX")
trap 'rm -rf "$work"' EXIT
fault() { echo "FAULT: $*"; exit 1; }

DESTDIR=$work/a PREFIX=/usr LIBDIR=/usr/lib packaging/install "$build"
DESTDIR='' PREFIX=$work/b LIBDIR=$work/b/lib SYSCONFDIR=$work/b/etc packaging/install "$build"
for f in bin/arenad bin/arenactl lib/libarena.so lib/libarena.so.1 lib/libarena.a include/arena.h include/arena_buf.h include/arena_gc.h \
    include/arena_inline.h include/arena_stack.h include/arena_vec.h \
    lib/pkgconfig/libarena.pc lib/systemd/system/arenad.service lib/systemd/system/arenad@.service \
    lib/systemd/system/arenad@.socket share/arena/arena-gdb.py lib/sysusers.d/arenad.conf lib/tmpfiles.d/arenad.conf; do
    [ -e "$work/a/usr/$f" ] || fault "no $f below DESTDIR"
    [ -e "$work/b/$f" ] || fault "no $f below PREFIX"
done
[ -e "$work/a/etc/arenad/default.conf" ] || fault "no configuration below DESTDIR"
cmp "$work/a/usr/share/gdb/auto-load/usr/lib/"*-gdb.py "$work/b/share/gdb/auto-load$work/b/lib/"*-gdb.py || fault "gdb does not load its commands"
diff <(cd "$work/a/usr" && find . ! -path '*/gdb/*' | sort) <(cd "$work/b" && find . ! -path './etc*' ! -path '*/gdb/*' | sort) ||
    fault "PREFIX changes what is installed"
grep -qx "ExecStart=$work/b/bin/arenad --foreground --name %i" "$work/b/lib/systemd/system/arenad@.service" ||
    fault "the unit starts another daemon"
grep -rlF "$work" "$work/a" && fault "DESTDIR is in a file"

echo '# mine' >"$work/a/etc/arenad/default.conf"
DESTDIR=$work/a PREFIX=/usr LIBDIR=/usr/lib packaging/install "$build"
[ "$(cat "$work/a/etc/arenad/default.conf")" = '# mine' ] || fault "the configuration is overwritten"

case $build in *build-*) exit 0 ;; esac # a sanitizer's library wants a sanitizer's program
export PKG_CONFIG_PATH=$work/b/lib/pkgconfig
flags=$(pkg-config --cflags --libs libarena)
# shellcheck disable=SC2086
${CC:-cc} -o "$work/first" client/examples/first.c $flags
"$work/b/bin/arenad" --foreground --socket "$work/s" --max 64M 2>/dev/null &
daemon=$!
trap 'kill $daemon 2>/dev/null || true; rm -rf "$work"' EXIT
export ARENA_SOCKET=$work/s LD_LIBRARY_PATH=$work/b/lib
until "$work/b/bin/arenactl" stat >/dev/null 2>&1; do kill -0 $daemon; done
"$work/first" >/dev/null
[ "$("$work/first")" = "hello from the process before" ] || fault "the installed library does not work"
