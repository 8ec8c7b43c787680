"""The parts of a model that sees or hears: its towers, what joins them to the decoder, and the language model.

What joins them is known by the names that transformers gives it; in some models it is inside the tower. All pure, but
for `freeze_parts`.
"""

from collections.abc import Collection
from typing import Final, TypeVar

from torch import nn
from transformers import PreTrainedModel

from omni_models.part_names import PARTS, ModelPart
from omni_models.parts import decoder_specs

M = TypeVar("M", bound=PreTrainedModel)
_PROJECTORS: Final = (
    *("merger", "deepstack_merger_list", "multi_modal_projector", "connector", "aligner", "modality_projection"),
    *("embed_vision", "embed_audio", "mm_projector", "vision_embed_tokens", "audio_tower.proj"),
    "projector",
)
"""How the names of modules end that make features of a decoder's width of those of a tower."""


def find_parts(model: PreTrainedModel) -> dict[ModelPart, tuple[str, ...]]:
    """By part, the names of the outermost modules that are of it, or of parameters that are in no such module.

    A projector may be in a tower. Whatever is in neither is of the language model, as decoders of composed models are.
    """
    drawing = [model.get_submodule(f"decoders.{name}") for name in decoder_specs(model.config)]
    text = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings(), *drawing)
    language = [module for module in text if isinstance(module, nn.Module)]
    found: dict[ModelPart, list[str]] = {part: [] for part in PARTS}

    def visit(name: str, module: nn.Module) -> None:
        if any(module is part for part in language):
            found["language"].append(name)
        elif any(part is inner for part in language for inner in module.modules()):
            # What is beside towers and decoder goes between them.
            found["projector"] += [_join(name, own) for own, _ in module.named_parameters(recurse=False)]
            for child, inner in module.named_children():
                visit(_join(name, child), inner)
        elif next(module.parameters(), None) is not None:
            found["projector" if _joins(name) else "tower"].append(name)
            inside = [_join(name, own) for own, _ in module.named_modules() if own and _joins(_join(name, own))]
            found["projector"] += [each for each in inside if not part_in(each, tuple(found["projector"]))]

    visit("", model)
    return {part: tuple(names) for part, names in found.items()}


def part_of(name: str, towers: tuple[str, ...], projectors: tuple[str, ...]) -> ModelPart:
    """The part that the parameter `name` is of, by what `find_parts` found.

    >>> part_of("visual.merger.weight", ("visual",), ("visual.merger",))
    'projector'
    """
    return "projector" if part_in(name, projectors) else "tower" if part_in(name, towers) else "language"


def part_in(name: str, modules: tuple[str, ...]) -> bool:
    """Whether `name` is one of `modules`, or of something in one.

    >>> part_in("visual.merger.weight", ("visual",)), part_in("visual_head.weight", ("visual",))
    (True, False)
    """
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def freeze_parts(model: M, frozen: Collection[ModelPart]) -> M:
    """The same model, of which the parameters of these parts are not trained. Donates `model`.

    They get no gradient, and no optimizer holds anything for them; gradients go through them to what is before.

    Args:
        model: before it is sharded.
        frozen: which of its parts.

    Raises:
        ValueError: if there is no such part, or nothing is left to train.
    """
    parts = find_parts(model)
    own = {name: part_of(name, parts["tower"], parts["projector"]) for name, _ in model.named_parameters()}
    if problems := part_problems(model, frozen):
        raise ValueError("\n".join(problems))
    for name, param in model.named_parameters():
        if own[name] in frozen:
            param.requires_grad_(False)
    return model


def part_problems(model: PreTrainedModel, frozen: Collection[ModelPart]) -> list[str]:
    """Why these parts cannot be frozen, in words; empty if they can."""
    parts = find_parts(model)
    there = {part_of(name, parts["tower"], parts["projector"]) for name, _ in model.named_parameters()}
    problems = [
        f"{type(model).__name__} has no {part} that could be frozen: its parts are {', '.join(sorted(there))}."
        for part in frozen
        if part not in there
    ]
    if there <= {*frozen}:
        problems.append(f"nothing is left to train where {', '.join(sorted(there))} are frozen: leave one of them out.")
    return problems


def _joins(name: str) -> bool:
    return any(name == known or name.endswith(f".{known}") for known in _PROJECTORS)


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child
