#!/usr/bin/env bash
# sweep.sh - submits the rows of a table that are not done yet, as one array of jobs.
set -euo pipefail
here=$(dirname "${BASH_SOURCE[0]}")
. "$here/table.sh"

if [ $# -lt 2 ]; then
    cat >&2 <<'END'
usage: slurm/sweep.sh TABLE OUT [%N] [SBATCH OPTIONS...]

  slurm/sweep.sh configs/sweep-demo.tsv runs/sweep %2 --time=00:10:00

submits slurm/sweep.sbatch for each row of TABLE that OUT has no results of, at most N at a time,
and prints the job's number. Run again, it submits what failed or is missing.
END
    exit 2
fi
table=$1 out=$2
shift 2
at_once=
if [[ ${1:-} == %* ]]; then
    at_once=$1
    shift
fi

rows=$(table_read "$table")
program=${VQ_PROGRAM:-$here/../build/vqround}
[ -x "$program" ] || program=$(command -v vqround) || program=true
table_check "$table" "$rows" "$program"
command -v sbatch >/dev/null || {
    echo "sweep.sh: error: sbatch is not there: expected Slurm's commands in PATH. Run this on a node of the cluster" >&2
    exit 2
}
left=()
while IFS= read -r row; do
    table_is_done "$out" "$row" || left+=("$(cut -f 1 <<<"$row")")
done <<<"$rows"
if [ ${#left[@]} = 0 ]; then
    echo "sweep.sh: all $(wc -l <<<"$rows") rows of $table are done" >&2
    exit
fi
kept=$(table_keep "$table" "$out")
echo "sweep.sh: ${#left[@]} of $(wc -l <<<"$rows") rows are to be run" >&2
sbatch --parsable --array="$(IFS=,; echo "${left[*]}")$at_once" "$@" "$here/sweep.sbatch" "$kept" "$out"
