"""Plan a training run without a GPU: whether it fits, what a rank holds, what a step sends, how long it takes and why,
and which meshes would be faster.

    uv run apps/plan.py --model qwen3-8b --gpus 64 --gpu h200 --seq-len 8192 --batch 512
    uv run apps/plan.py --model qwen3-30b-a3b --gpus 64 --seq-len 8192 --batch 512 --ep 8 --micro 1
    uv run apps/plan.py --model deepseek-v3 --gpus 1024 --seq-len 4096 --batch 4096 --html plan.html
    uv run apps/plan.py --model my/directory --gpus 8 --json
    uv run apps/plan.py --config recipes/pretrain/qwen3-8b.yaml --gpus 64

It takes the flags and files of settings of apps/pretrain.py, apps/sft.py and apps/omni.py. The blocks of the model are
run on torch's meta device, where tensors have shapes and no memory. docs/plan.md says how far predictions are from
what was measured.
"""

import early  # noqa: F401  From here on Ctrl-C ends it with a word.

# isort: split
import json
import sys
from pathlib import Path
from tempfile import TemporaryFile

from forecast import as_json, forecast
from page import make_page
from picture import tell_forecast
from preflight import run
from settings import ask
from subject import TOLD, Config, read_subject


def main(asked: Config) -> None:
    """Tell how the run would go. Effect: prints, and writes a page if asked to."""
    subject = read_subject(asked)
    if asked.html:
        check_place(asked.html)
    told = forecast(subject)
    print(json.dumps(as_json(told), indent=2) if asked.json else tell_forecast(told), flush=True)
    if asked.html:
        asked.html.write_text(make_page(told))
        print(f"page      {asked.html}", file=sys.stderr if asked.json else sys.stdout, flush=True)


def check_place(page: Path) -> None:
    """Raises `ValueError` if a page cannot be written there. Effect: makes its folder, for a moment a file there."""
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=page.parent):
            pass
    except OSError as problem:
        raise ValueError(f"--html {page} cannot be written: {problem.strerror}. Give another place.") from problem


if __name__ == "__main__":
    run(main, Config, __doc__, told=TOLD, read=ask)
