#!/usr/bin/env bash
# bare.sh - tries a bundle where there is nothing but glibc, a shell and /proc: alone, and with the
# bundle's own mpirun.
#
#   tests/install/bare.sh BUNDLE.tar.gz      skipped (77) where this user cannot change the root
set -eu
bundle=$(realpath "${1:?usage: bare.sh BUNDLE.tar.gz}")
demo=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../../configs/demo-model")
if [ "$(id -u)" != 0 ] || ! unshare --mount true 2>/dev/null; then
    echo "SKIPPED: the bundle was not tried on a bare root: that needs to be root" >&2
    exit 77
fi
[ -n "${BARE_ROOT:-}" ] || exec env BARE_ROOT=1 unshare --mount "${BASH_SOURCE[0]}" "$bundle"

root=$(mktemp -d /tmp/vqround-bare.XXXXXX)
trap 'umount "$root/proc"; rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,lib,lib64,proc,dev,etc}
mkdir -m 1777 "$root"/{tmp,dev/shm}
mount -t proc proc "$root/proc"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/urandom" c 1 9
for program in sh dirname basename realpath; do
    cp -L "$(command -v $program)" "$root/bin"
    ldd "$(command -v $program)" | grep -o '/[^ ]*' | while read -r file; do cp -L --parents "$file" "$root"; done
done
for library in libm.so.6 libpthread.so.0 libdl.so.2 librt.so.1 libresolv.so.2 libutil.so.1; do
    cp -L "$(ldconfig -p | awk -v name=$library '$1 == name { print $NF; exit }')" "$root/lib"
done
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
printf '127.0.0.1 localhost %s\n' "$(hostname)" >"$root/etc/hosts"
tar -xzf "$bundle" -C "$root"
cp -r "$demo" "$root/demo"
cd "$root"
place=/$(echo vqround-*)
bare() {
    env -i PATH=/bin OMPI_MCA_plm_rsh_agent=sh OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 \
        "$(command -v chroot)" "$root" "$@" || { echo "bare.sh: error: $* ended with $?: expected 0" >&2 && exit 1; }
}
settings=(--model /demo --text /demo/calib.txt --eval-text /demo/eval.txt --bits 2 --K 32 --nsamples 8
    --seqlen 64 --steps 3 --eval-max-windows 2 --kmeans.iters 5 --threads 1 --quiet)
bare "$place/vqround" quantize "${settings[@]}" --out /tmp/one >/dev/null
if [ -e "$root$place/mpirun" ]; then
    bare "$place/mpirun" --oversubscribe -n 2 "$place/vqround" quantize "${settings[@]}" --out /tmp/two >/dev/null
    grep -q '"ranks": 2' "$root/tmp/two/results.json"
    cmp "$root"/tmp/{one,two}/ckpt-0000000003.h5
fi
echo "bare.sh: the bundle runs on a bare root$([ ! -e "$root$place/mpirun" ] || echo ", also as 2 ranks with the same bits")"
