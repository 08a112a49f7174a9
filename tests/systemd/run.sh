#!/bin/bash
# The service under a real systemd, in a container that is gone afterwards; skipped, with a line that says why, where
# there can be none. service.sh has the tests.
set -u
cd "$(dirname "$0")/../.."
build=${ARENA_BUILD:-build}
case $build in *build-*) echo "skipped: a sanitizer does not run in the unit's sandbox"; exit 77 ;; esac
exec tests/systemd/with-systemd -t "${TEST_HANG:-300}" -- tests/systemd/service.sh "$build"
