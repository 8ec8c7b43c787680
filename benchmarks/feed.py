"""How fast `stream_batches` makes rows of text, against the bare tokenizer on the same text in the same run.

    uv run benchmarks/feed.py --folder /disk/folder

The text is English prose that ships with Python, repeated to `--mb` in a file of JSON lines, or in several where it is
streamed; the tokenizer is a byte-level BPE of up to 32,768 tokens that is trained on it here. Each round measures, one
after the other, `tokenizer(text)` of transformers on one document after the other, on lists of `--lot`, and the stream
with each number of workers, so that whatever else the machine does, it does to all. Figures are medians over rounds.

- tokens_per_s, mb_per_s: of wall time. tokens_per_cpu_s: of the time that this process and its workers had a core;
  where a machine has fewer cores than processes, or others use them, this is the one to compare.
- of_one_by_one, of_lists: tokens_per_cpu_s over that of the bare tokenizer. of_core: over `encode_batch_fast` of
  lists of the library `tokenizers`, which is what both are made of, without anything around it.
"""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import tyro
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from omni_data import Cursor, builtin_corpus, open_source, read_tokenizer, stream_batches, stream_source
from omni_data.window import WINDOW

EOS = "<|endoftext|>"

SHARDS = 8
"""Virtual shards, and rows of a batch."""


@dataclass(frozen=True, slots=True)
class Config:
    """What to measure, and where."""

    folder: Path
    """For the files."""
    mb: int = 200
    """10^6 bytes of text."""
    files: int = 8
    """That the text is in where it is streamed."""
    tokens: int = 1_000_000
    """That each measurement is of, about."""
    rounds: int = 3
    """How often everything is measured."""
    workers: tuple[int, ...] = (0, 1, 2, 4)
    """Numbers of workers."""
    lot: int = 256
    """Documents of a list that the bare tokenizer is given."""
    seq_len: int = 2048
    """Tokens of a row."""


@dataclass(frozen=True, slots=True)
class Speed:
    """So many tokens, in seconds of the clock and of cores."""

    tokens: int
    wall: float
    cpu: float


def main(config: Config) -> None:
    """Measure and print. Effect: writes files."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # Every process that is measured has one core.
    name = write(config)
    bare = PreTrainedTokenizerFast.from_pretrained(config.folder / "tokenizer")
    core = bare.backend_tokenizer
    texts = [text for text, _ in zip(cycle(builtin_corpus()), range(config.tokens // 100), strict=False)]
    per_token = sum(len(text.encode()) for text in texts) / sum(map(len, bare(texts)["input_ids"]))
    ways: dict[str, Callable[[], Speed]] = {
        "one_by_one": lambda: measure(len(bare(text)["input_ids"]) for text in texts),
        "core": lambda: measure(
            sum(len(e.ids) for e in core.encode_batch_fast(texts[i : i + config.lot]))
            for i in range(0, len(texts), config.lot)
        ),
        "lists": lambda: measure(
            sum(map(len, bare(texts[i : i + config.lot])["input_ids"])) for i in range(0, len(texts), config.lot)
        ),
    }
    for kind, open_it in (("sized", open_source), ("streamed", stream_source)):
        source = open_it(name[kind])
        for workers in config.workers:
            ways[f"{kind}_{workers}"] = lambda source=source, workers=workers: measure_stream(source, config, workers)
    found: dict[str, list[Speed]] = {way: [] for way in ways}
    for _ in range(config.rounds):
        for way, run in ways.items():
            found[way].append(run())
    figures = {way: told(speeds, per_token) for way, speeds in found.items()}
    for figure in figures.values():
        for other in ("one_by_one", "lists", "core"):
            figure[f"of_{other}"] = round(figure["tokens_per_cpu_s"] / figures[other]["tokens_per_cpu_s"], 3)
    print(json.dumps({"cores": os.cpu_count(), "bytes_per_token": round(per_token, 3), **figures}, indent=2))


def write(config: Config) -> dict[str, str]:
    """The names of the sources. Effect: writes the text, and trains and writes the tokenizer, unless they are there."""
    corpus = builtin_corpus()
    if not (config.folder / "tokenizer").exists():
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=32_768, special_tokens=[EOS], show_progress=False)
        tokenizer.train_from_iterator(iter(corpus), trainer)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(config.folder / "tokenizer")
    lines = [json.dumps({"text": text}).encode() + b"\n" for text in corpus]
    repeats = 1 + config.mb * 10**6 // sum(map(len, lines))
    for folder, files in ((config.folder / "one", 1), (config.folder / "several", config.files)):
        if not folder.exists():
            folder.mkdir(parents=True)
            for i in range(files):
                with (folder / f"{i}.jsonl").open("wb") as file:
                    file.writelines(b"".join(lines) for _ in range(i, repeats, files))
    return {"sized": str(config.folder / "one"), "streamed": str(config.folder / "several")}


def measure(counts: Iterator[int]) -> Speed:
    """The speed at which these tokens come. Effect: takes them."""
    wall, cpu = time.perf_counter(), time.process_time() + children_cpu()
    tokens = sum(counts)
    return Speed(tokens, time.perf_counter() - wall, time.process_time() + children_cpu() - cpu)


def measure_stream(source: Any, config: Config, workers: int) -> Speed:
    """The speed of a stream that is running already. Effect: reads the source."""
    tokenizer = read_tokenizer(str(config.folder / "tokenizer"))
    stream = stream_batches(
        source,
        Cursor(),
        shard=0,
        num_shards=1,
        rows=SHARDS,
        seq_len=config.seq_len,
        tokenize=tokenizer.encode,
        eos_id=tokenizer.eos_id,
        virtual_shards=SHARDS,
        workers=workers,
    )
    with closing(stream):  # type: ignore[type-var]  # It is a generator.
        # Workers make lots ahead, all shards at about the same time: what is measured is whole rounds of lots, so that
        # what was made before it and what is made for after it cancel.
        lots = WINDOW // config.seq_len
        for _ in range(3 * lots if workers else 1):
            next(stream)
        return measure(next(stream)[0].tokens_BS.size for _ in range(lots * -(-config.tokens // (SHARDS * WINDOW))))


def children_cpu() -> float:
    """Seconds of a core that the running children of this process have had."""
    total = 0
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def told(speeds: list[Speed], per_token: float) -> dict[str, float]:
    """The medians of some measurements. Pure."""
    wall, cpu = (median(s.tokens / getattr(s, clock) for s in speeds) for clock in ("wall", "cpu"))
    return {
        "tokens_per_s": round(wall),
        "mb_per_s": round(wall * per_token / 1e6, 2),
        "tokens_per_cpu_s": round(cpu),
        "mb_per_cpu_s": round(cpu * per_token / 1e6, 2),
    }


if __name__ == "__main__":
    main(tyro.cli(Config))
