"""Measure a training step of any preset, mesh and setting: its speed, how near that is to matrix products alone, its
memory, and what the device did meanwhile.

    uv run apps/bench.py --steps 12                          the tiny model, on a laptop
    uv run apps/bench.py --steps 12 --shard 2                the same on two ranks
    uv run apps/bench.py --model qwen3-0.6b --seq-len 4096 --batch 4 --name mine    kept as benchmarks/mine.json
    uv run apps/bench.py --model qwen3-0.6b --seq-len 4096 --batch 4 --name mine --check    worse than that, or not
    uv run apps/bench.py --model tiny-moe --ep 2 --balanced --trace trace.json.gz

It takes the flags of apps/pretrain.py and runs its loop, data wait included, and writes no checkpoint.
"""

# Read it top to bottom: that is the order in which things happen.

from preflight import answer, start
from request_bench import TOLD, Config

if __name__ == "__main__":
    answer(Config, __doc__, told=TOLD)  # What is wrong with flags, and what they are, is told before torch is there.

import json
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from batches import read_batches
from clock import Clock, clock_encoders
from decision import Decision
from explain import explain_run
from measuring import decide_measured, make_record, record_of, to_run
from patience import MARGIN_S, START_S, expect_steps
from peak import measure_matmul
from place import place
from profiling import save_trace
from records import compare, read_record
from reporter import Reporter
from request import Config as RunConfig
from step import (
    accumulate_grads_,
    hear_all,
    rare_collections,
    rebalance_,
    scale_or_skip,
    seed_all_,
    short_turns,
    take_steps,
)
from timeline import Timeline, read_timeline, tell_timeline
from transformers import PreTrainedModel
from watching import profiled, watch_steps

from omni_data import Cursor
from omni_mesh import Mesh, Requests, join_world, make_mesh, watch_stalls
from omni_models import fill_weights
from omni_parallel import grad_norm, init_state, update


def main(asked: Config, place: Callable[[RunConfig, Decision, Mesh], PreTrainedModel] = place) -> None:
    """Train as `asked` on a model that `place` gives. Effect: joins the world, prints, and writes a record."""
    # Decide.
    config, run = to_run(asked), decide_measured(asked)
    timelines: list[Timeline] = []
    with (
        TemporaryDirectory() as folder,
        join_world(device=run.device, timeout_s=START_S + MARGIN_S) as world,
        watch_stalls(world, START_S) as dog,
        rare_collections() as collect_at,
        short_turns(),
    ):
        # Place, on machines of which it is known what they can do.
        config, chief = replace(config, out=Path(folder)), world.rank == 0
        matmul_tflops = measure_matmul(world.device)
        mesh = make_mesh(run.spec, device_type=run.device)
        model = fill_weights(place(config, run, mesh), config.weights, seed=config.seed, device=world.device)
        state = init_state(model, config.optim)
        clock = Clock(world.device)
        model = clock_encoders(model, clock) if run.plan.encoders else model
        if chief:
            print(run.told(), flush=True)

        # Train.
        begin, requests = expect_steps(dog, mesh, config.timeout_s), Requests()
        steps = range(asked.run.steps + 1, config.steps + 1) if chief else range(0)
        with (
            closing(read_batches(config, run, Cursor(), mesh)) as batches,
            Reporter(config, run, world, first=0) as report,
            watch_steps(steps, lambda: look(timelines, asked.trace, world.device), at=0) as watched,
        ):
            taken = watched(take_steps(batches, run, world.device))
            while state.step < config.steps and (now := next(taken, None)):
                begin(state.step)
                seed_all_(config.seed, state.step, world.rank)
                micro, cursor, data = now
                how = {"balance": run.balance, "sources": len(run.parts)}
                metrics, loads = accumulate_grads_(model, micro, run.compute.loss, **how)
                metrics |= {"grad_norm": grad_norm(model), **hear_all(requests, data, world.device)}
                scale = scale_or_skip(metrics, config.optim.max_norm)
                state = update(state, run.schedule, scale=scale, keep_casts=not run.plan.recompute)
                rebalance_(model, loads, run.rate, scale)
                collect_at(state.step)
                clock.end_step()
                report.note(state.step, metrics, loads, cursor=cursor, data=data)
        report.tell()
        towers = clock.seconds()
        rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()] if chief else []

    # Keep, or compare.
    if chief:
        record = make_record(asked, rows, matmul_tflops, *(timelines or [None]), towers=towers)
        print(json.dumps(record, indent=2), flush=True)
        if asked.check and (worse := compare(record, read_record(record_of(asked)))):
            raise SystemExit("\n".join([f"worse than {record_of(asked)}:", *worse]))
        if asked.name and not asked.check:
            asked.to.mkdir(parents=True, exist_ok=True)
            record_of(asked).write_text(json.dumps(record, indent=2) + "\n")


@contextmanager
def look(timelines: list[Timeline], trace: Path | None, device: torch.device) -> Iterator[None]:
    """While open, profile; add what was seen to `timelines`. Effect: prints it, and writes `trace`, if given."""
    with profiled(device) as profiler:
        yield
    timelines.append(read_timeline(profiler))
    if timelines[-1].steps:
        print(tell_timeline(timelines[-1]), flush=True)
        if trace:
            save_trace(profiler, trace)


if __name__ == "__main__":
    start(main, decide_measured, Config, __doc__, told=TOLD, instead=explain_run)
