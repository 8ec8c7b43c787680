"""Every type of causal language model that transformers has: what works of it, and why the rest does not.

PYTHONPATH=packages/omni-models/tests uv run tests/models.py --write        measure the table of docs/models.md anew

A type is known by the mapping of transformers; its tiny configuration is made of the fields that its own has.
"""

import argparse
import copy
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from experts import grads_of, place, step
from huggingface_hub.errors import StrictDataclassError
from ranks import rank_pool
from safetensors.torch import load_file
from sequence import TOLERANCE, TYPES, fill, packed, plain_loss, worst_error, write_table
from shapes import EXPERTS, ROUTED, SHAPE
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
)
from transformers.configuration_utils import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from omni_ckpt import merge_to_hf, save_dcp
from omni_mesh import MeshConfig, join_world, make_mesh, resolve_mesh
from omni_models import build_model, describe, fill_weights, hf_keys, unsupported
from omni_parallel import named_tensors

DOCS = Path(__file__).parent.parent / "docs" / "models.md"
KINDS = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
ROWS = ((9, 1, 20, 7), (23, 3, 11))
"""Documents of two rows of 37 tokens."""
MESHES = {"shard": MeshConfig(shard=2), "sp": MeshConfig(shard=1, sp=2), "ep": MeshConfig(shard=2, ep=2)}
COLUMNS = ("build", *MESHES, "hf")
MOST_PARAMS = 20_000_000
YES, NOTHING = "yes", ""

