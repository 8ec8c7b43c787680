"""Laws of linear attention: packed rows equal separate documents, and no layer shares its functions with another."""

import copy
import importlib
import inspect
from functools import partial
from itertools import pairwise

import pytest
import torch
from shapes import LINEAR_FAMILIES, make_config
from test_attention import documents, make_rows
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.qwen3_next import modeling_qwen3_next as modeling

from omni_models import build_model, map_attention, unsupported, use_attention
from omni_models.linear import CONV, RULE, is_linear, separate_conv, separate_rule, use_linear


def make_model(family: str, seed: int = 0, **overrides: object) -> PreTrainedModel:
    """A model whose layers remember: a fresh one forgets within a token, so nothing could leak."""
    model = build_model(make_config(family, **overrides), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if name.endswith("A_log"):
                param.uniform_(-4, -2, generator=generator)
            else:
                param.add_(0.1 * torch.randn(param.shape, generator=generator))
    return model


def make_plain(ours: PreTrainedModel) -> PreTrainedModel:
    config = copy.deepcopy(ours.config)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    plain.load_state_dict(ours.state_dict())
    return plain.train()


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    return [module for module in model.modules() if is_linear(module)]


@pytest.mark.parametrize("told_by", ["cu_seqlens", "position_ids"])
@pytest.mark.parametrize("family", LINEAR_FAMILIES)
def test_packed_rows_equal_separate_documents_of_plain_transformers(family: str, told_by: str) -> None:
    ours = make_model(family)
    plain = make_plain(ours)
    ids_BS, positions_BS, bounds = make_rows()
    facts = {"cu_seqlens": bounds, "max_seqlen": 20} if told_by == "cu_seqlens" else {}
    ours = use_attention(ours, "eager")
    packed = ours(input_ids=ids_BS, position_ids=positions_BS, use_cache=False, **facts).logits.flatten(0, 1)
    apart = torch.cat([plain(input_ids=ids, use_cache=False).logits[0] for ids in documents(ids_BS)])
    assert (packed - apart).abs().max() <= 1e-5 * apart.abs().max()

    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1))
    (packed * weight).sum().backward()
    (apart * weight).sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert theirs.grad is not None and theirs.grad.any(), name
        assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * theirs.grad.abs().max(), name


@pytest.mark.parametrize("family", LINEAR_FAMILIES)
def test_plain_transformers_lets_documents_into_one_another(family: str) -> None:
    """Or the test above would prove nothing."""
    plain = make_plain(make_model(family))
    ids_BS, positions_BS, _ = make_rows()
    whole = plain(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits.flatten(0, 1)
    apart = torch.cat([plain(input_ids=ids, use_cache=False).logits[0] for ids in documents(ids_BS)])
    assert (whole - apart).abs().max() > 1e-2 * apart.abs().max()


@pytest.mark.parametrize("family", LINEAR_FAMILIES)
def test_linear_attention_is_not_refused(family: str) -> None:
    assert unsupported(build_model(make_config(family), device="meta")) == []


@pytest.mark.parametrize("family", LINEAR_FAMILIES)
def test_without_facts_each_row_is_one_document(family: str) -> None:
    ours = make_model(family)
    plain = make_plain(ours)
    ids_BS = make_rows()[0]
    expected = plain(input_ids=ids_BS, use_cache=False).logits
    got = use_attention(ours, "eager")(input_ids=ids_BS, use_cache=False).logits
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


# Older versions of transformers lay each query head beside its value heads in the layer, and their rule takes no fewer.
TAKES_GROUPS = "num_k_heads" in inspect.unwrap(modeling.torch_chunk_gated_delta_rule).__code__.co_varnames
HEADS = 2 if TAKES_GROUPS else 4
LENGTHS = [70, 1, 130, 2, 64, 65, 0, 3, 49, 384]
"""Documents of four powers of two, and one of no tokens, in two rows of 384."""


def make_inputs(heads: int, values: int) -> tuple[Tensor, list[Tensor]]:
    """Bounds, and q, k, v, g and beta of two rows; g lets much be remembered."""
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 384, 6, generator=draw) for _ in range(2))
    v = torch.randn(2, values, 384, 5, generator=draw)
    g = -0.1 * torch.rand(2, values, 384, generator=draw)
    beta = torch.rand(2, values, 384, generator=draw)
    return torch.tensor([0, *LENGTHS]).cumsum(0).to(torch.int32), [x.requires_grad_() for x in (q, k, v, g, beta)]


