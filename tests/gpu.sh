#!/usr/bin/env bash
# gpu.sh - every check and measurement of the GPU's code, on a machine that has one, into one report.
#
# usage: tests/gpu.sh [--build DIR] [--work DIR] [--minutes N] [--reference DIR] [--only STEP]...
#
# DIR (build) holds vqround, vq_cuda.so, tests/ and bench/ as CMake leaves them (`cmake --build build`
# and `--target bench`); a bundle (`bootstrap.sh bundle`) has this script as gpu.sh, and is such a
# folder itself. The report is WORK/report.txt (build/gpu), written as it goes: what each step
# printed, whether it passed and how long it took; what matters most comes first. A step that needs
# more than 9 minutes is ended; after N minutes in all the step is ended and no other begun. Jobs go
# on from their checkpoint when the script is run again. DIR (reference) is a checkout of github
# zhoustan/VQRound, for the step beside7b. Exit code 77 without a GPU, 1 if a step failed.
# shellcheck disable=SC2317 # steps are called by their names
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
build=$root/build work='' only=() minutes=1440 reference=''
[ -e "$build" ] || build=$root
LIMIT_S=540

usage() {
    sed -n '2,13s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    echo "steps: machine ops loss gptq ranks step7b memory beside7b gptq7b bench memcheck racecheck synccheck" >&2
    exit 2
}

while (($#)); do
    case $1 in
    --build) build=${2:?} ;;
    --work) work=${2:?} ;;
    --minutes) minutes=${2:?} ;;
    --reference) reference=$(realpath "${2:?}") ;;
    --only) only+=("${2:?}") ;;
    *) usage ;;
    esac
    shift 2
done
work=${work:-$build/gpu}
mkdir -p "$work" || exit 1
report=$work/report.txt
failed=0

# step NAME WHAT COMMAND...: runs it unless --only names others; 77 is "skipped".
step() {
    local name=$1 what=$2 code start=$SECONDS left=$((minutes * 60 - SECONDS))
    shift 2
    [ ${#only[@]} = 0 ] || [[ " ${only[*]} " == *" $name "* ]] || return 0
    ((left <= LIMIT_S)) || left=$LIMIT_S
    if ((left < 1)); then
        printf -- '-- %s: not begun, the %d minutes are over\n' "$name" "$minutes" | tee -a "$report"
        return 0
    fi
    printf '\n== %s: %s\n' "$name" "$what" | tee -a "$report"
    timeout --kill-after=20 "$left" "$@" 2>&1 | tee -a "$report"
    code=${PIPESTATUS[0]}
    case $code in
    0) what=passed ;;
    75) what="stopped after a checkpoint: run again" ;;
    77) what=skipped ;;
    124 | 137) what="ended after $left s" failed=1 ;;
    *) what="FAILED ($code)" failed=1 ;;
    esac
    printf -- '-- %s: %s, %d s\n' "$name" "$what" $((SECONDS - start)) | tee -a "$report"
}

machine() {
    date -u +%FT%TZ
    nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
    "$build/vqround" --version
    git -C "$root" rev-parse --short HEAD 2>/dev/null
    nproc
}

ops() { # every test that has a twin on the GPU
    local test bad=0 code
    for test in "$build"/tests/test_*_gpu; do
        [ -x "$test" ] || continue
        (cd "$build/tests" && "$test")
        code=$?
        echo "$(basename "$test"): exit code $code"
        ((code == 0)) || bad=$code
    done
    return "$bad"
}

sanitize() { # TOOL
    local tool
    tool=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null) ||
        { echo "compute-sanitizer was not found: install the CUDA toolkit's"; return 77; }
    cd "$build/tests" && "$tool" --tool "$1" --error-exitcode 9 ./test_cuda_exact_gpu &&
        "$tool" --tool "$1" --error-exitcode 9 ./test_cuda_ops_gpu attention # its copies overlap
}

# The task's loss of each step.
losses() { # RUN
    sed -nE 's/.*"task": ([^,]*),.*/\1/p' "$1/metrics.jsonl"
}

