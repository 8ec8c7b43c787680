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

from preflight import answer, start
from request import Config

if __name__ == "__main__":
    answer(Config, __doc__)  # What is wrong with flags, and what they are, is told before torch is there.

import sys
from contextlib import closing
from functools import partial

from about import changed_settings, settle
from adapt import write_adapters
from batches import read_batches
from decide import decide
from decision import Decision
from evaluate import evaluate
from explain import explain_run
from patience import MARGIN_S, START_S, expect_steps
from place import place
from profiling import profiling
from reporter import Reporter
from resume import Keeper, choose_checkpoint, load_run
from settings import save_settings
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
from tracking import tracking
from watch import forget_rows, say, what_interrupt_left, what_next

from omni_data import Cursor
from omni_mesh import heed_signals, join_world, make_mesh, watch_stalls
from omni_models import fill_weights, save_config
from omni_parallel import grad_norm, init_state, update


def main(config: Config) -> None:
    """Train as `config` says. Effect: as `train`."""
    # Decide. What will happen is known, and printed, before anything does.
    train(config, decide(config), asked=config)


def train(config: Config, run: Decision, *, asked: object, app: str = "pretrain") -> None:
    """Train as `config` says and `run` is decided.

    Effect: joins the world, writes checkpoints and metrics below `config.out`.

    Args:
        config: of the run.
        run: what it means here.
        asked: all settings of the app, which are kept.
        app: whose command goes on with it.
    """
    with (
        join_world(device=run.device, timeout_s=START_S + MARGIN_S) as world,
        watch_stalls(world, START_S) as dog,
        heed_signals() as requests,
        Keeper(config, run.order, world, dog.allowing) as keeper,
        rare_collections() as collect_at,
        short_turns(),
    ):
        found = choose_checkpoint(config.checkpoints(), world)

        # Place. The model is a handle: each line takes it and gives it back.
        mesh = make_mesh(run.spec, device_type=run.device)
        model = place(config, run, mesh)
        model = fill_weights(model, config.filled_from(found), seed=config.seed, device=world.device)
        state, cursor, about = init_state(model, config.optim), Cursor(), {}

        # Resume. The mesh may differ from the one that was saved.
        if found:
            state, cursor, about = load_run(state, found, config.keeps_frozen())
        saves, changed = keeper.make_room(state, cursor), changed_settings(about, config, settle(config, run))
        if chief := world.rank == 0:
            say(run.told(found, saves, changed))
            run.tokenizer.save(save_config(model, config.out / "model", eos_id=run.tokenizer.eos_id))
            write_adapters(config, model)
            save_settings(asked, config.out)
            forget_rows(config.out, state.step)

        # Train.
        first, stop, due = state.step, min(config.steps, config.stop_after or config.steps), False
        begin = expect_steps(dog, mesh, config.timeout_s)
        with (
            keeper.telling(),
            closing(read_batches(config, run, cursor, mesh)) as batches,
            tracking(config, asked, first=first, chief=chief, allowing=dog.allowing) as track,
            Reporter(config, run, world, first=first, about=about, track=track) as report,
            profiling(config, world, at=first) as profiled,
        ):
            taken = profiled(take_steps(batches, run, world.device))
            while state.step < stop and (due or not report.asked_to_leave) and (now := next(taken, None)):
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

                # To read its numbers is to wait for the device, so the step before is told, and this one before a save.
                report.note(state.step, metrics, loads, cursor=cursor, data=data)
                keeper.poll()
                if report.is_time_to_evaluate(state.step, last=data.last):
                    report.note_eval(state.step, evaluate(model, config, run, mesh, beat=partial(dog.beat, state.step)))
                due |= state.step % config.save_every == 0 or state.step == stop or data.last or report.is_asked()
                if due and report.is_good():
                    keeper.save(state, cursor, report.about(state.step))
                    due = False
                    report.skip_time()
            report.check_end(saved=not due)
            keeper.wait()
        if chief:
            say(what_next(config, state.step, since=first, left=report.asked_to_leave, app=app))
    if config.leave_code and report.asked_to_leave and state.step < stop:
        sys.exit(config.leave_code)


if __name__ == "__main__":
    start(main, decide, Config, __doc__, instead=explain_run, left=what_interrupt_left)
