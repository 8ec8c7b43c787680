"""Laws of the mesh as arithmetic. No processes, no torch."""

import doctest
import re
import subprocess
import sys
from math import prod

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omni_mesh import spec as spec_module
from omni_mesh.spec import NOT_BUILT, MeshConfig, MeshSpec, coords, peers, ranks_asked, resolve_mesh


@st.composite
def specs(draw):
    """Any spec, also with axes that are not built yet: up to 3 per axis, and any ep that fits."""
    sizes = [draw(st.integers(1, 3)) for _ in range(6)]
    borrowed = prod(sizes[2:])
    ep = draw(st.sampled_from([n for n in range(1, borrowed + 1) if borrowed % n == 0]))
    return MeshSpec(*sizes, ep)


@given(specs())
def test_every_view_covers_the_world(spec):
    assert [prod(view.values()) for view in spec.views] == [spec.world] * 4
    assert spec.efsdp * spec.ep == spec.shard * spec.cp * spec.sp * spec.tp


@given(specs())
def test_coords_are_a_bijection_in_every_view(spec):
    every = [coords(spec, rank) for rank in range(spec.world)]
    for view in spec.views:
        places = [tuple(at[axis] for axis in view) for at in every]
        assert places == sorted(set(places)), "row-major: ranks in order are coordinates in order"
        assert all(0 <= c < size for place in places for c, size in zip(place, view.values(), strict=True))


@given(specs())
def test_derived_coords_flatten_their_axes(spec):
    for rank in range(spec.world):
        at = coords(spec, rank)
        assert at["dp"] == at["replicate"] * spec.shard + at["shard"]
        assert at["fsdp"] == (at["shard"] * spec.cp + at["cp"]) * spec.sp + at["sp"]
        assert at["efsdp"] * spec.ep + at["ep"] == at["fsdp"] * spec.tp + at["tp"]


@given(specs(), st.data())
def test_peers_partition_the_world(spec, data):
    axis = data.draw(st.sampled_from(sorted(coords(spec, 0))))
    groups = {peers(spec, rank, axis) for rank in range(spec.world)}
    assert sorted(rank for group in groups for rank in group) == list(range(spec.world))
    assert all(rank in peers(spec, rank, axis) for rank in range(spec.world))


@given(specs(), st.data())
def test_peers_differ_only_along_their_axis(spec, data):
    view = data.draw(st.sampled_from(spec.views))
    axis = data.draw(st.sampled_from(sorted(view)))
    rank = data.draw(st.integers(0, spec.world - 1))
    group = [coords(spec, peer) for peer in peers(spec, rank, axis)]
    assert [at[axis] for at in group] == list(range(view[axis]))
    for other in view.keys() - {axis}:
        assert {at[other] for at in group} == {coords(spec, rank)[other]}


@given(st.integers(1, 6), st.integers(1, 6), st.sampled_from(["replicate", "shard"]))
def test_resolving_fills_in_what_is_left(known, left, axis):
    other = {"replicate": "shard", "shard": "replicate"}[axis]
    spec = resolve_mesh(MeshConfig(**{axis: -1, other: known}), known * left)
    assert (getattr(spec, axis), spec.world) == (left, known * left)


def test_any_axis_can_be_whatever_is_left():
    for axis in ("pp", "cp", "tp"):
        assert getattr(resolve_mesh(MeshConfig(**{"shard": 4, axis: -1}), 4), axis) == 1
        with pytest.raises(ValueError, match=f"{axis}=2: {NOT_BUILT[axis]} is not built yet"):
            resolve_mesh(MeshConfig(**{"shard": 4, axis: -1}), 8)
    assert resolve_mesh(MeshConfig(shard=4, ep=-1), 4).ep == 4


def refusal(call, *args):
    """The problems that a call raises, one a line, without the headline."""
    with pytest.raises(ValueError) as caught:
        call(*args)
    return re.findall(r"  \* (.*)", str(caught.value))


