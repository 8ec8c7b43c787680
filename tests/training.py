"""Short training runs for tests: ours by the app itself, and the same by plain transformers on one rank."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pretrain
import torch
from decide import decide
from decision import Decision
from request import Config
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from omni_data import Batch, Cursor, Stream, stream_batches, unpack_batch
from omni_mesh import MeshConfig
from omni_models import build_model, read_config

STEPS = 10
SMALL = Config(
    steps=STEPS,
    dtype="float32",
    batch=12,
    virtual_shards=12,
    seq_len=64,
    save_every=1000,
    mesh=MeshConfig(shard=1),
    out=Path("runs/of-no-test"),
)
"""Ten steps of twelve rows, which one to four ranks can share; every step goes on in every virtual shard.

What is trained has a directory of its own. This one is never made: the default may have a run of who tries the README.
"""

FAMILIES = {
    "tiny": {},
    "llama": {"model_type": "llama", "tie_word_embeddings": False},
    "qwen2": {"model_type": "qwen2", "tie_word_embeddings": True},
    "gemma2": {
        "model_type": "gemma2",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 16,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
    },
}
"""Small models by name: fields of a configuration over those of `SHAPE`; "tiny" is the preset."""

MORE = {
    "deepseek_v3": {
        **{"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16},
        **{"qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12, "first_k_dense_replace": 1},
        **{"n_routed_experts": 8, "n_group": 2, "topk_group": 1, "moe_intermediate_size": 32, "num_experts_per_tok": 2},
    },
}
"""Small models that are not in the parity table."""

SHAPE = {
    "vocab_size": 272,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
}


def write_family(name: str, directory: Path) -> str:
    """What to pass as --model for the small model `name`: a preset, or a directory written below `directory`."""
    if not (fields := (FAMILIES | MORE)[name]):
        return name
    (directory / name).mkdir(exist_ok=True)
    (directory / name / "config.json").write_text(json.dumps(SHAPE | fields))
    return str(directory / name)


def train(config: Config) -> list[dict[str, float]]:
    """The metrics of a run of the app, a row a step."""
    pretrain.main(config)
    return [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]


def turns_of(config: Config) -> list[float]:
    """For each step of a run, the seconds after which a thread gives up Python's lock if another asks for it."""
    found, own = list[float](), pretrain.seed_all_

    def note(seed: int, step: int, rank: int) -> None:
        found.append(sys.getswitchinterval())
        own(seed, step, rank)

    pretrain.seed_all_ = note
    try:
        pretrain.main(config)
    finally:
        pretrain.seed_all_ = own
    return found


def train_plainly(config: Config) -> list[dict[str, float]]:
    """The same run by plain transformers: each document alone, its own eager attention and logits, torch's AdamW."""
    run = decide(replace(config, mesh=MeshConfig(shard=1)), 1)
    ours = build_model(read_config(config.model), seed=config.seed, device=run.device)
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32, attn_implementation="eager")
    model.to(run.device).load_state_dict(ours.state_dict())
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": config.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.optim.lr, betas=config.optim.betas, eps=config.optim.eps)
    stream = stream_of(run, config)
    rows = []
    for step in range(config.steps):
        documents = [document for row in unpack_batch(next(stream)[0]) for document in row]
        losses = torch.cat([token_losses(model, document) for document in documents])
        loss = losses.mean()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), config.optim.max_norm)
        for group in optimizer.param_groups:
            group["lr"] = run.schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        rows.append({"step": step + 1, "loss": loss.item(), "grad_norm": norm.item(), "targets": len(losses)})
    return rows


def stream_of(run: Decision, config: Config) -> Stream[Batch]:
    """The batches of a run as one rank reads them, a whole step at a time."""
    return stream_batches(
        run.parts,
        Cursor(),
        shard=0,
        num_shards=1,
        rows=run.batch,
        seq_len=config.seq_len,
        tokenize=run.tokenizer.encode,
        eos_id=run.tokenizer.eos_id,
        virtual_shards=run.virtual_shards,
        seed=config.seed,
    )


def token_losses(model: nn.Module, document: list[int]) -> Tensor:
    """The loss of each token of `document` after the first, (tokens - 1,), nats."""
    ids = torch.tensor([document], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")
