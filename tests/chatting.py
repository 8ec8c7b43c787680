"""Short runs of the app that tunes on chats."""

import json
from dataclasses import replace
from pathlib import Path

import sft
from documented import read_documented
from request_chats import ChatConfig
from training import SMALL

from omni_data import Packing

SAYS = ["Yes, and it is so.", "No.", "It depends on what is asked for, and on who asks.", "Ask again."]


def write_chats(path: Path, count: int) -> str:
    """Chats of one to three turns, in three formats."""
    records = []
    for i in range(count):
        said = [SAYS[(i + j) % len(SAYS)] for j in range(1 + i % 3)]
        turns = [(f"Question {i}, {j}?", answer) for j, answer in enumerate(said)]
        messages = [m for q, a in turns for m in ({"from": "human", "value": q}, {"from": "gpt", "value": a})]
        records.append(
            [
                {"conversations": messages},
                {"prompt": turns[0][0], "completion": said[0]},
                {"instruction": turns[0][0], "input": "", "output": said[0]},
            ][i % 3]
        )
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def asked_in(folder: Path, *, chat: ChatConfig | None = None, **changes: object) -> sft.Config:
    run = replace(SMALL, data=(write_chats(folder / "chats.jsonl", 200),), packing=Packing("fit", long="right"))
    run = replace(run, seq_len=128, steps=3, tokenizer="bytes", out=folder / "run")
    return sft.Config(run=replace(run, **changes), chat=chat or ChatConfig())


def tune(asked: sft.Config) -> list[dict[str, float]]:
    """The metrics of a run of the app, a row a step."""
    sft.main(asked)
    return read_documented(asked.run.out / "metrics.jsonl")
