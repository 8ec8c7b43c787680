"""Where Hugging Face lets a function be swapped: attention and experts. Each model keeps its own functions, on its own
modules.

transformers finds both by a name in a process-wide registry. The function registered there, once, is a constant
that looks the real one up on the module that calls it; so two models in one process never share an attention, and the
modeling files stay as they are. Linear attention has no such registry: see `omni_models.linear`.
"""

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.moe import ExpertsInterface

from omni_models.attention import ATTENTIONS, AttentionFn
from omni_models.experts import COMPUTE, ExpertsFn, compute_experts, grouped_experts, is_experts
from omni_models.groups import GROUPED, overlays_images
from omni_models.linear import CONV, RULE, use_linear
from omni_models.rope import exact_rope
from omni_models.support import is_attention

M = TypeVar("M", bound=PreTrainedModel)
NAME = "omni"
"""The name of the constants in transformers' registries."""
BOUNDED = "omni_flash"
"""The name of that for towers which tell flash attention where media end, and else call attention for each by itself:
by this word in it they know it."""
_BOUNDS = ("cu_seq_lens_q", "max_length_q")
"""What they call these bounds, and the longest medium between two."""
_ATTEND = "omni_attention"
"""The attribute of an attention module that holds its own function."""
_OF_ROWS = ("cu_seqlens", "max_seqlen", "group_ids")
"""What is told of rows of text."""
_KINDS = ("token_type_ids", "mm_token_type_ids")
"""What models make the masks of images from."""


def use_attention(model: M, attend: str | AttentionFn) -> M:
    """The same model, every attention module of which calls `attend`. Donates `model`.

    What else depends on where documents end does so from then on too, if it has such: its gated delta rule layers
    (`omni_models.linear`) and its position encodings (`omni_models.rope`). A tower that reads a mask, for padded sounds
    for example, keeps the attention that it has: no backend here reads one.

    Args:
        model: any model whose attention goes through transformers' attention interface.
        attend: a backend by name (see `omni_models.attention`), or a function of the same form.

    Raises:
        ValueError: if there is no backend of that name, or if the model does not use the interface.
    """
    if isinstance(attend, str):
        if attend not in ATTENTIONS:
            raise ValueError(f"there is no attention {attend!r}; there are {', '.join(ATTENTIONS)}.")
        attend = ATTENTIONS[attend]
    AttentionInterface.register(NAME, _attend_of_module)
    AttentionInterface.register(BOUNDED, _attend_of_bounds)
    inner = _models(model)
    towers = _towers(model, inner)
    apart = {module for tower in towers if _reads_mask(tower) for module in tower.modules()}
    modules = [module for module in model.modules() if is_attention(module) and module not in apart]
    if not modules or not all(module._can_set_attn_implementation() for module in inner):
        raise ValueError(
            f"{type(model).__name__} does not call transformers' attention interface, the only way to its attention."
        )
    for module in modules:
        setattr(module, _ATTEND, attend)
    _own_config(model)
    bounded = {module for tower in towers if _tells_bounds(tower) for module in _models(tower)}
    for module in (module for module in inner if module not in apart):
        # The public setter checks names against a list of its own; the field is what every layer reads.
        module.config._attn_implementation_internal = BOUNDED if module in bounded else NAME
    for module in filter(overlays_images, inner):
        module.register_forward_pre_hook(_ask_for_groups, with_kwargs=True)
    for tower in towers:
        tower.register_forward_pre_hook(_forget_documents, with_kwargs=True)
    model.register_forward_pre_hook(partial(_refuse_mask, type(model).__name__), with_kwargs=True)
    return exact_rope(use_linear(model))


def map_attention(model: M, f: Callable[[AttentionFn], AttentionFn]) -> M:
    """The same model, every attention `a` of which is now `f(a)`. Donates `model`.

    A gated delta rule layer has two of the same form, its convolution and its rule (see `omni_models.linear`).

    Raises:
        ValueError: if `use_attention` was not applied first.
    """
    seams = [(m, name) for m in model.modules() for name in (_ATTEND, CONV, RULE) if hasattr(m, name)]
    if not seams:
        raise ValueError(f"apply use_attention to this {type(model).__name__} before mapping its attention.")
    for module, name in seams:
        setattr(module, name, f(getattr(module, name)))
    return model


def use_experts(model: M, compute: str | ExpertsFn = "grouped") -> M:
    """The same model, every experts module of which computes by `compute`. Donates `model`.

    Modules of experts that do not call transformers' experts interface stay as they are, and so does a model without.

    Args:
        model: any model of transformers.
        compute: "grouped", `omni_models.experts.grouped_experts`; "eager", the modeling file's own loop; or a function
            from tokens and their choices to the weighted sum of what the experts make of them (`ExpertsFn`).

    Raises:
        ValueError: if there are no experts of that name.
    """
    if isinstance(compute, str) and compute not in ("grouped", "eager"):
        raise ValueError(f"there are no experts {compute!r}; there are grouped and eager.")
    ExpertsInterface.register(NAME, compute_experts)
    _own_config(model)
    for module in model.modules():
        if is_experts(module):
            # The public setter checks names against a list of its own; the field is what every layer reads.
            name = "eager" if compute == "eager" else NAME
            module.config._experts_implementation_internal = name  # pyright: ignore[reportAttributeAccessIssue]
            if compute != "eager":
                setattr(module, COMPUTE, grouped_experts if compute == "grouped" else compute)
    return model


