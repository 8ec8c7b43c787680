"""Laws of adapters on several ranks: loss and every gradient are those of plain peft on one."""

import copy

import pytest
import torch
from adapting import TOLERANCE, Adapted, check, check_held, check_seeing
from quick_products import quick_products
from ranks import Run

from omni_mesh import MeshConfig, MeshSpec
from omni_models import LoraSettings, add_lora, build_model, describe, read_config
from omni_parallel import apply_fp8, plan_parallel

SOME = LoraSettings(rank=4, alpha=8, targets=("q_proj", "v_proj"))
DENSE = LoraSettings(rank=3, alpha=6, targets=("q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"))
LATE = LoraSettings(rank=2, alpha=4, targets=(r".*layers\.1\.self_attn\.(k|o)_proj",))
HEAD = LoraSettings(rank=2, alpha=4, targets=("k_proj",), save=("lm_head", "model.norm"))
CASES = {
    "one rank": (1, Adapted("llama", MeshConfig(), DENSE)),
    "shard 2": (2, Adapted("llama", MeshConfig(shard=2), DENSE)),
    "shard 2, recomputed": (2, Adapted("llama", MeshConfig(shard=2), SOME, recompute=True)),
    "shard 2, in tiles": (2, Adapted("llama", MeshConfig(shard=2), DENSE, tile=20)),
    "shard 2, the last block alone": (2, Adapted("llama", MeshConfig(shard=2), LATE)),
    "shard 2, with the head": (2, Adapted("llama", MeshConfig(shard=2), HEAD)),
    "replicate 2": (2, Adapted("llama", MeshConfig(replicate=2), SOME)),
    "sp 2": (2, Adapted("llama", MeshConfig(shard=1, sp=2), SOME)),
    "sp 2, recomputed": (2, Adapted("llama", MeshConfig(shard=1, sp=2), DENSE, recompute=True)),
    "sp 2 x shard 2, queries alone": (4, Adapted("llama", MeshConfig(shard=2, sp=2), LATE)),
    "ep 2": (2, Adapted("qwen3_moe", MeshConfig(shard=2, ep=2), SOME)),
    "ep 2, the last block alone": (2, Adapted("qwen3_moe", MeshConfig(shard=2, ep=2), LATE)),
    "ep 2, recomputed": (
        2,
        Adapted("deepseek_v3", MeshConfig(shard=2, ep=2), LoraSettings(2, 4, ("q_b_proj", "o_proj")), recompute=True),
    ),
    "sp 2 x shard 2, ep 2": (4, Adapted("qwen3_moe", MeshConfig(shard=2, sp=2, ep=2), SOME)),
}
BOTH = LoraSettings(rank=2, alpha=4, targets=("qkv", "q_proj", "v_proj"))
TOWER = LoraSettings(rank=2, alpha=4, targets=(r".*visual\.blocks.*(qkv|proj|linear_fc1)",))
TEXT = LoraSettings(rank=2, alpha=4, targets=(r".*language_model.*(q|v)_proj",))
SEEING = {
    "both, shard 2": (2, Adapted("qwen3_vl", MeshConfig(shard=2), BOTH)),
    "the tower, sp 2": (2, Adapted("qwen3_vl", MeshConfig(shard=1, sp=2), TOWER)),
    "text, shard 2": (2, Adapted("qwen2_5_vl", MeshConfig(shard=2), TEXT, recompute=True)),
    "both, ep 2": (2, Adapted("qwen3_vl_moe", MeshConfig(shard=2, ep=2), BOTH)),
}


@pytest.mark.parametrize("name", CASES)
def test_loss_and_every_gradient_equal_plain_peft(name: str, run: Run) -> None:
    error, whose, count = run(check, *CASES[name])[0]
    assert error <= TOLERANCE and count, whose


@pytest.mark.parametrize("name", ["shard 2", "ep 2"])
def test_frozen_weights_held_in_the_dtype_of_compute_change_no_bit(name: str, run: Run) -> None:
    ranks, case = CASES[name]
    assert run(check_held, ranks, case)[0] >= 8


def test_linear_layers_in_8_bits_keep_their_adapters() -> None:
    ids = torch.arange(32)[None]
    plain = build_model(read_config("tiny"))
    plan = plan_parallel(describe(plain), MeshSpec())
    plain = apply_fp8(plain, plan)
    model = add_lora(copy.deepcopy(plain), LoraSettings(rank=16))
    with quick_products():
        assert torch.equal(model(ids).logits, plain(ids).logits)
        model(ids).logits.square().mean().backward()
    assert all((param.grad is not None) == param.requires_grad for param in model.parameters())


@pytest.mark.parametrize("name", SEEING)
def test_adapters_of_towers_and_of_text_equal_plain_peft(name: str, run: Run) -> None:
    error, whose, count = run(check_seeing, *SEEING[name])[0]
    assert error <= TOLERANCE and count, whose
