#!/usr/bin/env bash
# bootstrap.sh - from a bare machine to a built, tried and tested vqround.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
usage: ./bootstrap.sh COMMAND [OPTIONS]

  deps              install the packages that are missing (apt-get), or name them
  build [CMAKE...]  deps, then build/vqround, and its GPU module where nvcc is found; CMAKE are
                    options such as -DVQ_ARCH=x86-64-v3
  demo [VQROUND...] build, then quantize the bundled model to 2 bits into runs/demo
                    (made anew; with --resume true as it was left)
  check             formatting, layers, sanitizers, fuzzing and all tests
  bundle [CMAKE...] build a folder and a .tar.gz that run where nothing is installed (build-bundle/)
  bundle --from DIR the same of the tree DIR as it was built, into DIR (for processors like this one)
  bench [NAME ...]  build the programs of bench/, and run build/bench/bench_NAME (ops)
  clean             remove all that was built (runs/ stays)

Exit codes: 0 done, 2 packages are missing or the command is wrong, others from what failed.
END
}

# What we need, by its name in Debian, in Spack and in conda-forge, and how to see that it is
# there: a command, a pkg-config module or a C++ header. Only `check` and `bundle` need those marked
# so; `check` does without those marked `wish` where it cannot install them: their tests are skipped.
packages() {
    cat <<'END'
build gcc                   gcc           gcc              command gcc
build g++                   gcc           gxx              command g++
build make                  gmake         make             command make
build cmake                 cmake         cmake            command cmake
build pkg-config            pkgconf       pkg-config       command pkg-config
build libopenblas-dev       openblas      openblas         module  openblas
build libhdf5-dev           hdf5          hdf5             command h5cc
build libjansson-dev        jansson       jansson          module  jansson
build libyaml-dev           libyaml       yaml             module  yaml-0.1
build libpcre2-dev          pcre2         pcre2            module  libpcre2-8
build libutf8proc-dev       utf8proc      libutf8proc      module  libutf8proc
build zlib1g-dev            zlib          zlib             module  zlib
build libzstd-dev           zstd          zstd             module  libzstd
build libsentencepiece-dev  sentencepiece libsentencepiece module  sentencepiece
build libopenmpi-dev        openmpi       openmpi          command mpicc
build openmpi-bin           openmpi       openmpi          command mpiexec
build libfaiss-dev          faiss         libfaiss         header  faiss/c_api/faiss_c.h
build dpkg-dev              -             -                command dpkg-source
build gnuplot-nox           gnuplot       gnuplot          command gnuplot
build libcmocka-dev         cmocka        cmocka           module  cmocka
check clang-format          llvm          clang-format=14  command clang-format
wish  slurmctld             slurm         -                command slurmctld
wish  slurmd                slurm         -                command slurmd
wish  slurm-client          slurm         -                command srun
wish  munge                 munge         -                command munged
wish  chromium              -             -                command chromium
wish   patchelf             patchelf      patchelf         command patchelf
bundle patchelf             patchelf      patchelf         command patchelf
END
}

say() {
    printf '\n== %s\n' "$*"
}

fail() {
    echo "bootstrap.sh: $1" >&2
    exit "${2:-1}"
}

present() { # KIND NAME
    case $1 in
    command) PATH=$PATH:/usr/sbin command -v "$2" ;;
    module) pkg-config --exists "$2" ;;
    header) echo "#include <$2>" | "${CC:-gcc}" -E - ;;
    esac &>/dev/null
}

# The rows of the table that are not there, for `build`, `check` or `bundle`.
missing() {
    local use debian spack conda kind name
    packages | while read -r use debian spack conda kind name; do
        case $1-$use in
        *-build | check-check | check-wish | bundle-bundle) ;;
        *) continue ;;
        esac
        [ "$use" = wish ] && ! may_install && continue
        # Only Debian needs its source packages' tools (FAISS's C API is made from one).
        [ "$debian" = dpkg-dev ] && [ ! -e /etc/debian_version ] && continue
        present "$kind" "$name" || echo "$debian $spack $conda"
    done
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    else
        sudo "$@"
    fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" = 0 ] && return 0
    command -v sudo >/dev/null || return 1
    sudo -n true 2>/dev/null || { [ -t 0 ] && sudo -v; }
}

apt() {
    as_root env DEBIAN_FRONTEND=noninteractive timeout 1200 apt-get -q -y \
        -o Acquire::Retries=3 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30 \
        -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"
}

install_packages() {
    local try
    for try in 1 2 3; do
        if apt update && apt install --no-install-recommends "$@"; then return 0; fi
        echo "bootstrap.sh: apt-get failed (try $try of 3)" >&2
        sleep $((try * 3))
    done
    fail "apt-get could not install: $*. Look at its messages above; run again when the network or the mirror is back" 2
}

