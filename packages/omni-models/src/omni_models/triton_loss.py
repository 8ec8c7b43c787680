# ruff: noqa: ANN001, ANN202, PLR0917 A kernel is called by position, with pointers that have no type in Python.
"""Kernels of the chunked loss: logits become their gradient where they lie, read twice and written once.

Written in Triton (Tillet et al., 2019), which comes with torch for CUDA. The sum of exponentials is kept while it is
read, at the largest logit so far (Milakov and Gimelshein, 2018, arXiv:1805.02867).

Dimensions: T tokens, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.graph import increment_version

_BLOCK = 8192


def cross_entropy_(logits_TV: Tensor, labels_T: Tensor, *, grads: bool) -> Tensor:
    """The cross entropy of each token, (T,) fp32, nats. Donates `logits_TV`, contiguous: with `grads` it becomes
    softmax minus one at the label, computed in fp32 and rounded once. The loss of a label of no row is NaN."""
    loss_T = logits_TV.new_empty(len(labels_T), dtype=torch.float32)
    _cross_entropy[(len(labels_T),)](loss_T, logits_TV, labels_T, logits_TV.shape[1], grads, _BLOCK, num_warps=16)
    return loss_T


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """`x`, contiguous, times the scalar `factor` on the device, rounded once. In place, at the speed of memory, which
    torch's operator reaches only with a factor of the same dtype."""
    size = x.numel()
    _scale[(triton.cdiv(size, _BLOCK),)](x, factor, size, _BLOCK, num_warps=8)
    increment_version(x)  # So that torch refuses what would read it as it was.
    return x


@triton.jit
def _scale(x, factor, N, BLOCK: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + places, mask=places < N, other=0).to(tl.float32) * tl.load(factor).to(tl.float32)
    tl.store(x + places, value.to(x.dtype.element_ty), mask=places < N)


@triton.jit
def _cross_entropy(loss, logits, labels, V, GRADS: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * V
    label = tl.load(labels + token)
    # Read before anything is written, with a sum over all threads in between.
    at_label = tl.load(row + label, mask=label < V, other=float("nan")).to(tl.float32)
    most = tl.full((), -3e38, dtype=tl.float32)  # Finite: a block may be all minus infinity.
    total = tl.zeros((), dtype=tl.float32)
    for start in range(0, V, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        values = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(most, tl.max(values))
        total = total * tl.exp(most - higher) + tl.sum(tl.exp(values - higher))
        most = higher
    log_total = most + tl.log(total)
    tl.store(loss + token, log_total - at_label)
    if GRADS:
        for start in range(0, V, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            values = tl.load(row + columns, mask=columns < V, other=float("-inf")).to(tl.float32)
            share = tl.exp(values - log_total)
            grad = tl.where(columns == label, share - 1, share)
            tl.store(row + columns, grad.to(logits.dtype.element_ty), mask=columns < V)
