"""apps/pretrain.py for measuring: no checkpoint, and on request a profile of some steps, or routers overruled.

    uv run benchmarks/bench.py --model qwen3-30b-12 --tokenizer bytes --seq-len 8192 --batch 2 --ep 2 --balanced

Balanced routing gives every expert the same number of tokens, whatever the router says: what perfect balance would be
worth. Such a run learns nothing that counts. Weights of choices stay the router's.
"""

import gzip
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from copies import use_copies
from measure import ROOT
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel

sys.path.insert(0, str(ROOT / "apps"))

import decide as deciding
import place as placing
import pretrain
import request
from decide import decide
from decision import Decision
from preflight import start
from resume import Keeper

from omni_mesh import Mesh
from omni_models.experts import is_experts
from omni_parallel import ParallelPlan, shard_fsdp

# The first that matches the name of a kernel says what it does.
KINDS: Final = {
    "exchange of rows": r"SendRecv",
    "gathers and reductions": r"nccl",
    "attention": r"flash|fmha|attn|FlashAttention",
    "matrix products": r"gemm|cutlass|nvjet|sm90_xmma|cublas",
    "optimizer": r"adam",
    "rows of experts": r"_spread|_sum_rows|_grad_rows|silu_halves",
    "norms, positions": r"rms_norm|rope",
    "index, gather, sort": r"index|gather|scatter|[sS]ort|scan|radix",
    "copies and casts": r"Memcpy|Memset|copy|cat|CatArray|fill",
}
WAITS: Final = r"cudaStreamSynchronize|cudaDeviceSynchronize|cudaEventSynchronize"


@dataclass(frozen=True)
class Config(request.Config):
    """One run to measure."""

    balanced: bool = False
    """Overrule the routers."""
    copies: bool = False
    """Gather parameters and exchange gradients by copies between the GPUs of this host."""
    profile_at: int | None = None
    """After so many steps, profile three on the first rank, and print where their time went."""
    trace: Path | None = None
    """Where the trace of these steps is written (.json.gz)."""


def main(config: Config) -> None:
    """Train as `config` says and keep nothing but the metrics. Effect: as of the app."""
    Keeper.save = lambda *args, **kwargs: None
    Keeper.make_room = lambda *args, **kwargs: None
    pretrain.decide = partial(decide_otherwise, config)  # pyright: ignore[reportAttributeAccessIssue]
    if config.profile_at is not None:
        if config.profile_at + 3 >= config.steps:
            raise ValueError(f"steps={config.steps} ends before three steps after profile_at are seen: run longer.")
        watched = watch(pretrain.accumulate_grads_, config.profile_at, 3, config.trace)
        pretrain.accumulate_grads_ = watched  # pyright: ignore[reportAttributeAccessIssue]
    if config.copies:
        placing.shard_fsdp = shard_by_copies  # pyright: ignore[reportAttributeAccessIssue]
    pretrain.main(config)


def shard_by_copies(
    model: PreTrainedModel, mesh: Mesh, plan: ParallelPlan, *, param_dtype: torch.dtype
) -> PreTrainedModel:
    """What `shard_fsdp` makes of `model`, whose ranks read from each other. Donates `model`."""
    return use_copies(shard_fsdp(model, mesh, plan, param_dtype=param_dtype), param_dtype)


def decide_unsaved(config: request.Config) -> Decision:
    """What the app decides, which need not have room for checkpoints. Effect: as of the app."""
    deciding.check_room = lambda *args: None  # pyright: ignore[reportAttributeAccessIssue]
    return decide(config)


def decide_otherwise(config: Config, given: request.Config) -> Decision:
    """What the app decides, but for what is asked here."""
    run = decide_unsaved(given)
    if config.balanced:
        for experts in filter(is_experts, run.model.modules()):
            experts.register_forward_pre_hook(choose_in_turn)
    return run


def choose_in_turn(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same call of experts, whose choices go round all of them."""
    x_TH, expert_TK, *rest = args
    (T, K), E = expert_TK.shape, module.num_experts
    assert isinstance(E, int)
    return x_TH, go_round(T, K, E, expert_TK.device), *rest


@cache
def go_round(T: int, K: int, E: int, device: torch.device) -> torch.Tensor:
    """Experts of each token, (T, K) int64; those of a token lie far apart, so that they are not all on one rank."""
    token_T1, apart_K = (torch.arange(n, device=device) for n in (T, K))
    return (token_T1[:, None] + apart_K * (E // K)) % E


def watch(step: Callable[..., Any], first: int, steps: int, to: Path | None) -> Callable[..., Any]:
    """The function `step`, called once a step, profiled from the call after `first` to the call `steps` later."""
    profiler = profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU])
    calls = 0

    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        if calls in (first, first + steps) and torch.cuda.is_available():
            torch.cuda.synchronize()
        if torch.distributed.get_rank() == 0 and calls == first:
            profiler.start()
        if torch.distributed.get_rank() == 0 and calls == first + steps:
            profiler.stop()
            tell(profiler, steps, to)
        calls += 1
        return step(*args, **kwargs)

    return watched


def tell(profiler: profile, steps: int, to: Path | None) -> None:
    """Print milliseconds a step by kind of kernel, and how often the host waited. Effect: writes the trace to `to`."""
    events: Iterable[Any] = profiler.events() or ()
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA and not e.is_user_annotation]
    by_kind, by_name = Counter[str](), Counter[str]()
    for event in kernels:
        kind = next((kind for kind, name in KINDS.items() if re.search(name, event.name)), "elementwise")
        by_kind[kind] += event.time_range.elapsed_us()
        by_name[f"{kind}: {event.name[:110]}"] += event.time_range.elapsed_us()
    waits = Counter(e.name for e in events if re.fullmatch(WAITS, e.name))
    busy, end = 0.0, 0.0
    for begin, stop in sorted((e.time_range.start, e.time_range.end) for e in kernels):
        busy, end = busy + max(0.0, stop - max(begin, end)), max(end, stop)
    print(f"the device was busy for {busy / steps / 1e3:.1f} milliseconds a step")
    for title, table in (("kind", by_kind), ("kernel", by_name)):
        print(f"milliseconds a step by {title}, {sum(table.values()) / steps / 1e3:.1f} in sum")
        for name, micros in table.most_common(45):
            print(f"  {micros / steps / 1e3:8.2f}  {name}")
    print(f"waits of the host in {steps} steps: {dict(waits)}", flush=True)
    if to is not None:
        with TemporaryDirectory() as folder:
            profiler.export_chrome_trace(str(Path(folder, "trace.json")))
            to.write_bytes(gzip.compress(Path(folder, "trace.json").read_bytes(), mtime=0))


if __name__ == "__main__":
    start(main, decide_unsaved, Config, __doc__)
