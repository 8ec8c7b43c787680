import json
import os
import pickle
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from sealing import reseal

from omni_ckpt.dcp import load_dcp, save_dcp
from omni_ckpt.faults import Point
from omni_ckpt.layout import writing
from omni_ckpt.storage import read_plain

HERE = Path(__file__).parent
PLAIN = {
    "ints": [0, -1, 2**70, True, False],
    "floats": [0.1, -0.0, 1e-320, 1.7976931348623157e308, float("inf")],
    "text": ["", 'naïve\n"\\', "\ud800"],
    "nested": {"none": None, "lists": [[], [[1.0]]], "empty": {}},
}


def weights() -> dict[str, torch.Tensor]:
    """One of every kind: each would be written or read in its own way."""
    torch.manual_seed(0)
    return {
        "layers.0.weight": torch.randn(3, 5),
        "param": torch.nn.Parameter(torch.randn(4)),
        "bf16": torch.randn(2, 3).bfloat16(),
        "ints": torch.arange(7),
        "bools": torch.tensor([True, False]),
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": torch.randn(4, 6).T,
        "part": torch.randn(10, 10)[2:4, 3:5],
    }


def zeros(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}


def run(script: str, *args: object) -> None:
    subprocess.run([sys.executable, HERE / script, *map(str, args)], check=True, timeout=300)


def test_tensors_come_back_in_place_and_bit_equal(tmp_path):
    saved, here = weights(), zeros(weights())
    path = save_dcp({"state": {"model": saved}}, tmp_path / "one")
    loaded = load_dcp({"state": {"model": here}}, path)["state"]["model"]
    assert list(loaded) == list(saved)
    for name, tensor in saved.items():
        assert torch.equal(loaded[name], tensor) and loaded[name].dtype == tensor.dtype
        assert loaded[name] is here[name]


def test_plain_values_come_back_exactly(tmp_path):
    path = save_dcp(PLAIN, tmp_path / "one")
    blank = {"ints": 0, "floats": 0, "text": 0, "nested": {"none": 0, "lists": 0, "empty": {}}}
    for found in (load_dcp(blank, path), read_plain(path)):
        assert repr(found) == repr(PLAIN)  # Tells -0.0 from 0.0, and True from 1.
    assert blank["ints"] == 0


def test_a_plain_value_is_never_pickled(tmp_path):
    path = save_dcp({"model": {"w": torch.zeros(2)}, "step": 3, "text": "needle"}, tmp_path / "one")
    assert [file.name for file in path.iterdir() if b"needle" in file.read_bytes()] == ["state.json"]
    index = pickle.loads((path / ".metadata").read_bytes())
    assert list(index.state_dict_metadata) == ["model.w"]


def test_a_save_leaves_nothing_else(tmp_path):
    path = save_dcp({"w": torch.zeros(2)}, tmp_path / "deep" / "one")
    assert list(path.parent.iterdir()) == [path]
    assert {file.name for file in path.iterdir()} == {".metadata", "__0_0.distcp", "state.json", "MANIFEST.json"}


def test_everything_is_on_the_device_before_it_is_published(tmp_path, monkeypatch):
    events = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda f: (events.append(Path(f"/proc/self/fd/{f}").readlink().name), fsync(f)))
    monkeypatch.setattr(Path, "rename", lambda a, b: (events.append(f"rename {Path(b).name}"), rename(a, b))[1])
    save_dcp({"w": torch.zeros(2)}, tmp_path / "one")
    commit = events.index("rename one")
    assert {".metadata", "__0_0.distcp", "state.json", "MANIFEST.json"} <= set(events[:commit])
    assert events[commit - 1 :] == ["one.tmp", "rename one", tmp_path.name]


def test_a_checkpoint_is_never_overwritten(tmp_path):
    path = save_dcp({"step": 1}, tmp_path / "one")
    with pytest.raises(ValueError, match="never overwritten"):
        save_dcp({"step": 2}, path)
    assert read_plain(path) == {"step": 1}


