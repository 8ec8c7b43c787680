"""What will happen: every decision of a run, made before any process or weight is touched."""

from collections.abc import Mapping, Sequence
from math import lcm
from pathlib import Path
from typing import Any

import torch
from adapt import find_other_base, lay_out, tell_trained
from beginning import check_weights, tell_weights
from compute import choose_compute, choose_dtype, choose_gathered
from data import open_held_out, open_parts
from decision import Decision, tell_moments
from disk import check_merged
from kinds import Kind, texts
from limits import check_numbers
from names import read_named
from order import find_other_orders, fix_order, name_positions, tell_joining
from places import find_checkpoint, flag_of_root, open_places
from refusal import attempt, refuse
from request import Config
from room import check_room, make_room_for_files, offload_problems
from trackers import tracker_problems
from transformers import PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from omni_ckpt import mismatches, read_plain, stored
from omni_data import Cursor, cursor_from_json
from omni_data.mix import mix_problems
from omni_mesh import MeshSpec, planned_ranks, resolve_mesh
from omni_models import (
    PRESETS,
    ModelPart,
    asked_loss,
    build_model,
    decoder_specs,
    describe,
    encoder_kinds,
    fitting_kernels,
    kernel_problems,
    part_problems,
    read_config,
    unsupported,
)
from omni_models.parts import nearest
from omni_parallel import (
    ParallelPlan,
    Schedule,
    named_tensors,
    plan_parallel,
    split_plan,
    warmup_cosine,
)


