"""Linear attention by the gated delta rule (Yang et al., 2024, arXiv:2412.06464), exact for rows packed from documents.

Such a layer carries two things along a row: a short causal convolution and a memory. Each becomes a function of the
form of attention, kept on the layer that calls it, which runs transformers' own implementation on each document alone.

    conv(module, x_BCS1, None, None, None, *, weight, bias, activation, **facts) -> (out_BSC1, None)
    rule(module, q_BNSD, k_BNSD, v_BMSE, None, *, g, beta, **facts) -> (out_BSME, None)

Channels are heads of width one; `weight` (C, K) and `bias` (C,) hold one row a channel, `g` and `beta` (B, M, S) one
value a head and token. Head counts are those of the arguments, so a caller may pass a part of the heads.

Dimensions: B rows, S tokens a row, T = B*S tokens, C channels, K width of the convolution, N heads of queries and keys
of dim D, M heads of values of dim E (M a multiple of N), X documents of a bucket, L tokens of the longest of them.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from omni_models.attention import AttentionFn
from omni_models.documents import find_documents, refuse_unknown

M = TypeVar("M", bound=PreTrainedModel)
CONV, RULE = "omni_conv", "omni_rule"
"""The attributes of a layer that hold its own two functions."""
_CONV_NAME, _RULE_NAME = "causal_conv1d_fn", "torch_chunk_gated_delta_rule"
"""What transformers calls the two functions, in the globals of a modeling file."""
_POSITIONS = "omni_position_ids"
"""The keyword by which positions reach a layer whose parent keeps `position_ids` to itself."""
_CHUNK = 64
"""Tokens that the delta rule computes at once; shorter documents are padded to it in any case."""


def is_linear(module: nn.Module) -> bool:
    """Whether `module` carries things along the row by the two functions above and can be made to call others."""
    forward = _forward_of(module)
    return forward is not None and {_CONV_NAME, _RULE_NAME} <= set(forward.__code__.co_names) & set(forward.__globals__)


def use_linear(model: M) -> M:
    """The same model, every gated delta rule layer of which keeps documents apart. Donates `model`.

    A layer's forward finds the two functions by name in its modeling file, which all models of a process share. So the
    layer gets a forward of its own: the same code, for which those two names mean ours. Its file stays as it is.
    """
    for parent in model.modules():
        layers = [module for module in parent.children() if is_linear(module)]
        for module in layers:
            forward = _forward_of(module)
            assert forward is not None
            setattr(module, CONV, separate_conv(forward.__globals__[_CONV_NAME]))
            setattr(module, RULE, separate_rule(forward.__globals__[_RULE_NAME]))
            module.forward = MethodType(_with_facts(_rebind(forward)), module)
        if layers:
            parent.register_forward_pre_hook(_pass_positions, with_kwargs=True)
    return model


def separate_conv(conv: Callable[..., Tensor]) -> AttentionFn:
    """`conv` (x_BCS, weight_CK, bias_C, activation=) -> out_BCS, causal and depthwise, as a function of documents.

    It runs once: all documents in one row, with K - 1 zeros before each, which is what begins a row too.
    """

    def apart(
        module: nn.Module,
        x_BCS1: Tensor,
        k: None = None,
        v: None = None,
        mask: Tensor | None = None,
        *,
        weight: Tensor,
        bias: Tensor | None = None,
        activation: str | None = None,
        **facts: Any,
    ) -> tuple[Tensor, None]:
        refuse_unknown(module, mask, facts)
        B, C, S, _ = x_BCS1.shape
        if C == 0:
            # Nothing to compute, but what other ranks differentiate must be differentiated here too.
            return x_BCS1.transpose(1, 2) * (weight.sum() if bias is None else weight.sum() + bias.sum()), None
        cu_seqlens, longest = find_documents(x_BCS1, x_BCS1, facts)
        if longest == S and len(cu_seqlens) == B + 1:
            return conv(x_BCS1[..., 0], weight, bias, activation=activation).transpose(1, 2)[..., None], None
        x_TC = x_BCS1[..., 0].transpose(1, 2).flatten(0, 1)
        gap = weight.shape[-1] - 1
        token_T = torch.arange(B * S, device=x_TC.device)
        document_T = torch.bucketize(token_T, cu_seqlens.to(x_TC.device)[1:], right=True)
        place_T = token_T + gap * document_T
        spread = x_TC.new_zeros(B * S + gap * (len(cu_seqlens) - 2), C).index_copy(0, place_T, x_TC)
        out = conv(spread.T[None], weight, bias, activation=activation)[0].T
        return out.index_select(0, place_T).view(B, S, C, 1), None

    return apart


def separate_rule(rule: Callable[..., tuple[Tensor, Tensor | None]]) -> AttentionFn:
    """`rule` (q_BSND, k_BSND, v_BSME, g=, beta=, ...) -> (out_BSME, state), a causal one, as a function of documents.

    Documents of similar length run together, padded at their end, which a causal function does not see: as many calls
    as there are powers of two among the lengths. A row that is one document is not copied.
    """

    def apart(
        module: nn.Module,
        q_BNSD: Tensor,
        k_BNSD: Tensor,
        v_BMSE: Tensor,
        mask: Tensor | None = None,
        *,
        g: Tensor,
        beta: Tensor,
        use_qk_l2norm_in_kernel: bool = False,
        **facts: Any,
    ) -> tuple[Tensor, None]:
        refuse_unknown(module, mask, facts)

        def run(q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> Tensor:
            return rule(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel)[0]

        B, heads, S, E = v_BMSE.shape
        inputs_BS = [x.transpose(1, 2) for x in (q_BNSD, k_BNSD, v_BMSE, g, beta)]
        if heads == 0:
            # Nothing to compute, but what other ranks differentiate must be differentiated here too.
            return inputs_BS[2] * sum(x.sum() for x in (q_BNSD, k_BNSD, g, beta)), None
        cu_seqlens, longest = find_documents(q_BNSD, k_BNSD, facts)
        if longest == S and len(cu_seqlens) == B + 1:
            return run(*inputs_BS), None
        inputs_T = [x.flatten(0, 1) for x in inputs_BS]
        pieces: list[Tensor] = []
        tokens: list[Tensor] = []
        for bucket in _buckets(cu_seqlens.tolist()):
            X, L = len(bucket), max(map(len, bucket))
            token, place = (x.to(v_BMSE.device) for x in _places(bucket, L))
            inputs_XL = [
                x.new_zeros(X * L, *x.shape[1:]).index_copy(0, place, x[token]).unflatten(0, (X, L)) for x in inputs_T
            ]
            pieces.append(run(*inputs_XL).flatten(0, 1)[place])
            tokens.append(token)
        out_TME = v_BMSE.new_empty(B * S, heads, E).index_copy(0, torch.cat(tokens), torch.cat(pieces))
        return out_TME.unflatten(0, (B, S)), None

    return apart


def _buckets(bounds: Sequence[int]) -> list[list[range]]:
    """Documents by the power of two that holds them, at least a chunk: padding less than doubles what is computed."""
    buckets: dict[int, list[range]] = {}
    for start, stop in pairwise(bounds):
        if stop > start:
            buckets.setdefault((max(stop - start, _CHUNK) - 1).bit_length(), []).append(range(start, stop))
    return list(buckets.values())


def _places(bucket: Sequence[range], L: int) -> tuple[Tensor, Tensor]:
    """The tokens of the documents of `bucket`, and where each stands when documents are padded to L tokens."""
    token = torch.cat([torch.arange(document.start, document.stop) for document in bucket])
    place = torch.cat([torch.arange(row * L, row * L + len(document)) for row, document in enumerate(bucket)])
    return token, place


@dataclass(frozen=True, slots=True)
class _Call:
    """What rides through the code of a forward to the two functions it calls."""

    module: nn.Module
    facts: dict[str, Any]


def _with_facts(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A forward that hands its facts to ours in one piece: transformers' code would take some of them for its own."""

    # A compiler would look up names of this code in its modeling file, where they mean what is not ours.
    @torch.compiler.disable
    def with_facts(
        self: nn.Module,
        hidden_states: Tensor,
        cache_params: object = None,
        attention_mask: Tensor | None = None,
        **facts: Any,
    ) -> Tensor:
        name = type(self).__name__
        if cache_params is not None:
            raise ValueError(
                f"{name} was given a cache; this linear attention trains and neither reads nor fills one. "
                "Pass use_cache=False, or load the model with plain transformers to generate."
            )
        if _POSITIONS in facts:
            facts["position_ids"] = facts.pop(_POSITIONS)
        if "position_ids" not in facts and facts.get("cu_seqlens") is None:
            raise ValueError(
                f"{name} cannot know where documents end: its block got no position_ids by keyword. "
                "Pass cu_seqlens and max_seqlen to the model."
            )
        return forward(self, hidden_states, attention_mask=attention_mask, omni_call=_Call(self, facts))

    return with_facts


