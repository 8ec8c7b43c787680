"""Laws of parts: what a plan says of a part it says in the part's plan, in its own names, and no longer in the rest."""

from dataclasses import fields, replace

import pytest
import torch
from toy import gradients, make_batch, make_toy, plan_toy

from omni_mesh.mesh import Mesh
from omni_parallel import ParallelPlan, shard_fsdp, shard_parts, split_plan

WHOLE = ParallelPlan(
    blocks=("tower.layers.0", "tower.layers.1", "towers.0", "text.layers.0"),
    head="text.head",
    recompute=("tower.layers.1", "text.layers.0"),
    keep=("aten::mm",),
    keep_matmuls=("tower.layers.1",),
    offload=("tower.layers.0",),
    decoder="text",
    door="text",
    rotaries=("text.rotary",),
    sp_chunks=2,
    experts=("text.layers.0.experts", "tower.layers.1.experts"),
    tiled=("tower.layers.0.mlp",),
    tile=8,
    compile=("text.layers.0",),
    uncompiled=("tower.layers.0.mlp",),
)

NAMING = [field.name for field in fields(ParallelPlan) if field.type == tuple[str, ...] and field.name != "keep"]


def test_a_plan_is_split_into_that_of_a_part_and_the_rest() -> None:
    rest, plans = split_plan(WHOLE, ["tower"])
    assert rest == replace(
        WHOLE,
        blocks=("towers.0", "text.layers.0"),
        recompute=("text.layers.0",),
        keep_matmuls=(),
        offload=(),
        experts=("text.layers.0.experts",),
        tiled=(),
        uncompiled=(),
    )
    assert plans == {
        "tower": ParallelPlan(
            blocks=("layers.0", "layers.1"),
            recompute=("layers.1",),
            keep=("aten::mm",),
            keep_matmuls=("layers.1",),
            offload=("layers.0",),
            experts=("layers.1.experts",),
            tiled=("layers.0.mlp",),
            tile=8,
            uncompiled=("layers.0.mlp",),
        )
    }


def test_every_field_that_names_modules_is_split() -> None:
    rest, plans = split_plan(replace(WHOLE, **{name: ("a.x", "text.y") for name in NAMING}), ["a"])
    for name in NAMING:
        assert getattr(rest, name) == ("text.y",), name
        assert getattr(plans["a"], name) == (("x",) if name != "rotaries" else ()), name


def test_without_parts_a_plan_stays_as_it_is() -> None:
    assert split_plan(WHOLE, []) == (WHOLE, {})


def test_parts_within_parts_and_around_the_decoder_are_refused() -> None:
    with pytest.raises(ValueError) as told:
        split_plan(WHOLE, ["tower", "tower.layers.0", "text"])
    assert "tower.layers.0 is a part of tower" in str(told.value)
    assert "text holds the decoder text" in str(told.value)


def test_parts_without_a_plan_are_refused(mesh: Mesh) -> None:
    with pytest.raises(ValueError, match=r"parts with a mesh are not those with a plan: layers\.1"):
        shard_parts(make_toy(), {"layers.0": mesh, "layers.1": mesh}, {"layers.0": plan_toy()})


def test_a_model_of_sharded_parts_has_the_gradients_of_the_whole(mesh: Mesh) -> None:
    plain, model = make_toy(), make_toy()
    rest, plans = split_plan(plan_toy(), ["layers.1", "embed"])
    model = shard_parts(model, dict.fromkeys(plans, mesh), plans, param_dtype=torch.float32)
    model = shard_fsdp(model, mesh, rest, param_dtype=torch.float32)
    expected = gradients(plain, make_batch())
    for name, grad in gradients(model, make_batch()).items():
        torch.testing.assert_close(grad, expected[name])
