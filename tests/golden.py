"""A run of this version, kept in the repository, so that every later version must go on from it.

    uv run tests/golden.py

writes tests/golden anew: a run of two ranks that stands at step 2 of 4, its data, and what the steps after it gave.
Do this only when an older format is given up on purpose; `test_golden.py` reads what is there.
"""

import json
import os
import random
import shutil
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "apps"))

from ranks import rank_pool
from request import Config
from training import SHAPE, SMALL, train

from omni_mesh import MeshConfig

GOLDEN = Path(__file__).parent / "golden"
MODEL = {
    **SHAPE,
    **{"model_type": "llama", "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
}


def config_in(folder: Path, **changes: object) -> Config:
    """Four steps, with all that they need in `folder`."""
    config = replace(SMALL, model=str(folder / "model"), tokenizer="bytes", data=(str(folder / "data.txt"),))
    return replace(config, steps=4, batch=4, virtual_shards=4, out=folder / "run", **changes)


def main() -> None:
    shutil.rmtree(GOLDEN, ignore_errors=True)
    (GOLDEN / "model").mkdir(parents=True)
    (GOLDEN / "model" / "config.json").write_text(json.dumps(MODEL, indent=1) + "\n")
    random.seed(0)
    words = ["".join(random.choices("abcdefgh", k=random.randrange(2, 8))) for _ in range(40)]
    lines = (" ".join(random.choices(words, k=random.randrange(5, 30))) for _ in range(60))
    (GOLDEN / "data.txt").write_text("\n".join(lines) + "\n")
    os.chdir(GOLDEN)  # What a checkpoint says of its run shall name no folder of this machine.
    with rank_pool() as run:
        run(train, 2, config_in(Path(), stop_after=2, mesh=MeshConfig(shard=2)))
        shutil.copytree("run", "whole")
        rows = run(train, 2, replace(config_in(Path(), mesh=MeshConfig(shard=2)), out=Path("whole")))[0]
    shutil.rmtree("whole")
    kept = [{name: row[name] for name in ("step", "loss", "grad_norm", "lr", "tokens", "targets")} for row in rows]
    (GOLDEN / "expected.json").write_text(json.dumps(kept, indent=1) + "\n")
    (GOLDEN / "run" / "run.lock").unlink()
    print(sum(file.stat().st_size for file in GOLDEN.rglob("*") if file.is_file()), "bytes")


if __name__ == "__main__":
    main()
