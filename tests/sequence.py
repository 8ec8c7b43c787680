"""Sequence parallelism against plain transformers: tiny models of many types, and the comparison that a rank makes.

PYTHONPATH=packages/omni-models/tests uv run tests/sequence.py --write        measure the table of docs/sequence.md anew
"""

import argparse
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ranks import rank_pool
from shapes import EXPERTS, FAMILIES, LINEAR_FAMILIES, MIXTURES, ROUTED, SHAPE
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from omni_data import document_bounds, pack_batch, shard_sequence
from omni_mesh import MeshConfig, MeshSpec, join_world, make_mesh, resolve_mesh
from omni_models import (
    attention_problems,
    build_model,
    count_targets,
    describe,
    map_attention,
    summed_loss,
    unsupported,
    use_attention,
)
from omni_parallel import apply_ulysses, global_sum, plan_parallel

TOLERANCE = 1e-5
DOCS = Path(__file__).parent.parent / "docs" / "sequence.md"
DEEPSEEK = FAMILIES["deepseek_v3"]
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.5, 2.0, 2.5, 3.0],
}
DYNAMIC_ROPE = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 16}
IMAGE, PATCH = 5, {"in_channels": 3, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2}
SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
VISION: dict[str, Any] = {
    **{"image_token_id": IMAGE, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4},
    "text_config": {**SHAPE, **EXPERTS, "head_dim": 8, "rope_parameters": SECTIONS},
    "vision_config": {
        **{"depth": 2, "num_heads": 4, "hidden_size": 32, "intermediate_size": 48, **PATCH},
        **{"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]},
    },
}
"""A vision and a language model in one."""
TYPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("grouped heads", FAMILIES["llama"]),
    "llama, 7 heads": (
        "heads that divide by nothing",
        {"model_type": "llama", "hidden_size": 56, "num_attention_heads": 7, "num_key_value_heads": 1},
    ),
    "mistral": ("sliding window", FAMILIES["mistral"]),
    "qwen2": ("tied embeddings, biases", FAMILIES["qwen2"]),
    "qwen2, mixed windows": (
        "sliding and full layers",
        {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("normalised heads", FAMILIES["qwen3"]),
    "qwen3_moe": ("experts", FAMILIES["qwen3_moe"]),
    "mixtral": ("experts, sliding window", MIXTURES["mixtral"]),
    "gemma": ("scaled embeddings", {"model_type": "gemma", "head_dim": 8}),
    "gemma2": ("softcap, windows", FAMILIES["gemma2"]),
    "gemma3_text": ("two position encodings, windows", FAMILIES["gemma3"]),
    "phi": ("partial rotary", {"model_type": "phi"}),
    "phi3": ("fused projections", FAMILIES["phi3"]),
    "phi3, longrope": (
        "positions that grow with the document",
        {"model_type": "phi3", "rope_parameters": LONG_ROPE, "original_max_position_embeddings": 16},
    ),
    "llama, dynamic": (
        "positions that grow with the document",
        {"model_type": "llama", "rope_parameters": DYNAMIC_ROPE, "max_position_embeddings": 16},
    ),
    "glm": ("partial rotary", {"model_type": "glm", "head_dim": 8}),
    "glm4": ("sandwich norms", {"model_type": "glm4", "head_dim": 8}),
    "glm4_moe": ("experts, shared expert", MIXTURES["glm4_moe"]),
    "olmo": ("plain layer norm", {"model_type": "olmo"}),
    "olmo2": ("norms after", {"model_type": "olmo2"}),
    "olmo3": (
        "windows, norms after",
        {"model_type": "olmo3", "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "olmoe": ("experts", MIXTURES["olmoe"]),
    "cohere": ("parallel block, scaled logits", FAMILIES["cohere"]),
    "cohere2": (
        "layers without positions",
        {"model_type": "cohere2", "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "starcoder2": ("biases, layer norm", {"model_type": "starcoder2", "sliding_window": 5}),
    "stablelm": ("layers that drop arguments", {"model_type": "stablelm"}),
    "nemotron": ("layers that drop arguments", {"model_type": "nemotron", "head_dim": 8}),
    "gpt2": (
        "learned positions, one fused projection",
        {
            "model_type": "gpt2",
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 128,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
    ),
    "gpt_neox": ("parallel block", {"model_type": "gpt_neox"}),
    "gpt_oss": ("sinks, windows, experts", FAMILIES["gpt_oss"]),
    "deepseek_v2": ("latent attention, unequal heads", MIXTURES["deepseek_v2"]),
    "deepseek_v3": ("latent attention, unequal heads", DEEPSEEK),
    "smollm3": ("layers without positions", {"model_type": "smollm3", "no_rope_layers": [1, 0]}),
    "granite": ("multipliers", FAMILIES["granite"]),
    "granitemoe": ("experts", MIXTURES["granitemoe"]),
    "ernie4_5": ("interleaved rotary", {"model_type": "ernie4_5", "head_dim": 8}),
    "ernie4_5_moe": ("experts", MIXTURES["ernie4_5_moe"]),
    "seed_oss": (
        "biases",
        {"model_type": "seed_oss", "head_dim": 8, "attention_dropout": 0.0, "residual_dropout": 0.0},
    ),
    "helium": ("interleaved rotary", {"model_type": "helium", "head_dim": 8}),
    "exaone4": (
        "windows, norms after",
        {"model_type": "exaone4", "sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "hunyuan_v1_dense": ("normalised heads", {"model_type": "hunyuan_v1_dense", "head_dim": 8}),
    "minimax_m2": ("experts", MIXTURES["minimax_m2"]),
    "arcee": ("squared relu", {"model_type": "arcee", "head_dim": 8}),
    "bitnet": ("inner norms", {"model_type": "bitnet"}),
    "dots1": (
        "experts",
        {
            "model_type": "dots1",
            "n_shared_experts": 1,
            "head_dim": 8,
            **ROUTED,
        },
    ),
    "vaultgemma": (
        "softcap",
        {"model_type": "vaultgemma", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 5},
    ),
    "qwen3_next": ("linear attention, gates", LINEAR_FAMILIES["qwen3_next"]),
    "qwen3_5_text": ("linear attention, gates", LINEAR_FAMILIES["qwen3_5"]),
    "qwen3_5_moe_text": ("linear attention, experts", LINEAR_FAMILIES["qwen3_5_moe"]),
    "qwen2_vl": ("images, positions in three dims", VISION | {"model_type": "qwen2_vl"}),
    "qwen2_vl, text": ("rows of text, positions in four dims", VISION | {"model_type": "qwen2_vl"}),
    "qwen2_5_vl": ("images, positions in three dims", VISION | {"model_type": "qwen2_5_vl"}),
    "qwen3_vl": ("images, features added in several layers", VISION | {"model_type": "qwen3_vl"}),
    "qwen3_vl_moe": ("images, experts", VISION | {"model_type": "qwen3_vl_moe"}),
    "olmo_hybrid": ("linear attention, three convolutions", LINEAR_FAMILIES["olmo_hybrid"]),
}
"""Tiny models of many types: what sequence parallelism meets in each, and the configuration."""


REFUSED: dict[str, dict[str, Any]] = {
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "state_size": 8},
    "jamba": {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "minimax": {"num_local_experts": 2},
    "kimi_linear": {},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "lru_width": 32},
    "rwkv": {},
    "deepseek_v32": {**DEEPSEEK, "index_n_heads": 2, "index_head_dim": 8, "index_topk": 4},
    "llama4_text": {"attention_chunk_size": 4, "num_local_experts": 2},
    "doge": {},
    "modernbert-decoder": {"pad_token_id": 0, "bos_token_id": 1, "cls_token_id": 1, "sep_token_id": 1},
    "bloom": {},
}
"""Types that sequence parallelism cannot cut, and fields of a tiny configuration of each."""

LENGTHS = ((9, 1, 20, 7), (23, 3, 11), (37,))
"""Documents of three rows of 37 tokens, which no number of ranks divides."""


def make_config(fields: Mapping[str, Any]) -> Any:
    """A tiny configuration: `fields` over those of `SHAPE`; of a model with images, those of its text."""
    fields = dict(fields if "text_config" in fields else SHAPE | fields)
    return AutoConfig.for_model(fields.pop("model_type"), **fields)


def make_model(name: str) -> PreTrainedModel:
    """A tiny plain model, on the CPU in fp32, whose weights are perturbed so that none is trivial."""
    return fill(make_kind(make_config(TYPES[name][1])))


def make_kind(config: Any) -> PreTrainedModel:
    """A plain model of a configuration, with or without images."""
    kind = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    torch.manual_seed(0)
    return kind.from_config(config, dtype=torch.float32, attn_implementation="eager")


def fill(model: PreTrainedModel) -> PreTrainedModel:
    """The same model in training, its weights perturbed. Donates `model`."""
    with torch.no_grad():
        for key, param in model.named_parameters():
            # Fresh linear attention forgets within a token; this one remembers documents.
            param.uniform_(-4, -2) if key.endswith("A_log") else param.add_(torch.randn_like(param), alpha=0.05)
    return model.train()


def refusal(kind: str) -> str:
    """Why type `kind` cannot be cut, as a user is told."""
    model = build_model(make_config({**REFUSED[kind], "model_type": kind}), device="meta")
    if not (problems := unsupported(model)):
        try:
            plan_parallel(describe(model), MeshSpec(sp=2))
        except ValueError as problem:
            problems = [line.strip(" -") for line in str(problem).splitlines()[1:]]
    return " ".join(problems)


def compare(name: str, sp: int, chunks: int = 1) -> tuple[float, float, str]:
    """On a rank of `sp`: relative errors of the loss and of the worst gradient, and the name of that parameter."""
    plain = make_model(name)
    ours = copy.deepcopy(plain)
    inputs, labels_BS, documents = images() if TYPES[name][0].startswith("images") else packed()
    if TYPES[name][0].startswith("rows of text"):
        inputs["position_ids"] = inputs["position_ids"].expand(4, -1, -1)
    expected = plain_loss(plain, documents)
    with join_world(device="cpu"):
        spec = resolve_mesh(MeshConfig(shard=1, sp=sp), sp)
        mesh = make_mesh(spec, device_type="cpu")
        plan = plan_parallel(describe(ours), spec, sp_chunks=chunks)
        attend = "eager" if attention_problems(ours, "sdpa", "cpu", torch.float32) else "sdpa"
        ours = apply_ulysses(use_attention(ours, attend), mesh, plan, over=map_attention)
        labels_Bs = torch.from_numpy(shard_sequence(labels_BS.numpy(), mesh.tokens.get_local_rank("sp"), sp))
        loss = summed_loss(ours, inputs, labels_Bs) / global_sum(count_targets(labels_Bs))
        loss.backward()
        mine: dict[str, Tensor | None] = {}
        for key, param in ours.named_parameters():
            having = global_sum(torch.tensor(float(param.grad is not None))).item()
            assert having in (0.0, float(sp)), f"{key} has a gradient on {having} of {sp} ranks"
            mine[key] = None if param.grad is None else global_sum(param.grad)
        error = abs(global_sum(loss.detach()).item() - expected) / expected
    return error, *worst_error(mine, {key: param.grad for key, param in plain.named_parameters()})


def packed(
    lengths: Sequence[Sequence[int]] = LENGTHS, *, skip: Sequence[Sequence[int]] = ()
) -> tuple[dict[str, Any], Tensor, list[dict[str, Tensor]]]:
    """Rows of random documents: inputs and labels of the whole rows, and the arguments of each document alone.

    They are those that come after the rows of `skip`.
    """
    random = torch.Generator().manual_seed(1)
    drawn = [[torch.randint(10, 80, (n,), generator=random).tolist() for n in row] for row in (*skip, *lengths)]
    rows = drawn[len(skip) :]
    batch = pack_batch(rows, max(map(sum, lengths)))
    bounds, longest = document_bounds(batch.segments_BS)
    inputs = {
        "input_ids": torch.from_numpy(batch.tokens_BS),
        "position_ids": torch.from_numpy(batch.positions_BS),
        "cu_seqlens": torch.from_numpy(bounds),
        "max_seqlen": longest,
    }
    documents = [{"input_ids": torch.tensor([document])} for row in rows for document in row]
    return inputs, torch.from_numpy(batch.labels_BS), documents


def images() -> tuple[dict[str, Any], Tensor, list[dict[str, Tensor]]]:
    """A row of text and two images, one of them across the bounds of slices; as `packed`, with one document."""
    random = torch.Generator().manual_seed(1)
    grids = torch.tensor([[1, 8, 8], [1, 4, 8]])
    sizes = (grids.prod(-1) // PATCH["spatial_merge_size"] ** 2).tolist()
    words = [torch.randint(10, 80, (n,), generator=random).tolist() for n in (7, 9, 3)]
    ids = torch.tensor([[*words[0], 3, *[IMAGE] * sizes[0], 4, *words[1], 3, *[IMAGE] * sizes[1], 4, *words[2]]])
    patch = PATCH["in_channels"] * PATCH["temporal_patch_size"] * PATCH["patch_size"] ** 2
    pixels = torch.randn(int(grids.prod(-1).sum()), patch, generator=random)
    kinds = (ids == IMAGE).int()
    inputs = {"input_ids": ids, "pixel_values": pixels, "image_grid_thw": grids, "mm_token_type_ids": kinds}
    labels_BS = torch.cat([ids[:, 1:], torch.full((1, 1), -100)], dim=1)
    return inputs, labels_BS, [inputs]


def plain_loss(model: PreTrainedModel, documents: list[dict[str, Tensor]]) -> float:
    """The mean loss over all targets by plain transformers: its own loss of each document alone; leaves gradients."""
    targets = sum(document["input_ids"].shape[1] - 1 for document in documents)
    total = 0.0
    for document in documents:
        share = (document["input_ids"].shape[1] - 1) / targets
        if share:
            loss = model(**document, labels=document["input_ids"], use_cache=False).loss * share
            loss.backward()
            total += loss.item()
    return total


def worst_error(mine: Mapping[str, Tensor | None], theirs: Mapping[str, Tensor | None]) -> tuple[float, str]:
    """The largest error of a gradient, the norm of the difference over its own, and whose it is.

    A gradient that is zero but for rounding is measured by a thousandth of the largest of the model.
    """
    assert mine.keys() == theirs.keys()
    least = 1e-3 * max(grad.norm().item() for grad in theirs.values() if grad is not None)
    errors: list[tuple[float, str]] = []
    for name, grad in theirs.items():
        other = mine[name]
        assert (grad is None) == (other is None), name
        if grad is not None and other is not None:
            errors.append(((other - grad).norm().item() / max(grad.norm().item(), least), name))
    return max(errors)


def table(errors: Mapping[str, tuple[float, float]]) -> str:
    """The table of the docs: by type the worst error of a gradient with 2 and with 4 ranks; the types refused last."""
    lines = ["| type | what is in it | sp 2 | sp 4 |", "| --- | --- | --- | --- |"]
    lines += [f"| {name} | {TYPES[name][0]} | {two:.0e} | {four:.0e} |" for name, (two, four) in errors.items()]
    lines += ["", "| type | why it is refused |", "| --- | --- |"]
    lines += [f"| {kind} | {refusal(kind)} |" for kind in REFUSED]
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Put `text` in the place of the table of a document. Effect: writes it."""
    before, _, rest = path.read_text().partition("<!-- table -->\n")
    path.write_text(f"{before}<!-- table -->\n{text}\n<!-- /table -->{rest.partition('<!-- /table -->')[2]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into docs/sequence.md")
    write = parser.parse_args().write
    import sequence  # A rank finds the function by the name of its module, which is not __main__.

    with rank_pool() as run:
        measured = {}
        for type_name in TYPES:
            measured[type_name] = tuple(run(sequence.compare, sp, type_name, sp)[0][1] for sp in (2, 4))
            print(type_name, *measured[type_name], flush=True)
    if write:
        write_table(DOCS, table(measured))
