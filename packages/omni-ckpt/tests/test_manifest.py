"""Laws of the manifest: what is not what was written is noticed before it is used, and named."""

import json
import os

import pytest
import torch
from sealing import reseal

from omni_ckpt import Fault, check_together, dcp, glance, load_dcp, merge_to_hf, save_dcp, stored, verify
from omni_ckpt.manifest import MANIFEST_FILE, read_manifest, seal, write_manifest
from omni_ckpt.storage import check_coverage, read_index

FILES = (".metadata", "__0_0.distcp", "state.json")


@pytest.fixture
def saved(tmp_path):
    return save_dcp({"state": {"model": {"w": torch.ones(100), "v": torch.arange(3)}, "step": 1}}, tmp_path / "one")


def tree():
    return {"state": {"model": {"w": torch.zeros(100), "v": torch.zeros(3, dtype=torch.int64)}, "step": 0}}


def test_the_manifest_is_of_every_file_as_it_is_on_disk(saved):
    assert read_manifest(saved) == {name: seal(saved / name) for name in FILES}
    report = verify(saved)
    assert report.problems == ()
    assert (report.path, report.files) == (saved, 3)
    assert report.nbytes == sum((saved / name).stat().st_size for name in FILES)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_anywhere_is_found_and_nothing_is_loaded(name, saved):
    whole = (saved / name).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 20)):
        (saved / name).write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert verify(saved).problems == (f"{saved / name} holds other bytes than were written",)
        here = tree()
        with pytest.raises((ValueError, RuntimeError), match=str(saved)):
            load_dcp(here, saved)
        assert not here["state"]["model"]["w"].any()
    (saved / name).write_bytes(whole)
    assert load_dcp(tree(), saved)["state"]["step"] == 1


def test_a_flipped_bit_of_a_tensor_is_named_and_never_merged(saved, tmp_path):
    shard = saved / "__0_0.distcp"
    whole = shard.read_bytes()
    at = whole.index(torch.ones(1).numpy().tobytes() * 100)
    shard.write_bytes(whole[: at + 3] + bytes([whole[at + 3] ^ 0x40]) + whole[at + 4 :])
    with pytest.raises(ValueError, match=r"damaged: 1 file\. .*__0_0\.distcp holds other bytes than were written"):
        load_dcp(tree(), saved)
    with pytest.raises(ValueError, match="holds other bytes than were written"):
        merge_to_hf(saved, tmp_path / "hf")
    assert not (tmp_path / "hf").exists()
    loaded = load_dcp(tree(), saved, check=False)
    assert loaded["state"]["model"]["w"].sum() != 100, "unasked, it would have trained on"


def test_files_that_are_missing_cut_or_strange_are_named(saved):
    (saved / "state.json").unlink()
    os.truncate(saved / "__0_0.distcp", 5)
    (saved / "__9_0.distcp").write_text("of another save")
    sizes = read_manifest(saved)
    assert verify(saved).problems == (
        f"{saved / '__0_0.distcp'} has 5 of {sizes['__0_0.distcp'].size} bytes",
        f"{saved / 'state.json'} is missing",
    )
    assert verify(saved).strange == (f"{saved / '__9_0.distcp'} is in no manifest",)


HARMS = {
    "nothing": lambda path: None,
    "a stray file": lambda path: (path / "notes.txt").write_text("mine"),
    "a missing shard": lambda path: (path / "__0_0.distcp").unlink(),
    "a short shard": lambda path: os.truncate(path / "__0_0.distcp", 5),
    "a flipped bit": lambda path: Fault("published", 0, "flip")("published", path),
    "other plain values": lambda path: (path / "state.json").write_text("{}"),
    "no index": lambda path: (path / ".metadata").unlink(),
    "no manifest": lambda path: (path / MANIFEST_FILE).unlink(),
    "a broken manifest": lambda path: (path / MANIFEST_FILE).write_text("{"),
    "an empty manifest": lambda path: write_manifest(path, {}),
    "a link": lambda path: link_out(path / "__0_0.distcp"),
    "a link for a manifest": lambda path: link_out(path / MANIFEST_FILE),
}


def link_out(file):
    elsewhere = file.rename(file.parent.parent / f"elsewhere{file.name}")
    file.symlink_to(elsewhere)


