import io
import json
import os
import pickle

import pytest
import torch
import torch.distributed.checkpoint as torch_dcp
from sealing import reseal

from omni_ckpt.dcp import load_dcp, save_dcp
from omni_ckpt.hf import merge_to_hf
from omni_ckpt.storage import one_process_is_meant, read_index, read_plain, stored
from omni_ckpt.tree import TensorSpec, mismatches


def test_shapes_and_dtypes_are_known_without_reading_a_tensor(tmp_path):
    model = {"a.weight": torch.zeros(3, 4), "b": torch.zeros((), dtype=torch.int64)}
    path = save_dcp({"state": {"model": model, "step": 1}, "statement": torch.zeros(1)}, tmp_path / "one")
    (path / "__0_0.distcp").unlink()
    expected = {"a.weight": TensorSpec((3, 4), torch.float32), "b": TensorSpec((), torch.int64)}
    assert stored(path, prefix="state.model") == expected
    assert stored(path).keys() == {"state.model.a.weight", "state.model.b", "statement"}
    assert stored(path, prefix="state").keys() == {"model.a.weight", "model.b"}


def test_a_model_on_the_meta_device_is_compared_before_anything_is_built(tmp_path):
    path = save_dcp({"state": {"model": torch.nn.Linear(3, 4).state_dict()}}, tmp_path / "one")
    with torch.device("meta"):
        same, other = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)
    assert mismatches(dict(same.named_parameters()), stored(path, prefix="state.model")) == []
    assert mismatches(dict(other.named_parameters()), stored(path, prefix="state.model")) == [
        "with another shape (1): weight (4, 3) is (4, 4) here"
    ]


class Attack:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_an_index_runs_no_code(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    (path / ".metadata").write_bytes(pickle.dumps(Attack()))
    for read in (
        stored,
        lambda path: load_dcp({"w": torch.zeros(1)}, path),
        lambda path: merge_to_hf(path, path / "x"),
    ):
        with pytest.raises(ValueError, match=r"damaged: it names posix\.system, which has no place in an index"):
            read(path)
    assert not (tmp_path / "pwned").exists()


def test_a_pickled_value_in_a_shard_is_not_loaded(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with one_process_is_meant():
        torch_dcp.save({"w": Attack()}, checkpoint_id=tmp_path / "one")
    (tmp_path / "one" / "state.json").write_text('{"version": 1, "plain": {}}')
    reseal(tmp_path / "one")
    assert stored(tmp_path / "one") == {}
    with pytest.raises(ValueError, match=r"missing in the checkpoint \(1\): w"):
        load_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    load_dcp({"w": torch.zeros(1)}, tmp_path / "one", strict=False)
    assert not (tmp_path / "pwned").exists()


def test_a_piece_is_read_without_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = save_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    shard = path / "__0_0.distcp"
    torch.save(Attack(), attack := io.BytesIO())
    shard.write_bytes(attack.getvalue().ljust(shard.stat().st_size, b"\0"))
    index = read_index(path)
    for info in index.storage_data.values():
        info.length = shard.stat().st_size
    (path / ".metadata").write_bytes(pickle.dumps(index))
    reseal(path)
    with pytest.raises(RuntimeError, match="cannot load"):
        load_dcp({"w": torch.zeros(1)}, path)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize("name", ["../other/__0_0.distcp", "/etc/passwd", "..", ""])
def test_an_index_names_no_file_outside(name, tmp_path):
    path = save_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    index = read_index(path)
    for info in index.storage_data.values():
        info.relative_path = name
    (path / ".metadata").write_bytes(pickle.dumps(index))
    with pytest.raises(ValueError, match="names files outside of the checkpoint"):
        stored(path)


@pytest.mark.parametrize("content", [b"", b"noise", b"\x80\x04", pickle.dumps(3), pickle.dumps({"a": 1})])
def test_a_damaged_index_is_named(content, tmp_path):
    path = save_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    (path / ".metadata").write_bytes(content)
    with pytest.raises(ValueError, match=r"one/\.metadata is damaged"):
        stored(path)


def test_every_cut_of_an_index_is_an_error(tmp_path):
    path = save_dcp({"w": torch.zeros(1)}, tmp_path / "one")
    whole = (path / ".metadata").read_bytes()
    for size in range(len(whole)):
        (path / ".metadata").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is damaged"):
            read_index(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"version": 1}'])
def test_damaged_plain_values_are_named(content, tmp_path):
    path = save_dcp({"step": 1}, tmp_path / "one")
    (path / "state.json").write_text(content)
    with pytest.raises(ValueError, match=r"state\.json is damaged"):
        read_plain(path)


def test_a_later_version_is_refused(tmp_path):
    path = save_dcp({"step": 1}, tmp_path / "one")
    content = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps(content | {"version": 2}))
    with pytest.raises(ValueError, match=r"has version 2; this omni_ckpt reads version 1"):
        read_plain(path)