deps() { # build | check | bundle
    local rows
    rows=$(missing "$1")
    [ -n "$rows" ] || return 0
    if may_install; then
        say "installing $(wc -l <<<"$rows") packages"
        # shellcheck disable=SC2046 # one word per package
        install_packages $(cut -d ' ' -f 1 <<<"$rows")
        rows=$(missing "$1")
        [ -n "$rows" ] || return 0
    fi
    {
        echo "bootstrap.sh: these packages are missing, and cannot be installed from here:"
        echo
        {
            echo "Debian Spack conda-forge"
            echo "$rows"
        } | awk '{ printf "  %-22s %-15s %s\n", $1, $2, $3 }'
        echo
        echo "Install them with one of:"
        echo "  sudo apt-get install $(awk '{ print $1 }' <<<"$rows" | xargs)"
        echo "  spack install $(awk '$2 != "-" { print $2 }' <<<"$rows" | sort -u | xargs)"
        echo "  conda install -c conda-forge $(awk '$3 != "-" { print $3 }' <<<"$rows" | sort -u | xargs)"
        echo "and run ./bootstrap.sh again (docs/install.md says more)."
    } >&2
    exit 2
}

# Configures and builds a tree: FOLDER TARGET [CMAKE...]
tree() {
    local folder=$1 target=$2
    shift 2
    mkdir -p "$folder"
    cmake -S . -B "$folder" "$@" >"$folder/configure.log" 2>&1 || {
        cat "$folder/configure.log" >&2
        fail "cmake could not configure $folder (see above; what it said is in $folder/configure.log)"
    }
    cmake --build "$folder" --target "$target" --parallel "$(nproc)"
}

build() { # [CMAKE...]
    deps build
    say "building build/vqround, and its GPU module where nvcc is found"
    tree build program "$@"
}

demo() {
    deps build
    say "building build/vqround"
    tree build vqround
    [[ " $* " == *" --resume"* ]] || rm -rf runs/demo
    say "quantizing configs/demo-model to 2 bits (configs/demo.yaml)"
    build/vqround quantize --config configs/demo.yaml "$@"
}

formatting() {
    local version
    version=$(clang-format --version | grep -o 'version [0-9]*')
    [ "$version" = "version 14" ] ||
        fail "clang-format is $version, expected version 14: others format differently. Install clang-format 14, or set PATH so that it comes first"
    find src kernels mpi tests bench docs \( -name '*.[ch]' -o -name '*.cpp' \) -print0 |
        xargs -0 clang-format --dry-run -Werror ||
        fail "the files above are not formatted. Run: cmake --build build --target format"
}

# ctest says that a test was skipped, and not why.
run_tests() { # FOLDER LABELS
    local status=0
    ctest --test-dir "$1" --output-on-failure --no-tests=error --parallel "$(nproc)" -L "$2" || status=$?
    grep -h '^SKIPPED' "$1/Testing/Temporary/LastTest.log" | sort -u >&2 || true
    return $status
}

check() {
    deps check
    say "formatting"
    formatting
    say "layers"
    tests/check_layers.sh
    say "building with sanitizers"
    tree build-asan all -DCMAKE_BUILD_TYPE=Debug -DVQ_SANITIZE=ON
    say "unit and op tests with sanitizers"
    run_tests build-asan '^(unit|op)$'
    say "fuzzing with sanitizers"
    run_tests build-asan '^fuzz$'
    say "building"
    tree build all
    say "all tests"
    run_tests build '^(unit|op|golden|cli|mpi|slurm)$'
}

# The libraries of programs and plugins that a bare node does not have: all but glibc's, and CUDA's,
# which are twenty times the rest.
libraries() { # FILES...
    ldd "$@" | awk '$2 == "=>" && $3 { print $3 }' | sort -u |
        grep -vE '/(ld-linux[^/]*|lib(c|m|dl|rt|pthread|util|resolv|anl|nss_[^/]*))\.so' |
        grep -vE '/lib(cuda|cudart|cublas|cublasLt|cusolver|cusparse|nvJitLink|nccl)\.so'
}

