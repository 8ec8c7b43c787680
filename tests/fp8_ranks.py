"""What each rank runs in `test_fp8.py`: a pool sends functions by the name of their module."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from decide import decide
from experts import grads_of
from quick_products import quick_products
from sequence import packed
from torch import Tensor
from training import SMALL, stream_of

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import build_model, count_targets, describe, read_config, summed_loss, use_attention
from omni_parallel import (
    AdamWConfig,
    RecomputeConfig,
    apply_fp8,
    constant,
    global_sum,
    init_state,
    plan_parallel,
    recompute_blocks,
    shard_fsdp,
    update,
)

ROWS = ((9, 1, 20, 7), (23, 3, 11))
"""Documents of two rows of 37 tokens, which is no multiple of 16."""


def train_two(recompute: RecomputeConfig, param_dtype: torch.dtype) -> list[tuple[float, dict[str, Tensor | None]]]:
    """Loss and gradients of two steps on two rows: each rank has one, or a single rank has one after the other."""
    with quick_products(), join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        model = use_attention(build_model(read_config("tiny"), seed=0, device="cpu"), "sdpa")
        plan = plan_parallel(describe(model), mesh.spec, recompute=recompute)
        assert plan.reshard_after_forward == (world.size > 1), "weights are gathered again for the backward pass"
        model = recompute_blocks(apply_fp8(model, plan), plan)
        state = init_state(shard_fsdp(model, mesh, plan, param_dtype=param_dtype), AdamWConfig())
        rows = [packed(ROWS[i : i + 1], skip=ROWS[:i])[:2] for i in range(len(ROWS))]
        targets = sum(int(count_targets(labels_BS)) for _, labels_BS in rows)
        found = []
        for _ in range(2):
            loss = torch.zeros(())
            for inputs, labels_BS in rows[world.rank :: world.size]:
                part = summed_loss(model, inputs, labels_BS) / targets
                part.backward()
                loss += part.detach()
            found.append((global_sum(loss).item(), grads_of(model)))
            state = update(state, constant(1e-3))
        return found


def curve(fp8: bool) -> list[float]:
    """The losses of 30 steps of AdamW in fp32, of the tiny model on its corpus."""
    with quick_products():
        return _curve(fp8)


def _curve(fp8: bool) -> list[float]:
    config = replace(SMALL, seq_len=128, batch=8, virtual_shards=8, steps=30)
    run = decide(config, 1)
    stream = stream_of(run, config)
    model = build_model(read_config(config.model), seed=0, device="cpu")
    model = apply_fp8(model, run.plan) if fp8 else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(config.steps):
        batch = next(stream)[0]
        ids_BS, positions_BS, labels_BS = map(torch.from_numpy, (batch.tokens_BS, batch.positions_BS, batch.labels_BS))
        logits_BSV = model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits
        loss = F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses
