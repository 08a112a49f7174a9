# Medians and ratios of the rows of speed, from results.tsv. Usage: awk -f report.awk -v peers="arena glibc ..." results.tsv
#
# Runs of two workers are sorted by where their CPUs were (near: a cache line's round trip below 250 ns before and after;
# far: above; moved: it changed between), and peers are compared where they were in the same place: in the place that
# holds runs of most peers.

BEGIN { FS = "\t"; peer_count = split(peers, peer_list, " ") }

NR == 1 { next }

$4 == "mops" {
    if (!($1 in seen)) { seen[$1] = 1; rows[++row_count] = $1 }
    place = $6 == 0 ? "-" : $6 < 250 && $7 < 250 ? "near" : $6 >= 250 && $7 >= 250 ? "far" : "moved"
    key = $1 SUBSEP $2 SUBSEP place
    values[key, ++count[key]] = $5
    next
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
function place_of(row,    names, i, p, runs, here, best, best_score, score) {
    if ((row SUBSEP "arena" SUBSEP "-") in count || (row SUBSEP peer_list[1] SUBSEP "-") in count) return "-"
    split("near far moved", names, " ")
    best_score = -1
    for (i = 1; i <= 3; i++) {
        here = runs = 0
        for (p = 1; p <= peer_count; p++)
            if ((row SUBSEP peer_list[p] SUBSEP names[i]) in count) {
                here++
                runs += count[row, peer_list[p], names[i]]
            }
        score = here * 1000 + runs + (((row SUBSEP "arena" SUBSEP names[i]) in count) ? 100000 : 0)
        if (here && score > best_score) { best_score = score; best = names[i] }
    }
    return best
}

function is_private(peer) { return peer == "glibc" || peer == "jemalloc" || peer == "mimalloc" || peer == "tcmalloc" }

END {
    if (!row_count) exit
    printf "%-20s %-5s", "Mops/s", "CPUs"
    for (p = 1; p <= peer_count; p++) printf " %9s", peer_list[p]
    printf "  %7s %-9s %7s\n", "/best", "(private)", "/tcm"
    for (r = 1; r <= row_count; r++) {
        row = rows[r]
        place = place_of(row)
        best = 0; best_name = ""
        printf "%-20s %-5s", row, place
        for (p = 1; p <= peer_count; p++) {
            key = row SUBSEP peer_list[p] SUBSEP place
            if (!(key in count)) { printf " %9s", "-"; continue }
            m = result[row, peer_list[p]] = median(key)
            printf " %9.4g", m
            if (is_private(peer_list[p]) && m > best) { best = m; best_name = peer_list[p] }
        }
        arena = result[row, "arena"]
        if (arena && best) {
            printf "  %7.2f %-9s", arena / best, best_name
            group = row; sub("/.*", "", group)
            log_sum[group] += log(arena / best); in_group[group]++
            if (!(group in least) || arena / best < least[group]) { least[group] = arena / best; least_row[group] = row }
        } else printf "  %7s %-9s", "-", ""
        if (arena && result[row, "tcmalloc"]) printf " %7.2f\n", arena / result[row, "tcmalloc"]; else printf " %7s\n", "-"
    }
    print ""
    for (group in log_sum)
        printf "%-10s %2d rows: geometric mean %.2f of each row's best private peer, least %.2f (%s)\n", group,
            in_group[group], exp(log_sum[group] / in_group[group]), least[group], least_row[group]
    targets()
}

function verdict(number, what, measured, wanted) {
    if (measured == "") { printf "  %-4s %-62s not measured\n", number, what; return }
    printf("  %-4s %-62s %6.2f  wanted %5.2f  %s\n", number, what, measured, wanted,
        (measured >= wanted) ? "met" : sprintf("missed by %.0f %%", (1 - measured / wanted) * 100))
}

function ratio(a, b) { return a && b ? a / b : "" }

function targets(    s, n) {
    print "\ntargets"
    if (in_group["fixed"]) {
        n = in_group["fixed"]
        verdict("1", "fixed, " n " rows: geometric mean of the best private peer", exp(log_sum["fixed"] / n), 1)
        verdict("1", "fixed, least row " least_row["fixed"], least["fixed"], 0.8)
    } else verdict("1", "fixed", "", 1)
    verdict("2", "random small, 1 thread, of tcmalloc", ratio(result["random/small/1t", "arena"], result["random/small/1t", "tcmalloc"]), 1)
    verdict("2", "random wide, 1 thread, of tcmalloc", ratio(result["random/wide/1t", "arena"], result["random/wide/1t", "tcmalloc"]), 1)
    verdict("2", "random small, 2 processes on one heap, of two heaps", ratio(result["random/small/2p", "arena"], result["random/small/2u", "arena"]), 0.97)
    verdict("2", "random wide, 2 processes on one heap, of two heaps", ratio(result["random/wide/2p", "arena"], result["random/wide/2u", "arena"]), 0.97)
    verdict("3", "cross free 64 B between processes, of the ring's ceiling", ratio(result["cross/64/p", "arena"], result["cross/64/p", "ring"]), 0.9)
    verdict("3", "cross free small between processes, of the ring's ceiling", ratio(result["cross/small/p", "arena"], result["cross/small/p", "ring"]), 0.9)
    verdict("4", "large, untouched, of the best private peer", best_ratio("large/untouched"), 1)
    verdict("4", "large, touched, of the best private peer", best_ratio("large/touched"), 1)
}

function best_ratio(row,    p, best) {
    best = 0
    for (p = 1; p <= peer_count; p++)
        if (is_private(peer_list[p]) && result[row, peer_list[p]] > best) best = result[row, peer_list[p]]
    return ratio(result[row, "arena"], best)
}
