"""Laws of adapters on one rank: what they leave as it is, what they refuse, and that plain peft reads them."""

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from shapes import make_config
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from omni_models import (
    LoraSettings,
    add_lora,
    build_model,
    describe,
    fill_weights,
    hf_keys,
    lora_problems,
    merge_adapters,
    peft_keys,
    read_adapters,
    save_adapter_config,
    summed_loss,
    use_attention,
)
from omni_models.fused import make_triton
from omni_models.kernels import apply_kernels, describe_kernels
from omni_models.lora import find_targets
from omni_models.weights import loadable

IDS = torch.arange(3, 40)[None]
ALL = LoraSettings(rank=4, alpha=8)
SAVING = LoraSettings(rank=2, alpha=3, targets=("q_proj", ".*[02].*down_proj"), save=("lm_head", "model.norm"))


def plain_model(family: str = "llama", **changes: Any) -> PreTrainedModel:
    return build_model(make_config(family, tie_word_embeddings=False, **changes), seed=5)


def stir_(model: PreTrainedModel) -> PreTrainedModel:
    """`model`, all that is trained of which is something else. Changes `model`."""
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for param in model.parameters():
            if param.requires_grad:
                param.add_(torch.randn(param.shape, generator=random), alpha=0.1)
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load_by_peft(base: PreTrainedModel, folder: Path) -> PeftModel:
    with warnings.catch_warnings():
        # What peft calls that transformers has another name for.
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        return PeftModel.from_pretrained(base, str(folder))


def write_adapters(model: PreTrainedModel, folder: Path, base: str = "base") -> None:
    save_adapter_config(model, folder, base=base)
    trained = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}
    save_file(peft_keys(model)(trained), folder / "adapter_model.safetensors")


@pytest.mark.parametrize("settings", [ALL, SAVING], ids=["all", "with a head"])
def test_a_model_gives_what_it_gave_until_its_adapters_are_trained(settings: LoraSettings) -> None:
    model = plain_model()
    before, kind, facts = logits(model), type(model), describe(model)
    state = torch.get_rng_state()
    adapted = add_lora(model, settings)
    assert adapted is model and type(model) is kind and describe(model) == facts
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(logits(model), before)
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    assert trained and all("lora_" in name or "modules_to_save" in name for name in trained)


def test_where_adapters_start_depends_on_the_seed_alone() -> None:
    def start(seed: int, device: str) -> dict[str, Tensor]:
        model = add_lora(build_model(make_config("llama"), seed=seed, device=device), ALL, seed=seed)
        model = fill_weights(model, None, seed=seed) if device == "meta" else model
        return {name: param for name, param in model.named_parameters()}

    first, again, other = start(1, "cpu"), start(1, "meta"), start(2, "cpu")
    assert all(torch.equal(first[name], again[name]) for name in first)
    down = [name for name in first if "lora_A" in name]
    assert not any(torch.equal(first[name], other[name]) for name in down)
    assert not any(torch.equal(first[down[0]], first[name]) for name in down[1:] if "q_proj" in name)
    bound = 1 / first[down[0]].shape[1] ** 0.5  # That of torch's linear layers.
    assert 0.9 * bound < first[down[0]].abs().max() <= bound


def test_weights_of_a_directory_are_those_of_the_model_without_adapters(tmp_path: Path) -> None:
    plain = plain_model("qwen3_moe")
    plain.save_pretrained(tmp_path)
    model = add_lora(build_model(plain.config, device="meta"), LoraSettings(rank=2, save=("lm_head",)))
    assert torch.equal(logits(fill_weights(model, tmp_path)), logits(plain))
    keys, theirs = hf_keys(model), hf_keys(plain)
    ours = keys({name.replace(".base_layer", ""): p for name, p in model.named_parameters() if is_base(name)})
    assert set(ours) <= set(theirs(loadable(plain)))


def is_base(name: str) -> bool:
    return "lora_" not in name and "modules_to_save" not in name and "original_module" not in name


