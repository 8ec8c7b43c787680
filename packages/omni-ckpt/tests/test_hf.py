import ctypes
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from omni_ckpt.dcp import save_dcp
from omni_ckpt.hf import merge_to_hf, plan_shards

INDEX = "model.safetensors.index.json"


def checkpoint(folder: Path, model: dict[str, torch.Tensor]) -> Path:
    moments = {name: torch.zeros_like(tensor) for name, tensor in model.items()}
    return save_dcp({"state": {"model": model, "optimizer": {"exp_avg": moments}, "step": 3}}, folder / "source")


def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model: dict[str, torch.Tensor] = {f"layers.{i}.proj.weight": torch.randn(8, 4) for i in range(5)}
    return model | {"norm": torch.randn(7).bfloat16(), "seen": torch.tensor([3, 5]), "step": torch.tensor(1.5)}


def merged(path: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and torch.equal(a[n], b[n]) for n in a)


@settings(deadline=None)
@given(st.lists(st.integers(0, 20), max_size=20), st.integers(1, 30))
def test_files_are_filled_in_order_and_hold_at_most_so_much(sizes, max_bytes):
    plan = plan_shards({str(i): size for i, size in enumerate(sizes)}, max_bytes)
    assert list(plan) == [str(i) for i in range(len(sizes))]
    files = list(dict.fromkeys(plan.values()))
    assert list(plan.values()) == sorted(plan.values())
    count = len(files)
    names = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    assert files == (["model.safetensors"] if count == 1 else names)
    held = {file: [size for size, where in zip(sizes, plan.values(), strict=True) if where == file] for file in files}
    assert all(sum(held[file]) <= max_bytes or len(held[file]) == 1 for file in files)
    # Greedy: what starts a file had no room in the one before.
    pairs = pairwise(files)
    assert all(sum(held[one]) + held[two][0] > max_bytes for one, two in pairs)


def test_a_file_for_nothing_is_refused():
    with pytest.raises(ValueError, match="max_bytes=0"):
        plan_shards({"a": 1}, 0)


def test_a_merge_is_the_model_and_nothing_else(tmp_path):
    model = weights()
    target = merge_to_hf(checkpoint(tmp_path, model), tmp_path / "hf")
    assert [file.name for file in target.iterdir()] == ["model.safetensors"]
    assert same(merged(target), model)
    with safe_open(target / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf", "source"]


def test_several_files_hold_what_one_would(tmp_path):
    model = weights()
    target = merge_to_hf(checkpoint(tmp_path, model), tmp_path / "hf", max_bytes=300)
    index = json.loads((target / INDEX).read_text())
    assert same(merged(target), model)
    assert len(list(target.glob("*.safetensors"))) == 3
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in model.values())
    assert index["weight_map"].keys() == model.keys()
    assert all(name in load_file(target / file) for name, file in index["weight_map"].items())


def test_only_floating_point_tensors_are_cast(tmp_path):
    model = weights()
    target = merge_to_hf(checkpoint(tmp_path, model), tmp_path / "hf", dtype=torch.bfloat16, max_bytes=300)
    cast = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in model.items()}
    assert same(merged(target), cast)
    assert len(list(target.glob("*.safetensors"))) == 2  # Sizes are those of what is written.


def unfused(tensors):
    """Experts of one tensor apart, as views of it, one transposed; the rest renamed."""
    out = {}
    for name, tensor in tensors.items():
        if name.endswith("experts"):
            out |= {f"hub.{name}.{i}.weight": expert for i, expert in enumerate(tensor)}
            out[f"hub.{name}.all"] = tensor.transpose(1, 2)
        else:
            out[f"hub.{name}"] = tensor
    return out


@pytest.mark.parametrize("max_bytes", [1 << 30, 100])
def test_names_and_tensors_are_those_of_to_hf(max_bytes, tmp_path):
    model = {f"layers.{i}.experts": torch.randn(3, 4, 2) for i in range(3)} | {"norm": torch.randn(4)}
    target = merge_to_hf(checkpoint(tmp_path, model), tmp_path / "hf", to_hf=unfused, max_bytes=max_bytes)
    assert same(merged(target), {name: tensor.contiguous() for name, tensor in unfused(model).items()})


def fused(tensors):
    """One tensor of `a` and `b`, where both are there."""
    if not {"a", "b"} <= tensors.keys():
        return dict(tensors)
    return {"ab": torch.cat([tensors["a"], tensors["b"]])}


