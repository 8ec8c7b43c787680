"""FlashAttention-4 as two operators of torch, its forward and its backward pass (Dao et al., github.com/Dao-AILab).

As operators they are seen by whatever watches torch's dispatcher: recomputation keeps the output of attention without
running its kernel twice, fake tensors know the shapes, a profiler shows the names.

    dense        q (B, S, N, D), k (B, S, K, D), v (B, S, K, E): each row is one document
    packed       q (T, N, D), k (T, K, D), v (T, K, E): documents end at cu_seqlens

Dimensions: B rows, S tokens a row, T = B*S tokens, N query heads, K key and value heads, D dim of queries and keys,
E dim of values. The last dim is contiguous; the others may have any stride of a multiple of 16 bytes.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

INSTALL = "uv sync --all-packages --extra fa4"
"""What puts it there."""


def has_fa4() -> bool:
    """Whether FlashAttention-4 is installed. Looks for its files and imports nothing."""
    spec = find_spec("flash_attn")
    places = spec.submodule_search_locations if spec else None
    return any((Path(place) / "cute" / "interface.py").is_file() for place in places or ())


def find_capability(device_type: str) -> tuple[int, int] | None:
    """Compute capability of the current GPU, or None if there is none or it is not asked for."""
    return torch.cuda.get_device_capability() if device_type == "cuda" and torch.cuda.is_available() else None


def tell_gpu(device_type: str, capability: tuple[int, int] | None) -> str:
    """The device that it is, in words, for one that wants another. Pure.

    >>> tell_gpu("cuda", (8, 6)), tell_gpu("cuda", None), tell_gpu("cpu", None)
    ('one of 8.6', 'a GPU that is not here', 'cpu')
    """
    if capability is not None:
        return f"one of {capability[0]}.{capability[1]}"
    return "a GPU that is not here" if device_type == "cuda" else device_type


def fa4_problems(
    dtype: torch.dtype, capability: tuple[int, int] | None, dims: tuple[int, int], *, device_type: str
) -> list[str]:
    """Why the kernels cannot compute forward and backward pass exactly, in words; empty if they can. Pure.

    Args:
        dtype: of queries, keys and values.
        capability: of the GPU; None for another device.
        dims: of a head, D of queries and keys and E of values; padded with zeros to `round_dim` of them.
        device_type: "cuda" for a GPU.
    """
    if dtype not in (torch.bfloat16, torch.float16) or capability is None or capability[0] not in (9, 10, 11):
        device = tell_gpu(device_type, capability)
        return [f"fa4 attention needs bf16 or fp16 on a GPU of capability 9.x to 11.x, not {dtype} on {device}."]
    D, E = map(round_dim, dims)
    # Above 128, Blackwell has kernels of their own for a few shapes, which lack softcap and sinks.
    longest = 256 if capability[0] == 9 else 128
    fits = max(D, E) <= longest or (capability[0] != 9 and (D, E) == (192, 128))
    return [] if fits else [f"fa4 attention needs heads of up to {longest} on this GPU, not {dims[0]} and {dims[1]}."]


def round_dim(dim: int) -> int:
    """The dim of a head that the kernels compute exactly: the next multiple of 32.

    They accept multiples of 8, but on Hopper the gradient of queries of dim 72 is wrong, without an error.

    >>> round_dim(72), round_dim(128)
    (96, 128)
    """
    return -(-dim // 32) * 32


@torch.library.custom_op("omni::fa4_forward", mutates_args=(), device_types="cuda")
def fa4_forward(  # noqa: PLR0917 An operator takes its arguments flat and by position.
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    scale: float,
    causal: bool,
    window_left: int | None,
    window_right: int | None,
    softcap: float | None,
    sink_N: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of documents, and the logarithm of the sum of its exponentials, through which no gradient flows.

    Args:
        q: queries, dense or packed as above, bf16 or fp16.
        k: keys; each serves N/K query heads.
        v: values. E is at most D, and D where N > K.
        cu_seqlens: (documents + 1,) int32, bounds of the documents; None for the dense form.
        max_seqlen: tokens of the longest document.
        scale: of the scores.
        causal: a query sees no later key.
        window_left: keys before it that a query sees; None for all.
        window_right: keys after it that a query sees; None for all that `causal` allows.
        softcap: scores become softcap * tanh(scores / softcap).
        sink_N: (N,) logits of the attention sinks, fp32, bf16 or fp16.

    Returns:
        out, (B, S, N, E) or (T, N, E), and lse, (B, N, S) or (N, T) fp32.
    """
    if odd := [x.shape[-1] for x in (q, v) if x.shape[-1] % 32]:
        raise ValueError(
            f"FlashAttention-4 is not exact for heads of {odd[0]}: pad them with zeros to a multiple of 32."
        )
    forward, _ = _kernels()
    out, lse, *_ = forward(
        q.detach(),
        k.detach(),
        v.detach(),
        softmax_scale=scale,
        causal=causal,
        window_size_left=window_left,
        window_size_right=window_right,
        learnable_sink=None if sink_N is None else sink_N.detach(),
        softcap=softcap,
        return_lse=True,
        **_lengths(cu_seqlens, max_seqlen),
    )
    return out, lse


