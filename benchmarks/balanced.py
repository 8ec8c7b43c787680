"""apps/pretrain.py with routers overruled: every expert gets the same number of tokens, whatever the router says.

    uv run benchmarks/balanced.py --model qwen3-30b-12 --tokenizer bytes --seq-len 8192 --batch 2 --ep 2

What balanced routing would be worth; the run learns nothing that counts. Weights of choices stay the router's.
"""

import sys
from typing import Any

import torch
from measure import ROOT
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

sys.path.insert(0, str(ROOT / "apps"))

import pretrain
from decide import decide
from preflight import start
from request import Config

from omni_models.experts import is_experts


def main(config: Config) -> None:
    """Train as `config` says, with experts chosen in turn. Effect: as of the app."""
    handle = register_module_forward_pre_hook(choose_in_turn)
    try:
        pretrain.main(config)
    finally:
        handle.remove()


def choose_in_turn(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The same call of experts, whose choices go round all of them."""
    if not is_experts(module):
        return None
    x_TH, expert_TK, *rest = args
    turns = torch.arange(expert_TK.numel(), device=expert_TK.device) % module.num_experts  # pyright: ignore[reportOperatorIssue]
    return x_TH, turns.view(expert_TK.shape), *rest


if __name__ == "__main__":
    start(main, decide, Config, __doc__)
