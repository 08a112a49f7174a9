#!/bin/bash
# The service under a real systemd, in a container that is gone afterwards; skipped, with a line
# that says why, where there can be none. service.sh has the tests.
set -u
cd "$(dirname "$0")/../.."
build=${ARENA_BUILD:-build}
case $build in *build-*) echo "skipped: a sanitizer does not run in the unit's sandbox"; exit 77 ;; esac
version=$(systemctl --version 2>/dev/null | awk 'NR == 1 { print $2 }')
if [ "${version:-0}" -lt 252 ]; then
    echo "skipped: the units are for systemd 252 and later, here is ${version:-none}"
    exit 77
fi
exec tests/systemd/with-systemd -t "${TEST_HANG:-800}" -- tests/systemd/service.sh "$build"
