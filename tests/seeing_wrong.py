"""What each rank runs in `test_encoders.py` where media do not fit: what the answer is, and what should be in it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest
import torch
from seeing import MANY, Case, encoded, make_inputs, place, tensors
from senses import make_model

from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import list_media, summed_loss
from omni_parallel import Medium, Owned, send_media


def make_mistake(name: str) -> tuple[str, str]:
    """What a mistake is answered with, and what should be in it."""
    return MISTAKES[name]()


def leave_out_routes() -> tuple[str, str]:
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        case = Case("qwen2_vl", MeshConfig(), ())
        model, step = place(case, mesh), make_inputs(case, MANY, mesh, world.rank)
        del step.inputs["media_routes"]
        with pytest.raises(ValueError, match="image") as problem:
            summed_loss(model, step.inputs, step.labels_Bs)
        return str(problem.value), "there are images, but media_routes has no way for them: call the model with both"


def route_too_few() -> tuple[str, str]:
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        case = Case("qwen2_vl", MeshConfig(), ())
        model, step = place(case, mesh), make_inputs(case, MANY, mesh, world.rank)
        (first, *others), arrays = step.owned["image"].media, step.owned["image"].arrays
        made = sum(medium.features for medium in (first, *others))
        fewer = replace(first, takers=((0, first.features - 1),))
        arguments, routes = send_media({"image": Owned(arrays, [fewer, *others])}, world.device)
        with pytest.raises(ValueError, match="features") as problem:
            summed_loss(model, {**step.inputs, **arguments, "media_routes": routes}, step.labels_Bs)
        return str(problem.value), f"the encoder made {made} features of images that {made - 1} tokens stand for"


def differ_between_ranks() -> tuple[str, str]:
    with join_world(device="cpu") as world:
        arrays = {"pixel_values": torch.zeros(4, 3 + world.rank)}
        owned = {"image": Owned(arrays, [Medium((4,), 1.0, ((world.rank, 1),))])}
        with pytest.raises(ValueError, match="differ") as problem:
            send_media(owned, world.device)
        return str(problem.value), "arrays of images differ between ranks"


def write_a_placeholder_more() -> tuple[str, str]:
    config = make_model("qwen2_vl").config
    document = encoded("qwen2_vl", MANY)[0]
    tokens_BS = torch.from_numpy(document.tokens_N)[None].long()
    tokens_BS[0, -1] = config.image_token_id
    with pytest.raises(ValueError, match="row 0") as problem:
        list_media(config, tokens_BS, torch.ones_like(tokens_BS), tensors(document.arrays))
    return str(problem.value), "a document's image placeholders do not fit the features of its images, [8, 10]"


def cut_groups() -> tuple[str, str]:
    """Groups are of whole rows, as the ends of documents are."""
    with join_world(device="cpu") as world:
        case = Case("gemma3", MeshConfig(sp=2), ())
        mesh = make_mesh(resolve_mesh(case.mesh, world.size), device_type="cpu")
        model, step = place(case, mesh), make_inputs(case, MANY, mesh, world.rank)
        wrong = {**step.inputs, "group_ids": step.inputs["group_ids"][:, :200]}
        with pytest.raises(ValueError, match="cannot be cut along the row") as problem:
            summed_loss(model, wrong, step.labels_Bs)
        return str(problem.value), "group_ids is [2, 200], the rows are [2, 400]: it is of whole rows"


def leave_out_groups() -> tuple[str, str]:
    with join_world(device="cpu") as world:
        mesh = make_mesh(resolve_mesh(MeshConfig(), world.size), device_type="cpu")
        case = Case("gemma3", MeshConfig(), ())
        model, step = place(case, mesh), make_inputs(case, MANY, mesh, world.rank)
        del step.inputs["group_ids"]
        with pytest.raises(ValueError, match="Gemma3Model") as problem:
            summed_loss(model, step.inputs, step.labels_Bs)
        return str(problem.value), "pass group_ids, as group_images makes them"


MISTAKES: Mapping[str, Callable[[], tuple[str, str]]] = {
    "routes left out": leave_out_routes,
    "a route of too few features": route_too_few,
    "arrays that differ between ranks": differ_between_ranks,
    "a placeholder more": write_a_placeholder_more,
    "groups of a slice": cut_groups,
    "groups left out": leave_out_groups,
}