def test_tensors_without_memory_are_refused_by_name(tmp_path):
    tree = {"here": torch.zeros(1), "there": torch.zeros(1, device="meta")}
    with pytest.raises(ValueError, match=r"meta device, which have no memory \(1\): there"):
        save_dcp(tree, tmp_path / "one")
    path = save_dcp({"here": torch.zeros(1), "there": torch.zeros(1)}, tmp_path / "one")
    with pytest.raises(ValueError, match=r"meta device, which have no memory \(1\): there"):
        load_dcp(tree, path)


def test_a_strict_load_tells_every_problem_at_once_and_touches_nothing(tmp_path):
    same = {f"same{i}": torch.ones(1) for i in range(9)}
    more = {"more": torch.ones(1), "bent": torch.ones(2), "cast": torch.ones(2)}
    path = save_dcp({"model": same | more, "step": 1, "old": 1}, tmp_path / "one")
    here = zeros(same) | {"lost": torch.zeros(1), "bent": torch.zeros(3), "cast": torch.zeros(2).bfloat16()}
    with pytest.raises(ValueError) as error:
        load_dcp({"model": here, "step": 0, "new": 0}, path)
    assert str(error.value).splitlines() == [
        f"cannot load {path}: it does not fit this run:",
        "  tensors missing in the checkpoint (1): model.lost",
        "  tensors unexpected in it (1): model.more",
        "  with another shape (1): model.bent (2,) is (3,) here",
        "  with another dtype, which would be cast (1): model.cast torch.float32 is torch.bfloat16 here",
        "  plain values missing in the checkpoint (1): new",
        "  plain values unexpected in it (1): old",
    ]
    assert not any(tensor.any() for tensor in here.values())


def test_floats_of_another_width_are_taken_where_they_are_to_be_cast(tmp_path):
    wide = torch.tensor([1.0, 3.14159, -1e-3])
    saved = {"moments": {"a": wide, "b": wide.bfloat16(), "n": torch.arange(3)}, "moments_not": wide, "model": wide}
    path = save_dcp(saved, tmp_path / "one")
    here = zeros(saved["moments"]) | {"a": torch.zeros(3).bfloat16(), "b": torch.zeros(3)}
    tree = {"moments": here, "moments_not": torch.zeros(3), "model": torch.zeros(3)}
    loaded = load_dcp(tree, path, casts=("moments",))
    assert torch.equal(loaded["moments"]["a"], wide.bfloat16())
    assert torch.equal(loaded["moments"]["b"], wide.bfloat16().float())
    for other in ({"moments_not": torch.zeros(3).half()}, {"model": torch.zeros(3).double()}):
        with pytest.raises(ValueError, match=rf"which would be cast \(1\): {next(iter(other))} torch.float32 is"):
            load_dcp(tree | other, path, casts=("moments",))
    with pytest.raises(ValueError, match=r"which would be cast \(1\): moments.n torch.int64 is torch.float32"):
        load_dcp(tree | {"moments": here | {"n": torch.zeros(3)}}, path, casts=("moments",))
    with pytest.raises(ValueError, match=r"which would be cast \(2\): moments.a"):
        load_dcp(tree, path)


def test_a_lenient_load_takes_what_fits_and_leaves_the_rest(tmp_path):
    saved = {"same": torch.ones(2), "more": torch.ones(1), "bent": torch.ones(2), "cast": torch.ones(2), "was": 1}
    path = save_dcp(saved | {"step": 1, "old": 1}, tmp_path / "one")
    here = {"same": torch.zeros(2), "lost": torch.zeros(1), "bent": torch.zeros(3), "cast": torch.zeros(2).bfloat16()}
    was = torch.zeros(1)
    loaded = load_dcp(here | {"was": was, "step": 0, "new": 5}, path, strict=False)
    assert {name: value.tolist() for name, value in loaded.items() if name in here} == {
        "same": [1, 1],
        "lost": [0],
        "bent": [0, 0, 0],
        "cast": [1, 1],
    }
    assert loaded["cast"].dtype == torch.bfloat16
    assert loaded["was"] is was
    assert (loaded["step"], loaded["new"], "old" in loaded) == (1, 5, False)


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
def test_a_damaged_shard_is_named(harm, tmp_path):
    path = save_dcp({"w": torch.ones(100)}, tmp_path / "one")
    shard = path / "__0_0.distcp"
    {
        "missing": shard.unlink,
        "truncated": lambda: os.truncate(shard, 200),
        "empty": lambda: os.truncate(shard, 0),
    }[harm]()
    with pytest.raises(ValueError, match=r"is damaged: 1 file\. .*__0_0\.distcp (is missing|has \d+ of \d+ bytes)"):
        load_dcp({"w": torch.zeros(100)}, path)


