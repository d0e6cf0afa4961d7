#!/usr/bin/env bash
# up.sh - a real Slurm on this machine: munged, slurmctld and a slurmd for each of its nodes.
#
#   tests/slurm/up.sh DIR [NODES [CPUS]]; . DIR/env; srun -n 4 hostname; tests/slurm/down.sh DIR
#
# Without systemd, as root. All it writes is under DIR, all it starts is recorded in DIR/run/*.pid,
# its ports were free. Each node has a host name and a /dev/shm of its own: Open MPI's shared memory
# goes by host name, and ranks of two nodes that took each other for neighbours would wait for ever.
# Exit code 77: it cannot run here, with the reason on stderr.
set -euo pipefail
nodes=${2:-2} cpus=${3:-8}
PATH=$PATH:/usr/sbin

cannot() {
    echo "up.sh: $1" >&2
    exit 77
}

[ $# -ge 1 ] || { echo "usage: up.sh DIR [NODES [CPUS]]" >&2; exit 2; }
for program in munged slurmctld slurmd sinfo srun sbatch; do
    command -v $program >/dev/null ||
        cannot "$program is not installed: apt-get install slurmctld slurmd slurm-client munge"
done
[ "$(id -u)" = 0 ] || cannot "root is needed, for nodes with names of their own"
unshare --uts --mount true 2>/dev/null || cannot "this container may not make namespaces (unshare)"

mkdir -p "$1"
dir=$(cd "$1" && pwd)
mkdir -p "$dir"/{munge,state,log,run}
chmod 0700 "$dir/munge"
chmod 0755 "$dir" "$dir/run"

# Ports of nobody: the controller's, then the nodes'.
port_is_free() {
    ! { : <"/dev/tcp/127.0.0.1/$1"; } 2>/dev/null
}
for ((port = 17000 + $$ % 1000 * 10; ; port += 10)); do
    for ((i = 0; i <= nodes; i++)); do port_is_free $((port + i)) || continue 2; done
    break
done

# cred_expire: a requeued job would wait for 2 minutes. config_overrides: more CPUs than there are.
# TmpFS: or the PMIx of two nodes use one folder.
memory=$(awk '/MemTotal/ { print int($2 / 1024 * 0.9) }' /proc/meminfo)
{
    cat <<END
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/run/munge.sock,cred_expire=5
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool-%n
SlurmctldPidFile=$dir/run/slurmctld.pid
SlurmdPidFile=$dir/run/slurmd-%n.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd-%n.log
PlugStackConfig=/dev/null
TmpFS=$dir/tmp-%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,sched_min_interval=0,batch_sched_delay=0
SwitchType=switch/none
MpiDefault=pmix
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=600
END
    for ((i = 1; i <= nodes; i++)); do
        echo "NodeName=node$i NodeHostname=node$i NodeAddr=127.0.0.1 Port=$((port + i)) CPUs=$cpus RealMemory=$memory State=UNKNOWN"
    done
    echo "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP"
} >"$dir/slurm.conf"
export SLURM_CONF=$dir/slurm.conf
echo "export SLURM_CONF='$SLURM_CONF'" >"$dir/env"

head -c 1024 /dev/urandom >"$dir/munge/key"
chmod 0400 "$dir/munge/key"
munged --key-file="$dir/munge/key" --socket="$dir/run/munge.sock" --pid-file="$dir/run/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munge/seed"
slurmctld
for ((i = 1; i <= nodes; i++)); do
    mkdir -p "$dir/spool-node$i" "$dir/tmp-node$i"
    unshare --uts --mount --propagation private bash -c \
        'hostname "$1"; mount -t tmpfs -o size=1g tmpfs /dev/shm; exec slurmd -N "$1"' - "node$i"
done

for ((tenths = 0; tenths < 300; tenths++)); do
    up=$(sinfo --noheader --Node --format=%T 2>/dev/null | grep -c idle || true)
    [ "$up" = "$nodes" ] && exit 0
    sleep 0.1
done
echo "up.sh: $up of $nodes nodes are idle after 30 s: expected all. Look into $dir/log" >&2
exit 1
