#!/usr/bin/env bash
# env.sh - what a job needs on a node: found, said, and reported where it is missing.
#
# `bash slurm/env.sh` says what there is; the batch scripts source it. Each choice of a site is one
# variable, set here or in the environment before sbatch (which passes it on):

VQ_MODULES=${VQ_MODULES:-}  # modules to load, such as "gcc openmpi hdf5"; none: as it is
VQ_PROGRAM=${VQ_PROGRAM:-}  # vqround; none: build/vqround beside this folder, then the PATH's
VQ_MPI=${VQ_MPI:-pmix}      # how srun starts the ranks (srun --mpi=list): what MPI was built with
VQ_THREADS=${VQ_THREADS:-}  # threads of a rank; none: the CPUs that Slurm gives a task
VQ_DEAD_S=${VQ_DEAD_S:-180} # a lock's holder that is silent so long is dead; NFS may lag 60 s

vq_say() {
    printf 'env      %s\n' "$*"
}

vq_missing() {
    printf 'env.sh: error: %s\n' "$*" >&2
    vq_is_complete=false
}

vq_find_modules() {
    local name
    if ! command -v module >/dev/null; then
        [ -z "$VQ_MODULES" ] ||
            vq_missing "VQ_MODULES names $VQ_MODULES, but there is no command \"module\": expected it on this node. Unset VQ_MODULES, or source the site's modules in your shell's profile"
        return
    fi
    for name in $VQ_MODULES; do
        module load "$name" ||
            vq_missing "module $name cannot be loaded: expected one of \"module avail\". Change VQ_MODULES"
    done
    vq_say "modules ${LOADEDMODULES:-none loaded}"
}

vq_find_program() {
    local built lost
    built=$(dirname "${BASH_SOURCE[0]}")/../build/vqround
    if [ -z "$VQ_PROGRAM" ]; then
        if [ -x "$built" ]; then VQ_PROGRAM=$(realpath "$built"); else VQ_PROGRAM=$(command -v vqround); fi
    fi
    if [ ! -x "$VQ_PROGRAM" ]; then
        vq_missing "${VQ_PROGRAM:-vqround} is not a program: expected build/vqround, or vqround in PATH. Run ./bootstrap.sh build, or set VQ_PROGRAM"
        return
    fi
    lost=$(ldd "$VQ_PROGRAM" 2>/dev/null | awk '/not found/ { print $1 }' | sort -u | xargs)
    if [ -n "$lost" ]; then
        vq_missing "$VQ_PROGRAM needs $lost, not found on this node: expected all libraries. Load their modules (VQ_MODULES), or build on such a node"
        return
    fi
    vq_say "program $VQ_PROGRAM ($("$VQ_PROGRAM" --version))"
}

vq_find_mpi() {
    local library plugins
    library=$(ldd "$VQ_PROGRAM" 2>/dev/null | awk '/libmpi[a-z]*\.so/ { print $3; exit }')
    if [ -z "$library" ] && [ "${SLURM_NTASKS:-1}" -gt 1 ]; then
        vq_missing "$VQ_PROGRAM is built without MPI, for 1 rank, and the job has $SLURM_NTASKS: expected a build with MPI. Build where mpicc is, or ask for 1 task"
    fi
    if ! command -v srun >/dev/null; then
        vq_missing "srun is not there: expected Slurm's commands in PATH. Run this on a node of the cluster"
        return
    fi
    if ! plugins=$(srun --mpi=list 2>&1); then
        vq_missing "srun --mpi=list failed: $(tail -n 1 <<<"$plugins"): expected a Slurm that answers. Run this on a node of the cluster"
        return
    fi
    plugins=$(sed 's/^.*\(are\.\.\.\|available:\)//' <<<"$plugins" | tr ',' ' ' | xargs)
    [[ " $plugins " == *" $VQ_MPI "* ]] ||
        vq_missing "srun has no MPI plugin $VQ_MPI: found $plugins: expected it among them. Set VQ_MPI to the one that MPI was built for"
    vq_say "MPI ${library:-none}, srun --mpi=$VQ_MPI"
}

# Where a library is that a program would find at run time.
vq_library() { # NAME
    local folder
    {
        tr ':' '\n' <<<"${LD_LIBRARY_PATH:-}" | while read -r folder; do ls "$folder/$1".so*; done
        PATH=$PATH:/usr/sbin ldconfig -p | awk -v name="$1.so" 'index($1, name) == 1 { print $NF }'
    } 2>/dev/null | head -n 1
}

# What GPUs need. Only a job that was given GPUs cannot do without it.
vq_find_cuda() {
    local folder gpus module lost
    folder=$(dirname "${VQ_PROGRAM:-.}")
    gpus=$(nvidia-smi --list-gpus 2>/dev/null | grep -c '^GPU')
    module=$(find "$folder" "$folder/../lib" -maxdepth 2 -name '*vq_cuda.so' 2>/dev/null | head -n 1)
    vq_say "CUDA $gpus GPUs, vqround's module ${module:-missing}, CUDA $(vq_or_missing libcudart), cuBLAS $(vq_or_missing libcublasLt), NCCL $(vq_or_missing libnccl)"
    [ -n "${SLURM_JOB_GPUS:-${SLURM_STEP_GPUS:-}}" ] || return 0
    [ "$gpus" -gt 0 ] ||
        vq_missing "the job has GPUs, and nvidia-smi finds none on $(hostname): expected a driver that works. Ask for another node, or give --device cpu and no GPUs"
    if [ -z "$module" ]; then
        vq_missing "the job has GPUs, and there is no vq_cuda.so beside $VQ_PROGRAM: expected a build with CUDA. Build where nvcc is (VQ_MODULES), or ask for no GPUs"
        return
    fi
    lost=$(ldd "$module" | awk '/not found/ { print $1 }' | sort -u | xargs)
    [ -z "$lost" ] ||
        vq_missing "the job has GPUs, and $module needs $lost, not found on this node: expected CUDA's and NCCL's libraries. Load their modules (VQ_MODULES)"
}

vq_or_missing() { # LIBRARY
    local found
    found=$(vq_library "$1")
    echo "${found:-missing}"
}

# CPUs of a rank are given to srun once more: since Slurm 22.05 a step does not inherit them.
vq_find_job() {
    VQ_THREADS=${VQ_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    [ -n "${SLURM_JOB_ID:-}" ] || return 0
    vq_job=$SLURM_JOB_ID
    [ -z "${SLURM_ARRAY_TASK_ID:-}" ] || vq_job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    vq_say "job $vq_job on $SLURM_JOB_NODELIST: $SLURM_NTASKS ranks of $VQ_THREADS threads, restart ${SLURM_RESTART_COUNT:-0}"
}

# srun with one vqround a rank, which all end when one is lost. ARGUMENTS may name --threads.
vq_srun() { # ARGUMENTS...
    local threads=()
    [[ " $* " == *" --threads"[\ =]* ]] || threads=(--threads "$VQ_THREADS")
    srun --mpi="$VQ_MPI" --kill-on-bad-exit=1 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
        "$VQ_PROGRAM" "$@" "${threads[@]}"
}

# After exit code 75 the job goes back into the queue, under the same number.
vq_requeue() {
    if scontrol requeue "$SLURM_JOB_ID"; then
        echo "env.sh: stopped after a checkpoint, and queued again"
        return
    fi
    echo "env.sh: error: job $vq_job cannot be queued again: expected a cluster that allows --requeue. Submit the same command to go on" >&2
}

vq_is_complete=true
vq_find_modules
vq_find_program
vq_find_mpi
vq_find_cuda
vq_find_job
$vq_is_complete
