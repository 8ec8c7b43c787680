"""How long data last is told before they are read, and what to do where that is too short, or rows are not full."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from decide import decide
from lasting import estimate, look
from request import MixConfig
from training import SMALL

from omni_data import Cursor, Documents, Packing, Part, sample_of, stream_batches

S, BATCH = 32, 12


def sources(*sizes: int) -> list[Documents]:
    """Documents of which some are longer than a row."""
    return [Documents(f"{size}", [[1] * (5 + 9 * i % 31 + 20 * (i % 11 == 0)) for i in range(size)]) for size in sizes]


@pytest.mark.parametrize("how", ["concat", "fit", "single"])
@pytest.mark.parametrize("shards", [1, 12, 240])
@pytest.mark.parametrize("sizes", [(30,), (300,), (700,), (300, 100)])
@pytest.mark.parametrize("until", ["first", "all"])
def test_data_last_about_as_long_as_is_told(how, shards: int, sizes: tuple[int, ...], until) -> None:
    parts = [Part(source, 1.0, 2, encode=sample_of) for source in sources(*sizes)]
    packing = Packing(how, long="right" if how == "fit" else "split")
    options = {"packing": packing, "until": until, "seq_len": S}
    told = estimate(parts, [look(part, packing, S) for part in parts], batch=BATCH, shards=shards, **options)
    stream = stream_batches(parts, Cursor(), shard=0, num_shards=1, rows=BATCH, virtual_shards=shards, **options)
    fills = [batch.fill for batch, _ in stream if batch.fill]
    assert told is not None and told.ends
    assert told.steps == pytest.approx(len(fills), rel=0.15, abs=1)
    assert told.fill * told.steps == pytest.approx(sum(fills), rel=0.15)


def test_steps_of_an_epoch_are_those_of_its_rows_also_where_they_are_not_full() -> None:
    (source,) = sources(300)
    for how, rows in (
        ("concat", sum(map(len, source)) / S),
        ("single", sum(-(-len(document) // S) for document in source)),
    ):
        part, packing = Part(source, encode=sample_of), Packing(how)
        told = estimate(
            [part], [look(part, packing, S)], packing=packing, until="first", batch=2, seq_len=S, shards=240
        )
        assert told is not None and not told.ends and told.steps == pytest.approx(rows / 2, rel=0.05)


def test_the_end_of_data_is_told_before_they_are_read(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": "word " * (3 + i % 5)}) + "\n" for i in range(30)))
    config = replace(SMALL, data=(str(tmp_path / "few.jsonl"),), mix=MixConfig(epochs=(1,)), virtual_shards=240)
    config = replace(config, seq_len=96)
    told = decide(replace(config, out=tmp_path / "run")).told()
    assert "about 3 steps until the data end" in told
    assert "data end  with about step 3 of 10: larger --mix.epochs have more; with --steps 3 the learning rate" in told
    assert "documents for 240 virtual shards: about" in told and "with --virtual-shards 12" in told
    fine = decide(replace(config, out=tmp_path / "run", virtual_shards=1, batch=1, steps=3)).told()
    assert "data end  " not in fine and "fill  " not in fine
