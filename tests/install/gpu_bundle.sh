#!/usr/bin/env bash
# gpu_bundle.sh - tries what a bundle has for GPUs, as far as a machine without one can: its script and
# programs run from another place, and the golden tests find their files there.
#
#   tests/install/gpu_bundle.sh BUNDLE BUILD      the bundle's folder, and the build that it is of
set -euo pipefail
folder=$(realpath "${1:?usage: gpu_bundle.sh BUNDLE BUILD}") build=$(realpath "${2:?}")
place=$(mktemp -d /tmp/vqround-gpu.XXXXXX)
trap 'rm -rf "$place"' EXIT
fail() {
    echo "gpu_bundle.sh: error: $*" >&2
    exit 1
}
cp -r "$folder" "$place/bundle"
cd "$place/bundle"
if nvidia-smi -L >/dev/null 2>&1; then
    echo "gpu_bundle.sh: a GPU is here: run ./gpu.sh in the bundle instead" >&2
    exit 0
fi
code=0
./gpu.sh >"$place/said" 2>&1 || code=$?
[ "$code" = 77 ] && grep -q 'SKIPPED, NOTHING TESTED' "$place/said" ||
    fail "gpu.sh ended with $code and said: $(cat "$place/said"): expected 77 and that it skips"
for test in tests/test_*_gpu; do
    code=0
    (cd tests && "../$test") >"$place/said" 2>&1 || code=$?
    [ "$code" = 77 ] && grep -q 'no GPU here' "$place/said" ||
        fail "$test ended with $code and said: $(cat "$place/said"): expected 77 and that it skips"
done
# The twin that needs no GPU reads the same files.
cp "$build/tests/test_logits_on_cpu" tests
(cd tests && OMP_NUM_THREADS=1 ./test_logits_on_cpu) >"$place/said" 2>&1 ||
    fail "test_logits_on_cpu in the bundle's tests/: $(cat "$place/said"): expected the golden logits"
bench/bench_ops --device cpu --threads 1 --seconds 0.01 --only adam_step >"$place/said" 2>&1 ||
    fail "bench_ops ended with $? and said: $(cat "$place/said"): expected a row"
grep -q adam "$place/said" || fail "bench_ops said: $(cat "$place/said"): expected a row of adam"
echo "gpu_bundle.sh: gpu.sh, tests and benchmarks of the bundle run from another place"
