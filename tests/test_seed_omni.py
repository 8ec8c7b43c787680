"""Laws of composed models on several ranks: losses and every gradient are those of the model by hand on one rank."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from composed_ranks import (
    DRAWN,
    EVERYTHING,
    LAST,
    MIXED,
    SEEN,
    TEXT,
    TOWER,
    Case,
    check,
    go_on,
    losses_of,
    merge_parts,
    read_back,
    told,
    train,
)
from ranks import Run
from transformers import AutoModelForCausalLM, SiglipVisionModel

from omni_mesh import MeshConfig

EVERYWHERE = MeshConfig(replicate=4, shard=1)
"""Each rank has the part whole."""
CASES = {
    "one rank": Case(MeshConfig(shard=1), (EVERYTHING, DRAWN)),
    "shard 2": Case(MeshConfig(shard=2), (EVERYTHING, DRAWN)),
    "sp 2": Case(MeshConfig(sp=2), (EVERYTHING, DRAWN)),
    "ep 2": Case(MeshConfig(shard=2, ep=2), (EVERYTHING, DRAWN), MIXED),
    "shard 2 x sp 2, ep 2": Case(MeshConfig(shard=2, sp=2, ep=2), (EVERYTHING, DRAWN), MIXED),
    "replicate 2 x sp 2": Case(MeshConfig(replicate=2, shard=1, sp=2), (EVERYTHING, DRAWN)),
    "one rank has no target": Case(MeshConfig(shard=2), (EVERYTHING, SEEN)),
    "one rank has text alone": Case(MeshConfig(shard=2, sp=2), (TEXT, EVERYTHING)),
    "no rank has a target": Case(MeshConfig(shard=2), (SEEN, TEXT)),
    "no rank has media or targets": Case(MeshConfig(shard=2, sp=2), (TEXT, TEXT)),
    "rows do not divide": Case(MeshConfig(sp=4), (LAST, EVERYTHING), seq_len=35),
    "rows end in a target": Case(MeshConfig(sp=2), (LAST, TEXT), seq_len=35),
}


def ranks_of(mesh: MeshConfig) -> int:
    return mesh.replicate * max(mesh.shard, 1) * mesh.sp


@pytest.mark.parametrize("name", CASES)
def test_losses_and_every_gradient_equal_those_by_hand(name: str, run: Run) -> None:
    run(check, ranks_of(CASES[name].mesh), CASES[name])


APART = {
    "a tower on every rank": Case(MeshConfig(sp=2, shard=2, ep=2), (EVERYTHING, SEEN), MIXED, {TOWER: EVERYWHERE}),
    "two parts, recomputed": Case(
        MeshConfig(sp=2, shard=2),
        (EVERYTHING, DRAWN),
        parts={TOWER: EVERYWHERE, "decoders.latent": MeshConfig(replicate=2, shard=2), "encoders.audio": EVERYWHERE},
        recompute=("", TOWER),
    ),
    "a frozen tower": Case(
        MeshConfig(sp=2, shard=2), (EVERYTHING, TEXT), parts={TOWER: EVERYWHERE}, frozen=(TOWER, "decoders.voice")
    ),
    "nothing for a tower on every rank": Case(
        MeshConfig(shard=2, sp=2, ep=2), (TEXT, DRAWN), MIXED, {TOWER: EVERYWHERE}, recompute=(TOWER,)
    ),
}


@pytest.mark.parametrize("name", APART)
def test_parts_on_meshes_of_their_own_change_nothing(name: str, run: Run) -> None:
    run(check, 4, APART[name])


def test_in_bf16_losses_and_gradients_are_near_those_in_fp32(run: Run) -> None:
    exact = Case(MeshConfig(shard=2, sp=2), (EVERYTHING, DRAWN), parts={TOWER: EVERYWHERE})
    (sums, norms), *_ = run(losses_of, 4, replace(exact, dtype=torch.bfloat16))
    (wanted, lengths), *_ = run(losses_of, 4, exact)
    assert sums == pytest.approx(wanted, rel=0.02)
    long = [part for part, length in lengths.items() if length > 0.05 * max(lengths.values())]
    assert [norms[part] for part in long] == pytest.approx([lengths[part] for part in long], rel=0.1)


def test_ranks_go_on_with_a_row_together_as_one_does(run: Run) -> None:
    alone, apart = Case(MeshConfig(shard=1), ()), Case(MeshConfig(shard=4), (), parts={TOWER: EVERYWHERE})
    expected = run(go_on, 1, alone)[0]
    assert run(go_on, 4, apart) == [expected] * 4 and len(expected) >= 15
    assert len(run(go_on, 1, replace(alone, dtype=torch.bfloat16))[0]) >= 15


def test_a_part_is_on_its_mesh_and_all_around_on_theirs(run: Run) -> None:
    case = Case(MeshConfig(shard=2, sp=2, ep=2), (TEXT,), MIXED, {TOWER: EVERYWHERE})
    names = [f"{TOWER}.encoder.layers.0", TOWER, "encoders.image.projector", "foundation.model.layers.0.self_attn"]
    experts = "foundation.model.layers.0.mlp.experts"
    for rank in run(told, 4, case, [*names, experts]):
        assert rank == [(names[0], (4, 1)), (names[1], (4, 1)), (names[2], (4,)), (names[3], (4,)), (experts, (2, 2))]


def test_training_goes_on_from_a_checkpoint_on_other_meshes_and_parts_are_exported(run: Run, tmp_path: Path) -> None:
    apart = Case(MeshConfig(shard=2, sp=2, ep=2), (EVERYTHING, DRAWN), MIXED, {TOWER: EVERYWHERE})
    alone = Case(MeshConfig(shard=1), (EVERYTHING, DRAWN), MIXED)
    losses, params = run(train, 4, apart, tmp_path / "four")[0]
    expected, wanted = run(train, 1, alone, tmp_path / "one")[0]
    assert losses == pytest.approx(expected, abs=1e-5)
    for name, tensor in wanted.items():
        assert (params[name] - tensor).abs().max() < 1e-5, name
    further, again = (run(train, ranks, case, None, tmp_path / "four")[0] for ranks, case in ((4, apart), (1, alone)))
    assert further[0] == pytest.approx(again[0], abs=1e-5) and further[0][0] < losses[1] < losses[0]
    merge_parts(tmp_path / "four", tmp_path / "hub", MIXED)
    text = AutoModelForCausalLM.from_pretrained(tmp_path / "hub" / "foundation", dtype=torch.float32)
    tower = SiglipVisionModel.from_pretrained(tmp_path / "hub" / TOWER, dtype=torch.float32)
    for prefix, plain in (("foundation", text), (TOWER, tower)):
        assert all(torch.equal(p, params[f"{prefix}.{name}"]) for name, p in plain.named_parameters())
    for filled in run(read_back, 4, apart, tmp_path / "hub" / "whole"):
        assert filled.keys() == params.keys()
        assert all(torch.equal(tensor, params[name]) for name, tensor in filled.items())
