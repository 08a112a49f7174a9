#!/bin/bash
# `make deb` on a bare Debian installs all that the packages are built with: what debian/control asks for, and
# build-essential, which every package's build may count on, and so may be named nowhere.
set -u
failed=0
installs=" $(make -pn help | sed -n 's/^DEPS_DEB := //p' | tail -n 1) "
[[ $installs == *" gcc "* ]] || { echo "DEPS_DEB is not found: '$installs'"; exit 1; }
needs=$(sed -n '/^Build-Depends:/,/^[A-Z][a-z-]*:/{s/^Build-Depends://;/^[A-Z]/d;p}' packaging/debian/control)
wants() { # PACKAGE...: one of them
    for package in "$@"; do
        case $package in debhelper-compat|dh-sequence-*) package=debhelper ;; esac # which provides them
        [[ $installs == *" $package "* ]] && return
    done
    echo "FAULT: make deb does not install $*"
    failed=1
}
while read -r alternatives; do
    # shellcheck disable=SC2086
    wants $(tr '|' ' ' <<<"$alternatives")
done < <(tr -d '\n' <<<"$needs" | sed 's/([^)]*)//g' | tr ',' '\n' | grep '[a-z]'; echo build-essential)
exit $failed
