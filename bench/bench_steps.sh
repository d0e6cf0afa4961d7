#!/usr/bin/env bash
# bench_steps.sh - training steps a second on 1, 2 and 4 ranks, the threads divided among them:
#   bench_steps.sh VQROUND MODEL_DIR TEXT [further options of quantize]
# For each: the median step after the first two, and the share of it that rank 0 spent waiting.
set -euo pipefail
if (($# < 3)); then
    sed -n '2,4s/^# //p' "$0" >&2
    exit 2
fi
vqround=$(realpath "$1") model=$2 text=$3
shift 3
threads=$(nproc)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export OMPI_MCA_rmaps_base_oversubscribe=1 OMPI_MCA_hwloc_base_binding_policy=none
echo "ranks threads steps/s  s/step waited"
for ranks in 1 2 4; do
    each=$((threads / ranks > 0 ? threads / ranks : 1))
    mpiexec -n "$ranks" "$vqround" quantize --model "$model" --text "$text" --no-eval --quiet \
        --kmeans.iters 2 --nsamples 4 --seqlen 512 --steps 10 --threads "$each" \
        --out "$work/$ranks" "$@" >"$work/out"
    # "seconds" and "waited_ratio" of each line, sorted by the first
    sed -nE 's/.*"seconds": ([^,]*), "waited_ratio": ([^,]*),.*/\1 \2/p' \
        "$work/$ranks/metrics.jsonl" | tail -n +3 | sort -g |
        awk -v r="$ranks" -v t="$each" '
            { s[NR] = $1; waited += $2; }
            END { m = s[int((NR + 1) / 2)]
                  printf "%5d %7d %7.3f %7.3f %5.1f%%\n", r, t, 1 / m, m, 100 * waited / NR }'
done
