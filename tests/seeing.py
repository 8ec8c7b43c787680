"""What each rank runs in `test_encoders.py`: a tiny model with towers, on a mesh, beside plain transformers."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from senses import film, make_model, make_processor, picture
from torch import Tensor
from torch.distributed.tensor import DTensor

from omni_data import Sample, document_bounds, pack_batch, render_chat, shard_sequence
from omni_mesh import MeshConfig, join_world, make_mesh, peers, resolve_mesh
from omni_models import (
    Media,
    Shown,
    count_targets,
    describe,
    encode_media,
    list_media,
    map_attention,
    map_encoders,
    media_positions,
    summed_loss,
    use_attention,
)
from omni_parallel import (
    Medium,
    Owned,
    apply_encoders,
    apply_ulysses,
    global_sum,
    plan_parallel,
    send_media,
    shard_fsdp,
    take_turns,
)

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def chat(*parts: Any, said: str = "A cat.") -> list[dict[str, Any]]:
    worded = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return [{"role": "user", "content": worded}, {"role": "assistant", "content": said}]


def documents(place: int) -> list[tuple[Any, Media]]:
    """What the rows of data rank `place` are made of: images of many sizes, none at all, a film."""
    return [
        [
            (chat(IMAGE, "What?", IMAGE), Media([picture(20, 30), picture(16, 40, 1)])),
            (chat("No picture.", said="Nothing."), Media()),
            (chat("x", IMAGE, said="A cat, and a dog."), Media([picture(50, 50, 6)])),
        ],
        [(chat("Text alone.", said="Yes."), Media()), (chat("More.", said="No."), Media())],
        [
            (chat(VIDEO, "A film?"), Media(videos=[film(5, 24, 16)])),
            (chat(IMAGE, said="One."), Media([picture(8, 8, 2)])),
        ],
        [(chat(*[IMAGE] * 5, said="Five."), Media([picture(8 + 8 * i, 16, i) for i in range(5)]))],
    ][place]


def encoded(family: str, config: Any, place: int) -> list[Any]:
    return [encode_media(make_processor(family), config, *each, render=render_chat) for each in documents(place)]


def tensors(arrays: Any) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def plain_gradients(family: str, places: list[int]) -> tuple[float, int, dict[str, Tensor | None]]:
    """Loss, targets and gradients of all documents alone, by plain transformers on one rank."""
    model = make_model(family)
    total, targets = torch.zeros(()), 0
    for place in places:
        for document in encoded(family, model.config, place):
            tokens_1N = torch.from_numpy(document.tokens_N).long()[None]
            kinds_1N = torch.from_numpy(document.kinds_N).long()[None]
            given = {"input_ids": tokens_1N, "mm_token_type_ids": kinds_1N, **tensors(document.arrays)}
            logits = model(**given, use_cache=False).logits
            labels_N = torch.where(torch.from_numpy(document.learn_N), tokens_1N[0], -100)[1:]
            total = total + F.cross_entropy(logits[0, :-1], labels_N, ignore_index=-100, reduction="sum")
            targets += int((labels_N >= 0).sum())
    (total / targets).backward()
    return total.item() / targets, targets, {name: p.grad for name, p in model.named_parameters()}


def own_media(shown: Shown, size: int, group: tuple[int, ...]) -> Owned:
    """The media of this rank as others know of them: `group` shares its rows, `size` tokens each."""
    media = [
        Medium(rows, cost, tuple(take_turns(places, size, group)))
        for rows, cost, (_, places) in zip(shown.rows, shown.costs, shown.places, strict=True)
    ]
    return Owned(shown.arrays, media)


def check_family(family: str, sizes: dict[str, int], given: list[int], seq_len: int = 400) -> None:
    """Loss and every gradient on a mesh are those of plain transformers; `given` says what each data rank has."""
    with join_world(device="cpu") as world:
        spec = resolve_mesh(MeshConfig(**sizes), world.size)
        model = make_model(family)
        plan = plan_parallel(describe(model), spec, encoders=True)
        mesh = make_mesh(spec, device_type="cpu")
        place = mesh.tokens.get_local_rank("dp")
        found = encoded(family, model.config, given[place])
        samples = [Sample(d.tokens_N, d.learn_N, d.arrays) for d in found]
        batch = pack_batch([samples[:2], samples[2:]], seq_len)
        tokens_BS, segments_BS = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.segments_BS)
        group = peers(spec, world.rank, "sp")
        first = world.rank == group[0]
        media = tensors(batch.media)
        positions = media_positions(model, tokens_BS, segments_BS, media)
        shown = list_media(model.config, tokens_BS, segments_BS, media) if first else {}
        owned = {kind: own_media(each, -(-seq_len // spec.sp), group) for kind, each in shown.items()}
        arguments, routes = send_media(owned, world.device)
        model = use_attention(model, "eager")
        model = apply_ulysses(model, mesh, plan, over=map_attention)
        model = apply_encoders(model, over=map_encoders)
        model = shard_fsdp(model, mesh, plan, param_dtype=torch.float32)
        bounds, longest = document_bounds(batch.segments_BS)
        inputs = {
            **{"input_ids": tokens_BS, "position_ids": positions},
            **{"cu_seqlens": torch.from_numpy(bounds), "max_seqlen": longest},
            **arguments,
            "media_routes": routes,
        }
        index = mesh.tokens.get_local_rank("sp")
        labels_Bs = torch.from_numpy(shard_sequence(batch.labels_BS, index, spec.sp))
        targets = global_sum(count_targets(labels_Bs))
        loss = summed_loss(model, inputs, labels_Bs) / targets
        loss.backward()
        whole = global_sum(loss.detach()).item()
        expected, wanted, grads = plain_gradients(family, given)
        assert int(targets) == wanted
        assert abs(whole - expected) < 1e-5, (whole, expected)
        for name, param in model.named_parameters():
            grad = param.grad.full_tensor() if isinstance(param.grad, DTensor) else param.grad
            theirs = grads[name]
            if theirs is None:
                assert grad is None or not grad.any(), name
            else:
                assert grad is not None, name
                assert (grad - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.abs().max())), name


if __name__ == "__main__":
    copy.copy(None)
