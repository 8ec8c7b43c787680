"""Laws of the explanation: it names what is chosen, and has a reason for whatever is not."""

import pytest
import torch
from shapes import FAMILIES, make_config
from transformers import AutoConfig, PreTrainedModel

from omni_models import (
    attention_problems,
    build_model,
    choose_attention,
    choose_experts,
    choose_loss,
    explain,
    kernel_problems,
)
from omni_models.choose import ASKED_FOR, BACKENDS

HOPPER, BLACKWELL = (9, 0), (10, 0)
HERE = {"device_type": "cpu", "dtype": torch.float32}
THERE = {"device_type": "cuda", "dtype": torch.bfloat16, "capability": HOPPER}


def make_model(family: str) -> PreTrainedModel:
    if family == "gpt2":
        config = AutoConfig.for_model("gpt2", vocab_size=80, n_embd=32, n_layer=2, n_head=4, n_positions=128)
    else:
        config = make_config(family)
    return build_model(config, device="meta")


@pytest.mark.parametrize("where", [HERE, THERE], ids=["here", "there"])
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
@pytest.mark.filterwarnings("ignore")
def test_it_names_what_is_chosen_and_says_of_every_other_why_not(family: str, where: dict) -> None:
    model = make_model(family)
    told = explain(model, **where)
    chosen = choose_attention(model, where["device_type"], where["dtype"], capability=where.get("capability"))
    assert told["attention"][0] == chosen
    for name in (*BACKENDS, *ASKED_FOR):
        assert name == chosen or any(name in line for line in told["attention"][1:])
    assert told["loss"][0] == choose_loss(model)
    assert (len(told["loss"]) > 1) == (choose_loss(model) == "full")
    if family in ("gpt_oss", "deepseek_v3", "qwen3_moe"):
        assert told["experts"][0] == choose_experts(model, where["dtype"])
    else:
        assert "experts" not in told
    kinds = {type(module).__name__ for module in model.modules()}
    for part in ("norms", "gates", "rotations"):
        assert told[part]
        assert all(line.split(":")[0] in kinds for line in told[part])
    assert told["kernels"][0].startswith("none: ") == bool(kernel_problems(where["device_type"]))


def test_where_everything_fits_it_says_so() -> None:
    told = explain(make_model("llama"), **HERE)
    assert told["norms"] == ("LlamaRMSNorm: rms_norm (eps 1e-06, weight, cast as llama)",)
    assert told["gates"] == ("LlamaMLP: swiglu (SiLU)",)
    assert told["rotations"] == ("LlamaAttention: rope (in the dtype it is given)",)
    assert told["tiles"] == ("LlamaMLP: token by token",)
    assert told["kernels"][0] == "none: fused kernels run on CUDA, not on cpu."
    assert told["attention"][0] == "sdpa" and "eager would be as exact, and slower" in told["attention"]
    assert "flex would be as exact, and is taken if asked for" in told["attention"]
    assert any(line.startswith("not cudnn: cudnn attention needs bf16 or fp16") for line in told["attention"])
    there = explain(make_model("llama"), **THERE)
    assert "cudnn would be as exact, and is taken if asked for" in there["attention"]


def test_where_kernels_do_not_fit_it_says_why() -> None:
    gemma = explain(make_model("gemma2"), **THERE)
    assert "not sdpa: sdpa attention has no softcap, which gemma2 asks for: use eager." in gemma["attention"]
    assert gemma["loss"] == (
        "full",
        "not chunked: gemma2 changes its logits after the head (final_logit_softcapping): use the full loss.",
    )
    gpt2 = explain(make_model("gpt2"), **THERE)
    assert gpt2["norms"] == ("LayerNorm: not fused: it has something else than one weight, a value a feature",)
    assert gpt2["gates"] == ("GPT2MLP: not fused: it has 0 Linear modules, not three for gate, up and down",)
    assert gpt2["tiles"] == ("GPT2MLP: not token by token: it draws random numbers, as dropout does",)
    assert explain(make_model("qwen3_moe"), **HERE)["tiles"] == ("nothing that looks like it",)
    odd = build_model(make_config("qwen3_moe", moe_intermediate_size=12), device="meta")
    assert explain(odd, **THERE)["experts"][0] == "eager"
    assert "have a width of 12" in explain(odd, **THERE)["experts"][1]


def test_a_gpu_that_is_not_here_is_known_by_its_capability() -> None:
    wide = build_model(make_config("llama", head_dim=256), device="meta")
    told = {
        kind: attention_problems(wide, "fa4", "cuda", torch.bfloat16, capability=kind) for kind in (HOPPER, BLACKWELL)
    }
    assert any("heads of up to 128 on this GPU, not 256 and 256" in why for why in told[BLACKWELL])
    assert not any("heads" in why for why in told[HOPPER])
    assert any("128" in line for line in explain(wide, **THERE | {"capability": BLACKWELL})["attention"])
    assert not any("not here" in line for line in explain(wide, **THERE)["attention"])