def test_every_problem_is_told_at_once():
    assert refusal(resolve_mesh, MeshConfig(replicate=2, shard=3, sp=2, ep=4), 8) == [
        "replicate=2 x shard=3 x sp=2 makes 12 ranks, but the world has 8. What would fit: shard=2 or 12 ranks.",
        "ep=4 does not divide shard x cp x sp x tp = 6: experts are spread over the ranks of one replica. "
        "Set ep to one of 1, 2, 3, 6.",
    ]
    assert refusal(resolve_mesh, MeshConfig(replicate=0, shard=-1, cp=-1, tp=-2, ep=2), 0) == [
        "replicate=0: an axis is at least 1, or -1 for whatever is left. Set replicate=1 to leave it out.",
        "tp=-2: an axis is at least 1, or -1 for whatever is left. Set tp=1 to leave it out.",
        "shard=-1 and cp=-1: only one axis can be whatever is left. Give a number to the others.",
        "world_size=0: a world has at least 1 rank. Pass the number of ranks started.",
    ]


def test_a_product_that_does_not_divide_the_world_says_what_does():
    assert refusal(resolve_mesh, MeshConfig(replicate=3, ep=2), 8) == [
        "replicate=3 x shard=-1: 3 does not divide the 8 ranks of the world. "
        "Make the product of the numbers one of 1, 2, 4, 8, or start a multiple of 3 ranks.",
    ]
    assert refusal(resolve_mesh, MeshConfig(shard=1), 8) == [
        "a mesh of size 1 makes 1 ranks, but the world has 8. "
        "What would fit: replicate=8 or shard=8 or sp=8 or 1 ranks."
    ]


def test_each_axis_that_is_not_built_is_refused_by_name():
    for axis, what in NOT_BUILT.items():
        problems = refusal(resolve_mesh, MeshConfig(**{"shard": 2, axis: 2}), 4)
        assert problems == [f"{axis}=2: {what} is not built yet; leave {axis} at 1."]


def test_ranks_asked_is_the_product_of_the_axes():
    assert ranks_asked(MeshConfig(), 0) == 1
    assert ranks_asked(MeshConfig(), 8) == 8
    assert ranks_asked(MeshConfig(sp=2), 0) == 2
    assert ranks_asked(MeshConfig(sp=2), 8) == 8
    assert ranks_asked(MeshConfig(shard=2, ep=2), 8) == 2, "ep multiplies nothing"
    assert ranks_asked(MeshConfig(shard=1, ep=-1), 8) == 1
    assert ranks_asked(MeshConfig(ep=2), 0) == 2, "but on CPU there have to be ranks to borrow"
    assert ranks_asked(MeshConfig(sp=2, ep=4), 0) == 4
    assert ranks_asked(MeshConfig(replicate=2, sp=2, ep=2), 0) == 4
    assert ranks_asked(MeshConfig(shard=3, ep=2), 0) == 3, "what was asked for is told to be wrong"
    assert ranks_asked(MeshConfig(ep=2), 8) == 8
    assert ranks_asked(MeshConfig(2, 2, 2, 2, 2, 2, 4), 0) == 64


def test_more_ranks_than_gpus_are_refused():
    assert refusal(ranks_asked, MeshConfig(replicate=2, shard=4), 4) == [
        "replicate=2 x shard=4 needs 8 ranks, but this machine has 4 GPUs. "
        "Make the axes smaller, or start it on more machines with torchrun or srun."
    ]
    assert "at least 8 ranks" in refusal(ranks_asked, MeshConfig(sp=8), 4)[0]
    assert refusal(ranks_asked, MeshConfig(replicate=-1, tp=0), 4)[1].startswith("replicate=-1 and shard=-1: only one")


def test_an_unknown_axis_names_the_nearest():
    with pytest.raises(ValueError, match=r"No axis 'ddp' in a mesh. Did you mean 'dp'\? The axes are pp, replicate"):
        peers(MeshSpec(), 0, "ddp")
    with pytest.raises(ValueError, match=r"No axis 'qqq' in a mesh. The axes are"):
        peers(MeshSpec(), 0, "qqq")


def test_a_rank_outside_the_world_is_refused():
    for call in (lambda: coords(MeshSpec(shard=2), 2), lambda: peers(MeshSpec(shard=2), -1, "dp")):
        with pytest.raises(ValueError, match="in a world of 2: ranks go from 0 to 1"):
            call()


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(spec_module).failed == 0


def test_the_arithmetic_needs_no_torch():
    code = f"import runpy, sys; runpy.run_path({spec_module.__file__!r}); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
