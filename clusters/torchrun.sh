#!/usr/bin/env bash
# A run on several hosts without a scheduler: start this on each of them, with the same settings, in any order; flags of
# the app come after it. See docs/clusters.md.

set -euo pipefail

# Settings. All hosts see REPO and OUT.
REPO=$PWD
PYTHON=$REPO/.venv/bin/python
OUT=/shared/runs/qwen3-8b
RUN=(apps/pretrain.py --config recipes/pretrain/qwen3-8b.yaml --replicate 2 --shard 8 --data /shared/web)
HOSTS=2
# On each host: a number, or gpu for one on each GPU.
RANKS=gpu
# The host where all meet, by the name or address that the others reach it by, and a free port of it.
HEAD=host0:29500
# How often the run is started again, and seconds before it is: more than hosts take to notice that others are gone.
RESTARTS=10
PAUSE_S=10
# Seconds after which a host gives up on the meeting place.
PATIENCE_S=60
# What models and datasets are read from: see apps/download.py.
export HF_HUB_OFFLINE=1
# Only where NCCL or gloo choose a wrong network by themselves:
# export NCCL_SOCKET_IFNAME=eth0 GLOO_SOCKET_IFNAME=eth0 NCCL_IB_HCA=mlx5

# Nothing below needs an edit.

cd "$REPO"
# Whether all meet here, and how the others reach this host. torchrun would go by the name of the host, which need not
# lead to an address that the others reach.
address=$(getent ahostsv4 "${HEAD%:*}" | head -n 1 | cut -d " " -f 1)
route=$(ip -oneline route get "$address")
if [[ $route == local\ * ]]; then
    here=true me=${HEAD%:*}
else
    here=false me=${route##* src }
fi

told=""
interrupted=""

# The ranks are told, and not torchrun, which gives them 30 seconds to save; it is, where there are none yet.
# shellcheck disable=SC2329
tell_ranks() {
    told=yes interrupted=yes
    pkill -TERM -P "$!" || kill -TERM "$!"
}
trap tell_ranks TERM INT

start_ranks() {
    "$PYTHON" -m torch.distributed.run --nnodes "$HOSTS" --nproc-per-node "$RANKS" --max-restarts 0 \
        --local-addr "${me%% *}" --rdzv-backend c10d --rdzv-endpoint "$HEAD" --rdzv-id "$OUT" \
        --rdzv-conf "is_host=$here,read_timeout=$PATIENCE_S" \
        "${RUN[@]}" --out "$OUT" "$@" &
    interrupted=yes
    while [[ -n $interrupted ]]; do
        interrupted=""
        code=0
        wait "$!" || code=$?
    done
}

for ((again = 0; again <= RESTARTS; again++)); do
    start_ranks "$@"
    if [[ $code == 0 || -n $told ]]; then
        break
    fi
    echo "$(hostname): ranks failed with code $code, $again of $RESTARTS times started again." >&2
    sleep "$PAUSE_S"
done
exit "$code"
