"""Pretrain a causal language model: any preset, directory or hub name that transformers knows.

    uv run apps/pretrain.py                                  a tiny model on a built-in corpus; nothing is downloaded
    uv run apps/pretrain.py --model qwen3-0.6b --data text/ --tokenizer Qwen/Qwen3-0.6B --out runs/mine
    uv run apps/pretrain.py --replicate 2 --shard 4          on eight local GPUs, or eight processes of a CPU
    uv run apps/pretrain.py --sp 2 --seq-len 1024            each row cut between two of them
    uv run apps/pretrain.py --model tiny-moe --ep 2          experts spread over two of them
    torchrun --nnodes 2 --nproc-per-node 8 apps/pretrain.py  simply a rank, here and under Slurm's srun

Without weights the model starts at random. A run found in --out is continued.
"""

# Read it top to bottom: that is the order in which things happen.

import time

import torch
from decide import decide
from preflight import start
from report import Reporter
from request import Config
from resume import load_run, save_run
from step import accumulate_grads_, mean_reach, place, rare_collections, rebalance_
from watch import forget_after, what_next

from omni_data import Cursor, prefetch, stream_batches
from omni_mesh import join_world, make_mesh
from omni_models import (
    fill_weights,
    map_attention,
    map_experts,
    save_config,
    use_attention,
    use_experts,
    use_kernels,
)
from omni_parallel import (
    apply_ep,
    apply_ulysses,
    clip_scale,
    grad_norm,
    init_state,
    recompute_blocks,
    shard_fsdp,
    update,
)


def main(config: Config) -> None:
    """Train as `config` says. Effect: joins the world, writes checkpoints and metrics below `config.out`."""
    # Decide. What will happen is known, and printed, before anything does.
    run = decide(config)
    with join_world(device=run.device) as world, rare_collections() as collect_at:
        # Place. Each line takes the model and gives it back; each can be left out.
        mesh = make_mesh(run.spec, device_type=run.device)
        model = use_kernels(run.model, run.kernels, device_type=run.device)
        model = use_attention(model, run.compute.attention)
        model = use_experts(model, run.compute.experts)
        model = apply_ulysses(model, mesh, run.plan, over=map_attention)
        model = apply_ep(model, mesh, run.plan, over=map_experts, even=config.set_rows_aside)
        model = recompute_blocks(model, run.plan)
        model = shard_fsdp(model, mesh, run.plan, param_dtype=run.dtype)
        model = fill_weights(model, None if run.found else config.weights, seed=config.seed)
        state, cursor = init_state(model, config.optim), Cursor()

        # Resume. The mesh may differ from the one that was saved.
        if run.found:
            state, cursor = load_run(state, run.found, run.order)
        if chief := world.rank == 0:
            print(run.told(), flush=True)
            run.tokenizer.save(save_config(model, config.out / "model", eos_id=run.tokenizer.eos_id))
            forget_after(config.out / "metrics.jsonl", state.step)

        # Train.
        batches = prefetch(
            stream_batches(
                run.source,
                cursor,
                shard=mesh.tokens.get_local_rank("dp"),
                num_shards=run.spec.dp,
                rows=run.micro,
                seq_len=config.seq_len,
                tokenize=run.tokenizer.encode,
                eos_id=run.tokenizer.eos_id,
                virtual_shards=run.virtual_shards,
                shuffle=config.shuffle,
                seed=config.seed,
            )
        )
        stop = min(config.steps, config.stop_after or config.steps)
        first = state.step
        with Reporter(config, run, world, first=first) as report:
            while state.step < stop:
                began = time.perf_counter()
                # Dropout draws from (seed, step, rank), so that a resumed run draws what an unbroken one would.
                torch.manual_seed(hash((config.seed, state.step, world.rank)))
                micro, reach = [], 0.0
                for _ in range(run.batch // run.spec.dp // run.micro):
                    batch, cursor = next(batches)
                    part = mesh.tokens.get_local_rank("sp")
                    micro.append(place(batch, run.facts.vocab_size, world.device, part=part, parts=run.spec.sp))
                    reach += mean_reach(batch) * run.micro * run.spec.dp / run.batch
                waited = time.perf_counter() - began
                metrics, loads = accumulate_grads_(model, micro, run.compute.loss, balance=run.balance)
                metrics["grad_norm"] = grad_norm(model)
                lr = run.schedule(state.step)
                scale = clip_scale(metrics["grad_norm"], config.optim.max_norm)
                state = update(state, run.schedule, scale=scale, keep_casts=not run.plan.recompute)
                rebalance_(model, loads, run.rate)
                collect_at(state.step)

                # To read its numbers is to wait for the device, so the step before is told, and this one before a save.
                report.note(state.step, metrics, loads, lr=lr, rows=cursor.rows, reach=reach, waited=waited)
                if state.step % config.save_every == 0 or state.step == stop:
                    report.tell()
                    save_run(config.out, state, cursor, run.order, keep=config.keep)
                    report.skip_time()
        batches.close()
        if chief:
            print(what_next(config.out, state.step, config.steps, trained=state.step - first), flush=True)


if __name__ == "__main__":
    start(main, decide, Config, __doc__)
