#!/usr/bin/env bash
# test_skip.sh - where Slurm's tests cannot run they are skipped, and `bootstrap.sh check` says so.
set -u
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
dir=$(mktemp -d /tmp/vqround-skip.XXXXXX)
trap 'rm -rf "$dir"' EXIT

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

# A program without MPI, for one reason.
"$root/tests/slurm/test_slurm.sh" /bin/true >"$dir/out" 2>"$dir/err"
[ $? = 77 ] || fail "another code than 77: $(cat "$dir/err")"
grep -q "^SKIPPED: Slurm's tests did not run: .*true is built without MPI" "$dir/err" ||
    fail "not said: $(cat "$dir/err")"

# run_tests of bootstrap.sh, with a ctest that writes such a log.
ctest() {
    mkdir -p "$2/Testing/Temporary"
    cp "$dir/err" "$2/Testing/Temporary/LastTest.log"
    return "$code"
}
eval "$(sed -n '/^run_tests()/,/^}/p' "$root/bootstrap.sh")"
for code in 0 8; do
    run_tests "$dir/build" slurm 2>"$dir/said"
    [ $? = $code ] || fail "run_tests does not pass on ctest's $code"
    cmp "$dir/err" "$dir/said" || fail "run_tests does not say what was skipped"
done
