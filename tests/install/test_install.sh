#!/usr/bin/env bash
# test_install.sh - what `cmake --install` leaves works after it was moved.
#
#   tests/install/test_install.sh BUILD
set -u
build=$(realpath "${1:?usage: test_install.sh BUILD}")
dir=$(mktemp -d /tmp/vqround-install.XXXXXX)
trap 'rm -rf "$dir"' EXIT

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

cmake --install "$build" --prefix "$dir/made" >"$dir/log" 2>&1 || fail "$(cat "$dir/log")"
mv "$dir/made" "$dir/moved"
! grep -rl --exclude=vqround "$dir/made" "$dir/moved/share" || fail "the files above name the prefix"

cd "$dir" || exit 1
[ "$(moved/bin/vqround --version)" = "$("$build/vqround" --version)" ] || fail "bin/vqround"
grep -q 'vqround quantize' moved/share/man/man1/vqround.1 || fail "man page"
bash -c '. moved/share/bash-completion/completions/vqround && complete -p vqround' >log || fail "completion"
[ -x moved/share/vqround/slurm/quantize.sbatch ] && [ -e moved/share/vqround/configs/demo.yaml ] ||
    fail "share/vqround"

if ! command -v modulecmd >/dev/null; then
    echo "SKIPPED: the modulefile was not tried: there is no modulecmd (environment-modules)" >&2
    exit 0
fi
eval "$(MODULEPATH=$dir/moved/share/modulefiles modulecmd bash load vqround 2>log)"
[ "$(command -v vqround)" = "$dir/moved/bin/vqround" ] || fail "the module's PATH: $(cat log)"
[ "$VQ_ROOT" = "$dir/moved/share/vqround" ] || fail "the module's VQ_ROOT: $VQ_ROOT"
bash "$VQ_ROOT/slurm/env.sh" >log 2>&1
grep -q "program $dir/moved/bin/vqround" log || fail "env.sh does not find the module's program: $(cat log)"
