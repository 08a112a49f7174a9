#!/bin/bash
# `make bench`: measures rows with each allocator in turn, again and again, and reports medians,
# ratios and targets.
#
#   BENCH=LIST    groups (fixed random cross published large space attach growth reclaim flood flat) or
#                 rows (fixed/64/100 random/wide/2p ...); default: all
#   PEERS=LIST    of: arena inline glibc jemalloc mimalloc tcmalloc boost ring; default: all. inline is arena with
#                 arena_inline.h, in the rows where the call counts; every other peer is called through its library
#   REPS=N        rounds (5): a round measures every row with every peer, the peers of a row one
#                 right after the other; of rows that take seconds there are at most three
#   RUN_MS=N      measured time of one run (100)
#   WAIT_MS=N     how long a run of two workers waits at most for CPUs that are near one another,
#                 a cache line's round trip below 250 ns (1000)
#   NICE=N        priority of workers and daemons (0); -20, as root, where others use the machine
#   MINUTES=N     no further row is begun when these are over, though one round is made (60)
#   OUT=DIR       results.tsv, table.txt, speed.svg (build/bench)
#
# Lists are separated by commas or blanks. Exit status 1 if a run failed (a block that was not what
# its holder wrote, no memory, a daemon that ended); a target that is missed is no failure.
set -u
here=$(dirname "$0")
build=${ARENA_BUILD:-build}
all_peers="arena inline glibc jemalloc mimalloc tcmalloc boost ring"
reps=${REPS:-5} run_ms=${RUN_MS:-100} wait_ms=${WAIT_MS:-1000} minutes=${MINUTES:-60}
out=${OUT:-$build/bench}
nice=${NICE:-0}
: "${reps:=5}" "${run_ms:=100}" "${wait_ms:=1000}" "${minutes:=60}"
peers=$(tr ',' ' ' <<<"${PEERS:-$all_peers}")
groups="fixed random cross published large space attach growth reclaim flood flat"
bench=$(tr ',' ' ' <<<"${BENCH:-$groups}")

rows_of() { # GROUP or ROW
    local size batch kind
    case $1 in
    fixed) for size in 16 64 256 1024 8192; do for batch in 1 100 10000; do echo "fixed/$size/$batch"; done; done ;;
    random) for size in small wide; do for kind in 1t 2t 2p 2u; do echo "random/$size/$kind"; done; done ;;
    cross) for kind in t p; do for size in 64 small; do echo "cross/$size/$kind"; done; done ;;
    published) printf '%s\n' published/64/1 published/64/100 published/64/10000 published/small ;;
    large) printf '%s\n' large/untouched large/touched ;;
    space) printf '%s\n' space/wide space/tiny ;;
    attach) printf '%s\n' attach/1G attach/64G ;;
    growth) printf '%s\n' growth/64 growth/1024 growth/8192 ;;
    reclaim) printf '%s\n' reclaim/quiet reclaim/death reclaim/backing reclaim/returning ;;
    flood) printf '%s\n' flood/quiet flood/leases flood/roots ;;
    flat) printf '%s\n' flat/objects/1000 flat/objects/10000 flat/objects/100000 flat/objects/1000000 \
              flat/objects/10000000 flat/heap/256M flat/heap/1G flat/heap/4G flat/heap/16G flat/heap/64G \
              flat/clients/1 flat/clients/10 flat/clients/100 flat/clients/200 ;;
    */*) echo "$1" ;;
    *) echo "bench: no such group: $1" >&2; exit 2 ;;
    esac
}

why_missing() { # PEER
    case $1 in
    jemalloc) echo "needs Debian's libjemalloc2" ;;
    mimalloc) echo "needs Debian's libmimalloc2.0" ;;
    tcmalloc) echo "needs Debian's libtcmalloc-minimal4" ;;
    boost) echo "needs Debian's g++ and libboost-dev" ;;
    *) echo "see $build/bench/make-$1.log" ;;
    esac
}

rows=$(for word in $bench; do rows_of "$word" || exit 2; done) || exit 2
mkdir -p "$out" || exit 2
present=
for peer in $peers; do
    if [ -x "$build/bench/worker-$peer" ]; then
        present="$present $peer"
    else
        echo "missing: $peer is not measured: $(why_missing "$peer")"
    fi
done

results=$out/results.tsv
printf 'row\tpeer\trep\tmetric\tvalue\tbefore_ns\tafter_ns\n' >"$results"
echo "# $(date -u +%FT%TZ) $(uname -sr), $(nproc) CPUs, $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1)," \
     "REPS=$reps RUN_MS=$run_ms NICE=$nice, load $(cut -d' ' -f1 /proc/loadavg)" | tee "$out/about.txt"

failed=0 done_reps=0

# A run of two workers whose CPUs were not near one another, though others' of this row were, is made again.
measure() { # ROW PEER REP
    local lines rc tries
    case $2/$1 in
    inline/fixed/* | inline/random/* | inline/published/*) ;;
    inline/*) return ;;
    esac
    for (( tries = 0; tries < 3; tries++ )); do
        lines=$(timeout -k 5 200 "$build/bench/worker-$2" "$1" ms="$run_ms" cpu="$3" \
                    wait="$wait_ms" seed="$3" nice="$nice" 2>"$out/worker.err")
        rc=$?
        (( rc != 77 )) || return
        if (( rc != 0 )); then
            echo "failed: $2 $1, exit status $rc: $(tail -n 1 "$out/worker.err")"
            failed=1
            return
        fi
        awk -F '\t' -v OFS='\t' -v peer="$2" -v rep="$3" '{print $1, peer, rep, $2, $3, $4, $5}' <<<"$lines" >>"$results"
        awk -F '\t' '$4 >= 250 || $5 >= 250 {exit 1}' <<<"$lines" && return
    done
}

is_slow() { # ROW: takes seconds; three rounds are enough
    case $1 in space/* | attach/* | growth/* | reclaim/* | flood/* | flat/objects/1000000*) true ;; *) false ;; esac
}

for (( rep = 1; rep <= reps; rep++ )); do
    for row in $rows; do
        ! is_slow "$row" || (( rep <= 3 )) || continue
        for peer in $present; do
            measure "$row" "$peer" "$rep"
        done
        [ ! -t 1 ] || printf '\r%-60s' "round $rep of $reps: $row"
        (( rep == 1 || SECONDS < minutes * 60 )) || break 2
    done
    done_reps=$rep
    (( SECONDS < minutes * 60 )) || break
done
[ ! -t 1 ] || printf '\r%-60s\r' ''
(( done_reps == reps )) || echo "stopped: $minutes minutes are over after $done_reps of $reps rounds"
rm -f "$out/worker.err"

awk -f "$here/report.awk" -v peers="$present" "$results" | tee "$out/table.txt"
if command -v gnuplot >/dev/null; then
    awk -f "$here/plot.awk" -v peers="$present" "$results" >"$out/plot.dat"
    gnuplot -e "data='$out/plot.dat'; out='$out/speed.svg'; peers='$present'" "$here/speed.gp" ||
        echo "missing: no plot: gnuplot failed"
else
    echo "missing: no plot: needs Debian's gnuplot-nox"
fi
echo "written: $results $out/table.txt"
exit $failed