def test_a_shard_of_noise_is_an_error_that_names_the_checkpoint(tmp_path):
    path = save_dcp({"w": torch.ones(100)}, tmp_path / "one")
    shard = path / "__0_0.distcp"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    reseal(path)
    with pytest.raises(RuntimeError, match=f"cannot load {path}"):
        load_dcp({"w": torch.zeros(100)}, path)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"not a checkpoint: it has no \.metadata"):
        load_dcp({"step": 0}, tmp_path)


def test_a_failed_save_publishes_nothing_and_leaves_no_file(tmp_path):
    path = tmp_path / "one"
    sparse = torch.eye(3).to_sparse()
    with pytest.raises((ValueError, RuntimeError), match=f"cannot save {path}"):
        save_dcp({"w": torch.zeros(2), "sparse": sparse}, path)
    assert list(tmp_path.iterdir()) == []


def test_stale_files_of_a_killed_save_do_not_enter_the_next(tmp_path):
    path = tmp_path / "one"
    writing(path).mkdir()
    (writing(path) / "__7_0.distcp").write_text("stale")
    save_dcp({"w": torch.zeros(2)}, path)
    assert not (path / "__7_0.distcp").exists()


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    run("killed_main.py", folder)
    return json.loads((folder / "killed.json").read_text())


OLD, NEW, LAST = "step-00000001", "step-00000002", "step-00000003"


