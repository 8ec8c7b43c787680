"""Low-rank adapters (LoRA, Hu et al., 2021, arXiv:2106.09685), by `peft`: linear layers stay as they are, and beside
some of them is the product of two narrow matrices that is trained.

    y = x w^T + alpha / rank * (x a^T) b^T        w (N, K) frozen, a (rank, K) random, b (N, rank) zero at the start

The modules are peft's, put into the model in place: its class, its names of blocks and experts and its seams stay, and
what is trained loads in plain peft (`omni_models.adapters`).
"""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Final, TypeVar

from torch import nn
from transformers import PreTrainedModel

from omni_models.adapters import adapters_of, fill_adapters_, inject_adapters, is_taken_for_experts, saved_of
from omni_models.classes import adapted, without_adapters
from omni_models.facts import block_names, decoder_name, experts_names
from omni_models.lora_settings import LoraSettings

M = TypeVar("M", bound=PreTrainedModel)
_ROUTERS: Final = frozenset({"router", "gate"})
"""What linear layers are called that choose experts: adapted only where they are named."""
_NAME: Final = re.compile(r"[\w.]+")


def add_lora(model: M, settings: LoraSettings, *, seed: int = 0) -> M:
    """The same model with adapters, which alone are trained, with the modules to save. Donates `model`.

    It gives what it gave, until they are trained. With rank 0 it is left as it is. After `use_kernels`, which proves
    what modules without adapters compute, and before `apply_ep`, `recompute_blocks` and `shard_fsdp`. Modules keep
    their names; a parameter of an adapted one has `base_layer` (`original_module`) in its name. `fill_weights` reads
    weights of the model without adapters, and starts them anew.

    Args:
        model: also on the meta device.
        settings: which layers, and how.
        seed: of what adapters start from, if the model has weights already.

    Raises:
        ValueError: with all of `lora_problems`.
    """
    if problems := lora_problems(model, settings):
        raise ValueError("these adapters cannot work:\n" + "\n".join(f"  - {p}" for p in problems))
    if not settings.rank:
        return model
    from peft import LoraConfig

    targets = find_targets(model, settings.targets)
    saved = [name for each in settings.save for name in _find(model, each)]
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # pyright: ignore[reportArgumentType] It is only multiplied by.
        target_modules=spell(targets, (name for name, _ in model.named_modules())),
        lora_dropout=settings.dropout,
        modules_to_save=saved or None,
        task_type="CAUSAL_LM",
    )
    adapters = adapters_of(inject_adapters(model, config))
    assert set(adapters) == set(targets) and set(saved_of(model)) == set(saved), "peft found others than were meant"
    if not any(param.is_meta for param in without_adapters(model).parameters()):
        for module in adapters.values():
            for part in (module.lora_A, module.lora_B):
                part.to_empty(device=module.base_layer.weight.device)
        fill_adapters_(model, seed)
    return model


def lora_problems(model: PreTrainedModel, settings: LoraSettings) -> list[str]:
    """Why `model` cannot have such adapters, in words; empty if it can. Pure, but looks whether peft is installed."""
    if settings.rank == 0:
        given = [name for name in ("targets", "save", "dropout") if getattr(settings, name)]
        told = f"lora.rank=0 is no adapter, but lora.{', lora.'.join(given)} is given: set a rank, or leave it out."
        return [told] if given else []
    problems = []
    if settings.rank < 0:
        problems.append(f"lora.rank={settings.rank} must be at least 0, which is no adapter.")
    if not settings.alpha > 0:
        problems.append(f"lora.alpha={settings.alpha} must be positive.")
    if not 0 <= settings.dropout < 1:
        problems.append(f"lora.dropout={settings.dropout} must be at least 0 and less than 1.")
    if find_spec("peft") is None:
        return [*problems, "adapters are those of peft, which is not installed: install omni-models[lora]."]
    if any(adapted(module) is not None for module in model.modules()):
        return [*problems, "the model has adapters already: they are added once."]
    wrong = _target_problems(model, settings.targets)
    targets = () if wrong else find_targets(model, settings.targets)
    return problems + wrong + _save_problems(model, settings, targets)


def find_targets(model: PreTrainedModel, targets: Sequence[str]) -> tuple[str, ...]:
    """Names of the linear layers that `targets` means, in the order of the model. Pure.

    >>> from omni_models import build_model, read_config
    >>> find_targets(build_model(read_config("tiny"), device="meta"), ["q_proj"])[:1]
    ('model.layers.0.self_attn.q_proj',)
    """
    if targets:
        meant = {name for target in targets for name in _find(model, target)}
        return tuple(name for name, _ in model.named_modules() if name in meant)
    decoder, linears = f"{decoder_name(model)}.".lstrip("."), _linears(model)
    blocks = tuple(f"{name}." for name in block_names(model) if name.startswith(decoder))
    experts = tuple(f"{name}." for name in experts_names(model))
    inside = [name for name in linears if name.startswith(blocks) and not name.startswith(experts)]
    last = {name.rpartition(".")[2] for name in inside}
    kept = {each for each in last - _ROUTERS if not is_taken_for_experts(model, each)}
    return tuple(name for name in inside if name.rpartition(".")[2] in kept)