@pytest.mark.parametrize("harm", HARMS)
def test_verify_a_run_that_chooses_and_a_load_find_the_same_wrong(harm, saved):
    HARMS[harm](saved)
    try:
        verified = list(verify(saved).problems)
    except ValueError as problem:
        verified = [str(problem)]
    assert check_together(saved) == verified
    assert set(glance(saved)) <= set(verified)
    assert bool(verified) == (harm not in ("nothing", "a stray file"))
    if verified:
        with pytest.raises(ValueError, match=str(saved)):
            load_dcp(tree(), saved)
    else:
        assert load_dcp(tree(), saved)["state"]["step"] == 1


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_a_checkpoint_is_not_followed_and_one_within_is(name, saved):
    link_out(saved / name)
    assert verify(saved).problems == (f"{saved / name} is a link out of the checkpoint",)
    for check in (True, False):
        with pytest.raises(ValueError, match="is a link out of the checkpoint"):
            load_dcp(tree(), saved, check=check)
    (saved / name).unlink()
    (saved.parent / f"elsewhere{name}").rename(saved / "real")
    (saved / name).symlink_to("real")
    assert verify(saved).problems == ()
    assert load_dcp(tree(), saved)["state"]["step"] == 1


def test_without_a_manifest_it_is_no_checkpoint(saved):
    (saved / MANIFEST_FILE).unlink()
    with pytest.raises(ValueError, match=r"not a checkpoint of omni_ckpt: it has no MANIFEST\.json"):
        verify(saved)
    with pytest.raises(ValueError, match=r"it has no MANIFEST\.json"):
        load_dcp(tree(), saved)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: "", "is damaged"),
        (lambda content: "{", "is damaged"),
        (lambda content: "[]", "is damaged"),
        (lambda content: json.dumps(content | {"files": {"a": {}}}), "is damaged"),
        (
            lambda content: json.dumps(content | {"version": 2}),
            "has version 2; this omni_ckpt reads 1: use a newer one",
        ),
        (lambda content: json.dumps(content | {"digest": "crc32"}), "has version 1 with crc32"),
        (
            lambda content: json.dumps(content | {"files": {"../a": {"size": 1, "digest": ""}}}),
            r"names files outside of the checkpoint: \.\./a",
        ),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused(change, told, saved):
    file = saved / MANIFEST_FILE
    file.write_text(change(json.loads(file.read_text())))
    with pytest.raises(ValueError, match=rf"MANIFEST\.json {told}"):
        verify(saved)


def test_what_was_not_written_whole_is_no_checkpoint(saved):
    """A writer that loses a piece says nothing; its index or its file does."""
    sizes = {name: sealed.size for name, sealed in read_manifest(saved).items()}
    check_coverage(read_index(saved), sizes)
    with pytest.raises(RuntimeError, match=r"2 tensors were not written whole: state\.model\.w, state\.model\.v"):
        check_coverage(read_index(saved), {})
    lost = read_index(saved)
    where = next(key for key in lost.storage_data if key.fqn == "state.model.w")
    del lost.storage_data[where]
    with pytest.raises(RuntimeError, match=r"1 tensors were not written whole: state\.model\.w"):
        check_coverage(lost, sizes)
    partly = read_index(saved)
    partly.state_dict_metadata["state.model.w"].chunks.clear()
    with pytest.raises(RuntimeError, match=r"1 tensors were not written whole: state\.model\.w"):
        check_coverage(partly, sizes)


def test_a_file_changed_and_sealed_again_is_another_file(saved):
    (saved / "state.json").write_text((saved / "state.json").read_text().replace("1", "1 "))
    assert verify(saved).problems
    assert verify(reseal(saved)).problems == ()
    assert stored(saved).keys() == {"state.model.w", "state.model.v"}


def test_no_checkpoint_is_published_that_was_not_written_whole(tmp_path, monkeypatch):
    def lose(*args):
        raise RuntimeError("1 tensors were not written whole: w.")

    monkeypatch.setattr(dcp, "check_coverage", lose)
    with pytest.raises(RuntimeError, match="not written whole"):
        save_dcp({"w": torch.ones(3)}, tmp_path / "step-00000001")
    assert not (tmp_path / "step-00000001").exists()
