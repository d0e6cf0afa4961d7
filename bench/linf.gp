# The table of bench_linf as two plots: gnuplot -e "csv='linf.csv'; svg='linf.svg'" linf.gp
set datafile separator ","
set terminal svg size 900,700 dynamic font "sans,13" background "white"
set output svg
set key outside right
set grid ytics
set xlabel "linear, in the order of the file"
set multiplot layout 2,1
methods = "codebook by_sign svd kronecker kroneckers"
row(m, c) = strcol(4) eq m ? column(c) : NaN
set title "max |h(A) - h(A~)|" noenhanced
set yrange [0:1]
plot for [m in methods] csv using (int(($0 - 1) / 5)):(row(m, 7)) title m noenhanced pointtype 7 pointsize 0.4
set title "max |A - A~|" noenhanced
set yrange [0:*]
plot for [m in methods] csv using (int(($0 - 1) / 5)):(row(m, 6)) title m noenhanced pointtype 7 pointsize 0.4
unset multiplot
