#!/bin/bash
# Goal: the shipped units do what systemctl's user expects, and nothing that systemd does to the
# daemon loses a byte. Method: run by run.sh inside with-systemd: installs to /, then uses
# systemctl, and clients that hold objects.
. tests/systemd/lib.sh
build=$1

install_all() {
    want "install" packaging/install "$build" || exit 1
    install -m 755 "$build/tests/systemd/holder" /usr/bin/holder
    want "users" systemd-sysusers || exit 1
    want "tmpfiles" systemd-tmpfiles --create arenad.conf || exit 1
    arena=$(getent group arena | cut -d: -f3)
    printf 'alice:x:5001:5001::/:/bin/sh\nbob:x:5002:5002::/:/bin/sh\neve:x:5003:5003::/:/bin/sh\n' >>/etc/passwd
    printf 'alice:x:5001:\nbob:x:5002:\neve:x:5003:\n' >>/etc/group
    mkdir -p /etc/arenad
    for heap in default other; do echo "max = 256M" >"/etc/arenad/$heap.conf"; done
    systemctl daemon-reload
}
as() { setpriv --reuid="$1" --regid="$1" --groups="${GROUPS_OF-$arena}" "${@:2}"; }
drop_in() { # HEAP LINE...: of the service, until clear_drop_ins
    mkdir -p "/run/systemd/system/arenad@$1.service.d"
    printf '%s\n' "[Service]" "${@:2}" >"/run/systemd/system/arenad@$1.service.d/test.conf"
    systemctl daemon-reload
}
clear_drop_ins() { rm -rf /run/systemd/system/arenad@*.service.d; systemctl daemon-reload; }
memfds() { # of heaps, in any process, PID 1's store among them
    ls -l /proc/[0-9]*/fd 2>/dev/null | grep -c 'memfd:arena-'
}

verify_is_clean_and_little_is_exposed() {
    local out
    out=$(systemd-analyze verify --man=no --recursive-errors=yes arenad@default.service arenad@default.socket \
        arenad.service arena-metrics@default.service arena-metrics@default.timer 2>&1) || fault "verify: $out"
    same "verify's output" "$out" ""
    out=$(systemd-analyze security --offline=true --no-pager --threshold=8 arenad@default.service 2>&1) ||
        fault "exposed: $out"
    out=$(systemd-analyze verify --man=no "$PWD/packaging/arenad@.service" 2>&1 | grep -i 'unknown' || true)
    same "unknown keys" "$out" ""
}

start_waits_until_the_daemon_is_ready() {
    drop_in other 'ExecStart=' "ExecStart=/bin/sh -c 'until test -e /run/go; do sleep 0.05; done; exec arenad \
--foreground --name other'"
    systemctl start arenad@other.service & local job=$!
    until [ "$(prop arenad@other.service MainPID)" != 0 ]; do sleep 0.05; done
    same "before READY" "$(prop arenad@other.service ActiveState)" activating
    touch /run/go
    wait $job || fault "start ended with $?"
    same "after READY" "$(prop arenad@other.service ActiveState)" active
    says "the status" "$(prop arenad@other.service StatusText)" 'clients,.*epoch 1'
    same "descriptors in the store" "$(prop arenad@other.service NFileDescriptorStore)" 3
    want "stop" systemctl stop arenad@other.service arenad@other.socket
    clear_drop_ins
}

a_client_that_connects_starts_the_daemon() {
    want "start of the socket" systemctl start arenad@default.socket
    same "before" "$(prop "$(unit default)" ActiveState)" inactive
    want "stat" ctl default stat
    same "after" "$(prop "$(unit default)" ActiveState)" active
    same "the socket" "$(stat -c '%a %U %G' /run/arenad/default.sock)" "660 root arena"
    hold main default 2000
    same "the client" "$answer" ready
}

kill_9_of_the_daemon_loses_nothing() {
    for i in 1 2 3; do
        want "kill" systemctl kill --kill-who=main -s KILL "$(unit default)"
        whole main "after kill -9, $i"
    done
    same "epoch" "$(figure default epoch)" 4
}

kill_9_while_a_client_works_loses_nothing() {
    local i lost=0
    for (( i = 0; i < 300; i++ )); do echo check >&"${to[main]}"; done
    for i in 1 2 3; do
        want "stat" ctl default stat
        want "kill" systemctl kill --kill-who=main -s KILL "$(unit default)"
    done
    for (( i = 0; i < 300; i++ )); do
        read -r -u "${from[main]}" answer
        [ "$answer" = whole ] || lost=$(( lost + 1 ))
    done
    same "checks that failed" "$lost, the last: $answer" "0, the last: whole"
    same "epoch" "$(figure default epoch)" 7
    want "check" ctl default check
}

restart_and_reload_lose_nothing() {
    want "restart" systemctl restart "$(unit default)"
    whole main "after restart"
    want "daemon-reload" systemctl daemon-reload
    want "restart by the other name" systemctl restart arenad.service
    whole main "after restart of arenad.service"
    want "restart" systemctl restart "$(unit default)"
    whole main "after the second restart"
}

