#!/usr/bin/env bash
# A run on hosts of Slurm: sbatch clusters/slurm.sh, and flags of the app after it. See docs/clusters.md.

# Settings: what sbatch asks for.
#SBATCH --job-name=omni
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
# So many seconds before the time is over the run saves and leaves: more than a save takes, and a minute.
#SBATCH --signal=B:USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

set -euo pipefail

# Settings: where it runs and what. All hosts see REPO and OUT.
REPO=$PWD
PYTHON=$REPO/.venv/bin/python
OUT=/shared/runs/qwen3-8b
RUN=(apps/pretrain.py --config recipes/pretrain/qwen3-8b.yaml --replicate 2 --shard 8 --data /shared/web)
# Flags of srun for a container, for example (--container-image=omni.sqsh --container-mounts=/shared); PYTHON is then
# that of the image.
CONTAINER=()
# How often ranks that failed are started again on the same hosts.
RESTARTS=3
# What models and datasets are read from: see apps/download.py.
export HF_HUB_OFFLINE=1
# Only where NCCL chooses a wrong network by itself:
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0 NCCL_IB_HCA=mlx5

# Nothing below needs an edit.

TOLD_TO_LEAVE=85
REFUSED=2

cd "$REPO"
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR=${hosts%%$'\n'*}
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
# Slurm does not hand the first on to srun by itself.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
export OMP_NUM_THREADS=$SRUN_CPUS_PER_TASK

told=""
interrupted=""

# The ranks are told, and not srun: of SIGTERM it kills them.
# shellcheck disable=SC2329
tell_ranks() {
    told=yes interrupted=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap tell_ranks USR1
# Whoever cancels the job tells the ranks as well; this waits for them.
trap 'interrupted=yes' TERM

start_ranks() {
    # A rank that ends waits for the others a minute: what all refuse, all tell.
    srun --kill-on-bad-exit=0 --wait=60 "${CONTAINER[@]}" "$PYTHON" "${RUN[@]}" --out "$OUT" \
        --leave-code "$TOLD_TO_LEAVE" "$@" &
    interrupted=yes
    while [[ -n $interrupted ]]; do
        interrupted=""
        code=0
        wait "$!" || code=$?
    done
}

for ((again = 0; again <= RESTARTS; again++)); do
    start_ranks "$@"
    if [[ $code == 0 || $code == "$REFUSED" ]]; then
        break
    elif [[ -n $told || $code == "$TOLD_TO_LEAVE" ]]; then
        # Not where the job was cancelled.
        if scontrol show job "$SLURM_JOB_ID" | grep -q "JobState=RUNNING"; then
            scontrol requeue "$SLURM_JOB_ID"
        fi
        break
    fi
    echo "Ranks failed with code $code, $again of $RESTARTS times started again." >&2
done
exit "$code"
