"""Laws of attention: packed rows equal separate documents, in every family, backend and device that fits."""

import pytest
import torch
from shapes import FAMILIES, make_config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from omni_models import attention_problems, build_model, choose_attention, map_attention, use_attention
from omni_models.attention import ATTENTIONS, eager, varlen
from omni_models.fa4 import fa4_problems, find_capability, has_fa4

LENGTHS = [[9, 1, 13, 1], [2, 20, 2]]
"""Documents of two rows of 24 tokens."""
ONLY_EAGER = {"gemma2", "gpt_oss"}
"""Of softcap and sinks only eager, flex and fa4 know."""
WINDOWS = {"mistral", "gemma3"}
"""Of these windows cuDNN knows nothing."""
FA4 = has_fa4() and not fa4_problems(torch.bfloat16, find_capability("cuda"), (64, 64), device_type="cuda")
"""Whether this machine has FlashAttention-4 and a GPU for it."""


def make_rows(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    ids_BS = torch.randint(0, 80, (2, 24), generator=torch.Generator().manual_seed(seed))
    positions_BS = torch.stack([torch.cat([torch.arange(n) for n in row]) for row in LENGTHS])
    bounds = torch.tensor([0] + [n for row in LENGTHS for n in row]).cumsum(0).to(torch.int32)
    return ids_BS, positions_BS, bounds


def documents(ids_BS: Tensor) -> list[Tensor]:
    return [piece[None] for row, sizes in zip(ids_BS, LENGTHS, strict=True) for piece in row.split(sizes)]


@pytest.mark.parametrize("attend", ["eager", "sdpa", "flex"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_equal_separate_documents_of_plain_transformers(family: str, attend: str, device: str) -> None:
    if attend == "sdpa" and family in ONLY_EAGER:
        pytest.skip("softcap and sinks are refused, see below")
    config = make_config(family)
    ours = build_model(config, device=device)
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").to(device)
    plain.load_state_dict(ours.state_dict())
    plain.train()
    ids_BS, positions_BS, bounds = (x.to(device) for x in make_rows())
    ours = use_attention(ours, attend)
    packed = ours(
        input_ids=ids_BS, position_ids=positions_BS, cu_seqlens=bounds, max_seqlen=20, use_cache=False
    ).logits.flatten(0, 1)
    apart = torch.cat([plain(input_ids=ids, use_cache=False).logits[0] for ids in documents(ids_BS)])
    assert (packed - apart).abs().max() <= 1e-5 * apart.abs().max()

    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(1)).to(device)
    (packed * weight).sum().backward()
    (apart * weight).sum().backward()
    for (name, mine), theirs in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            assert (mine.grad - theirs.grad).abs().max() <= 1e-5 * max(1e-3, theirs.grad.abs().max()), name


@pytest.mark.gpu
# The compiler of FlashAttention-4 is newer than its kernels, and says so of each.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:Argument aux_data:UserWarning")
@pytest.mark.parametrize(
    ("attend", "family"),
    [
        *(("varlen", family) for family in sorted(set(FAMILIES) - ONLY_EAGER)),
        *(("flex", family) for family in sorted(FAMILIES)),
        # The tiny deepseek_v3 has values of a dim that is no multiple of 8.
        *(("cudnn", family) for family in sorted(set(FAMILIES) - ONLY_EAGER - WINDOWS - {"deepseek_v3"})),
        *(("fa4", family) for family in sorted(set(FAMILIES) - {"deepseek_v3"})),
    ],
)
def test_fast_backends_equal_eager_to_the_precision_of_bf16(attend: str, family: str) -> None:
    if attend == "fa4" and not FA4:
        pytest.skip("needs flash-attn-4 and a GPU it runs on")
    ids_BS, positions_BS, bounds = (x.to("cuda") for x in make_rows())
    facts = {"input_ids": ids_BS, "position_ids": positions_BS, "cu_seqlens": bounds, "max_seqlen": 20}
    outs = []
    for name, dtype in (("eager", torch.float32), ("eager", torch.bfloat16), (attend, torch.bfloat16)):
        model = use_attention(build_model(make_config(family), device="cuda").to(dtype), name)
        outs.append(model(**facts, use_cache=False).logits.float())
    exact, noisy, fast = outs
    noise = (noisy - exact).norm() / exact.norm()
    assert (fast - exact).norm() / exact.norm() <= 1.5 * noise + 1e-3


@pytest.mark.gpu
def test_a_window_of_varlen_without_causality_reaches_both_ways() -> None:
    draw = torch.Generator().manual_seed(0)
    heads = [torch.randn((2, 4, 24, 16), generator=draw).to("cuda", torch.bfloat16) for _ in range(3)]
    facts = {"cu_seqlens": make_rows()[2].to("cuda"), "max_seqlen": 20, "sliding_window": 5, "is_causal": False}
    exact, _ = eager(nn.Identity(), *(x.float() for x in heads), **facts)
    out, _ = varlen(nn.Identity(), *heads, **facts)
    assert (out - exact).norm() <= 1e-2 * exact.norm()


@pytest.mark.parametrize("family", ["llama", "gpt_oss", "mistral"])
@pytest.mark.parametrize("trap", ["use_cache", "mask of ones", "positions only"])
def test_documents_stay_apart_whatever_else_is_passed(family: str, trap: str) -> None:
    model = use_attention(build_model(make_config(family)), "eager").eval()
    ids_BS, positions_BS, bounds = make_rows()
    facts = {"input_ids": ids_BS, "position_ids": positions_BS, "cu_seqlens": bounds, "max_seqlen": 20}
    expected = model(**facts, use_cache=False).logits
    if trap == "use_cache":
        got = model(**facts, use_cache=True).logits
    elif trap == "mask of ones":
        got = model(**facts, attention_mask=torch.ones_like(ids_BS), use_cache=False).logits
    else:
        got = model(input_ids=ids_BS, position_ids=positions_BS, use_cache=False).logits
    assert torch.equal(got, expected)


def test_a_token_of_one_document_never_moves_another() -> None:
    model = use_attention(build_model(make_config("qwen3")), "sdpa").eval()
    ids_BS, positions_BS, bounds = make_rows()
    facts = {"position_ids": positions_BS, "cu_seqlens": bounds, "max_seqlen": 20, "use_cache": False}
    before = model(input_ids=ids_BS, **facts).logits
    changed = ids_BS.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 80  # The first token of the third document, of tokens 10 to 22.
    moved = (model(input_ids=changed, **facts).logits != before).any(-1)
    assert moved[0, 10:23].all()
    assert not moved[0, :10].any()
    assert not moved[0, 23:].any()
    assert not moved[1].any()


def test_without_facts_each_row_is_one_document() -> None:
    config = make_config("llama")
    ours = use_attention(build_model(config), "sdpa").eval()
    plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    plain.load_state_dict(ours.state_dict())
    ids_BS = make_rows()[0]
    expected = plain(input_ids=ids_BS, use_cache=False).logits
    assert torch.allclose(ours(input_ids=ids_BS, use_cache=False).logits, expected, atol=1e-5)


def test_a_model_of_the_same_configuration_keeps_its_attention() -> None:
    config = make_config("llama")
    plain, ours = (AutoModelForCausalLM.from_config(config, attn_implementation="eager") for _ in range(2))
    ids_BS = make_rows()[0]
    before = plain(input_ids=ids_BS, use_cache=False).logits
    use_attention(ours, "sdpa")
    assert torch.equal(plain(input_ids=ids_BS, use_cache=False).logits, before)
    assert ours.config is ours.model.config is ours.model.layers[0].self_attn.config is not config


def test_two_models_keep_their_own_attention() -> None:
    first, second = (use_attention(build_model(make_config("llama"), seed=seed), "eager").eval() for seed in (0, 1))
    ids_BS = make_rows()[0]
    before = second(input_ids=ids_BS, use_cache=False).logits
    calls = []

    def counted(attend):
        def counting(*args, **facts):
            calls.append(1)
            return attend(*args, **facts)

        return counting

    first = map_attention(first, counted)
    first(input_ids=ids_BS, use_cache=False)
    assert len(calls) == 2
    assert torch.equal(second(input_ids=ids_BS, use_cache=False).logits, before)
    assert len(calls) == 2


@pytest.mark.parametrize(("family", "asked"), [("gemma2", "softcap"), ("gpt_oss", "s_aux")])
@pytest.mark.parametrize("attend", ["sdpa", "cudnn", "varlen"])
def test_a_backend_refuses_by_name_what_it_lacks(family: str, asked: str, attend: str) -> None:
    model = use_attention(build_model(make_config(family)), attend)
    with pytest.raises(ValueError, match=f"{attend} attention has no {asked}, which this model asks for: use eager"):
        model(input_ids=make_rows()[0], use_cache=False)


def test_varlen_off_a_gpu_is_refused() -> None:
    model = use_attention(build_model(make_config("llama")), "varlen")
    with pytest.raises(
        ValueError, match=r"varlen attention needs bf16 or fp16 on CUDA, got torch.float32 on cpu: use sdpa"
    ):
        model(input_ids=make_rows()[0], use_cache=False)


def test_a_mask_with_zeros_is_refused() -> None:
    model = use_attention(build_model(make_config("llama")), "sdpa")
    mask = torch.ones(2, 24, dtype=torch.long)
    mask[0, :3] = 0
    with pytest.raises(ValueError, match="attention_mask with zeros"):
        model(input_ids=make_rows()[0], attention_mask=mask)


def test_a_cache_is_refused() -> None:
    model = use_attention(build_model(make_config("llama")), "sdpa").eval()
    first = model(input_ids=make_rows()[0], use_cache=True)
    with pytest.raises(ValueError, match="1 queries met 25 keys: this attention trains and reads no cache"):
        model(input_ids=torch.tensor([[1], [2]]), past_key_values=first.past_key_values, use_cache=True)


def test_an_unknown_backend_and_a_missing_one_are_refused() -> None:
    model = build_model(make_config("llama"))
    with pytest.raises(
        ValueError, match="there is no attention 'flash'; there are eager, sdpa, cudnn, flex, varlen, fa4"
    ):
        use_attention(model, "flash")
    with pytest.raises(ValueError, match="apply use_attention to this LlamaForCausalLM"):
        map_attention(model, lambda attend: attend)


@pytest.mark.parametrize(
    ("family", "device", "dtype", "chosen"),
    [
        ("llama", "cpu", torch.float32, "sdpa"),
        ("llama", "cuda", torch.float32, "sdpa"),
        ("llama", "cuda", torch.bfloat16, "varlen"),
        ("gemma2", "cuda", torch.bfloat16, "eager"),
        ("gpt_oss", "cpu", torch.float32, "eager"),
    ],
)
def test_the_fastest_exact_backend_is_chosen(family: str, device: str, dtype: torch.dtype, chosen: str) -> None:
    model = build_model(make_config(family), device="meta")
    chosen = "fa4" if FA4 and device == "cuda" and dtype == torch.bfloat16 else chosen
    assert choose_attention(model, device, dtype) == chosen
    assert chosen in ATTENTIONS
    assert not attention_problems(model, chosen, device, dtype)


@pytest.mark.parametrize("attend", ["varlen", "cudnn", "flex"])
def test_dropout_of_weights_is_for_sdpa_alone(attend: str) -> None:
    model = build_model(make_config("llama", attention_dropout=0.1), device="meta")
    assert choose_attention(model, "cuda", torch.bfloat16) == "sdpa"
    assert f"{attend} attention has no dropout" in attention_problems(model, attend, "cuda", torch.bfloat16)[0]
    with pytest.raises(ValueError, match=f"{attend} attention has no dropout"):
        use_attention(build_model(make_config("llama", attention_dropout=0.1)), attend)(input_ids=make_rows()[0])


def test_what_a_layer_hands_over_and_nobody_reads_is_refused() -> None:
    model = use_attention(build_model(make_config("llama")), "eager")
    ids_BS = make_rows()[0]
    with pytest.raises(ValueError, match="LlamaAttention hands position_bias to its attention"):
        model(input_ids=ids_BS, position_bias=torch.zeros(1), use_cache=False)
