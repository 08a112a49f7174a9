# Medians, ratios and targets from results.tsv.
# Usage: awk -f report.awk -v peers="arena glibc ..." results.tsv
#
# Runs of two workers are sorted by where their CPUs were (near: a cache line's round trip below
# 250 ns before and after; far: above; moved: it changed between), and peers are compared where they
# were in the same place: in the place that holds runs of most peers. Portable awk: mawk and gawk.

BEGIN {
    FS = "\t"
    peer_count = split(peers, peer_list, " ")
    privates = " glibc jemalloc mimalloc tcmalloc "
}

NR == 1 { next }

{
    place = $6 == 0 ? "-" : $6 < 250 && $7 < 250 ? "near" : $6 >= 250 && $7 >= 250 ? "far" : "moved"
    id = $1 SUBSEP $4
    if (!(id in known)) {
        known[id] = 1
        ids[++id_count] = id
        row_of[id] = $1
        metric_of[id] = $4
    }
    key = id SUBSEP $2 SUBSEP place
    values[key, ++count[key]] = $5
    trips[id, place] += $6 + $7
    trip_count[id, place] += 2
}

function median(key,    n, i, j, v, sorted) {
    n = count[key]
    for (i = 1; i <= n; i++) {
        v = values[key, i] + 0
        for (j = i - 1; j >= 1 && sorted[j] > v; j--) sorted[j + 1] = sorted[j]
        sorted[j + 1] = v
    }
    return n % 2 ? sorted[(n + 1) / 2] : (sorted[n / 2] + sorted[n / 2 + 1]) / 2
}

# the place where most peers, and of these most runs, are; arena must be there if it was measured
function place_of(id,    names, i, p, runs, here, best, best_score, score) {
    split("- near far moved", names, " ")
    best_score = -1
    for (i = 1; i <= 4; i++) {
        here = runs = 0
        for (p = 1; p <= peer_count; p++)
            if ((id SUBSEP peer_list[p] SUBSEP names[i]) in count) {
                here++
                runs += count[id, peer_list[p], names[i]]
            }
        score = here * 1000 + runs + (((id SUBSEP "arena" SUBSEP names[i]) in count) ? 100000 : 0)
        if (here && score > best_score) { best_score = score; best = names[i] }
    }
    return best
}

# where the CPUs of two workers were, and what a cache line's round trip took there
function place_text(id,    p) {
    p = place_of(id)
    return p == "-" ? p : sprintf("%s %.0f ns", p, trips[id, p] / trip_count[id, p])
}

function of(row, metric, peer,    id, key) {
    id = row SUBSEP metric
    if (!(id in known)) return ""
    key = id SUBSEP peer SUBSEP place_of(id)
    return (key in count) ? median(key) : ""
}

# a's figure against b's, where both were in the same place; "" without such runs
function compare(row_a, peer_a, row_b, peer_b,    names, i, a, b) {
    split("- near far moved", names, " ")
    for (i = 1; i <= 4; i++) {
        a = row_a SUBSEP "mops" SUBSEP peer_a SUBSEP names[i]
        b = row_b SUBSEP "mops" SUBSEP peer_b SUBSEP names[i]
        if ((a in count) && (b in count)) return ratio(median(a), median(b))
    }
    return ""
}

# the same against the best private peer of another row
function compare_best(row_a, row_b,    p, v, least_v) {
    least_v = ""
    for (p = 1; p <= peer_count; p++) {
        if (!is_private(peer_list[p])) continue
        v = compare(row_a, "arena", row_b, peer_list[p])
        if (v != "" && (least_v == "" || v < least_v)) least_v = v
    }
    return least_v
}

function is_private(peer) { return index(privates, " " peer " ") > 0 }

# the best private peer of a row of speed
function best_private(row,    p, v, best) {
    best = 0
    best_name = ""
    for (p = 1; p <= peer_count; p++)
        if (is_private(peer_list[p]) && (v = of(row, "mops", peer_list[p])) != "" && v > best) {
            best = v
            best_name = peer_list[p]
        }
    return best
}

function ratio(a, b) { return (a != "" && b != "" && b != 0) ? a / b : "" }
function starts(text, prefix) { return substr(text, 1, length(prefix)) == prefix }
function cell(v) { if (v == "") printf " %9s", "-"; else printf " %9.4g", v }

function heading(first, second,    p) {
    printf "\n%-20s %-19s", first, second
    for (p = 1; p <= peer_count; p++) printf " %9s", peer_list[p]
}

