#!/bin/sh
# The start of a bundle's programs: tells Open MPI and PMIx where they are, by this file's own place.
here=$(dirname "$(realpath "$0")")
root=$here
export OPAL_PREFIX="$root" OPAL_LIBDIR="$root/lib" OPAL_PKGLIBDIR="$root/lib/openmpi"
export OPAL_BINDIR="$root/bin" OPAL_PKGDATADIR="$root/share/openmpi" OPAL_SYSCONFDIR="$root/etc"
export PMIX_INSTALL_PREFIX="$root" PMIX_PKGLIBDIR="$root/lib/pmix"
# CUDA's libraries are the machine's: its own, or those that came with PyTorch.
case "$0 $*" in
*cuda* | *gpu.sh*)
    for folder in $(python3 -c 'import nvidia; print(*nvidia.__path__)' 2>/dev/null); do
        for lib in "$folder"/*/lib; do LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$lib; done
    done
    export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-/usr/local/cuda/lib64}
    ;;
esac
exec "$root/bin/$(basename "$0")" "$@"
