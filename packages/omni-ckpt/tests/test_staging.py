import pytest
import torch

import omni_ckpt.staging
from omni_ckpt.staging import fill_staging_, make_staging, staging_bytes

KINDS = {
    "matrix": torch.arange(15.0).view(3, 5),
    "transposed": torch.arange(24.0).view(4, 6).T,
    "part": torch.arange(100.0).view(10, 10)[2:4, 3:5],
    "bf16": torch.ones(3).bfloat16(),
    "bools": torch.tensor([True, False]),
    "scalar": torch.tensor(3, dtype=torch.int64),
    "empty": torch.empty(0, 3),
    "param": torch.nn.Parameter(torch.ones(2)),
}


@pytest.mark.parametrize("block", [1, 64, 200, 1 << 30])
def test_values_are_copied_whatever_their_kind_and_wherever_blocks_end(block, monkeypatch):
    monkeypatch.setattr(omni_ckpt.staging, "_BLOCK", block)
    staging = make_staging({"model": KINDS, "step": 3})
    shards = {f"model.{name}": tensor.detach() for name, tensor in KINDS.items()}
    fill_staging_(staging, shards)
    for name, shard in shards.items():
        assert torch.equal(staging.shards[name], shard)
        assert staging.shards[name].dtype == shard.dtype
        assert staging.shards[name].data_ptr() != shard.data_ptr() or not shard.numel()
    assert staging.nbytes == staging_bytes({"model": KINDS}) == sum(shard.nbytes for shard in shards.values())


def test_room_for_another_tree_is_refused():
    staging = make_staging({"w": torch.ones(3)})
    for other in ({"w": torch.ones(4)}, {"w": torch.ones(3).half()}, {"v": torch.ones(3)}, {}):
        with pytest.raises(ValueError, match="other names, shapes or dtypes"):
            fill_staging_(staging, other)


def test_one_save_at_a_time_uses_it():
    staging = make_staging({"w": torch.ones(3)})
    fill_staging_(staging, {"w": torch.ones(3)})
    with pytest.raises(ValueError, match="a save that uses this staging is under way"):
        fill_staging_(staging, {"w": torch.ones(3)})
    staging.busy.release()
    fill_staging_(staging, {"w": torch.ones(3)})


@pytest.mark.gpu
def test_what_a_gpu_holds_is_staged_in_pinned_memory():
    shards = {"w": torch.ones(1000, device="cuda")}
    staging = make_staging(shards)
    assert staging.shards["w"].is_pinned()
    fill_staging_(staging, shards)
    shards["w"].zero_()
    assert staging.shards["w"].sum() == 1000