def decide(
    config: Config,
    ranks: int | None = None,
    *,
    kind: Kind | None = None,
    saves: bool = True,
    frozen: tuple[ModelPart, ...] = (),
    replicated: tuple[str, ...] = (),
) -> Decision:
    """What `config` means on machines like this one. Effect: reads files, and the hub if asked to.

    Args:
        config: what was asked for.
        ranks: of the world; left out, those that were started, or that `config` will start.
        kind: what the records of its data are; texts if left out.
        saves: whether it has checkpoints; a run without needs no room for any, and goes on from none.
        frozen: parts of the model that are not trained.
        replicated: modules that are whole on every rank.

    Raises:
        ValueError: with everything that keeps the run from starting.
    """
    problems = tracker_problems(config.tracking.track)
    kind = kind or texts(config.field)
    device, dtype = choose_dtype(config)
    root = open_places(problems, config) if saves else None
    ranks = ranks or attempt(problems, planned_ranks, config.mesh)
    spec = attempt(problems, resolve_mesh, config.mesh, ranks) if ranks else None
    schedule = attempt(problems, plan_schedule, config)
    attempt(problems, check_numbers, config)
    model_config = attempt(problems, read_merged, config.model)
    model = attempt(problems, build_model, model_config, device="meta") if model_config else None
    facts = attempt(problems, describe, model) if model else None
    if model:
        problems += unsupported(model) + (media_problems(model, config.model, frozen) if kind.media else [])
    held = lay_out(problems, config, model, facts, saves=saves) if model and facts else None
    plan = None
    if facts and spec:
        wanted = {
            "recompute": config.recompute,
            "offload": config.offload,
            "sp_chunks": config.sp_chunks,
            "tile": config.tile_mlp,
            "compile": config.compile,
            "keep_gathered": choose_gathered(config, facts, spec, device, dtype),
            "encoders": kind.media and bool(model and encoder_kinds(model)),
        }
        plan = attempt(problems, plan_parallel, facts, spec, **wanted)
    own = "bytes" if config.model in PRESETS else config.model if model else None
    tokenizer = attempt(problems, read_named, kind.read_tokenizer, name) if (name := config.tokenizer or own) else None
    parts = attempt(problems, open_parts, config, kind, tokenizer, facts.vocab_size if facts else None)
    problems += mix_problems(parts) if parts else []
    held_out = attempt(problems, open_held_out, config, kind, tokenizer, facts.vocab_size if facts else None)
    compute = None
    if model and facts:
        ep = spec.ep if spec else 1
        compute, wrong = choose_compute(config, model, device, dtype, ep=ep, images=kind.media)
        wrong += offload_problems(config.optim, held or model, spec or MeshSpec(), device)
        problems += wrong + (replicated_problems(model, plan, replicated) if plan else [])
    if facts and tokenizer and tokenizer.vocab_size > facts.vocab_size:
        problems.append(
            f"tokenizer {tokenizer.name} has {tokenizer.vocab_size} tokens, but {config.model} has embeddings for "
            f"{facts.vocab_size}: choose the tokenizer that belongs to the model."
        )
    found = attempt(problems, find_checkpoint, root) if root else None
    if held and isinstance(root, Path):
        attempt(
            problems,
            check_room,
            root,
            named_tensors(held, frozen=config.keeps_frozen()),
            config.retention(),
            flag=flag_of_root(config),
            moments=getattr(torch, config.optim.state_dtype),
        )
    if model and (weights := config.filled_from(found)):
        attempt(problems, check_weights, model, config.model, weights)
    if found and held:
        problems += find_misfits(config, held, found)
    kept = attempt(problems, kept_order, found) or {} if found else {}
    asked = fix_order(config, kind, parts, tokenizer)
    problems += find_other_orders(config, found, kept, asked) if kept else []
    problems += find_other_base(config, found, kept["flags"]) if found and kept else []
    rows = attempt(problems, cut_rows, config, kept, spec.dp, kind.shards) if spec else None
    if parts and rows and spec:
        attempt(problems, make_room_for_files, parts, rows[2] // spec.dp)
    refuse(problems)
    assert spec and rows and schedule and parts and tokenizer and model and facts and plan and compute
    assert held and held_out is not None
    batch, micro, virtual_shards = rows
    return Decision(
        spec=spec,
        model=model,
        facts=facts,
        plan=plan,
        schedule=schedule,
        parts=parts,
        held_out=held_out,
        tokenizer=tokenizer,
        batch=batch,
        micro=micro,
        seq_len=config.seq_len,
        steps=config.steps,
        packing=config.packing,
        until=config.mix.until,
        workers=(2 if device == "cuda" else 0) if config.workers is None else config.workers,
        virtual_shards=virtual_shards,
        order={**asked, "batch": batch, "virtual_shards": virtual_shards},
        device=device,
        dtype=dtype,
        compute=compute,
        balance=asked_loss(model, config.balance),
        rate=config.balance.rate,
        kernels=() if config.kernels == "none" or kernel_problems(device) else fitting_kernels(model),
        keep=config.recompute.keep,
        moments=tell_moments(config.optim),
        trained=tell_trained(config, held),
        start=f"continues {found}" if found else tell_weights(config),
        found=found,
        joining=tell_joining(parts, kept),
        frozen=frozen,
        replicated=replicated,
    )


def plan_schedule(config: Config) -> Schedule:
    """The learning rate of each step. Pure. Raises `ValueError` if there is none."""
    peak = config.optim.lr
    return warmup_cosine(peak, config.warmup_steps(), config.steps, final=peak / 10)


def media_problems(model: PreTrainedModel, name: str, frozen: tuple[ModelPart, ...]) -> list[str]:
    """Why `model`, of that name, cannot be trained on media with some parts frozen, in words. Pure."""
    if encoder_kinds(model) or decoder_specs(model.config):
        return part_problems(model, frozen) if frozen else []
    return [f"{name} has no encoder of images, films or sounds: train it on chats of text, by apps/sft.py."]


def replicated_problems(model: PreTrainedModel, plan: ParallelPlan, names: Sequence[str]) -> list[str]:
    """Why modules of these names cannot be whole on every rank, in words. Pure."""
    known = [name for name, _ in model.named_modules() if name]
    problems = [
        f"--parts.replicated {name}: there is no such module{nearest(name, known)}."
        for name in names
        if name not in known
    ]
    if not problems:
        attempt(problems, split_plan, plan, names)
    return problems


def read_merged(name: str) -> PreTrainedConfig:
    """The configuration of a model. Effect: reads files. Raises `ValueError` as `read_config`, or if it is a run."""
    check_merged(name)
    return read_named(read_config, name)


def find_misfits(config: Config, model: PreTrainedModel, found: Path) -> list[str]:
    """Why `model`, laid out as it is trained, cannot go on from checkpoint `found`, in words. Effect: reads a file."""
    try:
        there = stored(found, prefix="state.model")
    except ValueError as problem:
        return [str(problem)]
    differing = mismatches(named_tensors(model, frozen=config.keeps_frozen()), there)
    told = [f"{found} cannot be continued by {config.model}: {why}" for why in differing[:2]]
    more = [f"... and {len(differing) - 2} more tensors or lists of such differ."] if len(differing) > 2 else []
    other = f"{config.out} has a run of another model. Name another --out to start anew."
    return [other, *told, *more] if differing else []


def kept_order(found: Path) -> dict[str, Any]:
    """What checkpoint `found` says of the order of its data, the rows it has read, the sources it knows a place
    in, and the flags that named the data.

    Effect: reads a file.

    Raises:
        ValueError: if it is no checkpoint of a run.
    """
    plain = read_plain(found)
    flags, order = plain.get("about", {}).get("config", {}), plain.get("order", {})
    cursor = name_positions(cursor_from_json(plain["cursor"]), order) if "cursor" in plain else Cursor()
    return {**order, "rows": cursor.rows, "known": [*cursor.positions], "flags": flags}


def cut_rows(config: Config, kept: Mapping[str, Any], dp: int, usual: int = 240) -> tuple[int, int, int]:
    """Rows of a step, rows of a microbatch of one of `dp` ranks, and virtual shards. Pure.

    Args:
        config: what was asked for.
        kept: what the checkpoint to continue has of these, if there is one.
        dp: ranks that read different rows.
        usual: virtual shards where nobody says how many, or as many more as `dp` divides.

    Raises:
        ValueError: if they do not divide, with everything that is wrong.
    """
    batch = kept.get("batch", -(-12 // dp) * dp) if config.batch is None else config.batch
    shards = kept.get("virtual_shards", lcm(usual, dp)) if config.virtual_shards is None else config.virtual_shards
    micro = max(1, batch // dp) if config.micro is None else config.micro
    problems = [
        f"--{name} {value} must be at least 1."
        for name, value in (("batch", batch), ("micro", micro), ("virtual-shards", shards))
        if value < 1
    ]
    if batch % dp:
        problems.append(f"--batch {batch} rows do not divide among {dp} ranks: use a multiple of {dp}.")
    elif micro > 0 and (batch // dp) % micro:
        problems.append(f"--micro {micro} does not divide the {batch // dp} rows of each rank in --batch {batch}.")
    if kept.get("rows", 0) % dp:
        fits = [n for n in range(1, 2 * dp) if kept["rows"] % n == shards % n == 0]
        problems.append(
            f"the checkpoint has read {kept['rows']} rows, which {dp} ranks cannot have shared evenly: "
            f"continue on {' or '.join(map(str, fits[-3:]))} ranks."
        )
    if shards % dp:
        problems.append(f"--virtual-shards {shards} do not divide among {dp} ranks: use {-(-shards // dp) * dp}.")
    if shards != kept.get("virtual_shards", shards):
        problems.append(f"--virtual-shards {shards}, but the checkpoint has {kept['virtual_shards']}: leave it out.")
    if problems:
        raise ValueError("\n".join(problems))
    return batch, micro, shards