def test_tensors_that_belong_together_are_not_torn_apart(tmp_path):
    source = checkpoint(tmp_path, {"a": torch.ones(4), "b": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"allow larger files.* it gives otherwise \(3\): a, b, ab\."):
        merge_to_hf(source, tmp_path / "hf", to_hf=fused, max_bytes=16)
    assert not (tmp_path / "hf").exists()
    assert merged(merge_to_hf(source, tmp_path / "hf", to_hf=fused, max_bytes=32)).keys() == {"ab"}


def test_one_name_from_two_files_is_refused(tmp_path):
    source = checkpoint(tmp_path, {"a": torch.ones(4), "b": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"it gives otherwise \(1\): x\."):
        merge_to_hf(source, tmp_path / "hf", to_hf=lambda t: {"x": next(iter(t.values()))}, max_bytes=16)


def test_another_prefix_merges_another_part(tmp_path):
    source = checkpoint(tmp_path, {"a.b": torch.ones(4)})
    assert merged(merge_to_hf(source, tmp_path / "1", prefix="state.optimizer.exp_avg")).keys() == {"a.b"}
    assert len(merged(merge_to_hf(source, tmp_path / "2", prefix=""))) == 2


def test_a_prefix_of_nothing_is_refused_with_those_there_are(tmp_path):
    source = checkpoint(tmp_path, {"a": torch.ones(4)})
    for prefix in ("model", "state.mod"):
        with pytest.raises(ValueError, match=rf"below '{prefix}'; there are .* \(2\): state.model, state.optimizer\."):
            merge_to_hf(source, tmp_path / "hf", prefix=prefix)


def test_a_model_is_never_overwritten(tmp_path):
    source = checkpoint(tmp_path, {"a": torch.ones(4)})
    (tmp_path / "hf").mkdir()
    target = merge_to_hf(source, tmp_path / "hf")  # An empty directory is no model.
    before = (target / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is not empty, and a model is never overwritten"):
        merge_to_hf(source, target)
    assert (target / "model.safetensors").read_bytes() == before


def test_a_damaged_checkpoint_is_not_merged(tmp_path):
    source = checkpoint(tmp_path, {"a": torch.ones(400)})
    os.truncate(source / "__0_0.distcp", 200)
    with pytest.raises(ValueError, match=r"__0_0\.distcp has 200 of"):
        merge_to_hf(source, tmp_path / "hf")


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What `merge_main.py` found after each merge that it had killed, and after the last of a kind, which was not."""
    folder = tmp_path_factory.mktemp("killed")
    subprocess.run([sys.executable, Path(__file__).parent / "merge_main.py", folder], check=True, timeout=300)
    return json.loads((folder / "merges.json").read_text())


@pytest.mark.parametrize("size", ["one file", "three files"])
def test_a_merge_that_is_killed_at_any_line_or_in_a_file_leaves_nothing_half_that_loads(size, killed):
    lines = [found for case, found in killed.items() if case.startswith(f"{size}, kill_at_line")]
    files = [found for case, found in killed.items() if case.startswith(f"{size}, kill_in_file")]
    assert len(lines) > 20 and len(files) == {"one file": 2, "three files": 4}[size]
    assert {"nothing", "whole"} == {there for there, *_ in lines} == {there for there, *_ in files}
    # Even under its temporary name: there is no index before the last file is there.
    assert "half" not in [under_way for _, under_way, *_ in lines]
    assert size == "one file" or "half" not in [under_way for _, under_way, *_ in files]
    for _, _, after, left in (*lines, *files):
        assert (after, left) == ("whole", ["hf"]), "the next merge"


def test_others_may_read_what_they_may_list(tmp_path):
    target = merge_to_hf(checkpoint(tmp_path, {"a": torch.ones(4)}), tmp_path / "hf")
    assert (target / "model.safetensors").stat().st_mode & 0o777 == target.stat().st_mode & 0o666


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the peak of memory is read from Linux")
@pytest.mark.parametrize("dtype", ["stored", "bfloat16"])
def test_a_merge_holds_one_file_in_memory_and_a_tensor_or_two(dtype, tmp_path):
    script = Path(__file__).parent / "merging_main.py"
    done = subprocess.run([sys.executable, script, tmp_path, dtype], capture_output=True, text=True, check=True)
    small, large = map(int, done.stdout.split())
    assert small < (16 if dtype == "stored" else 32) + 3 * 4
    assert large > 50 * 4, "the measure sees what is there"
