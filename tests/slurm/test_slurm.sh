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
same_results four

begin "USR1: a checkpoint, code 75, queued again, the same bits"
job=$(submit stopped --steps 30)
within 60 has_lines 3 stopped/metrics.jsonl || fail "no steps" stopped.out
mapfile -t ranks < <(ranks_of "$dir/stopped")
[ ${#ranks[@]} = 4 ] || fail "${#ranks[@]} ranks"
kill -STOP "${ranks[@]}" # or they might be through before the signal is
scancel --signal=USR1 "$job"
within 30 usr1_waits_for "${ranks[@]}" || fail "no signal" stopped.out
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

begin "a sweep of 5 rows, 2 at a time; the first fails, the others do not notice"
table() { # BITS OF THE FIRST ROW
    local bits
    printf '# rows of a test\nname\tmodel\ttext\teval-text\tbits\tK\tnsamples\tseqlen\tsteps\teval-max-windows\tkmeans.iters\n'
    for bits in "$1" 2 3 4 8; do
        printf 'row%s\t%s\t%s\t%s\t%s\t16\t8\t64\t3\t2\t3\n' $((row++)) "$demo" "$demo/calib.txt" "$demo/eval.txt" "$bits"
    done
}
row=1
table 7 >table.tsv
job=$("$root/slurm/sweep.sh" table.tsv sweep %2 --cpus-per-task=1 --time=5) ||
    fail "not submitted"
most=0
until is_over "$job"; do
    running=$(squeue --noheader --jobs="$job" --states=RUNNING | wc -l)
    [ "$running" -le "$most" ] || most=$running
    [ $SECONDS -lt 280 ] || fail "not over" sweep-*.out
    sleep 0.2
done
[ "$most" = 2 ] || fail "at most $most at a time, expected 2"
"$root/slurm/collect.sh" table.tsv sweep >sweep.csv || fail "not collected"
[ "$(grep -c ',done,[0-9]' sweep.csv)" = 4 ] || fail "not 4 results" sweep.csv sweep-*.out
grep -q '^1,row1,failed: 2,' sweep.csv || fail "row 1 did not fail with 2" sweep.csv
[ "$(cat sweep/*/job.log | grep -c 'teacher .* windows in')" = 1 ] ||
    fail "the teacher did not run once" sweep/*/job.log

begin "a second submission runs only what is missing"
before=$(stat -c %y sweep/row[2-5]/results.json)
row=1
table 4 >table.tsv # the first row is put right
sed -i 's/^row1\(.*\)\t16\t/row1\1\t24\t/' table.tsv
job=$("$root/slurm/sweep.sh" table.tsv sweep --cpus-per-task=1 --time=5 2>second.err)
grep -q ' 1 of 5 rows' second.err || fail "not 1 row" second.err
within 60 is_over "$job" || fail "not over" sweep-*.out
"$root/slurm/collect.sh" table.tsv sweep >sweep.csv
[ "$(grep -c ',done,[0-9]' sweep.csv)" = 5 ] || fail "not 5 results" sweep.csv sweep/row1/job.log
[ "$before" = "$(stat -c %y sweep/row[2-5]/results.json)" ] || fail "rows were run twice"
"$root/slurm/sweep.sh" table.tsv sweep 2>third.err
grep -q 'all 5 rows .* are done' third.err || fail "something is left to do" third.err

begin "locks: one of many takes it; a holder that is gone or silent loses it, a live one does not"
# shellcheck source=slurm/lock.sh
. "$root/slurm/lock.sh"
takes() { # JOB
    vq_job=$1 lock_take lock
}
for ((i = 0; i < 16; i++)); do
    (
        squeue() { return 1; } # Slurm cannot be asked
        takes "racer$i" && echo "$i" >>winners
    ) &
done
wait
[ "$(wc -l <winners)" = 1 ] || fail "$(wc -l <winners) holders" winners
takes 999999 || fail "Slurm knows no such job as the holder, but it kept its lock"
rm lock/2/job # so that the beat alone counts
! takes 999998 || fail "a live holder lost its lock"
touch -d '1 minute ago' lock/2/beat
takes 999998 || fail "a silent holder kept its lock"

begin "done"
