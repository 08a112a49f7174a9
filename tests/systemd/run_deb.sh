#!/bin/bash
# The packages of `make deb` under a real systemd; deb.sh has the tests.
set -u
cd "$(dirname "$0")/../.."
build=${ARENA_BUILD:-build}
ls "$build"/deb/arenad_*.deb >/dev/null 2>&1 || { echo "skipped: there are no packages: make deb"; exit 77; }
exec tests/systemd/with-systemd -t "${TEST_HANG:-800}" -- tests/systemd/deb.sh "$build"
