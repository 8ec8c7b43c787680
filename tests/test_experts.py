"""Laws of experts on several ranks: every family on every mesh equals plain transformers, checkpoints go anywhere."""

from pathlib import Path
from typing import Any

import pytest
import torch
from experts import DOCS, HARD, MESHES, NAMES, compare, make_mixture, table
from experts_ranks import (
    balance_by_biases,
    break_promise,
    check_two_models,
    compare_balance,
    count_gathers,
    count_operators,
    load_and_train,
    loss_in_bf16,
    make_large,
    merge_large,
    read_and_save,
    read_large,
    run_twice,
    train_and_save,
    train_in_bf16,
)
from ranks import Run
from safetensors.torch import load_file
from sequence import TOLERANCE
from torch import Tensor

from omni_ckpt import merge_to_hf
from omni_mesh import MeshConfig
from omni_models import hf_keys
from omni_parallel import RecomputeConfig

SPREAD = MeshConfig(shard=4, ep=2)
"""efsdp 2, ep 2."""
OTHERS = (
    *((4, MeshConfig(shard=4, ep=4)), (4, SPREAD), (4, MeshConfig(shard=2, sp=2))),
    *((2, MeshConfig(shard=2, ep=2)), (1, MeshConfig())),
)
"""Ranks and meshes to go on with."""


@pytest.mark.parametrize("name", NAMES)
def test_every_mesh_equals_plain_transformers_on_one_rank(name: str, run: Run) -> None:
    errors = run(compare, 4, name, MESHES)[0]
    assert errors.keys() == MESHES.keys()
    for label, (loss, norm, gradient, parameter) in errors.items():
        assert loss <= TOLERANCE, label
        assert norm <= 1e-6, f"{label}: the norm is not that of the gathered gradients"
        assert gradient <= TOLERANCE, f"{label}: {parameter}"


@pytest.mark.parametrize("hard", [name for name in HARD if name.startswith(("all tokens", "more experts"))])
def test_idle_ranks_and_more_experts_than_tokens_are_exact_and_never_hang(hard: str, run: Run) -> None:
    errors = run(compare, 4, "qwen3_moe", MESHES, RecomputeConfig(every=1), hard)[0]
    for label, (loss, norm, gradient, parameter) in errors.items():
        assert loss <= TOLERANCE, label
        assert norm <= 1e-6, label
        assert gradient <= TOLERANCE, f"{label}: {parameter}"


@pytest.mark.parametrize("label", ["shard 4, ep 2", "shard 4, ep 4"], ids=["gathered", "sent"])
def test_ranks_may_have_different_numbers_of_tokens(label: str, run: Run) -> None:
    errors = run(compare, 4, "qwen3_moe", {label: MESHES[label]}, RecomputeConfig(every=1), "rows of different lengths")
    loss, norm, gradient, parameter = errors[0][label]
    assert loss <= TOLERANCE
    assert norm <= 1e-6
    assert gradient <= TOLERANCE, parameter


def test_ranks_that_promised_as_many_tokens_and_have_others_are_told(run: Run) -> None:
    assert (
        run(break_promise, 2) == ["even=True, but the ranks that share experts have 37, 74 tokens: leave it out."] * 2
    )


@pytest.mark.parametrize("name", ["gpt_oss", "deepseek_v3"], ids=["biases, transposed", "shared experts"])
def test_gathered_tokens_meet_experts_of_any_layout(name: str, run: Run) -> None:
    meshes = {label: MESHES[label] for label in ("shard 4, ep 2", "shard 2 x sp 2, ep 2")}
    recompute = RecomputeConfig(every=1, keep="attention")
    errors = run(compare, 4, name, meshes, recompute, "every token to every expert")[0]
    for label, (loss, norm, gradient, parameter) in errors.items():
        assert loss <= TOLERANCE, label
        assert norm <= 1e-6, label
        assert gradient <= TOLERANCE, f"{label}: {parameter}"


@pytest.mark.parametrize("keep", ["nothing", "attention", "matmuls"])
@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral"])
def test_recomputed_experts_are_exact_whatever_is_kept(name: str, keep: Any, run: Run) -> None:
    some = {label: MESHES[label] for label in ("shard 4, ep 2", "shard 2 x sp 2, ep 4")}
    errors = run(compare, 4, name, some, RecomputeConfig(every=1, keep=keep))[0]
    assert errors.keys() == some.keys()
    assert all(gradient <= TOLERANCE for _, _, gradient, _ in errors.values())


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "deepseek_v3"])
def test_two_runs_in_deterministic_mode_give_the_same_bits(name: str, run: Run) -> None:
    assert all(run(run_twice, 4, name, SPREAD))


@pytest.mark.parametrize("every", [0, 1])
@pytest.mark.parametrize(
    ("name", "even", "again", "waits"),
    [("qwen3_moe", True, 3, 0), ("qwen3_moe", False, 3, 1), ("mixtral", True, 4, 1)],
    ids=["gathered, even", "gathered", "sent"],
)
def test_the_host_waits_once_a_layer_at_most_and_never_backward(
    name: str, even: bool, again: int, waits: int, every: int, run: Run
) -> None:
    layers, forward, backward = run(count_operators, 2, name, MeshConfig(shard=2, ep=2), every, even)[0]
    # Counts go out where they are waited for, then tokens, choices and weights, and sums come back. Backward, the
    # gradients of the three that have some; and what is recomputed, but for counts, and for sums that nothing looks at.
    assert forward == {"reads": waits * layers, "exchanges": (4 + waits) * layers}
    assert backward == {"reads": 0, "exchanges": (3 + again * every) * layers}


