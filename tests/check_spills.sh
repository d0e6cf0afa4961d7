#!/usr/bin/env bash
# check_spills.sh BUILD - fails where a kernel of BUILD's vq_cuda.so has more values than registers, or
# an array that is not in registers: what it keeps in memory for each thread, by the log that the build
# has left, is more than a few words. Plain kernels (attention's for wide heads) may have such arrays.
set -euo pipefail
limit=16 # bytes: what is once a launch, outside the loops
logs=$(find "$1/CMakeFiles/vq_cuda.dir" -name '*.ptxas' 2>/dev/null | sort)
if [ -z "$logs" ]; then
    echo "check_spills.sh: $1: no log of ptxas: expected a build with nvcc. Build it again" >&2
    exit 1
fi
# shellcheck disable=SC2086 # one word per file
awk -v limit=$limit '
    /Compiling entry function/ {
        kernels++
        split($0, part, "\047")
        kernel = part[2] " for " part[4]
    }
    /bytes stack frame/ && kernel !~ /plain/ && $1 + 0 > limit {
        print "check_spills.sh: " kernel ": " $1 " bytes of memory for each thread: expected at most " \
            limit ". Unroll the loops over its arrays (VQ_UNROLL)" > "/dev/stderr"
        bad = 1
    }
    /bytes spill stores/ {
        match($0, /[0-9]+ bytes spill stores/)
        bytes = substr($0, RSTART) + 0
        if (bytes > most) most = bytes
        if (bytes > limit) {
            print "check_spills.sh: " kernel ": " bytes " bytes of spill stores: expected at most " \
                limit ". Have fewer values live at a time, or give it more registers " \
                "(__launch_bounds__)" > "/dev/stderr"
            bad = 1
        }
    }
    END {
        print "check_spills: " kernels " kernels, at most " most + 0 " bytes of spill stores"
        exit bad || kernels == 0
    }' $logs
