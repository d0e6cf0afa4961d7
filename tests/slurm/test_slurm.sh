#!/usr/bin/env bash
# test_slurm.sh - the batch scripts under a real Slurm of two nodes on this machine.
#
#   tests/slurm/test_slurm.sh VQROUND       skipped (77) where Slurm is not installed or cannot run
set -u
program=$(realpath "${1:?usage: test_slurm.sh VQROUND}")
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
demo=$root/configs/demo-model
dir=$(mktemp -d /tmp/vqround-slurm.XXXXXX)
chmod 0755 "$dir" # munged wants to be reached
what="start"
begun=""

clean_up() {
    "$root/tests/slurm/down.sh" "$dir/lab"
    rm -rf "$dir"
}
trap clean_up EXIT
trap 'exit 1' INT TERM

skip() {
    echo "SKIPPED: Slurm's tests did not run: $1" >&2
    exit 77
}

begin() {
    what=$*
    begun+="$what"$'\n'
    echo "[$SECONDS s] $what"
}

fail() { # TEXT [FILES TO SHOW...]
    echo "FAILED: $what: $1" >&2
    shift
    [ $# = 0 ] || tail -n 30 "$@" >&2
    exit 1
}

# Polls until a command succeeds, at most so many seconds.
within() { # SECONDS COMMAND...
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.05
    done
}

is_over() { # JOB
    [ -z "$(squeue --noheader --jobs="$1" 2>/dev/null)" ]
}

has_lines() { # N FILE
    [ "$(wc -l 2>/dev/null <"$2" || echo 0)" -ge "$1" ]
}

# The code that a job ended with.
code_of() { # JOB
    scontrol show job "$1" --oneliner | grep -o ' ExitCode=[0-9]*' | cut -d = -f 2
}

# All that a job started: its ranks, srun, the batch script.
processes_of() { # RUN
    pgrep -f -- "--out $1( |\$)"
}

ranks_of() { # RUN
    pgrep -f -- "^$program quantize .*--out $1( |\$)"
}

usr1_waits_for() { # PROCESSES...
    local rank
    for rank in "$@"; do
        grep -q '^ShdPnd:.*[2367abef]..$' "/proc/$rank/status" || return 1
    done
}

has_none() { # FOLDER
    ! processes_of "$1" >/dev/null
}

same_results() { # RUN: as the run of one process, to the last bit
    cmp "$dir/one/ckpt-0000000030.h5" "$1/ckpt-0000000030.h5" || fail "other codebooks"
    diff <(loss_of "$dir/one") <(loss_of "$1") >&2 || fail "other losses"
    diff <(sed -n '/"perplexity"/,/}/p' "$dir/one/results.json") \
        <(sed -n '/"perplexity"/,/}/p' "$1/results.json") >&2 || fail "other perplexities"
}

loss_of() { # RUN
    grep -o '"step": [0-9]*, "loss": [^,]*' "$1/metrics.jsonl"
}

settings=(--model "$demo" --text "$demo/calib.txt" --eval-text "$demo/eval.txt" --bits 2 --K 32
    --nsamples 8 --seqlen 64 --lr 0.05 --eval-max-windows 2 --kmeans.iters 5 --checkpoint-every 10)
four=(--nodes=2 --ntasks-per-node=2 --cpus-per-task=1 --time=5)

submit() { # NAME OPTIONS...: quantize.sbatch on 4 ranks; the job's number
    local name=$1
    shift
    sbatch --parsable "${four[@]}" --output="$dir/$name.out" "$root/slurm/quantize.sbatch" \
        "${settings[@]}" "$@" --out "$dir/$name"
}

# --- what follows needs a Slurm ---------------------------------------------------------------

ldd "$program" | grep -q libmpi || skip "$program is built without MPI"
reason=$("$root/tests/slurm/up.sh" "$dir/lab" 2 2>&1)
case $? in
0) . "$dir/lab/env" ;;
77) skip "$reason" ;;
*) fail "$reason" ;;
esac

# What a site would set; 4 ranks share this machine's cores, and talk through its loopback.
export VQ_ROOT=$root VQ_PROGRAM=$program VQ_DEAD_S=20
export OMPI_MCA_mpi_yield_when_idle=1 OMPI_MCA_btl_tcp_if_include=lo
export OMP_WAIT_POLICY=passive
cd "$dir" || exit 1

begin "one process"
"$program" quantize "${settings[@]}" --steps 30 --out "$dir/one" --threads 1 >one.out 2>&1 ||
    fail "code $?" one.out

begin "srun with 4 ranks on 2 nodes makes the same bits"
timeout 60 srun --nodes=2 --ntasks-per-node=2 --mpi=pmix --kill-on-bad-exit=1 --time=2 \
    "$program" quantize "${settings[@]}" --steps 30 --out "$dir/four" --threads 1 >four.out 2>&1 ||
    fail "code $?" four.out
grep -q '"ranks": 4' four/results.json || fail "not 4 ranks" four/results.json
grep -q '^init .* linears in' one.out && grep -q '^init .* linears of rank 0 in' four.out ||
    fail "whose linears is not said" one.out four.out