job() { # DEVICE RUN OPTIONS..., by the launcher in `launch`, if there is one
    local device=$1 run=$2
    shift 2
    ${launch[@]+"${launch[@]}"} "$build/vqround" quantize --device "$device" --out "$run" --no-eval --max-hours 0.14 --quiet "$@"
}

loss() { # 50 steps on both: the GPU's losses follow the CPU's
    local device options=(--model "$root/configs/demo-model" --text "$root/configs/demo-model/calib.txt"
        --bits 3 --K 256 --seqlen 128 --nsamples 16 --steps 50 --lr 0.03)
    for device in cpu cuda; do job "$device" "$work/loss-$device" "${options[@]}" || return; done
    paste <(losses "$work/loss-cpu") <(losses "$work/loss-cuda") | awk '
        { d = ($2 - $1) / $1; d = d < 0 ? -d : d; sum += d; if (d > most) most = d }
        END { printf "%d steps: task losses differ by %.2f %% on average, %.2f %% at most\n", NR,
                  100 * sum / NR, 100 * most
              exit !(NR == 50 && sum / NR < 0.05) }'
}

gptq() { # on both: like perplexities
    local device model=$root/configs/demo-model
    for device in cpu cuda; do
        "$build/vqround" quantize --device "$device" --out "$work/gptq-$device" --model "$model" \
            --text "$model/calib.txt" --eval-text "$model/eval.txt" --bits 3 --method gptq \
            --nsamples 64 --seqlen 128 --quiet || return
    done
    cat "$work"/gptq-{cpu,cuda}/results.json | sed -nE 's/.*"gptq": ([^,]*).*/\1/p' | awk '
        { p[NR] = $1 }
        END { d = p[2] / p[1] - 1
              printf "perplexity %.4g, on the CPU %.4g: %+.2f %%\n", p[2], p[1], 100 * d
              exit !(NR == 2 && d > -0.05 && d < 0.05) }'
}

# On two GPUs: two stages give the losses of one GPU, digit by digit, and two replicas nearly these.
ranks() {
    local mpirun launch=() options=(--model "$root/configs/demo-model" --text "$root/configs/demo-model/calib.txt"
        --bits 3 --K 256 --seqlen 128 --nsamples 16 --steps 20 --batch-size 2 --lr 0.03)
    [ "$(nvidia-smi -L | wc -l)" -ge 2 ] || { echo "one GPU alone"; return 77; }
    mpirun=$(command -v "$build/mpirun" || command -v mpirun) || { echo "no mpirun was found"; return 77; }
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    job cuda "$work/ranks-1" "${options[@]}" || return
    launch=("$mpirun" -n 2 --bind-to none)
    job cuda "$work/ranks-stages" "${options[@]}" --stages 2 --comm nccl || return
    job cuda "$work/ranks-replicas" "${options[@]}" --replicas 2 --comm nccl || return
    diff <(losses "$work/ranks-1") <(losses "$work/ranks-stages") || return
    paste <(losses "$work/ranks-1") <(losses "$work/ranks-replicas") | awk '
        { d = ($2 - $1) / $1; d = d < 0 ? -d : d; if (d > most) most = d }
        END { printf "%d steps: the losses of two stages are the same, of two replicas differ by %.2g %% at most\n",
                  NR, 100 * most
              exit !(NR == 20 && most < 0.05) }'
}

with7b() { # COMMAND...: with the settings of step7b
    "$@" --model "$work/model-7b" --bits 3 --nsamples 4 --seqlen 2048 --steps 20
}

model7b() {
    [ -e "$work/model-7b/model.safetensors" ] ||
        "$build/bench/bench_model" "$root/tests/models/zoo/llama-7b" "$root/tests/models/tiny-llama" \
            "$work/model-7b"
}

