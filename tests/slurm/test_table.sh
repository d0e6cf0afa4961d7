#!/usr/bin/env bash
# test_table.sh - what is wrong in a sweep's table, or with how it is submitted, is said before
# anything is queued.
#
#   tests/slurm/test_table.sh VQROUND
set -u
VQ_PROGRAM=$(realpath "${1:?usage: test_table.sh VQROUND}")
export VQ_PROGRAM
root=$(realpath "$(dirname "${BASH_SOURCE[0]}")/../..")
dir=$(mktemp -d /tmp/vqround-table.XXXXXX)
trap 'rm -rf "$dir"' EXIT
cd "$dir" || exit 1
mkdir bin none
printf '#!/bin/sh\necho queued "$@"\n' >bin/sbatch
chmod +x bin/sbatch
for tool in bash dirname awk cut tr grep sort cat wc; do ln -s "$(command -v $tool)" none; done

fail() {
    echo "FAILED: $1" >&2
    exit 1
}

sweep() { # PATH TABLE
    PATH=$1 bash "$root/slurm/sweep.sh" "$2" runs %2 --time=5 >out 2>err
}

refused() { # CODE WORDS... < TABLE
    local code=$1 word
    shift
    cat >t.tsv
    sweep "$dir/bin:$PATH" t.tsv
    [ $? = "$code" ] || fail "$*: another code than $code: $(cat err)"
    [ "$(wc -l <err)" = 1 ] || fail "$*: not one line: $(cat err)"
    for word in "table.sh: error: t.tsv" "$@"; do
        grep -qF -- "$word" err || fail "\"$word\" is not in: $(cat err)"
    done
    [ ! -s out ] || fail "$*: queued"
}

refused 3 ': no rows' 'expected a line of keys' 'Add' </dev/null
refused 3 ':1: no rows' 'expected a line of keys' 'Add' < <(printf 'bits\tK\n')
refused 3 ':1: column 1' '"bits K"' 'tabs, not spaces' < <(printf 'bits K\n4 16\n')
refused 3 ':1: column 2' '"--K"' 'without dashes' < <(printf 'bits\t--K\n4\t16\n')
refused 3 ':1: columns 1 and 3' '"bits"' 'Remove one' < <(printf 'bits\tK\tbits\n4\t16\t3\n')
refused 3 ':1: column "out"' 'Call the column "name"' < <(printf 'bits\tout\n4\tx\n')
refused 3 ':3: 1 of 2 columns' 'first line' 'Write -' < <(printf 'bits\tK\n4\t16\n4\n')
refused 3 ':3: the row is called bits4' 'as line 2' 'Add a column' < <(printf 'bits\n4\n4\n')
refused 3 ':2: the row is called "a b"' 'letters' < <(printf 'name\tbits\na b\t4\n')
refused 2 '--bitz: there is no such flag' 'such as --bits' < <(printf 'bitz\tK\n4\t16\n')
refused 2 '--ranks' 'other subcommands' < <(printf 'ranks\tK\n4\t16\n')
refused 3 'config none.yaml' 'expected a file' "$dir" < <(printf 'config\tbits\nnone.yaml\t4\n')

printf 'bits\tkmeans.by_sign\ttrain.lr\n4\ttrue\t-\n9\t-\t0.1\n' >t.tsv # a row's value is its own to say
sweep "$dir/bin:$PATH" t.tsv || fail "a good table: $(cat err)"
grep -q 'queued --parsable --array=1,2%2 --time=5' out || fail "queued as: $(cat out)"
sweep "$dir/none" t.tsv
[ $? = 2 ] || fail "another code than 2: $(cat err)"
grep -q 'sbatch is not there: expected .*Run this on' err || fail "no sbatch: $(cat err)"

for script in quantize sweep; do
    env -u SLURM_JOB_ID bash "$root/slurm/$script.sbatch" >out 2>err
    [ $? = 2 ] || fail "$script.sbatch: another code than 2: $(cat err)"
    grep -q "$script.sbatch: error: this is no job of Slurm: expected .*Run: " err || fail "$script: $(cat err)"
done
