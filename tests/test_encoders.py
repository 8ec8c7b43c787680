"""Laws of encoders on several ranks: loss and every gradient of every family are those of plain transformers on one."""

from typing import Literal

import pytest
from ranks import Run
from seeing import FILM, FIVE, MANY, NONE, Case, check
from seeing_wrong import MISTAKES, make_mistake
from senses import SEEING

from omni_mesh import MeshConfig

MESHES = {
    "one rank": (MeshConfig(), (MANY,)),
    "shard 2": (MeshConfig(shard=2), (MANY, FILM)),
    "sp 2": (MeshConfig(sp=2), (FILM,)),
    "sp 4": (MeshConfig(sp=4), (MANY,)),
    "shard 2 x sp 2": (MeshConfig(shard=2, sp=2), (FILM, NONE)),
}
FOUR = {"shard 4": (MeshConfig(shard=4), (MANY, NONE, FILM, FIVE))}
SPREAD = {
    "ep 2": (MeshConfig(shard=2, ep=2), (MANY, FILM)),
    "sp 2, ep 2": (MeshConfig(sp=2, ep=2), (MANY,)),
    "shard 4, ep 2": (MeshConfig(shard=4, ep=2), (MANY, NONE, FILM, FIVE)),
}
CASES = [(family, *laid) for family in SEEING for laid in MESHES.values()]
CASES += [("qwen3_vl", *laid) for laid in FOUR.values()] + [("qwen3_vl_moe", *laid) for laid in SPREAD.values()]
NAMES = [f"{family}, {name}" for family in SEEING for name in MESHES]
NAMES += [f"qwen3_vl, {name}" for name in FOUR] + [f"qwen3_vl_moe, {name}" for name in SPREAD]
HALVES = MeshConfig(shard=2, sp=2)


def ranks_of(mesh: MeshConfig) -> int:
    return max(mesh.shard, 1) * mesh.sp


@pytest.mark.parametrize(("family", "mesh", "given"), CASES, ids=NAMES)
def test_loss_and_every_gradient_equal_plain_transformers(
    family: str, mesh: MeshConfig, given: tuple[int, ...], run: Run
) -> None:
    passed = run(check, ranks_of(mesh), Case(family, mesh, (given,)))
    # Each patch is encoded once, by whichever rank; what is encoded again is taken by nobody.
    own = sum(rank.own for rank in passed)
    assert own > 0
    assert sum(rank.seen - rank.copies for rank in passed) == own


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_omni_thinker", "gemma3"])
def test_rows_that_do_not_divide_are_lengthened_and_replicas_take_features_too(family: str, run: Run) -> None:
    run(check, 4, Case(family, MeshConfig(replicate=2, shard=1, sp=2), ((MANY, FILM),), seq_len=397))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen2_5_omni_thinker", "gemma3"])
@pytest.mark.parametrize(
    ("mesh", "given"),
    [
        (MeshConfig(shard=4), (NONE, NONE, MANY, NONE)),
        (MeshConfig(shard=4), (NONE,) * 4),
        (HALVES, (NONE, FIVE)),
        (HALVES, (NONE, NONE)),
    ],
    ids=["one of four", "none of four", "one of two halves", "none of two halves"],
)
def test_ranks_without_media_neither_hang_nor_change_anything(
    family: str, mesh: MeshConfig, given: tuple[int, ...], run: Run
) -> None:
    passed = run(check, 4, Case(family, mesh, (given,)))
    seen = any(each != NONE for each in given)
    assert all((rank.seen > 0) == seen for rank in passed), "towers are called by all ranks or by none"


@pytest.mark.parametrize("family", ["qwen3_vl", "gemma3"])
@pytest.mark.parametrize("frozen", ["towers", "text"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_what_is_frozen_has_no_gradient_and_all_else_has_its_own(
    family: str, frozen: Literal["towers", "text"], recompute: bool, run: Run
) -> None:
    run(check, 4, Case(family, HALVES, ((FIVE, NONE),), frozen=frozen, recompute=recompute))


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni_thinker"])
def test_blocks_of_towers_and_decoder_that_are_recomputed_change_nothing(family: str, run: Run) -> None:
    run(check, 4, Case(family, HALVES, ((MANY, FILM),), recompute=True))


def test_spread_experts_that_are_recomputed_change_nothing(run: Run) -> None:
    mesh = MeshConfig(shard=2, sp=2, ep=2)
    run(check, 4, Case("qwen3_vl_moe", mesh, ((MANY, FILM),), recompute=True))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl_moe", "gemma3"])
@pytest.mark.parametrize("steps", [((MANY, NONE), (NONE, NONE)), ((NONE, NONE), (FILM, FIVE))], ids=["first", "last"])
def test_of_two_microbatches_one_may_have_media(family: str, steps: tuple[tuple[int, ...], ...], run: Run) -> None:
    run(check, 2, Case(family, MeshConfig(shard=2), steps))


@pytest.mark.parametrize("family", ["qwen2_vl", "gemma3"])
def test_documents_are_attended_to_one_by_one_all_the_same(family: str, run: Run) -> None:
    run(check, 4, Case(family, HALVES, ((MANY, FILM),), attend="sdpa"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_media_that_do_not_fit_are_refused_by_name(mistake: str, run: Run) -> None:
    ranks = 2 if mistake in ("arrays that differ between ranks", "groups of a slice") else 1
    for told, expected in run(make_mistake, ranks, mistake):
        assert expected in told, told
