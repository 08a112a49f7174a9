#!/bin/bash
# Goal: the packages are installed, upgraded while clients hold the heap, removed and purged, and
# leave nothing behind. Method: run by run_deb.sh inside with-systemd, with dpkg on the
# container's copy of the system.
. tests/systemd/lib.sh
build=$1
debs=$w/debs
export DEBIAN_FRONTEND=noninteractive

# The packages, and the same with a higher version. An image's policy-rc.d would forbid to start
# anything; the index of all manual pages takes longer than all the rest.
prepare() {
    local deb
    rm -f /usr/sbin/policy-rc.d /var/lib/man-db/auto-update
    echo force-unsafe-io >/etc/dpkg/dpkg.cfg.d/arena-test
    mkdir -p "$debs"/{first,second}
    cp "$build"/deb/{arenad,libarena1,libarena-dev}_*.deb "$debs/first/"
    for deb in "$debs"/first/*.deb; do
        rm -rf "$w/unpacked"
        dpkg-deb -R "$deb" "$w/unpacked"
        sed -i 's/^Version: .*/&+1/; s/\(libarena1 (= [^)]*\))/\1+1)/' "$w/unpacked/DEBIAN/control"
        dpkg-deb -b "$w/unpacked" "$debs/second/" >/dev/null
    done
    install -m 755 "$build/tests/systemd/holder" /usr/local/bin/holder
}
state_of() { dpkg-query -W -f '${db:Status-Abbrev}' "$1" 2>/dev/null; }

packages_are_installed_and_the_heap_is_there() {
    local out
    want "install" dpkg -i "$debs"/first/*.deb
    same "enabled" "$(systemctl is-enabled arenad@default.socket)" enabled
    same "the socket" "$(stat -c '%a %U %G' /run/arenad/default.sock)" "660 root arena"
    getent passwd arenad >"$w/out" || fault "no user arenad"
    hold main default 2000
    same "the first client" "$answer" ready
    same "the daemon's user" "$(stat -c %U "/proc/$(prop arenad@default.service MainPID)")" arenad
    out=$(systemd-analyze verify --man=no --recursive-errors=yes arenad@default.service arenad.service 2>&1)
    same "verify" "$out" ""
}

a_program_is_built_against_the_development_package() {
    command -v cc pkg-config >/dev/null || return 0
    cp client/examples/first.c "$w/first.c"
    # shellcheck disable=SC2046
    want "compile" cc -o "$w/first" "$w/first.c" $(pkg-config --cflags --libs libarena)
    want "static" cc -o "$w/first-static" "$w/first.c" -Wl,-Bstatic $(pkg-config --libs libarena) -Wl,-Bdynamic \
        $(pkg-config --libs msgpack) -pthread
    export ARENA_SOCKET=/run/arenad/default.sock
    "$w/first" >/dev/null
    same "the program" "$("$w/first")" "hello from the process before"
    same "linked with" "$(ldd "$w/first" | grep -c 'libarena.so.1 => /')" 1
    unset ARENA_SOCKET
}

an_upgrade_under_clients_loses_nothing() {
    local before
    want "second instance" systemctl start arenad@other.service
    hold second other 500
    same "the client" "$answer" ready
    before="$(figure default heap_id) $(figure other heap_id)"
    echo '# changed by the administrator' >>/etc/arenad/default.conf
    want "upgrade" dpkg -i "$debs"/second/*.deb
    whole main "after the upgrade"
    whole second "after the upgrade"
    same "heaps" "$(figure default heap_id) $(figure other heap_id)" "$before"
    same "epochs" "$(figure default epoch) $(figure other epoch)" "2 2"
    same "the changed file" "$(tail -n 1 /etc/arenad/default.conf)" '# changed by the administrator'
    want "reinstall" dpkg -i "$debs"/second/*.deb
    whole main "after the same version again"
    want "check" ctl default check
    let_go second
}

removal_stops_and_purge_leaves_nothing() {
    local left
    let_go main
    want "another heap is enabled" systemctl --no-reload enable arenad@other.socket
    echo 'max = 64M' >/etc/arenad/other.conf
    want "remove" dpkg -r arenad
    same "services" "$(systemctl list-units --no-legend 'arenad*' | grep -cE ' (active|activating) ')" 0
    [ -e /etc/arenad/default.conf ] || fault "the configuration is gone by a removal"
    [ -e /run/arenad/default.sock ] && fault "the socket is left"
    want "purge" dpkg -P arenad libarena-dev libarena1
    same "user and group" "$(getent passwd arenad; getent group arena)" ""
    left=$(find /etc /usr/bin /usr/lib /usr/include /var/lib /run -path /run/arena-test -prune -o \
        \( -iname '*arenad*' -o -name 'libarena*' \) ! -path '*/dpkg/*' -print 2>/dev/null)
    same "files left" "$left" ""
    same "state" "$(state_of arenad)" ""
}

packages_can_be_installed_again() {
    want "install" dpkg -i "$debs"/second/*.deb
    hold again default 10
    same "a client" "$answer" ready
    let_go again
    want "purge" dpkg -P arenad libarena-dev libarena1
}

prepare
run_tests packages_are_installed_and_the_heap_is_there a_program_is_built_against_the_development_package \
    an_upgrade_under_clients_loses_nothing removal_stops_and_purge_leaves_nothing packages_can_be_installed_again
