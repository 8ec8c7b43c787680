"""The toy with attention in its blocks, by several operators of which each can be kept."""

from collections import Counter
from typing import get_args, get_type_hints

import torch
import torch.distributed as dist
import torch.nn.attention.varlen
import torch.nn.functional as F
from torch import Tensor, nn
from toy import Block, Toy, make_toy

from omni_mesh import MeshSpec
from omni_parallel import ParallelPlan, RecomputeConfig, plan_parallel

KEEPS = get_args(get_type_hints(RecomputeConfig)["keep"])
RUNS: Counter[str] = Counter()
"""How often each operator of this file ran."""


@torch.library.custom_op("omni_test::attend", mutates_args=())
def attend(x_BH: Tensor, dropout_p: float = 0.0) -> Tensor:
    RUNS["attend"] += 1
    mask_BH = torch.rand_like(x_BH) >= dropout_p if dropout_p else torch.ones_like(x_BH)
    return torch.sin(x_BH) * mask_BH


def _save(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[0], output)


def _differentiate(ctx, dout_BH):
    x_BH, out_BH = ctx.saved_tensors
    return dout_BH * torch.cos(x_BH) * (out_BH != 0), None


attend.register_autograd(_differentiate, setup_context=_save)
_LIBRARY = torch.library.Library("omni_test", "FRAGMENT")
_LIBRARY.define("attend.shifted(Tensor x_BH, *, int shift) -> Tensor")
_LIBRARY.impl("attend.shifted", lambda x_BH, shift: RUNS.update(["shifted"]) or x_BH + shift, "CPU")


class Swapped(torch.autograd.Function):
    """Attention between two collectives, as of a sequence split over ranks."""

    @staticmethod
    def forward(ctx, x_BH: Tensor) -> Tensor:
        swapped_BH = torch.empty_like(x_BH)
        dist.all_to_all_single(swapped_BH, x_BH.contiguous())
        out_BH = attend(swapped_BH)
        ctx.save_for_backward(swapped_BH, out_BH)
        back_BH = torch.empty_like(out_BH)
        dist.all_to_all_single(back_BH, out_BH)
        return back_BH

    @staticmethod
    def backward(ctx, dout_BH: Tensor) -> Tensor:
        dback_BH = torch.empty_like(dout_BH)
        dist.all_to_all_single(dback_BH, dout_BH.contiguous())
        return _differentiate(ctx, dback_BH)[0]


class AttentionBlock(Block):
    """A block of a linear layer, attention and dropout; the last one needs what comes before it again."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.kind = "sdpa"

    def forward(self, x_BH: Tensor) -> Tensor:
        self.calls += 1
        h_BH = self.linear(self.norm(x_BH))
        match self.kind:
            case "sdpa":
                h_BH = F.scaled_dot_product_attention(*(h_BH[None, None],) * 3)[0, 0]
            case "operator":
                h_BH = attend(h_BH)
            case "overload":
                h_BH = h_BH.sin() * torch.ops.omni_test.attend.shifted(x_BH.detach(), shift=1)
            case "function":
                h_BH = Swapped.apply(h_BH)
            case "dropping":
                h_BH = attend(h_BH, dropout_p=0.5)
        return x_BH + self.drop(torch.tanh(h_BH))


def make_attention_toy(kind: str = "sdpa") -> Toy:
    model = make_toy()
    torch.manual_seed(0)
    model.layers = nn.ModuleList(AttentionBlock(7) for _ in model.blocks)
    for layer in model.layers:
        layer.kind = kind
    return model.train()


def plan_keep(keep: str, every: int = 1, matmuls: int = 0) -> ParallelPlan:
    return plan_parallel(make_toy(), MeshSpec(), recompute=RecomputeConfig(every, keep, matmuls))


def assert_same(plain: dict[str, Tensor], again: dict[str, Tensor]) -> None:
    assert plain.keys() == again.keys()
    for name, grad in plain.items():
        assert torch.equal(grad, again[name]), name
