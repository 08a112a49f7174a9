# Rows of speed, each as a share of the row's best allocator. Variables: data, out, peers.
set terminal svg size 1800,600 dynamic enhanced font 'sans,11' background 'white'
set output out
set style data histograms
set style histogram clustered gap 1
set style fill solid 0.9 noborder
set datafile missing '?'
set boxwidth 0.9
set yrange [0:1.7]
set ytics 0.2
set grid ytics lc rgb '#cccccc'
set xtics rotate by -40 noenhanced
set key outside right top noenhanced
set title 'operations a second, of the best allocator of each row'
plot for [i=1:words(peers)] data using (column(i+1)):xtic(1) title word(peers, i)
