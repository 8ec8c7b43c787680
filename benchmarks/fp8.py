"""What 8-bit linear layers gain: each product of Qwen3-8B's seven in bf16 and in 8 bits, and what quantizing costs.

    uv run benchmarks/fp8.py

Prints JSON lines, on one GPU of compute capability 8.9 or more. Microseconds are medians of calls that find nothing in
the cache. In the end the same for one block, which quantizes once what several of its layers take, and two layers as a
model calls them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from triton.testing import do_bench

from omni_parallel import ParallelPlan, apply_fp8
from omni_parallel.fp8 import GRADIENTS, VALUES, multiply, quantize

LAYERS = {
    "q, o": (4096, 4096, 2, ("o", "q, k, v")),
    "k, v": (4096, 1024, 2, ()),
    "gate, up": (4096, 12288, 2, ("gate, up",)),
    "down": (12288, 4096, 1, ("down",)),
}
"""Layers of one shape: features in and out, how many a block has, and the inputs of that width that it quantizes."""


@dataclass(frozen=True, slots=True)
class Config:
    """One measurement."""

    tokens: int = 8192
    device: str = "cuda"


def main(config: Config) -> None:
    """Measure and print. Effect: runs on a GPU."""
    totals: dict[str, float] = dict.fromkeys(("bf16", "fp8", "quantizing"), 0.0)
    for name, (K, N, layers, inputs) in LAYERS.items():
        products, casts = measure(config, K, N)
        for product, (plain, eight) in products.items():
            tera = 2 * config.tokens * K * N / 1e6
            row = {"layer": name, "K": K, "N": N, "product": product}
            row |= {"bf16_us": round(plain, 1), "bf16_tflops": round(tera / plain)}
            print(json.dumps(row | {"fp8_us": round(eight, 1), "fp8_tflops": round(tera / eight)}), flush=True)
            totals["bf16"] += layers * plain
            totals["fp8"] += layers * eight
        for cast, (microseconds, bytes_moved) in casts.items():
            row = {"layer": name, "quantize": cast, "us": round(microseconds, 1)}
            print(json.dumps(row | {"gb_per_s": round(bytes_moved / microseconds / 1e3)}), flush=True)
            totals["quantizing"] += microseconds * (len(inputs) if cast == "x" else layers)
    eight = totals["fp8"] + totals["quantizing"]
    print(json.dumps({"block_us": {k: round(v) for k, v in totals.items()}, "gain": round(totals["bf16"] / eight, 3)}))
    for K, N in ((4096, 4096), (4096, 12288)):
        print(json.dumps({"layer_and_gradients": [K, N], **whole(config, K, N)}), flush=True)
    print(json.dumps({"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "tokens": config.tokens}))


def measure(config: Config, K: int, N: int) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, int]]]:
    """Microseconds of each product, in bf16 and in 8 bits; and of each quantization, with the bytes that it moves."""
    T = config.tokens
    x_TK, w_NK, dy_TN = (draw(config, *sizes) for sizes in ((T, K), (N, K), (T, N)))
    x8, dy8 = quantize(x_TK, VALUES, turned=True), quantize(dy_TN, GRADIENTS, turned=True)
    w8 = quantize(w_NK, VALUES, turned=True)

    def by_eight(a: Tensor | None, b: Tensor | None, steps: tuple[Tensor, Tensor], fast: bool) -> Callable[[], Tensor]:
        assert a is not None and b is not None
        return partial(multiply, a, b, *steps, torch.bfloat16, fast=fast)

    products = {
        "y": (lambda: x_TK @ w_NK.T, by_eight(x8.rows_TK, w8.rows_TK, (x8.step, w8.step), True)),
        "dx": (lambda: dy_TN @ w_NK, by_eight(dy8.rows_TK, w8.turned_KP, (dy8.step, w8.step), False)),
        "dw": (lambda: dy_TN.T @ x_TK, by_eight(dy8.turned_KP, x8.turned_KP, (dy8.step, x8.step), False)),
    }
    # Two bytes are read twice, or once where the scale is known, and one is written for each copy.
    casts = {
        "x": (lambda: quantize(x_TK, VALUES, turned=True), 6 * x_TK.numel()),
        "w": (lambda: quantize(w_NK, VALUES), 5 * w_NK.numel()),
        "w again": (lambda: quantize(w_NK, VALUES, rows=False, turned=True, step=w8.step), 3 * w_NK.numel()),
        "dy": (lambda: quantize(dy_TN, GRADIENTS, turned=True), 6 * dy_TN.numel()),
    }
    return (
        {name: (timed(plain), timed(eight)) for name, (plain, eight) in products.items()},
        {name: (timed(cast), moved) for name, (cast, moved) in casts.items()},
    )


def whole(config: Config, K: int, N: int) -> dict[str, Any]:
    """Microseconds of a layer and its gradients, everything included."""
    x_TK = draw(config, config.tokens, K).requires_grad_()
    dy_TN = draw(config, config.tokens, N)
    found = {}
    for name in ("bf16", "fp8"):
        model = nn.Sequential(nn.Sequential(nn.Linear(K, N, bias=False))).to(config.device, torch.bfloat16)
        model = apply_fp8(model, ParallelPlan(blocks=("0",))) if name == "fp8" else model
        leaves = [x_TK, *model.parameters()]

        def step(model: nn.Module = model) -> None:
            model(x_TK).backward(dy_TN)

        found[f"{name}_us"] = round(timed(step, leaves))
    return found


def draw(config: Config, *sizes: int) -> Tensor:
    """Random numbers."""
    return torch.randn(*sizes, device=config.device, dtype=torch.bfloat16)


def timed(call: Callable[[], Any], leaves: list[Tensor] | None = None) -> float:
    """Microseconds of `call`, which adds no gradients up in `leaves`."""
    milliseconds = do_bench(call, warmup=50, rep=200, grad_to_none=leaves, return_mode="median")
    assert isinstance(milliseconds, float)
    return 1e3 * milliseconds


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