same_results four

begin "USR1: a checkpoint, code 75, queued again, the same bits"
job=$(submit stopped --steps 30)
within 60 has_lines 3 stopped/metrics.jsonl || fail "no steps" stopped.out
mapfile -t ranks < <(ranks_of "$dir/stopped")
[ ${#ranks[@]} = 4 ] || fail "${#ranks[@]} ranks"
kill -STOP "${ranks[@]}" # or they might be through before the signal is
for try in 1 2 3; do # a signal may get lost on a busy machine
    scancel --signal=USR1 "$job"
    within 10 usr1_waits_for "${ranks[@]}" && break
done
usr1_waits_for "${ranks[@]}" || fail "no signal after $try tries" stopped.out
kill -CONT "${ranks[@]}"
within 90 is_over "$job" || fail "not over" stopped.out
grep -q 'stopped after a checkpoint, and queued again' stopped.out || fail "not stopped" stopped.out
grep -q 'restart 1' stopped.out || fail "not started again" stopped.out
[ "$(code_of "$job")" = 0 ] || fail "code $(code_of "$job")" stopped.out
same_results stopped

begin "kill -9 of one rank: the job ends, nothing is left, a second submission completes it"
job=$(submit killed --steps 30)
within 60 has_lines 11 killed/metrics.jsonl || fail "no steps" killed.out
kill -9 "$(ranks_of "$dir/killed" | tail -n 1)"
within 30 is_over "$job" || fail "not over" killed.out
[ "$(code_of "$job")" != 0 ] || fail "code 0" killed.out
within 15 has_none "$dir/killed" || fail "processes are left: $(processes_of "$dir/killed")"
job=$(submit killed --steps 30)
within 60 is_over "$job" || fail "not over" killed.out
same_results killed

begin "scancel: no process is left, and the job does not come back"
job=$(submit cancelled --steps 100000)
within 60 has_lines 2 cancelled/metrics.jsonl || fail "no steps" cancelled.out
scancel "$job"
within 30 is_over "$job" || fail "not over" cancelled.out
within 15 has_none "$dir/cancelled" || fail "processes are left: $(processes_of "$dir/cancelled")"
! grep -q 'queued again' cancelled.out || fail "queued again" cancelled.out

begin "a sweep of 6 rows, 2 at a time: one fails, one is cancelled, one loses a rank, 3 are done"
columns=name,model,text,eval-text,bits,K,init,lr,steps,nsamples,seqlen,eval-max-windows,kmeans.iters,checkpoint-every
table() { # BITS OF THE FIRST ROW
    local row
    tr , '\t' <<<"$columns"
    for row in "fails $1 16 rtn 0.05 3" "gptq16 2 16 gptq 0.05 3" "gptq24 2 24 gptq 0.05 3" \
        "cancelled 2 24 rtn 0.05 60" "killed 2 16 rtn 0.05 60" "slower 2 16 rtn 0.04 3"; do
        read -r name bits K init lr steps <<<"$row"
        printf '%s\t' "$name" "$demo" "$demo/calib.txt" "$demo/eval.txt" "$bits" "$K" "$init" "$lr" "$steps" 8 64 2 3
        echo 1
    done
}
sweep() { # [%N]
    "$root/slurm/sweep.sh" table.tsv sweep "$@" --ntasks-per-node=2 --cpus-per-task=1 --time=5
}
# The ranks of a row in training, stopped so that they cannot end first.
caught() { # NAME
    within 60 has_lines 3 "sweep/$1/metrics.jsonl" || fail "$1: no steps" sweep-*.out
    mapfile -t ranks < <(ranks_of "sweep/$1")
    [ ${#ranks[@]} = 2 ] || fail "$1: ${#ranks[@]} ranks"
    kill -STOP "${ranks[@]}"
}
in_logs() { # TEXT: in how many lines of the rows' logs
    cat sweep/*/job.log | grep -c -- "$1"
}
collected() { # DONE
    "$program" report sweep >report.out 2>&1 || fail "no report" report.out
    grep -q '6 runs:' sweep/report.html || fail "not 6 rows" report.out
    [ "$(grep -c '^[a-z0-9]*,done,0,' sweep/report.csv)" = "$1" ] ||
        fail "not $1 results" sweep/report.csv sweep-*.out
}
table 7 >table.tsv
job=$(sweep %2) || fail "not submitted"
: >table.tsv # rows that wait are of the table as it was
most=0
until is_over "$job"; do
    running=$(squeue --noheader --jobs="$job" --states=RUNNING | wc -l)
    [ "$running" -le "$most" ] || most=$running
    if [ -e sweep/cancelled/metrics.jsonl ] && [ ! -e cancelled.done ]; then
        caught cancelled
        scancel "${job}_4"
        touch cancelled.done
    fi
    if [ -e sweep/killed/metrics.jsonl ] && [ ! -e killed.done ]; then
        caught killed
        kill -9 "${ranks[1]}"
        touch killed.done
    fi
    [ $SECONDS -lt 200 ] || fail "not over" sweep-*.out
    sleep 0.1
done
[ "$most" = 2 ] || fail "at most $most at a time, expected 2"
for name in cancelled killed; do
    within 15 has_none "sweep/$name" || fail "processes are left: $(processes_of "sweep/$name")"
done
collected 3
grep -q '^fails,failed,2,.*bits = 7: expected 2, 3, 4 or 8' sweep/report.csv ||
    fail "row 1 did not fail with 2 and its message" sweep/report.csv
grep -q 'bits = 7: expected 2, 3, 4 or 8' sweep/report.html || fail "no message in the page"
grep -q '^killed,failed,' sweep/report.csv || fail "row 5 did not fail" sweep/report.csv

begin "a second submission runs the other 3; nothing is made or trained twice"
before=$(stat -c %y sweep/{gptq16,gptq24,slower}/results.json)
table 3 >table.tsv # the first row is put right
job=$(sweep 2>second.err)
grep -q ' 3 of 6 rows' second.err || fail "not 3 rows" second.err
within 60 is_over "$job" || fail "not over" sweep-*.out
collected 6
[ "$before" = "$(stat -c %y sweep/{gptq16,gptq24,slower}/results.json)" ] || fail "rows were run twice"
count() { # EXPECTED TEXT
    [ "$(in_logs "$2")" = "$1" ] || fail "\"$2\" $(in_logs "$2") times, expected $1" sweep/*/job.log
}
count 1 'share    tokens made'
count 1 'share    teacher made'
count 1 'teacher .* windows in'
count 1 'gptq .* layers in'
count 1 'share    grid made'
count 1 'fp perplexity'
count 3 'rtn perplexity' # of 3 and 2 bits, and of 2 bits with GPTQ's grid
count 5 'share    init made' # 6 rows, 2 of which have the same codebooks
for name in cancelled killed; do # with a checkpoint after every step
    [ "$(grep -c '"step"' "sweep/$name/metrics.jsonl")" = 60 ] || fail "$name: not 60 steps"
    grep -q 'resume   from step' "sweep/$name/job.log" || fail "$name: not resumed" sweep/$name/job.log
done
sweep 2>third.err
grep -q 'all 6 rows .* are done' third.err || fail "something is left to do" third.err

begin "the paper's models: those that are absent are named, the others queued"
ln -s "$root/configs" configs
mkdir models
cp -r "$root/tests/models/zoo/opt-125m" models
bash "$root/slurm/reproduce.sbatch" zoo --test-only --cpus-per-task=1 >zoo.out 2>&1 || fail "code $?" zoo.out
[ "$(grep -c '^absent ' zoo.out)" = 13 ] || fail "not 13 models are absent" zoo.out
grep -q '^queued .*opt-125m.yaml: 4 rows' zoo.out || fail "opt-125m is not queued" zoo.out
grep -q 'to start at' zoo.out || fail "Slurm would not take it" zoo.out
[ "$(cat zoo/*/error.txt | grep -c '^models/.*: no config.json there')" = 52 ] ||
    fail "not 52 rows are reported without a model"

begin "env.sh: a job with GPUs is told what it lacks"
bash "$root/slurm/env.sh" >env.out 2>&1 || fail "code $?" env.out
grep -q '^env .*CUDA .* NCCL ' env.out || fail "nothing about CUDA" env.out
if ! nvidia-smi --list-gpus >nvidia.out 2>&1; then
    ! SLURM_JOB_GPUS=0 bash "$root/slurm/env.sh" >env.out 2>&1 || fail "code 0 without a GPU" env.out
    grep -q 'error: the job has GPUs, and nvidia-smi finds none' env.out || fail "no error" env.out
fi

begin "two jobs of one row: one works, the other leaves it alone or finds it done"
table 3 | head -n 1 >twice.tsv
table 3 | grep '^slower' | sed 's/slower/twice/; s/\t3\t8/\t40\t8/' >>twice.tsv
twice() {
    sbatch --parsable --array=1 --ntasks-per-node=2 --cpus-per-task=1 --time=5 --output="$dir/twice-%A.out" \
        "$root/slurm/sweep.sbatch" twice.tsv sweep
}
first=$(twice) second=$(twice)
within 90 is_over "$first" || fail "not over" twice-*.out
within 90 is_over "$second" || fail "not over" twice-*.out
[ "$(cat twice-*.out | grep -cE 'at work in another job|twice, is done already|twice ended with 0')" = 2 ] ||
    fail "not both ended well" twice-*.out
[ "$(grep -c 'train .* 40 steps in' sweep/twice/job.log)" = 1 ] || fail "trained twice" sweep/twice/job.log
[ ! -e sweep/twice/error.txt ] || fail "an error" sweep/twice/error.txt

# What jobs on a cluster are promised to do: whatever else is tried above, this was.
for check in 'srun with 4 ranks on 2 nodes' 'USR1: a checkpoint, code 75, queued again, the same bits' \
    'kill -9 of one rank: the job ends, nothing is left' 'scancel: no process is left' \
    'a sweep of 6 rows, 2 at a time' 'a second submission runs the other 3; nothing is made or trained twice'; do
    [[ $begun == *"$check"* ]] || fail "\"$check\" was not tried"
done

begin "done"
