"""A request of storage that fails is an error that names the place, and never "nothing is there" or "it is damaged"."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import pytest
import torch
from storage import add_storage, requests

from omni_ckpt import (
    as_place,
    check_together,
    glance,
    inspect,
    latest,
    load_dcp,
    newest_whole,
    newest_whole_together,
    prune,
    read_plain,
    save_dcp,
    set_aside,
    step_dir,
    step_of,
    steps,
    stored,
    to_prune,
    verify,
)
from omni_ckpt.faults import Fault
from omni_ckpt.layout import damaged, leftovers
from omni_ckpt.manifest import PIN_FILE
from omni_ckpt.places import entries, size_of

FAILURES = {
    "refused": lambda: OSError(errno.EACCES, "Forbidden"),
    "broken": lambda: OSError(errno.EIO, "Input/output error"),
    "late": lambda: TimeoutError("no answer after 60 s"),
    "of a library": lambda: RuntimeError("SlowDown: reduce your request rate"),
    "of a library, a ValueError": lambda: ValueError("EndpointConnectionError"),
}


def tree(value: float) -> dict[str, Any]:
    return {"w": torch.full((100,), float(value)), "metrics": {"loss": value}}


@pytest.fixture
def root(tmp_path):
    """Three checkpoints, of which the first is pinned and the last damaged."""
    add_storage()
    root = as_place(f"shelf://{tmp_path}/run")
    for step in (1, 2, 3, 4):
        save_dcp(tree(step), step_dir(root, step))
    (step_dir(root, 1) / PIN_FILE).write_text("")
    (step_dir(root, 4) / ".metadata").write_bytes(b"")
    return root


def failing(act: Callable[[], object], failure: Callable[[], Exception]) -> Iterator[str]:
    """What is said of `act()` if its first request fails, if the second does, and so on: each time something is."""
    for n in count():

        def fail(number: int, what: str, path: str, n: int = n) -> None:
            if number == n:
                raise failure()

        with requests(fail) as asked:
            try:
                act()
            except OSError as error:
                assert len(asked) > n, f"no request failed, and yet {error}"
                yield str(error)
            else:
                assert len(asked) <= n, f"nothing was said of request {n}, which failed: {asked[n]}"
                return


READS: dict[str, Callable[[Any], object]] = {
    "steps": steps,
    "latest": latest,
    "leftovers": leftovers,
    "newest_whole": newest_whole,
    "newest_whole_together": newest_whole_together,
    "to_prune": lambda root: to_prune(root, 1),
    "a free name": lambda root: damaged(step_dir(root, 4)),
    "glance": lambda root: glance(step_dir(root, 1)),
    "verify": lambda root: verify(step_dir(root, 1)),
    "check_together": lambda root: check_together(step_dir(root, 1)),
    "stored": lambda root: stored(step_dir(root, 1)),
    "read_plain": lambda root: read_plain(step_dir(root, 1)),
    "inspect": lambda root: inspect(step_dir(root, 1)),
    "load_dcp": lambda root: load_dcp(tree(0), step_dir(root, 1)),
}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("name", READS)
def test_whatever_request_of_a_reader_fails_it_is_said_and_where(name, kind, root):
    told = list(failing(lambda: READS[name](root), FAILURES[kind]))
    assert told
    for words in told:
        assert str(root) in words and str(FAILURES[kind]()).rpartition("] ")[2] in words


@pytest.mark.parametrize("kind", FAILURES)
def test_whatever_request_of_a_prune_fails_nothing_pinned_goes_nor_the_newest(kind, root):
    for words in failing(lambda: prune(root, 1), FAILURES[kind]):
        assert str(root) in words
        assert [verify(step_dir(root, step)).problems for step in (1, 3)] == [(), ()]
        assert newest_whole(root).path == step_dir(root, 3)
    assert [step_of(path) for path in steps(root)] == [1, 3, 4], "what is damaged is for a person to look at"


@pytest.mark.parametrize("kind", FAILURES)
def test_whatever_request_of_a_save_fails_nothing_that_is_there_is_lost(kind, root):
    told = []
    with pytest.raises(ValueError, match="never overwritten"):
        told.extend(failing(lambda: save_dcp(tree(9), step_dir(root, 3)), FAILURES[kind]))
    assert read_plain(step_dir(root, 3))["metrics"] == {"loss": 3}
    for words in failing(lambda: save_dcp(tree(5), step_dir(root, 5)), FAILURES[kind]):
        assert "cannot save" in words and str(root) in words
        assert newest_whole(root).path == step_dir(root, 3)
    assert load_dcp(tree(0), step_dir(root, 5))["w"].tolist() == [5.0] * 100


def test_whatever_request_of_setting_aside_fails_what_was_damaged_is_still_somewhere(root, tmp_path):
    whole = (step_dir(root, 4) / "__0_0.distcp").read_bytes()
    tries = []

    def act() -> None:
        shutil.copytree(tmp_path / "run", tmp_path / f"run-{len(tries)}")
        tries.append(as_place(f"{root}-{len(tries)}"))
        set_aside(newest_whole(tries[-1]))

    for _ in failing(act, FAILURES["broken"]):
        shards = [path / "__0_0.distcp" for path in entries(tries[-1]) if "00000004" in path.name]
        assert any(size_of(shard) == len(whole) and shard.read_bytes() == whole for shard in shards)
        assert newest_whole(tries[-1]).path == step_dir(tries[-1], 3)
    assert step_of(steps(tries[-1])[-1]) == 3


def test_on_a_disk_too_what_cannot_be_looked_at_is_not_absent(tmp_path):
    for step in (1, 2):
        save_dcp(tree(step), step_dir(tmp_path, step))
    pin = step_dir(tmp_path, 1) / PIN_FILE
    pin.symlink_to(pin)
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)) as error:
        prune(tmp_path, 1)
    assert str(pin) in str(error.value)
    assert len(steps(tmp_path)) == 2


def test_damage_is_still_damage(root):
    Fault("published", 0, "flip")("published", step_dir(root, 2))
    (step_dir(root, 3) / "state.json").unlink()
    assert list(newest_whole(root).damaged) == [step_dir(root, 4), step_dir(root, 3)]
    assert newest_whole_together(root).path == step_dir(root, 1)
