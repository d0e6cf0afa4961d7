#!/bin/sh
# The start of a bundle's programs: tells Open MPI and PMIx where they are, by this file's own place.
here=$(dirname "$(realpath "$0")")
root=$here
export OPAL_PREFIX="$root" OPAL_LIBDIR="$root/lib" OPAL_PKGLIBDIR="$root/lib/openmpi"
export OPAL_BINDIR="$root/bin" OPAL_PKGDATADIR="$root/share/openmpi" OPAL_SYSCONFDIR="$root/etc"
export PMIX_INSTALL_PREFIX="$root" PMIX_PKGLIBDIR="$root/lib/pmix"
exec "$root/bin/$(basename "$0")" "$@"
