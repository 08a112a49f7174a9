#!/bin/bash
# sysroot.sh DIR PACKAGE...: Debian's arm64 packages and what they need, unpacked below DIR. The machine's own apt and dpkg
# are left as they are, without a foreign architecture: apt has a state of its own below DIR.apt, and nothing is installed.
set -eu
dir=$1
shift
wanted=$*
[ "$(cat "$dir/.packages" 2>/dev/null)" != "$wanted" ] || exit 0
apt=$dir.apt
rm -rf "$dir" "$apt"
mkdir -p "$dir" "$apt/state/lists/partial" "$apt/cache/archives/partial"
: >"$apt/status"
options=(-qq -o "Dir::State=$(realpath "$apt/state")" -o "Dir::State::status=$(realpath "$apt/status")"
    -o "Dir::Cache=$(realpath "$apt/cache")" -o APT::Architecture=arm64 -o APT::Architectures=arm64
    -o APT::Sandbox::User=root -o Debug::NoLocking=1)
apt-get "${options[@]}" update
apt-get "${options[@]}" install -y --no-install-recommends --download-only "$@" >/dev/null
for deb in "$apt"/cache/archives/*.deb; do dpkg-deb -x "$deb" "$dir"; done
rm -rf "$apt"
# absolute links would lead to the machine's own files
find "$dir" -type l -lname '/*' | while read -r link; do ln -sfn "$(realpath "$dir")$(readlink "$link")" "$link"; done
echo "$wanted" >"$dir/.packages"
