"""Supervised finetuning on chats: any model of transformers, its own chat template, loss on what the assistant says.

    uv run apps/sft.py                                       a tiny model on built-in chats; nothing is downloaded
    uv run apps/sft.py --model Qwen/Qwen3-0.6B --data chats.jsonl --seq-len 4096 --out runs/mine
    uv run apps/sft.py --model runs/pretrain/merged-200      go on from a model that apps/merge.py wrote

Records hold `messages` (role and content, or from and value), `prompt` and `completion`, or `instruction` and `output`.
It is apps/pretrain.py with chats for data, from the weights of --model. A run found in --out is continued.
"""

# Read it top to bottom: that is the order in which things happen.

from contextlib import closing
from functools import partial

from about import changed_settings, settle
from batches import read_batches
from evaluate import evaluate
from explain import explain_run
from patience import MARGIN_S, START_S, expect_steps
from place import place
from preflight import start
from profiling import profiling
from report import Reporter
from resume import Keeper, choose_checkpoint, load_run
from step import (
    accumulate_grads_,
    hear_all,
    rare_collections,
    rebalance_,
    scale_or_skip,
    seed_all_,
    take_steps,
)
from tune import TOLD, Config, decide_chats, with_weights
from watch import forget_rows, what_next

from omni_data import Cursor
from omni_mesh import heed_signals, join_world, make_mesh, watch_stalls
from omni_models import fill_weights, save_config
from omni_parallel import grad_norm, init_state, update


def main(asked: Config) -> None:
    """Train as `asked`. Effect: joins the world, writes checkpoints and metrics below `asked.run.out`."""
    # Decide. What will happen is known, and printed, before anything does.
    config, run = with_weights(asked.run), decide_chats(asked)
    with (
        join_world(device=run.device, timeout_s=START_S + MARGIN_S) as world,
        watch_stalls(world, START_S) as dog,
        heed_signals() as requests,
        Keeper(config, run.order, world, dog.allowing) as keeper,
        rare_collections() as collect_at,
    ):
        found = choose_checkpoint(config.checkpoints(), world)

        # Place. The model is a handle: each line takes it and gives it back.
        mesh = make_mesh(run.spec, device_type=run.device)
        model = place(config, run, mesh)
        model = fill_weights(model, None if found else config.weights, seed=config.seed)
        state, cursor, about = init_state(model, config.optim), Cursor(), {}

        # Resume. The mesh may differ from the one that was saved.
        if found:
            state, cursor, about = load_run(state, found)
        saves, changed = keeper.make_room(state, cursor), changed_settings(about, config, settle(config, run))
        if chief := world.rank == 0:
            print(run.told(found, saves, changed), flush=True)
            run.tokenizer.save(save_config(model, config.out / "model", eos_id=run.tokenizer.eos_id))
            forget_rows(config.out, state.step)

        # Train.
        first, stop, due = state.step, min(config.steps, config.stop_after or config.steps), False
        begin = expect_steps(dog, mesh, config.timeout_s)
        with (
            closing(read_batches(config, run, cursor, mesh)) as batches,
            Reporter(config, run, world, first=first, about=about) as report,
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
            print(what_next(config, state.step, since=first, left=report.asked_to_leave, app="sft"), flush=True)


if __name__ == "__main__":
    start(main, decide_chats, Config, __doc__, told=TOLD, instead=explain_run)
