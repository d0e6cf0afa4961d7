#!/usr/bin/env bash
# test_gpu_script.sh - tests/gpu.sh without a GPU, and with programs that stand in for all that it
# runs: what passes, fails, is skipped or takes too long is said and gives the exit code.
set -euo pipefail
script=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../gpu.sh")
place=$(mktemp -d /tmp/vqround-script.XXXXXX)
trap 'rm -rf "$place"' EXIT
fail() {
    echo "test_gpu_script.sh: error: $*" >&2
    exit 1
}
program() { # PATH LINE
    printf '#!/bin/sh\n%s\n' "$2" >"$place/$1"
    chmod +x "$place/$1"
}
# expect CODE TEXT ARGUMENTS...: of a run of the script.
expect() {
    local wanted=$1 text=$2 code=0
    shift 2
    PATH=$place/bin:$PATH "$script" --build "$place/build" "$@" >"$place/said" 2>&1 || code=$?
    [ "$code" = "$wanted" ] && grep -qF -- "$text" "$place/said" ||
        fail "gpu.sh $* ended with $code and said: $(cat "$place/said"): expected $wanted and \"$text\""
}

mkdir -p "$place"/{bin,build/tests,build/bench}
program bin/nvidia-smi 'exit 9'
expect 77 'SKIPPED, NOTHING TESTED'
program bin/nvidia-smi 'echo "GPU 0: none"'
expect 2 'vq_cuda.so is missing'
touch "$place/build/vq_cuda.so"
program build/vqround 'echo vqround 0'
program build/tests/test_a_gpu 'exit 0'
expect 0 'ops: passed' --only ops
program build/tests/test_b_gpu 'exit 77'
expect 0 'ops: skipped' --only ops
program build/tests/test_c_gpu 'echo no; exit 1'
expect 1 'ops: FAILED (1)' --only ops
program build/bench/bench_ops 'echo row'
expect 0 'bench: passed' --only bench
expect 1 'ops: FAILED (1)' --only bench --only ops
expect 2 'steps: machine' --unknown
expect 0 'bench: not begun, the 0 minutes are over' --minutes 0 --only bench
expect 0 'ranks: skipped' --only ranks
program bin/nvidia-smi 'echo "GPU 0: none"; echo "GPU 1: none"'
program bin/mpirun 'shift 4; exec "$@" --launched'
# A job whose losses are those of one GPU, or others with two replicas.
program build/vqround 'task=1.5
for a; do
    [ "$last" = --out ] && out=$a
    [ "$a" = --replicas ] && task=${OTHER:-1.501}
    last=$a
done
mkdir -p "$out"
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do echo "{\"task\": $task, \"reg\": 0}"; done >"$out/metrics.jsonl"'
expect 0 '20 steps: the losses of two stages are the same, of two replicas differ by 0.067 % at most' --only ranks
OTHER=1.6 expect 1 'ranks: FAILED (1)' --only ranks
program build/vqround 'echo vqround 0'
program bin/nvidia-smi 'echo "GPU 0: none"'
program bin/compute-sanitizer 'echo "sanitizer $*"'
expect 0 '--tool synccheck --error-exitcode 9 ./test_cuda_ops_gpu attention' --only synccheck
expect 0 'beside7b: skipped' --only beside7b
program bin/python3 'echo "python3 $*"'
program build/bench/bench_model 'mkdir -p "$3"'
expect 0 'beside_reference.py --device cuda --reference' --only beside7b --reference "$place"
expect 0 'memory: skipped' --only memory
mkdir -p "$place/build/gpu/7b"
echo ' "peak_gpu_bytes": 20.5e9,' >"$place/build/gpu/7b/results.json"
program build/vqround "echo '{\"ranks\":[{\"total_bytes\":20.0e9}]}'"
expect 0 '20.50 GB of the GPU taken, 20.00 GB planned: +2.5 %' --only memory
program build/vqround "echo '{\"ranks\":[{\"total_bytes\":25.0e9}]}'"
expect 1 'memory: FAILED (1)' --only memory
grep -q '^row$' "$place/build/gpu/report.txt" || fail "the report lacks what bench printed"
[ "$(grep -c '^-- ops: FAILED' "$place/build/gpu/report.txt")" = 2 ] ||
    fail "the report lacks the steps that failed"
echo "test_gpu_script.sh: passed"
