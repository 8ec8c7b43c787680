"""Loss curves in bf16: the app with each backend and with 8-bit linear layers, beside plain transformers.

    uv run benchmarks/curves.py --folder /disk/folder --to curves.json

A small model learns English prose that ships with Python, rows of one document each, from the same weights and rows in
every run. The plain ones are `AutoModelForCausalLM` under torch's autocast to bf16, with torch's AdamW: once with each
attention of transformers, which differ by rounding alone, and once from other weights. How far those are from the first
is the noise of a run; the distance of a run is the mean over steps of the magnitude of its difference to the first.

`gap` is the mean difference over the last quarter, with its sign. Nats.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Final

import torch
import torch.nn.functional as F
import tyro
from feed import Config as Text
from feed import write
from torch import Tensor
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from decide import decide
from records import ROOT
from request import Config as Request

from omni_data import Batch, Cursor, builtin_corpus, stream_batches
from omni_models import build_model, read_config
from omni_parallel import AdamWConfig

PLAIN: Final = {"plain, sdpa": ("sdpa", 0), "plain, eager": ("eager", 0), "plain, other weights": ("sdpa", 1)}
OURS: Final = {
    "sdpa": ("--attention", "sdpa", "--kernels", "none"),
    "varlen": ("--attention", "varlen", "--kernels", "none"),
    "fa4": ("--attention", "fa4", "--kernels", "none"),
    "varlen, kernels": ("--attention", "varlen"),
    "varlen, kernels, fp8": ("--attention", "varlen", "--linear", "fp8"),
    "fa4, kernels, fp8": ("--attention", "fa4", "--linear", "fp8"),
}


@dataclass(frozen=True, slots=True)
class Config:
    """What to run."""

    folder: Path
    """For the model, its text, and the checkpoint of a run, which is deleted."""
    to: Path | None = None
    """Where the record goes, curves included."""
    runs: tuple[str, ...] = (*PLAIN, *OURS)
    """Some of them, by name; the first is what others are compared with."""
    model: str = "qwen3-0.6b"
    layers: int = 8
    steps: int = 200
    rows: int = 8
    seq_len: int = 1024
    lr: float = 5e-4


def main(config: Config) -> None:
    """Run, print, and write the record. Effect: runs processes, writes files."""
    write(Text(folder=config.folder, mb=1))
    read_config(config.model, num_hidden_layers=config.layers).save_pretrained(config.folder / "model")
    corpus = builtin_corpus()
    turns = range(0, len(corpus), max(1, len(corpus) // 16))
    whole = ["\n\n".join([*corpus[turn:], *corpus[:turn]]) for turn in turns]
    (config.folder / "whole.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in whole))
    curves = {
        name: run_plainly(config, *PLAIN[name]) if name in PLAIN else run(config, OURS[name]) for name in config.runs
    }
    first = curves[config.runs[0]]
    table = {name: compare(curve, first) for name, curve in curves.items()}
    print(json.dumps(table, indent=2))
    if config.to is not None:
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
        record = {"gpu": gpu, "torch": torch.__version__, "steps": config.steps, "table": table, "curves": curves}
        config.to.write_text(json.dumps(record) + "\n")


def compare(curve: Sequence[float], first: Sequence[float]) -> dict[str, float]:
    """How far `curve` is from `first`, and where it ends. Pure."""
    apart = [one - other for one, other in zip(curve, first, strict=True)]
    last = len(curve) // 4
    measures = {"distance": mean(map(abs, apart)), "gap": mean(apart[-last:]), "end": mean(curve[-last:])}
    return {name: round(value, 5) for name, value in measures.items()}


def flags(config: Config) -> dict[str, str]:
    """What all runs of the app have in common."""
    return {
        "--model": str(config.folder / "model"),
        "--tokenizer": str(config.folder / "tokenizer"),
        "--data": str(config.folder / "whole.jsonl"),
        "--seq-len": str(config.seq_len),
        "--batch": str(config.rows),
        "--steps": str(config.steps),
        "--optim.lr": str(config.lr),
        "--virtual-shards": "1",
    }


def run(config: Config, how: Sequence[str]) -> list[float]:
    """Losses of the app. Effect: runs a process."""
    with TemporaryDirectory(dir=config.folder) as out:
        command = [sys.executable, str(ROOT / "apps" / "pretrain.py"), "--out", out, "--keep", "1", *how]
        command += [word for pair in flags(config).items() for word in pair]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return [json.loads(line)["loss"] for line in Path(out, "metrics.jsonl").read_text().splitlines()]


def run_plainly(config: Config, attention: str, seed: int) -> list[float]:
    """Losses of plain transformers."""
    given = {name.removeprefix("--").replace("-", "_"): value for name, value in flags(config).items()}
    asked = replace(
        Request(model=given["model"], tokenizer=given["tokenizer"], data=(given["data"],), virtual_shards=1),
        **{"seq_len": config.seq_len, "batch": config.rows, "steps": config.steps, "optim": AdamWConfig(lr=config.lr)},
    )
    decided = decide(asked, 1)
    ours = build_model(read_config(given["model"]), seed=seed, device=decided.device)
    model = AutoModelForCausalLM.from_config(ours.config, dtype=torch.float32, attn_implementation=attention)
    model.to(decided.device).load_state_dict(ours.state_dict())
    matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) == wide] for wide in (True, False))
    groups = [{"params": matrices, "weight_decay": asked.optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=asked.optim.betas, eps=asked.optim.eps)
    order = {"shard": 0, "num_shards": 1, "virtual_shards": 1, "seed": asked.seed}
    text = {"tokenize": decided.tokenizer.encode, "eos_id": decided.tokenizer.eos_id}
    stream = stream_batches(decided.parts, Cursor(), rows=config.rows, seq_len=config.seq_len, **order, **text)
    losses: list[float] = []
    for step in range(config.steps):
        batch, _ = next(stream)
        total = torch.zeros((), device=decided.device)
        targets = int((batch.labels_BS != -100).sum())
        for tokens_DL, labels_DL in cut_documents(batch):
            with torch.autocast(decided.device, torch.bfloat16):
                logits_DLV = model(input_ids=tokens_DL.to(decided.device), use_cache=False).logits
            wanted = labels_DL.to(decided.device).flatten()
            part = F.cross_entropy(logits_DLV.float().flatten(0, 1), wanted, reduction="sum") / targets
            part.backward()
            total += part.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), asked.optim.max_norm)
        for group in optimizer.param_groups:
            group["lr"] = decided.schedule(step)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total.item())
    return losses


def cut_documents(batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and labels of the rows that are one document, together, and of each document of the others. Pure."""
    tokens_BS, labels_BS, segments_BS = map(torch.from_numpy, (batch.tokens_BS, batch.labels_BS, batch.segments_BS))
    whole_B = (segments_BS == segments_BS[:, :1]).all(1)
    if whole_B.any():
        yield tokens_BS[whole_B].long(), labels_BS[whole_B].long()
    for tokens_S, labels_S, segments_S in zip(*(x[~whole_B] for x in (tokens_BS, labels_BS, segments_BS)), strict=True):
        for document in segments_S.unique():
            here_S = segments_S == document
            yield tokens_S[here_S][None].long(), labels_S[here_S][None].long()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