function speed_table(    i, row, p, arena, best, group, t) {
    heading("Mops/s", "CPUs")
    printf "  %7s %-9s %7s\n", "/best", "(private)", "/tcm"
    for (i = 1; i <= id_count; i++) {
        row = row_of[ids[i]]
        if (metric_of[ids[i]] != "mops" || starts(row, "flat/")) continue
        printf "%-20s %-19s", row, place_text(ids[i])
        for (p = 1; p <= peer_count; p++) cell(of(row, "mops", peer_list[p]))
        arena = of(row, "mops", "arena")
        best = best_private(row)
        if (arena && best) {
            printf "  %7.2f %-9s", arena / best, best_name
            group = row
            sub("/.*", "", group)
            log_sum[group] += log(arena / best)
            in_group[group]++
            if (!(group in least) || arena / best < least[group]) { least[group] = arena / best; least_row[group] = row }
        } else printf "  %7s %-9s", "-", ""
        t = ratio(arena, of(row, "mops", "tcmalloc"))
        if (t != "") printf " %7.2f\n", t; else printf " %7s\n", "-"
    }
    print ""
    for (group in log_sum)
        printf "%-10s %2d rows: geometric mean %.2f of each row's best private peer, least %.2f (%s)\n", group,
            in_group[group], exp(log_sum[group] / in_group[group]), least[group], least_row[group]
}

function other_table(    i, p) {
    heading("memory and daemon", "")
    print ""
    for (i = 1; i <= id_count; i++) {
        if (metric_of[ids[i]] == "mops") continue
        printf "%-20s %-19s", row_of[ids[i]], metric_of[ids[i]]
        for (p = 1; p <= peer_count; p++) cell(of(row_of[ids[i]], metric_of[ids[i]], peer_list[p]))
        print ""
    }
}

# ns an operation as work grows; each against the first line of its table
function flat_table(what, title,    i, row, p, first, v) {
    first = ""
    for (i = 1; i <= id_count; i++) {
        row = row_of[ids[i]]
        if (!starts(row, "flat/" what "/")) continue
        if (first == "") {
            heading(title, "ns an operation")
            printf "  %s\n", "arena, of the first line"
            first = row
        }
        printf "%-20s %-19s", substr(row, length("flat/" what "/") + 1), ""
        for (p = 1; p <= peer_count; p++) {
            v = of(row, "mops", peer_list[p])
            cell(v ? 1000 / v : "")
        }
        v = ratio(of(first, "mops", "arena"), of(row, "mops", "arena"))
        if (v != "") printf "  %7.2f", v
        print ""
    }
}

# slowest against fastest of a table
function spread(what, peer,    i, row, v, low, high) {
    low = high = ""
    for (i = 1; i <= id_count; i++) {
        row = row_of[ids[i]]
        if (!starts(row, "flat/" what "/") || (v = of(row, "mops", peer)) == "") continue
        if (low == "" || v < low) low = v
        if (high == "" || v > high) high = v
    }
    return ratio(high, low)
}

function verdict(number, what, measured, wanted, at_most,    off) {
    printf "  %-3s %-66s", number, what
    if (measured == "") { print " not measured"; return }
    off = at_most ? measured / wanted - 1 : 1 - measured / wanted
    printf " %8.4g  wanted %s %6.4g  ", measured, at_most ? "<=" : ">=", wanted
    if (off <= 0) { print "met"; met++ }
    else { printf "missed by %.1f %%\n", off * 100; missed++ }
}
function least_wanted(number, what, measured, wanted) { verdict(number, what, measured, wanted, 0) }
function most_wanted(number, what, measured, wanted) { verdict(number, what, measured, wanted, 1) }

# what arena_inline.h adds; the targets are of calls through the shared library
function inline_lines(    i, row, best, v, sum, n) {
    for (i = 1; i <= id_count; i++) {
        row = row_of[ids[i]]
        if (!starts(row, "fixed/") || !(best = best_private(row)) || !(v = of(row, "mops", "inline"))) continue
        sum += log(v / best)
        n++
    }
    if (n) printf "  1   with arena_inline.h: geometric mean %.2f of %d rows\n", exp(sum / n), n
    if ((v = compare("random/small/1t", "inline", "random/small/1t", "tcmalloc")) != "")
        printf "  2   with arena_inline.h: random small, 1 thread, %.2f of tcmalloc\n", v
    if ((v = compare("random/wide/1t", "inline", "random/wide/1t", "tcmalloc")) != "")
        printf "  2   with arena_inline.h: random wide, 1 thread, %.2f of tcmalloc\n", v
}

function share(row, peer) {
    return peer == "best" ? compare_best(row, row) : compare(row, "arena", row, peer)
}
function scaling(size) {
    return compare("random/" size "/2p", "arena", "random/" size "/2u", "arena")
}

