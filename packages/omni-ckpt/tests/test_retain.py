import re
from pathlib import Path

import pytest
import torch

from omni_ckpt import Retention, prune, save_dcp, step_dir, step_of, steps, to_prune, verify
from omni_ckpt.layout import writing
from omni_ckpt.manifest import PIN_FILE


def save(root: Path, *numbers: int, **losses: float) -> list[Path]:
    """Checkpoints, which have the loss of `losses` if one is given for them ("s3")."""
    return [
        save_dcp(
            {"w": torch.ones(3), "metrics": {"loss": losses[f"s{step}"]} if f"s{step}" in losses else {}},
            step_dir(root, step),
        )
        for step in numbers
    ]


def pruned(root: Path, keep: int | Retention) -> list[int]:
    return [step_of(path) for path in to_prune(root, keep)]


def test_the_newest_are_kept(tmp_path):
    save(tmp_path, 1, 2, 3)
    assert [pruned(tmp_path, keep) for keep in (1, 2, 3, 9)] == [[1, 2], [1], [], []]


def test_every_so_many_steps_one_is_kept(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    assert pruned(tmp_path, Retention(newest=1, every=2)) == [1, 3]


def test_the_best_are_kept_by_a_number_among_the_plain_values(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, s1=2.0, s2=1.0, s3=float("nan"), s4=1.5)
    assert pruned(tmp_path, Retention(newest=1, best=1)) == [1, 3, 4]
    assert pruned(tmp_path, Retention(newest=1, best=2)) == [1, 3]
    assert pruned(tmp_path, Retention(newest=1, best=1, metric="metrics.accuracy")) == [1, 2, 3, 4]


def test_the_pinned_are_kept_and_verify(tmp_path):
    (one, *_) = save(tmp_path, 1, 2, 3)
    (one / PIN_FILE).touch()
    assert pruned(tmp_path, 1) == [2]
    assert verify(one).problems == ()


def test_only_whole_checkpoints_count_and_others_are_left_alone(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5)
    for step, file in ((3, "MANIFEST.json"), (4, "__0_0.distcp")):
        (step_dir(tmp_path, step) / file).unlink()
    (step_dir(tmp_path, 5) / "__0_0.distcp").write_bytes(b"short")
    for step in (6, 7, 8, 9, 10):
        writing(step_dir(tmp_path, step)).mkdir()
    assert pruned(tmp_path, 2) == []
    assert prune(tmp_path, 1) == [step_dir(tmp_path, 1)]
    assert [step_of(path) for path in steps(tmp_path)] == [2, 3, 4, 5]


def test_what_is_pruned_is_gone(tmp_path):
    one, two, three = save(tmp_path, 1, 2, 3)
    assert prune(tmp_path, 2) == [one]
    assert sorted(tmp_path.iterdir()) == [two, three]
    assert prune(tmp_path, 2) == []


def test_what_cannot_be_meant_is_refused_all_at_once(tmp_path):
    with pytest.raises(ValueError, match="newest=0"):
        to_prune(tmp_path, 0)
    with pytest.raises(ValueError) as error:
        prune(tmp_path, Retention(newest=0, every=0, best=-1))
    assert re.findall(r"\w+=-?\d", str(error.value)) == ["newest=0", "every=0", "best=-1"]
