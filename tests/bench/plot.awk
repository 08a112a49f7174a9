# Medians of the rows of speed for speed.gp: a line a row, a column a peer, as a share of the row's
# best; "?" is missing.
BEGIN { FS = "\t"; peer_count = split(peers, peer_list, " ") }
NR > 1 && $4 == "mops" && $1 !~ /^flat/ {
    if (!($1 in seen)) { seen[$1] = 1; rows[++row_count] = $1 }
    values[$1, $2, ++count[$1, $2]] = $5
}
function median(row, peer,    n, i, j, v, sorted) {
    n = count[row, peer]
    for (i = 1; i <= n; i++) {
        v = values[row, peer, i] + 0
        for (j = i - 1; j >= 1 && sorted[j] > v; j--) sorted[j + 1] = sorted[j]
        sorted[j + 1] = v
    }
    return sorted[int((n + 1) / 2)]
}
END {
    for (r = 1; r <= row_count; r++) {
        best = 0
        for (p = 1; p <= peer_count; p++)
            if (count[rows[r], peer_list[p]] && (m = median(rows[r], peer_list[p])) > best && peer_list[p] != "ring") best = m
        printf "%s", rows[r]
        for (p = 1; p <= peer_count; p++)
            printf count[rows[r], peer_list[p]] && best ? " %.4f" : " ?", best ? median(rows[r], peer_list[p]) / best : 0
        print ""
    }
}