def test_plain_peft_makes_the_same_model_of_the_same_settings() -> None:
    plain = plain_model()
    model = stir_(add_lora(copy.deepcopy(plain), LoraSettings(rank=4, alpha=8, targets=("q_proj", "up_proj"))))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".is_gradient_checkpointing. is deprecated", FutureWarning)
        theirs = get_peft_model(plain, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    theirs.base_model.model.load_state_dict(model.state_dict())
    assert torch.equal(logits(model), logits(theirs))


@pytest.mark.parametrize("settings", [ALL, SAVING], ids=["all", "with a head"])
def test_what_is_written_loads_in_plain_peft_and_gives_the_same(settings: LoraSettings, tmp_path: Path) -> None:
    plain = plain_model()
    model = stir_(add_lora(copy.deepcopy(plain), settings))
    assert (logits(model) - logits(plain)).abs().max() > 1e-2
    write_adapters(model, tmp_path / "adapters", base="owner/name")
    theirs = load_by_peft(copy.deepcopy(plain), tmp_path / "adapters")
    assert theirs.peft_config["default"].base_model_name_or_path == "owner/name"
    assert torch.equal(logits(theirs), logits(model))
    again = read_adapters(build_model(plain.config, device="meta"), tmp_path / "adapters")
    ours = {name: (param.shape, param.requires_grad) for name, param in model.named_parameters()}
    assert {name: (param.shape, param.requires_grad) for name, param in again.named_parameters()} == ours


@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_merged_model_is_plain_and_gives_the_same(family: str, tmp_path: Path) -> None:
    plain = plain_model(family)
    settings = LoraSettings(rank=2, alpha=3, targets=("q_proj", "o_proj"), save=("lm_head",))
    model = stir_(add_lora(copy.deepcopy(plain), settings))
    wanted = logits(model)
    merged = merge_adapters(model)
    assert merged is model and {*loadable(merged)} == {*loadable(plain)}
    merged.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager")
    torch.testing.assert_close(logits(again), wanted, atol=1e-5, rtol=1e-5)
    assert (logits(plain) - wanted).abs().max() > 1e-2


def test_kernels_do_not_go_around_adapters() -> None:
    adapted = stir_(add_lora(plain_model("qwen3"), ALL))
    first = apply_kernels(plain_model("qwen3"), make_triton())
    assert "in use" in describe_kernels(first, device_type="cuda")["Qwen3MLP"]
    first = stir_(add_lora(first, ALL))
    later = apply_kernels(stir_(add_lora(plain_model("qwen3"), ALL)), make_triton(), ("rms_norm", "rope"))
    assert "not fused" in describe_kernels(later, device_type="cuda")["Qwen3MLP"]
    for model in (first, later):
        torch.testing.assert_close(logits(model), logits(adapted), atol=1e-5, rtol=1e-5)
    use_attention(first, "eager")(input_ids=IDS).logits.square().sum().backward()
    assert all(param.grad is not None and param.grad.any() for param in first.parameters() if param.requires_grad)


def test_the_chunked_loss_trains_a_head_beside_adapters() -> None:
    grads = {}
    for impl in ("chunked", "full"):
        model = stir_(add_lora(plain_model(), SAVING))
        summed_loss(model, {"input_ids": IDS}, IDS, impl=impl).backward()
        grads[impl] = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    assert grads["chunked"]["lm_head.modules_to_save.default.weight"].any()
    for name, grad in grads["full"].items():
        torch.testing.assert_close(grads["chunked"][name], grad, atol=1e-4, rtol=1e-5)


def test_left_out_targets_are_the_linear_layers_of_blocks() -> None:
    names = {name.rpartition(".")[2] for name in find_targets(plain_model(), ())}
    assert names == {f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {name.rpartition(".")[2] for name in find_targets(plain_model("deepseek_v3"), ())} & {
        "gate",
        "down_proj",
    } == set()


@pytest.mark.parametrize(
    ("family", "settings", "told"),
    [
        ("llama", LoraSettings(4, targets=("q_prj",)), "q_prj is no linear layer. Did you mean q_proj?"),
        ("llama", LoraSettings(4, targets=("norm",)), "means model.norm, a LlamaRMSNorm: only linear layers"),
        ("llama", LoraSettings(4, targets=("lm_head",)), "train it whole by lora.save lm_head"),
        ("llama", LoraSettings(4, targets=("(",)), "neither a name nor a regular expression"),
        ("llama", LoraSettings(4, save=("lm_hed",)), "lm_hed is no module. Did you mean lm_head?"),
        ("llama", LoraSettings(4, save=("layers",)), "is or has a block or experts"),
        ("llama", LoraSettings(4, save=("q_proj",)), "where adapters are, too"),
        ("llama", LoraSettings(-1), "lora.rank=-1 must be at least 0"),
        ("llama", LoraSettings(4, alpha=0.0), "lora.alpha=0.0 must be positive"),
        ("llama", LoraSettings(4, dropout=1.0), "lora.dropout=1.0 must be at least 0 and less than 1"),
        ("llama", LoraSettings(0, targets=("q_proj",)), "lora.rank=0 is no adapter, but lora.targets is given"),
        ("qwen3_moe", LoraSettings(4, targets=("down_proj",)), "weights of many experts: adapters there are not built"),
        ("qwen3_moe", LoraSettings(4, targets=("experts",)), "weights of many experts"),
        ("deepseek_v3", LoraSettings(4, targets=(".*shared_experts.up_proj",)), "which peft takes for weights of exp"),
    ],
)
def test_what_cannot_be_adapted_is_refused_by_name(family: str, settings: LoraSettings, told: str) -> None:
    model = plain_model(family)
    (problem,) = lora_problems(model, settings)
    assert told in problem
    with pytest.raises(ValueError, match="these adapters cannot work"):
        add_lora(model, settings)
    assert all(param.requires_grad for param in model.parameters())


def test_all_that_is_wrong_is_told_at_once() -> None:
    wrong = LoraSettings(4, alpha=-1, targets=("q_prj", "norm"), dropout=2, save=("nothing",))
    assert len(lora_problems(plain_model(), wrong)) == 5
    tied = build_model(make_config("qwen3", tie_word_embeddings=True))
    assert "embedding and head" in lora_problems(tied, LoraSettings(4, save=("lm_head",)))[0]
    assert lora_problems(add_lora(plain_model(), ALL), ALL) == ["the model has adapters already: they are added once."]
    assert lora_problems(plain_model(), LoraSettings()) == []