FIELDS: dict[str, Any] = {
    **{**SHAPE, **EXPERTS, **ROUTED, "head_dim": 8, "num_local_experts": 4, "moe_num_experts": 4, "moe_k": 2},
    **{"shared_expert_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8},
    **{"qk_nope_head_dim": 8, "v_head_dim": 16, "sliding_window": 5, "n_embd": 32, "n_layer": 2, "n_head": 4},
    **{"n_positions": 128, "n_inner": 48, "d_model": 32, "n_layers": 2, "n_heads": 4, "ffn_dim": 48, "num_layers": 2},
    **{"max_seq_len": 128, "word_embed_proj_dim": 32, "rotary_dim": 4, "kv_channels": 8, "embedding_size": 32},
    **{"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 80, "is_decoder": True},
    **dict.fromkeys(("attention_dropout", "hidden_dropout", "activation_dropout", "residual_dropout"), 0.0),
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout_prob"), 0.0),
    **dict.fromkeys(("attention_probs_dropout_prob", "classifier_dropout"), 0.0),
}
"""What configurations call their sizes."""
LATENT = {"num_key_value_heads": 4}
PADDED = {"pad_token_id": 0}
HYBRID = {"text_config": {"layer_types": ["linear_attention", "full_attention"]}}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8}
OWN: dict[str, dict[str, Any]] = {
    **{kind: LATENT for kind in ("axk1", "axk2", "minicpm3", "youtu", "glm4_moe_lite", "dots3_note_text")},
    **{kind: LATENT for kind in ("deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")},
    **{kind: PADDED for kind in ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta")},
    **{kind: PADDED for kind in ("xlm-roberta-xl", "xmod")},
    **{kind: MAMBA for kind in ("bamba", "granitemoehybrid")},
    "cwm": {"bos_token_id": 0},
    "dots3_note": {"text_config": LATENT},
    "emu3": {"text_config": PADDED},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "longcat_flash": {**LATENT, "zero_expert_num": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "mllama": {"text_config": {"bos_token_id": 0}},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
    "mpt": {"attn_pdrop": 0},
    **{kind: HYBRID for kind in ("qwen3_5", "qwen3_5_moe")},
    "zamba": {"num_hidden_layers": 3},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields of one type, beside these or instead."""


def tiny_config(kind: str) -> PreTrainedConfig:
    """A configuration of two small layers."""
    known = {fields["model_type"]: fields for _, fields in TYPES.values() if "text_config" not in fields}
    if kind in known:
        fields = SHAPE | known[kind]
        return AutoConfig.for_model(fields.pop("model_type"), **fields)
    fields = tiny_fields(CONFIG_MAPPING[kind]())
    for name, value in OWN.get(kind, {}).items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    config = AutoConfig.for_model(kind, **fields)
    kinds = getattr(config, "layer_types", None)
    return AutoConfig.for_model(kind, **fields, layer_types=list(kinds)[:2]) if kinds and len(kinds) > 2 else config


def tiny_fields(config: PreTrainedConfig) -> dict[str, Any]:
    """Those of `FIELDS` that a configuration has, and of the configurations in it."""
    has = {*config.to_dict(), *config.attribute_map}
    inner = {name: getattr(config, name, None) for name in config.sub_configs}
    own = {name: value for name, value in FIELDS.items() if name in has}
    return own | {name: tiny_fields(each) for name, each in inner.items() if isinstance(each, PreTrainedConfig)}


def examine(kind: str, folder: Path) -> dict[str, str]:
    """What works of a type, on two ranks: by column `YES`, `NOTHING` if it has nothing of that, or why not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Each of two hundred modeling files may say what it likes.
        try:
            config = tiny_config(kind)
        except (ValueError, StrictDataclassError) as problem:
            return {"build": f"not tried, as its fields make no tiny configuration: {reason(problem)}"}
        try:
            empty = build_model(config, device="meta")
            facts = describe(empty)
        except (ValueError, ImportError) as problem:
            return {"build": reason(problem)}
        assert facts.num_params < MOST_PARAMS, f"{kind} is not tiny: {facts.num_params:,} parameters"
        if reasons := unsupported(empty):
            return {"build": YES, "pack": " ".join(why.partition(" yet: ")[2] for why in reasons)}
        plain = fill(make_text(config, type(empty)))
        start = copy.deepcopy(plain)
        try:
            expected = plain_loss(plain, packed(ROWS)[2])
        except ValueError as problem:
            return {"build": YES, "pack": f"plain transformers: {reason(problem)}"}
        theirs = {key: param.grad for key, param in plain.named_parameters()}
        found = {"build": YES}
        with join_world(device="cpu"):
            for label, mesh in MESHES.items():
                wanted = label != "ep" or facts.experts
                found[label] = equals(start, mesh, expected, theirs) if wanted else NOTHING
            if found["shard"] == YES:
                found["hf"] = comes_back(start, empty, folder)
    return found


def make_text(config: PreTrainedConfig, kind: type[PreTrainedModel]) -> PreTrainedModel:
    """A plain model of a configuration, of the class that we build of it, whose experts compute one by one."""
    torch.manual_seed(0)
    text = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)  # pyright: ignore[reportArgumentType]
    auto = AutoModelForCausalLM if kind is text else AutoModelForImageTextToText
    model = auto.from_config(config, dtype=torch.float32, attn_implementation="eager")
    model.set_experts_implementation("eager")
    return model


def equals(start: PreTrainedModel, config: MeshConfig, loss: float, grads: Mapping[str, Tensor | None]) -> str:
    """Whether loss and every gradient on a mesh of two ranks are these. Collective."""
    mesh = make_mesh(resolve_mesh(config, 2), device_type="cpu")
    try:
        ours = place(copy.deepcopy(start), mesh)
        off = abs(step(ours, mesh, ROWS) - loss) / loss
    except ValueError as problem:
        return reason(problem)
    worst, name = worst_error(grads_of(ours), grads)
    far = f"the loss is off by {off:.0e}, the gradient of {name} by {worst:.0e}"
    return YES if max(off, worst) <= TOLERANCE else far


def comes_back(plain: PreTrainedModel, empty: PreTrainedModel, folder: Path) -> str:
    """Whether what transformers writes is read into a sharded model, and what is merged of that is what was read."""
    mesh = make_mesh(resolve_mesh(MeshConfig(shard=2), 2), device_type="cpu")
    first = torch.distributed.get_rank() == 0
    try:
        if first:
            plain.save_pretrained(folder / "hf")
        torch.distributed.barrier()
        ours = fill_weights(place(empty, mesh), folder / "hf")
        save_dcp({"state": {"model": named_tensors(ours)}}, folder / "step")
        if not first:
            return YES
        merge_to_hf(folder / "step", folder / "back", to_hf=hf_keys(plain))
    except ValueError as problem:
        return reason(problem)
    theirs, back = (load_file(folder / name / "model.safetensors") for name in ("hf", "back"))
    wrong = sorted({*theirs} ^ {*back})
    wrong += [key for key in theirs if key in back and not torch.equal(theirs[key], back[key])]
    return f"other tensors come back: {', '.join(wrong[:3])}" if wrong else YES


def reason(problem: Exception) -> str:
    """What is wrong, in a line: what is common to several problems is left out."""
    lines = [line.strip(" -") for line in str(problem).splitlines() if line.strip()]
    told = lines[1] if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    return told if len(told) < 160 else f"{told[:157]}..."


def table(measured: Mapping[str, Mapping[str, str]]) -> str:
    """The table of the docs: types of which all works, then those of which something does not, with the reason."""
    whole = [kind for kind, cells in measured.items() if is_whole(cells)]
    experts = [kind for kind in whole if measured[kind]["ep"] == YES]
    number = f"{len(whole)} of the {len(measured)} types of transformers {transformers.__version__}"
    lines = [f"{number}: {', '.join(whole)}.", ""]
    lines += [f"Of these have experts, which `--ep` spreads: {', '.join(experts)}.", ""]
    lines += ["| type | what does not work | why |", "| --- | --- | --- |"]
    for kind, cells in measured.items():
        lines += [f"| {kind} | {name} | {why} |" for name, why in cells.items() if why not in (YES, NOTHING)]
    return "\n".join(lines)


def is_whole(cells: Mapping[str, str]) -> bool:
    """Whether all that applies to a type works."""
    return set(cells) == {*COLUMNS} and set(cells.values()) <= {YES, NOTHING}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/models.md")
    parser.add_argument("kinds", nargs="*")
    asked = parser.parse_args()
    import models  # A rank finds the function by the name of its module, which is not __main__.

    measured: dict[str, Mapping[str, str]] = {}
    with rank_pool() as run:
        for name in asked.kinds or KINDS:
            with tempfile.TemporaryDirectory() as at:
                measured[name] = run(models.examine, 2, name, Path(at))[0]
            print(name, measured[name], flush=True)
    if asked.write:
        write_table(DOCS, table(measured))