# Open MPI's and PMIx' plugins but those for networks that would need their own libraries; mpirun.
bundle_mpi() { # FOLDER
    local mpi plugins plugin pmix program
    mpi=$(ldd "$1/bin/vqround" | awk '/libmpi\.so/ { print $3 }')
    [ -n "$mpi" ] || return 0
    plugins=$(ompi_info --path pkglibdir --parsable | cut -d : -f 3)
    mkdir -p "$1/lib/openmpi" "$1/lib/pmix"
    for plugin in "$plugins"/*.so; do
        # Not grep -q: what is before a pipe that it closes early would have failed.
        libraries "$plugin" | grep -E 'lib(uct|ucp|ucs|psm|fabric|ibverbs|rdmacm|efa|nl-|oshmem|numa|cuda)' >/dev/null ||
            cp "$plugin" "$1/lib/openmpi"
    done
    pmix=$(libraries "$1/lib/openmpi"/mca_pmix_*.so | grep libpmix || true)
    [ -z "$pmix" ] || cp "$(dirname "$(realpath "$pmix")")"/pmix/*.so "$1/lib/pmix"
    cp -r "$(ompi_info --path pkgdatadir --parsable | cut -d : -f 3)" "$1/share/openmpi"
    for program in orterun orted; do cp -L "$(command -v $program)" "$1/bin"; done
    ln -s orterun "$1/bin/mpirun"
}

# Whether a tree holds what a bundle has for GPUs: built to find its files from where it runs.
has_gpu_tests() { # TREE
    [ -x "$1/tests/test_cuda_ops_gpu" ] && grep -q '^VQ_TESTS_FOLDER:STRING=\.$' "$1/CMakeCache.txt"
}

# The GPU's tests and measurements, with the models and golden files that they read.
bundle_gpu() { # TREE FOLDER
    mkdir -p "$2"/{bench,tests/models/zoo,tests/golden}
    cp "$1"/tests/test_*_gpu "$2/tests"
    cp "$1"/bench/bench_{ops,model} "$2/bench"
    strip "$2"/{tests/test_*_gpu,bench/bench_*}
    cp tests/gpu.sh "$2/bin"
    ln -s vqround "$2/gpu.sh"
    ln -s share/vqround/configs "$2/configs"
    cp -r tests/models/{rand,tiny}-* "$2/tests/models"
    rm -f "$2"/tests/models/tiny-{opt,qwen3}/{tokenizer,vocab,merges}* # the largest files, not read
    cp -r tests/models/zoo/llama-7b "$2/tests/models/zoo"
    cp tests/golden/{logits,vq}-* tests/golden/golden_{vq,gptq,logits}.py "$2/tests/golden"
    cp bench/beside_reference.py "$2/bench"
}

# Programs find their libraries by their own place; Open MPI is told by a wrapper where it is.
bundle() { # [CMAKE...] | --from DIR
    local built=build-bundle version folder files libs glibc
    deps bundle
    if [ "${1:-}" = --from ]; then
        built=${2:-}
        [ -x "$built/vqround" ] ||
            fail "bundle --from '$built': there is no $built/vqround: expected a tree that is built. Run: ./bootstrap.sh build" 2
    else
        say "building for any x86-64 with AVX2"
        tree build-bundle program -DVQ_ARCH=x86-64-v3 -DVQ_TESTS_FOLDER=. "$@"
        tree build-bundle manual
        ! cmake --build build-bundle --target help | grep gpu_tests >/dev/null || {
            tree build-bundle gpu_tests
            tree build-bundle bench
        }
    fi
    version=$("$built/vqround" --version | cut -d ' ' -f 2)
    folder=$built/vqround-$version-$(uname -s)-$(uname -m)
    rm -rf "$folder"
    cmake --install "$built" --prefix "$folder" --strip >/dev/null
    mkdir -p "$folder/lib"
    bundle_mpi "$folder"
    ! has_gpu_tests "$built" || bundle_gpu "$built" "$folder"
    mapfile -t files < <(find "$folder"/{bin,lib,tests,bench} -type f ! -name '*.sh' \( -path '*/bin/*' \
        -o -path '*/lib/*' -o -name 'test_*_gpu' -o -name 'bench_*' \) 2>/dev/null)
    mapfile -t libs < <(libraries "${files[@]}")
    patchelf --set-rpath '$ORIGIN/../lib:$ORIGIN/..' "${files[@]}" # bin, tests, lib/openmpi
    cp -L "${libs[@]}" "$folder/lib"
    strip --strip-unneeded "$folder"/lib/*.so*
    patchelf --set-rpath '$ORIGIN' "$folder"/lib/*.so*
    cp packaging/bundle.sh "$folder/vqround"
    [ ! -e "$folder/bin/mpirun" ] || ln -s vqround "$folder/mpirun"
    cp README.md "$folder"
    ! has_gpu_tests "$built" || tests/install/gpu_bundle.sh "$folder" "$built"
    tar -C "$built" -I 'gzip -9' -cf "$folder.tar.gz" "$(basename "$folder")"
    [ "$(du -m "$folder.tar.gz" | cut -f 1)" -le 60 ] ||
        fail "$folder.tar.gz: $(du -m "$folder.tar.gz" | cut -f 1) MiB: expected 60 or less, what a machine with a GPU may be sent. Leave out models (bundle_gpu), or -DVQ_CUDA_WANTED=90"
    glibc=$({ objdump -T "${files[@]}" "$folder"/lib/*.so* || true; } | grep -o 'GLIBC_[0-9.]*' | sort -uV | tail -n 1)
    say "$folder.tar.gz: $(du -m "$folder.tar.gz" | cut -f 1) MiB, $(du -sm "$folder" | cut -f 1) MiB unpacked; needs ${glibc/_/ } or later"
    tests/install/bare.sh "$folder.tar.gz" || [ $? = 77 ]
}

bench() { # [NAME [ARGUMENTS...]]
    deps build
    say "building the benchmarks"
    tree build bench
    "build/bench/bench_${1:-ops}" "${@:2}"
}

clean() {
    rm -rf build build-asan build-bundle build-deps
}

command=${1:-help}
[ $# -eq 0 ] || shift
case $command in
deps) deps check ;;
build | demo | check | bundle | bench | clean) "$command" "$@" ;;
help | -h | --help) usage ;;
*)
    usage >&2
    fail "unknown command '$command', expected one of the above" 2
    ;;
esac
