"""Finetuning on chats with images, films and sounds: any such model of transformers, and its own processor.

    uv run apps/omni.py                                      a tiny model on built-in pictures; nothing is downloaded
    uv run apps/omni.py --model Qwen/Qwen2.5-VL-7B-Instruct --data chats.jsonl --seq-len 32768 --sp 2 --out runs/vl

Records hold chats as those of apps/sft.py do, and media in their parts, or beside them with marks: `images` and
`<image>`. It is apps/sft.py whose chats show something; media are encoded by whichever rank has least to do. A run
found in --out is continued.
"""

from preflight import answer, start
from request_media import TOLD, Config

if __name__ == "__main__":
    answer(Config, __doc__, told=TOLD)  # What is wrong with flags, and what they are, is told before torch is there.

from explain import explain_run
from pretrain import train
from tune_media import decide_media, settled
from watch import what_interrupt_left_of


def main(asked: Config) -> None:
    """Train as `asked`. Effect: as `train`, below `asked.run.out`."""
    train(settled(asked), decide_media(asked), asked=asked, app="omni")


if __name__ == "__main__":
    start(main, decide_media, Config, __doc__, told=TOLD, instead=explain_run, left=what_interrupt_left_of)
