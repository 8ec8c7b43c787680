import pytest
import torch

from omni_ckpt import load_dcp, newest_whole, newest_whole_together, save_dcp, set_aside, step_dir, steps
from omni_ckpt.faults import Fault


def save_three(root):
    return [save_dcp({"w": torch.full((100,), float(step))}, step_dir(root, step)) for step in (1, 2, 3)]


def test_the_newest_whole_one_is_chosen_and_the_reasons_are_told(tmp_path):
    one, two, three = save_three(tmp_path)
    assert newest_whole(tmp_path).path == three
    (three / "__0_0.distcp").unlink()
    (two / "MANIFEST.json").write_text("{")
    choice = newest_whole(tmp_path)
    assert choice.path == one
    assert list(choice.damaged) == [three, two]
    assert choice.damaged[three] == [f"{three / '__0_0.distcp'} is missing"]
    assert "MANIFEST.json is damaged" in choice.damaged[two][0]


def test_a_flipped_bit_is_found_where_every_file_is_read(tmp_path):
    _, two, three = save_three(tmp_path)
    Fault("published", 0, "flip")("published", three)
    assert newest_whole(tmp_path).path == three
    assert newest_whole_together(tmp_path).path == two


def test_what_is_damaged_is_set_aside_so_that_its_step_can_be_saved_again(tmp_path):
    _, two, three = save_three(tmp_path)
    (three / ".metadata").unlink()
    moved = set_aside(newest_whole(tmp_path))
    assert moved == {three: three.with_name(three.name + ".damaged")}
    assert moved[three].is_dir()
    assert steps(tmp_path)[-1] == two
    save_dcp({"w": torch.zeros(100)}, three)
    assert load_dcp({"w": torch.ones(100)}, three)["w"].sum() == 0


def test_nothing_whole_is_nothing_with_reasons(tmp_path):
    assert newest_whole(tmp_path) == newest_whole(tmp_path / "absent")
    assert newest_whole(tmp_path).path is None
    for path in save_three(tmp_path):
        (path / "state.json").write_text("")
    choice = newest_whole(tmp_path)
    assert choice.path is None
    assert len(choice.damaged) == 3


@pytest.mark.parametrize("name", ["state.json", ".metadata"])
def test_a_flipped_bit_of_a_small_file_is_seen_at_first_sight(name, tmp_path):
    _, two, three = save_three(tmp_path)
    whole = (three / name).read_bytes()
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        (three / name).write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        choice = newest_whole(tmp_path)
        assert choice.path == two
        assert choice.damaged[three] == [f"{three / name} holds other bytes than were written"]


def test_a_checkpoint_of_a_newer_version_is_refused_and_not_called_damaged(tmp_path):
    *_, three = save_three(tmp_path)
    manifest = three / "MANIFEST.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    for choose in (newest_whole, newest_whole_together):
        with pytest.raises(ValueError, match=r"MANIFEST\.json has version 2; this omni_ckpt reads 1: use a newer one"):
            choose(tmp_path)
