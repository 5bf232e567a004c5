#!/usr/bin/env bash
# A Slurm cluster of two nodes, node1 and node2, on this machine, without systemd and without accounting.
#   tests/services/slurm.sh up DIR [CPUS]     CPUS: of each node, by default this machine's
#   tests/services/slurm.sh down DIR
# Debian packages: slurmctld slurmd slurm-client munge. All is below DIR, except for links to its configuration in
# /etc/slurm: steps that Snakemake's plugin starts do not know $SLURM_CONF. The machine must not belong to a cluster.
set -euo pipefail
COMMAND=$1 DIR=$2 CPUS=${3:-$(nproc)} PORT=${SLURM_PORT:-16817} USER=$(id -un)

stop() {
  for name in slurmd-node1 slurmd-node2 slurmctld munged; do
    [ -f "$DIR/run/$name.pid" ] || continue
    pid=$(cat "$DIR/run/$name.pid")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
}

unlink_configuration() {
  for name in slurm.conf gres.conf; do
    [ "$(readlink /etc/slurm/$name || true)" != "$DIR/$name" ] || rm /etc/slurm/$name
  done
}

if [ "$COMMAND" = down ]; then stop; unlink_configuration; exit; fi
if [ -e /etc/slurm/slurm.conf ]; then echo "/etc/slurm/slurm.conf is there already" >&2; exit 1; fi
mkdir -p "$DIR"/{run,log,state}
chmod 755 "$DIR" "$DIR/run"
chmod 700 "$DIR/log" "$DIR/state"
head -c 128 /dev/urandom > "$DIR/state/munge.key"
chmod 400 "$DIR/state/munge.key"
munged --socket="$DIR/run/munge.sock" --pid-file="$DIR/run/munged.pid" --log-file="$DIR/log/munged.log" \
  --seed-file="$DIR/state/munge.seed" --key-file="$DIR/state/munge.key" --num-threads=2
MEMORY=$(awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo)
cat > "$DIR/slurm.conf" <<END
ClusterName=test
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=$USER
SlurmdUser=$USER
AuthType=auth/munge
AuthInfo=socket=$DIR/run/munge.sock
CredType=cred/munge
SlurmctldPort=$PORT
SlurmctldPidFile=$DIR/run/slurmctld.pid
SlurmdPidFile=$DIR/run/slurmd-%n.pid
StateSaveLocation=$DIR/state
SlurmdSpoolDir=$DIR/state/%n
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,bf_interval=2
ReturnToService=2
SwitchType=switch/none
MpiDefault=none
KillWait=30
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT + 1)) CPUs=$CPUS RealMemory=$MEMORY Gres=gpu:2
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=$CPUS RealMemory=$MEMORY
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE DefMemPerCPU=500
END
for device in null zero; do echo "NodeName=node1 Name=gpu File=/dev/$device"; done > "$DIR/gres.conf" # pretend GPUs
mkdir -p /etc/slurm
ln -sfn "$DIR/slurm.conf" /etc/slurm/slurm.conf # -f: what is there leads to a cluster that is gone
ln -sfn "$DIR/gres.conf" /etc/slurm/gres.conf
slurmctld -i
slurmd -N node1
slurmd -N node2
for _ in $(seq 150); do [ "$(sinfo -h -p main -o '%T %D' 2>/dev/null)" = "idle 2" ] && break; sleep 0.2; done
[ "$(sinfo -h -p main -o '%T %D')" = "idle 2" ] || { sinfo >&2; stop; unlink_configuration; exit 1; }
