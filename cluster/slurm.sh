#!/usr/bin/env bash
# One run of swamp on the nodes of a Slurm job:  sbatch cluster/slurm.sh CONFIG --storage FOLDER [options of swamp run]
#
# FOLDER must be seen by all nodes. Before its time is up the job stops the run in order and queues itself again; the
# run then goes on where it stood. Options of sbatch on the command line win over those below.
#
#SBATCH --job-name=swamp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --output=swamp-%j.log
#SBATCH --open-mode=append
# Whole nodes: Ray refuses a node that runs another Ray, and ends every Ray of yours on its nodes when it stops.
#SBATCH --exclusive
# USR1 to this script, 5 minutes before the end; and leave to queue the job again.
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
# A lost node does not end the job: its particles go to the others.
#SBATCH --no-kill
set -euo pipefail

say() { echo "slurm.sh: $*" >&2; }
fail() { say "$*"; exit 2; }

[ -n "${SLURM_JOB_ID:-}" ] || fail "submit this script: sbatch $0 CONFIG --storage FOLDER"
[ $# -gt 0 ] || fail "name the config: sbatch cluster/slurm.sh CONFIG --storage FOLDER"

# Where swamp is installed, on every node: SWAMP_VENV, else .venv of the folder that sbatch was typed in.
PATH="${SWAMP_VENV:-${SLURM_SUBMIT_DIR:-.}/.venv}/bin:$PATH"
for tool in swamp ray; do
    command -v "$tool" >/dev/null || fail "no $tool found: set SWAMP_VENV to the virtual environment, seen by all nodes"
done

# The first node of the allocation runs this script, Ray's head and swamp. A name may mean 127.x to its own node.
names=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
first=${names%%$'\n'*}
own=$(hostname -I || true)
named=$(getent ahostsv4 "$first" | awk '$1 !~ /^127\./ && !found++ { print $1 }' || true)
address=${SWAMP_HEAD_IP:-${named:-${own%% *}}}
[ -n "$address" ] || fail "no address of node $first: set SWAMP_HEAD_IP"
port=${SWAMP_PORT:-6379}

# A token of this attempt's own, never on disk: other users of the network can't use this Ray.
RAY_AUTH_TOKEN=$(od -An -tx1 -N32 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token
export RAY_ADDRESS="$address:$port" RAY_USAGE_STATS_ENABLED=0 RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300
# On each node. It holds sockets: beyond 32 letters Ray's dashboard can't start, and Ray waits a minute for it.
export RAY_TMPDIR="${SWAMP_TMPDIR:-/tmp/swamp-$SLURM_JOB_ID}"

state=$(mktemp -d)
trap 'rm -rf "$state"' EXIT
requeue=no
srun_pid=

# shellcheck disable=SC2329  # The traps call it.
# To swamp alone: a signal to the whole step would end Ray under it.
stop_swamp() {
    if [ -s "$state/pid" ]; then
        kill -TERM "$(cat "$state/pid")" 2>/dev/null || true
    elif [ -n "$srun_pid" ]; then
        kill -TERM "$srun_pid" 2>/dev/null || true
    fi
}
trap 'requeue=yes; say "time is up: stopping the run"; stop_swamp' USR1
trap 'stop_swamp' TERM INT

say "head $first ($RAY_ADDRESS), $SLURM_JOB_NUM_NODES nodes, attempt $((${SLURM_RESTART_COUNT:-0} + 1))"
# A lost node must not end the step: the particles of that node are trained on the others.
# shellcheck disable=SC2016  # The single quotes hold what the nodes' shells expand.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \
    --kill-on-bad-exit=0 --wait=0 \
    bash -c 'mkdir -p "$RAY_TMPDIR" && exec ray symmetric-run "$@"' symmetric-run \
    --address "$RAY_ADDRESS" --min-nodes "$SLURM_JOB_NUM_NODES" \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="${SLURM_GPUS_ON_NODE:-0}" \
    -- bash -c 'swamp run "$@" & echo $! >"$0/pid"; wait $!; code=$?; echo $code >"$0/code"; exit $code' \
    "$state" "$@" --address "$RAY_ADDRESS" &
srun_pid=$!

# In the background, so that a trap does not have to wait for it.
pause() { sleep "$1" & wait $! || true; }
at_work() { kill -0 "$srun_pid" 2>/dev/null; }

code=0
while at_work && [ ! -s "$state/code" ]; do pause 1; done
if [ -s "$state/code" ]; then
    code=$(cat "$state/code")
    # Workers may take minutes to see that their head is gone. The end of this script ends them.
    for _ in {1..30}; do at_work && pause 1; done
else
    wait "$srun_pid" || code=$?
    # symmetric-run says 0 when Ray itself did not start.
    if [ "$code" = 0 ]; then code=1; fi
    say "Ray did not start, or its head was lost; its words are above"
fi

if [ "$requeue" = yes ] && [ "$code" != 0 ]; then
    say "queued again; the run goes on from its checkpoints"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
