#!/usr/bin/env bash
# A Slurm cluster of two nodes, node1 and node2, on this machine, without systemd and without accounting.
#   tests/services/slurm.sh up DIR [CPUS]     CPUS: of each node, by default this machine's
#   tests/services/slurm.sh lose DIR NODE     as a power cut would: nothing runs on the node, and Slurm learns that it is down
#   tests/services/slurm.sh return DIR NODE   it is back
#   tests/services/slurm.sh down DIR
# Debian packages: slurmctld slurmd slurm-client munge. All is below DIR, except for links to its configuration in
# /etc/slurm: steps that Snakemake's plugin starts do not know $SLURM_CONF. The machine must not belong to a cluster.
set -euo pipefail
COMMAND=$1 DIR=$2 NODE=${3:-} CPUS=${3:-$(nproc)} PORT=${SLURM_PORT:-16817} USER=$(id -un)

await() { for _ in $(seq "$1"); do if "${@:2}"; then return; fi; sleep 0.1; done; return 1; } # tenths of a second
gone() { case $(ps -o stat= -p "$1") in "" | Z*) ;; *) return 1 ;; esac; }
present() { case $(sinfo -h -n "$NODE" -o %T) in down* | unk*) return 1 ;; esac; }
idle() { [ "$(sinfo -h -p main -o '%T %D' 2>/dev/null)" = "idle 2" ]; }

stop() {
  for name in slurmd-node1 slurmd-node2 slurmctld munged; do
    [ -f "$DIR/run/$name.pid" ] || continue
    pid=$(cat "$DIR/run/$name.pid")
    kill "$pid" 2>/dev/null || true
    await 20 gone "$pid" || kill -9 "$pid" 2>/dev/null || true
  done
}

lose() {
  kill -9 "$(cat "$DIR/run/slurmd-$NODE.pid")"
  for process in $(grep -lsz "^SLURMD_NODENAME=$NODE\$" /proc/[0-9]*/environ | cut -d / -f 3); do
    parent=$(ps -o ppid= -p "$process" | tr -d " ")
    [ "$(ps -o comm= -p "${parent:-0}")" != slurmstepd ] || kill -9 "$parent" 2> /dev/null || true
    kill -9 "$process" 2> /dev/null || true
  done
  scontrol update NodeName="$NODE" State=down Reason=lost
}

unlink_configuration() {
  for name in slurm.conf gres.conf; do
    [ "$(readlink /etc/slurm/$name || true)" != "$DIR/$name" ] || rm /etc/slurm/$name
  done
}

case $COMMAND in
  down) stop; unlink_configuration; exit ;;
  lose) lose; exit ;;
  return) slurmd -N "$NODE"; await 300 present; exit ;;
esac
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
await 300 idle || { sinfo >&2; stop; unlink_configuration; exit 1; }
