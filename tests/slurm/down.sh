#!/usr/bin/env bash
# down.sh - ends what up.sh started in DIR, by the process numbers that it recorded there.
#
#   tests/slurm/down.sh DIR
set -u
dir=${1:?usage: down.sh DIR}
export SLURM_CONF=$dir/slurm.conf

# A number may have gone to another process since: the name tells.
stop() { # PIDFILE NAME
    local pid tenths
    pid=$(cat "$1" 2>/dev/null) || return 0
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ]; then
        kill "$pid"
        for ((tenths = 0; tenths < 100; tenths++)); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.1
        done
        kill -9 "$pid" 2>/dev/null && echo "down.sh: $2 ($pid) had to be killed" >&2
    fi
    rm -f "$1"
}

if [ -e "$dir/run/slurmctld.pid" ]; then
    timeout 10 scancel --user=root
    for ((tenths = 0; tenths < 100; tenths++)); do
        [ -n "$(timeout 5 squeue --noheader)" ] || break
        sleep 0.1
    done
fi
for file in "$dir"/run/slurmd-*.pid; do
    [ ! -e "$file" ] || stop "$file" slurmd &
done
wait
stop "$dir/run/slurmctld.pid" slurmctld
stop "$dir/run/munged.pid" munged
