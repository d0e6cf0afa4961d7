#!/usr/bin/env bash
# check_layers.sh - who may include whom. Fails with FILE:LINE, the edge and the rule.
#
# The table is the order of the modules, lowest first: a file includes only what stands before it
# (x.c also its own x.h). A new file gets its place here in the commit that adds it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# LEVEL FOLDER MODULES...
table() {
    cat <<'END'
0 src base error arena log rng memory
1 src tensor pack utf8 fileio lock config safetensors torchbin weights textio h5
2 src backend place
2 kernels element parts
2 kernels/cpu cpu_real cpu_lanes cpu_ops cpu_gemm cpu_attention cpu_layer cpu_round cpu_loss cpu_adam cpu_grid cpu_gptq cpu_kmeans cpu_backend
2 kernels/cuda cuda_geometry cuda_plan cuda_ops cuda_device cuda_mma cuda_bring cuda_gemm cuda_attention cuda_layer cuda_round cuda_loss cuda_adam cuda_grid cuda_gptq cuda_kmeans cuda_backend
3 src packed model spm_bridge added normalize pretokenize bpe tokenizer_json tokenizer_files tokenizer calib
4 src grid gptq faiss kmeans codebook lowrank vqlinear
5 src block stage pool loss adam
6 src export report runs plot figures dashboard inspect
7 mpi guard comm comm_self comm_mpi comm_staged topo comm_nccl cuda_module cuda_table schedule
8 mpi job share feed stream pipeline checkpoint
9 mpi plan_view plan_memory plan_time plan plan_print plan_job sweep shelf maker init blocks cache train evaluate exporter inputs folder deviation outcome
10 mpi run
11 src main
END
}

# HEADER(regular expression) WHO(regular expression): outside headers that only some files see.
outside() {
    cat <<'END'
^mpi\.h$                              ^mpi/
^nccl\.h$                             ^mpi/comm_nccl
^(cuda|cublas|cufft|curand|cusolver)  ^(kernels/cuda/|mpi/comm_nccl)
^hdf5                                 ^src/h5\.c$
^faiss/                               ^src/faiss\.c$
^sentencepiece                        ^src/spm_bridge\.cpp$
^(cblas|lapacke?|openblas_config)\.h$ ^kernels/cpu/
^yaml\.h$                             ^src/config\.c$
^zip\.h$                              ^src/torchbin\.c$
^(pcre2|utf8proc)\.h$                 ^src/(utf8|normalize|pretokenize)\.c$
END
}

files=$(find src kernels mpi -name '*.[ch]' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | sort)
# shellcheck disable=SC2086 # one word per file
grep -nHE '^[[:space:]]*#[[:space:]]*include' $files /dev/null |
    awk -v files="$files" -v table="$(table)" -v outside="$(outside)" '
    function fail(where, edge, rule) {
        print where ": " edge ": " rule > "/dev/stderr"
        bad = 1
    }
    function module(path) {
        sub(/.*\//, "", path)
        sub(/\.[a-z]+$/, "", path)
        return path
    }
    function folder(path) {
        sub(/\/[^\/]*$/, "", path)
        return path
    }
    BEGIN {
        n = split(table, line, "\n")
        for (i = 1; i <= n; i++) {
            words = split(line[i], w, " ")
            for (j = 3; j <= words; j++) {
                place[w[j]] = ++places
                level[w[j]] = w[1]
                home[w[j]] = w[2]
            }
        }
        rules = split(outside, line, "\n")
        for (i = 1; i <= rules; i++) {
            split(line[i], w, " ")
            header[i] = w[1]
            who[i] = w[2]
        }
        n = split(files, file, "\n")
        for (i = 1; i <= n; i++) {
            m = module(file[i])
            seen[m]
            if (!(m in home))
                fail(file[i], "not in the table",
                     "add it to the table in tests/check_layers.sh, after all that it includes")
            else if (home[m] != folder(file[i]))
                fail(file[i], "expected in " home[m] "/", "file names are unique; move or rename it")
        }
        for (m in home)
            if (!(m in seen)) fail("tests/check_layers.sh", m, "there is no such file; remove it")
    }
    {
        split($0, part, ":")
        from = part[1]
        where = part[1] ":" part[2]
        text = substr($0, length(where) + 2)
        if (match(text, /"[^"]+"/)) {
            name = substr(text, RSTART + 1, RLENGTH - 2)
            a = module(from)
            b = module(name)
            edge = "includes " name
            if (!(a in place) || (!(b in place) && b in seen)) next # said already
            if (!(b in place))
                fail(where, edge, "not a file of ours; outside headers stand in < >")
            else if (home[b] ~ /^kernels/ && home[a] !~ /^kernels/ && home[a] != "mpi" && a != "main")
                fail(where, edge, "kernels are reached through backend.h; only mpi/ and main choose some")
            else if (place[b] > place[a])
                fail(where, edge, level[b] > level[a] \
                     ? "level " level[a] " must not include level " level[b] \
                     : "in level " level[a] " " b " stands after " a)
        } else if (match(text, /<[^>]+>/)) {
            name = substr(text, RSTART + 1, RLENGTH - 2)
            for (i = 1; i <= rules; i++)
                if (name ~ header[i] && from !~ who[i])
                    fail(where, "includes <" name ">", "only " who[i] " may")
        }
    }
    END { exit bad }'
echo "check_layers: $(wc -l <<<"$files") files, all edges go down"
