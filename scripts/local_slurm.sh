#!/bin/bash
# A Slurm of one node, this machine, for tests: no accounting, no cgroups, all files in one folder.
#
#   apt-get install --no-install-recommends slurm-wlm munge
#   eval "$(scripts/local_slurm.sh start [FOLDER])"    # sets SLURM_CONF; FOLDER is /tmp/local_slurm by default
#   scripts/local_slurm.sh stop [FOLDER]               # cancels all jobs, ends the daemons, removes FOLDER
#
# CPUS=4 pretends that the machine has four cores. NODES=2 starts two slurmd, nodes that can be drained one at a time.
set -euo pipefail

action=${1:-} folder=$(realpath -m "${2:-/tmp/local_slurm}")
cpus=${CPUS:-$(getconf _NPROCESSORS_ONLN)} nodes=${NODES:-1}
export SLURM_CONF=$folder/slurm.conf

start() {
    for program in munged slurmctld slurmd sbatch; do
        PATH=$PATH:/usr/sbin command -v $program >/dev/null || { echo "local_slurm: $program is not installed" >&2; exit 2; }
    done
    [ ! -e "$folder" ] || { echo "local_slurm: $folder exists: stop it first" >&2; exit 2; }
    mkdir -p "$folder"/{state,spool,log,munge}
    chmod 755 "$folder" && chmod 711 "$folder/munge"
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
    read -r port _ < <(python3 -c "$free_ports")
    cat >"$SLURM_CONF" <<CONF
ClusterName=local
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CryptoType=crypto/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
MinJobAge=30
CONF
    local ports
    read -r -a ports < <(python3 -c "$free_ports")
    for node in $(seq "$nodes"); do
        echo "NodeName=local$node NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=${ports[node]} CPUs=$cpus State=UNKNOWN"
    done >>"$SLURM_CONF"
    echo "PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE OverSubscribe=NO State=UP" >>"$SLURM_CONF"

    PATH=$PATH:/usr/sbin
    munged --force --num-threads=1 --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
        --pid-file="$folder/munge/pid" --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" 2>/dev/null
    slurmctld 2>>"$folder/log/start"
    for node in $(seq "$nodes"); do slurmd -N "local$node" 2>>"$folder/log/start"; done
    for _ in $(seq 60); do
        if [ "$(sinfo --noheader --Node --states=idle 2>/dev/null | wc -l)" = "$nodes" ]; then
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
        sleep .5
    done
    cat "$folder"/log/* "$folder/munge/log" >&2
    stop
    echo "local_slurm: the nodes did not become idle" >&2
    exit 1
}

free_ports='
import socket
sockets = [socket.socket() for _ in range(17)]
for each in sockets: each.bind(("127.0.0.1", 0))
print(*(each.getsockname()[1] for each in sockets))
'

stop() {
    # a slurm.conf alone may be a cluster's, whose jobs and files must stay
    grep -qsxF "AuthInfo=socket=$folder/munge/socket" "$SLURM_CONF" ||
        { echo "local_slurm: $folder has no Slurm of this script" >&2; exit 2; }
    scancel --full --user="$(id -un)" 2>/dev/null || true
    for _ in $(seq 20); do [ -z "$(squeue --noheader 2>/dev/null)" ] && break; sleep .5; done
    local pids
    pids=$(cat "$folder"/slurmd.*.pid "$folder/slurmctld.pid" "$folder/munge/pid" 2>/dev/null || true)
    for pid in $pids; do kill "$pid" 2>/dev/null || true; done
    for pid in $pids; do
        for _ in $(seq 40); do kill -0 "$pid" 2>/dev/null || break; sleep .25; done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$folder"
}

case $action in
    start) start ;;
    stop) stop ;;
    *) echo "usage: scripts/local_slurm.sh start|stop [FOLDER]" >&2; exit 2 ;;
esac