# A step of a 7B model of random weights: 2,048 tokens, batch 1, K 4096, D 8; its init is timed, too.
step7b() {
    model7b || return
    with7b job cuda "$work/7b" --text "$root/configs/demo-model/calib.txt" \
        --checkpoint-every 20 || return
    sed -nE 's/.*"seconds": ([^,]*),.*/\1/p' "$work/7b/metrics.jsonl" | tail -n +4 | sort -g | awk '
        { s[NR] = $1 }
        END { m = s[int((NR + 1) / 2)]
              printf "median step %.3f s: %.1f TFLOP/s counting 6 a weight and token\n", m,
                  6 * 6.607e9 * 2048 / m / 1e12 }'
    sed -n '/"seconds": {/,/}/p' "$work/7b/results.json"
}

# What step7b took of the GPU beside its plan: within 10 %.
memory() {
    local gib planned taken
    [ -e "$work/7b/results.json" ] || { echo "step7b has left no results.json"; return 77; }
    gib=$(nvidia-smi --query-gpu=memory.total --format=csv,noheader,nounits | awk 'NR == 1 { print $1 / 1024 }')
    planned=$(with7b "$build/vqround" plan --device cuda --plan.memory_gib "$gib" --no-eval --json |
        sed -nE 's/.*"total_bytes": ?([^,}]*).*/\1/p')
    taken=$(sed -nE 's/.*"peak_gpu_bytes": ([^,]*).*/\1/p' "$work/7b/results.json")
    awk -v taken="$taken" -v planned="$planned" 'BEGIN {
        d = planned > 0 ? taken / planned - 1 : 1
        printf "%.2f GB of the GPU taken, %.2f GB planned: %+.1f %%\n", taken / 1e9, planned / 1e9, 100 * d
        exit !(d >= -0.1 && d <= 0.1) }'
}

# Its step beside the reference's, in PyTorch on the same GPU.
beside7b() {
    local text=$root/configs/demo-model/calib.txt
    [ -n "$reference" ] || { echo "--reference was not given"; return 77; }
    python3 -c 'import torch, transformers' || { echo "python3 has no torch or no transformers"; return 77; }
    model7b || return
    python3 "$root/bench/beside_reference.py" --device cuda --reference "$reference" --model "$work/model-7b" \
        --calib "$text" --eval "$text" --vqround "$build/vqround" --seqlen 2048 --steps 8 --windows 4 --gptq-windows 0
}

# The same model by GPTQ, on grids by its weights' share in the outputs: the time of its init.
gptq7b() {
    model7b || return
    with7b job cuda "$work/7b-gptq" --text "$root/configs/demo-model/calib.txt" --method gptq \
        --grid output || return
    sed -n '/"seconds": {/,/}/p' "$work/7b-gptq/results.json"
}

if ! nvidia-smi -L >/dev/null 2>&1; then
    echo "gpu.sh: SKIPPED, NOTHING TESTED: nvidia-smi lists no GPU here. Run this on a machine with one" >&2
    exit 77
fi
[ -e "$build/vq_cuda.so" ] || [ -e "$build/lib/vqround/vq_cuda.so" ] || {
    echo "gpu.sh: $build/vq_cuda.so is missing: expected a build made where nvcc is. Build it, or name another with --build" >&2
    exit 2
}
export root build work reference
export -f machine ops sanitize losses job loss gptq ranks with7b model7b step7b memory beside7b gptq7b # `timeout` needs a program: bash -c
step machine "what this is" bash -c machine
step ops "op cases and golden tests" bash -c ops
step loss "50 steps beside the CPU" bash -c loss
step gptq "GPTQ beside the CPU" bash -c gptq
step ranks "two GPUs beside one" bash -c ranks
step step7b "a training step of a 7B model" bash -c step7b
step memory "what step7b took of the GPU beside its plan" bash -c memory
step beside7b "the reference's step of a 7B model" bash -c beside7b
step gptq7b "a 7B model by GPTQ" bash -c gptq7b
step bench "time of each op beside its ceiling" "$build/bench/bench_ops" --device cuda
step memcheck "compute-sanitizer memcheck" bash -c 'sanitize memcheck'
step racecheck "compute-sanitizer racecheck" bash -c 'sanitize racecheck'
step synccheck "compute-sanitizer synccheck" bash -c 'sanitize synccheck'
printf '\nreport: %s\n' "$report"
exit "$failed"