@pytest.mark.parametrize("name", ["deepseek_v3", "qwen3_moe"])
def test_recomputation_gathers_nothing_twice(name: str, run: Run) -> None:
    """Experts recomputed in the backward pass must not ask for the block after them, which is done with."""
    units, plainly = run(count_gathers, 4, name, SPREAD, 0)[0]
    assert run(count_gathers, 4, name, SPREAD, 1)[0] == (units, plainly)
    assert plainly <= units


@pytest.mark.parametrize("name", ["deepseek_v3", "mixtral", "qwen3_moe"])
def test_spreading_rounds_nothing_forward_that_was_not_rounded_in_bf16(name: str, run: Run) -> None:
    """Where a model weighs choices in fp32 they stay in fp32."""
    alone, spread = (run(loss_in_bf16, 4, name, MeshConfig(shard=4, ep=ep))[0] for ep in (1, 4))
    assert spread == pytest.approx(alone, rel=1e-7)


def test_casts_kept_by_the_update_are_those_that_would_be_made(run: Run) -> None:
    config = MeshConfig(shard=2, ep=2)
    (made, none), (kept, some) = (run(train_in_bf16, 2, "qwen3_moe", config, keep)[0] for keep in (False, True))
    assert made == kept
    assert made[3] < made[0]
    assert (none, some) == (0, 4), "two parameters of two layers"


def test_two_mixtures_on_two_meshes_do_not_disturb_one_another(run: Run) -> None:
    run(check_two_models, 2)


@pytest.mark.parametrize(("name", "written"), [("qwen3_moe", SPREAD), ("gpt_oss", MeshConfig(shard=4, ep=4))])
def test_a_checkpoint_goes_to_any_mesh_bit_for_bit_and_training_goes_on(
    name: str, written: MeshConfig, run: Run, tmp_path: Path
) -> None:
    losses, saved = run(train_and_save, 4, name, written, tmp_path / "step", 3)[0]
    assert any(key.startswith("optimizer.exp_avg_sq") and "experts" in key for key in saved)
    for ranks, config in OTHERS:
        others, found = run(load_and_train, ranks, name, config, tmp_path / "step")[0]
        assert found.keys() == saved.keys()
        assert all(torch.equal(tensor, saved[key]) for key, tensor in found.items()), config
        assert others == pytest.approx(losses, rel=1e-6), config


def files(directory: Path) -> dict[str, Tensor]:
    return {key: tensor for path in directory.glob("*.safetensors") for key, tensor in load_file(path).items()}


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_comes_back_byte_for_byte_as_transformers_writes_it(name: str, run: Run, tmp_path: Path) -> None:
    model = make_mixture(name)
    with torch.no_grad():
        for param in model.parameters():
            param.view(-1)[:2] = torch.tensor([-0.0, torch.nan])  # Which no comparison of values tells from others.
    model.save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    run(read_and_save, 4, name, SPREAD, tmp_path / "hf", tmp_path / "step")
    merge_to_hf(tmp_path / "step", tmp_path / "back", to_hf=hf_keys(model), max_bytes=30_000)
    theirs, ours = files(tmp_path / "hf"), files(tmp_path / "back")
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert (ours[key].dtype, ours[key].shape) == (tensor.dtype, tensor.shape), key
        assert ours[key].numpy().tobytes() == tensor.numpy().tobytes(), key


def test_reading_and_merging_take_less_than_two_shards(run: Run, tmp_path: Path) -> None:
    run(make_large, 1, tmp_path / "hf")
    shard = max(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors"))
    assert shard < sum(path.stat().st_size for path in (tmp_path / "hf").glob("*.safetensors")) / 3
    assert max(run(read_large, 4, SPREAD, tmp_path / "hf", tmp_path / "step")) < 2 * shard
    assert run(merge_large, 1, tmp_path / "step", tmp_path / "back", shard)[0] < 2 * shard
    theirs, ours = files(tmp_path / "hf"), files(tmp_path / "back")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())


@pytest.mark.parametrize("name", ["qwen3_moe", "deepseek_v3", "gpt_oss"])
def test_the_balance_loss_is_that_of_plain_transformers_over_all_tokens(name: str, run: Run) -> None:
    errors = run(compare_balance, 4, name, 0.5)[0]
    assert errors.keys() == MESHES.keys()
    for label, (loss, gradient, parameter) in errors.items():
        assert loss <= 1e-6, label
        assert gradient <= TOLERANCE, f"{label}: {parameter}"


@pytest.mark.parametrize("name", ["deepseek_v3", "ernie4_5_moe"])
def test_biases_do_not_depend_on_the_mesh(name: str, run: Run) -> None:
    alone = run(balance_by_biases, 1, name, MeshConfig(), 5)[0]
    for config in (MeshConfig(shard=2, sp=2, ep=2), MeshConfig(replicate=2, shard=2)):
        for found in run(balance_by_biases, 4, name, config, 5):
            assert found.keys() == alone.keys()
            assert all(torch.equal(bias_E, alone[key]) for key, bias_E in found.items()), config


def test_the_docs_hold_the_table_of_these_families() -> None:
    """Measured anew by `tests/experts.py --write`; here only its rows and its bound are checked."""
    inside = DOCS.read_text().partition("<!-- table -->\n")[2].partition("\n<!-- /table -->")[0]
    rows = [line.strip("| ").split(" | ") for line in inside.splitlines()[2:]]
    errors = {name: dict(zip(MESHES, map(float, worst), strict=True)) for name, *worst in rows}
    assert inside == table(errors)
    assert list(errors) == list(NAMES)
    assert all(error <= TOLERANCE for of_mesh in errors.values() for error in of_mesh.values())
