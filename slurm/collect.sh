#!/usr/bin/env bash
# collect.sh - the results of a sweep as one CSV: a line for each row of the table.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/table.sh"

if [ $# != 2 ]; then
    echo "usage: slurm/collect.sh TABLE OUT >results.csv" >&2
    exit 2
fi
table=$1 out=$2

# The numbers of results.json as lines "SECTION.KEY VALUE"; of peak_rss_bytes the largest.
numbers() { # FILE
    awk '
    { gsub(/[",]/, "") }
    / [{[]$/ { section = substr($1, 1, length($1) - 1) "." }
    /^  []}]/ { section = "" }
    /^    [0-9]/ && section == "peak_rss_bytes." && $1 > peak { peak = $1 }
    NF == 2 && $2 !~ /[{[]/ { print section substr($1, 1, length($1) - 1), $2 == "null" ? "" : $2 }
    END { print "peak_rss_bytes", peak }' "$1"
}

columns="perplexity.fp perplexity.rtn perplexity.gptq perplexity.soft perplexity.hard steps
    seconds.total seconds_per_step peak_rss_bytes model_bytes.after machine.ranks"

rows=$(table_read "$table")
# shellcheck disable=SC2086 # one word per column
{
    printf 'row,name,status,'
    printf '%s,' $columns
    echo settings
}
while IFS= read -r row; do
    name=$(cut -f 2 <<<"$row")
    found=
    if table_is_done "$out" "$row"; then
        status='done'
        found=$(numbers "$out/$name/results.json")
    elif [ -e "$out/$name/failed" ]; then
        status="failed: $(cat "$out/$name/failed")"
    elif [ -e "$out/$name" ]; then
        status=unfinished
    else
        status=missing
    fi
    printf '%s,%s,%s,' "$(cut -f 1 <<<"$row")" "$name" "$status"
    for column in $columns; do
        printf '%s,' "$(awk -v column="$column" '$1 == column { print $2 }' <<<"$found")"
    done
    printf '"%s"\n' "$(cut -f 3- <<<"$row" | tr '\t' ' ' | sed 's/"/""/g')"
done <<<"$rows"
