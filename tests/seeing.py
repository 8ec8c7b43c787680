"""What each rank runs in `test_encoders.py`: a tiny model with towers, on a mesh, beside plain transformers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from experts import whole
from senses import FILMING, HEARING, film, make_model, make_processor, picture, sound, told_alone
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_data import Sample, document_bounds, pack_batch, render_chat, shard_sequence
from omni_mesh import Mesh, MeshConfig, join_world, make_mesh, peers, resolve_mesh
from omni_models import (
    Encoded,
    Media,
    Shown,
    count_targets,
    describe,
    encode_media,
    group_images,
    list_media,
    map_attention,
    map_encoders,
    map_experts,
    media_positions,
    summed_loss,
    use_attention,
    use_experts,
)
from omni_parallel import (
    Medium,
    Owned,
    RecomputeConfig,
    Route,
    apply_encoders,
    apply_ep,
    apply_ulysses,
    global_sum,
    plan_parallel,
    recompute_blocks,
    send_media,
    shard_fsdp,
    take_turns,
)

IMAGE, VIDEO, AUDIO = {"type": "image"}, {"type": "video"}, {"type": "audio"}
TOLERANCE = 1e-5
MANY, NONE, FILM, FIVE = range(4)
"""What a rank may have in its rows: images of many sizes, no media, a film, five images."""
TOWERS = ("visual", "vision_tower", "audio_tower")


@dataclass(frozen=True, slots=True)
class Case:
    """A step of a tiny model on a mesh."""

    family: str
    mesh: MeshConfig
    given: tuple[tuple[int, ...], ...]
    """Of each microbatch: what each data rank has in its rows."""
    frozen: Literal["nothing", "towers", "text"] = "nothing"
    """What is left as it is: towers, or all but what makes features of media."""
    recompute: bool = False
    attend: str = "eager"
    seq_len: int = 400


@dataclass(frozen=True, slots=True)
class Passed:
    """How many patches, or tiles, went by on this rank: through towers, of these as copies that nobody takes, and its
    own."""

    seen: int
    copies: int
    own: int


def check(case: Case) -> Passed:
    """Loss and every gradient of `case` are those of plain transformers on one rank."""
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model = place(case, mesh)
        patches = count_patches(model)
        index, total = mesh.tokens.get_local_rank("dp"), torch.zeros(())
        own = copies = 0
        steps = [make_inputs(case, given[index], mesh, world.rank) for given in case.given]
        targets = global_sum(torch.stack([count_targets(step.labels_Bs) for step in steps]).sum())
        for step in steps:
            loss = summed_loss(model, step.inputs, step.labels_Bs) / targets
            loss.backward()
            total += loss.detach()
            own += sum(m.rows[0] for kind, owned in step.owned.items() if kind != "audio" for m in owned.media)
            routes = [route for kind, route in step.routes.items() if kind != "audio"]
            copies += sum(m.rows[0] for route in routes if not sum(route.going) for m in route.encodes)
        grads = {name: whole(param.grad) for name, param in model.named_parameters()}
        loss = global_sum(total).item()
        if world.rank == 0:
            compare(case, loss, int(targets), grads)
        return Passed(sum(patches), copies, own)


def compare(case: Case, loss: float, targets: int, grads: Mapping[str, Tensor | None]) -> None:
    """Raise where plain transformers has other numbers."""
    expected, wanted, theirs = plain_gradients(case.family, tuple(sorted(sum(case.given, ()))))
    assert targets == wanted
    assert abs(loss - expected) < TOLERANCE, (loss, expected)
    assert set(grads) == set(theirs)
    if any(given != NONE for step in case.given for given in step):
        of_towers = [grad for name, grad in theirs.items() if is_frozen("towers", name) and grad is not None]
        assert max(grad.abs().max() for grad in of_towers) > 1e-4, "there is nothing to compare"
    for name, grad in grads.items():
        other = theirs[name]
        if other is None or is_frozen(case.frozen, name):
            assert grad is None or (other is None and not grad.any()), name
        else:
            assert grad is not None, name
            error = (grad - other).norm() / other.norm().clamp(min=1e-3)
            assert error <= TOLERANCE, (name, error)


def place(case: Case, mesh: Mesh) -> PreTrainedModel:
    """The model laid over `mesh`, as the app does."""
    model = make_model(case.family)
    for name, param in model.named_parameters():
        param.requires_grad_(not is_frozen(case.frozen, name))
    recompute = RecomputeConfig(every=int(case.recompute))
    plan = plan_parallel(describe(model), mesh.spec, recompute=recompute, encoders=True)
    model = use_experts(use_attention(model, case.attend))
    model = apply_ulysses(model, mesh, plan, over=map_attention)
    model = apply_encoders(model, over=map_encoders)
    model = apply_ep(model, mesh, plan, over=map_experts)
    model = recompute_blocks(model, plan)
    return shard_fsdp(model, mesh, plan, param_dtype=torch.float32)


@dataclass(frozen=True, slots=True)
class Step:
    """What a rank calls the model with, and what it is measured by."""

    inputs: dict[str, Any]
    labels_Bs: Tensor
    owned: Mapping[str, Owned]
    routes: Mapping[str, Route]


def make_inputs(case: Case, given: int, mesh: Mesh, rank: int) -> Step:
    """The rows of a data rank, whose first sequence rank owns their media. Collective."""
    model = make_model(case.family)
    samples = [Sample(d.tokens_N, d.learn_N, d.arrays) for d in encoded(case.family, given)]
    batch = pack_batch([samples[:2], samples[2:]], case.seq_len)
    tokens_BS, segments_BS = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.segments_BS)
    media = tensors(batch.media)
    group = peers(mesh.spec, rank, "sp")
    shown = list_media(model.config, tokens_BS, segments_BS, media) if rank == group[0] else {}
    owned = {kind: own_media(each, -(-case.seq_len // mesh.spec.sp), group) for kind, each in shown.items()}
    arguments, routes = send_media(owned, torch.device("cpu"))
    bounds, longest = document_bounds(batch.segments_BS)
    inputs = {
        "input_ids": tokens_BS,
        "position_ids": media_positions(model, tokens_BS, segments_BS, media),
        "group_ids": group_images(model.config, tokens_BS, segments_BS),
        "cu_seqlens": torch.from_numpy(bounds),
        "max_seqlen": longest,
        "media_routes": routes,
        **arguments,
    }
    index = mesh.tokens.get_local_rank("sp")
    labels_Bs = torch.from_numpy(shard_sequence(batch.labels_BS, index, mesh.spec.sp))
    return Step({name: x for name, x in inputs.items() if x is not None}, labels_Bs, owned, routes)


def own_media(shown: Shown, size: int, group: tuple[int, ...]) -> Owned:
    """The media of this rank as others know of them: `group` shares its rows, `size` tokens each."""
    media = [
        Medium(rows, cost, tuple(take_turns(places, size, group)), sizes)
        for rows, cost, (_, places), sizes in zip(shown.rows, shown.costs, shown.places, shown.sizes, strict=True)
    ]
    return Owned(shown.arrays, media)


def count_patches(model: nn.Module) -> list[int]:
    """A list to which the tower of images adds how many patches, or tiles, it is called with."""
    seen: list[int] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(len(next(x for x in (*args, *kwargs.values()) if isinstance(x, Tensor))))

    for name, module in model.named_modules():
        if name.rpartition(".")[2] in TOWERS[:2]:
            module.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def is_frozen(what: str, name: str) -> bool:
    """Whether the parameter is one of a tower, which may hold what joins it to the decoder, or of the decoder."""
    parts = name.split(".")
    if what == "text":
        return "language_model" in parts or "lm_head" in parts
    return what == "towers" and any(part in TOWERS for part in parts)


def chat(*parts: Any, said: str = "A cat.") -> list[dict[str, Any]]:
    worded = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": worded}, {"role": "assistant", "content": said}]


def documents(family: str, given: int) -> list[tuple[Any, Media]]:
    """What rows are made of; families that see no films have images in their place, those that hear have sounds too."""
    one = (chat(IMAGE, said="One."), Media([picture(8, 8, 2)]))
    watched = (chat(VIDEO, "A film?"), Media(videos=[film(5, 24, 16)])) if family in FILMING else one
    both = (chat(VIDEO, AUDIO), Media(videos=[film(2, 8, 24, 3, fps=0.5)], audios=[sound(9000)]))
    heard = [(chat(AUDIO, "x", AUDIO), Media(audios=[sound(10_000), sound(4_000)])), both] if family in HEARING else []
    return {
        MANY: [
            (chat(IMAGE, "What?", IMAGE), Media([picture(20, 30), picture(16, 40, 1)])),
            (chat("No picture.", said="Nothing."), Media()),
            (chat("x", IMAGE, said="A cat, and a dog."), Media([picture(50, 50, 6)])),
            *heard[:1],
        ],
        NONE: [(chat("Text alone.", said="Yes."), Media()), (chat("More.", said="No."), Media())],
        FILM: [watched, one, *heard[1:]],
        FIVE: [(chat(*[IMAGE] * 5, said="Five."), Media([picture(8 + 8 * i, 16, i) for i in range(5)]))],
    }[given]


@cache
def encoded(family: str, given: int) -> list[Encoded]:
    processor, config = make_processor(family), make_model(family).config
    return [encode_media(processor, config, *each, render=render_chat) for each in documents(family, given)]


def tensors(arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


@cache
def plain_gradients(family: str, given: Sequence[int]) -> tuple[float, int, dict[str, Tensor | None]]:
    """Loss, targets and gradients of all documents alone, by plain transformers on one rank."""
    model = make_model(family)
    total, targets = torch.zeros(()), 0
    for document in (document for each in given for document in encoded(family, each)):
        told = told_alone(family, document)
        logits = model(**told, use_cache=False).logits
        labels_N = torch.where(torch.from_numpy(document.learn_N), told["input_ids"][0], -100)[1:]
        total = total + F.cross_entropy(logits[0, :-1], labels_N, ignore_index=-100, reduction="sum")
        targets += int((labels_N >= 0).sum())
    (total / targets).backward()
    return total.item() / targets, targets, {name: p.grad for name, p in model.named_parameters()}