def map_experts(model: M, names: tuple[str, ...], f: Callable[[ExpertsFn], ExpertsFn]) -> M:
    """The same model, in which the function `e` of each experts module named is now `f(e)`. Donates `model`.

    Raises:
        ValueError: if a name is no experts module, or if `use_experts` was not applied first.
    """
    modules = [model.get_submodule(name) for name in names]
    if strange := [name for name, module in zip(names, modules, strict=True) if not hasattr(module, COMPUTE)]:
        raise ValueError(f"apply use_experts to this {type(model).__name__} before mapping its experts: {strange[0]}.")
    for module in modules:
        setattr(module, COMPUTE, f(getattr(module, COMPUTE)))
    return model


def _own_config(model: nn.Module) -> None:
    """Give the modules of `model` a configuration of their own: another model may have been built from the same."""
    copies: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(config := getattr(module, "config", None), PreTrainedConfig):
            # One memory of copies for all, so that a part of a configuration stays that part of the copy.
            module.config = copy.deepcopy(config, copies)


# What attention does may depend on where documents end, and with that what is compiled would be for one batch.
@torch.compiler.disable
def _attend_of_module(
    module: nn.Module, q_BNSD: Tensor, k_BKSD: Tensor, v_BKSD: Tensor, mask: Tensor | None = None, **facts: object
) -> tuple[Tensor, Tensor | None]:
    attend = getattr(module, _ATTEND, None)
    if attend is None:
        raise ValueError(f"{type(module).__name__} calls attention but was not found by use_attention.")
    return attend(module, q_BNSD, k_BKSD, v_BKSD, mask, **facts)


def _attend_of_bounds(
    module: nn.Module,
    q_BNSD: Tensor,
    k_BKSD: Tensor,
    v_BKSD: Tensor,
    attention_mask: Tensor | None = None,
    **facts: Any,
) -> tuple[Tensor, Tensor | None]:
    """One call for all media, whose bounds are told as flash attention is told them."""
    cu_seqlens, longest = (facts.pop(name) for name in _BOUNDS)
    for name in ("cu_seq_lens_k", "max_length_k"):
        facts.pop(name)
    facts |= {"cu_seqlens": cu_seqlens.to(torch.int32), "max_seqlen": int(longest)}
    return _attend_of_module(module, q_BNSD, k_BKSD, v_BKSD, attention_mask, **facts)


def _towers(model: PreTrainedModel, inner: list[PreTrainedModel]) -> list[PreTrainedModel]:
    """Those of the models inside that are beside the decoder of text, not in it and not around it."""
    decoder = model.get_decoder()
    inside = set(decoder.modules())
    return [module for module in inner if module not in inside and decoder not in set(module.modules())]


def _reads_mask(tower: PreTrainedModel) -> bool:
    """Whether a tower is given, or makes, a mask."""
    return any("attention_mask" in inspect.getsource(inspect.unwrap(type(module).forward)) for module in _models(tower))


def _tells_bounds(tower: PreTrainedModel) -> bool:
    """Whether each attention module of a tower tells flash attention where media end."""
    forwards = [inspect.getsource(type(module).forward) for module in tower.modules() if is_attention(module)]
    return bool(forwards) and all(name in forward for forward in forwards for name in _BOUNDS)


def _models(module: nn.Module) -> list[PreTrainedModel]:
    return [inner for inner in module.modules() if isinstance(inner, PreTrainedModel)]


def _forget_documents(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]) -> tuple[object, Any]:
    """Where documents of text end is handed to towers, too, and those of images take it for where images end, which has
    the same name there; without it they count that themselves."""
    return args, {name: value for name, value in kwargs.items() if name not in _OF_ROWS}


def _ask_for_groups(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """A mask over the tokens of an image is never made here, where no mask is; text alone needs none."""
    can = getattr(module.config, "model_type", None) in GROUPED
    told = can and kwargs.get("group_ids") is not None
    marked = [name for name in _KINDS if isinstance(kinds := kwargs.get(name), Tensor) and bool(kinds.any())]
    if marked or (kwargs.get("pixel_values") is not None and not told):
        how = f"by {marked[0]}" if marked else "and was given images"
        remedy = "pass group_ids, as group_images makes them" if can else "it is not built yet: pass rows of text"
        raise ValueError(
            f"{type(module).__name__} lets the tokens of an image see one another by a mask, {how}, but no mask "
            f"reaches attention: {remedy}."
        )


def _refuse_mask(name: str, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    """A mask of ones says nothing; one with zeros would be dropped in silence on its way to the attention."""
    mask = kwargs.get("attention_mask")
    if isinstance(mask, Tensor) and not bool(mask.all()):
        raise ValueError(
            f"{name} was given an attention_mask with zeros, which packed attention does not read: "
            "say where documents end by cu_seqlens or by position_ids that restart, and pass no mask."
        )