daemon_reexec_loses_nothing() {
    want "daemon-reexec" systemctl daemon-reexec
    whole main "after daemon-reexec"
    same "descriptors in the store" "$(prop "$(unit default)" NFileDescriptorStore)" 3
    want "kill" systemctl kill --kill-who=main -s KILL "$(unit default)"
    whole main "after daemon-reexec and kill -9"
}

the_watchdog_kills_a_daemon_that_hangs_and_nothing_is_lost() {
    drop_in default WatchdogSec=3 LimitCORE=0
    want "restart" systemctl restart "$(unit default)"
    whole main "before"
    # on a machine that is very busy the watchdog may have found it slow already
    until_true systemctl kill --kill-who=main -s STOP "$(unit default)"
    whole main "after the watchdog"     # waits for the daemon after it
    journalctl --sync
    says "the journal" "$(journalctl -o cat -u "$(unit default)")" 'Watchdog timeout'
    clear_drop_ins
    want "restart" systemctl restart "$(unit default)"
    whole main "in the end"
}

a_broken_config_file_loses_nothing() {
    cp /etc/arenad/default.conf "$w/conf"
    echo 'maximum = 5' >>/etc/arenad/default.conf
    systemctl restart "$(unit default)" 2>/dev/null && fault "it started with a broken file"
    journalctl --sync
    says "the journal" "$(journalctl -o cat -u "$(unit default)" -n 20)" 'default.conf:2: maximum = 5 unknown key'
    cp "$w/conf" /etc/arenad/default.conf
    whole main "when the file is right again"
}

reload_changes_what_can_change_and_names_the_rest() {
    local log
    until_true systemctl is-active "$(unit default)"
    printf 'max = 512M\nlimit-clients = 1\nlog-level = debug\n' >/etc/arenad/default.conf
    want "reload" systemctl reload "$(unit default)"
    until_true eval "ctl default limits --json | tr -d '[:space:]' | grep -q '\"clients\":1[,}]'"
    hold second default 10
    says "a second client" "$answer" 'quota'
    exec {to[second]}>&- {from[second]}<&-
    whole main "after reload"
    journalctl --sync
    log=$(journalctl -o cat -u "$(unit default)")
    says "what cannot change" "$log" 'event=reload key=max value="512M" result=unchanged'
    echo "max = lots" >/etc/arenad/default.conf
    systemctl reload "$(unit default)" 2>/dev/null && fault "a refused reload is told as a success"
    until_true eval "journalctl --sync; journalctl ARENA_EVENT=reload ARENA_RESULT=refused -o cat | grep -q ."
    same "the heap" "$(figure default heap_max)" $(( 256 << 20 ))
    echo "max = 256M" >/etc/arenad/default.conf
    want "reload by the other name" systemctl start arenad.service
    want "reload by the other name" systemctl reload arenad.service
    whole main "after the last reload"
}

two_instances_do_not_see_each_other() {
    hold second other 500 2>/dev/null
    [ "$answer" = ready ] && fault "a socket that was not started answers"
    exec {to[second]}>&- {from[second]}<&-
    want "start" systemctl start "$(unit other)"
    hold second other 500
    same "the second client" "$answer" ready
    same "clients of default" "$(figure default clients)" 1
    same "clients of other" "$(figure other clients)" 1
    [ "$(figure default heap_id)" != "$(figure other heap_id)" ] || fault "one heap for both"
    want "stop of default" systemctl stop "$(unit default)"
    whole second "after the stop of the other instance"
    [ -S /run/arenad/other.sock ] || fault "the socket of the other instance is gone"
    ask main check      # its connecting starts the daemon, with a new heap
    same "a client of the stopped heap" "$answer" "Stale file handle"
    same "the new heap" "$(figure default epoch) $(figure default clients)" "1 0"
    let_go second
}

stop_releases_the_memory() {
    exec {to[main]}>&- {from[main]}<&-
    wait "${pid_of[main]}"
    [ "$(memfds)" -gt 0 ] || fault "no memfd of a heap is found: this test cannot fail"
    want "stop" systemctl stop arenad@{default,other}.socket arenad@{default,other}.service
    [ -e /run/arenad/default.sock ] && fault "the socket of the stopped instance is left"
    until_true eval '[ "$(memfds)" = 0 ]'
    want "start" systemctl start "$(unit default)"
    same "a new heap" "$(figure default epoch) $(figure default objects_used)" "1 0"
}

users_have_names_and_quotas_of_their_own() {
    local rows
    printf 'max = 256M\nlimit-user-bytes = 16M\n' >/etc/arenad/default.conf
    want "restart" systemctl restart "$(unit default)"
    hold alice default 200 as 5001
    same "alice" "$answer" ready
    hold bob default 200 as 5002
    same "bob" "$answer" ready
    rows=$(ctl default clients --json | tr -d '[:space:]')
    says "clients" "$rows" '"uid":5001'
    says "clients" "$rows" '"uid":5002'
    says "clients" "$rows" '"command":"holder"'
    hold greedy default 30000 as 5001
    says "alice's second" "$answer" 'quota'
    exec {to[greedy]}>&- {from[greedy]}<&-
    whole bob "beside alice at her limit"
    let_go alice
    let_go bob
}