def _call_conv(
    x_BCS: Tensor, weight: Tensor, bias: Tensor | None = None, activation: str | None = None, *, omni_call: _Call
) -> Tensor:
    """Stands where transformers' code says causal_conv1d_fn."""
    conv = getattr(omni_call.module, CONV)
    kept = {"weight": weight, "bias": bias, "activation": activation}
    out_BSC1, _ = conv(omni_call.module, x_BCS[..., None], None, None, None, **kept, **omni_call.facts)
    return out_BSC1[..., 0].transpose(1, 2)


def _call_rule(
    q_BSND: Tensor,
    k_BSND: Tensor,
    v_BSME: Tensor,
    g: Tensor,
    beta: Tensor,
    *,
    omni_call: _Call,
    initial_state: None = None,
    output_final_state: bool = False,
    cu_seqlens: None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Stands where transformers' code says torch_chunk_gated_delta_rule."""
    assert initial_state is None and cu_seqlens is None and not output_final_state
    rule = getattr(omni_call.module, RULE)
    q_BNSD, k_BNSD, v_BMSE, g, beta = (x.transpose(1, 2) for x in (q_BSND, k_BSND, v_BSME, g, beta))
    return rule(omni_call.module, q_BNSD, k_BNSD, v_BMSE, None, g=g, beta=beta, **options, **omni_call.facts)


def _forward_of(module: nn.Module) -> FunctionType | None:
    """The forward of the class of `module` as its file has it, without decorators and whatever the instance says."""
    forward = inspect.unwrap(type(module).forward)
    return forward if isinstance(forward, FunctionType) else None


def _rebind(forward: FunctionType) -> FunctionType:
    """The same code, for which the two names mean ours.

    The names are private to transformers, and no argument or registry reaches the functions behind them; a copy of the
    code's mapping of names does, and leaves the modeling file and other models alone.
    """
    names = {**forward.__globals__, _CONV_NAME: _call_conv, _RULE_NAME: _call_rule}
    rebound = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    rebound.__kwdefaults__ = forward.__kwdefaults__
    return rebound


def _pass_positions(
    block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Blocks take `position_ids` for their attention, and hand their linear attention only what they do not know."""
    return (args, kwargs | {_POSITIONS: kwargs["position_ids"]}) if "position_ids" in kwargs else (args, kwargs)