def grads_of(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    return list(torch.autograd.grad((out * weight).sum(), inputs))


@pytest.mark.parametrize("heads", sorted({HEADS, 4}))
def test_the_rule_runs_each_document_alone_in_few_calls(heads: int) -> None:
    bounds, inputs = make_inputs(heads, 4)
    calls = []

    def counted(*args, **kwargs):
        calls.append(args[0].shape[:2])
        return modeling.torch_chunk_gated_delta_rule(*args, **kwargs)

    q, k, v, g, beta = inputs
    facts = {"g": g, "beta": beta, "use_qk_l2norm_in_kernel": True, "cu_seqlens": bounds, "max_seqlen": 384}
    got, _ = separate_rule(counted)(nn.Identity(), q, k, v, None, **facts)
    assert sorted(calls) == [(1, 130), (1, 384), (2, 70), (5, 64)]
    pieces = [
        modeling.torch_chunk_gated_delta_rule(*(x[None] for x in rows[:3]), g=rows[3][None], beta=rows[4][None],
                                              use_qk_l2norm_in_kernel=True)[0][0]
        for start, stop in pairwise(bounds.tolist())
        if stop > start and (rows := [x.transpose(1, 2).flatten(0, 1)[start:stop] for x in inputs])
    ]  # fmt: skip
    expected = torch.cat(pieces).view_as(got)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    for mine, theirs in zip(grads_of(got, inputs), grads_of(expected, inputs), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("biased", [False, True])
def test_the_convolution_runs_each_document_alone_in_one_call(biased: bool) -> None:
    bounds = make_inputs(1, 1)[0]
    draw = torch.Generator().manual_seed(0)
    x_BCS1, weight = torch.randn(2, 6, 384, 1, generator=draw), torch.randn(6, 4, generator=draw)
    bias = torch.randn(6, generator=draw) if biased else None
    inputs = [x.requires_grad_() for x in (x_BCS1, weight, bias) if x is not None]
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return modeling.causal_conv1d_fn(*args, **kwargs)

    kept = {"weight": weight, "bias": bias, "activation": "silu"}
    conv = separate_conv(counted)
    got, _ = conv(nn.Identity(), x_BCS1, None, None, None, **kept, cu_seqlens=bounds, max_seqlen=384)
    assert len(calls) == 1
    x_TC = x_BCS1[..., 0].transpose(1, 2).flatten(0, 1)
    pieces = [
        modeling.causal_conv1d_fn(x_TC[start:stop].T[None], weight, bias, activation="silu")[0].T
        for start, stop in pairwise(bounds.tolist())
        if stop > start
    ]
    expected = torch.cat(pieces).view_as(got)
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
    for mine, theirs in zip(grads_of(got, inputs), grads_of(expected, inputs), strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_a_row_of_one_document_takes_one_call_without_copies() -> None:
    _, (q, k, v, g, beta) = make_inputs(HEADS, 4)
    seen = []

    def spied(*args, **kwargs):
        seen.extend(args)
        return modeling.torch_chunk_gated_delta_rule(*args, **kwargs)

    separate_rule(spied)(nn.Identity(), q, k, v, None, g=g, beta=beta)
    assert [x.data_ptr() for x in seen] == [x.data_ptr() for x in (q, k, v)]


def test_a_rank_without_heads_computes_nothing_and_differentiates_all() -> None:
    _, inputs = make_inputs(0, 0)
    q, k, v, g, beta = inputs
    out, _ = separate_rule(modeling.torch_chunk_gated_delta_rule)(nn.Identity(), q, k, v, None, g=g, beta=beta)
    assert out.shape == (2, 384, 0, 5)
    assert len(grads_of(out, inputs)) == 5
    x_BCS1, weight = torch.zeros(2, 0, 384, 1, requires_grad=True), torch.zeros(0, 4, requires_grad=True)
    out, _ = separate_conv(modeling.causal_conv1d_fn)(nn.Identity(), x_BCS1, None, None, None, weight=weight)
    assert out.shape == (2, 384, 0, 1)
    assert len(grads_of(out, [x_BCS1, weight])) == 2


def test_a_part_of_the_heads_gives_that_part_of_the_output() -> None:
    bounds, (q, k, v, g, beta) = make_inputs(HEADS, 4)
    rule, facts = separate_rule(modeling.torch_chunk_gated_delta_rule), {"cu_seqlens": bounds, "max_seqlen": 384}
    whole, _ = rule(nn.Identity(), q, k, v, None, g=g, beta=beta, **facts)
    half = HEADS // 2
    part, _ = rule(nn.Identity(), q[:, half:], k[:, half:], v[:, 2:], None, g=g[:, 2:], beta=beta[:, 2:], **facts)
    assert torch.allclose(part, whole[:, :, 2:], atol=1e-6)


def test_the_functions_of_a_modeling_file_stay() -> None:
    names = ("causal_conv1d_fn", "torch_chunk_gated_delta_rule")
    before = [getattr(modeling, name) for name in names]
    forward = modeling.Qwen3NextGatedDeltaNet.forward
    use_attention(make_model("qwen3_next"), "eager")
    assert all(a is b for a, b in zip(before, (getattr(modeling, name) for name in names), strict=True))
    assert modeling.Qwen3NextGatedDeltaNet.forward is forward


def count_calls(model: PreTrainedModel) -> list[tuple[str, tuple[int, ...]]]:
    """The list to which every function of attention of `model` adds its layer and the shape of its first argument."""
    calls: list[tuple[str, tuple[int, ...]]] = []

    def counted(attend):
        def counting(module, q, *args, **facts):
            calls.append((type(module).__name__, tuple(q.shape)))
            return attend(module, q, *args, **facts)

        return counting

    map_attention(model, counted)
    return calls


def test_map_attention_reaches_the_convolution_and_the_rule() -> None:
    model = use_attention(make_model("qwen3_next"), "eager")
    ids_BS = make_rows()[0]
    before = model(input_ids=ids_BS, use_cache=False).logits
    calls = count_calls(model)
    assert torch.equal(model(input_ids=ids_BS, use_cache=False).logits, before)
    layer = "Qwen3NextGatedDeltaNet"
    conv, rule, attention = calls
    assert conv == (layer, (2, 2 * 4 * 8 + 8 * 12, 24, 1))
    assert rule in [(layer, (2, 4, 24, 8)), (layer, (2, 8, 24, 8))]
    assert attention[0] == "Qwen3NextAttention"


def test_two_models_and_a_copy_keep_their_own_functions() -> None:
    first, second = (use_attention(make_model("qwen3_5", seed), "eager") for seed in (0, 1))
    copied = copy.deepcopy(first)
    ids_BS = make_rows()[0]
    before = first(input_ids=ids_BS, use_cache=False).logits, second(input_ids=ids_BS, use_cache=False).logits
    calls = count_calls(copied)
    after = first(input_ids=ids_BS, use_cache=False).logits, second(input_ids=ids_BS, use_cache=False).logits
    assert calls == []
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert torch.equal(copied(input_ids=ids_BS, use_cache=False).logits, before[0])
    assert len(calls) == 3


def test_facts_ride_to_both_functions() -> None:
    model = use_attention(make_model("qwen3_5"), "eager")
    seen = []

    def spied(attend):
        def spying(module, q, *args, whole_position_ids=None, **facts):
            seen.append((whole_position_ids, facts["position_ids"]))
            return attend(module, q, *args, **facts)

        return spying

    ids_BS, positions_BS, _ = make_rows()
    map_attention(model, spied)(
        input_ids=ids_BS, position_ids=positions_BS, whole_position_ids=positions_BS, use_cache=False
    )
    assert len(seen) == 3
    assert all(torch.equal(positions_BS, x) for pair in seen for x in pair)


@pytest.mark.parametrize("trap", ["recomputed", "compiled"])
# The compiler looks at gradients of tensors that have none, and means to keep torch quiet about it.
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_recomputation_and_the_compiler_call_the_same_functions(trap: str) -> None:
    ids_BS, positions_BS, _ = make_rows()
    facts = {"input_ids": ids_BS, "position_ids": positions_BS, "use_cache": False}
    model = use_attention(make_model("qwen3_5"), "eager")
    expected = torch.autograd.grad(model(**facts).logits.square().sum(), list(model.parameters()))
    calls = count_calls(model)
    if trap == "recomputed":
        block = model.model.layers[0]
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    else:
        layer = linear_layers(model)[0]
        layer.forward = torch.compile(layer.forward, backend="eager")
    model(**facts).logits.square().sum().backward()
    assert [name for name, _ in calls].count("Qwen3_5GatedDeltaNet") == (4 if trap == "recomputed" else 2)
    for param, grad in zip(model.parameters(), expected, strict=True):
        assert (param.grad - grad).abs().max() <= 1e-5 * grad.abs().max()


def test_a_cache_is_refused() -> None:
    model = use_attention(make_model("qwen3_next"), "eager")
    with pytest.raises(ValueError, match=r"Qwen3NextGatedDeltaNet was given a cache.*Pass use_cache=False"):
        model(input_ids=make_rows()[0], use_cache=True)


def test_what_a_layer_is_handed_and_nobody_reads_is_refused() -> None:
    model = use_attention(make_model("qwen3_next"), "eager")
    with pytest.raises(ValueError, match="Qwen3NextGatedDeltaNet hands cu_seq_lens_q to its attention"):
        model(input_ids=make_rows()[0], cu_seq_lens_q=make_rows()[2], use_cache=False)


def test_a_layer_that_cannot_know_its_documents_refuses() -> None:
    model = use_linear(make_model("qwen3_next"))
    hidden_BSE = torch.zeros(2, 24, 32)
    with pytest.raises(ValueError, match=r"cannot know where documents end.*Pass cu_seqlens and max_seqlen"):
        linear_layers(model)[0](hidden_BSE)


@pytest.mark.parametrize("family", LINEAR_FAMILIES)
def test_the_names_that_we_rebind_are_where_we_look_for_them(family: str) -> None:
    model = build_model(make_config(family), device="meta")
    layers = [module for module in model.modules() if type(module).__name__.endswith("GatedDeltaNet")]
    assert len(layers) == 1
    file = importlib.import_module(type(layers[0]).__module__)
    for name in ("causal_conv1d_fn", "torch_chunk_gated_delta_rule"):
        assert hasattr(file, name), f"{file.__name__} has no {name} any more: adapt omni_models.linear"
    assert is_linear(layers[0]), (
        f"{type(layers[0]).__name__}.forward does not call causal_conv1d_fn and torch_chunk_gated_delta_rule by name "
        "any more: adapt omni_models.linear"
    )
    use_linear(model)
    assert hasattr(layers[0], CONV) and hasattr(layers[0], RULE)
