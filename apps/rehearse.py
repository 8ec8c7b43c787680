"""A rehearsal: the forward and the backward pass of the blocks of a model on the meta device, where tensors have shapes
and no memory, and what they would have allocated, kept, computed and sent.

It is the code of the run itself, recomputation and tiles included; only kernels and collectives have stand-ins. Of
blocks that are alike one is run, the others let through what comes. Parameters are not counted, but their gradients
are, until the backward pass of their block is over.
"""

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from listen import Pass, Watch
from standins import Relay, attend, make_kernels
from standins_across import Experts, swap_heads
from torch import Tensor, nn
from transformers import PreTrainedModel
from work import Block, Rehearsal, quantize

from omni_models import map_attention, use_attention, use_experts
from omni_models.experts import is_experts
from omni_models.kernels import apply_kernels
from omni_parallel import ParallelPlan, apply_fp8, recompute_blocks, tile_mlps


@dataclass(frozen=True, slots=True)
class Stage:
    """A model of which copies are rehearsed: few blocks, and how it is computed."""

    model: PreTrainedModel
    names: tuple[str, ...]
    """Of its blocks."""
    kinds: tuple[int, ...]
    """Of each block, a number; those of the same are alike."""
    run: frozenset[str]
    """Blocks that are there; others let through what comes."""
    relay: Relay
    """To whom its kernels tell what they do."""


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank has of the work."""

    sp: int = 1
    ep: int = 1
    even: bool = True
    """Whether memory is set aside for every choice of every token, see `omni_parallel.apply_ep`."""
    fp8: bool = False


def set_stage(model: PreTrainedModel, blocks: Sequence[str], kernels: Sequence[str]) -> Stage:
    """What `rehearse` runs copies of. Donates `model`, which is on the meta device.

    Args:
        model: of any kind.
        blocks: names of its blocks.
        kernels: names of the fused kernels that are used.
    """
    kinds: dict[Any, int] = {}
    count: Counter[int] = Counter()
    numbers, run = [], set()
    for name in blocks:
        block = model.get_submodule(name)
        numbers.append(kind := kinds.setdefault(_traits(block), len(kinds)))
        count[kind] += 1
        if count[kind] == 1:
            run.add(name)
        else:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, _Through(block))
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            tensor.data = tensor.data.to(torch.bfloat16) if tensor.is_floating_point() else tensor.data
    relay = Relay()
    model = apply_kernels(model, make_kernels(relay), kernels) if kernels else model
    return Stage(model, tuple(blocks), tuple(numbers), frozenset(run), relay)


def rehearse(stage: Stage, plan: ParallelPlan, tokens: int, cut: Cut = Cut()) -> Rehearsal:
    """What the blocks of `stage` do with a row of so many `tokens` on one rank.

    Args:
        stage: what is copied and run.
        plan: which blocks are recomputed, what they keep, and what is in tiles.
        tokens: of this rank, in one pass.
        cut: how rows and experts are cut.
    """
    model = copy.deepcopy(stage.model)
    for bank in (bank for bank in model.modules() if cut.ep > 1 and is_experts(bank)):
        for key, param in list(bank.named_parameters(recurse=False)):
            own = param.new_empty(param.shape[0] // cut.ep, *param.shape[1:])
            setattr(bank, key, nn.Parameter(own))
    watch = Watch(model)
    stage.relay.to = watch
    model = use_attention(model, attend)
    model = use_experts(model, Experts(watch, cut.ep, cut.even))
    model = map_attention(model, swap_heads(cut.sp, watch)) if cut.sp > 1 else model
    own = _of_stage(plan, stage)
    model = apply_fp8(model, own) if cut.fp8 else model
    model = recompute_blocks(tile_mlps(model, own), own)
    seen: dict[str, tuple[Pass, Pass]] = {}
    for name in stage.names:
        if name in stage.run:
            seen[name] = _watch_block(model.get_submodule(name), watch)
    embedding: Any = model.get_input_embeddings()
    for param in model.parameters():
        param.requires_grad_(param is not embedding.weight)
    decoder: Any = model.get_decoder()
    x_BsH = torch.empty(1, tokens, embedding.weight.shape[-1], dtype=torch.bfloat16, device="meta", requires_grad=True)
    position_ids = torch.empty(1, tokens, dtype=torch.int64, device="meta")
    watch.known |= {x.untyped_storage()._cdata for x in (x_BsH, position_ids)}
    with watch:
        hidden_BsH = decoder(inputs_embeds=x_BsH, position_ids=position_ids, use_cache=False).last_hidden_state
        hidden_BsH.backward(torch.empty_like(hidden_BsH))
    kinds = dict(zip(stage.names, stage.kinds, strict=True))
    last = {kinds[name]: Block(forward.sum(), backward.sum()) for name, (forward, backward) in seen.items()}
    if cut.fp8:
        # Where there are no kernels to quantize by, that takes many passes over memory: those of bf16 are counted.
        plain = rehearse(stage, plan, tokens, replace(cut, fp8=False)).blocks
        firsts = {kind: plain[stage.kinds.index(kind)] for kind in last}
        last = {kind: quantize(block, firsts[kind]) for kind, block in last.items()}
    return Rehearsal(tokens, tuple(last[kind] for kind in stage.kinds))


def _watch_block(block: nn.Module, watch: Watch) -> tuple[Pass, Pass]:
    """What will be seen of `block`, whose calls are told to `watch` from now on."""
    forward, backward, grads = Pass(), Pass(), []

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        watch.begin(forward)
        return (_mark(args[0], end), *args[1:]), kwargs

    def after(module: nn.Module, args: Any, output: Any) -> Any:
        watch.finish()
        begin = partial(watch.begin, backward)
        return (_mark(output[0], begin), *output[1:]) if isinstance(output, tuple) else _mark(output, begin)

    def end() -> None:
        grads.clear()
        watch.finish()

    def keep(param: nn.Parameter) -> None:
        grads.append(param.grad)
        param.grad = None

    block.register_forward_pre_hook(before, with_kwargs=True)
    block.register_forward_hook(after)
    for param in block.parameters():
        param.register_post_accumulate_grad_hook(keep)
    return forward, backward


class _Mark(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, then: Callable[[], None]) -> Tensor:
        ctx.then = then
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        ctx.then()
        return grads[0], None


def _mark(x: Tensor, then: Callable[[], None]) -> Tensor:
    """`x`; `then` is called when its gradient is there."""
    return _Mark.apply(x, then)  # pyright: ignore[reportReturnType]


class _Through(nn.Module):
    """Stands for a block; gives what it is given."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        # What a decoder asks of its blocks.
        own = {name: value for name, value in vars(block).items() if not name.startswith("_")}
        vars(self).update({name: value for name, value in own.items() if not isinstance(value, nn.Module)})

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return hidden_states


def _traits(block: nn.Module) -> Any:
    """What makes blocks alike: classes, shapes of parameters, and how far attention sees."""
    return tuple(
        (
            name,
            type(module),
            tuple((key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False)),
            getattr(module, "sliding_window", None),
            getattr(module, "attention_type", getattr(module, "layer_type", None)),
        )
        for name, module in block.named_modules()
    )


def _of_stage(plan: ParallelPlan, stage: Stage) -> ParallelPlan:
    """The plan for the blocks that are there."""

    def there(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name in names if any(name == r or name.startswith(f"{r}.") for r in stage.run))

    return ParallelPlan(
        blocks=there(plan.blocks),
        recompute=there(plan.recompute),
        keep=plan.keep,
        keep_matmuls=there(plan.keep_matmuls),
        tiled=there(plan.tiled),
        tile=plan.tile,
    )
