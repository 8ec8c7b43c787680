import pytest

from omni_ckpt import parse_fault


def test_a_fault_happens_at_its_point_and_rank_only(tmp_path):
    fault = parse_fault("written:rank0:full")
    fault("begun", tmp_path)
    parse_fault("written:rank1:full")("written", tmp_path)
    with pytest.raises(OSError, match="No space left"):
        fault("written", tmp_path)


@pytest.mark.parametrize("line", ["", "written", "written:rank0", "P3:rank0:kill", "written:one:kill", "begun:rank0:x"])
def test_what_is_no_fault_is_refused_with_how_to_write_one(line):
    with pytest.raises(ValueError, match="write POINT:rankN:DEED, with POINT one of staged, begun,"):
        parse_fault(line)
