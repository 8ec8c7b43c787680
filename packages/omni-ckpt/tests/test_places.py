"""The laws of checkpoints, in storage that is no disk: the manifest is the commit."""

import sys
from pathlib import Path

import pytest
import torch
from fsspec.registry import _registry
from safetensors.torch import load_file
from storage import add_storage
from upath import UPath

from omni_ckpt import (
    as_place,
    begin_save_dcp,
    inspect,
    latest,
    load_dcp,
    merge_to_hf,
    newest_whole,
    newest_whole_together,
    prune,
    save_dcp,
    set_aside,
    step_dir,
    step_of,
    steps,
    verify,
)
from omni_ckpt.faults import Fault
from omni_ckpt.places import is_there, remove


def tree(value):
    return {"state": {"model": {"w": torch.full((1000,), float(value))}, "step": int(value)}}


@pytest.fixture(params=["memory", "shelf"])
def root(request, tmp_path):
    add_storage()
    place = as_place(f"{request.param}://{tmp_path}/run")
    yield place
    if is_there(place):
        remove(place)


def test_what_is_saved_comes_back(root):
    path = save_dcp(tree(1), step_dir(root, 1))
    other = begin_save_dcp(tree(2), step_dir(root, 2))()
    assert [step_of(found) for found in steps(root)] == [1, 2]
    assert latest(root) == other
    for place, value in ((path, 1), (other, 2)):
        loaded = load_dcp(tree(0), place)["state"]
        assert (loaded["step"], loaded["model"]["w"].tolist()) == (value, [float(value)] * 1000)
        assert verify(place).problems == ()
    assert list(inspect(path).tensors) == ["state.model.w"]
    assert {file.name for file in path.iterdir()} == {".metadata", "__0_0.distcp", "state.json", "MANIFEST.json"}


def test_without_its_manifest_it_is_not_there_and_can_be_saved_again(root):
    for step in (1, 2, 3):
        save_dcp(tree(step), step_dir(root, step))
    for step in (1, 3):
        (step_dir(root, step) / "MANIFEST.json").unlink()
    assert [step_of(found) for found in steps(root)] == [2]
    prune(root, 2)
    assert not step_dir(root, 1).exists(), "older than a whole one, it is a remainder"
    assert step_dir(root, 3).exists(), "newer, it may be being written"
    save_dcp(tree(3), step_dir(root, 3))
    assert load_dcp(tree(0), step_dir(root, 3))["state"]["step"] == 3
    with pytest.raises(ValueError, match="never overwritten"):
        save_dcp(tree(3), step_dir(root, 3))


def test_what_is_pruned_is_gone(root):
    for step in (1, 2, 3):
        save_dcp(tree(step), step_dir(root, step))
    prune(root, 1)
    assert [path.name for path in root.iterdir()] == ["step-00000003"]


def test_a_prune_that_stops_leaves_nothing_half_that_counts(root):
    for step in (1, 2):
        save_dcp(tree(step), step_dir(root, step))
    with pytest.raises(OSError, match="Input/output error"):
        prune(root, 1, at=Fault("pruned", 0, "broken"))
    assert [step_of(path) for path in steps(root)] == [2]
    prune(root, 1)
    assert [path.name for path in root.iterdir()] == ["step-00000002"]


def test_damage_is_found_and_set_aside(root):
    for step in (1, 2):
        save_dcp(tree(step), step_dir(root, step))
    Fault("published", 0, "flip")("published", step_dir(root, 2))
    assert newest_whole(root).path == step_dir(root, 2)
    choice = newest_whole_together(root)
    assert choice.path == step_dir(root, 1)
    set_aside(choice)
    assert sorted(path.name for path in root.iterdir()) == ["step-00000001", "step-00000002.damaged"]
    assert {file.name for file in (root / "step-00000002.damaged").iterdir()} >= {"MANIFEST.json", "__0_0.distcp"}
    save_dcp(tree(2), step_dir(root, 2))


@pytest.mark.parametrize("point", ["begun", "writing", "written", "indexed"])
def test_a_save_that_fails_leaves_nothing_that_counts_and_the_next_one_works(point, root):
    save_dcp(tree(1), step_dir(root, 1))
    with pytest.raises(OSError, match="No space left on device"):
        save_dcp(tree(3), step_dir(root, 2), at=Fault(point, 0, "full"))
    assert latest(root) == step_dir(root, 1)
    save_dcp(tree(2), step_dir(root, 2))
    assert load_dcp(tree(0), step_dir(root, 2))["state"]["step"] == 2


@pytest.mark.parametrize("point", ["sealed", "published"])
def test_a_save_that_fails_after_its_manifest_is_written_is_told_and_is_there(point, root):
    save_dcp(tree(1), step_dir(root, 1))
    with pytest.raises(OSError, match="No space left on device"):
        save_dcp(tree(2), step_dir(root, 2), at=Fault(point, 0, "full"))
    assert latest(root) == step_dir(root, 2)
    assert verify(step_dir(root, 2)).problems == ()
    assert load_dcp(tree(0), step_dir(root, 2))["state"]["model"]["w"].tolist() == [2.0] * 1000


def test_a_merge_reads_from_it(root, tmp_path):
    merge_to_hf(save_dcp(tree(1), step_dir(root, 1)), tmp_path / "hf")
    assert load_file(tmp_path / "hf" / "model.safetensors")["w"].tolist() == [1.0] * 1000


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_url_of_a_disk_is_a_path_which_is_flushed_and_renamed(protocol, tmp_path):
    root = as_place(f"{protocol}://{tmp_path}/run")
    assert type(root) is type(tmp_path) and root == as_place(UPath(f"{protocol}://{tmp_path}/run")) == tmp_path / "run"
    with pytest.raises(OSError, match=r"No space left on device: .*step-00000001\.tmp"):
        save_dcp(tree(1), step_dir(root, 1), at=Fault("writing", 0, "full"))


def test_a_url_is_not_to_be_a_path_and_needs_its_library(monkeypatch):
    for spoilt in (Path("s3://bucket/run"), "s3:/bucket/run"):
        with pytest.raises(ValueError, match="was a URL, which a Path has spoilt"):
            as_place(spoilt)
    monkeypatch.setitem(sys.modules, "upath", None)
    with pytest.raises(ValueError, match=r"s3://bucket/run is a URL, for which omni-ckpt\[remote\]"):
        as_place("s3://bucket/run")


@pytest.mark.parametrize(("url", "package"), [("s3://bucket/run", "s3fs"), ("gs://bucket/run", "gcsfs")])
def test_a_url_whose_storage_has_no_library_here_names_it(url, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(_registry, url.partition(":")[0], raising=False)
    with pytest.raises(ValueError, match=rf"needs a package that is not installed: .*nstall {package} "):
        as_place(url)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s4://bucket/run", r"s4:// is no storage that is known here\. Did you mean s3://\?"),
        ("S3://bucket/run", r"S3:// is no storage that is known here\. Did you mean s3://\?"),
        ("://bucket/run", r":// is no storage that is known here"),
        ("memory://run?token=hunter2", r"a URL of memory:// has \? in it: a place has no query and no pattern"),
        ("memory://run*/a", r"a URL of memory:// has \* in it"),
    ],
)
def test_a_url_that_is_no_place_is_refused_without_its_secrets(url, told):
    with pytest.raises(ValueError, match=told) as error:
        as_place(url)
    assert "hunter2" not in str(error.value)