@pytest.mark.parametrize("way", ["save", "begin"])
@pytest.mark.parametrize("point", get_args(Point))
def test_killed_at_any_point_the_newest_checkpoint_is_whole_and_the_next_save_cleans_up(point, way, killed):
    left, found, *values = killed[f"{way} {point}"]
    if point in ("published", "pruned"):
        assert (found, values) == (NEW, [2, [2, 2, 2]])
        assert left == ([OLD, NEW] if point == "published" else [f"{OLD}.gone", NEW])
    else:
        assert (found, values) == (OLD, [1, [1, 1, 1]])
        assert left == ([OLD] if point == "staged" else [OLD, f"{NEW}.tmp"])
    assert killed[f"after {way} {point}"] == [[NEW, LAST], LAST, 3, [3, 3, 3]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What happened in each case of `ranks_main.py`, by rank; and its folder."""
    folder = tmp_path_factory.mktemp("ranks")
    started = [subprocess.Popen([sys.executable, HERE / "ranks_main.py", str(r), str(folder)]) for r in range(3)]
    try:
        assert [started[rank].wait(timeout=300) for rank in (0, 2)] == [0, -signal.SIGKILL]
        assert started[1].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()
    outcomes = [json.loads((folder / f"outcome-{r}.json").read_text()) for r in range(3)]
    return {case: [outcome.get(case) for outcome in outcomes] for case in outcomes[0]}, folder


def test_a_checkpoint_of_two_ranks_loads_on_three(ranks):
    assert ranks[0]["save on two"] == ["ok", "ok", None]
    assert ranks[0]["load on three"] == ["ok"] * 3


@pytest.mark.parametrize("saved_on", ["two", "three"])
def test_a_checkpoint_of_several_ranks_loads_on_one(saved_on, ranks):
    folder = ranks[1]
    expected = torch.load(folder / "two.pt")
    prefix = "state.model."
    params = [name.removeprefix(prefix) for name in expected if name.startswith(prefix)]
    names = {param: [n for n in expected if n.startswith(f"state.optimizer.{param}.")] for param in params}
    optimizer = {
        param: {name.rpartition(".")[2]: torch.zeros_like(expected[name]) for name in names[param]} for param in params
    }
    model = {param: torch.zeros_like(expected[prefix + param]) for param in params}
    loaded = load_dcp({"state": {"model": model, "optimizer": optimizer, "step": 0}}, folder / saved_on)["state"]
    assert loaded["step"] == 1
    assert len(expected) == 4 * len(params) == 20
    assert all(torch.equal(loaded["model"][param], expected[prefix + param]) for param in params)
    for param in params:
        for key, tensor in loaded["optimizer"][param].items():
            assert torch.equal(tensor, expected[f"state.optimizer.{param}.{key}"])


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("bad leaf", "ValueError: cannot save .*: rank 1: the tree has leaves"),
        ("full disk", r"OSError: \[Errno 27\] cannot save .*: rank 1: File too large: .*step-00000001.tmp"),
        ("full disk at the end", r"OSError: \[Errno 27\] cannot save .*: rank 0: File too large"),
        ("other path", "ValueError: cannot save .*: ranks 0 and 1 disagree on the path"),
        ("other names", "ValueError: cannot save .*: ranks 0 and 1 disagree on the names of the plain values"),
        (
            "begun on a full disk",
            r"OSError: \[Errno 28\] cannot save .*: rank 1: No space left on device: .*begun-full.tmp",
        ),
        ("damaged", r"ValueError: .*step-00000003 is damaged: 1 file. .*__1_0.distcp holds other bytes"),
        ("part of nobody", r"ValueError: cannot load (.|\n)*unexpected in it \(1\): own0"),
        ("one bent", r"ValueError: cannot load .*: rank 2: (.|\n)*shape \(1\): all \(1,\) is \(2,\) here"),
        ("elsewhere", "ValueError: cannot load .*: ranks 0 and 1 disagree on the path"),
    ],
)
def test_a_failure_of_one_rank_is_raised_by_all(case, message, ranks):
    assert [bool(re.match(message, outcome)) for outcome in ranks[0][case]] == [True] * 3, ranks[0][case]


def test_a_failed_save_of_ranks_publishes_nothing_and_the_next_one_works(ranks):
    assert ranks[0]["left"] == ["[]"] * 3
    assert ranks[0]["after"] == ["ok"] * 3
    shards = [f"__{rank}_0.distcp" for rank in range(3)]
    assert ranks[0]["files"] == [str([".metadata", "MANIFEST.json", *shards, "state.json"])] * 3


def test_ranks_may_hold_different_parts_of_a_tree(ranks):
    assert ranks[0]["parts"] == ["ok"] * 3


def test_one_rank_prunes_for_all(ranks):
    assert ranks[0]["pruned"] == [str(["step-00000001"]), "[]", "[]"]
    assert ranks[0]["kept"] == [str(["step-00000002", "step-00000003"])] * 3


def test_a_save_in_the_background_stores_what_was_and_leaves_the_default_group_free(ranks):
    assert ranks[0]["begun"] == ["ok"] * 3
    assert ranks[0]["threads"] == ["0"] * 3


def test_ranks_choose_the_newest_whole_checkpoint_together_and_set_the_damaged_aside(ranks):
    (told,) = set(ranks[0]["newest whole"])
    assert re.fullmatch(
        r"step-00000002: \[\['.*step-00000003/__1_0.distcp holds other bytes than were written'\]\]", told
    )
    names = ["step-00000001", "step-00000002", "step-00000003.damaged"]
    assert ranks[0]["set aside"] == [str(names)] * 3


def test_ranks_share_the_files_to_check_each_is_read_once_and_each_damage_is_found(ranks):
    assert (ranks[0]["nothing wrong"], ranks[0]["each is read once"]) == (["[]"] * 3, ["True"] * 3)
    files = [".metadata", "__0_0.distcp", "__1_0.distcp", "__2_0.distcp", "state.json"]
    assert ranks[0]["damages found"] == [str([[f"{file} holds other bytes than were written"] for file in files])] * 3


def test_a_peer_that_stops_or_dies_in_a_save_is_seen_and_nothing_is_published(ranks):
    assert "RuntimeError: " in ranks[0]["stopped"][0]
    assert "RuntimeError: " in ranks[0]["killed"][0]
    assert (ranks[0]["seconds to see it"][0], ranks[0]["seconds to see that"][0]) == ("True", "True")
    assert ranks[0]["nothing published"][0] == str([False, False])
