"""How long each fused kernel takes, and how near it comes to the speed of memory; Liger's beside it where installed.

    python3 benchmarks/pointwise.py

One NVIDIA GPU with Triton is needed. GB/s counts the bytes that must move: each input once in, each output once out.
Caches are emptied between runs. Shapes are those of a layer of Qwen3-8B at 8,192 tokens, in bf16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from triton.testing import do_bench

from omni_models.fused import make_triton

T = 8192
Bench = tuple[Callable[[], Any], list[Tensor], int, int]
"""What to call, by what to differentiate, and the bytes that must move forward and backward."""


def main() -> None:
    """Print a row for each kernel and shape. Effect: runs them on the GPU."""
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print(f"{'':38}{'forward':>9}{'':10}{'backward':>10}")
    print(f"{'':38}{'us':>9}{'GB/s':>10}{'us':>10}{'GB/s':>10}")
    for name, (run, inputs, there, back) in {**_ours(), **_liger()}.items():
        with torch.no_grad():
            forward_us = do_bench(run, rep=200, return_mode="median") * 1e3
        outs = run()
        outs = outs if isinstance(outs, tuple) else (outs,)
        # Gradients of queries and keys lie in memory as attention gives them.
        grads = [torch.randn_like(out) for out in outs]

        def differentiate(outs: Any = outs, inputs: Any = inputs, grads: Any = grads) -> None:
            torch.autograd.grad(outs, inputs, grads, retain_graph=True)

        backward_us = do_bench(differentiate, rep=200, return_mode="median") * 1e3
        rates = (there / forward_us / 1e3, back / backward_us / 1e3)
        print(f"{name:38}{forward_us:9.1f}{rates[0]:10.0f}{backward_us:10.1f}{rates[1]:10.0f}", flush=True)


def _draw(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def _bytes(*tensors: Tensor) -> int:
    return sum(x.nbytes for x in tensors)


def _norm(run: Callable[..., Tensor], *shape: int) -> Bench:
    x, weight = _draw(*shape).requires_grad_(), _draw(shape[-1]).requires_grad_()
    return lambda: run(x, weight), [x, weight], 2 * _bytes(x), 3 * _bytes(x)


def _gate(run: Callable[..., Tensor]) -> Bench:
    gate, up = (_draw(1, T, 12288).requires_grad_() for _ in range(2))
    return lambda: run(gate, up), [gate, up], 3 * _bytes(gate), 5 * _bytes(gate)


def _turn(run: Callable[..., Any]) -> Bench:
    q, k = (_draw(1, T, heads, 128).transpose(1, 2).requires_grad_() for heads in (32, 8))
    angles = torch.outer(torch.arange(T, device="cuda").float(), 1e6 ** (-torch.arange(64, device="cuda") / 64)).repeat(
        1, 2
    )
    cos, sin = (x[None].bfloat16() for x in (angles.cos(), angles.sin()))
    moved = 2 * _bytes(q, k) + _bytes(cos, sin) // 2
    return lambda: run(q, k, cos, sin), [q, k], moved, moved


def _table(
    norm: Callable[..., Tensor], silu: Callable[..., Tensor], gelu: Callable[..., Tensor], rope: Callable[..., Any]
) -> dict[str, Bench]:
    return {
        f"rms_norm ({T}, 4096)": _norm(norm, 1, T, 4096),
        f"rms_norm ({T} x 32, 128)": _norm(norm, 1, T, 32, 128),
        f"rms_norm ({T} x 8, 128)": _norm(norm, 1, T, 8, 128),
        f"silu_mul ({T}, 12288)": _gate(silu),
        f"gelu_mul ({T}, 12288)": _gate(gelu),
        f"rope ({T}, 32 and 8 heads of 128)": _turn(rope),
    }


def _ours() -> dict[str, Bench]:
    kernels = make_triton()
    return _table(
        lambda x, weight: kernels.rms_norm(x, weight, 1e-6, 0.0, "llama"),
        kernels.silu_mul,
        kernels.gelu_mul,
        lambda q, k, cos, sin: kernels.rope(q, k, cos, sin, 128),
    )


def _liger() -> dict[str, Bench]:
    """Liger's functions, without the copies that keep them from writing over what they are given."""
    try:
        from liger_kernel.ops.geglu import LigerGELUMulFunction
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.rope import LigerRopeFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except ImportError:
        return {}
    table = _table(
        lambda x, weight: LigerRMSNormFunction.apply(x, weight, 1e-6, 0.0, "llama", False),
        LigerSiLUMulFunction.apply,
        LigerGELUMulFunction.apply,
        LigerRopeFunction.apply,
    )
    return {f"Liger's {name}": bench for name, bench in table.items()}


if __name__ == "__main__":
    main()