def spell(targets: Iterable[str], names: Iterable[str]) -> list[str]:
    """What peft calls `targets` among all `names` of a model: by the last parts, if these are all that have them. Pure.

    >>> spell(["a.0.q", "a.1.q"], ["a", "a.0", "a.1", "a.0.q", "a.1.q"]), spell(["a.0.q"], ["a.0.q", "a.1.q"])
    (['q'], ['a.0.q'])
    """
    targets = [*targets]
    last = sorted({name.rpartition(".")[2] for name in targets})
    meant = {name for name in names if name.rpartition(".")[2] in last}
    return last if meant == set(targets) else targets


def _find(model: PreTrainedModel, target: str) -> list[str]:
    """What one of the targets means: of an expression that is linear layers, but not the head."""
    if _NAME.fullmatch(target):
        return [name for name, _ in model.named_modules() if _means(target, name)]
    ends = _ends(model)
    return [name for name in _linears(model) if name not in ends and _means(target, name)]


def _means(wanted: str, name: str) -> bool:
    if _NAME.fullmatch(wanted):
        return name == wanted or name.endswith(f".{wanted}")
    return re.fullmatch(wanted, name) is not None


def _linears(model: nn.Module) -> list[str]:
    # A class derived of it may be one whose weight another module reads, as that of torch's attention is.
    return [name for name, module in model.named_modules() if type(module) is nn.Linear]


def _target_problems(model: PreTrainedModel, targets: Sequence[str]) -> list[str]:
    linears, problems = _linears(model), []
    experts = [
        f"{name}.{key}" for name in experts_names(model) for key, _ in model.get_submodule(name).named_parameters()
    ]
    heads = _ends(model)
    if not targets and not find_targets(model, ()):
        problems.append(f"{model.config.model_type} has no linear layers in its blocks: name lora.targets.")
    for target in targets:
        try:
            found = _find(model, target)
        except re.error as error:
            problems.append(f"lora.targets {target} is neither a name nor a regular expression: {error}.")
            continue
        of_experts = [name for name in (*experts, *experts_names(model)) if _means(target, name)]
        others = [name for name in found if name not in linears and name not in of_experts]
        if of_experts and (not found or _NAME.fullmatch(target)):
            problems.append(
                f"lora.targets {target} means {of_experts[0]}, weights of many experts: adapters there are not built, "
                "and experts stay frozen. Name linear layers, those of attention for example."
            )
        elif not found:
            last = sorted({name.rpartition(".")[2] for name in linears})
            near = get_close_matches(target, [*last, *linears], n=1)
            hint = f" Did you mean {near[0]}?" if near else ""
            problems.append(f"lora.targets {target} is no linear layer.{hint} There are {', '.join(last)}.")
        elif others:
            kind = type(model.get_submodule(others[0])).__name__
            problems.append(f"lora.targets {target} means {others[0]}, a {kind}: only linear layers have adapters.")
        elif taken := [name for name in found if is_taken_for_experts(model, name)]:
            problems.append(
                f"lora.targets {target} means {taken[0]}, which peft takes for weights of experts in "
                f"{model.config.model_type}: name others."
            )
        elif at_ends := [name for name in found if name in heads]:
            problems.append(
                f"lora.targets {target} means {at_ends[0]}, whose weight the loss reads by itself: train it whole by "
                f"lora.save {at_ends[0]}, or name others."
            )
    return problems


def _save_problems(model: PreTrainedModel, settings: LoraSettings, targets: tuple[str, ...]) -> list[str]:
    ends = [model.get_submodule(name) for name in _ends(model)]
    tied = len({id(end.weight) for end in ends}) < len(ends)
    units, problems = (*block_names(model), *experts_names(model)), []
    named = sorted({name.rpartition(".")[2] for name, module in model.named_modules() if [*module.parameters()]})
    for wanted in settings.save:
        found = _find(model, wanted) if _NAME.fullmatch(wanted) else []
        if not found:
            near = get_close_matches(wanted, named, n=1)
            problems.append(f"lora.save {wanted} is no module.{f' Did you mean {near[0]}?' if near else ''}")
            continue
        for name in found[:1]:
            why = ""
            if not [*model.get_submodule(name).parameters()]:
                why = "which has no parameters: leave it out."
            elif any(unit == name or unit.startswith(f"{name}.") for unit in units):
                why = "which is or has a block or experts: name a part of a block."
            elif any(each == name or each.startswith(f"{name}.") for each in targets):
                why = "where adapters are, too: leave it out of one of them."
            elif tied and name in _ends(model):
                why = "whose weight is that of embedding and head, and a copy would be one of them only: leave it out."
            if why:
                problems.append(f"lora.save {wanted} means {name}, {why}")
    return problems


def _ends(model: PreTrainedModel) -> list[str]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is end for end in ends)]