function targets(    n, objects, v) {
    print "\ntargets"
    n = in_group["fixed"]
    least_wanted(1, "fixed, " n + 0 " rows: geometric mean of each row's best private peer", n ? exp(log_sum["fixed"] / n) : "", 1)
    least_wanted(1, "fixed, least row: " least_row["fixed"], least["fixed"], 0.8)
    least_wanted(2, "random small, 1 thread, of tcmalloc", share("random/small/1t", "tcmalloc"), 1)
    least_wanted(2, "random wide, 1 thread, of tcmalloc", share("random/wide/1t", "tcmalloc"), 1)
    inline_lines()
    least_wanted(2, "random small, 2 processes on one heap, of two heaps", scaling("small"), 0.97)
    least_wanted(2, "random wide, 2 processes on one heap, of two heaps", scaling("wide"), 0.97)
    least_wanted(3, "cross free 64 B between processes, of the ring's ceiling", share("cross/64/p", "ring"), 0.9)
    least_wanted(3, "cross free small between processes, of the ring's ceiling", share("cross/small/p", "ring"), 0.9)
    least_wanted(3, "cross free 64 B between processes, of the best private, threads",
        compare_best("cross/64/p", "cross/64/t"), 2)
    least_wanted(3, "cross free small between processes, of the best private, threads",
        compare_best("cross/small/p", "cross/small/t"), 2)
    least_wanted(4, "large, untouched, of the best private peer", share("large/untouched", "best"), 1)
    least_wanted(4, "large, touched, of the best private peer", share("large/touched", "best"), 1)
    most_wanted(5, "held per live byte after churn, wide", of("space/wide", "held_per_live", "arena"), 1.12)
    most_wanted(5, "held per live byte after churn, tiny", of("space/tiny", "held_per_live", "arena"), 1.10)
    least_wanted(5, "given back by itself, 2 s after 95 % was freed, wide", of("space/wide", "given_back_2s", "arena"), 0.85)
    least_wanted(5, "given back after trim, wide", of("space/wide", "given_back_trim", "arena"), 0.9)
    most_wanted(6, "attach, 1 GiB heap, us", of("attach/1G", "attach_us", "arena"), 200)
    most_wanted(6, "attach, 64 GiB heap, us", of("attach/64G", "attach_us", "arena"), 200)
    v = ratio(of("attach/1G", "attach_us", "arena"), of("attach/1G", "attach_raw_us", "arena"))
    if (v != "") printf "  6   attach, 1 GiB heap: %.2f of a client that connects, maps, leases and does nothing else\n", v
    most_wanted(6, "attach, 64 GiB heap of 1 GiB heap", ratio(of("attach/64G", "attach_us", "arena"), of("attach/1G", "attach_us", "arena")), 1.15)
    most_wanted(7, "growth of 64 B blocks, round trips a MiB", of("growth/64", "round_trips_per_mib", "arena"), 2)
    print "  7   steady churn makes no refill and no system call: tests/e2e/steady_test"
    most_wanted(8, "reclaim of 1 million objects, ms", of("reclaim/death", "reclaim_ms", "arena"), 100)
    most_wanted(8, "another's refill meanwhile, p99, us", of("reclaim/death", "refill_p99_us", "arena"), 2000)
    most_wanted(8, "another's refill while 1 GiB is backed for one client, p99, us", of("reclaim/backing", "refill_p99_us", "arena"), 2000)
    most_wanted(8, "another's refill while 1 GiB is returned, p99, us", of("reclaim/returning", "refill_p99_us", "arena"), 2000)
    most_wanted(8, "a quiet client's round trip beside three floods of leases, p99, of that in quiet", ratio(of("flood/leases", "round_trip_p99_us", "arena"), of("flood/quiet", "round_trip_p99_us", "arena")), 10)
    most_wanted(8, "the same beside 256 connections of roots", ratio(of("flood/roots", "round_trip_p99_us", "arena"), of("flood/quiet", "round_trip_p99_us", "arena")), 10)
    objects = ratio(spread("objects", "arena"), spread("objects", "tcmalloc"))
    most_wanted(9, "slowdown from 10^3 to 10^7 live objects, of tcmalloc's", objects, 1.15)
    most_wanted(9, "slowest of fastest, heaps of 256 MiB to 64 GiB", spread("heap", "arena"), 1.15)
    most_wanted(9, "slowest of fastest, 1 to 200 clients attached", spread("clients", "arena"), 1.15)
    printf "%d met, %d missed\n", met, missed
}

END {
    if (!id_count) exit
    speed = other = 0
    for (i = 1; i <= id_count; i++) {
        if (metric_of[ids[i]] != "mops") other = 1
        else if (!starts(row_of[ids[i]], "flat/")) speed = 1
    }
    if (speed) speed_table()
    if (other) other_table()
    flat_table("objects", "live objects")
    flat_table("heap", "heap")
    flat_table("clients", "clients attached")
    targets()
}
