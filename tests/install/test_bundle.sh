#!/usr/bin/env bash
# test_bundle.sh - the bundle of a built tree runs where nothing is installed.
#
#   tests/install/test_bundle.sh BUILD        skipped (77) without patchelf, or where this user cannot
#                                             change the root
set -u
build=$(realpath "${1:?usage: test_bundle.sh BUILD}")
bootstrap=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../bootstrap.sh")
dir=$(mktemp -d /tmp/vqround-bundle.XXXXXX)
trap 'rm -rf "$dir" "$build"/vqround-*-*-*' EXIT

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

if ! command -v patchelf >/dev/null; then
    echo "SKIPPED: no bundle was made: patchelf is not installed" >&2
    exit 77
fi

"$bootstrap" bundle --from "$dir" 2>"$dir/log"
[ $? = 2 ] || fail "code $? for a folder without a program"
grep -q "no $dir/vqround: expected a tree that is built. Run: ./bootstrap.sh build" "$dir/log" ||
    fail "not said: $(cat "$dir/log")"

"$bootstrap" bundle --from "$build" >"$dir/log" 2>&1 || fail "$(cat "$dir/log")"
grep -q 'MiB unpacked; needs GLIBC [0-9.]* or later' "$dir/log" || fail "no sizes: $(cat "$dir/log")"
[ -e "$(echo "$build"/vqround-*-*-*.tar.gz)" ] || fail "no .tar.gz: $(cat "$dir/log")"
if grep '^SKIPPED' "$dir/log" >&2; then exit 77; fi
grep -q 'the bundle runs on a bare root' "$dir/log" || fail "not tried: $(cat "$dir/log")"
