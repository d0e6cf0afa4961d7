#!/bin/sh
# container.sh - what both container files do in a bare Debian 12, with vqround's folder in /src:
# installs the packages, builds, installs to /usr/local, and leaves what running needs.
#
#   packaging/container.sh [CMAKE...]
set -eu
cd "$(dirname "$0")/.."
./bootstrap.sh build -DVQ_ARCH=x86-64-v3 -DVQ_TESTS=OFF "$@"
cmake --build build --target all
cmake --install build --prefix /usr/local
rm -rf build build-deps
apt-get clean
/usr/local/bin/vqround --version