@fa4_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor | None, *args: Any) -> tuple[Tensor, Tensor]:
    *batch, N, _ = q.shape
    lse = (batch[0], N, batch[1]) if cu_seqlens is None else (N, batch[0])
    return q.new_empty((*batch, N, v.shape[-1])), q.new_empty(lse, dtype=torch.float32)


@torch.library.custom_op("omni::fa4_backward", mutates_args=(), device_types="cuda")
def fa4_backward(  # noqa: PLR0917 As above.
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cu_seqlens: Tensor | None,
    max_seqlen: int,
    scale: float,
    causal: bool,
    window_left: int | None,
    window_right: int | None,
    softcap: float | None,
    sink_N: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `q`, `k`, `v` and `sink_N` (empty without sinks), contiguous, for that of `out`.

    Arguments as in `fa4_forward`. The order of its sums varies, unless torch is told to be deterministic.
    """
    _, backward = _kernels()
    dq, dk, dv, *dsink = backward(
        q,
        k,
        v,
        out,
        dout,
        lse,
        scale,
        causal,
        0.0 if softcap is None else softcap,
        window_size_left=window_left,
        window_size_right=window_right,
        deterministic=torch.are_deterministic_algorithms_enabled(),
        dq=q.new_empty(q.shape),
        dk=k.new_empty(k.shape),
        dv=v.new_empty(v.shape),
        learnable_sink=sink_N,
        **_lengths(cu_seqlens, max_seqlen),
    )
    return dq, dk, dv, dsink[0] if dsink else q.new_empty(0)


@fa4_backward.register_fake
def _(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, *args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sink_N = args[-1]
    dsink = q.new_empty(0) if sink_N is None else sink_N.new_empty(sink_N.shape)
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), dsink


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, cu_seqlens, *rest, sink_N = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse, cu_seqlens, sink_N)
    ctx.rest = rest
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, dout: Tensor | None, dlse: None) -> tuple[Tensor | None, ...]:
    if dout is None:
        return (None,) * 11
    q, k, v, out, lse, cu_seqlens, sink_N = ctx.saved_tensors
    dq, dk, dv, dsink_N = fa4_backward(dout, q, k, v, out, lse, cu_seqlens, *ctx.rest, sink_N)
    return dq, dk, dv, *(None,) * 7, None if sink_N is None else dsink_N


fa4_forward.register_autograd(_differentiate, setup_context=_save)


def _kernels() -> tuple[Any, Any]:
    """FlashAttention-4's forward and backward functions, imported when first called: they bring a compiler along.

    Its public functions are autograd functions already, which hide both kernels from the dispatcher; so these two names
    are private to it.
    """
    try:
        from flash_attn.cute.interface import (  # pyright: ignore[reportMissingImports]
            _flash_attn_bwd,
            _flash_attn_fwd,
        )
    except ImportError as error:
        raise ValueError(
            f"fa4 attention needs flash-attn-4 4.0.0b36 or newer, which cannot be imported ({error}): {INSTALL}."
        ) from error
    return _flash_attn_fwd, _flash_attn_bwd


def _lengths(cu_seqlens: Tensor | None, max_seqlen: int) -> dict[str, Any]:
    """The same documents for queries and keys; nothing for the dense form, whose shapes say it all."""
    if cu_seqlens is None:
        return {}
    bounds = {"cu_seqlens_q": cu_seqlens, "cu_seqlens_k": cu_seqlens}
    return bounds | {"max_seqlen_q": max_seqlen, "max_seqlen_k": max_seqlen}