who_is_not_allowed_is_told_so() {
    local out
    out=$(GROUPS_OF=5003 as 5003 env ARENA_SOCKET=/run/arenad/default.sock arenactl stat 2>&1)
    same "status outside the group" "$?" 3
    says "outside the group" "$out" 'default.sock: Permission denied'
    printf 'max = 256M\nallow-users = alice\n' >/etc/arenad/default.conf
    want "restart" systemctl restart "$(unit default)"
    out=$(as 5003 env ARENA_SOCKET=/run/arenad/default.sock arenactl stat 2>&1)
    same "status of a member" "$?" 3
    says "a member of the group" "$out" 'not allowed.*allow-users'
    hold eve default 10 as 5003
    says "the library" "$answer" 'Permission denied'
    exec {to[eve]}>&- {from[eve]}<&-
    want "alice" as 5001 env ARENA_SOCKET=/run/arenad/default.sock arenactl stat
    journalctl --sync
    same "lines in the journal" "$(journalctl -o cat ARENA_EVENT=refuse ARENA_UID=5003 | wc -l)" 2
}

the_journal_has_one_line_an_event_with_fields() {
    local pid out
    hold victim default 10 as 5001
    pid=$(find /proc -maxdepth 1 -name '[0-9]*' -user 5001 -printf %f) # there need be no procps
    kill -KILL "$pid"
    until_true eval "journalctl --sync; journalctl -o cat ARENA_EVENT=death ARENA_PID=$pid | grep -q ."
    out=$(journalctl -o cat ARENA_EVENT=death "ARENA_PID=$pid" ARENA_UID=5001)
    same "lines" "$(wc -l <<<"$out")" 1
    says "the line" "$out" "^event=death tag=[0-9]+ pid=$pid uid=5001 "
    out=$(journalctl -o json _SYSTEMD_UNIT=arenad@default.service _TRANSPORT=journal | grep -vc '"ARENA_EVENT"')
    same "lines without an event" "$out" 0
    exec {to[victim]}>&- {from[victim]}<&-
}

a_heap_in_a_directory_outlives_the_service() {
    printf 'max = 64M\nbacking = /var/lib/arenad/other\n' >/etc/arenad/other.conf
    want "start" systemctl start "$(unit other)"
    hold main other 500
    same "the client" "$answer" ready
    whole main
    want "kill" systemctl kill --kill-who=main -s KILL "$(unit other)"
    whole main "after kill -9"
    let_go main
    want "stop" systemctl stop "$(unit other)"
    want "start" systemctl start "$(unit other)"
    same "epoch, objects" "$(figure other epoch) $(figure other objects_shared)" "3 500"
    want "check" ctl other check
    want "stop" systemctl stop arenad@other.socket "$(unit other)"
}

the_timer_writes_metrics_of_a_heap_that_is_served() {
    local file=/var/lib/prometheus/node-exporter/arena-default.prom
    mkdir -p "${file%/*}"
    want "start" systemctl start "$(unit default)" arena-metrics@default.service
    says "metrics" "$(grep '^arena_heap_max_bytes' "$file")" ' 268435456$'
    want "timer" systemctl start arena-metrics@default.timer
    want "stop" systemctl stop "$(unit default)"
    rm -f "$file"
    systemctl start arena-metrics@default.service
    [ -e "$file" ] && fault "a heap that is not served was asked"
    same "the heap" "$(prop "$(unit default)" ActiveState)" inactive
    same "the timer" "$(prop arena-metrics@default.timer ActiveState)" inactive
    want "start" systemctl start "$(unit default)"
}

every_heap_is_whole() {
    want "check" ctl default check
    want "a collection in the sandbox" ctl default gc
    want "stop by the other name" systemctl stop arenad.service arenad@default.socket
    same "the instance" "$(prop "$(unit default)" ActiveState)" inactive
    until_true eval '[ "$(memfds)" = 0 ]'
}

install_all
run_tests verify_is_clean_and_little_is_exposed start_waits_until_the_daemon_is_ready \
    a_client_that_connects_starts_the_daemon kill_9_of_the_daemon_loses_nothing \
    kill_9_while_a_client_works_loses_nothing restart_and_reload_lose_nothing \
    daemon_reexec_loses_nothing the_watchdog_kills_a_daemon_that_hangs_and_nothing_is_lost \
    a_broken_config_file_loses_nothing reload_changes_what_can_change_and_names_the_rest \
    two_instances_do_not_see_each_other stop_releases_the_memory \
    users_have_names_and_quotas_of_their_own who_is_not_allowed_is_told_so \
    the_journal_has_one_line_an_event_with_fields a_heap_in_a_directory_outlives_the_service \
    the_timer_writes_metrics_of_a_heap_that_is_served \
    every_heap_is_whole
